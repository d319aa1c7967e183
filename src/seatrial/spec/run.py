"""The recipe of a run. Each field's docstring is its help; every name here is the name in YAML and in flags."""

from __future__ import annotations

import difflib
import re
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from seatrial.spec.duration import seconds
from seatrial.spec.gates import GatesSpec, ScriptGates
from seatrial.spec.kubernetes import KubernetesSpec
from seatrial.spec.section import Section
from seatrial.spec.slurm import SlurmSpec

Task = Literal["text-classification", "image-classification", "causal-lm"]
PLATFORMS = ("auto", "local", "slurm", "k8s", "hosts")
"""What ``resources.on`` may be, beside ``ssh://HOST``."""
SHARDED = ("fsdp", "hsdp", "tp")
"""Ways to share a model in which no rank holds it whole."""


def is_classification(task: str) -> bool:
    """Whether samples have a class each, and predictions are probabilities of the classes."""
    return task in ("text-classification", "image-classification")


DEFAULT_BATCH_SIZE = 16
"""Samples a rank in one forward pass, unless told otherwise; with ``auto`` it fixes the global batch."""


class DataSpec(Section):
    """Where the samples come from."""

    path: str
    """Hub id, a file (csv, tsv, jsonl, json, parquet, arrow, txt), a directory with train.* and test.*, or, for images, with train/CLASS/*.png and test/CLASS/*.png (or CLASS/*.png alone)."""
    subset: str | None = None
    """Configuration of a hub data set, such as sst2 of glue."""
    text: str | None = None
    """Column of the text; found by name when it is plain (text, sentence, content, …)."""
    image: str | None = None
    """Column of the image; found by name when it is plain (image, img, pixel_values, …)."""
    label: str | None = None
    """Column of the label; found by name when it is plain (label, labels, class, …)."""
    id: str | None = None
    """Column that identifies a sample; without it, the split and the row number do, or an image file's path."""
    train: str | None = None
    """Name of the split to train on [default: train]."""
    test: str | None = None
    """Name of the held-out split [default: test, else validation]."""
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Part of the samples held out when the data has one split only; drawn by train.seed."""
    max_length: Annotated[int, Field(ge=2)] | None = None
    """Longest text in tokens; longer ones are cut, and counted [default: 128, or the model's limit if less]."""
    augment: Literal["none", "flip", "crop"] = "none"
    """Change training images at random: flip mirrors half of them, crop also shifts them by up to an eighth. None unless asked for: only who knows the classes knows whether a mirrored digit, arrow or lung is still one of them."""
    train_samples: Annotated[int, Field(ge=1)] | None = None
    """At most so many training samples, drawn by train.seed."""
    test_samples: Annotated[int, Field(ge=1)] | None = None
    """At most so many held-out samples, drawn by train.seed."""
    streaming: bool = False
    """Read no more than train_samples and test_samples ask for, and leave the rest where it is: for data larger than the disk. Each sample is drawn from the next 10,000."""

    @model_validator(mode="after")
    def _streams_have_an_end(self) -> DataSpec:
        if self.streaming and (self.train_samples is None or self.test_samples is None):
            raise ValueError("streaming needs train_samples and test_samples: how much to read")
        return self


class TrainSpec(Section):
    """How to train. The global batch is batch_size × grad_accumulation × ranks."""

    epochs: Annotated[float, Field(gt=0)] = 3
    """Passes over the training samples."""
    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Stop after so many optimizer steps, whatever epochs says."""
    learning_rate: Annotated[float, Field(gt=0)] = 5e-5
    """Highest learning rate, reached after the warmup."""
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = DEFAULT_BATCH_SIZE
    """Samples a rank in one forward pass; auto is the largest that fits, with the same global batch."""
    grad_accumulation: Annotated[int, Field(ge=1)] = 1
    """Forward passes per optimizer step."""
    global_batch: Annotated[int, Field(ge=1)] | None = None
    """Samples of one optimizer step on all ranks together; decides grad_accumulation [default: batch_size (16 where it is auto) × grad_accumulation × ranks]."""
    group_by_length: bool = True
    """Let samples of about one length share a step, within a shuffled window: next to nothing is computed on padding."""
    batch_tokens: Annotated[int, Field(ge=2)] | None = None
    """Tokens of one forward pass, padding included, instead of batch_size; the samples of a step stay the same."""
    packing: bool = False
    """Send samples through the layers end to end, without padding; batch_tokens then counts real tokens only."""
    warmup: Annotated[float, Field(ge=0)] = 0.06
    """Steps of linear warmup: a part of all steps below 1, a number of steps from 1 on."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls after the warmup."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """AdamW's decoupled weight decay, on matrices only."""
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest norm of the gradient; null for none."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the order, the split, the new weights and the dropout."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the forward pass; weights stay fp32."""
    tf32: bool = False
    """Let fp32 matrix products use TF32 where the GPU has it."""
    parallel: Literal["auto", "ddp", "fsdp", "hsdp", "tp"] = "auto"
    """How ranks share the model: ddp holds it whole on each, fsdp a part of it on each, hsdp a part on each of a node, tp splits each matrix between tp_size ranks; auto is ddp where it fits, else fsdp."""
    tp_size: Annotated[int, Field(ge=2)] | None = None
    """With tp: ranks that split each matrix and see the same samples; fsdp across groups of them [default: the ranks of a node]."""
    cpu_offload: bool = False
    """With fsdp or hsdp on GPUs: keep weights and optimizer state in the machine's memory."""
    activation_checkpointing: bool = False
    """Compute each layer's activations again in the backward pass instead of keeping them: less memory, a third more work."""
    compile: Literal["off", "auto", "on"] = "off"
    """torch.compile: never; where a timed trial before the first step says that it pays, in runs of ten minutes and more; or always."""
    trim_vocabulary: bool = True
    """Train only those rows of the token embedding that the training samples have, to the same result: the others only decay."""
    checkpoint_every: Annotated[int, Field(ge=1)] | None = 500
    """Steps between checkpoints; null for none but the last model."""
    checkpoint_minutes: Annotated[float, Field(gt=0)] | None = None
    """Also save when so many minutes have passed since the last checkpoint, by rank 0's clock."""
    keep_checkpoints: Annotated[int, Field(ge=1)] = 2
    """How many of the newest checkpoints stay on disk."""
    keep_best: Annotated[int, Field(ge=0)] = 0
    """How many checkpoints with the lowest held-out loss stay as well; it counts where both fall on one step."""
    keep_every: Annotated[int, Field(ge=1)] | None = None
    """Checkpoints of every so many steps stay for ever."""
    eval_every: Annotated[int, Field(ge=1)] | None = None
    """Steps between evaluations on the held-out samples; null for the end of each epoch."""
    log_every: Annotated[int, Field(ge=1)] = 10
    """Steps between rows of metrics.jsonl; the loss leaves the device only then."""
    max_restarts: Annotated[int, Field(ge=0)] = 0
    """How often the ranks are started again from the newest checkpoint when one of them dies or freezes."""
    hang_timeout_s: Annotated[float, Field(gt=0)] | None = 600
    """A rank without progress for so long counts as frozen; null never thinks so. Before the second step, three times as long, and at least half an hour."""
    stop_before_s: Annotated[float, Field(ge=0)] = 120
    """How long before the platform's deadline (SEATRIAL_DEADLINE, seconds since the epoch) the ranks save and stop."""
    on_nonfinite: Literal["stop", "skip", "rollback"] = "stop"
    """A loss or gradient that is not finite: stop; skip that update; or go back to the last checkpoint and leave its step out."""
    max_skips: Annotated[int, Field(ge=0)] = 10
    """Updates that may be skipped in a run; five in a row stop it before."""
    on_spike: Literal["warn", "rollback", "off"] = "warn"
    """A loss far above those before it: say so; go back to the last checkpoint before it and leave its steps out; or don't look."""
    max_rollbacks: Annotated[int, Field(ge=0)] = 3
    """How often a run may go back before it stops."""
    compare_ranks_every: Annotated[int, Field(ge=1)] | None = None
    """Steps between comparisons of the weights of all ranks; null for each checkpoint. Always at the end."""

    @model_validator(mode="after")
    def _parts_fit_together(self) -> TrainSpec:
        if self.global_batch is not None and self.grad_accumulation != 1:
            raise ValueError("global_batch decides grad_accumulation: give one of them")
        if self.precision == "fp16" and self.parallel in SHARDED:
            raise ValueError(f"precision fp16 and parallel {self.parallel} don't go together: use bf16")
        if self.cpu_offload and self.parallel not in ("fsdp", "hsdp"):
            raise ValueError("cpu_offload needs parallel fsdp or hsdp")
        if self.tp_size is not None and self.parallel != "tp":
            raise ValueError("tp_size needs parallel tp")
        if self.compile != "off" and (self.packing or self.parallel in SHARDED):
            raise ValueError("compile goes with padded batches and parallel ddp: train.compile=off")
        return self

    def samples_per_step(self, world_size: int) -> int:
        """The global batch on so many ranks; those that see the same samples count as one."""
        micro = DEFAULT_BATCH_SIZE if self.batch_size == "auto" else self.batch_size
        return self.global_batch or micro * self.grad_accumulation * world_size


class AdapterSpec(Section):
    """Train a small addition to a model that stays as it is (PEFT)."""

    kind: Literal["lora", "dora", "qlora"] = "lora"
    """lora; dora learns the size of each weight column as well; qlora holds the model in 4 bits (a GPU, bitsandbytes)."""
    r: Annotated[int, Field(ge=1)] = 8
    """Rank of the update of each weight matrix."""
    alpha: Annotated[float, Field(gt=0)] = 16
    """The update is scaled by alpha / r."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout in front of the update."""
    targets: tuple[str, ...] | Literal["auto"] = "auto"
    """Names, or last parts of names, of the linear layers that get one; auto is all of them but the head's."""
    merge: bool = False
    """Save the trained model whole, with the update added in, instead of the adapter alone."""

    @field_validator("targets", mode="before")
    @classmethod
    def _targets_from_list(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _four_bits_stay_apart(self) -> AdapterSpec:
        if self.kind == "qlora" and self.merge:
            raise ValueError(
                "adapter.merge: an update can't be added to weights of 4 bits without loss; leave it out"
            )
        return self


class ModelOptions(Section):
    """What may be done to the model on loading."""

    allow_pickle: bool = False
    """Read pickled weights (*.bin) where there are no safetensors; only tensors are unpickled, and the run's copy is safetensors."""
    new_head: bool = False
    """Replace a classification head that was made for another number of classes by a new one."""


class ResourcesSpec(Section):
    """What to run on."""

    on: str = "auto"
    """Platform: local, slurm, k8s, hosts (the machines of nodes.yaml) or ssh://HOST (a cluster's login node); auto detects local and slurm, and says why."""
    nodes: Annotated[int, Field(ge=1)] = 1
    """Machines."""
    gpus_per_node: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """GPUs of each machine; auto takes all that are visible, 0 asks for CPU."""
    nproc: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Ranks on each machine; auto is one a GPU, or one on a machine without GPUs."""
    launcher: Literal["warm", "torchrun"] = "warm"
    """What starts the ranks: forks of one process a node that has imported everything once, or torchrun."""
    time: str | None = None
    """How long a scheduler may let an attempt run: 4h, 90m, 2-00:00:00 [default: the scheduler's]."""
    sample_every_s: Annotated[float, Field(ge=0)] = 1.0
    """Seconds between samples of the GPUs (without any, of the processors); 0 takes none."""
    price_per_gpu_hour: Annotated[float, Field(ge=0)] | None = None
    """What a GPU costs an hour, in whatever currency: the page says what was paid for nothing."""
    memory_gib: Annotated[float, Field(gt=0)] | None = None
    """Memory of one rank's device, for estimates [default: what the device, or the machine's share, has]."""

    @field_validator("on")
    @classmethod
    def _platform_is_known(cls, value: str) -> str:
        if value in PLATFORMS or re.fullmatch(r"ssh://[^\s/]+", value):
            return value
        near = difflib.get_close_matches(value, PLATFORMS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{value!r} is not a platform: {', '.join(PLATFORMS)} or ssh://HOST{hint}")

    @field_validator("time", mode="before")
    @classmethod
    def _time_is_clear(cls, value: Any) -> Any:
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            seconds(str(value))
        return value

    @property
    def time_s(self) -> int | None:
        """`time` in seconds."""
        return None if self.time is None else seconds(self.time)


def _clean_name(name: str) -> str:
    if not name or len(name) > 60 or not all(c.isalnum() or c in "-_." for c in name) or name[0] in "-.":
        raise ValueError(
            "a name has 1 to 60 letters, digits, '-', '_' or '.', and starts with neither - nor ."
        )
    return name


def _place(value: str | None) -> str | None:
    if value is not None and "://" not in value and not value.startswith("/"):
        raise ValueError(
            f"{value!r} is neither a URL nor an absolute path: s3://bucket/prefix, /mnt/artifacts"
        )
    return value


class RunSpec(Section):
    """A training run: what is trained, on what, where, and what it must show."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    name: str
    """Short name; the run's id starts with it."""
    task: Task = "text-classification"
    """text-classification, image-classification or causal-lm."""
    model: str
    """Hub id or local directory of a Transformers model."""
    data: DataSpec
    train: TrainSpec = TrainSpec()
    adapter: AdapterSpec | None = None
    """Train an adapter instead of the model."""
    model_options: ModelOptions = ModelOptions()
    resources: ResourcesSpec = ResourcesSpec()
    slurm: SlurmSpec = SlurmSpec()
    kubernetes: KubernetesSpec = KubernetesSpec()
    gates: GatesSpec = GatesSpec()
    track: tuple[Literal["wandb", "mlflow", "tensorboard"], ...] = ()
    """Trackers that are told of the run: wandb, mlflow, tensorboard; each as its own environment variables say."""
    artifacts: str | None = None
    """Where the run is mirrored while it goes on: s3://bucket/prefix, a mounted directory, or another fsspec URL."""
    tags: tuple[str, ...] = ()
    """Words to find the run by."""

    model_config = ConfigDict(populate_by_name=True, strict=True)
    _name_is_clean = field_validator("name")(_clean_name)
    _mirror_is_a_place = field_validator("artifacts")(_place)

    @field_validator("tags", "track", mode="before")
    @classmethod
    def _tags_from_list(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _adapters_are_whole(self) -> RunSpec:
        if self.adapter is not None and self.train.parallel in SHARDED:
            raise ValueError(f"adapter and train.parallel={self.train.parallel} don't go together: use ddp")
        return self

    @model_validator(mode="after")
    def _keys_fit_samples(self) -> RunSpec:
        data, train = self.data, self.train
        if self.task == "image-classification":
            given = {"data.text": data.text, "data.max_length": data.max_length, "train.batch_tokens": train.batch_tokens,
                     "train.packing": train.packing or None, "data.streaming": data.streaming or None}  # fmt: skip
            remark = "which is for texts"
        else:
            given = {
                "data.image": data.image,
                "data.augment": data.augment if data.augment != "none" else None,
            }
            remark = "which is for image-classification"
        for key, value in given.items():
            if value is not None:
                raise ValueError(f"the task is {self.task}, and {key} is given, {remark}")
        return self

    @model_validator(mode="after")
    def _metric_fits_task(self) -> RunSpec:
        metric = self.gates.compare.metric
        known = METRICS[self.task]
        if metric is not None and metric not in known:
            raise ValueError(
                f"gates.compare.metric {metric!r} does not exist for {self.task}: {', '.join(known)}"
            )
        return self


class ScriptSpec(Section):
    """A run of somebody's own torchrun-compatible script: launched and recorded, not looked into."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    name: str
    task: Literal["script"] = "script"
    command: tuple[str, ...]
    """The script and its arguments."""
    cwd: str
    """Directory that the script is started in."""
    resources: ResourcesSpec = ResourcesSpec()
    slurm: SlurmSpec = SlurmSpec()
    kubernetes: KubernetesSpec = KubernetesSpec()
    gates: ScriptGates = ScriptGates()
    artifacts: str | None = None
    tags: tuple[str, ...] = ()

    model_config = ConfigDict(populate_by_name=True, strict=True)
    _name_is_clean = field_validator("name")(_clean_name)
    _mirror_is_a_place = field_validator("artifacts")(_place)

    @field_validator("tags", "command", mode="before")
    @classmethod
    def _tuple_from_list(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value


_OF_CLASSES = ("accuracy", "macro_f1", "log_loss", "calibration_error")
METRICS: dict[str, tuple[str, ...]] = {
    "text-classification": _OF_CLASSES,
    "image-classification": _OF_CLASSES,
    "causal-lm": ("nll", "perplexity"),
}
"""What the comparison measures, by task; the first is what the verdict rests on unless told otherwise."""
