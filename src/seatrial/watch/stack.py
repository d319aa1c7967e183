"""Prometheus and Alertmanager of this machine, with Seatrial's rules, in a directory of their own and on loopback."""

from __future__ import annotations

import io
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import psutil
from ruamel.yaml import YAML

from seatrial import command
from seatrial.errors import PlatformError, SpecError
from seatrial.runs.files import read_json, write_json, write_text

_READY_S = 30.0
_END_S = 15.0
_PROGRAMS = {"prometheus": ("prometheus",), "alertmanager": ("alertmanager", "prometheus-alertmanager")}
_INSTALL = (
    "apt install prometheus prometheus-alertmanager    (Debian, Ubuntu), or https://prometheus.io/download"
)
_PARTS = (
    "rules/recording.yml",
    "rules/alerts.yml",
    "alertmanager/alertmanager.yml",
    "prometheus/prometheus.yml",
)


def files() -> Path:
    """Where configuration, rules and dashboards lie: in the package, or beside it in a checkout.

    Raises:
        PlatformError: neither has them.
    """
    packaged = Path(str(resources.files("seatrial"))) / "deploy" / "monitoring"
    for path in (packaged, Path(__file__).parents[3] / "deploy" / "monitoring"):
        if (path / "rules" / "alerts.yml").is_file():
            return path
    raise PlatformError(
        "the files of the monitoring stack are missing",
        evidence=str(packaged),
        remedy="install Seatrial anew",
    )


@dataclass(frozen=True, slots=True)
class Stack:
    """What runs in a directory.

    Args:
        directory: configuration, data, logs, and the record of what was started.
    """

    directory: Path

    @property
    def _record(self) -> Path:
        return self.directory / "stack.json"

    def up(
        self, targets: Sequence[str], dcgm: Sequence[str], port: int, alertmanager_port: int
    ) -> dict[str, str]:
        """Starts both and waits until they answer; their addresses by name.

        Args:
            targets: exporters of Seatrial, ``host:port``.
            dcgm: dcgm-exporters, ``host:port``.
            port: of Prometheus.
            alertmanager_port: of Alertmanager.

        Raises:
            PlatformError: a program is missing, does not start, or its port is taken.
            SpecError: the directory is somebody else's, or a stack runs in it.
        """
        programs = {name: _program(name) for name in _PROGRAMS}
        if any(state.startswith("runs") for state in self.status().values()):
            raise SpecError(
                "a stack runs there already",
                evidence=str(self.directory),
                remedy=f"seatrial monitor stack down --dir {self.directory}",
            )
        # The programs run in it, and would look for a relative one below it.
        place = self.directory.absolute()
        self._prepare(targets, dcgm, alertmanager_port)
        base, am = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{alertmanager_port}"
        argvs = {
            "prometheus": [programs["prometheus"], f"--config.file={place}/prometheus.yml",
                           f"--storage.tsdb.path={place}/data/prometheus", f"--web.listen-address=127.0.0.1:{port}"],
            "alertmanager": [programs["alertmanager"], f"--config.file={place}/alertmanager.yml",
                             f"--storage.path={place}/data/alertmanager",
                             f"--web.listen-address=127.0.0.1:{alertmanager_port}", "--cluster.listen-address="],
        }  # fmt: skip
        urls = {"prometheus": base, "alertmanager": am}
        for name, url in urls.items():
            if _answers(url):
                raise PlatformError(f"something answers at {url} already", remedy=f"another port for {name}")
        try:
            for name, argv in argvs.items():
                process = command.start(
                    argv, log=self.directory / "log" / f"{name}.log", env=os.environ, cwd=self.directory
                )
                self._note(name, process.pid, urls[name])
                self._wait(name, process, urls[name])
        except BaseException:
            self.down()
            raise
        return urls

    def down(self) -> list[str]:
        """Ends what was started here, and only that: a process of the same number that is another one stays."""
        ended = []
        for name, row in self._rows().items():
            process = _living(row)
            if process is not None:
                process.terminate()
                try:
                    process.wait(_END_S)
                except psutil.TimeoutExpired:
                    process.kill()
                ended.append(name)
        self._record.unlink(missing_ok=True)
        return ended

    def status(self) -> dict[str, str]:
        """By name: ``runs: URL``, ``does not answer: URL`` or ``gone``."""
        found = {}
        for name, row in self._rows().items():
            word = "gone" if _living(row) is None else "runs" if _answers(row["url"]) else "does not answer"
            found[name] = word if word == "gone" else f"{word}: {row['url']}"
        return found

    def _rows(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = (read_json(self._record) or {}).get("processes", {})
        return found

    def _note(self, name: str, pid: int, url: str) -> None:
        row = {"pid": pid, "started": psutil.Process(pid).create_time(), "url": url}
        write_json(self._record, {"schema": 1, "processes": self._rows() | {name: row}})

    def _prepare(self, targets: Sequence[str], dcgm: Sequence[str], alertmanager_port: int) -> None:
        if (
            self.directory.exists()
            and any(self.directory.iterdir())
            and not (self.directory / "prometheus.yml").exists()
        ):
            raise SpecError(
                f"{self.directory} has other files in it", evidence=sorted(p.name for p in self.directory.iterdir())[0],
                remedy="--dir with an empty or a new directory",
            )  # fmt: skip
        for name in ("rules", "log", "data/prometheus", "data/alertmanager"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        source = files()
        for part in _PARTS[:2]:
            shutil.copyfile(source / part, self.directory / part)
        if not (self.directory / "alertmanager.yml").exists():
            shutil.copyfile(
                source / _PARTS[2], self.directory / "alertmanager.yml"
            )  # once: it is for people to change
        write_text(
            self.directory / "prometheus.yml",
            configuration((source / _PARTS[3]).read_text(), targets, dcgm, alertmanager_port),
        )

    def _wait(self, name: str, process: command.Process, url: str) -> None:
        until = time.monotonic() + _READY_S
        while not _answers(url):
            if process.poll() is not None or time.monotonic() > until:
                log = self.directory / "log" / f"{name}.log"
                last = "\n".join(log.read_text(errors="replace").splitlines()[-5:]) if log.exists() else ""
                raise PlatformError(
                    f"{name} did not start",
                    evidence=last,
                    remedy=f"look into {log}; a port that is taken: --port",
                )
            time.sleep(0.1)


def configuration(text: str, targets: Sequence[str], dcgm: Sequence[str], alertmanager_port: int) -> str:
    """Prometheus's configuration with these targets."""
    yaml = YAML()
    data = yaml.load(text)
    for job in data["scrape_configs"]:
        job["static_configs"][0]["targets"] = list(targets if job["job_name"] == "seatrial" else dcgm)
    data["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{alertmanager_port}"]
    out = io.StringIO()
    yaml.dump(data, out)
    return out.getvalue()


def _program(name: str) -> str:
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/bin"])
    for each in _PROGRAMS[name]:
        if found := shutil.which(each, path=path):
            return found
    raise PlatformError(
        f"{name} is not installed", evidence=f"no {' or '.join(_PROGRAMS[name])} on PATH", remedy=_INSTALL
    )


def _living(row: dict[str, Any]) -> psutil.Process | None:
    try:
        process = psutil.Process(row["pid"])
        same = abs(process.create_time() - row["started"]) < 1 and process.status() != psutil.STATUS_ZOMBIE
        return process if same else None
    except psutil.Error:
        return None


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/-/ready", timeout=2) as answer:  # noqa: S310 - loopback
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False
