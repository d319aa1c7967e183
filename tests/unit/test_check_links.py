"""Collectives: right numbers known, wrong ones found and blamed, rates by the formulas, and NCCL's log read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seatrial.job.checks.collectives import (
    PERIOD,
    Collective,
    blamed,
    bus_factor,
    content,
    fill,
    total,
    wire_rate_gb_s,
    wrong,
)
from seatrial.job.checks.inject import flip_bit
from seatrial.job.checks.links import last_algo, pinned, rates
from seatrial.job.checks.transport import grown, parse, sent_bytes

LOGS = Path(__file__).parents[1] / "fixtures" / "check" / "nccl"
CPU = torch.device("cpu")


def delivered(op: str, size: int, n: int) -> list[Collective]:
    """An operation as it should come out, without a process group."""
    ranks = [Collective(op, size, rank, n, CPU) for rank in range(n)]
    for rank in ranks:
        rank.fill()
    inputs = [rank.input.clone() for rank in ranks]
    for r, rank in enumerate(ranks):
        own = slice(r * rank.chunk, (r + 1) * rank.chunk)
        rank.output.copy_(
            {
                "all_reduce": lambda: torch.stack(inputs).sum(0),
                "all_gather": lambda: torch.cat(inputs),
                "reduce_scatter": lambda own=own: torch.stack(inputs).sum(0)[own],
                "all_to_all": lambda own=own: torch.cat([given[own] for given in inputs]),
            }[op]()
        )
    return ranks


@pytest.mark.parametrize("op", ["all_reduce", "all_gather", "reduce_scatter", "all_to_all"])
@pytest.mark.parametrize("n", [2, 3, 8])
def test_right_numbers_pass_and_one_flipped_bit_is_found(op: str, n: int) -> None:
    ranks = delivered(op, 40_000, n)
    assert all(sum(rank.wrong()) == 0 for rank in ranks)
    flip_bit(ranks[1].output)
    counts = [rank.wrong() for rank in ranks]
    assert sum(map(sum, counts)) == 1 and blamed(counts, op) == 1


@pytest.mark.parametrize("op", ["all_gather", "all_to_all"])
def test_a_rank_that_sends_wrong_numbers_is_blamed_by_all(op: str) -> None:
    ranks = delivered(op, 40_000, 4)
    for rank in ranks:
        rank.output[2 * rank.chunk : 3 * rank.chunk] += 1
    counts = [rank.wrong() for rank in ranks]
    assert blamed(counts, op) == 2 and counts[0] == [0, 0, ranks[0].chunk, 0]


def test_nobody_is_blamed_where_it_can_not_be_told() -> None:
    assert blamed([[1, 0], [0, 2]], "all_reduce") is None
    assert blamed([[1, 1], [1, 1]], "all_gather") is None
    assert blamed([[0, 0], [0, 0]], "all_gather") is None


@given(st.integers(1, 5000), st.integers(0, 5000), st.integers(0, 40))
def test_content_is_found_at_any_offset(size: int, offset: int, rank: int) -> None:
    buffer = torch.empty(size + offset)
    fill(buffer, content(rank))
    assert wrong(buffer[offset:], content(rank), offset) == 0
    assert wrong(buffer[offset:], content(rank + 1), offset) == size


def test_sums_are_exact_and_contents_differ() -> None:
    assert total(1000).double().max() < 2**24
    assert total(1000).tolist() == sum(content(rank).long() for rank in range(1000)).tolist()  # type: ignore[union-attr]
    assert len({tuple(content(rank).tolist()) for rank in range(PERIOD)}) == PERIOD


def test_factors_are_those_of_nccl_tests() -> None:
    assert bus_factor("all_reduce", 8) == 1.75
    assert (
        bus_factor("all_gather", 8) == bus_factor("reduce_scatter", 8) == bus_factor("all_to_all", 8) == 0.875
    )
    assert bus_factor("all_reduce", 1) == 0


def test_wire_rates_are_those_of_the_nics() -> None:
    # 2 nodes of 8: 368 GB/s of busbw as a ring are 46 on each NIC; 470 as a tree are only 31.
    algbw = 368 / bus_factor("all_reduce", 16)
    assert wire_rate_gb_s("all_reduce", algbw, 16, 2, ring=True) == pytest.approx(46)
    algbw = 470 / bus_factor("all_reduce", 16)
    assert wire_rate_gb_s("all_reduce", algbw, 16, 2, ring=False) == pytest.approx(470 * 1 / 15, rel=1e-9)
    assert wire_rate_gb_s("all_to_all", 40, 16, 4, ring=True) == pytest.approx(30)
    assert wire_rate_gb_s("all_gather", 400, 8, 1, ring=True) == pytest.approx(350)


def test_the_slowest_rank_counts() -> None:
    found = rates("all_reduce", 2_000_000_000, [[1.0, 1.0, 9.0], [2.0, 2.0, 2.0]], 1, ring=True)
    assert found["time_s"] == 2 and found["algbw_gb_s"] == found["busbw_gb_s"] == 1
    assert found["times_s"] == [1, 2] and found["values"] == pytest.approx([1, 1, 2 / 9])


def test_nvlink_switches_are_read() -> None:
    found = parse((LOGS / "h100_one_node.log").read_text())
    assert found.inside == "P2P/CUMEM, NVLS" and found.between == ""
    assert (found.channels, found.nvls_channels, found.version) == (24, 16, "2.27.3+cuda12.9")
    assert found.nics == ("mlx5_0", "mlx5_1", "mlx5_4") and found.networks == ("IB",)
    assert found.algos == {"Ring": 1, "NVLS": 1}
    assert last_algo(LOGS / "h100_one_node.log") == "nvls"


def test_infiniband_with_gpu_direct_is_read() -> None:
    found = parse((LOGS / "two_nodes_ib.log").read_text())
    assert found.between == "NET/IB/GDRDMA" and found.inside == "P2P/IPC/read"
    assert found.via["NET/IB/GDRDMA"] == 2 and found.algos == {"Ring": 1} and found.nvls_channels == 0


def test_sockets_are_read() -> None:
    found = parse((LOGS / "two_nodes_socket.log").read_text())
    assert found.between == "NET/Socket" and found.inside == "SHM/direct"
    assert found.networks == ("Socket",) and found.nics == ("eth0",)


def test_a_log_that_says_nothing_names_nothing(tmp_path: Path) -> None:
    found = parse("")
    assert found.inside == found.between == "" and not found.via
    assert last_algo(tmp_path / "none") == ""


def test_a_plugin_of_a_cloud_is_read() -> None:
    line = "n1:7:9 [0] NCCL INFO Channel 03/0 : 8[0] -> 0[0] [receive] via NET/AWS Libfabric/0/GDRDMA"
    assert parse(line).between == "NET/AWS Libfabric/GDRDMA"


def test_counters_of_ports_and_interfaces(tmp_path: Path) -> None:
    eth = tmp_path / "class/net/eth0/statistics/tx_bytes"
    port = tmp_path / "class/infiniband/mlx5_0/ports/1/counters/port_xmit_data"
    refused = tmp_path / "class/infiniband/mlx5_1/ports/1/counters/port_xmit_data"
    for path, text in ((eth, "100\n"), (port, "25\n"), (refused, "N/A\n")):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    before = sent_bytes(tmp_path)
    assert before == {"eth0": 100, "mlx5_0:1": 100}
    port.write_text("1025\n")
    assert grown(before, sent_bytes(tmp_path)) == {"mlx5_0:1": 4000}


def test_ring_is_pinned_for_two_nodes_only(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.delenv("NCCL_ALGO", raising=False)
    for nodes, algo in ((1, None), (2, "Ring"), (4, None)):
        with pinned(nodes):
            assert os.environ.get("NCCL_ALGO") == algo
        assert "NCCL_ALGO" not in os.environ
