"""``seatrial train``: a recipe, or flags, or both."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from seatrial.errors import SpecError

# flag -> the recipe's key. The names are those of the field's training scripts.
_KEYS = {
    "name": "name",
    "task": "task",
    "model": "model",
    "data": "data.path",
    "subset": "data.subset",
    "text": "data.text",
    "image": "data.image",
    "label": "data.label",
    "max_length": "data.max_length",
    "augment": "data.augment",
    "train_samples": "data.train_samples",
    "eval_samples": "data.test_samples",
    "epochs": "train.epochs",
    "max_steps": "train.max_steps",
    "learning_rate": "train.learning_rate",
    "batch_size": "train.batch_size",
    "grad_accumulation": "train.grad_accumulation",
    "warmup": "train.warmup",
    "weight_decay": "train.weight_decay",
    "seed": "train.seed",
    "precision": "train.precision",
    "tf32": "train.tf32",
    "global_batch": "train.global_batch",
    "parallel": "train.parallel",
    "activation_checkpointing": "train.activation_checkpointing",
    "adapter": "adapter.kind",
    "merge": "adapter.merge",
    "allow_pickle": "model_options.allow_pickle",
    "new_head": "model_options.new_head",
    "gpu_memory": "resources.memory_gib",
    "platform": "resources.on",
    "nodes": "resources.nodes",
    "time": "resources.time",
    "partition": "slurm.partition",
    "account": "slurm.account",
    "qos": "slurm.qos",
    "gpus": "resources.gpus_per_node",
    "nproc": "resources.nproc",
    "launcher": "resources.launcher",
    "max_restarts": "train.max_restarts",
    "metric": "gates.compare.metric",
    "require": "gates.compare.require",
    "min_improvement": "gates.compare.min_improvement",
    "confidence": "gates.compare.confidence",
    "min_utilisation": "gates.utilisation.min",
    "artifacts": "artifacts",
    "track": "track",
    "tags": "tags",
}

SHORT = {name: key for name, key in _KEYS.items() if name != "platform"} | {"lr": "train.learning_rate"}
"""What stands for a recipe's key after ``--sweep``: the flags' names, and ``lr``."""
_FLAGS = {"platform": "--on"}


class NumberOrAuto(click.ParamType):  # type: ignore[type-arg]
    """A whole number, or the word that leaves it to the machine."""

    name = "auto|N"

    def convert(  # noqa: D102
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Any:
        if value == "auto" or isinstance(value, int):
            return value
        try:
            return int(value)
        except ValueError:
            self.fail(f"{value!r} is neither a whole number nor 'auto'", param, ctx)


VERDICT = click.option(
    "--verdict",
    metavar="FILE|none",
    help="Acceptance test to go by [the newest of each node, in the runs directory].",
)
_Command = TypeVar("_Command", bound=Callable[..., object])


def platform_options(nodes: Any = int) -> Callable[[_Command], _Command]:
    """Flags that say where to run, of every verb that starts a run.

    Args:
        nodes: the type of ``--nodes``.
    """

    def add(command: _Command) -> _Command:
        for option in (
            click.option("--qos", help="Slurm's quality of service."),
            click.option("--account", help="Slurm's account."),
            click.option("--partition", help="Slurm's partition."),
            click.option("--time", help="How long a scheduler may let it run: 4h, 90m, 2-00:00:00."),
            click.option("--nodes", type=nodes, help="Machines [1]."),
            click.option("--profile", help="Profile of the site's config.yaml [its own choice]."),
            click.option(
                "--on",
                "platform",
                metavar="PLATFORM",
                help="auto, local, slurm, k8s, ssh://HOST, or a profile's name [auto].",
            ),
        ):
            command = option(command)
        return command

    return add


@click.command(
    epilog="The words after the recipe set any of its keys: train.schedule=cosine data.max_length=64"
)
@click.argument("words", nargs=-1, metavar="[RECIPE.yaml] [KEY=VALUE]...")
@click.option("--name", help="Short name; the run's id starts with it.")
@click.option(
    "--task",
    type=click.Choice(["text-classification", "image-classification", "causal-lm"]),
    help="[text-classification]",
)
@click.option("--model", help="Hub id or local directory.")
@click.option("--data", help="Hub id, file, or directory with train.* and test.*, or of images.")
@click.option("--subset", help="Configuration of a hub data set.")
@click.option("--text", help="Column of the text.")
@click.option("--image", help="Column of the image.")
@click.option("--label", help="Column of the label.")
@click.option("--max-length", type=int, help="Longest text in tokens [128, or the model's limit].")
@click.option(
    "--augment", type=click.Choice(["none", "flip", "crop"]), help="Change training images at random [none]."
)
@click.option("--train-samples", type=int, help="At most so many training samples.")
@click.option("--eval-samples", type=int, help="At most so many held-out samples.")
@click.option("--epochs", type=float, help="Passes over the data [3].")
@click.option("--max-steps", type=int, help="At most so many optimizer steps.")
@click.option("--learning-rate", type=float, help="Highest learning rate [5e-5].")
@click.option(
    "--batch-size", type=NumberOrAuto(), help="Samples a rank in one forward pass; auto: what fits [16]."
)
@click.option("--grad-accumulation", type=int, help="Forward passes per optimizer step [1].")
@click.option("--warmup", type=float, help="Part of the steps (<1) or steps (>=1) of warmup [0.06].")
@click.option("--weight-decay", type=float, help="AdamW's weight decay [0.01].")
@click.option("--seed", type=int, help="Seed of order, split, new weights, dropout [0].")
@click.option("--precision", type=click.Choice(["fp32", "bf16", "fp16"]), help="[fp32]")
@click.option("--tf32/--no-tf32", default=None, help="TF32 for fp32 matrix products.")
@click.option("--global-batch", type=int, help="Samples of an optimizer step on all ranks.")
@click.option(
    "--parallel",
    type=click.Choice(["auto", "ddp", "fsdp", "hsdp", "tp"]),
    help="How ranks share the model [auto].",
)
@click.option(
    "--activation-checkpointing", is_flag=True, default=None, help="Less memory, a third more work."
)
@click.option("--adapter", type=click.Choice(["lora", "dora", "qlora"]), help="Train an adapter (PEFT).")
@click.option("--merge", is_flag=True, default=None, help="Save model and adapter as one plain model.")
@click.option("--allow-pickle", is_flag=True, default=None, help="Read weights from *.bin; tensors only.")
@click.option("--new-head", is_flag=True, default=None, help="Replace a head made for other classes.")
@click.option("--gpu-memory", type=float, metavar="GIB", help="Memory of a device, for estimates [read].")
@platform_options()
@VERDICT
@click.option("--gpus", type=NumberOrAuto(), help="GPUs a node; 0 for CPU [auto].")
@click.option("--nproc", type=NumberOrAuto(), help="Ranks a node [auto: one a GPU, else 1].")
@click.option("--launcher", type=click.Choice(["warm", "torchrun"]), help="What starts the ranks [warm].")
@click.option("--max-restarts", type=int, help="Start the ranks again so often after a crash or a hang [0].")
@click.option("--metric", help="What the verdict rests on [accuracy; nll for causal-lm].")
@click.option("--require", type=click.Choice(["better", "not worse"]), help="Exit with 1 unless it is so.")
@click.option("--min-improvement", type=float, help="Smallest improvement, in the metric's unit.")
@click.option("--confidence", type=float, help="Of intervals and verdict [0.95].")
@click.option(
    "--min-utilisation", type=float, metavar="PERCENT", help="Exit with 1 unless the GPUs are used that much."
)
@click.option(
    "--artifacts",
    metavar="URL",
    help="Mirror the run there while it goes on: s3://bucket/prefix, a directory.",
)
@click.option(
    "--track",
    metavar="TRACKERS",
    help="Tell trackers of it: wandb, mlflow, tensorboard, separated by commas.",
)
@click.option("--tags", help="Words to find the run by, separated by commas.")
@click.option(
    "--then",
    metavar="WORDS",
    help="What follows the training: predict,compare,report [all]; none for nothing.",
)
@click.option("--train-only", is_flag=True, help="Nothing follows: --then none.")
@click.option("--after", metavar="RUN", help="Start when RUN has ended well.")
@click.option(
    "--sweep",
    multiple=True,
    metavar="KEY=VALUES",
    help="A run for each of the values: lr=1e-5,3e-5 seed=0..4",
)
@click.option(
    "--runs-dir", type=click.Path(path_type=Path), help="Where runs live [$SEATRIAL_RUNS_DIR, ./runs]."
)
@click.option("--detach", "-d", is_flag=True, help="Start it and return; print its id.")
@click.option(
    "--estimate", is_flag=True, help="Print the memory that it needs, and other ways to train; load nothing."
)
@click.option("--json", "as_json", is_flag=True, help="With --estimate: JSON on stdout.")
@click.option("--dry-run", is_flag=True, help="Print what would be done, exactly; touch nothing.")
def train(
    words: tuple[str, ...],
    then: str | None,
    sweep: tuple[str, ...],
    train_only: bool,
    after: str | None,
    runs_dir: Path | None,
    detach: bool,
    estimate: bool,
    as_json: bool,
    dry_run: bool,
    profile: str | None,
    verdict: str | None,
    **flags: Any,
) -> int:
    """Train a model, compare it with the original on held-out samples, and show it in one page."""
    from seatrial.cli.start import start_training
    from seatrial.spec import load as loading
    from seatrial.spec.site import named, site_layers

    flags["platform"], profile = named(flags["platform"], profile)
    recipe, overrides = _split(words)
    given = given_flags(flags)
    if recipe is None and "name" not in given:
        given["name"] = ("(from model and data)", default_name(flags["model"], flags["data"]))
    if recipe is None and not (flags["model"] and flags["data"]) and not overrides and not sweep:
        raise SpecError(
            "nothing to train",
            evidence="neither a recipe nor --model and --data were given",
            remedy="seatrial train RECIPE.yaml    or    seatrial train --model DIRECTORY --data FILE.csv",
        )
    if sweep:
        from seatrial.cli.sweep import start_sweep

        return start_sweep(
            sweep, recipe, given, overrides, site_layers(profile), short=SHORT, argv=sys.argv, runs_dir=runs_dir,
            then=following("none" if train_only else then), after=after, detach=detach, dry_run=dry_run, estimate=estimate,
            verdict=verdict,
        )  # fmt: skip
    loaded = loading.load(recipe, flags=given, overrides=overrides, under=site_layers(profile))
    if estimate:
        from seatrial.cli.estimate import show

        return show(loaded.spec, as_json=as_json)
    return start_training(
        loaded,
        argv=sys.argv,
        runs_dir=runs_dir,
        then=following("none" if train_only else then),
        after=after,
        detach=detach,
        dry_run=dry_run,
        verdict=verdict,
    )


def given_flags(flags: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
    """The flags that were given, by the recipe's key."""
    given = {
        _KEYS[name]: (_FLAGS.get(name, f"--{name.replace('_', '-')}"), value)
        for name, value in flags.items()
        if value is not None
    }
    for key in {"tags", "track"} & given.keys():
        given[key] = (f"--{key}", [word for word in str(given[key][1]).split(",") if word])
    return given


def following(words: str | None) -> tuple[str, ...]:
    """What ``--then`` asks for; a comparison needs predictions.

    Raises:
        SpecError: an unknown word.
    """
    from seatrial.cli.start import THEN

    if words is None:
        return THEN
    given = [word.strip() for word in words.split(",") if word.strip() and word.strip() != "none"]
    unknown = [word for word in given if word not in THEN]
    if unknown:
        raise SpecError(
            f"--then {unknown[0]}: there is no such thing to follow",
            evidence=f"known: {', '.join(THEN)}, none",
        )
    wanted = {*given, *(["predict"] if "compare" in given else [])}
    return tuple(word for word in THEN if word in wanted)


def _split(words: tuple[str, ...]) -> tuple[Path | None, tuple[str, ...]]:
    if words and "=" not in words[0]:
        return Path(words[0]), words[1:]
    return None, words


def default_name(model: str | None, data: str | None) -> str:
    """A run's name when nobody gave one: the last words of data and model."""
    parts = [Path(word).stem for word in (data, model) if word]
    name = "-".join(
        "".join(c if c.isalnum() or c in "_." else "-" for c in part).strip("-.") for part in parts
    )
    return name[:60].strip("-.") or "run"
