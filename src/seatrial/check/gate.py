"""Whom to leave out of the next phase: ``python -m seatrial.check.gate RUN_DIR ATTEMPT --after PHASE``.

Prints one JSON object from the samples that are there so far: ``leave_out``, reasons by node; ``peak_tflops``, the GPUs'
physical peak in bf16, where all are of one known model (else null). Started by the conductor
of an acceptance test on the first node; ``RUN_DIR/spec.json`` says what was wanted. With ``--suspects`` it also has
``again``: parts and pairs to measure once more before anybody is blamed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from seatrial.check.cluster import Cluster
from seatrial.check.floors import peak_tflops
from seatrial.check.judge import fatal_nodes, judge, suspects
from seatrial.errors import SeatrialError, SpecError
from seatrial.runs.acceptance import Profile
from seatrial.runs.files import read_json
from seatrial.runs.paths import RunPaths
from seatrial.runs.samples import read_all
from seatrial.spec.checks import PHASES, CheckSpec


def main(argv: list[str] | None = None) -> int:
    """Prints who is left out; exit code 2, with the reason on stderr, where the run can't be read."""
    parser = argparse.ArgumentParser(
        prog="python -m seatrial.check.gate", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("attempt", type=int)
    parser.add_argument(
        "--after", type=int, required=True, choices=range(len(PHASES)), help="the phase that has ended"
    )
    parser.add_argument("--nodes", help="names of all nodes, with commas [those that wrote samples]")
    parser.add_argument(
        "--profile", choices=("gpu", "cpu", "rehearsal"), help="[rehearsal, or by what the nodes say]"
    )
    parser.add_argument("--suspects", action="store_true", help="say what should be measured again, too")
    args = parser.parse_args(argv)
    try:
        answer = decide(args.run_dir, args.attempt, args.after, args.nodes, args.profile, args.suspects)
    except SeatrialError as error:
        sys.stderr.write(f"{error}\n")
        return int(error.exit_code)
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0


def decide(
    run_dir: Path,
    attempt: int,
    after: int,
    nodes: str | None = None,
    profile: Profile | None = None,
    again: bool = False,
) -> dict[str, Any]:
    """What `main` prints.

    Raises:
        SpecError: there is no spec of an acceptance test in the run directory, or no sample.
    """
    data = read_json(RunPaths(run_dir).spec)
    if not isinstance(data, dict) or data.get("task") != "check":
        raise SpecError(
            f"{run_dir} is not an acceptance test", evidence=f"{RunPaths(run_dir).spec}: no task 'check'"
        )
    spec = CheckSpec.model_validate_json(json.dumps(data))
    samples = list(read_all(run_dir / f"attempt-{attempt}" / "samples"))
    names = nodes.split(",") if nodes else sorted({s.node for s in samples})
    if not names:
        raise SpecError(
            "nobody has measured anything", evidence=f"no samples under {run_dir}/attempt-{attempt}"
        )
    seen = any(s.metric == "gpu_count" and s.value for s in samples)
    profile = profile or ("rehearsal" if spec.rehearse else "gpu" if seen else "cpu")
    findings = judge(samples, spec, profile=profile, expected_nodes=names, last_phase=after)
    models = set(Cluster.of(samples, spec, profile, names).gpu_models.values())
    peaks = {peak_tflops(model, "bf16") for model in models}
    peak = peaks.pop() if len(peaks) == 1 else None
    answer: dict[str, Any] = {"leave_out": fatal_nodes(findings), "peak_tflops": peak}
    if again:
        parts, links = suspects(samples, spec, profile=profile, expected_nodes=names)
        rows = {(s.check, s.node, s.gpu) for s in parts}
        answer["again"] = {
            "parts": [
                {"check": check, "node": node, "gpu": gpu} for check, node, gpu in sorted(rows, key=str)
            ],
            "pairs": links,
        }
    return answer


if __name__ == "__main__":
    sys.exit(main())
