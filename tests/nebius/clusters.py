"""``seatrial cluster`` as a user types it: the real command, the real Terraform, the real SDK, and a simulated cloud."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from seatrial.provision.nebius.templates import Answers, cluster_yaml
from tests.nebius import provider
from tests.nebius.cloud import FakeCloud
from tests.nebius.recipe import write_recipe

TENANT, PROJECT, TOKEN = "tenant-e00a1", "project-e00b2", "t0k3n-of-the-test"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHUTZDHBmnGAyFKKSDMwHKJWxSZs4QmzWt2PrvvTGCuy me@here"
ROOT = Path(__file__).parents[2]
_TOOLS = {
    "nebius": "0.12.100",
    "kubectl": "v1.31.0",
    "jq": "jq-1.7",
    "yq": "yq (https://github.com/mikefarah/yq/) version v4.44.3",
}


@dataclass(frozen=True)
class Done:
    code: int
    stdout: str
    stderr: str
    took_s: float

    @property
    def said(self) -> str:
        return self.stdout + self.stderr


class Clusters:
    """A user's directory, with a recipe beside it."""

    def __init__(self, root: Path, cloud: FakeCloud, address: str, version: str = "1.22.3") -> None:
        self.root, self.cloud, self.address = root, cloud, address
        self.recipe = write_recipe(root / "library", version)
        self.home = root / "home"
        self.cwd = root / "here"
        for directory in (self.home, self.cwd, root / "bin"):
            directory.mkdir()
        for name, words in _TOOLS.items():
            (root / "bin" / name).write_text(f"#!/bin/sh\necho '{words}'\n")
            (root / "bin" / name).chmod(0o755)
        provider.install(root / "mirror", ROOT)
        (root / "terraform.rc").write_text(
            f'disable_checkpoint = true\nprovider_installation {{\n  filesystem_mirror {{\n    path = "{root / "mirror"}"\n  }}\n}}\n'
        )
        self.yaml = YAML()
        self.token = TOKEN

    @property
    def file(self) -> Path:
        return self.cwd / "cluster.yaml"

    def write(self, *changes: str, template: str = "2x8-h100", **more: Any) -> None:
        """``cluster.yaml`` of a template, with ``key.path=YAML`` laid over it."""
        answers = Answers(
            **{
                "name": "demo", "tenant": TENANT, "project": PROJECT, "region": "eu-north1", "ssh_key": KEY, "template": template,
                "fabric": "fabric-6", "recipe": str(self.recipe), **more,
            }
        )  # fmt: skip
        self.file.write_text(cluster_yaml(answers))
        self.edit("state={kind: local}", *changes)

    def edit(self, *changes: str) -> None:
        data = self.yaml.load(self.file.read_text())
        for change in changes:
            key, _, text = change.partition("=")
            *parents, last = [int(p) if p.isdigit() else p for p in key.split(".")]
            node = data
            for part in parents:
                node = node[part]
            value = YAML(typ="safe", pure=True).load(StringIO(text))
            if value == "DROP":
                del node[last]
            else:
                node[last] = value
        with self.file.open("w") as file:
            self.yaml.dump(data, file)

    def environment(self, **more: str) -> dict[str, str]:
        found = {
            **os.environ, "PATH": f"{self.root / 'bin'}:{os.environ['PATH']}", "HOME": str(self.home), "XDG_DATA_HOME": str(self.home / "data"),
            "XDG_CONFIG_HOME": str(self.home / "config"), "XDG_CACHE_HOME": str(self.home / "cache"), "TF_CLI_CONFIG_FILE": str(self.root / "terraform.rc"),
            "FAKE_NEBIUS": str(self.cloud.path), "SEATRIAL_NEBIUS": self.address, "NEBIUS_IAM_TOKEN": self.token, "COLUMNS": "160", "PYTHONPATH": str(ROOT / "src"),
        }  # fmt: skip
        found.pop("SEATRIAL_CONFIG", None)
        return {**found, **more}

    def __call__(self, *words: str, timeout: float = 240, **env: str) -> Done:
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "seatrial", "cluster", *words], cwd=self.cwd, env=self.environment(**env), capture_output=True, text=True,
            timeout=timeout, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert "Traceback (most recent call last)" not in done.stdout + done.stderr, done.stderr
        return Done(done.returncode, done.stdout, done.stderr, time.monotonic() - began)

    def start(self, *words: str, **env: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "seatrial", "cluster", *words], cwd=self.cwd, env=self.environment(**env), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    @property
    def work(self) -> Path:
        return self.home / "data" / "seatrial" / "clusters" / "demo"

    def terraform_pid(self) -> int:
        return int(json.loads((self.work / "private" / "terraform.pid").read_text())["pid"])

    def names(self, kind: str) -> set[str]:
        return {row.name for row in self.cloud.things(kind)}


def until(condition: Callable[[], Any], timeout_s: float = 120) -> Any:
    end = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)
    return found


def has_terraform() -> bool:
    return shutil.which("terraform") is not None
