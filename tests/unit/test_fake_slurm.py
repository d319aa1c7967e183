"""The pretend Slurm's pure parts: command lines, texts, and who runs where."""

from __future__ import annotations

from typing import Any

import pytest

from seatrial.testing.slurm import options, sbatch, schedule, text
from seatrial.testing.slurm.model import PARTITIONS, QOS, Config, Job, Node, Request, Share
from seatrial.testing.slurm.options import UsageError


def config(**changes: Any) -> Config:
    given: dict[str, Any] = {
        "directory": "/d", "nodes": 2, "gpus": 8, "gpu_type": "h100", "cpus": 64, "memory_per_cpu_mib": 3000, "accounting": True,
        "partitions": PARTITIONS, "qos": QOS, "account": "test", "kill_wait_s": 3, "min_job_age_s": 300, "requeue_wait_s": 1,
        "minute_s": 60, "job_requeue": True, "user": "ada", "uid": 7, "group": "ada", "gid": 7, "host": "here",
    }  # fmt: skip
    return Config(**given | changes)


class Queue:
    """Jobs of a cluster, and what one pass makes of them."""

    def __init__(self, **changes: Any) -> None:
        self.config = config(**changes)
        self.nodes = [Node(f"node{index}") for index in range(self.config.nodes)]
        self.jobs: dict[int, Job] = {}

    def add(
        self, per_node: int = 8, nodes: int = 1, *, on: str = "", started: float = 0, **asked: Any
    ) -> Job:
        given = {"partitions": ("main",), "qos": "normal", "account": "test", **asked}
        request = Request(name="j", user="ada", nodes=nodes, tasks=nodes, gpus_per_node=per_node, **given)
        job = Job(len(self.jobs) + 1, request, 0, 0)
        job.priority = schedule.priority(self.config, job)
        job.partition = given["partitions"][0]
        if on:
            job.state, job.start = "RUNNING", started
            job.shares = {name: Share(1, 3000, tuple(range(per_node))) for name in on.split(",")}
        self.jobs[job.job_id] = job
        return job

    def decide(self) -> schedule.Decision:
        return schedule.decide(self.config, self.nodes, self.jobs, 100)

    def starts(self) -> dict[int, list[str]]:
        return {job.job_id: list(shares) for job, _, shares in self.decide().starts}


