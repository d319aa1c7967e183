"""Draining: the right nodes, not too many, and never over somebody's own reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from seatrial.check.drain import at_fault, drain
from seatrial.errors import PlatformError, SpecError
from seatrial.runs.acceptance import Acceptance, Finding
from seatrial.testing import FakeRunner, FakeSlurm

from .acceptance_samples import FAIL, HOSTILE, WARN, conclude, finding, healthy

SHOW = "scontrol show node"
IDLE = "NodeName={0} Arch=x86_64\n   State=IDLE ThreadsPerCore=1\n"


def slow(node: str, message: str = "") -> Finding:
    return finding("gemm", FAIL, node, gpu=0, metric="m", blame="node", message=message or f"{node} is slow")


def verdict_of(num_nodes: int, *more: Finding) -> Acceptance:
    return conclude([*healthy(num_nodes, 1), *more])


class TestWho:
    def test_only_those_at_fault_themselves(self) -> None:
        found = verdict_of(
            9,
            slow("node1"),
            finding("locked_memory", FAIL, "node2", blame="config"),
            finding("pairs", FAIL, "node3", peer="node4", blame="link"),
            finding("clock", WARN, "node5", blame="node"),
            finding("gpu_idle", FAIL, "node6", blame="user"),
        )
        assert at_fault(found) == {"node1": "node1 is slow"}

    def test_no_more_than_a_share_and_those_are_named(self) -> None:
        runner = FakeRunner()
        with pytest.raises(SpecError, match="3 nodes would be drained, 2 may be") as caught:
            drain(verdict_of(20, slow("node1"), slow("node2"), slow("node3")), runner)
        assert "node1, node2, node3" in caught.value.evidence and runner.calls == []

    @pytest.mark.parametrize(
        ("nodes", "share", "may"), [(4, 0.1, 1), (20, 0.1, 2), (29, 0.1, 2), (4, 0.5, 2)]
    )
    def test_the_cap(self, nodes: int, share: float, may: int) -> None:
        bad = [slow(f"node{i}") for i in range(may)]
        assert len(drain(verdict_of(nodes, *bad), FakeRunner(), share, dry_run=True)) == may
        with pytest.raises(SpecError, match="would be drained"):
            drain(verdict_of(nodes, *bad, slow(f"node{may}")), FakeRunner(), share, dry_run=True)

    def test_a_name_that_slurm_would_take_for_many_is_refused(self) -> None:
        runner = FakeRunner()
        with pytest.raises(SpecError, match="name"):
            drain(verdict_of(9, slow("node[0-99]")), runner)
        assert runner.calls == []

    @pytest.mark.parametrize("more", [{"platform": "local"}, {"profile": "rehearsal"}])
    def test_not_elsewhere(self, more: dict[str, str]) -> None:
        with pytest.raises(SpecError, match="nothing to drain"):
            drain(conclude([slow("node1")], **more), FakeRunner())


class TestHow:
    def test_a_dry_run_says_what_it_would_run(self) -> None:
        runner = FakeRunner()
        (found,) = drain(verdict_of(4, slow("node1")), runner, dry_run=True)
        assert found.argv == (
            "scontrol", "update", "NodeName=node1", "State=DRAIN",
            "Reason=seatrial check-20260301-120000-abcd: node1 is slow",
        )  # fmt: skip
        assert not found.done and runner.calls == []

    def test_the_reason_is_one_short_plain_line(self) -> None:
        (found,) = drain(
            verdict_of(4, slow("node1", f"{HOSTILE}\nState=RESUME " * 40)), FakeRunner(), dry_run=True
        )
        reason = found.argv[-1].removeprefix("Reason=")
        assert reason.isprintable() and len(reason) <= 200

    def test_a_refusal_is_told(self) -> None:
        runner = FakeRunner(
            {SHOW: IDLE.format("node1"), "scontrol update": (1, "", "slurm_update error: Invalid user id\n")}
        )
        (found,) = drain(verdict_of(4, slow("node1")), runner)
        assert not found.done and found.message == "slurm_update error: Invalid user id"

    def test_without_slurm(self) -> None:
        with pytest.raises(PlatformError):
            drain(verdict_of(4, slow("node1")), FakeRunner())

    def test_nobody_to_drain_asks_nobody(self) -> None:
        runner = FakeRunner()
        assert drain(verdict_of(4), runner) == [] and runner.calls == []

    def test_a_pretend_slurm_drains_it_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from seatrial.backends.slurm.client import Client

        with FakeSlurm(tmp_path / "slurm", nodes=4) as slurm:
            for name, value in slurm.env.items():
                monkeypatch.setenv(name, value)
            (found,) = drain(verdict_of(4, slow("node1")))
            assert found.done
            reason = "seatrial check-20260301-120000-abcd: node1 is slow"
            (line,) = Client().drained([f"node{i}" for i in range(4)])
            assert line.startswith(f"node1: {reason}")
            (again,) = drain(verdict_of(4, slow("node1", "another finding")))
            assert not again.done and reason in again.message
