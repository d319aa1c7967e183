"""``seatrial predict RUN``: a run's models over held-out samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from seatrial.cli.train import VERDICT
from seatrial.errors import SpecError


@click.command()
@click.argument("run")
@click.option("--model", "models", multiple=True, type=click.Choice(["original", "trained"]), help="[both]")
@click.option("--data", help="Other data than the run's held-out samples: file or directory.")
@click.option("--generate", type=click.IntRange(min=1), metavar="N", help="Continue each text by N tokens.")
@click.option(
    "--prompt-tokens", type=click.IntRange(min=1), help="Tokens of the text that are the prompt [32]."
)
@click.option("--prompt-column", help="Column that holds the prompts, instead of the texts.")
@click.option("--temperature", type=click.FloatRange(min=0), help="Sample; 0 takes the likeliest token [0].")
@click.option("--seed", type=click.IntRange(min=0), help="Seed of the sampling [0].")
@click.option("--engine", type=click.Choice(["transformers", "vllm"]), help="What generates [transformers].")
@VERDICT
@click.option(
    "--runs-dir", type=click.Path(path_type=Path), help="Where runs live [$SEATRIAL_RUNS_DIR, ./runs]."
)
def predict(
    run: str,
    models: tuple[str, ...],
    data: str | None,
    runs_dir: Path | None,
    verdict: str | None,
    **generation: Any,
) -> int:
    """Run the original or the trained model of RUN; prints the prediction files.

    A file that is there for the same samples is kept; a predict that was stopped goes on where it was.
    """
    from seatrial.cli.start import start_attempt
    from seatrial.launch import launcher
    from seatrial.launch.plan import predict_stage
    from seatrial.runs.commit import is_committed
    from seatrial.runs.manifest import find_run, read_manifest
    from seatrial.runs.paths import runs_dir as default_runs_dir
    from seatrial.spec.load import read_spec
    from seatrial.spec.run import RunSpec

    paths = find_run(run, default_runs_dir(runs_dir))
    spec = read_spec(paths.spec)
    if not isinstance(spec, RunSpec):
        raise SpecError(f"{paths.run_id} is a script's run", evidence="it has no models that Seatrial made")
    if paths.remote.exists():
        from seatrial.launch import outside

        raise outside.not_here(paths, f"seatrial predict {paths.run_id}")
    chosen = models or ("original", "trained")
    absent = [name for name in chosen if not is_committed(paths.model(name))]
    if absent:
        raise SpecError(
            f"the run has no {absent[0]} model",
            evidence=f"{paths.model(absent[0])} was never committed",
            remedy=f"seatrial runs resume {paths.run_id}",
        )
    if data is not None and not Path(data).expanduser().exists() and (Path(data).suffix or data[0] in "/.~"):
        raise SpecError(
            f"there is no data at {data}", evidence=f"looked in {Path.cwd()}", remedy="--data FILE"
        )
    continuing = _generation_arguments(generation, spec.task)
    launcher.settle(paths)
    attempt = len(read_manifest(paths).attempts)
    suffix = f"-{Path(data).stem}" if data else ""
    arguments = ["--models", *chosen, *continuing]
    if data is not None:
        local = Path(data).expanduser()
        where = str(local.absolute()) if local.exists() else data
        arguments += ["--data", where, f"--suffix={suffix}"]  # one word: the suffix starts with a dash
    start_attempt(paths, spec, lambda there: (predict_stage(there, *arguments),), attempt, verdict=verdict)
    failure = launcher.failure_of(launcher.settle(paths))
    if failure is not None:
        raise failure
    for name in chosen:
        click.echo(paths.predictions(name + suffix))
    return 0


def _generation_arguments(flags: dict[str, Any], task: str) -> list[str]:
    given = {name.replace("_", "-"): value for name, value in flags.items() if value is not None}
    if given and "generate" not in given:
        raise SpecError(
            f"--{min(given)} says how to generate, and nothing is to be generated",
            evidence="--generate is not given",
            remedy="--generate N",
        )
    if given and task != "causal-lm":
        raise SpecError("only a causal language model generates", evidence=f"the run's task is {task}")
    return [f"--{name}={value}" for name, value in given.items()]
