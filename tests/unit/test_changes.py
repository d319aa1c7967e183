"""Going on with another recipe: what is harmless is recorded, what is not is refused, with the difference."""

from __future__ import annotations

import pytest

from seatrial.errors import SpecError
from seatrial.spec.changes import FIXED, GROWING, HARMLESS, changed, check, render
from seatrial.spec.load import load_values
from seatrial.spec.run import RunSpec

SPEC = load_values({"name": "r", "model": "m", "data": {"path": "d"}, "train": {"max_steps": 100}}, [])


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["train.log_every=1", "train.keep_best=2", "train.checkpoint_minutes=1.5"],
        ["train.max_steps=200"],
        ["train.max_steps=null"],
        ["resources.nproc=4"],
    ],
)
def test_harmless_changes_need_no_leave(words: list[str]) -> None:
    spec, changes = changed(SPEC, words)
    assert set(changes) == {word.split("=")[0] for word in words}
    check(changes, allowed=False, run_id="r-1")
    assert isinstance(spec, RunSpec)


@pytest.mark.parametrize(
    "word",
    [
        "train.learning_rate=1e-3",
        "train.max_steps=50",
        "train.seed=1",
        "data.max_length=64",
        "train.batch_size=4",
    ],
)
def test_what_makes_it_another_training_has_to_be_allowed(word: str) -> None:
    _, changes = changed(SPEC, [word])
    with pytest.raises(SpecError) as caught:
        check(changes, allowed=False, run_id="r-1")
    key = word.partition("=")[0]
    assert f"- {key}: " in caught.value.evidence and "+ " + key in caught.value.evidence
    assert "runs resume r-1" in caught.value.remedy
    check(changes, allowed=True, run_id="r-1")


def test_another_model_is_another_run_whatever_is_allowed() -> None:
    _, changes = changed(SPEC, ["model=other"])
    with pytest.raises(SpecError, match="model can't change"):
        check(changes, allowed=True, run_id="r-1")


def test_a_value_that_is_the_same_is_no_change_and_a_wrong_one_an_error() -> None:
    assert changed(SPEC, ["train.max_steps=100"])[1] == {}
    with pytest.raises(SpecError, match="not a valid recipe"):
        changed(SPEC, ["train.max_step=3"])


def test_the_difference_is_two_lines_a_key() -> None:
    assert render({"train.seed": (0, 1)}) == "- train.seed: 0\n+ train.seed: 1"


def test_every_key_that_is_named_exists() -> None:
    known = set(changed(SPEC, ["train.seed=1"])[0].model_dump(by_alias=True)["train"])
    for key in HARMLESS | GROWING:
        section, _, name = key.partition(".")
        assert section in RunSpec.model_fields and (section != "train" or name in known)
    assert FIXED - {"schema"} <= RunSpec.model_fields.keys()
