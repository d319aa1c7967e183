"""The soak in its short form; `benchmarks/chaos.py --kills 200` is the long one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "chaos.py"


def test_killed_at_random_moments_it_ends_with_the_same_weights() -> None:
    pytest.importorskip("torch", reason="real ranks need the extra 'train'")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--kills", "3", "--steps", "60", "--stride", "30", "--minutes", "4", "--seed", "2"],
        capture_output=True, text=True, timeout=580,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["kills"] >= 1 and found["violations"] == 0 and found["runs"] >= 1
