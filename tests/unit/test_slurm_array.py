"""An array is one request for many runs, and each of its elements answers to its own name."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest

from seatrial.backends.base import JobHandle, SubmitsMany
from seatrial.backends.slurm.backend import SlurmBackend
from seatrial.backends.slurm.batch import Supervisor
from seatrial.backends.slurm.client import Client
from seatrial.backends.slurm.find import find
from seatrial.backends.slurm.jobs import holds
from seatrial.backends.slurm.script import render_array
from seatrial.backends.slurm.step import job_id_of, open_file
from seatrial.errors import PlatformError, SpecError
from seatrial.runs.plan import LaunchPlan, Stage
from seatrial.runs.state import RunState
from seatrial.spec.slurm import SlurmSpec
from seatrial.testing import FakeRunner

Golden = Callable[[str, Path | str], None]
NAMES = ["t-0-0101-ab12", "t-1-0101-cd34", 'it\'s "two" $HOME 日本']


def plan(name: str, runs: Path = Path("/shared/runs"), **more: object) -> LaunchPlan:
    stages = (Stage(name="train", argv=("-m", "seatrial.job.train", str(runs / name))),)
    return LaunchPlan(
        run_id=name, run_dir=runs / name, attempt=0, nodes=2, nproc=2, device="cpu", threads=1, stages=stages,
        python="/shared/venv/bin/python", cwd=Path("/shared/project"), platform=SlurmSpec().model_dump(mode="json"),
        **more,  # type: ignore[arg-type]
    )  # fmt: skip


PLANS = [plan(name) for name in NAMES]


def rendered(plans: list[LaunchPlan] = PLANS, **slurm: object) -> str:
    directory = plans[0].run_dir.parent / "sweep-0101"
    return render_array(plans, SlurmSpec(**slurm), name="sweep-0101", directory=directory)  # type: ignore[arg-type]


def test_the_script_is_as_recorded(golden: Golden) -> None:
    golden(rendered(max_running=2, partition="main"), "slurm/array.sh")


def test_all_may_run_at_once_unless_told_otherwise() -> None:
    assert "#SBATCH --array=0-2\n" in rendered()
    assert "#SBATCH --array=0-2%1\n" in rendered(max_running=1)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_each_element_starts_the_supervisor_of_its_own_run(tmp_path: Path, index: int) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    text = rendered([replace(one, python=str(python)) for one in PLANS])
    env = {"PATH": "/usr/bin:/bin", "SLURM_CPUS_PER_TASK": "2", "SLURM_ARRAY_TASK_ID": str(index)}
    done = subprocess.run(["bash", "-s"], input=text, capture_output=True, text=True, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    words = ["-m", "seatrial.backends.slurm.batch", str(PLANS[index].run_dir), "--first-attempt", "0"]
    assert done.stdout.splitlines() == words


def test_runs_that_ask_for_different_things_are_not_one_request() -> None:
    with pytest.raises(SpecError) as caught:
        rendered([PLANS[0], replace(PLANS[1], stop_before_s=300, nproc=4)])
    assert "they differ in nproc, stop_before_s" in caught.value.evidence


def test_what_follows_each_run_may_differ() -> None:
    assert rendered([PLANS[0], replace(PLANS[1], afterwards=(("-m", "seatrial", "report", "t-1"),))])


def test_every_run_has_a_handle_with_the_name_that_its_job_has() -> None:
    runner = FakeRunner({"sbatch --parsable": "77\n"})
    backend = SlurmBackend(Client(runner, environ={}))
    assert isinstance(backend, SubmitsMany)
    handles = backend.submit_all(backend.render_all(PLANS, "sweep-0101", Path("/shared/runs/sweep-0101")))
    assert list(map(str, handles)) == [f"slurm://77_{i}/sweep-0101" for i in range(3)]
    first = next(iter(backend.logs(handles[1], PLANS[1].run_dir)))
    assert first == Path("/shared/runs/sweep-0101/slurm-77_1.out")


def test_within_an_allocation_runs_come_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = SlurmBackend(Client(FakeRunner(), environ={}))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert backend.takes_many
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    assert not backend.takes_many


class TestAnElement:
    ENVIRONMENT: ClassVar = {"SLURM_JOB_ID": "77", "SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": "2",
                   "SLURM_JOB_NAME": "sweep-0101"}  # fmt: skip

    def test_it_never_goes_by_the_number_of_the_whole_array(self, tmp_path: Path) -> None:
        """The last element has it; requeued or cancelled by it, all of them would be."""
        assert job_id_of(self.ENVIRONMENT) == "77_2"
        assert job_id_of({"SLURM_JOB_ID": "78"}) == "78"
        supervisor = Supervisor(tmp_path, 0, self.ENVIRONMENT, client=Client(FakeRunner(), environ={}))
        assert supervisor.job_id == "77_2"
        assert supervisor._handle("77_2", PLANS[2]) == "slurm://77_2/sweep-0101"
        assert (
            supervisor._handle("91", PLANS[2]) == f"slurm://91/{NAMES[2]}"
        )  # a successor is a job of its own

    def test_its_output_is_wherever_it_is(self, tmp_path: Path) -> None:
        with (tmp_path / "slurm-77_2.out").open("w") as file:
            assert open_file(file.fileno()) == tmp_path / "slurm-77_2.out"
        with Path("/dev/null").open() as file:
            assert open_file(file.fileno()) is None

    def test_it_is_given_a_record_of_its_own_before_it_is_cancelled_in_the_queue(self) -> None:
        """Slurm forgets an element that is cancelled while it waits in the array's record."""
        runner = FakeRunner(
            {
                "squeue": "",
                "scontrol show job 77_2": "JobId=77 ArrayJobId=77 ArrayTaskId=0-2 JobName=sweep-0101\n"
                "   JobState=PENDING Reason=Resources Dependency=(null)\n",
                "scontrol update": "",
                "scancel": "",
            }
        )
        SlurmBackend(Client(runner, environ={})).cancel(JobHandle("slurm", "77_2/sweep-0101"))
        acted = [call for call in runner.calls if call[0] == "scancel" or "update" in call]
        assert acted == [("scontrol", "update", "JobId=77_2", "Comment=seatrial"), ("scancel", "77_2")]


