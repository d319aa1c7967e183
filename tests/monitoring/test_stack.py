"""A real Prometheus and Alertmanager that `seatrial monitor stack up` starts, and the real exporter that they scrape."""

from __future__ import annotations

import http.server
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from seatrial.errors import PlatformError, SpecError
from seatrial.runs.files import read_json
from seatrial.watch import stack as stacks
from seatrial.watch.stack import Stack, files

from .conftest import Prometheus, free_port, running, until

pytestmark = pytest.mark.integration
Start = Callable[..., Prometheus]


@pytest.fixture
def exporter(tmp_path: Path) -> Iterator[str]:
    """The real exporter over two runs with 16 and 8 GPUs; its address."""
    pytest.importorskip("prometheus_client", reason="needs prometheus-client")
    running(tmp_path / "runs", "busy", nodes=2)
    running(tmp_path / "runs", "idle", nodes=1, use=1.0)
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "seatrial", "monitor", "export", "--port", str(port), "--runs-dir", str(tmp_path / "runs")],
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None and "serving" in process.stderr.readline()
    yield f"127.0.0.1:{port}"
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    process.stderr.close()


def quicken(prometheus: Prometheus) -> None:
    """Everything each second, alerts at once."""
    place = prometheus.stack.directory
    for path in (place / "prometheus.yml", *(place / "rules").glob("*.yml")):
        text = re.sub(r"interval: 15s", "interval: 1s", path.read_text())
        path.write_text(re.sub(r"\bfor: \d+m", "for: 0s", text))
    os.kill(read_json(place / "stack.json")["processes"]["prometheus"]["pid"], signal.SIGHUP)


def test_the_exporter_is_scraped_and_every_query_of_every_dashboard_returns_data(
    stack: Start, exporter: str
) -> None:
    prometheus = stack(exporter)
    quicken(prometheus)
    until(60, lambda: prometheus.query("cluster:gpus_wasted:sum"))
    assert prometheus.query("count(gpu:sm_active:ratio)")[0]["value"][1] == "24"
    use = {
        row["metric"]["seatrial_run"]: float(row["value"][1]) for row in prometheus.query("run:gpu_use:avg")
    }
    assert use == pytest.approx({"busy": 0.6, "idle": 0.01})
    assert prometheus.query('gpu:owner:info{hpc_job="77"}') and not prometheus.query('{Hostname!=""}'), (
        "one label for the host"
    )
    empty = []
    for path in sorted((files() / "dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                expression = re.sub(r"\$\w+", ".*", target["expr"].replace("$__rate_interval", "1m"))
                prometheus.get("format_query", query=expression)
                if not prometheus.query(expression):
                    empty.append(f"{path.stem}: {panel['title']}: {expression}")
    # These runs went by no acceptance test.
    assert [row for row in empty if "mfu_of_measured" not in row] == []


class Webhook(http.server.BaseHTTPRequestHandler):
    got: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        self.got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        return


class Empty(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        return


def test_an_alert_goes_all_the_way_to_a_webhook_and_is_resolved(stack: Start, exporter: str) -> None:
    """The exporter and one address where nothing is; then Alertmanager tells whoever listens."""
    dead = f"127.0.0.1:{free_port()}"
    prometheus = stack(exporter, dead)
    hook = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Webhook)
    threading.Thread(target=hook.serve_forever, daemon=True).start()
    try:
        place = prometheus.stack.directory
        (place / "alertmanager.yml").write_text(
            "route: {receiver: test, group_wait: 0s, group_interval: 1s, group_by: [alertname]}\n"
            f"receivers: [{{name: test, webhook_configs: [{{url: 'http://127.0.0.1:{hook.server_port}/'}}]}}]\n"
        )
        os.kill(read_json(place / "stack.json")["processes"]["alertmanager"]["pid"], signal.SIGHUP)
        quicken(prometheus)

        def told(status: str) -> list[dict[str, Any]]:
            return [
                a
                for m in Webhook.got
                for a in m["alerts"]
                if a["labels"]["alertname"] == "ExporterDown" and a["status"] == status
            ]

        alert = until(60, lambda: told("firing"))[0]
        assert alert["labels"]["instance"] == dead and "does not answer" in alert["annotations"]["summary"]
        back = http.server.ThreadingHTTPServer(("127.0.0.1", int(dead.rpartition(":")[2])), Empty)
        threading.Thread(target=back.serve_forever, daemon=True).start()
        try:
            assert until(60, lambda: told("resolved"))[0]["labels"]["instance"] == dead
        finally:
            back.shutdown()
            back.server_close()
    finally:
        hook.shutdown()
        hook.server_close()


DCGM = """# TYPE DCGM_FI_DEV_GPU_UTIL gauge
DCGM_FI_DEV_GPU_UTIL{gpu="0",UUID="U0",%s="n1",exported_pod="train-0",exported_namespace="ml"} 80
"""


@pytest.mark.parametrize("label", ["Hostname", "hostname"])
def test_labels_of_old_and_new_dcgm_exporters_come_out_alike(stack: Start, label: str) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = (DCGM % label).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        prometheus = stack(dcgm=[f"127.0.0.1:{server.server_port}"])
        quicken(prometheus)
        (row,) = until(60, lambda: prometheus.query("DCGM_FI_DEV_GPU_UTIL"))
        known = {
            key: row["metric"].get(key)
            for key in ("hostname", "pod", "namespace", "Hostname", "exported_pod")
        }
        assert known == {
            "hostname": "n1",
            "pod": "train-0",
            "namespace": "ml",
            "Hostname": None,
            "exported_pod": None,
        }
        until(60, lambda: prometheus.query('pod:gpu_use:avg{pod="train-0"} == 0.8'))
    finally:
        server.shutdown()
        server.server_close()


def test_up_and_down_touch_what_is_theirs_alone(stack: Start, tmp_path: Path) -> None:
    prometheus = stack("127.0.0.1:1")
    place = prometheus.stack.directory
    assert all(state.startswith("runs: http://127.0.0.1:") for state in prometheus.stack.status().values())
    with pytest.raises(SpecError, match="a stack runs there already"):
        Stack(place).up([], [], free_port(), free_port())
    taken = int(prometheus.urls["prometheus"].rpartition(":")[2])
    with pytest.raises(PlatformError, match="something answers"):
        Stack(tmp_path / "other").up([], [], taken, free_port())
    assert Stack(place).down() == ["prometheus", "alertmanager"] and Stack(place).status() == {}
    assert (place / "data/prometheus").is_dir(), "what was measured stays"


def test_a_relative_directory_will_do(real: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    stack = Stack(Path("here"))
    try:
        stack.up([], [], free_port(), free_port())
        assert all(state.startswith("runs") for state in stack.status().values())
    finally:
        stack.down()


def test_a_directory_of_somebody_else_is_refused(real: None, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(SpecError, match="has other files"):
        Stack(tmp_path).up([], [], free_port(), free_port())
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_number_that_another_process_has_now_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "stack.json").write_text(
        json.dumps(
            {
                "schema": 1,
                "processes": {
                    "prometheus": {"pid": os.getpid(), "started": 1.0, "url": "http://127.0.0.1:1"}
                },
            }
        )
    )
    assert Stack(tmp_path).status() == {"prometheus": "gone"} and Stack(tmp_path).down() == []


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(stacks.shutil, "which", lambda name, path: None)
    with pytest.raises(PlatformError, match="prometheus is not installed") as error:
        Stack(tmp_path / "s").up([], [], 1, 2)
    assert "apt install prometheus" in error.value.remedy and not (tmp_path / "s").exists()
