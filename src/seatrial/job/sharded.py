"""Models that no rank holds whole: FSDP2 and tensor parallelism as Transformers applies them, and what differs.

Parameters are DTensors. Each rank creates its part on the device straight from the safetensors files: the model is built
on the meta device, sharded, and each tensor's slice read (Transformers, ``distributed/sharding_utils.py``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
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


def by_layout(tensors: Iterable[torch.Tensor]) -> list[list[torch.Tensor]]:
    """The tensors, in their order, by how they lie on the ranks: what one operation on many tensors takes together."""
    found: dict[Any, list[torch.Tensor]] = {}
    for tensor in tensors:
        layout = (tensor.device_mesh, tensor.placements) if isinstance(tensor, DTensor) else None
        found.setdefault(layout, []).append(tensor)
    return list(found.values())


def sharding(spec: RunSpec, strategy: str, world: World, meta: torch.nn.Module) -> dict[str, Any]:
    """What `from_pretrained` takes to give each rank its part.

    Args:
        spec: the recipe.
        strategy: fsdp, hsdp or tp.
        world: all ranks share the model; with hsdp, those of a node, or each half of the ranks of a single node.
            With tp, `tp_size` ranks split each matrix, and what they hold of it is sharded over the groups.
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
    replicas, split = 1, 1
    if strategy == "tp":
        split = tp_size(spec, world.world_size)
        _check_plan(meta, split)
    if strategy == "hsdp":
        replicas = spec.resources.nodes if spec.resources.nodes > 1 else 2
        if world.world_size % replicas or world.world_size == replicas:
            raise SpecError(
                f"hsdp does not fit {world.world_size} ranks",
                evidence=f"{replicas} replicas of at least 2 ranks each",
                remedy="train.parallel=fsdp, or another number of ranks",
            )
    parts = world.world_size // replicas // split
    _check_tied(meta, parts, parts * split)
    try:
        config = DistributedConfig(
            tp_size=split,
            fsdp_size=parts,
            dp_replicate_size=replicas,
            fsdp_plan=layer_plan(meta),
            fsdp_cpu_offload=spec.train.cpu_offload,
            fsdp_mixed_precision=spec.train.precision == "bf16",
        )
    except TypeError as error:
        raise _old_transformers(error) from error
    return {"distributed_config": config}


def tp_size(spec: RunSpec, world_size: int) -> int:
    """Ranks that split each matrix: what the recipe says, else those of a node.

    Raises:
        SpecError: they don't divide the ranks of a node, between which alone the exchange in every layer is cheap.
    """
    local = max(1, world_size // spec.resources.nodes)
    size = spec.train.tp_size or local
    if local % size:
        raise SpecError(
            f"tp_size {size} does not fit the ranks",
            evidence=f"a node has {local} ranks, which groups of {size} don't divide",
            remedy=f"train.tp_size={local}, or another number of ranks",
        )
    return size


def split_numel(meta: Any) -> int:
    """Numbers in the weights that the model's plan for tensor parallelism splits."""
    return sum(
        parameter.numel()
        for name, parameter in meta.named_parameters()
        if not {_pattern(name), _pattern(name.rpartition(".")[0])}.isdisjoint(meta.tp_plan or {})
    )


def _pattern(name: str) -> str:
    """A name with ``*`` for the numbers of layers, as plans have it."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", name)


def _check_plan(meta: Any, size: int) -> None:
    config = meta.config.get_text_config()
    if not meta.tp_plan:
        raise SpecError(
            f"{meta.config.model_type} models can't be split by tensor parallelism",
            evidence=f"Transformers has no plan for {type(meta).__name__} (base_model_tp_plan)",
            remedy="train.parallel=fsdp",
        )
    for name in ("num_attention_heads", "num_key_value_heads"):
        heads = getattr(config, name, None)
        if heads is not None and heads % size:
            raise SpecError(
                f"the attention heads can't be dealt out over {size} ranks",
                evidence=f"{name} is {heads}",
                remedy="another train.tp_size, or train.parallel=fsdp",
            )


def _check_tied(meta: Any, parts: int, divisor: int) -> None:
    """Where Transformers wraps the embedding and the tied head apart, PyTorch keeps one padded copy for each.

    Of rows that divide evenly there is no padding and no copy. Otherwise the optimizer would update one of them only, and
    the losses would be wrong from the second step on.
    """
    embedding, head = meta.get_input_embeddings(), meta.get_output_embeddings()
    if (
        parts == 1
        or head is None
        or embedding.weight is not head.weight
        or len(embedding.weight) % divisor == 0
    ):
        return
    name = next(name for name, module in meta.named_modules() if module is embedding)
    if _pattern(name) in (meta.fsdp_plan or {}):
        raise SpecError(
            f"{meta.config.model_type} models with tied embeddings can't be cut into uneven parts",
            evidence=f"{name} has {len(embedding.weight)} rows, which {divisor} ranks don't share evenly",
            remedy="another number of ranks, or train.parallel=ddp",
        )


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
    return {_pattern(name): "free_full_weight" for name in names}


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