class TestScheduling:
    def test_two_jobs_share_a_node_without_sharing_gpus(self) -> None:
        queue = Queue(nodes=1)
        queue.add(4)
        queue.add(4)
        gpus = [share.gpus for _, _, shares in queue.decide().starts for share in shares.values()]
        assert gpus == [(0, 1, 2, 3), (4, 5, 6, 7)]

    def test_tier_comes_before_qos_and_qos_before_age(self) -> None:
        queue = Queue(nodes=1)
        old, urgent, high = queue.add(), queue.add(qos="high"), queue.add(partitions=("high",))
        assert list(queue.starts()) == [high.job_id]
        del queue.jobs[high.job_id]
        assert list(queue.starts()) == [urgent.job_id]
        assert queue.decide().reasons == {old.job_id: "Resources"}

    def test_nobody_overtakes_one_that_waits_for_the_same_nodes(self) -> None:
        queue = Queue()
        queue.add(on="node0")
        wide, small = queue.add(nodes=2), queue.add(1)
        assert queue.starts() == {}
        assert queue.decide().reasons == {wide.job_id: "Resources", small.job_id: "Priority"}

    def test_other_nodes_than_it_waits_for_are_free_for_others(self) -> None:
        queue = Queue()
        queue.add(on="node0")
        queue.add(required_nodes=("node0",))
        small = queue.add(1)
        assert queue.starts() == {small.job_id: ["node1"]}

    def test_a_required_node_is_among_those_given(self) -> None:
        queue = Queue(nodes=3)
        job = queue.add(nodes=2, required_nodes=("node2",))
        assert queue.starts() == {job.job_id: ["node0", "node2"]}
        queue.nodes[2].is_drained = True
        assert queue.starts() == {}
        assert queue.decide().reasons[job.job_id] == "ReqNodeNotAvail, UnavailableNodes:node2"

    def test_gpus_in_all_are_dealt_out_from_the_first_node(self) -> None:
        queue = Queue()
        queue.add(0, nodes=2, gpus=12)
        [(_, _, shares)] = queue.decide().starts
        assert [len(share.gpus) for share in shares.values()] == [8, 4]

    def test_as_few_make_room_as_have_to(self) -> None:
        """The lowest priority goes first, and of equal ones the youngest."""
        queue = Queue()
        queue.add(4, on="node0", qos="low", started=1)
        young = queue.add(4, on="node1", qos="low", started=2)
        queue.add(4, qos="high", required_nodes=("node1",))
        queue.add(4, on="node0", qos="normal", started=9)
        queue.jobs[4].shares = {"node1": Share(1, 3000, (4, 5, 6, 7))}
        assert queue.decide().victims == [young]

    def test_while_they_go_nobody_else_has_to(self) -> None:
        queue = Queue(nodes=1)
        queue.add(on="node0", qos="low").preempted_at = 99
        queue.add(qos="high")
        assert queue.decide().victims == []

    @pytest.mark.parametrize(("accounting", "preempts"), [(True, False), (False, True)])
    def test_without_accounting_the_partition_decides(self, accounting: bool, preempts: bool) -> None:
        queue = Queue(nodes=1, accounting=accounting)
        queue.add(on="node0", partitions=("low",))
        queue.add(partitions=("high",))
        assert bool(queue.decide().victims) == preempts

    def test_a_partition_may_be_spared(self) -> None:
        queue = Queue(nodes=1, accounting=False)
        queue.add(on="node0", partitions=("high",))
        queue.add(partitions=("main",))
        assert queue.decide().victims == []

    @pytest.mark.parametrize(
        ("state", "kind", "reason"),
        [
            ("RUNNING", "afterok", "Dependency"),
            ("FAILED", "afterok", "DependencyNeverSatisfied"),
            ("COMPLETED", "afternotok", "DependencyNeverSatisfied"),
            ("RUNNING", "after", None),
            ("FAILED", "afterany", None),
            ("FAILED", "afternotok", None),
        ],
    )
    def test_dependencies(self, state: str, kind: str, reason: str | None) -> None:
        queue = Queue()
        queue.add(1).state = state
        job = queue.add(1, dependency=((kind, 1),))
        assert queue.decide().reasons.get(job.job_id) == reason
        assert (job.job_id in queue.starts()) == (reason is None)

    def test_an_array_runs_as_many_at_once_as_it_may(self) -> None:
        queue = Queue()
        for index in range(4):
            job = queue.add(1, array=(0, 1, 2, 3), throttle=2)
            job.array_id, job.array_index = 9, index
        assert list(queue.starts()) == [1, 2]
        assert queue.decide().reasons == {3: "JobArrayTaskLimit", 4: "JobArrayTaskLimit"}


