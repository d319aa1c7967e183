"""A soak: one run on CPU ranks, killed at random moments and resumed until it is done, against one that nobody disturbs.

    benchmarks/chaos.py --kills 30 [--ranks 2] [--seed 0] [--steps 300] [--minutes 30]

Killed are a rank, what starts the ranks, the node agent, and the `seatrial` command itself; the agent also gets SIGTERM, and
a rank SIGSTOP where a hang ends an attempt. In between, the newest checkpoint gets a flipped bit or is cut off, or a
half-written one is left behind. When a run is done before the kills are, another one starts. What must hold:

- the final weights are those of the undisturbed run, bit for bit;
- nothing that an attempt had started is alive once it has ended;
- no committed checkpoint is lost, other than by the number that are kept;
- each resume goes on from the newest sound checkpoint;
- the command's exit code tells what happened.

Prints a table, and one line of JSON last. Exit code 1 when something did not hold. Goodput is the time of the steps that
count, each once, divided by the wall time of all attempts.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from seatrial.runs import commit
from seatrial.runs.files import read_json, read_json_lines
from seatrial.runs.metrics import read_metrics
from seatrial.runs.paths import AttemptPaths, RunPaths
from seatrial.spec.run import TrainSpec

KEEP = 3
POLL_S = 0.02
PATIENCE_S = 240.0
"""An attempt that has not ended so long after it was struck hangs."""
WORDS = [f"word{i}" for i in range(100)]
HANG_TIMEOUT = "hang_timeout_s" in TrainSpec.model_fields
EXPECTED = {"rank": {4}, "launcher": {4}, "agent": {4}, "term": {75}, "stop": {4}, "none": {0}}


def make_inputs(where: Path, seed: int, hidden: int = 32, layers: int = 2) -> None:
    """Data whose label is told by its words, and a small encoder with dropout and random weights."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    rng = random.Random(seed)
    rows = []
    for i in range(800):
        label = i % 2
        text = rng.choices(WORDS[:60], k=rng.randint(4, 14)) + rng.choices(
            WORDS[60 + 20 * label : 80 + 20 * label], k=2
        )
        rows.append(json.dumps({"text": " ".join([*text, f"word{i % 60}"]), "label": label}))
    (where / "data.jsonl").write_text("\n".join(rows) + "\n")
    special = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3}
    raw = Tokenizer(models.WordLevel(special | {w: 4 + i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", model_max_length=32
    ).save_pretrained(where / "model")
    torch.manual_seed(seed)
    BertModel(
        BertConfig(vocab_size=104, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=2 * hidden,
                   max_position_embeddings=32, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
    ).save_pretrained(where / "model")  # fmt: skip


@dataclass
class Soak:
    """What is done to the runs, and what was found."""

    args: argparse.Namespace
    root: Path
    rng: random.Random
    kills: Counter[tuple[str, str]] = field(default_factory=Counter)
    damages: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    attempts: int = 0
    rounds: int = 0
    useful_s: float = 0.0
    wall_s: float = 0.0
    start_s: float = 8.0
    """From a command to its first step, as measured on the undisturbed run."""

    @property
    def num_kills(self) -> int:
        return sum(self.kills.values())

    def argv(self, runs: Path, *words: str) -> list[str]:
        return [sys.executable, "-m", "seatrial", *words, "--runs-dir", str(runs)]

    def train_words(self) -> list[str]:
        a = self.args
        words = [
            "train", "--name", "chaos", "--model", str(self.root / "model"), "--data", str(self.root / "data.jsonl"),
            "--nproc", str(a.ranks), "--gpus", "0", "--batch-size", "8", "--max-steps", str(a.steps), "--epochs", "1000",
            "--learning-rate", "1e-3", "--train-only", f"train.checkpoint_every={a.checkpoint_every}",
            f"train.keep_checkpoints={KEEP}", "train.log_every=2", "train.eval_every=100000",
        ]  # fmt: skip
        return [*words, "train.hang_timeout_s=20"] if HANG_TIMEOUT else words

    def command(self, runs: Path, *words: str) -> subprocess.Popen[bytes]:
        runs.mkdir(exist_ok=True)
        with (runs / "command.log").open("ab") as log:
            return subprocess.Popen(
                self.argv(runs, *words), stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=self.root,
                env={**os.environ, "HF_HUB_OFFLINE": "1"},
            )  # fmt: skip

    # --- rounds ------------------------------------------------------------------------------------------------

    def undisturbed(self) -> str:
        """The hash of the weights that every other run has to end with."""
        runs = self.root / "undisturbed"
        began = time.time()
        process = self.command(runs, *self.train_words())
        while process.poll() is None:
            run = find_run(runs)
            if run is not None and self.start_s == 8.0 and read_metrics(run.metrics)["train"]:
                self.start_s = time.time() - began
            time.sleep(POLL_S)
        run = find_run(runs)
        if process.returncode != 0 or run is None:
            raise SystemExit(f"the undisturbed run failed: {(runs / 'command.log').read_text()[-2000:]}")
        useful = sum(row["window_s"] for row in read_metrics(run.metrics)["train"])
        say(
            f"undisturbed: {time.time() - began:.0f} s, {useful:.1f} s of them steps, first step after {self.start_s:.1f} s"
        )
        return str(commit.weights_sha256(run.model("trained")))

    def round(self, expected: str, deadline: float) -> None:
        """One run from its start to its end, whatever is done to it."""
        self.rounds += 1
        runs = self.root / f"round-{self.rounds}"
        began = time.monotonic()
        while True:
            run = find_run(runs)
            first = run is None
            process = self.command(runs, *(["runs", "resume", "last"] if not first else self.train_words()))
            self.attempts += 1
            calm = self.num_kills >= self.args.kills or time.monotonic() > deadline
            code = self.attempt(runs, process, calm)
            run = find_run(runs)
            if code == 0 and run is not None and commit.is_committed(run.model("trained")):
                break
            if calm:
                self.wrong(runs, f"an attempt that nobody disturbed ended with {code}")
                return
        self.wall_s += time.monotonic() - began
        self.useful_s += sum(row["window_s"] for row in read_metrics(run.metrics)["train"])
        if commit.weights_sha256(run.model("trained")) != expected:
            self.wrong(runs, "the final weights differ from those of the undisturbed run")

    def attempt(self, runs: Path, process: subprocess.Popen[bytes], calm: bool) -> int:
        """Follows one attempt to its end, strikes once unless `calm`, and looks at what it left."""
        before = find_run(runs)
        index = len(manifest(before)["attempts"]) if before else 0
        sound = sound_steps(before) if before else []
        kind, family = "none", []
        if not calm:
            kind, family = self.strike(runs, process, index)
            if kind == "command":
                kind, family = self.strike_headless(runs, process, index) or (kind, family)
        code = self.wait(runs, process, kind, index)
        run = find_run(runs)
        if run is None:
            return code
        self.look_for_orphans(run, family)
        attempt = run.attempt(index)
        self.check_resumed(runs, attempt, (sound or [0])[-1])
        self.check_kept(run, attempt, sound)
        if code not in EXPECTED.get(kind, set()) | {0} and kind != "command":
            self.wrong(runs, f"attempt {index}: exit code {code} after {kind}")
        if kind not in {"none", "command"} and code != 0 and self.rng.random() < 0.4:
            self.damage(run)
        return code

    def wait(self, runs: Path, process: subprocess.Popen[bytes], kind: str, index: int) -> int:
        """The attempt's exit code; of an attempt whose command was killed, what its record says."""
        deadline = time.monotonic() + PATIENCE_S + (self.args.steps if kind in {"none", "command"} else 0)
        while time.monotonic() < deadline:
            code = process.poll()
            if code is not None and kind != "command":
                return code
            if code is not None:
                run = find_run(runs)
                if run is None or len(manifest(run)["attempts"]) <= index:
                    return code  # killed before anything was submitted
                ended = read_json(run.attempt(index).exit)
                if ended is not None:
                    return int(ended["exit_code"])
                if not alive(agent_of(run, index)):
                    return code
            time.sleep(POLL_S)
        self.wrong(runs, f"attempt {index} still runs {PATIENCE_S:.0f} s after {kind}")
        for victim in [
            agent_of(find_run(runs), index),
            psutil.Process(process.pid) if process.poll() is None else None,
        ]:
            if victim is not None and alive(victim):
                victim.kill()
        process.wait()
        return -1

    # --- strikes -----------------------------------------------------------------------------------------------

    def strike(
        self, runs: Path, process: subprocess.Popen[bytes], index: int
    ) -> tuple[str, list[psutil.Process]]:
        """Waits for a random moment and kills something; what was done, and the processes that were there."""
        moment = self.rng.choices(["start", "train", "save"], [3, 4, 3])[0]
        kinds = ["rank", "launcher", "agent", "command", "term", *(["stop"] if HANG_TIMEOUT else [])]
        kind = self.rng.choice(kinds)
        if not self.await_moment(runs, process, index, moment):
            return "none", []
        run = find_run(runs)
        agent = agent_of(run, index)
        family = descendants(agent)
        victim, number = self.victim(kind, process, run, index, agent)
        if victim is None or not alive(victim):
            kind = "command"
            victim, number = psutil.Process(process.pid), signal.SIGKILL
        try:
            victim.send_signal(number)
        except psutil.NoSuchProcess:
            return "none", family
        self.kills[kind, moment] += 1
        return kind, family

    def strike_headless(
        self, runs: Path, process: subprocess.Popen[bytes], index: int
    ) -> tuple[str, list[psutil.Process]] | None:
        """The command is dead, and its run goes on without it: kills something of that as well; None when it ended."""
        process.wait()
        time.sleep(self.rng.uniform(0, self.start_s))
        run = find_run(runs)
        agent = agent_of(run, index)
        family = descendants(agent)
        kind = self.rng.choice(["rank", "launcher", "agent"])
        victim, number = self.victim(kind, process, run, index, agent)
        if victim is None or not alive(victim):
            return None
        victim.send_signal(number)
        self.kills[kind, "headless"] += 1
        return "command", family

    def await_moment(self, runs: Path, process: subprocess.Popen[bytes], index: int, moment: str) -> bool:
        """False when the attempt ended before."""
        if moment == "start":
            end = time.monotonic() + self.rng.uniform(0, 1.1 * self.start_s)
            return wait_for(lambda: time.monotonic() > end, process)
        steps = self.rng.randint(1, self.args.stride)

        def ready() -> bool:
            run = find_run(runs)
            if run is None:
                return False
            rows = [r for r in read_json_lines(run.metrics) if r["attempt"] == index]
            if len(rows) < 2 or rows[-1]["step"] - rows[0]["step"] < steps:
                return False
            return moment == "train" or any(run.checkpoints.glob("*.writing"))

        return wait_for(ready, process, 0.002 if moment == "save" else POLL_S)

    def victim(
        self,
        kind: str,
        process: subprocess.Popen[bytes],
        run: RunPaths | None,
        index: int,
        agent: psutil.Process | None,
    ) -> tuple[psutil.Process | None, int]:
        ranks = rank_processes(run.attempt(index), self.args.ranks) if run is not None else []
        match kind:
            case "command":
                return psutil.Process(process.pid), signal.SIGKILL
            case "agent":
                return agent, signal.SIGKILL
            case "term":
                # Before it listens, TERM kills the agent like any program.
                listening = run is not None and (run.attempt(index).root / "failures").is_dir()
                return (agent, signal.SIGTERM) if listening else (None, 0)
            case "launcher":
                found = [p for p in descendants(agent) if p != agent and p.pid not in {r.pid for r in ranks}]
                return (found[0] if found else None), signal.SIGKILL
        return (
            self.rng.choice(ranks) if ranks else None
        ), signal.SIGSTOP if kind == "stop" else signal.SIGKILL

    def damage(self, run: RunPaths) -> None:
        """Spoils the newest checkpoint, never the only one, or leaves a half-written one."""
        kind = self.rng.choice(["flip", "cut", "writing"])
        steps = sound_steps(run)
        if kind == "writing":
            aside = (
                run.checkpoints
                / f"step_{(steps[-1] if steps else 0) + self.args.checkpoint_every:06d}.writing"
            )
            aside.mkdir(parents=True, exist_ok=True)
            (aside / "model.safetensors").write_bytes(self.rng.randbytes(1000))
        elif len(steps) < 2:
            return
        else:
            files = [
                p for p in directory(run, steps[-1]).rglob("*") if p.is_file() and p.name != commit.MARKER
            ]
            path = self.rng.choice(sorted(files))
            data = bytearray(path.read_bytes())
            if kind == "flip":
                data[self.rng.randrange(len(data))] ^= 1 << self.rng.randrange(8)
            path.write_bytes(data if kind == "flip" else data[: len(data) // 2])
            if commit.problems(directory(run, steps[-1])) == []:
                self.violations.append(f"{run.root}: a damaged {path} passes for sound")
        self.damages[kind] += 1

    # --- what must hold ----------------------------------------------------------------------------------------

    def wrong(self, runs: Path, what: str) -> None:
        self.violations.append(f"{runs.name}: {what}")
        say(f"WRONG  {self.violations[-1]}    (log: {runs / 'command.log'})")

    def look_for_orphans(self, run: RunPaths, family: list[psutil.Process]) -> None:
        _, left = psutil.wait_procs([p for p in family if alive(p)], timeout=20)
        named = [p for p in psutil.process_iter(["cmdline"]) if names_run(p, run)]
        for process in {*left, *named}:
            if alive(process):
                self.wrong(run.root.parent, f"orphan {process.pid}: {' '.join(process.cmdline())[:150]}")
                process.kill()

    def check_resumed(self, runs: Path, attempt: AttemptPaths, start_from: int) -> None:
        begun = [e["from_step"] for e in read_json_lines(attempt.rank_events(0)) if e["event"] == "training"]
        if begun and begun[0] != start_from:
            self.wrong(
                runs,
                f"{attempt.root.name} began at step {begun[0]}, the newest sound checkpoint was {start_from}",
            )

    def check_kept(self, run: RunPaths, attempt: AttemptPaths, before: list[int]) -> None:
        """What was sound before the attempt, and what rank 0 says it has committed in it, is there and sound.

        Only `KEEP` newer ones take a checkpoint's place. What the soak itself has damaged is not in `before`.
        """
        told = [e["step"] for e in read_json_lines(attempt.rank_events(0)) if e["event"] == "checkpoint"]
        wanted, sound = {*before, *told}, sound_steps(run)
        for step in sorted(wanted):
            newer = [other for other in {*wanted, *sound} if other > step]
            if step not in sound and len(newer) < KEEP:
                found = commit.problems(directory(run, step))[:1]
                self.wrong(
                    run.root.parent,
                    f"the checkpoint of step {step} was committed; {found}; sound are {sound}",
                )


# --- helpers -----------------------------------------------------------------------------------------------------


def say(text: str) -> None:
    print(text, flush=True)


def find_run(runs: Path) -> RunPaths | None:
    """The run of a round; None before its manifest is written."""
    found = [p.parent for p in runs.glob("*/manifest.json")]
    return RunPaths(max(found)) if found else None


def manifest(run: RunPaths) -> dict[str, Any]:
    return dict(read_json(run.manifest))


def agent_of(run: RunPaths | None, index: int) -> psutil.Process | None:
    attempts = manifest(run)["attempts"] if run is not None else []
    if len(attempts) <= index or not attempts[index]["handle"]:
        return None
    try:
        return psutil.Process(int(attempts[index]["handle"].split("//")[1].split(":")[0]))
    except psutil.NoSuchProcess:
        return None


def descendants(agent: psutil.Process | None) -> list[psutil.Process]:
    """The agent and all below it, children before theirs."""
    try:
        return [agent, *agent.children(recursive=True)] if agent is not None else []
    except psutil.NoSuchProcess:
        return []


def rank_processes(attempt: AttemptPaths, ranks: int) -> list[psutil.Process]:
    found = []
    for rank in range(ranks):
        for event in read_json_lines(attempt.rank_events(rank)):
            if event["event"] == "started" and psutil.pid_exists(event["pid"]):
                found.append(psutil.Process(event["pid"]))
    return found


def alive(process: psutil.Process | None) -> bool:
    try:
        return process is not None and process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def names_run(process: psutil.Process, run: RunPaths) -> bool:
    return str(run.root) in " ".join(process.info["cmdline"] or [])


def directory(run: RunPaths, step: int) -> Path:
    return run.checkpoints / f"step_{step:06d}"


def sound_steps(run: RunPaths) -> list[int]:
    steps = sorted(int(p.name[5:]) for p in run.checkpoints.glob("step_??????"))
    return [step for step in steps if commit.problems(directory(run, step)) == []]


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes], poll_s: float = POLL_S) -> bool:
    while process.poll() is None:
        if condition():
            return True
        time.sleep(poll_s)
    return False


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument(
        "--stride", type=int, default=60, help="a kill comes at most so many steps after a start"
    )
    parser.add_argument("--checkpoint-every", type=int, default=15)
    parser.add_argument("--minutes", type=float, default=30, help="no more kills after so long")
    parser.add_argument("--keep", action="store_true", help="leave the runs, and say where they are")
    args = parser.parse_args()
    began = time.monotonic()
    soak = Soak(args, Path(tempfile.mkdtemp(prefix="chaos-")), random.Random(args.seed))
    try:
        make_inputs(soak.root, args.seed)
        expected = soak.undisturbed()
        while soak.num_kills < args.kills and time.monotonic() < began + 60 * args.minutes:
            soak.round(expected, began + 60 * args.minutes)
            say(f"run {soak.rounds} is done: {soak.num_kills} kills, {soak.attempts} attempts, "
                f"{time.monotonic() - began:.0f} s, {len(soak.violations)} wrong")  # fmt: skip
    finally:
        if args.keep or soak.violations:
            say(f"the runs are in {soak.root}")
        else:
            shutil.rmtree(soak.root)
    report(soak, time.monotonic() - began)


def report(soak: Soak, wall_s: float) -> None:
    moments = ["start", "train", "save", "headless"]
    say(f"\n{'killed':<12}" + "".join(f"{m:>10}" for m in moments))
    for kind in sorted({k for k, _ in soak.kills}):
        say(f"{kind:<12}" + "".join(f"{soak.kills[kind, m]:>10}" for m in moments))
    for kind, count in sorted(soak.damages.items()):
        say(f"{'(' + kind + ')':<12}{count:>10}")
    for line in soak.violations:
        say(f"WRONG  {line}")
    say(json.dumps({
        "kills": soak.num_kills, "damages": sum(soak.damages.values()), "attempts": soak.attempts, "runs": soak.rounds,
        "ranks": soak.args.ranks, "steps": soak.args.steps, "seed": soak.args.seed, "violations": len(soak.violations),
        "goodput": round(soak.useful_s / max(soak.wall_s, 1e-9), 4), "start_s": round(soak.start_s, 2),
        "wall_s": round(wall_s, 1),
    }))  # fmt: skip
    raise SystemExit(1 if soak.violations else 0)


if __name__ == "__main__":
    main()
