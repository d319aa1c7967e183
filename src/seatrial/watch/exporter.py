"""The Prometheus exporter: looks at the runs of a directory when it is asked, and serves what it sees."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from seatrial.errors import PlatformError, SeatrialError, SpecError
from seatrial.runs.index import UNREADABLE, Index
from seatrial.runs.paths import RunPaths
from seatrial.runs.state import RunState
from seatrial.watch.exposition import Family, families
from seatrial.watch.picture import Picture

ENDED_FOR_S = 600.0
"""A run that is over is told of for so long, so that its end is seen."""
_FRESH_S = 1.0
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


class Exporter:
    """A collector for `prometheus_client`; scrapes that come close together share one look.

    Args:
        root: where runs live.
        look: makes a picture of one.
        node: only devices of this host; None is all.
        clock: seconds since the epoch.
    """

    def __init__(
        self, root: Path, look: Callable[[RunPaths], Picture], node: str | None = None, clock: Callable[[], float] = time.time
    ) -> None:  # fmt: skip
        self._root = root
        self._look = look
        self._node = node
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: tuple[float, list[Family]] | None = None

    def collect(self) -> Iterator[Any]:
        """As `prometheus_client` asks a collector; the names are exact, also those of counters."""
        from prometheus_client.core import Metric

        for family in self.families():
            metric = Metric(family.name, family.help, family.kind)
            for labels, value in family.samples:
                metric.add_sample(family.name, labels, value)
            yield metric

    def families(self) -> list[Family]:
        """What there is to tell now."""
        with self._lock:
            now = self._clock()
            if self._seen is None or now - self._seen[0] >= _FRESH_S:
                self._seen = (now, self._now(now))
            return self._seen[1]

    def _now(self, now: float) -> list[Family]:
        began = time.perf_counter()
        pictures, jobs, unreadable = [], {}, 0
        for paths in active_runs(self._root, now):
            try:
                picture = self._look(paths)
            except (SeatrialError, *UNREADABLE):
                unreadable += 1  # one bad run hides no other
                continue
            pictures.append(picture)
            if picture.handle.startswith("slurm://"):
                jobs[paths.run_id] = picture.handle.removeprefix("slurm://").split("/")[0]
        found = families(pictures, jobs, self._node)
        waiting = sum(p.state in ("pending", "submitting") for p in pictures)
        own = [
            ("seatrial_exporter_runs", "Runs that are told of.", len(pictures)),
            ("seatrial_exporter_unreadable_runs", "Runs that could not be read.", unreadable),
            ("seatrial_exporter_scrape_seconds", "Time that this look took.", time.perf_counter() - began),
            ("seatrial_queue_pending", "Runs that wait to start.", waiting),
        ]
        if self._root.is_dir():
            disk = shutil.disk_usage(self._root)
            own += [("seatrial_run_root_free_bytes", "Free where runs are written.", disk.free),
                    ("seatrial_run_root_size_bytes", "Size of the file system of the runs.", disk.total)]  # fmt: skip
        return found + [Family(name, text, samples=[({}, float(value))]) for name, text, value in own]


def active_runs(root: Path, now: float) -> list[RunPaths]:
    """Runs that are not over, or ended a moment ago; by the index, so that a hundred thousand old ones cost next to nothing."""
    if not root.is_dir():
        return []
    going = [str(state) for state in RunState if not state.is_terminal]
    since = datetime.fromtimestamp(now - ENDED_FOR_S, UTC).isoformat(timespec="milliseconds")
    index = Index(root)
    try:
        where = f"state IN ({', '.join('?' * len(going))}) OR ended >= ?"
        return [RunPaths(root / row["run_id"]) for row in index.rows(where, (*going, since))]
    finally:
        index.close()


def serve(exporter: Exporter, address: str, port: int, *, certificate: Path | None = None, key: Path | None = None,
          clients: Path | None = None, insecure: bool = False) -> Callable[[], None]:  # fmt: skip
    """Serves until the function that is returned is called.

    Args:
        exporter: what is asked.
        address: of this machine; other than a loopback only with a certificate, or `insecure`.
        port: TCP port.
        certificate: PEM file; with it, TLS alone is spoken.
        key: of the certificate.
        clients: PEM file of whoever may sign the certificates that clients must then show.
        insecure: names of runs and machines may be read by whoever reaches the port.

    Raises:
        SpecError: the address is open to others, and nothing protects it; a certificate without its key.
        PlatformError: the port can't be had, or prometheus_client is not installed.
    """
    if address not in _LOOPBACK and certificate is None and not insecure:
        raise SpecError(
            f"{address} can be reached by others, without encryption",
            evidence="the names of runs, machines and users would be open to them",
            remedy="--certfile cert.pem --keyfile key.pem, or --insecure where the network is trusted",
        )
    if (certificate is None) != (key is None):
        raise SpecError(
            "a certificate and its key go together", remedy="--certfile cert.pem --keyfile key.pem"
        )
    for path in (certificate, key, clients):
        if path is not None and not path.is_file():
            raise SpecError(f"there is no file {path}")
    start, registry = _library(exporter)
    more: dict[str, Any] = {} if certificate is None else {"certfile": str(certificate), "keyfile": str(key)}
    if clients is not None:
        more |= {"client_cafile": str(clients), "client_auth_required": True}
    try:
        server, thread = start(port, addr=address, registry=registry, **more)
    except OSError as error:
        raise PlatformError(
            f"{address}:{port} can't be served",
            evidence=str(error),
            remedy="--port with another number, or end what has it",
        ) from error

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return stop


def text(exporter: Exporter) -> str:
    """One answer, in Prometheus's text format."""
    _, registry = _library(exporter)
    from prometheus_client import generate_latest

    return str(generate_latest(registry).decode())


def _library(exporter: Exporter) -> tuple[Any, Any]:
    try:
        from prometheus_client import CollectorRegistry, start_http_server
    except ImportError as error:
        raise PlatformError(
            "prometheus_client is not installed",
            evidence=str(error),
            remedy="pip install 'seatrial[monitor]'",
        ) from error
    registry = CollectorRegistry(auto_describe=False)  # its names are known when it is asked, not before
    registry.register(exporter)
    return start_http_server, registry
