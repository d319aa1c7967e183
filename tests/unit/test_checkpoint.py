"""Checkpoints: written beside the training, read on any number of ranks, believed only when whole."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="the job side needs the extra 'train'")

import torch.distributed as dist
from safetensors import safe_open

from seatrial.errors import PlatformError, SpecError
from seatrial.job import checkpoint, saver, shards
from seatrial.job.checkpoint import TrainState
from seatrial.job.optimizer import make_optimizer, make_scheduler, update
from seatrial.job.reporter import Reporter
from seatrial.job.saver import Saver
from seatrial.job.world import World
from seatrial.runs import commit
from seatrial.runs.evidence import Verdict, read_evidence
from seatrial.runs.files import read_json_lines
from seatrial.runs.paths import RunPaths
from seatrial.runs.retention import Kept, Retention
from seatrial.spec.run import TrainSpec

NUM_STEPS = 12


def world(rank: int = 0, world_size: int = 1) -> World:
    return World(rank=rank, local_rank=rank, world_size=world_size, device=torch.device("cpu"))


class Net(torch.nn.Module):
    """A tied weight, a buffer that the forward pass changes, and a frozen parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(6, 7)
        self.norm = torch.nn.BatchNorm1d(7)
        self.outer = torch.nn.Linear(7, 7)
        self.tied = self.outer
        self.frozen = torch.nn.Linear(7, 7).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.frozen(self.tied(self.norm(self.inner(x)).relu())).pow(2).mean()


def make_state(net: torch.nn.Module | None = None, seed: int = 0) -> TrainState:
    torch.manual_seed(seed)
    net = net or Net()
    train = TrainSpec(learning_rate=0.05, warmup=3.0)
    optimizer = make_optimizer(net, train)
    return TrainState(
        net, optimizer, make_scheduler(optimizer, NUM_STEPS, train), torch.amp.GradScaler(enabled=False)
    )


def step_on(state: TrainState, until: int, keeper: Saver | None = None) -> None:
    """Real steps on random batches, drawn from the state of the generator as dropout is."""
    while state.step < until:
        state.model(torch.randn(5, 6)).backward()
        if keeper is not None:
            keeper.before_update()
        update(state.optimizer, state.scaler, 1.0)
        state.scheduler.step()
        state.step += 1


@pytest.fixture
def reporter(tmp_path: Path) -> Reporter:
    return Reporter(RunPaths(tmp_path), 0, 0)


@pytest.fixture
def make_saver(reporter: Reporter) -> Callable[..., Saver]:
    def make(state: TrainState, retention: Retention = Retention(2), **more: object) -> Saver:  # noqa: B008
        return Saver(
            reporter.paths.checkpoints, state, world(), retention, global_batch=8, reporter=reporter, **more
        )  # type: ignore[arg-type]

    return make


def same(a: TrainState, b: TrainState) -> bool:
    one, two = a.updated() | a.buffers(), b.updated() | b.buffers()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


