"""A run and its mirror on a real S3 server, with faults in between: nothing that was committed is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from seatrial.runs import commit
from seatrial.runs.evidence import read_evidence
from seatrial.runs.mirror import missing
from seatrial.runs.paths import RunPaths
from seatrial.runs.stores import open_store
from seatrial.testing.s3 import FaultyProxy, S3Server
from tests.integration.conftest import Seatrial
from tests.trees import make_run

URL = "s3://models/runs"


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    pytest.importorskip("moto", reason="needs moto[server]: pip install 'moto[server]'")
    with S3Server() as server:
        server.make_bucket("models")
        yield server


@pytest.fixture
def proxy(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """What commands talk to; the test itself goes through it, too."""
    with FaultyProxy(server.port) as proxy:
        for name, value in proxy.env.items():
            monkeypatch.setenv(name, value)
        yield proxy


def run_of(seatrial: Seatrial, name: str, size: int = 1000) -> RunPaths:
    return make_run(
        seatrial.runs_dir, name, checkpoints=(5, 10), weights=os.urandom(size), spec={"artifacts": URL}
    )


def sound(run_id: str, seatrial: Seatrial, tmp_path: Path) -> None:
    """The far side has all of it: another place gets it back, every seal whole."""
    done = seatrial("runs", "pull", run_id, "--from", URL, "--models", "--runs-dir", str(tmp_path / "back"))
    assert done.code == 0, done.stderr
    here, back = RunPaths(seatrial.runs_dir / run_id), RunPaths(tmp_path / "back" / run_id)
    assert missing(here) == []
    for seal in [here.model("trained"), *sorted(here.checkpoints.glob("step_*"))]:
        copy = back.root / seal.relative_to(here.root)
        assert commit.problems(copy) == []
        assert commit.read_marker(copy) == commit.read_marker(seal)
    for name in ("manifest.json", "comparison.json", "evidence.jsonl", "metrics.jsonl"):
        if (here.root / name).exists():
            assert (back.root / name).read_bytes() == (here.root / name).read_bytes()


class TestTraining:
    def words(self, reviews: Path, encoder: Path, *more: str) -> list[str]:
        return ["train", "--model", str(encoder), "--data", str(reviews), "--gpus", "0", "--max-steps", "40", "--learning-rate", "2e-3",
                "--max-length", "32", "train.checkpoint_every=10", "--artifacts", URL, *more]  # fmt: skip

    def test_is_mirrored_while_it_goes_on(
        self, seatrial: Seatrial, proxy: FaultyProxy, reviews: Path, encoder: Path, tmp_path: Path
    ) -> None:
        done = seatrial(*self.words(reviews, encoder))
        assert done.code == 0, done.stderr
        log = (done.run.attempt(0).logs / "mirror.log").read_text()
        assert "checkpoints/step_000030/rank_00000.safetensors" in log
        assert {row.check: row.verdict for row in read_evidence(done.run.evidence)}["mirror"] == "PASS"
        assert "all is there" in seatrial("runs", "show", "last").stdout
        assert not any(
            b"AKIA" in p.read_bytes() or b'"test"' in p.read_bytes() for p in done.run.root.rglob("mirror.*")
        )
        sound(done.run.run_id, seatrial, tmp_path)

    def test_ends_well_without_its_store_and_says_what_is_missing(
        self, seatrial: Seatrial, proxy: FaultyProxy, reviews: Path, encoder: Path, tmp_path: Path
    ) -> None:
        proxy.faults.refuse, proxy.faults.status, proxy.faults.code = 10**6, "404 Not Found", "NoSuchBucket"
        done = seatrial(*self.words(reviews, encoder, "--train-only"))
        assert done.code == 0, done.stderr
        assert "not mirrored yet" in done.stderr and "NoSuchBucket" in done.stderr
        told = {row.check: row for row in read_evidence(done.run.evidence)}["mirror"]
        assert told.verdict == "WARN"
        assert "not mirrored yet" in seatrial("runs", "show", "last").stdout
        pushed = seatrial("runs", "push", "last")
        assert pushed.code == 4 and "not mirrored yet" in pushed.stdout
        proxy.faults.refuse = 0
        assert seatrial("runs", "push", "last").code == 0
        sound(done.run.run_id, seatrial, tmp_path)


class TestFaults:
    @pytest.mark.parametrize("kind", ["busy", "reset up", "slow"])
    def test_that_pass_by_delay_only(
        self, seatrial: Seatrial, proxy: FaultyProxy, kind: str, tmp_path: Path
    ) -> None:
        run = run_of(seatrial, f"r-{kind.replace(' ', '-')}", 100_000)
        if kind == "busy":
            proxy.faults.refuse = 5
        elif kind == "reset up":
            proxy.faults.resets, proxy.faults.reset_after, proxy.faults.only = 4, 1 << 16, "PUT"
        else:
            proxy.faults.delay_s = 0.05
        done = seatrial("runs", "push", run.run_id)
        assert done.code == 0, done.stdout + done.stderr
        sound(run.run_id, seatrial, tmp_path)

    @pytest.mark.parametrize(
        ("status", "code"), [("400 Bad Request", "ExpiredToken"), ("404 Not Found", "NoSuchBucket")]
    )
    def test_that_stay_are_told_and_made_up_for(
        self, seatrial: Seatrial, proxy: FaultyProxy, status: str, code: str, tmp_path: Path
    ) -> None:
        run = run_of(seatrial, f"r-{code}")
        proxy.faults.refuse, proxy.faults.status, proxy.faults.code = 10**6, status, code
        done = seatrial("runs", "push", run.run_id)
        assert done.code == 4 and code in done.stdout
        proxy.faults.refuse = 0
        assert seatrial("runs", "push", run.run_id).code == 0
        sound(run.run_id, seatrial, tmp_path)

    def test_wrong_bytes_on_the_way_back_are_not_kept(
        self, seatrial: Seatrial, proxy: FaultyProxy, tmp_path: Path
    ) -> None:
        run = run_of(seatrial, "r-wrong")
        assert seatrial("runs", "push", run.run_id).code == 0
        proxy.faults.flip, proxy.faults.only = (
            10**6,
            "GET /models/runs/r-wrong/models/trained/model.safetensors",
        )
        words = ["runs", "pull", run.run_id, "--from", URL, "--models", "--runs-dir", str(tmp_path / "back")]
        done = seatrial(*words)
        assert done.code == 4, done.stdout + done.stderr
        assert not (tmp_path / "back" / run.run_id / "models" / "trained").exists()
        proxy.faults.flip = 0
        sound(run.run_id, seatrial, tmp_path)

    def test_killed_while_pushing(self, seatrial: Seatrial, proxy: FaultyProxy, tmp_path: Path) -> None:
        """What is there stays, what is not is sent by the next; no upload is left half done."""
        run = run_of(seatrial, "r-killed", 300_000)
        proxy.faults.delay_s, proxy.faults.only = 0.3, "PUT"
        kills, after_s = 0, 0.6
        while kills < 3 and after_s < 8:
            after_s += 0.3
            process = subprocess.Popen(
                seatrial.argv("runs", "push", run.run_id), cwd=seatrial.cwd, env=seatrial.environment(),
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            time.sleep(after_s)
            process.send_signal(signal.SIGKILL)
            kills += process.wait() == -signal.SIGKILL
            for seal in ("checkpoints/step_000005", "checkpoints/step_000010", "models/trained"):
                store = open_store(URL)
                marker = store.read(f"{run.run_id}/{seal}/{commit.MARKER}")
                if marker is not None:  # then all of it is there
                    there = {entry.key for entry in store.entries(f"{run.run_id}/{seal}/")}
                    assert {f"{run.run_id}/{seal}/{name}" for name in json.loads(marker[0])["files"]} <= there
        assert kills == 3
        proxy.faults.delay_s = 0
        assert seatrial("runs", "push", run.run_id).code == 0
        sound(run.run_id, seatrial, tmp_path)

    def test_a_full_disk_while_pulling(self, seatrial: Seatrial, proxy: FaultyProxy, tmp_path: Path) -> None:
        run = run_of(seatrial, "r-full", 3_000_000)
        assert seatrial("runs", "push", run.run_id).code == 0
        words = seatrial.argv(
            "runs", "pull", run.run_id, "--from", URL, "--models", "--runs-dir", str(tmp_path / "back")
        )
        # Files of at most a MiB: what does not fit ends as on a full disk, in an error of the write.
        limited = ["bash", "-c", 'trap "" XFSZ; ulimit -f 1024; exec "$@"', "bash", *words]
        done = subprocess.run(
            limited, cwd=seatrial.cwd, env=seatrial.environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode == 4, done.stdout + done.stderr
        assert "Traceback" not in done.stderr and "File too large" in done.stderr
        back = RunPaths(tmp_path / "back" / run.run_id)
        assert not back.model("trained").exists()
        sound(run.run_id, seatrial, tmp_path)


def test_bad_places_are_refused_before_anything_is_written(
    seatrial: Seatrial, reviews: Path, encoder: Path
) -> None:
    for url, words in (
        ("mirror/here", "neither a URL nor an absolute path"),
        ("s3://me:secret@b", "no credentials"),
        ("nosuch://x", "can't be used"),
    ):
        done = seatrial(
            "train", "--model", str(encoder), "--data", str(reviews), "--gpus", "0", "--artifacts", url
        )
        assert done.code == 2 and words in done.stderr, done.stderr
        assert "secret" not in done.stderr
    assert not seatrial.runs_dir.exists() or not list(seatrial.runs_dir.glob("*/manifest.json"))
