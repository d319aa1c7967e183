"""Plans are pure and never less than what was asked; failures are traced to the rank that began."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from seatrial.backends import registry
from seatrial.backends.base import JobHandle
from seatrial.backends.machine import Machine, parse_gpus
from seatrial.cli.train import following
from seatrial.errors import ExitCode, PlatformError, SeatrialError, SpecError, from_dict
from seatrial.launch import launcher
from seatrial.launch.follow import Follower, Tail
from seatrial.launch.plan import afterwards, plan, ranks, stages_of
from seatrial.runs.files import append_json_line, write_json
from seatrial.runs.manifest import AttemptRecord, Manifest, read_manifest, write_manifest
from seatrial.runs.paths import RunPaths
from seatrial.runs.plan import LaunchPlan, read_plan, write_plan
from seatrial.runs.state import RunState
from seatrial.spec.run import DataSpec, ResourcesSpec, RunSpec, ScriptSpec

CPU = Machine("box", 8, (), "no nvidia-smi on PATH")
GPUS = Machine("dgx", 64, ("H100",) * 8, "nvidia-smi")
SPEC = RunSpec(name="n", model="m", data=DataSpec(path="d"))


def make_plan(root: Path, spec: RunSpec | ScriptSpec = SPEC, machine: Machine = CPU) -> LaunchPlan:
    paths = RunPaths(root)
    return plan(
        spec,
        paths,
        machine,
        attempt=0,
        stages=stages_of(spec, paths),
        python="/venv/bin/python",
        cwd=Path("/work"),
    )


class TestPlan:
    @pytest.mark.parametrize(
        ("machine", "resources", "expected"),
        [
            (CPU, {}, ("cpu", 1)),
            (CPU, {"nproc": 2}, ("cpu", 2)),
            (GPUS, {}, ("cuda", 8)),
            (GPUS, {"gpus_per_node": 2}, ("cuda", 2)),
            (GPUS, {"nproc": 4}, ("cuda", 4)),
            (GPUS, {"gpus_per_node": 0, "nproc": 2}, ("cpu", 2)),
        ],
    )
    def test_ranks(self, machine: Machine, resources: dict[str, object], expected: tuple[str, int]) -> None:
        assert ranks(ResourcesSpec(**resources), machine) == expected  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("machine", "resources", "said"),
        [
            (CPU, {"gpus_per_node": 1}, "1 GPUs were asked for, box has 0"),
            (GPUS, {"gpus_per_node": 16}, "16 GPUs were asked for, dgx has 8"),
            (GPUS, {"gpus_per_node": 2, "nproc": 3}, "3 ranks don't fit on 2 GPUs"),
            (CPU, {"nodes": 2}, "the platform 'local' has 1 node"),
        ],
    )
    def test_nothing_is_done_with_less(
        self, machine: Machine, resources: dict[str, object], said: str
    ) -> None:
        with pytest.raises(SpecError, match=said) as caught:
            ranks(ResourcesSpec(**resources), machine)  # type: ignore[arg-type]
        assert caught.value.remedy

    def test_threads_share_the_cores(self, tmp_path: Path) -> None:
        spec = SPEC.model_copy(update={"resources": ResourcesSpec(nproc=3)})
        assert make_plan(tmp_path, spec).threads == 2

    def test_a_plan_is_pure_and_survives_its_file(self, tmp_path: Path) -> None:
        first, second = make_plan(tmp_path / "r"), make_plan(tmp_path / "r")
        assert first == second
        assert not (tmp_path / "r").exists()
        (tmp_path / "r" / "attempt-0").mkdir(parents=True)
        write_plan(first)
        assert read_plan(tmp_path / "r", 0) == first

    def test_a_script_is_one_stage_that_reports_nothing(self, tmp_path: Path) -> None:
        spec = ScriptSpec(name="s", command=("train.py", "--lr", "1"), cwd="/work")
        assert [(s.name, s.argv, s.reports) for s in make_plan(tmp_path, spec).stages] == [
            ("script", ("train.py", "--lr", "1"), False)
        ]


class TestGpus:
    LISTING = "0, GPU-aa, NVIDIA H100\n1, GPU-bb, NVIDIA H100\n2, GPU-cc, NVIDIA A100\n"

    @pytest.mark.parametrize(
        ("visible", "names"),
        [
            (None, ["NVIDIA H100", "NVIDIA H100", "NVIDIA A100"]),
            ("2", ["NVIDIA A100"]),
            ("GPU-bb,0", ["NVIDIA H100", "NVIDIA H100"]),
            ("0,7,1", ["NVIDIA H100"]),
            ("", []),
            ("-1", []),
        ],
    )
    def test_visible_devices(self, visible: str | None, names: list[str]) -> None:
        assert list(parse_gpus(self.LISTING, visible)[0]) == names


class TestErrors:
    def test_three_parts_cross_a_process_border(self) -> None:
        error = SpecError("the file is empty", evidence="0 bytes\nin /x", remedy="pass another")
        assert str(error) == (
            "the file is empty\n  evidence: 0 bytes\n            in /x\n  next:     pass another"
        )
        back = from_dict(json.loads(json.dumps(error.to_dict())))
        assert (type(back), str(back)) == (SpecError, str(error))

    def test_every_exit_code_but_success_has_an_error(self) -> None:
        for code in ExitCode:
            if code is not ExitCode.OK:
                assert from_dict({"exit_code": code, "what": "x"}).exit_code == code
        assert isinstance(from_dict({"exit_code": 99, "what": "x"}), PlatformError)


class TestSettle:
    """The manifest after an end that nobody watched."""

    @pytest.fixture
    def run(self, tmp_path: Path) -> RunPaths:
        paths = RunPaths(tmp_path / "r-1")
        paths.attempt(0).root.mkdir(parents=True)
        write_manifest(
            paths,
            Manifest(
                run_id="r-1", name="r", task="causal-lm", command=[], cwd="/", spec_sha256="", seatrial_version="0",
                python="3", state=RunState.RUNNING,
                attempts=[AttemptRecord(index=0, handle="local://999999999:1", stages=["train"])],
            ),
        )  # fmt: skip
        return paths

    def end(self, run: RunPaths, outcome: str, code: int, failure: object = None) -> None:
        write_json(
            run.attempt(0).exit,
            {
                "schema": 1,
                "attempt": 0,
                "outcome": outcome,
                "exit_code": code,
                "ended": "t",
                "failure": failure,
            },
        )

    @pytest.mark.parametrize(
        ("outcome", "code", "state"),
        [
            ("completed", 0, RunState.COMPLETED),
            ("interrupted", 130, RunState.INTERRUPTED),
            ("preempted", 75, RunState.PREEMPTED),
        ],
    )
    def test_the_exit_record_is_believed_first(
        self, run: RunPaths, outcome: str, code: int, state: RunState
    ) -> None:
        self.end(run, outcome, code)
        assert launcher.settle(run).state is state
        assert read_manifest(run).attempt.exit_code == code
        error = launcher.failure_of(read_manifest(run))
        assert (error.exit_code if error else 0) == code

    def test_gone_without_a_record_is_lost(self, run: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(launcher, "_RECORD_WAIT_S", 0)
        settled = launcher.settle(run)
        assert settled.state is RunState.LOST
        assert "999999999 is gone" in settled.reason
        error = launcher.failure_of(settled)
        assert error is not None and "runs resume r-1" in error.remedy

    def test_a_launcher_that_died_before_submitting(
        self, run: RunPaths, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(launcher, "_RECORD_WAIT_S", 0)
        manifest = read_manifest(run)
        manifest.attempt.handle, manifest.state = None, RunState.SUBMITTING
        write_manifest(run, manifest)
        assert "before it had submitted" in launcher.settle(run).reason

    def test_a_job_that_was_cancelled_in_the_queue_left_no_record_to_wait_for(
        self, run: RunPaths, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        waited: list[float] = []
        monkeypatch.setattr(launcher, "_ask_platform", lambda *_: (RunState.INTERRUPTED, "was cancelled"))
        monkeypatch.setattr(launcher.time, "sleep", waited.append)
        run.attempt(0).logs.mkdir()
        assert launcher.settle(run).state is RunState.INTERRUPTED
        assert waited == []
        manifest = read_manifest(run)
        manifest.state = RunState.RUNNING
        write_manifest(run, manifest)
        (run.attempt(0).logs / "agent.log").touch()
        assert launcher.settle(run).state is RunState.INTERRUPTED
        assert waited == [2.0]

    def test_a_failed_post_condition_fails_a_run_that_ended_well(self, run: RunPaths) -> None:
        self.end(run, "completed", 0)
        append_json_line(run.evidence, {"check": "weights_changed", "verdict": "FAIL", "time": "t"})
        settled = launcher.settle(run)
        assert (settled.state, settled.attempt.exit_code) == (RunState.FAILED, 1)
        assert "weights_changed" in settled.reason

    def test_a_model_that_is_worse_is_a_result_not_a_failure(self, run: RunPaths) -> None:
        self.end(run, "completed", 0)
        append_json_line(run.evidence, {"check": "comparison", "verdict": "FAIL", "time": "t"})
        assert launcher.settle(run).state is RunState.COMPLETED

    def test_the_first_failing_rank_is_shown_with_its_last_lines(self, run: RunPaths) -> None:
        failure = {"exit_code": 4, "what": "rank 3 was killed by SIGKILL", "evidence": "torchrun", "remedy": "",
                   "rank": 3, "last_lines": ["epoch 1", "boom"]}  # fmt: skip
        self.end(run, "failed", 4, failure)
        error = launcher.failure_of(launcher.settle(run))
        assert isinstance(error, SeatrialError)
        assert "first failing rank: 3" in error.evidence and "boom" in error.evidence


class TestFollow:
    def test_a_half_written_line_waits_for_its_end(self, tmp_path: Path) -> None:
        path = tmp_path / "x.log"
        tail = Tail(path)
        assert tail.lines() == []
        path.write_text("one\ntw")
        assert tail.lines() == ["one"]
        with path.open("a") as file:
            file.write("o\nthree\n")
        assert tail.lines() == ["two", "three"]

    def test_progress_is_read_from_the_files_of_this_attempt(self, tmp_path: Path) -> None:
        follower = Follower(make_plan(tmp_path))
        paths = RunPaths(tmp_path)
        events = paths.attempt(0).rank_events(0)
        events.parent.mkdir(parents=True)
        append_json_line(events, {"event": "training", "num_steps": 100, "from_step": 20})
        append_json_line(
            paths.metrics, {"kind": "train", "step": 99, "loss": 9.0, "samples_per_s": 1, "attempt": 7}
        )
        append_json_line(
            paths.metrics, {"kind": "train", "step": 30, "loss": 0.5, "samples_per_s": 9.0, "attempt": 0}
        )
        progress = follower.poll()
        assert (progress.phase, progress.step, progress.num_steps, progress.loss) == (
            "training",
            30,
            100,
            0.5,
        )


class TestRegistry:
    def test_an_unknown_platform_is_refused_with_those_known(self) -> None:
        with pytest.raises(SpecError) as caught:
            registry.get("slurmm")
        assert "local" in caught.value.evidence

    @pytest.mark.parametrize("text", ["", "local", "local://", "://1"])
    def test_a_handle_that_is_none(self, text: str) -> None:
        with pytest.raises(SpecError):
            JobHandle.parse(text)

    def test_a_handle_survives_its_text(self) -> None:
        assert str(JobHandle.parse("k8s://ns/name")) == "k8s://ns/name"


class TestThen:
    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            (None, ("predict", "compare", "report")),
            ("none", ()),
            ("report", ("report",)),
            ("compare", ("predict", "compare")),
            ("report, predict", ("predict", "report")),
        ],
    )
    def test_what_follows_the_training(self, words: str | None, expected: tuple[str, ...]) -> None:
        assert following(words) == expected

    def test_an_unknown_word_is_refused(self) -> None:
        with pytest.raises(SpecError, match="--then deploy"):
            following("predict,deploy")

    def test_only_what_was_asked_for_is_done_where_nobody_waits(self, tmp_path: Path) -> None:
        paths = RunPaths(tmp_path / "r")
        assert afterwards(paths, ("predict", "report")) == (("-m", "seatrial", "report", str(paths.root)),)
