"""Whether torch.compile is used: a trial that leaves no trace, a decision that stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the extra 'train'")

from seatrial.job import compiling
from seatrial.job.reporter import Reporter
from seatrial.job.world import World
from seatrial.runs.evidence import read_evidence
from seatrial.runs.paths import RunPaths

WORLD = World(rank=0, local_rank=0, world_size=1, device=torch.device("cpu"))


@pytest.fixture
def reporter(tmp_path: Path) -> Reporter:
    root = tmp_path / "run"
    root.mkdir()
    return Reporter(RunPaths(root), 0, 0)


class Clock:
    """Goes forward only when told to: machines that others use keep no time."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


CLOCK = Clock()


class Net(torch.nn.Module):
    """Takes `eager_s` for a pass, or `compiled_s` once it is compiled (which is only pretended)."""

    def __init__(self, eager_s: float, compiled_s: float) -> None:
        super().__init__()
        self.layer = torch.nn.Sequential(
            torch.nn.BatchNorm1d(3), torch.nn.Dropout(0.5), torch.nn.Linear(3, 1)
        )
        self.seconds = {False: eager_s, True: compiled_s}
        self.compilations = 0

    def compile(self, *_: Any, **__: Any) -> None:
        self.compilations += 1
        self._compiled_call_impl = self._call_impl

    def forward(self, x: Any) -> Any:
        seconds = self.seconds[self._compiled_call_impl is not None]
        if seconds < 0:
            raise RuntimeError("no compiler here")
        CLOCK.now += seconds
        return self.layer(x)

    def one_pass(self, number: int) -> None:
        self(torch.randn(4, 3)).sum().backward()


@pytest.mark.parametrize(
    ("eager_s", "compiled_s", "num_passes", "used", "reason", "compilations"),
    [
        (0.01, 0.001, 10**6, True, "s a pass against", 1),
        (0.001, 0.01, 10**8, False, "s a pass against", 1),
        (0.01, 0.001, 100, False, "takes about 1 s without it", 0),
        (0.01, -1, 10**6, False, "RuntimeError: no compiler here", 1),
    ],
    ids=["pays", "does not", "too short", "can't"],
)
def test_the_trial_decides_and_leaves_no_trace(
    reporter: Reporter, monkeypatch: pytest.MonkeyPatch, eager_s: float, compiled_s: float, num_passes: int, used: bool,
    reason: str, compilations: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(compiling, "time", CLOCK)
    net = Net(eager_s, compiled_s)
    state = {k: v.clone() for k, v in net.state_dict().items()}
    random = torch.get_rng_state()
    found = compiling.decide(net, net.one_pass, num_passes, "auto", WORLD, reporter)
    assert (found["used"], net._compiled_call_impl is not None) == (used, used)
    assert reason in found["reason"] and net.compilations == compilations
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None for p in net.parameters())
    assert reason in read_evidence(reporter.paths.evidence)[0].message


def test_a_rank_with_fewer_passes_goes_along(reporter: Reporter, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank that returned on its own account would leave the others waiting for it."""
    monkeypatch.setattr(compiling, "time", CLOCK)
    hours = 1e5
    monkeypatch.setattr(
        compiling, "_of_rank_0", lambda value, _: hours if isinstance(value, float) else value
    )
    net = Net(0.01, 0.001)
    assert compiling.decide(net, net.one_pass, 0, "auto", WORLD, reporter)["used"]


def test_a_later_attempt_keeps_the_decision(reporter: Reporter) -> None:
    """Though the machine that it runs on would decide otherwise."""
    reporter.attempt.root.mkdir(parents=True, exist_ok=True)
    reporter.facts(compile={"used": True, "reason": "then"})
    net = Net(0.0, 1.0)
    later = Reporter(reporter.paths, 1, 0)
    assert compiling.decide(net, net.one_pass, 10, "auto", WORLD, later)["reason"] == "then"
    assert net.compilations == 1


def test_evaluation_goes_without() -> None:
    net = Net(0.0, -1)
    net.compile()
    with pytest.raises(RuntimeError, match="no compiler"):
        net(torch.randn(4, 3))
    with compiling.eagerly(net):
        net(torch.randn(4, 3))
    assert net._compiled_call_impl is not None


def test_compiled_is_what_it_was() -> None:
    """The real compiler's front end on a real model: the same losses whatever the lengths, one graph for all."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32,
    )  # fmt: skip
    net = BertForSequenceClassification(config).eval()
    batches = [torch.randint(50, (4, length)) for length in (5, 9, 17)]
    expected = [net(input_ids=ids).logits for ids in batches]
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    net.compile(dynamic=True, backend=backend)
    for ids, logits in zip(batches, expected, strict=True):
        torch.testing.assert_close(net(input_ids=ids).logits, logits)
    assert len(graphs) == 1
