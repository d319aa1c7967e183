"""What a machine still needs, as steps with a check each: pure, from its facts and what was asked for."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from seatrial import __version__
from seatrial.errors import SpecError
from seatrial.provision.nodes.facts import SUPPORTED, Facts
from seatrial.spec.fleet import PYTHON

PREFIX = "/opt/seatrial"
STAGED = f"{PREFIX}/staged"
"""Where a wheel is put that is sent along; root's alone."""
_BASE = ("ca-certificates", "curl", "git", "jq", "numactl", "pciutils", "rsync", "tmux")


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for."""

    package: str = f"seatrial[train]=={__version__}"
    """What pip installs: a requirement, or a wheel's path on this machine."""
    pip: tuple[str, ...] = ()
    """Further arguments of pip: an index of one's own, --no-deps."""
    scratch: str = "/scratch/seatrial"
    durable: str = "/srv/seatrial/runs"
    shared: str | None = None
    """A directory that all nodes see; nothing is mounted."""
    s3: str | None = None
    driver: str | None = None
    """Package with the GPUs' driver, where one is to be installed."""
    tailscale: bool = False
    aws_cli: bool = False
    exporter: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that is to be so."""

    id: str
    what: str
    body: str
    """Shell that makes it so, and changes nothing where it is; it calls the functions of `script.FUNCTIONS`."""


def steps(facts: Facts, options: Options) -> list[Step]:
    """All that makes a machine ready.

    Raises:
        SpecError: this system is not one that is known, or can't be changed.
    """
    if facts.system not in SUPPORTED:
        raise SpecError(
            f"{facts.host} runs {' '.join(facts.system).strip() or 'an unknown system'}",
            evidence=f"/etc/os-release; supported: {', '.join(' '.join(s) for s in sorted(SUPPORTED))}",
            remedy="set up Python and Seatrial there by hand, and name its python in nodes.yaml",
        )
    if not facts.is_root_able:
        raise SpecError(f"{facts.host} takes no orders as root", evidence="neither root nor sudo without a password", remedy=f"ssh root@…, or let {facts.values.get('home', 'the user')} use sudo -n")  # fmt: skip
    python, python_packages = _python(facts)
    found = [
        Step("packages", "base packages", f"packages {' '.join((*_BASE, *python_packages))}"),
        *_driver(facts, options),
        *_directories(options),
        Step("limits", "open files and locked memory", _file("/etc/security/limits.d/90-seatrial.conf", _limits())),
        Step("sysctl", "kernel settings", _file("/etc/sysctl.d/90-seatrial.conf", _sysctl(facts)) + "\nsettings /etc/sysctl.d/90-seatrial.conf"),
        Step("environment", "environment of training, from what is here", _file("/etc/profile.d/seatrial.sh", environment(facts, options))),
        *([Step("s3", f"runs are mirrored to {options.s3}", _file("/etc/seatrial/config.yaml", _site(options.s3)))] if options.s3 else []),
        Step("python", "Python environment with Seatrial", _venv(python, options)),
    ]  # fmt: skip
    if options.aws_cli and facts.values.get("aws") != "yes":
        found.append(Step("aws", "AWS CLI", "packages awscli"))
    if options.tailscale and facts.values.get("tailscale") != "yes":
        found.append(Step("tailscale", "Tailscale (you log in: tailscale up)", "packages tailscale"))
    if options.exporter:
        found.append(Step("exporter", "metrics as a service, on loopback", _file("/etc/systemd/system/seatrial-exporter.service", _unit(options)) + "\nservice seatrial-exporter"))  # fmt: skip
    return found


def environment(facts: Facts, options: Options) -> str:
    """Environment of training, derived from what is there. NCCL finds InfiniBand by itself: it is never switched off."""
    ranks = max(len(facts.gpus), 1)
    lines = [
        "# Written by seatrial node bootstrap, from what this machine is; `seatrial node undo` takes it away.",
        f"export OMP_NUM_THREADS={max(facts.cpus // ranks // 2, 1)}  # {facts.cpus} processors, {ranks} ranks, half for the loader",
        "export TOKENIZERS_PARALLELISM=false  # the loader's processes are the parallelism",
    ]
    route = facts.values.get("route")
    if route:
        lines.append(f"export NCCL_SOCKET_IFNAME={route}  # the way out; not a bridge of containers")
        lines.append(f"export GLOO_SOCKET_IFNAME={route}")
    if facts.infiniband:
        lines.append(f"export NCCL_IB_HCA={','.join(facts.infiniband)}  # active InfiniBand ports")
    elif facts.roce:
        lines.append(f"export NCCL_IB_HCA={','.join(facts.roce)}  # active RDMA over Ethernet")
    lines.append(f"export SEATRIAL_SCRATCH={options.scratch}")
    lines.append(
        f"export SEATRIAL_RUNS_DIR={options.shared + '/runs' if options.shared else options.durable}"
    )
    if options.s3:
        lines.append("export SEATRIAL_CONFIG=/etc/seatrial/config.yaml")
    return "\n".join(lines) + "\n"


def _python(facts: Facts) -> tuple[str, tuple[str, ...]]:
    """An interpreter, and the packages that bring it and its venv."""
    if facts.system == ("ubuntu", "22.04"):
        # Its own is 3.10.
        return "/usr/bin/python3.11", ("python3.11", "python3.11-venv", "python3.11-dev")
    version = {"24.04": "3.12", "12": "3.11"}[facts.system[1]]
    return f"/usr/bin/python{version}", ("python3", "python3-venv", "python3-dev")


def _driver(facts: Facts, options: Options) -> list[Step]:
    if options.driver:
        return [Step("driver", f"GPU driver {options.driver} (a restart may be needed)", f"packages {shlex.quote(options.driver)}")]  # fmt: skip
    if facts.has_pci_gpu and not facts.gpus:
        return [Step("driver", "GPU driver: missing, installed only on request", "warn 'there are NVIDIA devices and nvidia-smi lists none: --driver PACKAGE installs one'")]  # fmt: skip
    return []


def _directories(options: Options) -> list[Step]:
    rows = [("scratch", options.scratch, "1777"), ("durable", options.durable, "1777")]
    if options.shared:
        rows.append(("shared", options.shared, "1777"))
    for _, path, _ in rows:
        if not path.startswith("/") or shlex.quote(path) != path:
            raise SpecError(f"{path!r} is no directory for nodes", evidence="a whole path of plain letters")
    return [Step(name, f"{name} directory {path}", f"directory {path} {mode}") for name, path, mode in rows]


def _file(path: str, text: str) -> str:
    return f"put {path} 0644 <<'SEATRIAL_END'\n{text}SEATRIAL_END"


def _limits() -> str:
    return (
        "# RDMA locks what it sends from; the loader opens a file a worker and shard.\n"
        "* soft memlock unlimited\n* hard memlock unlimited\nroot soft memlock unlimited\nroot hard memlock unlimited\n"
        "* soft nofile 1048576\n* hard nofile 1048576\nroot soft nofile 1048576\nroot hard nofile 1048576\n"
    )


def _sysctl(facts: Facts) -> str:
    lines = [
        "# Ranks of many nodes meet at one port at once.",
        "net.core.somaxconn = 4096",
        "# Data sets of many mapped files.",
        "vm.max_map_count = 1048576",
    ]
    if facts.gpus:
        lines += [
            "# The kernel moves pages between sockets behind the back of pinned copies.",
            "kernel.numa_balancing = 0",
        ]
    return "\n".join(lines) + "\n"


def _site(s3: str | None) -> str:
    return f"defaults:\n  artifacts: {s3}\n"


def _venv(python: str, options: Options) -> str:
    package = shlex.quote(options.package)
    if options.package.endswith(".whl"):
        package = f"{STAGED}/{options.package.rpartition('/')[2]}"
    words = " ".join(shlex.quote(word) for word in options.pip)
    return f"venv {PREFIX} {python} {__version__} {package} {words}".rstrip()


def _unit(options: Options) -> str:
    runs = f"{options.shared}/runs" if options.shared else options.durable
    return (
        "[Unit]\nDescription=Seatrial's metrics of this node's runs and GPUs\nAfter=network.target\n\n[Service]\n"
        f"ExecStart={PYTHON} -m seatrial monitor export --runs-dir {runs}\nDynamicUser=yes\nProtectSystem=strict\nNoNewPrivileges=yes\nRestart=on-failure\n\n"
        "[Install]\nWantedBy=multi-user.target\n"
    )