class TestCommandLines:
    def test_values_come_in_all_forms(self) -> None:
        words = [
            "--nodes",
            "2",
            "--time=5",
            "-n3",
            "-p",
            "main",
            "-H",
            "--exclusive",
            "-c",
            "4",
            "script",
            "--nodes=9",
        ]
        given, rest = options.parse("sbatch", options.SBATCH, words, stops=True)
        assert given == {
            "nodes": "2", "time": "5", "ntasks": "3", "partition": "main", "hold": "", "exclusive": "", "cpus-per-task": "4",
        }  # fmt: skip
        assert rest == ["script", "--nodes=9"]

    def test_a_beginning_is_enough_when_it_is_of_one_option(self) -> None:
        assert options.parse("sbatch", options.SBATCH, ["--part=main"])[0] == {"partition": "main"}
        with pytest.raises(UsageError, match="ambiguous; possibilities: '--no-kill'"):
            options.parse("sbatch", options.SBATCH, ["--no"])

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["--nope"], "unrecognized option '--nope'"),
            (["--hold=3"], "unrecognized option '--hold=3'"),
            (["--nodes"], "option '--nodes' requires an argument"),
            (["-N"], "option requires an argument -- 'N'"),
            (["-9"], "invalid option -- '9'"),
        ],
    )
    def test_what_is_refused(self, words: list[str], said: str) -> None:
        with pytest.raises(UsageError) as refused:
            options.parse("sbatch", options.SBATCH, words)
        assert refused.value.text == f'sbatch: {said}\nTry "sbatch --help" for more information\n'

    @pytest.mark.parametrize(
        ("line", "words"),
        [
            (' --output="/a b/%j" -N2', ["--output=/a b/%j", "-N2"]),
            (r' --output="say \"off\" \\ x"', [r'--output=say "off" \ x']),
            (" --comment='a # b' # c", ["--comment=a # b"]),
            (r" --comment=a\ b", ["--comment=a b"]),
            ("", []),
        ],
    )
    def test_a_directive_is_split(self, line: str, words: list[str]) -> None:
        assert options.split(line) == words

    def test_directives_stand_above_the_first_command(self) -> None:
        script = "#!/bin/sh\n# x\n#SBATCH -N2\n\n#SBATCH -p main\nset -u\n#SBATCH -t 9\n"
        assert options.directives(script) == ["-N2", "-p", "main"]

    def test_the_command_line_goes_before_the_environment_and_that_before_directives(self) -> None:
        script = "#!/bin/sh\n#SBATCH -p low -q low\n#SBATCH -t 5\n"
        given, _, _ = sbatch.read(
            ["-p", "high"], {"SBATCH_QOS": "high", "SBATCH_PARTITION": "main"}, "/", script
        )
        assert (given["partition"], given["qos"], given["time"]) == ("high", "high", "5")

    def test_an_environment_that_is_not_passed_on(self) -> None:
        environ = {"HOME": "/h", "PATH": "/p", "KEPT": "k", "LOST": "l"}
        asked = sbatch.request(config(), {"export": "NONE,KEPT,NEW=1"}, "#!", ["s"], environ, "/")
        assert asked.env == {"HOME": "/h", "PATH": "/p", "KEPT": "k", "NEW": "1"}


class TestTexts:
    @pytest.mark.parametrize(
        ("names", "short"),
        [
            (["node0"], "node0"),
            (["node0", "node1", "node2", "node7"], "node[0-2,7]"),
            (["a1", "b2", "login"], "a1,b2,login"),
            ([], ""),
        ],
    )
    def test_names_of_nodes(self, names: list[str], short: str) -> None:
        assert text.compress(names) == short
        assert text.expand(short) == names

    def test_leading_zeros_stay(self) -> None:
        assert text.expand("n[08-10]x") == ["n08x", "n09x", "n10x"]

    @pytest.mark.parametrize(
        ("words", "minutes"),
        [
            ("90", 90),
            ("1:01", 2),
            ("2:00:00", 120),
            ("1-0", 1440),
            ("1-2:30", 1590),
            ("0:05", 1),
            ("UNLIMITED", None),
        ],
    )
    def test_time_limits(self, words: str, minutes: int | None) -> None:
        assert text.minutes(words) == minutes

    @pytest.mark.parametrize("words", ["", "soon", "1:2:3:4", "-5"])
    def test_what_is_no_time_limit(self, words: str) -> None:
        with pytest.raises(ValueError):
            text.minutes(words)

    def test_an_output_file_is_named(self) -> None:
        values = {"j": "12", "x": "name"}
        assert text.file_name("/a/%x-%j-%6j-%%j", values) == "/a/name-12-000012-%j"
        assert text.file_name(r"/a\b/%j", values) == "/ab/%j"

    def test_counts_by_node(self) -> None:
        assert text.repeated([4, 4, 2]) == "4(x2),2"
        assert text.pair(3 << 8) == "3:0"
        assert text.pair(9) == "0:9"
