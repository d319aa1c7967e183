"""What a test cluster is, and the texts that its daemons read. Pure: nothing here starts, binds or writes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RECORD = "cluster.json"
CPUS_PER_GPU = 8
MEMORY_PER_CPU_MIB = 3000  # a rank that imports torch fits into one CPU's share


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A cluster as it is written down before anything of it is started, so that whoever finds it can end it.

    Args:
        directory: holds all of it and is deleted with it.
        nodes: named node0, node1, …
        gpus: pretend GPUs of each node.
        mode: "ns": each node has network, hostname, processes and mounts of its own; "plain": they share the host's.
        accounting: with slurmdbd and MariaDB.
        memory_limits: cgroups hold jobs to the memory they asked for.
        port: the first of `num_ports`.
        network: the first three numbers of the nodes' addresses ("ns").
        bridge: the interface that joins the nodes ("ns").
        host: this machine's short name.
        user: owns all daemons and jobs.
        settings: of slurm.conf; each replaces ours of the same name.
        lines: more lines of slurm.conf, for instance partitions.
    """

    directory: Path
    nodes: int
    gpus: int
    mode: str
    accounting: bool
    memory_limits: bool
    port: int
    network: str
    bridge: str
    host: str
    user: str
    settings: Mapping[str, str] = field(default_factory=dict)
    lines: tuple[str, ...] = ()

    @property
    def conf(self) -> Path:
        return self.directory / "slurm.conf"

    @property
    def names(self) -> list[str]:
        return [f"node{i}" for i in range(self.nodes)]

    @property
    def namespaces(self) -> bool:
        return self.mode == "ns"

    @property
    def controller_address(self) -> str:
        return f"{self.network}.1" if self.namespaces else "127.0.0.1"

    @property
    def memory_root(self) -> Path:
        """The cgroup (version 1) above those of all nodes."""
        return Path("/sys/fs/cgroup/memory") / f"seatrial-{self.bridge}"

    def address(self, node: str) -> str:
        return f"{self.network}.{10 + self.index(node)}" if self.namespaces else "127.0.0.1"

    def link(self, node: str) -> str:
        """The host's end of the node's cable."""
        return f"{self.bridge}.{self.index(node)}"

    def index(self, node: str) -> int:
        if node not in self.names:
            raise ValueError(f"no such node: {node!r}; there are {self.nodes}, from node0")
        return int(node.removeprefix("node"))

    def to_json(self) -> str:
        data = dataclasses.asdict(self) | {"directory": str(self.directory)}
        return json.dumps(data, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        data: dict[str, Any] = json.loads(text)
        return cls(**data | {"directory": Path(data["directory"]), "lines": tuple(data["lines"])})


def num_ports(nodes: int) -> int:
    """Ports that a plain cluster takes: controller, slurmdbd, and one for each slurmd."""
    return 2 + nodes


def slurm_conf(plan: Plan) -> str:
    """The slurm.conf of daemons and clients."""
    d = plan.directory
    own = {
        "ClusterName": "seatrial",
        "SlurmctldHost": f"{plan.host}({plan.controller_address})",
        "SlurmctldPort": str(plan.port),
        "SlurmUser": plan.user,
        "SlurmdUser": plan.user,
        "AuthType": "auth/munge",
        "CredType": "cred/munge",
        # A requeued job waits as long as a credential lives, 120 s unless told otherwise.
        "AuthInfo": f"socket={d}/run/munge.sock,cred_expire=10",
        "StateSaveLocation": f"{d}/state",
        "SlurmdSpoolDir": f"{d}/spool/%n",
        "SlurmctldPidFile": f"{d}/run/slurmctld.pid",
        "SlurmdPidFile": f"{d}/run/slurmd-%n.pid",
        "SlurmctldLogFile": f"{d}/log/slurmctld.log",
        "SlurmdLogFile": f"{d}/log/slurmd-%n.log",
        "ProctrackType": "proctrack/linuxproc" if plan.user == "root" else "proctrack/pgid",
        "TaskPlugin": "task/cgroup" if plan.memory_limits else "task/none",
        "MpiDefault": "none",
        "MailProg": "/bin/true",
        # Believe the NodeName line, not the machine.
        "SlurmdParameters": "config_overrides",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_CPU_Memory",
        "GresTypes": "gpu",
        # Without it a job takes all memory of a node, and two never share one.
        "DefMemPerCPU": str(MEMORY_PER_CPU_MIB),
        "EnforcePartLimits": "ALL",
        "ReturnToService": "1",
        "KillWait": "3",
        "SlurmdTimeout": "10",
        "SchedulerParameters": "sched_min_interval=0,bf_interval=2,batch_sched_delay=0,sched_interval=5",
        "JobRequeue": "1",
        "MinJobAge": "300",
        "JobAcctGatherType": "jobacct_gather/linux",
        "JobAcctGatherFrequency": "task=2",
        "JobCompType": "jobcomp/filetxt",
        "JobCompLoc": f"{d}/log/jobcomp.log",
        "PriorityType": "priority/multifactor",
        "PriorityWeightQOS": "10000",
        "PriorityWeightPartition": "1000",
        "PriorityWeightAge": "100",
        "PreemptMode": "REQUEUE",
        "PreemptType": "preempt/partition_prio",
    }
    if plan.accounting:
        own |= {
            "AccountingStorageType": "accounting_storage/slurmdbd",
            # Not the loopback: sacct has to work on the nodes, too.
            "AccountingStorageHost": plan.controller_address,
            "AccountingStoragePort": str(plan.port + 1),
            "AccountingStoragePass": f"{d}/run/munge.sock",
            "AccountingStorageTRES": "gres/gpu",
            "AccountingStorageEnforce": "associations,limits,qos",
            "AccountingStoreFlags": "job_comment,job_env,job_script",
            "PreemptType": "preempt/qos",
        }
    names = {name.lower(): name for name in own}
    for name, value in plan.settings.items():
        own[names.get(name.lower(), name)] = value
    lines = [f"{name}={value}" for name, value in own.items()]
    return "\n".join([*lines, _nodes(plan), *_partitions(), *plan.lines, ""])


def _nodes(plan: Plan) -> str:
    # One range: every client parses this file, and a line a node would cost it 0.1 ms each.
    last = plan.nodes - 1
    if plan.namespaces:
        where = f"NodeAddr={plan.network}.[10-{10 + last}] Port={plan.port + 2}"
    else:
        where = f"NodeHostname={plan.host} NodeAddr=127.0.0.1 Port=[{plan.port + 2}-{plan.port + 2 + last}]"
    cpus = CPUS_PER_GPU * max(plan.gpus, 1)
    memory = (cpus + 8) * MEMORY_PER_CPU_MIB
    gres = f" Gres=gpu:h100:{plan.gpus}" if plan.gpus else ""
    return f"NodeName=node[0-{last}] {where} CPUs={cpus} RealMemory={memory}{gres} State=UNKNOWN"


def _partitions() -> list[str]:
    # A partition of a higher tier preempts those of a lower one, unless accounting is on: then the QOS decides.
    common = "Nodes=ALL DefaultTime=60 State=UP"
    return [
        f"PartitionName=main {common} Default=YES MaxTime=INFINITE PriorityTier=10",
        f"PartitionName=low {common} MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE",
        f"PartitionName=spot {common} MaxTime=INFINITE PriorityTier=1 PreemptMode=CANCEL GraceTime=5",
        f"PartitionName=high {common} MaxTime=INFINITE PriorityTier=100 PreemptMode=OFF",
        "PartitionName=short Nodes=ALL State=UP DefaultTime=1 MaxTime=2 MaxNodes=1 PriorityTier=10",
    ]


def accounts(plan: Plan) -> list[list[str]]:
    """What sacctmgr is told, line by line; each list takes a session of its own, since one does not see its own QOS."""
    return [
        [
            "add cluster seatrial",
            "add qos low set priority=1 PreemptMode=requeue",
            "add qos spot set priority=1 PreemptMode=cancel GraceTime=5",
            "add qos high set priority=100",
            "add account test",
            f"add user {plan.user} account=test adminlevel=admin",
        ],
        [
            "modify qos normal set priority=10 preempt=low,spot",
            "modify qos high set preempt=low,normal,spot",
            f"modify user {plan.user} set qos=normal,low,high,spot defaultqos=normal",
        ],
    ]


def gres_conf(plan: Plan) -> str:
    """slurmd wants device files, and takes a GPU's number from the end of its file's name."""
    if not plan.gpus:
        return ""
    files = f"{plan.directory}/dev/nvidia[0-{plan.gpus - 1}]"
    return f"NodeName=node[0-{plan.nodes - 1}] Name=gpu Type=h100 File={files}\n"


def slurmdbd_conf(plan: Plan) -> str:
    """slurmdbd reaches MariaDB through its Unix socket; MYSQL_UNIX_PORT says where that is."""
    d = plan.directory
    return "\n".join([
        "AuthType=auth/munge",
        f"AuthInfo=socket={d}/run/munge.sock",
        f"DbdHost={plan.host}",
        f"DbdAddr={plan.controller_address}",
        f"DbdPort={plan.port + 1}",
        f"SlurmUser={plan.user}",
        "StorageType=accounting_storage/mysql",
        "StorageHost=localhost",
        f"StorageUser={plan.user}",
        "StorageLoc=slurm_acct",
        f"LogFile={d}/log/slurmdbd.log",
        f"PidFile={d}/run/slurmdbd.pid",
        "",
    ])  # fmt: skip


CGROUP_CONF = """\
CgroupPlugin=cgroup/v1
CgroupMountpoint=/sys/fs/cgroup
ConstrainRAMSpace=yes
ConstrainSwapSpace=no
ConstrainCores=no
ConstrainDevices=no
"""


def hosts(plan: Plan) -> str:
    """/etc/hosts of nodes in namespaces."""
    rows = ["127.0.0.1 localhost", f"{plan.controller_address} {plan.host}"]
    return "\n".join([*rows, *(f"{plan.address(name)} {name}" for name in plan.names), ""])


# No name server answers there: fail at once, not after 10 s, when torch asks for its peers' names.
RESOLV_CONF = "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n"