class TestResume:
    def test_it_goes_on_bit_for_bit(
        self, make_saver: Callable[..., Saver], reporter: Reporter, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Though the copy is made when the loop is about to update, the updates change nothing in it."""
        reached = threading.Event()
        copy, wait = Saver._copy, Saver.before_update

        def late(self: Saver, sources: list[object]) -> None:
            assert len(sources) < 5 or reached.wait(20)  # few pieces: what is copied at once
            copy(self, sources)  # type: ignore[arg-type]

        def announced(self: Saver) -> None:
            reached.set()
            wait(self)

        state = make_state()
        keeper = make_saver(state)
        step_on(state, 5, keeper)
        monkeypatch.setattr(Saver, "_copy", late)
        keeper.save()
        monkeypatch.setattr(Saver, "before_update", announced)
        step_on(state, 10, keeper)
        keeper.finish()

        resumed = make_state(seed=9)
        resumed.model.frozen.load_state_dict(state.model.frozen.state_dict())  # as models/original has it
        found = checkpoint.newest(reporter.paths.checkpoints, world(), reporter)
        assert found is not None and found.global_batch == 8
        assert checkpoint.load(found, resumed, world()) == 5
        step_on(resumed, 10)
        assert same(state, resumed)
        assert resumed.scheduler.get_last_lr() == state.scheduler.get_last_lr()
        assert resumed.optimizer.param_groups[0]["lr"] == state.optimizer.param_groups[0]["lr"]

    def test_every_tensor_is_written_once_and_nothing_is_pickled(
        self, make_saver: Callable[..., Saver], reporter: Reporter
    ) -> None:
        state = make_state()
        step_on(state, 1)
        keeper = make_saver(state)
        keeper.save()
        keeper.finish()
        path = checkpoint.directory(reporter.paths.checkpoints, 1)
        assert sorted(p.name for p in path.iterdir()) == [
            commit.MARKER, "rank_00000.safetensors", "trainer.json",
        ]  # fmt: skip
        with safe_open(path / "rank_00000.safetensors", framework="pt") as file:
            names = set(file.keys())
        assert "model.outer.weight" in names and "optimizer.outer.weight.exp_avg" in names
        assert "model.norm.running_mean" in names
        assert not any("tied" in name or "frozen" in name for name in names)

    def test_a_checkpoint_of_another_model_is_refused(
        self, make_saver: Callable[..., Saver], reporter: Reporter
    ) -> None:
        state = make_state(torch.nn.Sequential(torch.nn.Linear(6, 1)))
        state.model(torch.randn(5, 6)).sum().backward()
        update(state.optimizer, state.scaler, None)
        keeper = make_saver(state)
        state.step = 1
        keeper.save()
        keeper.finish()
        found = checkpoint.newest(reporter.paths.checkpoints, world(), reporter)
        with pytest.raises(SpecError, match="does not fit the model"):
            checkpoint.load(found, make_state(), world())

    def test_rates_follow_the_recipe_not_the_checkpoint(self) -> None:
        """A run that was made longer has another schedule from here on."""
        longer = make_state()
        longer.scheduler = make_scheduler(longer.optimizer, 100, TrainSpec(learning_rate=0.05))
        checkpoint.set_step(longer.scheduler, 7)
        walked = make_state()
        walked.scheduler = make_scheduler(walked.optimizer, 100, TrainSpec(learning_rate=0.05))
        step_on(walked, 7)
        assert longer.scheduler.get_last_lr() == walked.scheduler.get_last_lr()


class TestFaults:
    @pytest.fixture
    def three(self, make_saver: Callable[..., Saver], reporter: Reporter) -> Path:
        """Checkpoints of steps 1, 2 and 3."""
        state = make_state()
        keeper = make_saver(state, Retention(9))
        for step in (1, 2, 3):
            step_on(state, step, keeper)
            keeper.save()
        keeper.finish()
        return reporter.paths.checkpoints

    @pytest.mark.parametrize(
        ("harm", "said"),
        [
            (lambda d: flip(d / shards.file_name(0)), "SHA-256 differs"),
            (lambda d: os.truncate(d / shards.file_name(0), 100), "has 100 bytes"),
            (lambda d: (d / shards.file_name(0)).unlink(), "is missing"),
            (lambda d: (d / "trainer.json").write_text("{}"), "trainer.json has 2 bytes"),
            (lambda d: (d / commit.MARKER).write_text("{"), "not JSON"),
            (lambda d: (d / commit.MARKER).write_text("{}"), "lists no files"),
        ],
    )
    def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(
        self, three: Path, reporter: Reporter, harm: Callable[[Path], object], said: str
    ) -> None:
        harm(checkpoint.directory(three, 3))
        (three / "step_000004.writing").mkdir()
        found = checkpoint.newest(three, world(), reporter)
        assert found is not None and found.step == 2
        [evidence] = read_evidence(reporter.paths.evidence)
        assert evidence.verdict is Verdict.WARN and said in evidence.message
        assert sorted(p.name for p in three.iterdir()) == [
            "step_000001",
            "step_000002",
            "step_000003.damaged",
        ]

    def test_a_step_whose_checkpoint_was_damaged_is_saved_anew(
        self, three: Path, reporter: Reporter, make_saver: Callable[..., Saver]
    ) -> None:
        flip(checkpoint.directory(three, 3) / shards.file_name(0))
        state = make_state()
        checkpoint.restore(three, state, world(), reporter)
        keeper = make_saver(state, Retention(9))
        step_on(state, 3, keeper)
        keeper.save()
        keeper.finish()
        assert sorted(p.name for p in three.iterdir()) == [f"step_{n:06d}" for n in (1, 2, 3)]
        assert commit.problems(checkpoint.directory(three, 3)) == []

    @pytest.mark.parametrize(
        ("code", "said"), [(errno.ENOSPC, "the disk is full"), (errno.ESTALE, "step 2 can't be written")]
    )
    def test_a_save_that_fails_in_the_background_stops_the_run(
        self, make_saver: Callable[..., Saver], reporter: Reporter, code: int, said: str
    ) -> None:
        def fail(step: int) -> None:
            if step == 2:
                raise OSError(code, os.strerror(code))

        state = make_state()
        keeper = make_saver(state, Retention(1), midway=fail)
        step_on(state, 1, keeper)
        keeper.save()
        step_on(state, 2, keeper)
        keeper.save()
        with pytest.raises(PlatformError, match=said) as caught:
            for step in range(3, 1000):
                step_on(state, step, keeper)
                time.sleep(0.002)
        assert "rank 0" in caught.value.evidence and "step 1 is kept" in caught.value.evidence
        assert [p.name for p in reporter.paths.checkpoints.iterdir()] == ["step_000001"]
        with pytest.raises(PlatformError):
            keeper.save()

    def test_a_vanished_directory_is_a_reason_not_a_hang(
        self, make_saver: Callable[..., Saver], reporter: Reporter
    ) -> None:
        def vanish(step: int) -> None:
            shutil.rmtree(reporter.paths.checkpoints)

        state = make_state()
        step_on(state, 1)
        keeper = make_saver(state, midway=vanish)
        keeper.save()
        with pytest.raises(PlatformError, match="can't be written"):
            keeper.finish()

    def test_a_slow_disk_is_waited_for_and_said_once(
        self, make_saver: Callable[..., Saver], reporter: Reporter, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(saver, "_WORTH_SAYING_S", 0.1)
        state = make_state()
        disk = threading.Event()
        keeper = make_saver(state, Retention(9), midway=lambda step: disk.wait(20))
        for step in (1, 2, 3):
            step_on(state, step, keeper)
            if step == 2:
                threading.Timer(0.3, disk.set).start()
            keeper.save()
        keeper.finish()
        rows = [row for row in read_json_lines(reporter.paths.evidence) if row["check"] == "checkpoint_slow"]
        assert [row["verdict"] for row in rows] == ["WARN"] and rows[0]["measured"] > 0.1
        assert checkpoint.committed_steps(reporter.paths.checkpoints) == [1, 2, 3]

    def test_a_place_that_takes_no_files_is_said_before_training(self, reporter: Reporter) -> None:
        reporter.paths.checkpoints.write_text("not a directory")
        with pytest.raises(PlatformError, match="can't be written") as caught:
            checkpoint.newest(reporter.paths.checkpoints, world(), reporter)
        assert "rank 0" in caught.value.evidence


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


class TestPolicy:
    @given(
        st.lists(st.integers(1, 60), unique=True, max_size=12),
        st.data(),
        st.integers(1, 4),
        st.integers(0, 3),
        st.none() | st.integers(1, 20),
    )
    def test_what_goes_is_wanted_by_no_rule(
        self, steps: list[int], data: st.DataObject, last: int, best: int, every: int | None
    ) -> None:
        losses = [data.draw(st.none() | st.floats(0, 9)) for _ in steps]
        gone = Retention(last, best, every).superfluous(map(Kept, steps, losses))
        kept = set(steps) - set(gone)
        assert not set(gone) & set(sorted(steps)[-last:])
        assert every is None or all(step % every for step in gone)
        scored = {step: loss for step, loss in zip(steps, losses, strict=True) if loss is not None}
        better = sorted(scored.values())[:best]
        assert all(
            sum(scored[k] <= scored[g] for k in kept & scored.keys()) >= len(better)
            for g in gone
            if g in scored
        )
        if every is None:
            assert len(kept) <= last + best

    def test_the_best_by_held_out_loss_stay(
        self, make_saver: Callable[..., Saver], reporter: Reporter
    ) -> None:
        state = make_state()
        keeper = make_saver(state, Retention(last=1, best=1, every=5))
        for step, loss in zip(range(1, 8), [3.0, 0.5, 2.0, None, 4.0, 0.6, None], strict=True):
            step_on(state, step, keeper)
            if loss is not None:
                state.held_out = (step, loss)
            keeper.save()
        keeper.finish()
        assert checkpoint.committed_steps(reporter.paths.checkpoints) == [2, 5, 7]

    def test_a_save_by_the_clock_is_wished_for_once(
        self, make_saver: Callable[..., Saver], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = [0.0]
        monkeypatch.setattr(saver.time, "monotonic", lambda: now[0])
        keeper = make_saver(make_state(), minutes=0.5)
        assert not keeper.is_due()
        now[0] = 30.0
        assert keeper.is_due() and not keeper.is_due()
        now[0] = 61.0
        assert keeper.is_due()


# --- several ranks --------------------------------------------------------------------------------------------------


def on_ranks(world_size: int, work: Callable[..., None], root: Path, **arguments: object) -> None:
    """Runs `work` on forked ranks joined by gloo; fails when one of them does."""
    store = root / f"store_{time.monotonic_ns()}"
    context = multiprocessing.get_context("fork")
    ranks = [
        context.Process(target=_rank, args=(rank, world_size, store, work, root, arguments))
        for rank in range(world_size)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(120)
    assert [rank.exitcode for rank in ranks] == [0] * world_size


def _rank(
    rank: int,
    world_size: int,
    store: Path,
    work: Callable[..., None],
    root: Path,
    arguments: dict[str, object],
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    work(world(rank, world_size), root, **arguments)
    dist.destroy_process_group()
    os._exit(0)


def reference() -> TrainState:
    """The same on every rank, as under DDP."""
    state = make_state()
    step_on(state, 4)
    return state


def save_as_replicas(here: World, root: Path) -> None:
    state = reference()
    torch.manual_seed(here.rank)
    keeper = Saver(root, state, here, Retention(2), global_batch=8)
    keeper.save()
    keeper.finish()
    assert checkpoint.committed_steps(root) == [
        4
    ]  # on every rank: the end of a save is the end of the commit


def load_and_compare(here: World, root: Path, written_by: int) -> None:
    reporter = Reporter(RunPaths(root / "run"), 0, here.rank)
    state = make_state(seed=5)
    found = checkpoint.newest(root, here, reporter)
    assert found is not None and (found.world_size, found.global_batch) == (written_by, 8)
    assert checkpoint.load(found, state, here, seed=3) == 4
    drawn: list[object] = [None] * here.world_size
    dist.all_gather_object(drawn, torch.randn(1).item())
    assert len(set(drawn)) == here.world_size
    torch.manual_seed(here.rank)
    assert (drawn[here.rank] == torch.randn(1).item()) == (here.world_size == written_by)
    expected = reference()
    assert all(torch.equal(state.updated()[n], t) for n, t in expected.updated().items())


def test_replicas_are_written_once_and_read_by_any_number_of_ranks(tmp_path: Path) -> None:
    on_ranks(2, save_as_replicas, tmp_path)
    path = checkpoint.directory(tmp_path, 4)
    sizes = []
    for rank in (0, 1):
        with safe_open(path / shards.file_name(rank), framework="pt") as file:
            names = [name for name in file.keys() if not name.startswith(shards.LOCAL)]  # noqa: SIM118
            sizes.append(sum(file.get_tensor(name).nbytes for name in names))
    state = reference()
    num_bytes = sum(t.nbytes for t in [*state.updated().values(), *state.buffers().values()])
    assert sum(sizes) == num_bytes
    assert abs(sizes[0] - sizes[1]) < num_bytes / 4
    on_ranks(1, load_and_compare, tmp_path, written_by=2)
    on_ranks(2, load_and_compare, tmp_path, written_by=2)
    on_ranks(4, load_and_compare, tmp_path, written_by=2)


def sharded_state(here: World) -> TrainState:
    """Parameters cut into uneven rows, and optimizer state with them, as under FSDP2."""
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    state = reference()
    mesh = init_device_mesh("cpu", (here.world_size,))
    for module in state.model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if isinstance(parameter, torch.nn.Parameter) and parameter.requires_grad:
                entries = state.optimizer.state.pop(parameter)
                cut = torch.nn.Parameter(distribute_tensor(parameter.data, mesh, [Shard(0)]))
                setattr(module, name, cut)
                state.optimizer.state[cut] = {
                    key: distribute_tensor(value, mesh, [Shard(0)]) if value.dim() else value
                    for key, value in entries.items()
                }
    return state


def save_as_shards(here: World, root: Path) -> None:
    keeper = Saver(root, sharded_state(here), here, Retention(2), global_batch=8)
    keeper.save()
    keeper.finish()


def load_as_shards(here: World, root: Path) -> None:
    state = sharded_state(here)
    expected = {name: value.full_tensor().clone() if hasattr(value, "full_tensor") else value.clone()
                for name, value in state.updated().items()}  # fmt: skip
    for value in state.updated().values():
        with torch.no_grad():
            value.zero_()
    reporter = Reporter(RunPaths(root / "run"), 0, here.rank)
    checkpoint.load(checkpoint.newest(root, here, reporter), state, here)
    for name, value in state.updated().items():
        whole = value.full_tensor() if hasattr(value, "full_tensor") else value
        assert torch.equal(whole, expected[name]), name


def test_shards_are_resharded(tmp_path: Path) -> None:
    on_ranks(3, save_as_shards, tmp_path)
    on_ranks(2, load_as_shards, tmp_path)
    on_ranks(1, load_and_compare, tmp_path, written_by=3)


def fail_on_rank_1(here: World, root: Path) -> None:
    def midway(step: int) -> None:
        if here.rank == 1:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    state = reference()
    keeper = Saver(root, state, here, Retention(2), global_batch=8, midway=midway)
    keeper.save()
    with pytest.raises(PlatformError, match="step 4 can't be written") as caught:
        keeper.finish()
    assert "rank 1" in caught.value.evidence
    assert list(root.glob("step_*")) == []


def test_one_ranks_failure_is_every_ranks(tmp_path: Path) -> None:
    on_ranks(2, fail_on_rank_1, tmp_path)
