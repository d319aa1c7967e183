"""Every path of a run, in one place."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

RUNS_DIR_VARIABLE = "SEATRIAL_RUNS_DIR"
MERGED = "merged.log"
"""In the logs of an attempt in pods: what all of them printed, by time, each line with node/rank."""


def runs_dir(chosen: Path | None = None) -> Path:
    """Where runs live: what was asked for, else ``$SEATRIAL_RUNS_DIR``, else ``./runs``; absolute."""
    return (chosen or Path(os.environ.get(RUNS_DIR_VARIABLE) or "runs")).absolute()


@dataclass(frozen=True, slots=True)
class AttemptPaths:
    """One submission or resumption of a run: ``attempt-<k>/``."""

    root: Path

    @property
    def exit(self) -> Path:
        """How it ended; written last, by the agent."""
        return self.root / "exit.json"

    @property
    def facts(self) -> Path:
        """What rank 0 found: environment, data, models."""
        return self.root / "facts.json"

    @property
    def logs(self) -> Path:
        """``agent.log`` and one ``rank_00000.log`` per rank."""
        return self.root / "logs"

    @property
    def nodes(self) -> Path:
        """What each node said of itself when it checked in; only where there are several."""
        return self.root / "nodes.json"

    @property
    def stop_request(self) -> Path:
        """Exists once a person or the platform has asked the attempt to stop; says why."""
        return self.root / "stop.json"

    @property
    def samples(self) -> Path:
        """What an acceptance test measured, a file a writer."""
        return self.root / "samples"

    def rank_log(self, rank: int) -> Path:
        """What one rank printed."""
        return self.logs / f"rank_{rank:05d}.log"

    def rank_events(self, rank: int) -> Path:
        """What one rank reported: its start, its phases, its end."""
        return self.root / "events" / f"rank_{rank:05d}.jsonl"

    def rank_failure(self, rank: int) -> Path:
        """Why one rank stopped, in three parts."""
        return self.root / "failures" / f"rank_{rank:05d}.json"

    @property
    def failures(self) -> Path:
        """What ranks and launcher say of a failure; of earlier starts of the ranks, in ``restart_<k>/``."""
        return self.root / "failures"

    def launcher_failures(self, node_rank: int) -> Path:
        """What the ranks' parent saw of them: exit codes and signals."""
        return self.failures / f"node_{node_rank:05d}.json"

    def launcher_log(self, name: str, node_rank: int) -> Path:
        """What the launcher of a node's ranks printed: ``warm.log``; of further nodes ``warm_00001.log``."""
        return self.logs / (f"{name}_{node_rank:05d}.log" if node_rank else f"{name}.log")

    @property
    def restarts(self) -> Path:
        """One row for each time that the ranks were started again."""
        return self.root / "restarts.jsonl"

    def telemetry(self, node_rank: int) -> Path:
        """What a node's sampler saw of its devices."""
        return self.root / "telemetry" / f"node_{node_rank:05d}.jsonl"

    def phases(self, rank: int) -> Path:
        """Where one rank's time went: a row for every few seconds of training."""
        return self.root / "phases" / f"rank_{rank:05d}.jsonl"

    @property
    def hang(self) -> Path:
        """What was found when a rank froze."""
        return self.failures / "hang.json"

    def flight(self, rank: int) -> Path:
        """The last collectives of one rank, where a hang made it write them."""
        return self.failures / "flight" / f"rank_{rank:05d}.json"

    def heartbeat(self, rank: int) -> Path:
        """Where one rank is: step, phase and time, overwritten in place."""
        return self.root / "heartbeats" / f"rank_{rank:05d}"


@dataclass(frozen=True, slots=True)
class RunPaths:
    """The files of one run directory; see docs/run-directory.md."""

    root: Path

    @property
    def run_id(self) -> str:
        """The directory's name is the run's id."""
        return self.root.name

    @property
    def manifest(self) -> Path:
        """What was asked, done and found."""
        return self.root / "manifest.json"

    @property
    def spec(self) -> Path:
        """The validated, resolved recipe."""
        return self.root / "spec.json"

    @property
    def inputs(self) -> Path:
        """Which tokenised data the run is trained on and held to, and the hashes of its samples."""
        return self.root / "inputs.json"

    @property
    def evidence(self) -> Path:
        """Verdicts, one a line."""
        return self.root / "evidence.jsonl"

    @property
    def metrics(self) -> Path:
        """Loss, learning rate and throughput over steps, one row a line, written by rank 0."""
        return self.root / "metrics.jsonl"

    @property
    def guard(self) -> Path:
        """Steps whose update was skipped or left out, and why; a resumed run leaves out the same."""
        return self.root / "guard.json"

    @property
    def checkpoints(self) -> Path:
        """``step_000500/`` each."""
        return self.root / "checkpoints"

    @property
    def comparison(self) -> Path:
        """The original against the trained model."""
        return self.root / "comparison.json"

    @property
    def utilisation(self) -> Path:
        """How the devices were used, and what held them up."""
        return self.root / "utilisation.json"

    @property
    def report(self) -> Path:
        """The page."""
        return self.root / "report.html"

    @property
    def verdict(self) -> Path:
        """Of an acceptance test: what it came to, signed; launches in the same runs directory go by it."""
        return self.root / "verdict.json"

    @property
    def junit(self) -> Path:
        """Of an acceptance test: the same for a CI."""
        return self.root / "junit.xml"

    @property
    def remote(self) -> Path:
        """Only in a copy: where the run itself lives, on a cluster that is reached over ssh."""
        return self.root / "remote.json"

    @property
    def lock(self) -> Path:
        """Held by the agent while an attempt runs."""
        return self.root / ".lock"

    def model(self, name: str) -> Path:
        """``models/original`` or ``models/trained``."""
        return self.root / "models" / name

    def predictions(self, name: str) -> Path:
        """One row a sample."""
        return self.root / "predictions" / f"{name}.parquet"

    def request(self, kind: str) -> Path:
        """The native text that was submitted: ``sh``, ``yaml`` or ``json``."""
        return self.root / f"request.{kind}"

    def attempt(self, index: int) -> AttemptPaths:
        """``attempt-<index>/``."""
        return AttemptPaths(self.root / f"attempt-{index}")
