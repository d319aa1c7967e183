"""Requests that can't be met, and surroundings that are hostile: said in Slurm's words, and nothing is left running."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from seatrial.job.link import CHECK_IN_S
from tests.integration.conftest import Seatrial
from tests.slurm import processes
from tests.slurm.attached import Attached, job_of
from tests.slurm.cluster import SlurmCluster

ON = "run", "--on", "slurm", "--gpus", "0", "--nproc", "1", "--launcher", "warm"
NOBODY = 65534


@pytest.fixture
def script(tmp_path: Path) -> str:
    (tmp_path / "s.py").write_text("print('it ran', flush=True)\n")
    return "s.py"


def queue(slurm: SlurmCluster) -> list[str]:
    return slurm.run("squeue", "-h", "-o", "%A").stdout.split()


class TestRefused:
    def test_without_slurm(self, seatrial: Seatrial, script: str, tmp_path: Path) -> None:
        done = seatrial(*ON, "--", script, PATH=str(tmp_path))
        assert done.code == 4
        assert "can't be started here" in done.stderr and "login node" in done.stderr
        assert not seatrial.runs_dir.exists()

    @pytest.mark.parametrize(
        ("words", "config", "said"),
        [
            (["--partition", "gpus"], "", ["no partition gpus", "main, low, spot, high, short"]),
            (["--account", "theirs"], "", ["account theirs is not one of yours", "test"]),
            (["--qos", "gold"], "", ["QOS gold is not one of yours: high, low, normal, spot"]),
            (["--partition", "short", "--time", "3h"], "", ["partition short allows 2 min, and 3 h is asked"]),
            (["--time", "2m"], "", ["leaves no time to train"]),
            (["--time", "30"], "", ["30 of what?", "90m"]),
            (["--nodes", "3"], "", ["partition main has 2 nodes, and 3 are asked"]),
            (["--gpus", "9"], "", ["no node of partition main has more than 8 GPUs, and 9 are asked"]),
            ([], "defaults: {slurm: {constraint: ib}}", ["no node of partition main has the feature ib"]),
            ([], "defaults: {slurm: {nodelist: node7}}", ["node7"]),
            ([], "defaults: {slurm: {mem: 999T}}", ["no node of partition main has more than", "memory"]),
            ([], "defaults: {slurm: {options: {begin: lunch}}}", ["lunch"]),
            ([], "defaults: {slurm: {partitions: main}}", ["partitions", "partition"]),
        ],
        ids=lambda value: str(value)[:30] if isinstance(value, str) else "-".join(value)[:40],
    )  # fmt: skip
    def test_what_slurm_does_not_have(
        self, slurm: SlurmCluster, seatrial: Seatrial, script: str, tmp_path: Path, words: list[str], config: str,
        said: list[str],
    ) -> None:  # fmt: skip
        (tmp_path / "site.yaml").write_text(config or "{}")
        done = seatrial(*ON, *words, "--", script, SEATRIAL_CONFIG=str(tmp_path / "site.yaml"))
        assert done.code == 2, done.stderr
        for text in said:
            assert text in done.stderr
        assert queue(slurm) == []

    def test_a_user_without_an_account(self, slurm: SlurmCluster, seatrial: Seatrial, script: str) -> None:
        if os.geteuid() != 0:
            pytest.skip("becoming another user takes root")
        for path in [*seatrial.cwd.parents, seatrial.cwd]:
            if path.stat().st_uid == 0 and path.stat().st_mode & 0o5 != 0o5:
                path.chmod(path.stat().st_mode | 0o5)
        seatrial.cwd.chmod(0o777)
        argv = [
            "setpriv",
            f"--reuid={NOBODY}",
            f"--regid={NOBODY}",
            "--clear-groups",
            *seatrial.argv(*ON, "--", script),
        ]
        env = seatrial.environment(
            SEATRIAL_CACHE=str(seatrial.cwd), HOME=str(seatrial.cwd), USER="nobody", LOGNAME="nobody"
        )
        done = slurm.run(*argv, timeout_s=120, check=False, cwd=seatrial.cwd, **env)
        assert done.returncode == 2, done.stderr
        assert "Invalid account" in done.stderr
        assert "your accounts: none that the accounting knows" in done.stderr


class TestNodesThatDiffer:
    def hide(self, slurm: SlurmCluster, node: str, directory: Path) -> None:
        """Lays an empty file system over a directory, on one node alone."""
        done = slurm.on(node, "mount", "-t", "tmpfs", "none", str(directory))
        assert done.returncode == 0, done.stderr

    @pytest.fixture
    def shown_again(self, slurm_ns: SlurmCluster) -> Iterator[Callable[[Path], None]]:
        hidden: list[Path] = []
        yield hidden.append
        for directory in hidden:
            for node in slurm_ns.nodes:
                slurm_ns.on(node, "umount", str(directory))

    @pytest.mark.parametrize("node", ["node0", "node1"])
    def test_a_node_that_does_not_see_the_run_directory(
        self,
        slurm_ns: SlurmCluster,
        seatrial: Seatrial,
        script: str,
        shown_again: Callable[[Path], None],
        node: str,
    ) -> None:
        seatrial.runs_dir.mkdir()
        self.hide(slurm_ns, node, seatrial.runs_dir)
        shown_again(seatrial.runs_dir)
        done = seatrial(*ON, "--nodes", "2", "--", script)
        assert done.code == 4, done.stderr
        if node == "node0":
            assert "the node may not see the run directory" in done.stderr
        else:
            assert "node 1 (node1)" in done.stderr
            assert "has no plan" in done.stderr or "can't be read on node1" in done.stderr
        assert [record.outcome for record in done.manifest.attempts] != ["completed"]
        assert queue(slurm_ns) == []

    @pytest.mark.parametrize("node", ["node0", "node1"])
    def test_a_node_without_the_interpreter(
        self, slurm_ns: SlurmCluster, seatrial: Seatrial, script: str, tmp_path: Path,
        shown_again: Callable[[Path], None], node: str,
    ) -> None:  # fmt: skip
        """Said in seconds: the check-in, which an agent that never starts would be missed at, lasts five minutes."""
        began = time.monotonic()
        private = tmp_path / "private"
        private.mkdir()
        (private / "python").symlink_to(sys.executable)
        (private / "pyvenv.cfg").write_text((Path(sys.prefix) / "pyvenv.cfg").read_text())
        for name in ("lib", "lib64"):
            if (Path(sys.prefix) / name).exists():
                (tmp_path / name).symlink_to(Path(sys.prefix) / name)
        (tmp_path / "pyvenv.cfg").write_text((Path(sys.prefix) / "pyvenv.cfg").read_text())
        self.hide(slurm_ns, node, private)
        shown_again(private)
        done = slurm_ns.run(
            str(private / "python"), *seatrial.argv(*ON, "--nodes", "2", "--", script)[1:], timeout_s=240, check=False,
            cwd=tmp_path, **seatrial.environment(),
        )  # fmt: skip
        assert done.returncode == 4, done.stderr
        assert node in done.stderr
        assert "private/python" in done.stderr
        assert time.monotonic() - began < CHECK_IN_S / 2
        assert queue(slurm_ns) == []

    def test_a_full_disk(
        self, slurm_ns: SlurmCluster, seatrial: Seatrial, script: str, tmp_path: Path
    ) -> None:
        """The run directory's, on the host and so on all nodes: it fails, says why, and does not hang."""
        (tmp_path / "fill.py").write_text("open('runs/full', 'wb').write(bytes(4 << 20))\n")
        seatrial.runs_dir.mkdir()
        for node in slurm_ns.nodes:
            slurm_ns.on(
                node, "mount", "-t", "tmpfs", "-o", "size=64k,nr_inodes=8", "none", str(seatrial.runs_dir)
            )
        done = seatrial(*ON, "--", script)
        for node in slurm_ns.nodes:
            slurm_ns.on(node, "umount", str(seatrial.runs_dir))
        assert done.code == 4, done.stderr
        assert queue(slurm_ns) == []


