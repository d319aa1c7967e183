"""Which rank began? Told from the traces that a failed attempt leaves."""

from __future__ import annotations

import errno
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from seatrial.job.verdict import Account, first_failure, give_account
from seatrial.runs.files import append_json_line, write_json
from seatrial.runs.paths import AttemptPaths
from seatrial.runs.plan import Stage


@pytest.fixture
def attempt(tmp_path: Path) -> AttemptPaths:
    paths = AttemptPaths(tmp_path)
    (tmp_path / "failures").mkdir()
    paths.logs.mkdir()
    for rank in range(2):
        paths.rank_log(rank).write_text(f"line of {rank}\n" * 50)
    return paths


def told(attempt: AttemptPaths, rank: int, time: float, *, secondary: bool = False, code: int = 4) -> None:
    write_json(
        attempt.rank_failure(rank),
        {"exit_code": code, "what": f"rank {rank} says", "evidence": "e", "remedy": "r", "rank": rank, "time": time,
         "stage": "train", "secondary": secondary},
    )  # fmt: skip


def seen(attempt: AttemptPaths, **codes: int) -> None:
    rows = [{"rank": int(k[1:]), "pid": 1, "exitcode": v, "time": 50.0} for k, v in codes.items()]
    write_json(attempt.launcher_failures(0), {"schema": 1, "failures": rows})


def failure_of(
    attempt: AttemptPaths, code: int = 1, stage: str = "train", log: str = "warm.log"
) -> dict[str, Any]:
    """Of two ranks on one node."""
    what = Stage(name=stage, argv=())
    account = give_account(attempt, what, range(2), 0, code, attempt.logs / log)
    found = first_failure(attempt, what, [account])
    assert found is not None
    return found


def test_a_killed_rank_comes_before_the_peer_that_lost_it(attempt: AttemptPaths) -> None:
    """The survivor notices first (its socket closes), torchrun's poll comes later."""
    told(attempt, 0, 49.9, secondary=True)
    seen(attempt, r0=1, r1=-9)
    failure = failure_of(attempt, 1, "train", "torchrun.log")
    assert (failure["rank"], failure["what"]) == (1, "rank 1 was killed by SIGKILL")
    assert failure["last_lines"] == ["line of 1"] * 20


def test_a_rank_ended_by_torchrun_is_not_the_cause(attempt: AttemptPaths) -> None:
    seen(attempt, r0=143, r1=-11)
    assert failure_of(attempt, 1, "train", "torchrun.log")["what"] == "rank 1 was killed by SIGSEGV"


def test_a_rank_that_somebody_else_ended_is_the_cause(attempt: AttemptPaths) -> None:
    """A TERM from outside, to one rank; the warm process records no end that it brought about itself."""
    told(attempt, 0, 49.9, secondary=True)
    row = {"rank": 1, "pid": 1, "exitcode": 143, "time": 50.0, "asked": False}
    write_json(attempt.launcher_failures(0), {"schema": 1, "failures": [row]})
    assert failure_of(attempt, 1, "train", "warm.log")["rank"] == 1


def test_what_a_rank_says_itself_beats_its_exit_code(attempt: AttemptPaths) -> None:
    told(attempt, 1, 40.0, code=1)
    told(attempt, 0, 41.0)
    seen(attempt, r0=4, r1=1)
    failure = failure_of(attempt, 1, "train", "torchrun.log")
    assert (failure["rank"], failure["exit_code"], failure["told"]) == (1, 1, True)


def test_an_earlier_stage_is_not_blamed(attempt: AttemptPaths) -> None:
    told(attempt, 0, 1.0)
    seen(attempt, r1=3)
    assert failure_of(attempt, 1, "predict", "torchrun.log")["what"] == "rank 1 ended with exit code 3"


def test_no_trace_at_all_is_said(attempt: AttemptPaths) -> None:
    (attempt.logs / "torchrun.log").write_text("ImportError: no torch\n")
    failure = failure_of(attempt, -9, "train", "torchrun.log")
    assert "SIGKILL and no rank said why" in failure["what"]
    assert failure["last_lines"] == ["ImportError: no torch"]


