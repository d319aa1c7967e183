"""Process 1 of a node in namespaces: sets its name, files and address, then reaps orphans until it is killed.

Started as a script in ``unshare``; the standard library is all it needs.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path


def main(directory: str, name: str, address: str, gateway: str, memory: str) -> None:
    """Sets the node up and stays.

    Args:
        directory: the cluster's.
        name: the node's.
        address: the node's, in a /24.
        gateway: the bridge's address.
        memory: the cgroup that the node sees as the root of its memory cgroups; "" for none.
    """
    socket.sethostname(name)
    binds = [(f"{directory}/hosts", "/etc/hosts"), (f"{directory}/resolv.conf", "/etc/resolv.conf")]
    if memory:
        binds.append((memory, "/sys/fs/cgroup/memory"))
    for source, target in binds:
        if Path(target).exists():
            subprocess.run(["mount", "--bind", source, target], check=True)
    until = time.monotonic() + 20
    while all(interface != "eth0" for _, interface in socket.if_nameindex()):
        if time.monotonic() > until:
            sys.exit("no network link came")
        time.sleep(0.01)
    orders = [
        "link set lo up",
        f"addr add {address}/24 dev eth0",
        "link set eth0 up",
        f"route add default via {gateway}",
    ]
    subprocess.run(["ip", "-batch", "-"], input="\n".join(orders), text=True, check=True)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    Path(directory, "run", f"{name}.ready").touch()
    while True:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass
        signal.sigtimedwait({signal.SIGCHLD}, 5)


if __name__ == "__main__":
    main(*sys.argv[1:])