class TestHostileSurroundings:
    def test_an_outer_job_and_a_users_shell_decide_nothing(
        self, slurm: SlurmCluster, seatrial: Seatrial, tmp_path: Path
    ) -> None:
        (tmp_path / "s.py").write_text(
            "import json, os\nprint(json.dumps({k: v for k, v in os.environ.items()}), flush=True)\n"
        )
        values = {"A_LIST": "a,b,c", "QUOTED": 'it\'s "so" `x` $HOME', "LINES": "one\ntwo", "日本": "ä ö"}
        outer = {
            "SLURM_NNODES": "7", "SLURM_NTASKS": "3", "SBATCH_PARTITION": "high", "SBATCH_QOS": "none",
            "SBATCH_EXPORT": "NONE", "SRUN_CPUS_PER_TASK": "3", "SLURM_CPUS_PER_TASK": "5", "SLURM_RESTART_COUNT": "4",
            "SQUEUE_FORMAT": "%i", "SLURM_TIME_FORMAT": "%H", "MASTER_ADDR": "10.9.9.9", "MASTER_PORT": "1", "RANK": "5",
            "WORLD_SIZE": "8", "LOCAL_RANK": "3", "SEATRIAL_DEADLINE": "1", "TORCHELASTIC_RUN_ID": "x", "PET_NNODES": "9",
        }  # fmt: skip
        done = seatrial(*ON, "--nodes", "2", "--", "s.py", **outer, **values)
        assert done.code == 0, done.stderr
        seen = json.loads(done.run.attempt(0).rank_log(1).read_text().splitlines()[-1])
        assert {name: seen[name] for name in values} == values
        assert (seen["RANK"], seen["WORLD_SIZE"], seen["LOCAL_RANK"]) == ("1", "2", "0")
        assert seen["MASTER_ADDR"] != "10.9.9.9" and seen["SLURM_NNODES"] == "2"
        assert "SBATCH_PARTITION" not in seen and "PET_NNODES" not in seen
        job = slurm.job(job_of(done.manifest.attempts[0].handle or ""))
        assert job["Partition"] == "main"

    @pytest.mark.parametrize("name", ["zwei Wörter 日本", 'it\'s 50% "off" %j #1'])
    def test_odd_names_of_directories(self, slurm: SlurmCluster, tmp_path: Path, name: str) -> None:
        seatrial = Seatrial(tmp_path / name)
        seatrial.cwd.mkdir()
        (seatrial.cwd / "s ö.py").write_text("import os\nprint(os.getcwd(), flush=True)\n")
        done = seatrial(*ON, "--runs-dir", "my runs,%u", "--", "s ö.py")
        assert done.code == 0, done.stderr
        assert str(seatrial.cwd) in done.stderr
        assert list((seatrial.cwd / "my runs,%u").glob("*/slurm-*.out"))

    def test_another_clusters_jobs_are_left_alone(
        self, slurm: SlurmCluster, attach: Callable[..., Attached], tmp_path: Path
    ) -> None:
        """A run of one cluster, asked for with the configuration of another, where that job's number is somebody else's."""
        (tmp_path / "s.py").write_text("import time\nprint('up', flush=True)\ntime.sleep(600)\n")
        run = attach(slurm, *ON, "--", "s.py")
        run.ranks_run(world_size=1)
        run.process.kill()
        run.process.wait()
        with SlurmCluster(1, 1, mode="plain", accounting=False, settings={"ClusterName": "other"}) as other:
            theirs = ""
            while not theirs or int(theirs) < int(run.job):
                held = ["sbatch", "--parsable", "--hold", "--output=/dev/null", "--wrap", "true"]
                theirs = other.run(*held).stdout.strip()
            told = "submitted to the cluster seatrial, and Slurm's clients ask another cluster here: other"
            assert told in run.seatrial("runs", "show", "last", **other.env).stdout
            for words in (["cancel"], ["cancel", "--force"]):
                done = run.seatrial("runs", *words, "last", **other.env)
                assert done.code == 4, done.stdout
                assert told in done.stderr
            assert other.job(run.job)["JobState"] == "PENDING", "somebody else's job is not cancelled"
        assert slurm.job(run.job)["JobState"] == "RUNNING"
        # With the right configuration all is as it was.
        done = run.seatrial("runs", "cancel", "last")
        assert done.code == 0
        assert processes.until(60, lambda: queue(slurm) == [], 0.2)
