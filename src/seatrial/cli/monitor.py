"""``seatrial monitor``: an exporter for Prometheus, and a Prometheus with its rules on this machine."""

from __future__ import annotations

import signal
import time
from functools import partial
from pathlib import Path

import click


@click.group()
def monitor() -> None:
    """Prometheus: export runs and GPUs, or start a whole stack on this machine."""


@monitor.command()
@click.option("--address", default="127.0.0.1", show_default=True, help="Of this machine, to listen on.")
@click.option("--port", default=9431, show_default=True, type=click.IntRange(0, 65535), help="TCP port.")
@click.option("--node", help="Only the devices of this host; `.` is this one.")
@click.option("--certfile", type=click.Path(path_type=Path), help="Speak TLS with this certificate (PEM).")
@click.option("--keyfile", type=click.Path(path_type=Path), help="Its key (PEM).")
@click.option(
    "--client-ca",
    type=click.Path(path_type=Path),
    help="Serve only clients whose certificate this one has signed.",
)
@click.option("--insecure", is_flag=True, help="Listen on an address that others reach, without TLS.")
@click.option("--once", is_flag=True, help="Print one answer, and no more.")
@click.option(
    "--runs-dir", type=click.Path(path_type=Path), help="Where runs live [$SEATRIAL_RUNS_DIR, ./runs]."
)
def export(
    address: str, port: int, node: str | None, certfile: Path | None, keyfile: Path | None, client_ca: Path | None, insecure: bool,
    once: bool, runs_dir: Path | None,
) -> int:  # fmt: skip
    """Serve the metrics of the runs of a directory, and of the GPUs that they have, until Ctrl-C."""
    import socket

    from seatrial.check.floors import peak_tflops
    from seatrial.runs.paths import runs_dir as default_runs_dir
    from seatrial.watch.exporter import Exporter, serve, text
    from seatrial.watch.look import look

    root = default_runs_dir(runs_dir)
    exporter = Exporter(
        root,
        partial(look, peak=peak_tflops, last_bytes=32 * 1024),
        socket.gethostname() if node == "." else node,
    )
    if once:
        click.echo(text(exporter), nl=False)
        return 0
    stop = serve(
        exporter, address, port, certificate=certfile, key=keyfile, clients=client_ca, insecure=insecure
    )
    click.echo(
        f"serving {root} on {'https' if certfile else 'http'}://{address}:{port}/metrics    (Ctrl-C ends it)",
        err=True,
    )
    done: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: done.append(number))
    try:
        while not done:
            time.sleep(0.2)
    except KeyboardInterrupt:
        pass
    stop()
    return 0


@monitor.group()
def stack() -> None:
    """Prometheus and Alertmanager on this machine, from its own programs, with Seatrial's rules."""


DIRECTORY = click.option(
    "--dir", "directory", type=click.Path(path_type=Path), required=True, help="Configuration, data and logs."
)


@stack.command()
@DIRECTORY
@click.option(
    "--targets",
    default="127.0.0.1:9431",
    show_default=True,
    help="Exporters, HOST:PORT, separated by commas.",
)
@click.option("--dcgm", default="", help="dcgm-exporters, HOST:PORT, separated by commas.")
@click.option(
    "--port",
    default=9090,
    show_default=True,
    type=click.IntRange(1, 65535),
    help="Of Prometheus, on loopback.",
)
@click.option(
    "--alertmanager-port",
    default=9093,
    show_default=True,
    type=click.IntRange(1, 65535),
    help="Of Alertmanager, on loopback.",
)
def up(directory: Path, targets: str, dcgm: str, port: int, alertmanager_port: int) -> int:
    """Start both, and wait until they answer."""
    from seatrial.watch.stack import Stack

    started = Stack(directory).up(
        [t for t in targets.split(",") if t], [t for t in dcgm.split(",") if t], port, alertmanager_port
    )
    for name, url in started.items():
        click.echo(f"{name}: {url}")
    click.echo(f"end them: seatrial monitor stack down --dir {directory}", err=True)
    return 0


@stack.command()
@DIRECTORY
def down(directory: Path) -> int:
    """End what `up` started there; its data stays."""
    from seatrial.watch.stack import Stack

    for name in Stack(directory).down():
        click.echo(f"{name}: ended")
    return 0


@stack.command()
@DIRECTORY
def status(directory: Path) -> int:
    """What of it runs. Exit code 4 when something that was started does not."""
    from seatrial.errors import ExitCode
    from seatrial.watch.stack import Stack

    states = Stack(directory).status()
    for name, state in states.items():
        click.echo(f"{name}: {state}")
    return int(
        ExitCode.OK if all(state.startswith("runs") for state in states.values()) else ExitCode.PLATFORM
    )
