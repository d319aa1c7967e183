"""Collectives on real processes of this machine: healthy, with a wrong number, with a slow node, with a rank that dies."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from seatrial.job.checks.collectives import OPS, Collective

from .check_ranks import run_program

SIZES = {"sizes_mib": (4.0, 16.0)}
CLUSTER = ("cluster_collectives", "cluster_data", "cluster_transport", "scaling")


def test_a_node(tmp_path: Path) -> None:
    checks = ("node_collectives", "node_data", "transport")
    samples, codes, printed = run_program("links", tmp_path, *checks, options={"scope": "node"}, **SIZES)
    assert codes == [0, 0], printed
    rates = {(s.metric, s.detail["bytes"]): s for s in samples if s.check == "node_collectives"}
    assert set(rates) == {(op, size) for op in OPS for size in (65536, 262144)}
    assert all(s.value > 0 and s.unit == "GB/s" and len(s.detail["times_s"]) == 2 for s in rates.values())
    assert [s.value for s in samples if s.metric == "wrong_elements"] == [0] * 8
    (transport,) = (s for s in samples if s.check == "transport")
    assert transport.value == "gloo over lo" and transport.detail["bytes_by_interface"]["lo"] > 1e6


def test_two_nodes_where_one_is_slow_and_one_rank_gets_wrong_numbers(tmp_path: Path) -> None:
    faults = ["flipped-bits:node=1,gpu=0", "slow-node:node=1,factor=0.1", "wrong-transport:node=0"]
    samples, codes, printed = run_program(
        "links", tmp_path, *CLUSTER, nodes=2, options={"scope": "cluster"}, inject=faults, **SIZES
    )
    assert codes == [0] * 4, printed
    wrong = [s for s in samples if s.metric == "wrong_elements"]
    assert len(wrong) == 8 and all((s.node, s.gpu, s.value) == ("node1", 0, 1) for s in wrong)
    for sample in samples:
        if sample.check == "cluster_collectives" and sample.metric == "all_reduce":
            times = sample.detail["times_s"]
            assert min(times[2:]) > 1.5 * max(times[:2])
    networks = {s.node: s.value for s in samples if s.metric == "network"}
    assert networks == {"node0": "NET/Socket", "node1": "gloo over lo"}
    assert [s.detail["nodes"] for s in samples if s.check == "scaling"] == [1, 2]


def test_a_rank_that_dies_frees_the_others(tmp_path: Path) -> None:
    samples, codes, printed = run_program(
        "links",
        tmp_path,
        *CLUSTER,
        nodes=2,
        options={"scope": "cluster"},
        inject=["dead-rank:node=1,gpu=0"],
        **SIZES,
    )
    assert codes == [1, 1, 137, 1], printed
    failed = [s for s in samples if s.detail.get("failed")]
    assert {s.detail["rank"] for s in failed} == {0, 1, 3}
    assert all(s.value is None and s.metric == "all_reduce" and s.reason for s in failed)


def test_a_rank_that_never_comes_is_named(tmp_path: Path) -> None:
    samples, codes, printed = run_program(
        "links",
        tmp_path,
        *CLUSTER,
        nodes=2,
        nproc=1,
        absent=1,
        options={"scope": "cluster", "join_s": 1},
        **SIZES,
    )
    assert codes == [1], printed
    (failed,) = samples
    assert failed.value is None and "1 of 2 ranks did not come: rank 1 (node1, CPU rank 0)" in failed.reason


def test_a_rank_that_hangs_is_ended_with_the_others(tmp_path: Path) -> None:
    options = {"scope": "node", "collective_s": 5}
    samples, codes, printed = run_program(
        "links", tmp_path, "node_collectives", options=options, inject=["hung-probe:gpu=1"], **SIZES
    )
    assert codes == [1, 1], printed
    assert {s.detail["rank"] for s in samples} == {0, 1} and all(
        s.value is None and s.reason for s in samples
    )


def emulate(rank: int, port: int) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=3)
    for op in OPS[1:]:
        work = Collective(op, 30_000, rank, 3, torch.device("cpu"), emulated=True)
        work.fill()
        work.run()
        assert work.wrong() == [0, 0, 0], op
    dist.destroy_process_group()


def test_emulation_gives_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(emulate, (port,), nprocs=3)