def test_a_stage_that_a_rank_never_finished_did_not_end_well(attempt: AttemptPaths) -> None:
    stage = Stage(name="train", argv=())
    attempt.rank_events(0).parent.mkdir()
    append_json_line(attempt.rank_events(0), {"event": "finished", "stage": "train"})
    assert "ranks [1] did not finish" in failure_of(attempt, 0)["what"]
    append_json_line(attempt.rank_events(1), {"event": "finished", "stage": "train"})
    log = attempt.logs / "warm.log"
    for finished in (stage, Stage(name="script", argv=(), reports=False)):
        assert (
            first_failure(attempt, finished, [give_account(attempt, finished, range(2), 0, 0, log)]) is None
        )


def test_the_node_that_was_told_to_end_is_not_the_cause(attempt: AttemptPaths) -> None:
    """Its ranks were killed because those of another node had failed; its clock is behind."""
    stage = Stage(name="train", argv=())
    told(attempt, 1, 99.0)
    other = give_account(attempt, stage, range(1, 2), 1, 1, attempt.logs / "warm_00001.log")
    row = {"rank": 0, "exit_code": 4, "what": "rank 0 was killed by SIGKILL", "evidence": "", "remedy": "",
           "time": 1.0, "secondary": False, "last_lines": []}  # fmt: skip
    ended = Account(returncode=1, seen=[row], ended=True)
    for accounts in ([ended, other], [other, ended]):
        failure = first_failure(attempt, stage, accounts)
        assert failure is not None and (failure["rank"], failure["told"]) == (1, True)


def test_accounts_survive_the_network(attempt: AttemptPaths) -> None:
    told(attempt, 1, 99.0)
    seen(attempt, r1=-9)
    account = give_account(attempt, Stage(name="train", argv=()), range(2), 0, 1, attempt.logs / "warm.log")
    assert Account(**json.loads(json.dumps(asdict(account)))) == account and account.told and account.seen


class TestExplain:
    @pytest.fixture(autouse=True)
    def _torch(self) -> None:
        pytest.importorskip("torch", reason="the job side needs the extra 'train'")

    @pytest.mark.parametrize(
        "message",
        [
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of …",
            "[enforce fail at alloc_cpu.cpp:128] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
            "allocate 549755813888 bytes. Error code 12 (Cannot allocate memory)",
        ],
    )
    def test_out_of_memory_has_a_remedy(self, message: str) -> None:
        from seatrial.job.reporter import explain

        error = explain(RuntimeError(message))
        assert "does not fit into memory" in error.what
        assert "grad_accumulation" in error.remedy
        assert (
            "train.batch_size=8 train.grad_accumulation=4" in explain(RuntimeError(message), (16, 2)).remedy
        )
        assert "is 1 already" in explain(RuntimeError(message), (1, 2)).remedy
        assert error.exit_code == 2

    def test_a_full_disk_is_the_platforms_failure(self) -> None:
        from seatrial.job.reporter import explain

        error = explain(OSError(errno.ENOSPC, "No space left on device", "/x/model.safetensors"))
        assert error.exit_code == 4
        assert "/x/model.safetensors" in error.evidence

    def test_anything_else_names_its_line(self) -> None:
        from seatrial.job.reporter import explain

        try:
            raise KeyError("input_ids")
        except KeyError as caught:
            error = explain(caught)
        assert "KeyError at test_job_verdict.py:" in error.what


class TestFaults:
    def test_faults_are_parsed_and_wait_for_their_moment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("torch", reason="the job side needs the extra 'train'")
        from seatrial.errors import SpecError
        from seatrial.job import faults
        from seatrial.spec.faults import VARIABLE, parse

        monkeypatch.setenv(VARIABLE, "nan:step=3; kill:rank=1,step=40,attempt=1")
        assert faults.Faults(0, 0).is_due("nan", 3)
        assert not faults.Faults(0, 0).is_due("nan", 4)
        assert not faults.Faults(1, 0).is_due("kill", 40)
        assert faults.Faults(1, 1).is_due("kill", 40)
        for wrong in (
            "kill",
            "explode:step=1",
            "kill:step=x",
            "kill:rank=1",
            "kill:when=3,step=1",
            "nan:code=1,step=1",
        ):
            with pytest.raises(SpecError):
                parse(wrong)
        assert parse("exit:code=7,step=2")[0].code == 7