@pytest.mark.parametrize(
    ("several", "element", "expected"),
    [
        ("8_[0-3]", "8_0", True), ("8_[0-3]", "8_3", True), ("8_[0-3]", "8_4", False), ("8_[0,2-5%2]", "8_3", True),
        ("8_[0,2-5%2]", "8_1", False), ("8_[1]", "8_1", True), ("18_[1]", "8_1", False), ("8_1", "8_1", False),
        ("8_[0,...]", "8_1", False), ("8_[0-3]", "8", False),
    ],
)  # fmt: skip
def test_which_elements_a_record_of_several_has(several: str, element: str, expected: bool) -> None:
    assert holds(several, element) is expected


@pytest.mark.parametrize(
    "said", ["Job is pending execution for job 16\n", "18_0: Job is pending execution\n"]
)
def test_a_job_that_slurm_has_queued_again_by_itself_is_not_queued_twice(said: str) -> None:
    """So it answers once a preemption has done it; a second job for the run would train it twice."""
    Client(FakeRunner({"scontrol requeue": (1, "", said)}), environ={}).requeue("18_0")
    with pytest.raises(PlatformError):
        Client(FakeRunner({"scontrol requeue": (1, "", "Requested operation is presently disabled\n")}),
               environ={}).requeue("18_0")  # fmt: skip


def test_a_job_that_ends_before_its_signal_comes_needs_none() -> None:
    """scancel says nothing then, and exits with the low bits of Slurm's error number."""
    Client(FakeRunner({"scancel": (229, "", "")}), environ={}).cancel("18_0", "INT")
    with pytest.raises(PlatformError):
        Client(
            FakeRunner({"scancel": (1, "", "scancel: error: Kill job error: Access denied")}), environ={}
        ).cancel("1")


def test_of_an_element_that_never_ran_the_accounting_is_not_asked() -> None:
    """A thousand elements that were cancelled in the queue would be a thousand questions."""
    shown = "JobId=77 ArrayJobId=77 ArrayTaskId=0 JobName=sweep-0101\n   JobState=CANCELLED Reason=None NodeList=(null)\n"
    runner = FakeRunner({"squeue": "", "scontrol show job 77_0": shown})
    found = find(Client(runner, environ={}), "77_0", "sweep-0101")
    assert found.state.state is RunState.INTERRUPTED
    assert [call[0] for call in runner.calls] == ["squeue", "scontrol"]


def test_bash_can_read_it() -> None:
    done = subprocess.run(["bash", "-n"], input=rendered(), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    first = next(i for i, line in enumerate(rendered().splitlines()) if line and not line.startswith("#"))
    assert not re.search(r"^#SBATCH", "\n".join(rendered().splitlines()[first:]), re.M)
