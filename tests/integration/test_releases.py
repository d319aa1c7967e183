"""Releases for real: loaded by plain Transformers, read while versions change, killed at any moment, on S3 too."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from seatrial.runs.paths import RunPaths
from seatrial.ship import chain
from seatrial.ship.package import package
from seatrial.ship.promote import damage, promote, rollback
from seatrial.ship.target import Target
from seatrial.testing.s3 import FaultyProxy, S3Server
from tests.integration.conftest import Seatrial
from tests.trees import make_run

BLOCKS_IMPORT = """
import importlib.abc, sys
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "seatrial":
            raise ImportError("seatrial is not installed here")
sys.meta_path.insert(0, Refuse())
try:
    import seatrial
except ImportError:
    pass
else:
    raise SystemExit("it could be imported all the same")
"""
LOADS = (
    BLOCKS_IMPORT
    + """
import json, os
os.environ["HF_HUB_OFFLINE"] = "1"
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1]).eval()
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
texts = json.load(sys.stdin)
found = []
with torch.no_grad():
    for text in texts:
        logits = model(**tokenizer(text, truncation=True, max_length=32, return_tensors="pt")).logits
        found.append(model.config.id2label[int(logits.argmax())])
print(json.dumps(found))
"""
)
READS = """
import hashlib, json, os, sys, time
current, until = sys.argv[1], time.monotonic() + float(sys.argv[2])
reads, versions, wrong = 0, set(), []
while (now := time.monotonic()) < until or (reads <= 20 or len(versions) <= 2) and now < until + 200:
    try:
        root = os.path.realpath(current, strict=True)
        marker = json.load(open(os.path.join(root, "COMMITTED.json")))
        for name, entry in marker["files"].items():
            with open(os.path.join(root, name), "rb") as file:
                if hashlib.sha256(file.read()).hexdigest() != entry["sha256"]:
                    wrong.append(f"{root}/{name} differs")
    except OSError as error:
        wrong.append(str(error))
        continue
    reads += 1
    versions.add(os.path.basename(root))
