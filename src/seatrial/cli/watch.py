"""``seatrial watch``: a run as it goes, and the gate on the use of its devices."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from seatrial.errors import SpecError

if TYPE_CHECKING:
    from seatrial.runs.paths import RunPaths


@click.command()
@click.argument("run", default="last")
@click.option("--require", type=click.FloatRange(0, 100, min_open=True), metavar="PERCENT",
              help="Judge the use of the devices so far: exit with 1 when it is less, 3 when it is not measured.")  # fmt: skip
@click.option(
    "--floor",
    type=click.FloatRange(0, 100),
    metavar="PERCENT",
    help="With --require: what each single GPU must reach.",
)
@click.option(
    "--window",
    type=click.Choice(["steady", "all"]),
    help="With --require: training alone, or everything [steady].",
)
@click.option("--judge", is_flag=True, help="Judge by the recipe's own gate.")
@click.option("--once", is_flag=True, help="One look, and no more.")
@click.option("--json", "as_json", is_flag=True, help="One look as JSON.")
@click.option(
    "--every", type=click.FloatRange(0.2, 3600), default=1.0, show_default=True, help="Seconds between looks."
)
@click.option(
    "--runs-dir", type=click.Path(path_type=Path), help="Where runs live [$SEATRIAL_RUNS_DIR, ./runs]."
)
def watch(
    run: str, require: float | None, floor: float | None, window: str | None, judge: bool, once: bool, as_json: bool, every: float,
    runs_dir: Path | None,
) -> int:  # fmt: skip
    """Are the devices used, and if not, why? Shows RUN (the latest) as it goes; leaving it changes nothing."""
    from seatrial.check.floors import peak_tflops
    from seatrial.runs.manifest import find_run
    from seatrial.runs.paths import runs_dir as default_runs_dir
    from seatrial.watch.look import look

    paths = find_run(run, default_runs_dir(runs_dir))
    if judge or require is not None or floor is not None or window is not None:
        return _judge(paths, as_json, {"min": require, "floor": floor, "window": window})
    settled(paths)
    if as_json:
        click.echo(json.dumps(look(paths, peak_tflops).to_dict(), indent=2, ensure_ascii=False))
        return 0
    from seatrial.watch.live import plain_lines, show_once, watch_live

    at = partial(look, paths, peak_tflops)
    if once:
        show_once(at)
    elif sys.stdout.isatty():
        watch_live(at, every)
    else:
        plain_lines(at, every)
    return 0


def settled(paths: RunPaths) -> None:
    """Has the run's manifest say how it ended, where its platform can be asked."""
    from seatrial.errors import SeatrialError
    from seatrial.launch import launcher

    try:
        launcher.settle(paths)
    except SeatrialError as error:
        click.echo(f"warning: {error.what}; shown as it was last known", err=True)


def _judge(paths: RunPaths, as_json: bool, given: dict[str, Any]) -> int:
    from seatrial.check.floors import peak_tflops
    from seatrial.cli.outcome import use_code
    from seatrial.spec.gates import UtilisationGate
    from seatrial.spec.load import read_spec
    from seatrial.watch.utilisation import conclude

    spec = read_spec(paths.spec)
    gate = getattr(getattr(spec, "gates", None), "utilisation", None)
    if gate is None:
        raise SpecError(
            f"{paths.run_id} is an acceptance test",
            evidence="it trains nothing",
            remedy=f"seatrial runs show {paths.run_id}",
        )
    settled(paths)
    wanted = {key: value for key, value in given.items() if value is not None}
    asked = UtilisationGate.model_validate(gate.model_dump() | wanted)
    if "floor" in wanted and asked.min is None:
        raise SpecError(
            "--floor says what each GPU must reach, and nothing says what all of them must",
            evidence="the recipe has no gates.utilisation.min", remedy="--require 80 --floor 50",
        )  # fmt: skip
    found = conclude(paths, asked, peak_tflops)
    code = int(use_code(found, required=asked.min is not None))
    if as_json:
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return code
    click.echo(f"{found['verdict']}: {found['message']}")
    for cause in found["causes"]:
        click.echo(f"cause: {cause['sentence']}")
        for line in cause["evidence"]:
            click.echo(f"  {line}")
        click.echo(f"  change: {cause['remedy']}")
    click.echo(_of_hardware(found))
    return code


def _of_hardware(found: dict[str, Any]) -> str:
    parts = [
        f"{name} {found[key]:.1%}" if found[key] is not None else f"{name} unmeasured ({found[why]})"
        for name, key, why in (
            ("MFU", "mfu", "mfu_reason"), ("MFU of what the acceptance test measured", "mfu_of_measured", "mfu_of_measured_reason"),
        )
    ]  # fmt: skip
    good = "" if found["goodput"] is None else f"; goodput {found['goodput']:.0%}"
    return "; ".join(parts) + good
