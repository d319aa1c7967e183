"""The commands of the README, run one after the other in one directory, as a newcomer would."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from seatrial.testing import FakeKubernetes
from tests.slurm.cluster import SlurmCluster

from .conftest import Seatrial

README = Path(__file__).parents[2] / "README.md"


def commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", README.read_text(), re.S)
    lines = [line.partition("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line.removeprefix("seatrial ") for line in lines if line.startswith("seatrial ")]


@pytest.fixture
def in_pods(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a user of a pretend cluster."""
    directory = tmp_path_factory.mktemp("cluster").resolve()
    site = {"image": "here", "claim": "runs", "path": f"{directory}/volume", "python": sys.executable}
    (directory / "config.yaml").write_text(json.dumps({"defaults": {"kubernetes": site}}))
    with FakeKubernetes(directory / "kubernetes") as cluster:
        cluster.add_claim("runs")
        yield {"KUBECONFIG": str(cluster.kubeconfig), "SEATRIAL_CONFIG": str(directory / "config.yaml")}


@pytest.mark.timeout(1800)
def test_every_command_of_the_readme_does_what_it_says(
    seatrial: Seatrial,
    recipe: Callable[..., str],
    reviews: Path,
    encoder: Path,
    request: pytest.FixtureRequest,
) -> None:
    shutil.copy(reviews, seatrial.cwd / "reviews.csv")
    shutil.copy(reviews, seatrial.cwd / "other.csv")
    Path(seatrial.cwd, recipe(epochs=4)).rename(seatrial.cwd / "recipe.yaml")
    (seatrial.cwd / "train.py").write_text("import sys; assert sys.argv[1:] == ['--lr', '1']\n")
    whole = seatrial("train", "recipe.yaml", "--name", "whole")
    assert whole.code == 0, whole.stderr
    for name in ("original", "trained"):
        shutil.copy(whole.run.predictions(name), seatrial.cwd / f"{name}.parquet")
    killed = seatrial("train", "recipe.yaml", "--name", "killed", fault="kill:rank=1,step=17")
    assert killed.code == 4

    assert len(commands()) > 10
    for line in commands():
        run = "killed" if "resume" in line else "whole"
        line = line.replace("DIRECTORY_OR_HUB_ID", str(encoder)).replace(" RUN", f" {run}")
        if "--on ssh://" in line:
            continue  # a login node takes more than a line: test_outside.py
        if line.startswith(("cluster ", "node ")) or "--on hosts" in line:
            continue  # clouds and machines take more: tests/nebius, tests/nodes, test_hosts.py
        if "--rehearse" in line:
            continue  # minutes of it: test_check.py
        if "--on slurm" in line:
            if SlurmCluster.unavailable():
                continue
            request.getfixturevalue("slurm")
            line = line.replace("--gpus 8", "--gpus 0")  # its GPUs are pretend
        line = line.replace(
            "s3://bucket", str(seatrial.cwd / "mount")
        )  # a server takes more, too: test_releases.py
        environment: dict[str, str] = {}
        if "--on k8s" in line:
            pytest.importorskip("kubernetes", reason="the extra 'k8s' is not installed")
            environment = request.getfixturevalue("in_pods")
            line = line.replace("--gpus 8", "--gpus 0")
        done = seatrial(*shlex.split(line), **environment)
        # Whether three epochs at the default learning rate make a random model better is not the README's claim.
        allowed = {0, 1} if "reviews.csv" in line else {0}
        assert done.code in allowed, f"seatrial {line}\n{done.stderr}"
        if "--json" in line:
            assert json.loads(done.stdout)["verdict"]["verdict"] == "better"
