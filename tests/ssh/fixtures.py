"""A login node of the test cluster, for tests that come from outside."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import SlurmCluster
from tests.ssh.sshd import Sshd


@pytest.fixture
def login(
    slurm_plain: SlurmCluster,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Sshd]:
    """The login node of a cluster whose Slurm only sessions on it can use. Recipes need no more than ``--on ssh://login``.

    Its directory on the cluster is ``tmp_path / "cluster"``.
    """
    if reason := Sshd.unavailable():
        pytest.skip(reason)
    there = {
        **slurm_plain.env, "HF_HUB_OFFLINE": "1", "SEATRIAL_CONFIG": os.devnull, "PATH": slurm_plain.environment()["PATH"],
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "SEATRIAL_CACHE": str(tmp_path_factory.mktemp("cache")),
    }  # fmt: skip
    with Sshd(there) as login:
        config = tmp_path / "config.yaml"
        config.write_text(
            f"defaults: {{slurm: {{remote: {{python: {sys.executable}, directory: {tmp_path / 'cluster'}}}}}}}"
        )
        for name in slurm_plain.env:
            monkeypatch.delenv(name)
        for name, value in {**login.env, "SEATRIAL_CONFIG": str(config)}.items():
            monkeypatch.setenv(name, value)
        yield login
