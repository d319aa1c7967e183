"""What starts the ranks makes no difference to them: one set of tests, for torchrun and for the warm process."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from seatrial.backends.local import LocalBackend
from seatrial.launch import launcher
from seatrial.launch.launcher import Submitted
from seatrial.runs.files import read_json
from seatrial.runs.paths import RunPaths
from seatrial.runs.plan import LaunchPlan, Stage
from seatrial.runs.state import RunState
from seatrial.spec.run import ScriptSpec

from .test_backends import wait_for_end

pytestmark = pytest.mark.integration
pytest.importorskip("torch", reason="real ranks need the extra 'train'")

TELL = """
import json, os, pathlib, signal, sys, time, torch
import torch.distributed as dist
RANK = os.environ["RANK"]
def tell(name, **facts):
    pathlib.Path(f"{name}_{RANK}.tmp").write_text(json.dumps(facts))
    os.rename(f"{name}_{RANK}.tmp", f"{name}_{RANK}.json")
"""
ENVIRONMENT = """
if __name__ == "__main__":
    dist.init_process_group("gloo")
    total = torch.ones(1); dist.all_reduce(total)
    x = torch.randn(600, 600); [x @ x for _ in range(5)]
    tell("told", env=dict(os.environ), argv=sys.argv, path0=sys.path[0], cwd=os.getcwd(), threads=torch.get_num_threads(),
         own_session=os.getsid(0) == os.getpid(), total=total.item(), term=signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
         blocked=[int(s) for s in signal.pthread_sigmask(signal.SIG_BLOCK, [])], cuda=torch.cuda.is_initialized(),
         pid=os.getpid(), parent=os.getppid())
    dist.barrier(); dist.destroy_process_group()
    raise SystemExit(7 if RANK == "1" else 0)
"""
KILLED = """
if os.environ["TORCHELASTIC_USE_AGENT_STORE"] == "False":  # torchrun waits 30 s before it kills
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
tell("told", pid=os.getpid())
while not os.path.exists("told_0.json"): time.sleep(0.05)
if RANK == "1": os.kill(os.getpid(), signal.SIGKILL)
time.sleep(600)
"""
ASKED = """
def on_term(number, frame):
    tell("asked", number=number)
    raise SystemExit(75)
