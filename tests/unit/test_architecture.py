"""The rules that hold the tree together: which way imports go, what a command may load, how long files get."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "seatrial"

# Lower may not import higher. Verbs of one level never import each other.
LEVELS = {
    "errors": 0,
    "command": 1,
    "spec": 2,
    "runs": 3,
    "backends": 4,
    "launch": 5,
    "check": 6,
    "provision": 6,
    "compare": 6,
    "report": 6,
    "ship": 6,
    "watch": 6,
    "cli": 7,
    "testing": 8,
}
JOB_MAY_IMPORT = {"errors", "command", "spec", "runs", "job"}
HEAVY = {"torch", "transformers", "datasets", "tokenizers", "safetensors"}


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def package_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def modules() -> list[Path]:
    return sorted(p for p in SOURCE.rglob("*.py") if package_of(p) not in {"__init__", "__main__"})


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_go_one_way(path: Path) -> None:
    own = package_of(path)
    below = {name.split(".")[1] for name in imports_of(path) if name.startswith("seatrial.")}
    below = {name for name in below if (SOURCE / name).is_dir() or (SOURCE / f"{name}.py").is_file()}
    if own == "job":
        assert below <= JOB_MAY_IMPORT
        return
    assert "job" not in below, "the job side is started as a program, never imported"
    wrong = {name for name in below - {own} if LEVELS[name] >= LEVELS[own]}
    assert not wrong, f"{own} may not import {wrong}"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_only_the_job_side_imports_torch(path: Path) -> None:
    if package_of(path) != "job":
        assert not {name.split(".")[0] for name in imports_of(path)} & HEAVY


def test_only_command_calls_subprocess() -> None:
    callers = [p.name for p in modules() if "subprocess" in imports_of(p)]
    assert callers == ["command.py"]


def test_the_command_line_loads_next_to_nothing() -> None:
    """`seatrial --help` must stay a blink: importing a verb's libraries is the verb's business."""
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, seatrial.cli.main; print(*sorted(sys.modules))"],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    heavy = HEAVY | {
        "pandas",
        "kubernetes",
        "numpy",
        "pyarrow",
        "pydantic",
        "rich",
        "jinja2",
        "scipy",
        "ruamel.yaml",
    }
    assert not heavy & set(loaded)


@pytest.mark.parametrize(
    "module", ["seatrial.compare", "seatrial.report", "seatrial.launch.launcher", "seatrial.spec.load"]
)
def test_no_control_module_pulls_in_the_job_side(module: str) -> None:
    code = f"import sys, {module}; print(*[m for m in ('torch','transformers','datasets','pandas') if m in sys.modules])"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.split()
        == []
    )


def test_the_trainer_is_read_in_one_sitting() -> None:
    assert len((SOURCE / "job" / "train.py").read_text().splitlines()) <= 450


def test_no_module_outgrows_a_screenful_of_screens() -> None:
    long = {
        p.name: n for p in modules() if (n := len(p.read_text().splitlines())) > 400 and p.name != "train.py"
    }
    assert not long
