"""A sweep is every combination once, and nothing is started that is not a valid recipe."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seatrial.cli.sweep import worst
from seatrial.cli.train import SHORT
from seatrial.errors import ExitCode, SpecError
from seatrial.launch.sweep import UNSEEN, look_once
from seatrial.spec.load import load_values
from seatrial.spec.run import DataSpec, RunSpec, TrainSpec
from seatrial.spec.sweep import MAX_RUNS, divide, parse, specs_of

SPEC = RunSpec(name="n", model="m", data=DataSpec(path="d"))


def values(*words: str) -> list[dict[str, Any]]:
    return [point.values for point in parse(words, SHORT).points]


class TestWords:
    def test_every_combination_in_the_given_order(self) -> None:
        sweep = parse(["lr=1e-5,3e-5", "seed=0..2"], SHORT)
        assert sweep.keys == ("train.learning_rate", "train.seed")
        assert [str(point) for point in sweep.points] == [
            f"train.learning_rate={lr} train.seed={seed}" for lr in ("1e-5", "3e-5") for seed in (0, 1, 2)
        ]

    @pytest.mark.parametrize(
        ("word", "expected"),
        [
            ("seed=3", [3]),
            ("seed=-0..0", [0]),
            ("seed=8..10,3", [8, 9, 10, 3]),
            ("train.schedule= linear , cosine ", ["linear", "cosine"]),
            ("train.clip_norm=null,0.5", [None, 0.5]),
            ("adapter.targets=[q, v],[q],auto", [["q", "v"], ["q"], "auto"]),
            ("data.text='a, b',\"c,\\\"d\",it's,x", ["a, b", 'c,"d', "it's", "x"]),
            ("data.text='it''s, a',b", ["it's, a", "b"]),
            ("model=a,b", ["a", "b"]),
        ],
    )
    def test_values_are_yaml_and_commas_in_brackets_or_quotes_part_nothing(
        self, word: str, expected: list[object]
    ) -> None:
        assert [next(iter(point.values())) for point in values(word)] == expected

    @pytest.mark.parametrize(
        ("word", "said"),
        [
            ("lrr=1,2", "did you mean 'lr'"),
            ("epoch=1,2", "did you mean 'epochs'"),
            ("train.sed=1,2", "did you mean 'train.seed'"),
            ("nproc=1,2", "resources holds for all runs"),
            ("resources.time=1h,2h", "resources holds for all runs"),
            ("slurm.qos=low,high", "slurm holds for all runs"),
            ("gates.compare.metric=accuracy,log_loss", "can't be swept"),
            ("tags=a,b", "can't be swept"),
            ("name=a,b", "can't be swept"),
            ("train=1", "no key 'train'"),
            ("lr=1,,2", "a value is empty"),
            ("lr=", "a value is empty"),
            ("lr", "is not KEY=VALUES"),
            ("=1", "is not KEY=VALUES"),
            ("lr=1,1", "1 is given twice"),
            ("seed=0..3,2", "2 is given twice"),
            ("seed=3..1", "the range is empty"),
            ("seed=0..1000", "at most 1,000 runs"),
            ("seed=0..99999999999", "at most 1,000 runs"),
            ("adapter.targets=[q,v", "] is missing"),
            ("data.text='a,b", "' is missing"),
            ("lr=[1}", "is missing"),
        ],
    )
    def test_what_is_refused(self, word: str, said: str) -> None:
        with pytest.raises(SpecError) as caught:
            parse([word], SHORT)
        assert said in str(caught.value)

    def test_one_key_by_two_names_is_refused(self) -> None:
        with pytest.raises(SpecError, match="learning_rate is swept twice"):
            parse(["lr=1,2", "train.learning_rate=3"], SHORT)

    def test_the_product_is_bounded(self) -> None:
        assert len(parse(["seed=0..99", "max_steps=1..10"], SHORT).points) == MAX_RUNS
        with pytest.raises(SpecError) as caught:
            parse(["seed=0..99", "max_steps=1..11"], SHORT)
        assert caught.value.evidence == "100 × 11 = 1100 combinations"

    def test_words_after_the_recipe_belong_to_the_sweep_when_they_have_several_values(self) -> None:
        words = [
            "train.epochs=3",
            "seed=0..4",
            "lr=1,2",
            "slurm.partition=a,b",
            "partition=a,b",
            "data.text='x,y'",
        ]
        assert divide(words, SHORT) == (
            ["seed=0..4", "lr=1,2"],
            ["train.epochs=3", "slurm.partition=a,b", "partition=a,b", "data.text='x,y'"],
        )

    def test_every_flag_is_a_key(self) -> None:
        """A short name that stands for nothing would be refused with a remedy that fails."""
        data = load_values({"name": "n", "model": "m", "data": {"path": "d"}}, []).model_dump(by_alias=True)
        for key in SHORT.values():
            section = key.partition(".")[0]
            assert section in data or section in RunSpec.model_fields


plain = st.text(st.characters(categories=("Ll", "Nd")), min_size=1, max_size=5)
quoted = st.text(st.characters(codec="ascii", exclude_categories=("Cc",)), max_size=8)


@given(st.lists(plain | quoted, min_size=1, max_size=6, unique=True))
def test_any_texts_come_back_when_they_are_quoted(texts: list[str]) -> None:
    word = "data.text=" + ",".join("'" + text.replace("'", "''") + "'" for text in texts)
    assert [point["data.text"] for point in values(word)] == texts


@given(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=4, unique=True), min_size=1, max_size=4))
def test_the_points_are_the_product(numbers: list[list[int]]) -> None:
    keys = ["seed", "max_steps", "batch_size", "train_samples"][: len(numbers)]
    words = [f"{key}={','.join(map(str, n))}" for key, n in zip(keys, numbers, strict=True)]
    assert [tuple(point.values()) for point in values(*words)] == list(itertools.product(*numbers))


@given(st.text(max_size=30))
def test_no_word_ends_in_a_traceback(text: str) -> None:
    try:
        parse([text], SHORT)
        divide([text], SHORT)
        values(f"data.text={text}")
    except SpecError as error:
        assert error.what


class TestSpecs:
    def test_each_combination_lies_over_the_recipe(self) -> None:
        points = parse(["adapter=lora,dora", "adapter.r=4,8"], SHORT).points
        specs = specs_of(load_values(SPEC.model_dump(by_alias=True), points[0].words), points)
        found = [(spec.adapter.kind, spec.adapter.r) for spec in specs if spec.adapter is not None]
        assert found == [("lora", 4), ("lora", 8), ("dora", 4), ("dora", 8)]

    def test_a_combination_that_is_not_valid_is_named(self) -> None:
        points = parse(["precision=fp32,fp16", "parallel=ddp,fsdp"], SHORT).points
        with pytest.raises(SpecError) as caught:
            specs_of(SPEC, points)
        assert "combination 4 of 4" in caught.value.what
        assert "train.precision=fp16 train.parallel=fsdp" in caught.value.what
        assert "don't go together" in caught.value.evidence

    def test_values_that_come_to_the_same_are_the_same_run(self) -> None:
        with pytest.raises(SpecError, match="the same run"):
            specs_of(SPEC, parse(["lr=1,1.0"], SHORT).points)

    def test_local_directories_are_found_from_anywhere(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path)
        for key in ("model", "data"):
            specs = specs_of(SPEC, parse([f"{key}=a,b"], SHORT).points)
            found = [spec.model if key == "model" else spec.data.path for spec in specs]
            assert found == [str(tmp_path / "a"), str(tmp_path / "b")]


def test_data_and_model_are_looked_at_once_for_runs_that_share_them() -> None:
    looked: list[tuple[float, int]] = []

    def look(spec: RunSpec) -> dict[str, Any]:
        looked.append((spec.train.learning_rate, spec.train.seed))
        return {"seed": spec.train.seed}

    specs = specs_of(SPEC, parse(["lr=1,2,3", "seed=0..1", "epochs=1,2"], SHORT).points)
    assert [found["seed"] for found in look_once(specs, look)] == [spec.train.seed for spec in specs]
    assert looked == [(1.0, 0), (1.0, 1)]
    assert set(UNSEEN) <= set(TrainSpec.model_fields)


def test_the_exit_code_is_the_worst() -> None:
    assert worst([]) == ExitCode.OK
    assert worst([ExitCode.OK, ExitCode.FAILED, ExitCode.OK]) == ExitCode.FAILED
    assert worst([ExitCode.PREEMPTED, ExitCode.FAILED, ExitCode.BAD_REQUEST]) == ExitCode.PREEMPTED
    assert worst([ExitCode.INTERRUPTED, ExitCode.PLATFORM]) == ExitCode.PLATFORM
    assert {worst([code]) for code in ExitCode} == set(ExitCode)