print(json.dumps({"reads": reads, "versions": sorted(versions), "wrong": wrong[:5]}))
"""


def test_a_release_loads_without_seatrial_and_predicts_the_same(
    seatrial: Seatrial, reviews: Path, encoder: Path, tmp_path: Path
) -> None:
    done = seatrial(
        "train", "--model", str(encoder), "--data", str(reviews), "--gpus", "0", "--max-steps", "30", "--learning-rate", "2e-3",
        "--max-length", "32",
    )  # fmt: skip
    assert done.code == 0, done.stderr
    packed = seatrial("package", done.run.run_id, "--output", str(tmp_path / "release"))
    assert packed.code == 0, packed.stderr
    import pyarrow.parquet as pq

    table = pq.read_table(done.run.predictions("trained")).to_pylist()[:40]
    texts, expected = [row["text"] for row in table], [row["prediction"] for row in table]
    loaded = subprocess.run(
        [sys.executable, "-c", LOADS, str(tmp_path / "release")], input=json.dumps(texts), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert loaded.returncode == 0, loaded.stderr
    assert json.loads(loaded.stdout) == expected
    promoted = seatrial(
        "promote",
        done.run.run_id,
        "--to",
        str(tmp_path / "deploy"),
        "--as",
        "reviews",
        "--override",
        "a test of loading",
    )
    assert promoted.code == 0, promoted.stderr
    again = subprocess.run(
        [sys.executable, "-c", LOADS, str((tmp_path / "deploy" / "reviews" / "current").resolve())], input=json.dumps(texts),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert json.loads(again.stdout) == expected


def releases(tmp_path: Path, count: int, size: int = 1 << 20) -> list[Any]:
    rng = random.Random(7)
    return [package(make_run(tmp_path / "runs", f"r-{n}", weights=rng.randbytes(size))) for n in range(count)]


def test_a_reader_sees_whole_models_only_while_versions_change(tmp_path: Path) -> None:
    packed, target = releases(tmp_path, 4), Target(str(tmp_path / "deploy"), "m")
    promote(packed[0], target, chain.DEFAULT)
    reader = subprocess.Popen(
        [sys.executable, "-c", READS, str(tmp_path / "deploy" / "m" / "current"), "6"],
        stdout=subprocess.PIPE,
        text=True,
    )
    # For as long as the reader reads; on a slow disk a switch takes a second.
    switches = 0
    while reader.poll() is None or switches <= 10:
        promote(packed[switches % 3 + 1], target, chain.DEFAULT)
        rollback(target)
        switches += 2
    told = json.loads(reader.communicate(timeout=240)[0])
    assert told["wrong"] == []
    assert told["reads"] > 20 and switches > 10 and len(told["versions"]) > 2


class TestKilled:
    """kill -9 at random moments; the next command finishes or undoes."""

    def run_until(self, seatrial: Seatrial, words: list[str], after_s: float) -> int:
        process = subprocess.Popen(
            [sys.executable, "-m", "seatrial", *words], cwd=seatrial.cwd, env=os.environ | {"SEATRIAL_RUNS_DIR": str(seatrial.runs_dir)},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        time.sleep(after_s)
        process.send_signal(signal.SIGKILL)
        return process.wait()

    def test_while_packing_and_promoting(self, seatrial: Seatrial, tmp_path: Path) -> None:
        rng = random.Random(3)
        target = Target(str(tmp_path / "deploy"), "m")
        make_run(seatrial.runs_dir, "r-0", weights=rng.randbytes(48 << 20))
        began = time.monotonic()
        assert seatrial("promote", "r-0", "--to", str(tmp_path / "other"), "--as", "m").code == 0
        takes_s = time.monotonic() - began
        killed = number = 0
        while killed < 4 and number < 20:
            number += 1
            make_run(seatrial.runs_dir, f"r-{number}", weights=rng.randbytes(48 << 20))
            words = ["promote", f"r-{number}", "--to", str(tmp_path / "deploy"), "--as", "m"]
            before = target.current()[0]
            killed += self.run_until(seatrial, words, takes_s * rng.uniform(0.4, 0.95)) == -signal.SIGKILL
            now = target.current()[0]
            assert now is not None or before is None
            assert now is None or damage(target, now) == []
            done = seatrial(*words)
            assert done.code == 0, done.stderr
            version = str(target.current()[0])
            assert damage(target, version) == []
            assert target.versions()[version]["run_id"] == f"r-{number}"
        assert killed == 4
        for version, record in target.versions().items():
            files = list(target.store.entries(f"m/{version}/"))
            assert record["complete"] or (record["discarded"] and not files)
        assert not list((tmp_path / "deploy").rglob(".partial-*"))


class TestOnS3:
    @pytest.fixture
    def bucket(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
        pytest.importorskip("moto", reason="needs moto[server]: pip install 'moto[server]'")
        with S3Server() as server:
            server.make_bucket("models")
            for name, value in server.env.items():
                monkeypatch.setenv(name, value)
            yield server

    def test_the_whole_way(self, seatrial: Seatrial, bucket: S3Server) -> None:
        for number in (1, 2):
            make_run(seatrial.runs_dir, f"r-{number}", weights=os.urandom(20 << 20))
            done = seatrial("promote", f"r-{number}", "--to", "s3://models/deploy", "--as", "reviews")
            assert done.code == 0, done.stderr
            assert f"reviews is v{number}" in done.stdout
        where = ["--target", "s3://models/deploy"]
        assert "v2" in seatrial("releases", "list", *where).stdout
        assert "all" in seatrial("releases", "verify", "reviews", *where).stdout
        assert seatrial("rollback", "reviews", *where).stdout.startswith("s3://models/deploy/reviews is v1")
        shown = json.loads(seatrial("releases", "show", "reviews", *where, "--json").stdout)
        assert shown["current"] == "v1" and [row["kind"] for row in shown["history"]] == [
            "promoted",
            "promoted",
            "rolled back",
        ]

    def test_wrong_bytes_there_are_found(self, seatrial: Seatrial, bucket: S3Server) -> None:
        make_run(seatrial.runs_dir, "r-1")
        assert seatrial("promote", "r-1", "--to", "s3://models/d", "--as", "m").code == 0
        target = Target("s3://models/d", "m")
        target.store.write("m/v1/model.safetensors", b"something else")
        done = seatrial("releases", "verify", "m", "--target", "s3://models/d")
        assert done.code == 1 and "model.safetensors" in done.stdout

    @pytest.mark.parametrize(
        ("status", "code"), [("503 Slow Down", "SlowDown"), ("403 Forbidden", "AccessDenied")]
    )
    def test_a_target_that_fails_keeps_what_was_current(
        self, seatrial: Seatrial, bucket: S3Server, status: str, code: str
    ) -> None:
        for number in (1, 2):
            make_run(seatrial.runs_dir, f"r-{number}", weights=bytes([number]))
        assert seatrial("promote", "r-1", "--to", "s3://models/d", "--as", "m").code == 0
        with FaultyProxy(bucket.port) as proxy:
            proxy.faults.refuse, proxy.faults.status, proxy.faults.code, proxy.faults.only = (
                10_000,
                status,
                code,
                "model.safetensors",
            )
            done = seatrial("promote", "r-2", "--to", "s3://models/d", "--as", "m", **proxy.env)
        assert done.code == 4, done.stderr
        assert code in done.stderr
        target = Target("s3://models/d", "m")
        assert target.current()[0] == "v1" and damage(target, "v1") == []
        assert seatrial("promote", "r-2", "--to", "s3://models/d", "--as", "m").code == 0
        assert damage(target, str(target.current()[0])) == []


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--as", "../x"], 2, "can't be a model's name"), (["--as", "m", "--policy", "none.yaml"], 2, "no policy"),
        (["--as", "m", "--to", "s3://key:secret@b/x"], 2, "holds no credentials"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_before_anything_is_written(
    seatrial: Seatrial, tmp_path: Path, words: list[str], code: int, says: str
) -> None:
    make_run(seatrial.runs_dir, "r-1")
    to = [] if "--to" in words else ["--to", str(tmp_path / "deploy")]
    done = seatrial("promote", "r-1", *to, *words)
    assert (done.code, says in done.stderr) == (code, True), done.stderr
    assert not (tmp_path / "deploy").exists()
    assert not (RunPaths(seatrial.runs_dir / "r-1").root / "release").exists()
