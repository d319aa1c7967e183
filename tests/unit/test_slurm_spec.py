"""The recipe's slurm section: what is asked of the cluster is checked before the cluster sees it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seatrial.errors import SpecError
from seatrial.spec.changes import changed, check
from seatrial.spec.duration import seconds
from seatrial.spec.load import load, read_spec
from seatrial.spec.run import RunSpec, ScriptSpec
from seatrial.spec.slurm import INSTEAD, SlurmSpec

BASE = {"name": ("", "x"), "model": ("", "m"), "data.path": ("", "d")}


def spec_of(*words: str) -> RunSpec:
    return load(None, flags=BASE, overrides=words).spec


def refusal(*words: str) -> SpecError:
    with pytest.raises(SpecError) as caught:
        spec_of(*words)
    return caught.value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4h", 14400), ("90m", 5400), ("45s", 45), ("2d", 172800), ("1h30m", 5400), ("1d 2h 3m 4s", 93784), ("100h", 360000),
        ("01:30:00", 5400), ("100:00:00", 360000), ("2-00:00:00", 172800), ("1-02", 93600), ("1-02:30", 95400),
        ("1-02:03:04", 93784), (" 4h ", 14400),
    ],
)  # fmt: skip
def test_a_length_of_time_is_read(text: str, expected: int) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("30", "30 of what"), ("1.5", "of what"), ("1:30", "minutes and seconds, or hours and minutes"), ("", "not a length"),
        ("4 hours", "not a length"), ("h", "not a length"), ("-4h", "not a length"), ("01:75:00", "not a length"),
        ("30m4h", "not a length"), ("UNLIMITED", "not a length"), ("0h", "no time at all"), ("00:00:00", "no time"),
    ],
)  # fmt: skip
def test_a_length_of_time_that_is_not_clear_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        seconds(text)


@given(st.text(max_size=12))
def test_any_text_is_a_length_of_time_or_refused(text: str) -> None:
    try:
        assert seconds(text) > 0
    except ValueError as error:
        assert "4h" in str(error)


def test_the_section_is_read_and_survives_its_file(tmp_path: Path) -> None:
    spec = spec_of(
        "slurm.partition=main", "slurm.exclude=[node1, node2]", "slurm.nodelist=node[5-8,11]", "slurm.mem=64G",
        "slurm.modules=cuda/12.4", "slurm.options.mail-type=END", "slurm.options.contiguous=true", "slurm.options.nice=3",
        "resources.on=slurm", "resources.time=2-00:00:00",
    )  # fmt: skip
    assert spec.slurm.exclude == ("node1", "node2")
    assert spec.slurm.nodelist == ("node[5-8,11]",)
    assert spec.slurm.options == {"mail-type": "END", "contiguous": True, "nice": 3}
    assert (spec.resources.on, spec.resources.time, spec.resources.time_s) == ("slurm", "2-00:00:00", 172800)
    (tmp_path / "spec.json").write_text(spec.model_dump_json(by_alias=True))
    assert read_spec(tmp_path / "spec.json") == spec


def test_a_recorded_recipe_from_before_the_section_is_still_read(tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text('{"task": "script", "name": "s", "command": ["a.py"], "cwd": "/"}')
    spec = read_spec(tmp_path / "spec.json")
    assert isinstance(spec, ScriptSpec)
    assert spec.slurm == SlurmSpec()


@pytest.mark.parametrize("on", ["auto", "local", "slurm", "ssh://login1", "ssh://me@10.0.0.1:2222"])
def test_platforms(on: str) -> None:
    assert spec_of(f"resources.on={on}").resources.on == on


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("resources.on=slrum", "did you mean 'slurm'?"),
        ("resources.on=ssh://", "is not a platform"),
        ("resources.on='ssh://a b'", "is not a platform"),
        ("resources.time=30", "30 of what? write 4h, 90m"),
        ("resources.time=true", "resources.time = True"),
        ("slurm.mem=64", "64 is not an amount of memory: 64G"),
        ("slurm.mem=64GB", "'64GB' is not an amount"),
        ("slurm.gpu_type=gpu:h100:8", "is not a type alone"),
        ("slurm.nodelist=[a b]", "'a b' is not a node's name"),
        ("slurm.exclude=./hosts", "is not a node's name"),
        ("slurm.exclude=[3]", "slurm.exclude.0 = 3"),
        ('slurm.partition="a\\nb"', "line break"),
        ("slurm.partition=''", "null is for none"),
        ("slurm.modules=['']", "null is for none"),
        ("slurm.container_mounts=/data", "is not SOURCE:TARGET"),
        ("slurm.container_mounts='/a,b:/c'", "is not SOURCE:TARGET"),
        ("slurm.max_requeues=-1", "greater than or equal to 0"),
        ("slurm.on_drain=stop", "'continue' or 'requeue'"),
        ("slurm.options=mail", "is not a mapping"),
        ("slurm.options={mail-type: [END]}", "neither a text"),
        ("slurm.options={mail-type: 1.5}", "neither a text"),
        ('slurm.options={mail-user: "a\\nb"}', "line break"),
        ("slurm.options={--mail-type: END}", "without dashes in front; 'mail-type'?"),
        ("slurm.options={mail_type: END}", "'mail-type'?"),
        ("slurm.options={n: 4}", "is not the long name"),
        ("slurm.options={4: 4}", "is not the long name"),
        ("slurm.options={gres: 'gpu:8'}", "use resources.gpus_per_node and slurm.gpu_type"),
        ("slurm.options={time: '30'}", "use resources.time"),
        ("slurm.options={qos: high}", "use slurm.qos"),
        ("slurm.options={job-name: x}", "use name"),
        ("slurm={mem: 4G, options: {mem-per-cpu: 1G}}", "exclude each other"),
    ],
)  # fmt: skip
def test_what_slurm_would_refuse_or_misread_is_refused_first(word: str, said: str) -> None:
    assert said in refusal(word).evidence


@pytest.mark.parametrize("name", INSTEAD)
def test_no_option_goes_around_a_key_of_the_recipe(name: str) -> None:
    """sbatch takes --dep for --dependency; a beginning is as good as the whole name."""
    for cut in range(2, len(name) + 1):
        if not name[:cut].endswith("-"):
            assert "can't be set here" in refusal(f"slurm.options={{{name[:cut]}: x}}").evidence, name[:cut]


@pytest.mark.parametrize(
    "name", ["mem-per-cpu", "wait-all-nodes", "hold", "nice", "licenses", "mail-user", "time-min"]
)
def test_options_of_others_pass(name: str) -> None:
    assert spec_of(f"slurm.options={{{name}: '1'}}").slurm.options == {name: "1"}


def test_an_unknown_key_is_refused_with_the_nearest() -> None:
    assert "slurm.partition" in refusal("slurm.partitoin=a").remedy
    assert "slurm.account" in refusal("acount=a").remedy


def test_all_the_memory_of_a_node_is_a_number_in_yaml() -> None:
    assert spec_of("slurm.mem=0").slurm.mem == "0"
    assert "false is not an amount" in refusal("slurm.mem=false").evidence.lower()


def test_where_a_run_goes_on_needs_no_leave() -> None:
    before = spec_of("slurm.partition=main")
    words = [
        "slurm.partition=low",
        "resources.on=slurm",
        "resources.time=4h",
        "resources.nodes=4",
        "slurm.options.nice=1",
    ]
    _, changes = changed(before, words)
    assert changes["slurm.partition"] == ("main", "low")
    check(changes, allowed=False, run_id="r")
