"""Pretend nodes for the probes of `seatrial check`: a task, a tree of files, and tools that answer from fixtures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from seatrial.command import Completed
from seatrial.errors import PlatformError
from seatrial.job.checks.place import Place
from seatrial.job.checks.task import Task
from seatrial.runs.samples import Sample
from seatrial.spec.checks import CHECKS, SUITES

FIXTURES = Path(__file__).parents[1] / "fixtures" / "check"
Answer = Completed | Exception | Callable[[Sequence[str]], Completed]


def fixture(name: str) -> str:
    return (FIXTURES / name).read_text()


def said(stdout: str = "", *, code: int = 0, stderr: str = "") -> Completed:
    return Completed((), code, stdout, stderr)


class Tools:
    """Answers by program, and by the first words of `nvidia-smi`'s arguments; remembers what it was asked."""

    def __init__(self, **answers: Answer) -> None:
        self.answers = answers
        self.asked: list[tuple[str, ...]] = []

    def __call__(
        self, argv: Sequence[str], *, timeout_s: float = 60, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> Completed:  # fmt: skip
        self.asked.append(tuple(argv))
        name = argv[0]
        if name == "nvidia-smi":
            name = "log" if "-x" in argv else "listing"
        answer = self.answers.get(name)
        if answer is None:
            raise PlatformError(f"{argv[0]} can't be started", evidence="No such file or directory")
        if isinstance(answer, Exception):
            raise answer
        return answer(argv) if callable(answer) else answer


def make_task(directory: Path, **changes: Any) -> Task:
    given: dict[str, Any] = {
        "node": "node0", "node_rank": 0, "nodes": {0: "node0", 1: "node1"}, "nproc": 8, "gpu": None, "device": "cuda",
        "checks": tuple(CHECKS), "suite": SUITES["quick"].model_dump(mode="json"), "run_dir": directory, "attempt": 1,
        "out": directory / "samples.jsonl", "options": {"disk_mib": 4},
    }  # fmt: skip
    (directory / "attempt-1").mkdir(exist_ok=True)
    return Task(**{**given, **changes})


def make_place(
    directory: Path, tools: Tools | None = None, visible: str | None = None, **changes: Any
) -> Place:
    root = directory / "root"
    root.mkdir(exist_ok=True)
    environment = {"TMPDIR": str(directory)} | ({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    return Place(make_task(directory, **changes), root, tools or Tools(), environment)


def put(root: Path, files: Mapping[str, str | bytes]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def by_metric(samples: Sequence[Sample] | list[Sample]) -> dict[tuple[str, int | None], Sample]:
    return {(sample.metric, sample.gpu): sample for sample in samples}
