"""From outside the cluster: a real sshd, a real Slurm behind it, and the command of a machine that has neither."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from seatrial.runs.commit import is_committed
from seatrial.runs.manifest import read_manifest
from seatrial.runs.paths import RunPaths
from seatrial.runs.state import RunState
from tests.slurm.cluster import SlurmCluster
from tests.ssh.sshd import Sshd

from .conftest import Seatrial

pytestmark = pytest.mark.slurm

WAITS = """
import pathlib, sys, time
print("begun", flush=True)
for i in range(3000):
    if i % 5 == 0:
        print("line", i // 5, flush=True)
    if pathlib.Path(sys.argv[1]).exists():
        break
    time.sleep(0.1)
print("done", flush=True)
"""


@pytest.fixture
def project(tmp_path: Path) -> Seatrial:
    """A git work tree, and the command in it."""
    root = tmp_path / "my project"
    root.mkdir()
    git(root, "init", "-q")
    git(root, "commit", "-q", "--allow-empty", "-m", "first")
    return Seatrial(root)


def git(root: Path, *words: str) -> None:
    who = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=main"]
    subprocess.run(["git", *who, *words], cwd=root, check=True)


def on_cluster(seatrial: Seatrial) -> Path:
    return seatrial.cwd.parent / "cluster"


def until(condition: Callable[[], object], timeout_s: float = 90) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_train_follow_and_have_it_all_here(
    project: Seatrial, login: Sshd, recipe: Callable[..., str], tmp_path: Path
) -> None:
    """What is only here is sent; the job runs there; everything but the weights is here at its end."""
    recipe()
    home_ssh = Path("~/.ssh").expanduser()
    before = sorted(home_ssh.iterdir()) if home_ssh.exists() else None
    done = project("train", str(tmp_path / "t.yaml"), "--on", "ssh://login", "--gpus", "0", "train.epochs=1")
    assert done.code == 0, done.stderr
    assert re.search(r"sending \d+ files of code, .* to login", done.stderr) is None, (
        "there is no code to send"
    )
    assert len(re.findall(r"sending \d+ files of data", done.stderr)) == 2
    run = done.run
    there = RunPaths(on_cluster(project) / "runs" / run.run_id)
    for path in (
        run.predictions("original"),
        run.predictions("trained"),
        run.comparison,
        run.metrics,
        run.evidence,
    ):
        assert path.read_bytes() == (there.root / path.relative_to(run.root)).read_bytes()
    assert run.report.exists()
    assert run.attempt(0).rank_log(1).exists()
    assert not run.model("trained").exists() and not run.checkpoints.exists()
    manifest = done.manifest
    assert manifest.state is RunState.COMPLETED
    assert manifest.attempt.handle == f"ssh://login/{read_manifest(there).attempt.handle}"
    assert manifest.results["comparison"]["verdict"]
    assert manifest.code is not None and (on_cluster(project) / "code" / manifest.code.sha256).is_dir()
    assert manifest.git is not None and len(manifest.code.sent) == 2
    assert (sorted(home_ssh.iterdir()) if home_ssh.exists() else None) == before

    assert project("runs", "pull", "last", "--models").code == 0
    assert is_committed(run.model("trained"))
    assert run.model("original").joinpath("model.safetensors").read_bytes() == (
        there.model("original").joinpath("model.safetensors").read_bytes()
    )


def test_the_code_is_what_lies_here(project: Seatrial, login: Sshd) -> None:
    """Changed and untracked files come along, ignored ones don't; the same code is sent once."""
    root = project.cwd
    (root / "tool.py").write_text("print('old')")
    (root / ".gitignore").write_text("/runs/\nsecret.txt\n")
    (root / ".seatrialignore").write_text("*.big\n")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "code")
    (root / "tool.py").write_text(
        "import pathlib, untracked; print(untracked.WORD); print(*sorted(p.name for p in pathlib.Path().iterdir() if p.is_file()))"
    )
    (root / "untracked.py").write_text("WORD = 'from an untracked file'")
    (root / "secret.txt").write_text("not sent")
    (root / "weights.big").write_text("not sent")
    words = ["run", "--on", "ssh://login", "--gpus", "0", "--", "tool.py"]
    first = project(*words)
    assert first.code == 0, first.stderr
    assert "sending 4 files of code" in first.stderr
    said = first.stderr.splitlines()
    assert "from an untracked file" in said
    assert ".gitignore .seatrialignore tool.py untracked.py" in said
    second = project(*words)
    assert second.code == 0 and "sending" not in second.stderr
    assert len([*(on_cluster(project) / "code").iterdir()]) == 1
    (root / "untracked.py").write_text("WORD = 'changed'")
    third = project(*words)
    assert "sending 4 files of code" in third.stderr and "changed" in third.stderr.splitlines()


def test_detached_it_is_seen_followed_cancelled_and_resumed_from_here(project: Seatrial, login: Sshd) -> None:
    flag = project.cwd.parent / "flag"
    (project.cwd / "waits.py").write_text(WAITS)
    started = project(
        "run", "--detach", "--on", "ssh://login", "--gpus", "0", "--name", "w", "--", "waits.py", str(flag)
    )
    assert started.code == 0, started.stderr
    run_id = started.stdout.strip()
    run = RunPaths(project.runs_dir / run_id)
    until(lambda: "running" in project("runs", "list").stdout)
    assert "[ssh://login/slurm://" in project("runs", "show", run_id).stdout
    until(lambda: "[rank_00000] begun" in project("runs", "logs", run_id).stdout)
    assert "it runs" in project("runs", "why", run_id).stdout
    cancelled = project("runs", "cancel", run_id, "--force")
    assert cancelled.code == 0, cancelled.stderr
    assert read_manifest(run).state is RunState.INTERRUPTED
    flag.touch()
    refused = project("runs", "resume", run_id, "--verdict", "verdict.json")
    assert refused.code == 2 and "on the cluster" in refused.stderr
    resumed = project("runs", "resume", run_id, "--verdict", "none")
    assert resumed.code == 0, resumed.stderr
    manifest = read_manifest(run)
    assert [record.outcome for record in manifest.attempts][1:] == ["completed"]
    assert manifest.state is RunState.COMPLETED
    assert "done" in run.attempt(1).rank_log(0).read_text()
    assert login.log.read_text().count("Accepted publickey") == 1, "one handshake serves all commands"


