"""Models that no rank holds whole: FSDP2 as Transformers applies it, and what differs from a whole model.

Parameters are DTensors. Each rank creates its part on the device straight from the safetensors files: the model is built
on the meta device, sharded, and each tensor's slice read (Transformers, ``distributed/sharding_utils.py``).
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from seatrial.errors import SpecError
from seatrial.job.world import World
from seatrial.spec.run import RunSpec


def is_sharded(net: torch.nn.Module) -> bool:
    """Whether the ranks hold parts of the parameters, and so have to go forward and backward together."""
    return any(isinstance(p, DTensor) for p in net.parameters())


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with its parts from all ranks, which all have to ask for it; a plain tensor as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharding(spec: RunSpec, strategy: str, world: World, meta: torch.nn.Module) -> dict[str, Any]:
    """What `from_pretrained` takes to give each rank its part.

    Args:
        spec: the recipe.
        strategy: fsdp or hsdp.
        world: all ranks share the model; with hsdp, those of a node, or each half of the ranks of a single node.
        meta: the model on the meta device, for the names of its layers.

    Raises:
        SpecError: the ranks, the device or the libraries can't do it.
    """
    try:
        from transformers.distributed import DistributedConfig
    except ImportError as error:
        raise _old_transformers(error) from error
    if world.device.type == "cpu":
        _check_cpu(spec)
    replicas = 1
    if strategy == "hsdp":
        replicas = spec.resources.nodes if spec.resources.nodes > 1 else 2
        if world.world_size % replicas or world.world_size == replicas:
            raise SpecError(
                f"hsdp does not fit {world.world_size} ranks",
                evidence=f"{replicas} replicas of at least 2 ranks each",
                remedy="train.parallel=fsdp, or another number of ranks",
            )
    try:
        config = DistributedConfig(
            fsdp_size=world.world_size // replicas,
            dp_replicate_size=replicas,
            fsdp_plan=layer_plan(meta),
            fsdp_cpu_offload=spec.train.cpu_offload,
            fsdp_mixed_precision=spec.train.precision == "bf16",
        )
    except TypeError as error:
        raise _old_transformers(error) from error
    return {"distributed_config": config}


def layer_plan(meta: torch.nn.Module) -> dict[str, str]:
    """The repeated layers, each gathered for its own forward and backward: ``{"bert.encoder.layer.*": …}``.

    They are those that Transformers keeps on one device (``_no_split_modules``) and that are numbered; else the members of
    the longest list of modules.
    """
    kinds = set(getattr(meta, "_no_split_modules", None) or ())
    names = [
        name for name, module in meta.named_modules() if type(module).__name__ in kinds and name.rpartition(".")[2].isdigit()
    ]  # fmt: skip
    if not names:
        lists = [(len(m), n) for n, m in meta.named_modules() if isinstance(m, torch.nn.ModuleList)]
        names = [f"{max(lists)[1]}.0"] if lists else []
    return {re.sub(r"\.\d+(?=\.|$)", ".*", name): "free_full_weight" for name in names}


@torch.no_grad()
def draw_anew(model: Any, missing: set[str], rng_state: torch.Tensor) -> None:
    """Weights that the files lack, as one process would draw them: `from_pretrained` draws each part for itself.

    Args:
        model: sharded.
        missing: names of its parameters.
        rng_state: of the CPU, before the model was loaded.
    """
    now = torch.get_rng_state()
    torch.set_rng_state(rng_state)
    drawn: list[torch.nn.Module] = []

    def draw(module: torch.nn.Module) -> None:
        own = dict(module.named_parameters(recurse=False))
        if any(id(own[name]) in wanted for name in own):
            drawn.append(module)
            module._parameters.update({n: torch.nn.Parameter(torch.empty(p.shape)) for n, p in own.items()})
            model._init_weights(module)
            for name, parameter in own.items():
                full = module._parameters[name]
                assert full is not None
                _put(parameter, full.data)
            module._parameters.update(own)

    wanted = {id(p) for name, p in model.named_parameters() if name in missing}
    model.apply(draw)
    torch.set_rng_state(now)


def _put(parameter: torch.Tensor, full: torch.Tensor) -> None:
    """This rank's part of `full` into `parameter`."""
    if not isinstance(parameter, DTensor):
        parameter.copy_(full)
        return
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offset = compute_local_shape_and_global_offset(
        parameter.shape, parameter.device_mesh, parameter.placements
    )
    part = full[tuple(slice(o, o + s) for o, s in zip(offset, shape, strict=True))]
    parameter.to_local().copy_(part)


def _check_cpu(spec: RunSpec) -> None:
    if spec.train.cpu_offload:
        raise SpecError(
            "cpu_offload needs GPUs",
            evidence="the ranks run on CPU, where everything is in the machine's memory",
            remedy="train.cpu_offload=false",
        )
    if torch.cuda.is_available():
        raise SpecError(
            f"{spec.train.parallel} on CPU ranks of a machine with GPUs is not offered",
            evidence="Transformers places the parts on the GPUs that it sees",
            remedy="CUDA_VISIBLE_DEVICES= seatrial train …",
        )


def _old_transformers(error: Exception) -> SpecError:
    import transformers

    return SpecError(
        "this Transformers can't shard a model while it loads it",
        evidence=f"transformers {transformers.__version__}: {error}",
        remedy="pip install --upgrade 'transformers>=5.23', or train.parallel=ddp",
    )
