"""The exporter as a process: scraped, over TLS, with a port that is taken, ended by Ctrl-C."""

from __future__ import annotations

import datetime
import os
import signal
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.monitoring.conftest import free_port, running

pytest.importorskip("prometheus_client", reason="needs prometheus-client")


@contextmanager
def exporting(tmp_path: Path, *words: str) -> Iterator[int]:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "seatrial", "monitor", "export", "--port", str(port), "--runs-dir", str(tmp_path / "runs"), *words],
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None and "serving" in process.stderr.readline()
        yield port
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        process.stderr.close()  # type: ignore[union-attr]


def certificate(directory: Path, name: str) -> tuple[Path, Path]:
    """A certificate that signs itself for the loopback, and its key."""
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    begin = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)
    made = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(begin).not_valid_after(begin + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True).sign(key, hashes.SHA256())
    )  # fmt: skip
    cert, private = directory / f"{name}.pem", directory / f"{name}.key"
    cert.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return cert, private


def scrape(url: str, context: ssl.SSLContext | None = None) -> str:
    with urllib.request.urlopen(url, timeout=20, context=context) as answer:
        return str(answer.read().decode())


def test_sixteen_gpus_are_scraped_by_several_at_once(tmp_path: Path) -> None:
    running(tmp_path / "runs", "busy")
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "manifest.json").write_text("{")
    with exporting(tmp_path) as port, ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: scrape(f"http://127.0.0.1:{port}/metrics"), range(8)))
    for answer in answers:
        assert answer.count("\nDCGM_FI_PROF_SM_ACTIVE{") == 16
        assert (
            'seatrial_run_cause_info{attempt="0",cause="data-bound",name="reviews",run="busy"} 1.0' in answer
        )
        assert "seatrial_exporter_runs 1.0" in answer


def test_tls_and_certificates_of_clients(tmp_path: Path) -> None:
    running(tmp_path / "runs", "busy", nodes=1, gpus=1)
    cert, key = certificate(tmp_path, "server")
    client_cert, client_key = certificate(tmp_path, "client")
    with exporting(
        tmp_path, "--certfile", str(cert), "--keyfile", str(key), "--client-ca", str(client_cert)
    ) as port:
        url = f"https://127.0.0.1:{port}/metrics"
        known = ssl.create_default_context(cafile=str(cert))
        with pytest.raises((urllib.error.URLError, ssl.SSLError, OSError)):
            scrape(url, known)
        known.load_cert_chain(client_cert, client_key)
        assert "seatrial_run_info" in scrape(url, known)
        with pytest.raises(urllib.error.URLError):
            scrape(url, ssl.create_default_context())


def test_a_port_that_is_taken_is_an_error_in_three_parts(tmp_path: Path) -> None:
    with exporting(tmp_path) as port:
        done = subprocess.run(
            [sys.executable, "-m", "seatrial", "monitor", "export", "--port", str(port), "--runs-dir", str(tmp_path)],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    assert (
        done.returncode == 4 and f"127.0.0.1:{port} can't be served" in done.stderr and "next:" in done.stderr
    )
    assert "Traceback" not in done.stderr


def test_one_answer_without_a_server(tmp_path: Path) -> None:
    running(tmp_path / "runs", "busy", nodes=2, gpus=2)
    done = subprocess.run(
        [sys.executable, "-m", "seatrial", "monitor", "export", "--once", "--node", "busy-n1", "--runs-dir", str(tmp_path / "runs")],
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.count("\nDCGM_FI_DEV_GPU_TEMP{") == 2
    assert 'Hostname="busy-n1"' in done.stdout and "busy-n0" not in done.stdout