def follow_waits(project: Seatrial, flag: Path) -> subprocess.Popen[str]:
    """An attached run that waits for a file, and has begun to."""
    (project.cwd / "waits.py").write_text(WAITS)
    process = project.start(
        "run", "--on", "ssh://login", "--gpus", "0", "--name", "w", "--", "waits.py", str(flag)
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line == "begun\n":
            return process
    raise AssertionError("it ended")


def test_a_lost_connection_is_made_again(project: Seatrial, login: Sshd, tmp_path: Path) -> None:
    """The network breaks, and then the login node is away for a while: the job goes on, and so does its follower."""
    flag = tmp_path / "flag"
    process = follow_waits(project, flag)
    assert process.stderr is not None
    assert login.cut() >= 1
    said = ""
    while "the platform answers again" not in said:
        said += process.stderr.readline()
    assert "the connection to login was lost" in said
    login.stop()
    while said.count("the run goes on; trying again") < 2:
        said += process.stderr.readline()
    login.start()
    flag.touch()
    _, rest = process.communicate(timeout=120)
    said += rest
    assert process.returncode == 0, said
    assert said.splitlines()[-1:] == ["done"] or "done" in said.splitlines()
    counted = [int(n) for n in re.findall(r"^line (\d+)$", said, re.M)]
    assert counted == list(range(counted[0], counted[-1] + 1)), "each line came once, in order"


def test_a_job_that_is_queued_again_is_followed_into_its_next_attempt(
    project: Seatrial, login: Sshd, slurm_plain: SlurmCluster, tmp_path: Path
) -> None:
    flag = tmp_path / "flag"
    process = follow_waits(project, flag)
    assert process.stderr is not None
    job = slurm_plain.run("squeue", "-h", "-o", "%i").stdout.strip()
    slurm_plain.run("scontrol", "requeue", job)
    for line in process.stderr:
        if line.startswith("attempt 1: ssh://login/slurm://"):
            break
    flag.touch()
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "done" in said.splitlines(), "what the second attempt prints is shown"
    run = RunPaths(next(project.runs_dir.iterdir()))
    assert [record.outcome for record in read_manifest(run).attempts] == ["preempted", "completed"]


def test_ctrl_c_leaves_it_running(project: Seatrial, login: Sshd, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    process = follow_waits(project, flag)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "it goes on" in said
    flag.touch()
    shown = ""

    def ended() -> bool:
        nonlocal shown
        shown = project("runs", "show", "last").stdout
        return ": completed" in shown

    until(ended)
    assert "attempt 0  script: completed" in shown


def test_what_a_login_shell_prints_is_not_taken_for_an_answer(project: Seatrial, login: Sshd) -> None:
    login.command = 'echo Welcome; echo \'{"answer": 1}\'; exec sh -c "$SSH_ORIGINAL_COMMAND"'
    login.restart()
    (project.cwd / "hello.py").write_text("print('hello')")
    done = project("run", "--on", "ssh://login", "--gpus", "0", "--", "hello.py")
    assert done.code == 0, done.stderr
    assert "hello" in done.stderr.splitlines()


def test_the_users_own_way_to_share_connections_is_used(project: Seatrial, login: Sshd) -> None:
    """Where a site asks for codes, that is the only one that works."""
    sockets = login.directory / "own"
    sockets.mkdir()
    login.client("ControlMaster auto", f"ControlPath {sockets}/%C", "ControlPersist 60")
    (project.cwd / "hello.py").write_text("print('hello')")
    done = project("run", "--on", "ssh://login", "--gpus", "0", "--dry-run", "--", "hello.py")
    assert done.code == 0, done.stderr
    assert len([*sockets.iterdir()]) == 1
    assert not [*(login.directory / "run").rglob("*")]


def test_a_refused_request_leaves_nothing_here(
    project: Seatrial, login: Sshd, recipe: Callable[..., str]
) -> None:
    recipe()
    words = ["train", "../t.yaml", "--on", "ssh://login", "--gpus", "0", "--nproc", "1"]
    refused = project(*words, "data.label=mood")
    assert (refused.code, project.runs_dir.exists() and [*project.runs_dir.iterdir()]) in (
        (2, False),
        (2, []),
    )
    assert "mood" in refused.stderr
    missing = project(*words, "data.path=cluster:/no/such/data.csv")
    assert missing.code == 2 and "there is no /no/such/data.csv on login" in missing.stderr
    large = project(*words, "slurm.remote.max_data_gib=1e-6")
    assert large.code == 2 and "cluster:/PATH" in large.stderr and "too large to be sent" in large.stderr
    assert not (on_cluster(project) / "runs").exists() or not [*(on_cluster(project) / "runs").iterdir()]


def test_dry_run_shows_the_script_and_touches_nothing(
    project: Seatrial, login: Sshd, recipe: Callable[..., str]
) -> None:
    recipe()
    done = project("train", "../t.yaml", "--on", "ssh://login", "--gpus", "0", "--dry-run")
    assert done.code == 0, done.stderr
    assert "#SBATCH --job-name=t-" in done.stdout and "would send" in done.stderr
    assert not on_cluster(project).exists() and not project.runs_dir.exists()