signal.signal(signal.SIGTERM, on_term)
tell("told", pid=os.getpid())
time.sleep(600)
"""
SET_BY_TORCHRUN = {
    "RANK", "LOCAL_RANK", "ROLE_RANK", "ROLE_NAME", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE",
    "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_MAX_RESTARTS",
    "TORCHELASTIC_RUN_ID", "TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_ERROR_FILE", "TORCH_NCCL_ASYNC_ERROR_HANDLING",
    "OMP_NUM_THREADS", "SEATRIAL_RUN_ID", "SEATRIAL_RUN_DIR", "SEATRIAL_ATTEMPT", "SEATRIAL_RESTART",
}  # fmt: skip


@pytest.fixture(params=["warm", "torchrun"])
def start(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Submitted]:
    def start_script(body: str, **more: Any) -> Submitted:
        (tmp_path / "ranks.py").write_text(TELL + body)
        paths = RunPaths(tmp_path / "a run")
        spec = ScriptSpec(name="s", command=("ranks.py",), cwd=str(tmp_path))
        launcher.create(paths, spec, ["seatrial", "run"])
        plan = LaunchPlan(
            run_id=paths.run_id, run_dir=paths.root, attempt=0, nodes=1, nproc=2, device="cpu", threads=2,
            stages=(Stage(name="script", argv=("ranks.py", "--lr", "1"), reports=False),), python=sys.executable,
            cwd=tmp_path, grace_s=5, launcher=request.param, **more,
        )  # fmt: skip
        return launcher.submit(plan, LocalBackend())

    return start_script


def told(directory: Path, name: str = "told") -> list[dict[str, Any]]:
    deadline = time.monotonic() + 60
    paths = [directory / f"{name}_{rank}.json" for rank in range(2)]
    while not all(path.exists() for path in paths):
        assert time.monotonic() < deadline, f"{directory}: no {name}"
        time.sleep(0.05)
    return [json.loads(path.read_text()) for path in paths]


def test_ranks_find_what_torchrun_gives_and_their_exit_codes_are_kept(
    start: Callable[..., Submitted], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "5")  # of an outer job
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "2")
    submitted = start(ENVIRONMENT)
    rows = told(tmp_path)
    outer = {k: v for k, v in os.environ.items() if k not in SET_BY_TORCHRUN and k != "PYTEST_CURRENT_TEST"}
    for rank, row in enumerate(rows):
        env = row["env"]
        assert not SET_BY_TORCHRUN - set(env)
        ranks = [
            int(env[k])
            for k in ("RANK", "LOCAL_RANK", "ROLE_RANK", "GROUP_RANK", "TORCHELASTIC_RESTART_COUNT")
        ]
        assert ranks == [rank, rank, rank, 0, 0]
        assert {env[k] for k in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "ROLE_WORLD_SIZE")} == {"2"}
        assert env["MASTER_ADDR"] == "127.0.0.1" and env["SEATRIAL_RUN_DIR"] == str(submitted.paths.root)
        assert {k: env.get(k) for k in outer} == outer
        assert not [k for k in env if k.startswith("SEATRIAL_OUTER_")]
        assert row["argv"] == ["ranks.py", "--lr", "1"]
        assert row["path0"] == row["cwd"] == str(tmp_path)
        assert (row["threads"], row["total"]) == (2, 2.0)
        assert row["own_session"] and row["term"] and not row["blocked"] and not row["cuda"]
    assert rows[0]["env"]["MASTER_PORT"] == rows[1]["env"]["MASTER_PORT"]
    assert rows[0]["parent"] == rows[1]["parent"]
    assert wait_for_end(submitted.paths) is RunState.FAILED
    attempt = submitted.paths.attempt(0)
    record = read_json(attempt.launcher_failures(0))["failures"]
    # torchrun ends the others with TERM, and now and then finds that among the failures, too.
    by_itself = [row for row in record if row["exitcode"] != -signal.SIGTERM]
    assert [(row["rank"], row["exitcode"], row["pid"]) for row in by_itself] == [(1, 7, rows[1]["pid"])]
    failure = read_json(attempt.exit)["failure"]
    assert (failure["rank"], failure["what"]) == (1, "rank 1 ended with exit code 7")


def test_a_killed_rank_takes_the_others_with_it(start: Callable[..., Submitted], tmp_path: Path) -> None:
    submitted = start(KILLED)
    pids = [row["pid"] for row in told(tmp_path)]
    began = time.monotonic()
    assert wait_for_end(submitted.paths) is RunState.FAILED
    assert time.monotonic() - began < 20
    failure = read_json(submitted.paths.attempt(0).exit)["failure"]
    assert (failure["rank"], failure["what"]) == (1, "rank 1 was killed by SIGKILL")
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_a_request_to_stop_reaches_every_rank(start: Callable[..., Submitted], tmp_path: Path) -> None:
    submitted = start(ASKED)
    told(tmp_path)
    os.kill(int(submitted.handle.native.split(":")[0]), signal.SIGTERM)
    assert [row["number"] for row in told(tmp_path, "asked")] == [signal.SIGTERM] * 2
    assert wait_for_end(submitted.paths) is RunState.PREEMPTED
    assert read_json(submitted.paths.attempt(0).exit)["exit_code"] == 75


@pytest.mark.parametrize("start", ["warm"], indirect=True)
def test_a_deadline_is_kept_without_a_signal(start: Callable[..., Submitted], tmp_path: Path) -> None:
    submitted = start(ASKED, deadline=time.time() + 1008, stop_before_s=1000)
    assert wait_for_end(submitted.paths) is RunState.PREEMPTED
    attempt = submitted.paths.attempt(0)
    assert read_json(attempt.exit)["exit_code"] == 75
    assert read_json(attempt.stop_request)["reason"] == "deadline"
