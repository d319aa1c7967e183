"""What every platform must do, tried on every platform that this machine has, with real ranks."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from seatrial.backends import registry
from seatrial.backends.base import Backend, JobHandle
from seatrial.launch import launcher
from seatrial.runs.files import read_json
from seatrial.runs.paths import RunPaths
from seatrial.runs.plan import LaunchPlan, Stage
from seatrial.runs.state import RunState
from seatrial.spec.kubernetes import KubernetesSpec
from seatrial.spec.run import ResourcesSpec, ScriptSpec
from seatrial.testing import FakeKubernetes, FakeSlurm
from tests.ssh.fleet import PretendFleet, pretend_fleet
from tests.ssh.sshd import Sshd

pytestmark = pytest.mark.integration
pytest.importorskip("torch", reason="real ranks need the extra 'train'")

RANKS = "import os, time; print('rank', os.environ['RANK'], 'of', os.environ['WORLD_SIZE'], flush=True)\n"


@pytest.fixture
def fake_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeSlurm]:
    with FakeSlurm(tmp_path / "slurm") as slurm:
        for name, value in slurm.env.items():
            monkeypatch.setenv(name, value)
        yield slurm


@pytest.fixture
def fake_kubernetes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeKubernetes]:
    pytest.importorskip("kubernetes", reason="the extra 'k8s' is not installed")
    with FakeKubernetes(tmp_path / "kubernetes") as cluster:
        monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
        cluster.add_claim("runs")
        yield cluster


@pytest.fixture
def fake_hosts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[PretendFleet]:
    if why := Sshd.unavailable():
        pytest.skip(why)
    with pretend_fleet(tmp_path / "fleet") as fleet:
        for name, value in fleet.env.items():
            monkeypatch.setenv(name, value)
        yield fleet


@pytest.fixture(
    params=["local", "hosts", pytest.param("slurm", marks=pytest.mark.slurm), "slurm-fake", "k8s-fake"]
)
def backend(request: pytest.FixtureRequest) -> Backend:
    if request.param != "local":
        fakes = {
            "hosts": "fake_hosts",
            "slurm": "slurm",
            "slurm-fake": "fake_slurm",
            "k8s-fake": "fake_kubernetes",
        }
        request.getfixturevalue(fakes[request.param])
        registry.get.cache_clear()  # the client keeps the environment that it was made in
    return registry.get(request.param.removesuffix("-fake"))


@pytest.fixture(params=[1, 2])
def nodes(request: pytest.FixtureRequest, backend: Backend) -> int:
    if request.param > 1 and backend.name == "local":
        pytest.skip(f"{backend.name} is one node")
    return int(request.param)


@pytest.fixture
def make(tmp_path: Path, nodes: int, backend: Backend) -> Callable[[str], LaunchPlan]:
    def plan_for(body: str) -> LaunchPlan:
        script = tmp_path / "script.py"
        script.write_text(RANKS + body)
        paths = RunPaths(tmp_path / "a run with spaces")
        kubernetes = KubernetesSpec(
            image="here", claim="runs", path=f"{tmp_path.resolve()}/volume", python=sys.executable
        )
        spec = ScriptSpec(
            name="s", command=("script.py",), cwd=str(tmp_path), kubernetes=kubernetes,
            resources=ResourcesSpec(nodes=nodes, nproc=2),
        )  # fmt: skip
        launcher.create(paths, spec, ["seatrial", "run"])
        platform: dict[str, object] = {}
        if backend.name == "k8s":
            platform = {"spec": kubernetes.model_dump(mode="json"), "native": backend.probe(spec).native}
        if backend.name == "hosts":
            platform = {"native": backend.probe(spec).native}
        return LaunchPlan(
            run_id=paths.run_id, run_dir=paths.root, attempt=0, nodes=nodes, nproc=2, device="cpu", threads=1,
            stages=(Stage(name="script", argv=(str(script),), reports=False),), python=sys.executable, cwd=tmp_path,
            grace_s=5, platform=platform,
        )  # fmt: skip

    return plan_for


def wait_for_end(paths: RunPaths, timeout_s: float = 60) -> RunState:
    deadline = time.monotonic() + timeout_s
    while not (state := launcher.settle(paths).state).is_terminal:
        assert time.monotonic() < deadline, "it never ended"
        time.sleep(0.1)
    return state


def wait_for_rank(paths: RunPaths, timeout_s: float = 60) -> None:
    """Until rank 1 has said something; where the nodes write elsewhere, it is here once somebody asks."""
    deadline = time.monotonic() + timeout_s
    while not paths.attempt(0).rank_log(1).exists():
        assert time.monotonic() < deadline, "it said nothing"
        if paths.remote.exists():
            launcher.settle(paths)
        time.sleep(0.1)


def test_render_is_pure(backend: Backend, make: Callable[[str], LaunchPlan]) -> None:
    plan = make("")
    before = sorted(plan.run_dir.rglob("*"))
    assert backend.render(plan) == backend.render(plan)
    assert sorted(plan.run_dir.rglob("*")) == before


def test_a_job_runs_to_its_end(backend: Backend, make: Callable[[str], LaunchPlan], nodes: int) -> None:
    submitted = launcher.submit(make(""), backend)
    assert JobHandle.parse(str(submitted.handle)) == submitted.handle
    assert wait_for_end(submitted.paths) is RunState.COMPLETED
    attempt = submitted.paths.attempt(0)
    for rank in range(2 * nodes):
        assert attempt.rank_log(rank).read_text() == f"rank {rank} of {2 * nodes}\n"
    assert any(path.exists() for path in backend.logs(submitted.handle, submitted.paths.root))
    deadline = time.monotonic() + 10  # the record is written a moment before the job is gone
    while not backend.state(submitted.handle).state.is_terminal:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    backend.cancel(submitted.handle)  # of an ended job: nothing happens


def test_a_failing_rank_fails_the_job(backend: Backend, make: Callable[[str], LaunchPlan]) -> None:
    submitted = launcher.submit(make("raise SystemExit(7 if os.environ['RANK'] == '1' else 0)"), backend)
    assert wait_for_end(submitted.paths) is RunState.FAILED
    failure = read_json(submitted.paths.attempt(0).exit)["failure"]
    assert (failure["rank"], failure["exit_code"]) == (1, 4)
    assert "exit code 7" in failure["what"]


def test_a_job_is_cancelled(backend: Backend, make: Callable[[str], LaunchPlan]) -> None:
    submitted = launcher.submit(make("time.sleep(600)"), backend)
    wait_for_rank(submitted.paths)
    assert backend.state(submitted.handle).state is RunState.RUNNING
    backend.cancel(submitted.handle)
    assert wait_for_end(submitted.paths, 30) is RunState.INTERRUPTED


def test_a_job_that_ignores_requests_is_killed(backend: Backend, make: Callable[[str], LaunchPlan]) -> None:
    stubborn = "import signal; [signal.signal(s, signal.SIG_IGN) for s in (2, 15)]; time.sleep(600)"
    submitted = launcher.submit(make(stubborn), backend)
    wait_for_rank(submitted.paths)
    backend.cancel(submitted.handle, force=True)
    # Slurm tells that it was cancelled; of a process that is gone nobody tells how.
    killed = RunState.INTERRUPTED if backend.keeps_jobs else RunState.LOST
    assert wait_for_end(submitted.paths, 30) is killed
