"""What a launch makes of verdicts: which count, who is left out, and what is said of the rest."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from seatrial.errors import MeasuredFailure, SpecError
from seatrial.launch.admission import Admission, admit, apply, record
from seatrial.runs.acceptance import Acceptance, Finding
from seatrial.runs.evidence import Evidence, read_evidence
from seatrial.runs.files import sha256_file, write_json
from seatrial.runs.manifest import Manifest, read_manifest, write_manifest
from seatrial.runs.paths import RunPaths
from seatrial.runs.signature import sign
from seatrial.spec.run import ScriptSpec
from seatrial.spec.slurm import SlurmSpec

from .acceptance_samples import FAIL, NOW, PASS, UNMEASURED, WARN, conclude, finding, healthy

pytest.importorskip("cryptography")
SPEC = ScriptSpec(name="s", command=("x.py",), cwd="/")
BAD_NODE = [
    *healthy(3),
    finding("gemm", FAIL, "node1", gpu=0, metric="m", blame="node", message="GPU 0 of node1 is slow"),
]
HARDWARE = {"cpu": "EPYC", "gpus": {"GPU-aa": "H100"}, "driver": "550"}


@pytest.fixture(autouse=True)
def _keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    for name in ("SLURM_JOB_ID", "SLURM_JOB_NODELIST"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


def put(runs: Path, name: str, findings: list[Finding], *, signed: bool = True, **more: Any) -> Path:
    acceptance = conclude(findings, run_id=name, **more)
    path = runs / name / "verdict.json"
    path.parent.mkdir()
    write(path, sign(acceptance) if signed else acceptance)
    return path


def write(path: Path, acceptance: Acceptance) -> None:
    write_json(path, acceptance.model_dump(mode="json", by_alias=True))


def ask(runs: Path, *, platform: str = "slurm", cluster: str = "hal", device: Any = "cuda", hours: float = 1,
        verdict: str | None = None, here: Mapping[str, Any] = HARDWARE) -> Admission:  # fmt: skip
    return admit(
        platform, lambda: cluster, device, runs, NOW + timedelta(hours=hours), verdict, here=lambda: here
    )


class TestWhichCount:
    def test_without_any_nothing_is_said_and_nothing_asked(self, runs: Path) -> None:
        def nobody() -> str:
            raise AssertionError("the cluster was asked for its name")

        found = admit("slurm", nobody, "cuda", runs / "not there", NOW)
        assert (found.evidence.verdict, found.exclude, found.notes, found.used) == (UNMEASURED, {}, [], [])
        assert found.evidence.check == "acceptance" and "seatrial check" in found.evidence.message

    def test_a_valid_one_leaves_out_who_failed(self, runs: Path) -> None:
        path = put(runs, "check-1", BAD_NODE)
        found = ask(runs)
        assert found.exclude == {"node1": "GPU 0 of node1 is slow (check-1, 1 hour ago)"}
        assert found.notes == ["left out: node1: GPU 0 of node1 is slow (check-1, 1 hour ago)"]
        assert found.used == [{"path": str(path), "sha256": sha256_file(path), "run_id": "check-1"}]
        assert (found.evidence.verdict, found.evidence.measured) == (PASS, 3)

    @pytest.mark.parametrize(
        ("tested", "asked", "reason"),
        [
            ({"valid_days": 1}, {"hours": 24 * 4}, "it expired 3 days ago"),
            ({"cluster": "sal"}, {}, "of another cluster: slurm sal, and this is slurm hal"),
            ({"platform": "local"}, {}, "of another cluster: local hal"),
            ({}, {"cluster": ""}, "of another cluster"),
            ({"profile": "cpu"}, {}, "of CPUs only, and this run uses GPUs"),
            ({"profile": "rehearsal"}, {}, "a rehearsal"),
            ({"profile": "rehearsal"}, {"device": "cpu"}, "a rehearsal"),
            ({"signed": False}, {}, "it is not signed"),
        ],
    )
    def test_what_does_not_is_said(
        self, runs: Path, tested: dict[str, Any], asked: dict[str, Any], reason: str
    ) -> None:
        put(runs, "check-1", BAD_NODE, **tested)
        found = ask(runs, **asked)
        assert found.exclude == {} and found.used == []
        assert found.evidence.verdict == UNMEASURED and reason in found.evidence.message
        assert [n for n in found.notes if n.startswith("a verdict is not used: check-1: ") and reason in n]

    @pytest.mark.parametrize("profile", ["cpu", "gpu"])
    def test_a_cpu_run_takes_either(self, runs: Path, profile: str) -> None:
        put(runs, "check-1", BAD_NODE, profile=profile)
        assert list(ask(runs, device="cpu").exclude) == ["node1"]

    def test_one_that_was_tampered_with_is_said(self, runs: Path) -> None:
        path = put(runs, "check-1", BAD_NODE)
        data = json.loads(path.read_text())
        next(n for n in data["nodes"] if n["name"] == "node1")["verdict"] = "PASS"
        path.write_text(json.dumps(data))
        assert "tampered with" in ask(runs).notes[0]

    def test_one_of_somebody_else_is_said(
        self, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put(runs, "check-1", BAD_NODE)
        monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "other"))
        assert "signed by an unknown key" in ask(runs).notes[0]

    def test_a_key_that_others_can_read_is_not_relied_on(self, runs: Path, tmp_path: Path) -> None:
        put(runs, "check-1", BAD_NODE)
        (tmp_path / "data/seatrial/signing_key").chmod(0o644)
        assert "its signature can't be checked: others can read" in ask(runs).notes[0]

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"schema": 2}', b"\xff"])
    def test_one_that_cannot_be_read_is_said(self, runs: Path, content: bytes) -> None:
        (runs / "check-1").mkdir()
        (runs / "check-1" / "verdict.json").write_bytes(content)
        assert ask(runs).notes[0].startswith("a verdict is not used: check-1: it can't be read: ")

    def test_many_of_no_use_are_few_lines(self, runs: Path) -> None:
        for i in range(9):
            put(runs, f"check-{i}", BAD_NODE, cluster="sal")
        assert len(ask(runs).notes) == 4 and ask(runs).notes[-1] == "nor are 6 others"

    def test_what_is_older_than_a_valid_one_is_not_worth_a_word(self, runs: Path) -> None:
        put(runs, "check-1", BAD_NODE, tested=NOW - timedelta(days=30))
        put(runs, "check-2", healthy(3))
        assert ask(runs).notes == []


class TestSeveral:
    def test_the_newest_of_each_node_holds(self, runs: Path) -> None:
        put(runs, "check-1", BAD_NODE, tested=NOW - timedelta(days=2))
        put(runs, "check-2", healthy(2), tested=NOW - timedelta(days=1))
        found = ask(runs)
        assert found.exclude == {}
        assert {entry["run_id"] for entry in found.used} == {
            "check-1",
            "check-2",
        }  # node2 is in the first only

    def test_a_shorter_suite_lifts_no_failure(self, runs: Path) -> None:
        put(runs, "check-1", BAD_NODE, tested=NOW - timedelta(days=2))
        put(runs, "check-2", [finding("report", PASS, "node1")], tested=NOW - timedelta(days=1))
        assert ask(runs).exclude == {"node1": "GPU 0 of node1 is slow (check-1, 2 days ago)"}

    def test_nor_does_one_that_could_not_measure_it(self, runs: Path) -> None:
        put(runs, "check-1", BAD_NODE, tested=NOW - timedelta(days=2))
        told = [finding("gemm", UNMEASURED, "node1", gpu=0), finding("report", PASS, "node1")]
        put(runs, "check-2", told, tested=NOW - timedelta(days=1))
        assert list(ask(runs).exclude) == ["node1"]

    def test_a_link_that_nobody_looked_at_again_keeps_no_repaired_node_out(self, runs: Path) -> None:
        link = finding("pairs", FAIL, "node1", peer="node0", blame="link", metric="pair")
        put(runs, "check-1", [*BAD_NODE, link], tested=NOW - timedelta(days=2))
        put(runs, "check-2", healthy(3), tested=NOW - timedelta(days=1))
        assert ask(runs).exclude == {}

    def test_a_newer_failure_counts(self, runs: Path) -> None:
        put(runs, "check-1", healthy(3), tested=NOW - timedelta(days=2))
        put(runs, "check-2", BAD_NODE, tested=NOW - timedelta(days=1))
        assert list(ask(runs).exclude) == ["node1"]

    def test_a_link_leaves_nobody_out(self, runs: Path) -> None:
        link = finding("pairs", FAIL, "node0", peer="node1", blame="link", metric="pair")
        put(runs, "check-1", [*healthy(2), link])
        assert ask(runs).exclude == {}


class TestNamed:
    def test_a_file_is_used_alone(self, runs: Path, tmp_path: Path) -> None:
        put(runs, "check-1", healthy(3))
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        path = put(elsewhere, "check-0", BAD_NODE, tested=NOW - timedelta(days=1))
        assert list(ask(runs, verdict=str(path)).exclude) == ["node1"]

    @pytest.mark.parametrize("more", [{"profile": "cpu"}, {"cluster": "sal"}, {"signed": False}])
    def test_one_that_cannot_be_used_stops_the_launch(self, runs: Path, more: dict[str, Any]) -> None:
        path = put(runs, "check-1", BAD_NODE, **more)
        with pytest.raises(SpecError, match="can't be used"):
            ask(runs, verdict=str(path))

    def test_one_that_is_not_there_stops_the_launch(self, runs: Path) -> None:
        with pytest.raises(SpecError) as caught:
            ask(runs, verdict=str(runs / "nowhere.json"))
        assert "No such file" in caught.value.evidence

    def test_none_looks_at_nothing(self, runs: Path) -> None:
        put(runs, "check-1", BAD_NODE)
        found = ask(runs, verdict="none")
        assert (found.exclude, found.notes, found.evidence.verdict) == ({}, [], UNMEASURED)
        assert "--verdict none" in found.evidence.message


class TestSlurm:
    BAD = Admission(Evidence(check="acceptance", verdict=PASS), {"node1": "slow"})

    def spec(self, **slurm: Any) -> ScriptSpec:
        return SPEC.model_copy(update={"slurm": SlurmSpec(**slurm)})

    def test_who_failed_is_excluded_besides_others(self) -> None:
        assert apply(self.spec(exclude="node[7-8]"), self.BAD, "slurm").slurm.exclude == (
            "node[7-8]",
            "node1",
        )
        assert apply(self.spec(exclude="node[0-3]"), self.BAD, "slurm").slurm.exclude == ("node[0-3]",)

    def test_the_rest_of_the_spec_stays(self) -> None:
        spec = self.spec(partition="main")
        assert apply(spec, Admission(self.BAD.evidence), "slurm") is spec
        assert apply(spec, self.BAD, "slurm").slurm.partition == "main"

    def test_a_nodelist_that_insists_on_it_is_refused(self) -> None:
        with pytest.raises(SpecError, match="names node1") as caught:
            apply(self.spec(nodelist=["node[0-2]"]), self.BAD, "slurm")
        assert "slow" in caught.value.evidence and "--verdict none" in caught.value.remedy

    def test_a_platform_that_can_leave_nobody_out_starts_nothing(self) -> None:
        with pytest.raises(MeasuredFailure, match="elsewhere can't leave them out"):
            apply(self.spec(), self.BAD, "elsewhere")

    def test_an_allocation_that_has_it_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SLURM_JOB_ID", "7")
        monkeypatch.setenv("SLURM_JOB_NODELIST", "node[0-1]")
        with pytest.raises(MeasuredFailure, match="allocation"):
            apply(self.spec(), self.BAD, "slurm")
        monkeypatch.setenv("SLURM_JOB_NODELIST", "node[2-3]")
        apply(self.spec(), self.BAD, "slurm")


class TestLocal:
    ASKED: Mapping[str, Any] = {"platform": "local", "cluster": "box"}

    def put_local(self, runs: Path, findings: list[Finding], **more: Any) -> None:
        put(runs, "check-1", findings, platform="local", cluster="box", hardware={"box": HARDWARE}, **more)

    def test_a_machine_that_failed_starts_nothing(self, runs: Path) -> None:
        self.put_local(runs, [finding("ecc", FAIL, "box", gpu=0, blame="node", message="GPU 0 has 3 errors")])
        found = ask(runs, **self.ASKED)
        assert found.evidence.verdict == FAIL and "GPU 0 has 3 errors" in found.evidence.message
        with pytest.raises(MeasuredFailure) as caught:
            apply(SPEC, found, "local")
        assert "GPU 0 has 3 errors" in caught.value.evidence
        assert "seatrial check" in caught.value.remedy and "--verdict none" in caught.value.remedy

    @pytest.mark.parametrize("verdict", [PASS, WARN])
    def test_one_that_passed_does(self, runs: Path, verdict: Any) -> None:
        self.put_local(runs, [finding("ecc", verdict, "box")])
        found = ask(runs, **self.ASKED)
        assert (found.evidence.verdict, found.notes) == (PASS, [])
        assert apply(SPEC, found, "local") is SPEC

    def test_other_hardware_than_was_tested_is_another_machine(self, runs: Path) -> None:
        self.put_local(runs, [finding("ecc", FAIL, "box", blame="node")])
        found = ask(runs, **self.ASKED, here=HARDWARE | {"gpus": {"GPU-bb": "H100"}})
        assert found.exclude == {}
        assert "of other hardware: gpus: GPU-aa was tested, GPU-bb is here" in found.notes[0]


def test_it_is_written_down(runs: Path) -> None:
    paths = RunPaths(runs / "r")
    paths.root.mkdir()
    manifest = Manifest(run_id="r", name="r", task="script", command=[], cwd="/", spec_sha256="", seatrial_version="",
                        python="")  # fmt: skip
    write_manifest(paths, manifest)
    put(runs, "check-1", BAD_NODE)
    record(paths, ask(runs), 2)
    (row,) = read_evidence(paths.evidence)
    assert (row.check, row.attempt, row.verdict) == ("acceptance", 2, PASS)
    written = read_manifest(paths).acceptance
    assert list(written["exclude"]) == ["node1"] and written["used"][0]["run_id"] == "check-1"


def test_a_thousand_nodes_are_read_in_a_second(runs: Path) -> None:
    put(runs, "check-1", healthy(1024, 8))
    began = time.perf_counter()
    assert ask(runs).evidence.measured == 1024
    assert time.perf_counter() - began < 3  # on a machine that has other work
