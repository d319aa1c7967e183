"""States that are right or wrong, check by check."""

from __future__ import annotations

from functools import partial

from seatrial.check.metrics import TRAININGS
from seatrial.check.rules import fabric, gpus, host, work
from seatrial.check.rules.common import Rule

RULES: dict[str, Rule] = {
    "gpus": gpus.gpus,
    "gpu_idle": gpus.gpu_idle,
    "versions": host.versions,
    "shared_memory": host.shared_memory,
    "locked_memory": host.locked_memory,
    "open_files": host.open_files,
    "cpu": host.cpu,
    "clock": host.clock,
    "ecc": gpus.ecc,
    "row_remap": gpus.row_remap,
    "xid": gpus.xid,
    "pcie": gpus.pcie,
    "infiniband": fabric.infiniband,
    "rdma": fabric.rdma,
    "local_disk": host.local_disk,
    "shared_disk": host.shared_disk,
    "gemm_result": work.gemm_result,
    "throttle": gpus.throttle,
    "node_data": partial(fabric.data, "node_data"),
    "transport": fabric.transport,
    "cluster_data": partial(fabric.data, "cluster_data"),
    "cluster_transport": fabric.cluster_transport,
    **{net: partial(work.training, net) for net in TRAININGS},
}
"""By check; a check that is not here is a rate, and judged by the specification, the peers and the history."""
