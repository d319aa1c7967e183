"""A recipe is understood, or refused with the reason and the way out."""

from __future__ import annotations

from pathlib import Path

import pytest

from seatrial.errors import SpecError
from seatrial.spec.document import read_yaml
from seatrial.spec.load import load, read_spec
from seatrial.spec.run import RunSpec

RECIPE = """
name: sst2-roberta
task: text-classification
model: roberta-base
data: {path: glue/sst2, text: sentence, label: label, train: train, test: validation, max_length: 128,
       train_samples: 20000, test_samples: 5000}
train: {epochs: 4, max_steps: null, learning_rate: 1e-5, batch_size: 16, grad_accumulation: 2, warmup: 0.06,
        weight_decay: 0.01, seed: 0, precision: bf16, checkpoint_every: 500, eval_every: 500}
resources: {nodes: 2, gpus_per_node: 8, on: auto}
gates: {compare: {metric: accuracy, require: better, confidence: 0.95}}
tags: [infra-stable]
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "sst2.yaml"
    path.write_text(RECIPE)
    return path


def refusal(path: Path | None, text: str | None = None, **more: object) -> SpecError:
    if path is not None and text is not None:
        path.write_text(text)
    with pytest.raises(SpecError) as caught:
        load(path, **more)  # type: ignore[arg-type]
    return caught.value


def test_the_recipe_of_the_design_loads(recipe: Path) -> None:
    spec = load(recipe).spec
    assert spec.train.learning_rate == 1e-5
    assert spec.resources.on == "auto"
    assert spec.resources.gpus_per_node == 8
    assert spec.tags == ("infra-stable",)


def test_yaml_1_2_is_read(recipe: Path) -> None:
    """YAML 1.1 would read the key `on` as true, 1e-5 as text and `no` as false."""
    recipe.write_text("model: no\ndata: {path: off}\nresources: {on: local}\ntrain: {learning_rate: 1e-5}\n")
    spec = load(recipe).spec
    assert (spec.model, spec.data.path, spec.resources.on, spec.train.learning_rate) == (
        "no",
        "off",
        "local",
        1e-5,
    )


def test_flags_lie_over_the_recipe_and_words_over_flags(recipe: Path) -> None:
    loaded = load(
        recipe,
        flags={"train.seed": ("--seed", 3), "train.epochs": ("--epochs", 1.0)},
        overrides=["train.seed=7", "data.max_length=64", "tags=[a, b]"],
    )
    assert (loaded.spec.train.seed, loaded.spec.train.epochs, loaded.spec.data.max_length) == (7, 1.0, 64)
    assert loaded.spec.tags == ("a", "b")
    assert loaded.origins["train.seed"] == "train.seed=7"
    assert loaded.origins["train.epochs"] == "--epochs"
    assert loaded.origins["train.warmup"] == str(recipe)
    assert "train.schedule" not in loaded.origins  # a default


def test_a_spec_survives_its_file(recipe: Path, tmp_path: Path) -> None:
    spec = load(recipe).spec
    (tmp_path / "spec.json").write_text(spec.model_dump_json(by_alias=True))
    assert read_spec(tmp_path / "spec.json") == spec


def test_a_recipe_without_a_name_is_called_like_its_file(recipe: Path) -> None:
    recipe.write_text("model: m\ndata: {path: d}\n")
    assert load(recipe).spec.name == "sst2"


def test_local_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "d.csv").write_text("text,label\na,b\n")
    monkeypatch.chdir(tmp_path)
    spec = load(None, flags={"name": ("", "x"), "model": ("", "hub-id"), "data.path": ("", "d.csv")}).spec
    assert spec.data.path == str(tmp_path / "d.csv")
    assert spec.model == "hub-id"


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("model: m\ndata: {path: d}\ntrain: {learning_rat: 1e-5}\n", "train.learning_rate"),
        ("model: m\ndata: {pth: d}\n", "data.path"),
        ("model: m\ndata: {path: d}\nepochs: 3\n", "train.epochs"),
        ("model: m\ndata: {path: d}\ngates: {compare: {requires: better}}\n", "gates.compare.require"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_name(recipe: Path, text: str, nearest: str) -> None:
    error = refusal(recipe, text)
    assert "unknown key" in error.evidence
    assert nearest in error.remedy
    assert error.exit_code == 2


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("train.batch_size=many", "train.batch_size = 'many'"),
        ("train.batch_size=0", "greater than or equal to 1"),
        ("train.learning_rate=-1", "greater than 0"),
        ("train.precision=fp8", "'fp32', 'bf16' or 'fp16'"),
        ("resources.nproc=two", "resources.nproc = 'two'"),
        ("train.batch_size='16'", "valid integer"),
        ("gates.compare.metric=bleu", "does not exist for text-classification: accuracy"),
        ("name=a b", "letters, digits"),
        ("data=d.csv", "data = 'd.csv'"),
    ],
)
def test_a_wrong_value_is_refused_with_key_and_value(recipe: Path, word: str, said: str) -> None:
    assert said in refusal(recipe, overrides=[word]).evidence


def test_a_missing_recipe_names_those_nearby(recipe: Path) -> None:
    error = refusal(recipe.with_name("sst.yaml"))
    assert "sst2.yaml" in error.evidence


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("- a\n- b\n", "not a mapping"),
        ("model: [\n", "not valid YAML"),
        ("model: a\nmodel: b\n", "not valid YAML"),
    ],
)
def test_a_broken_recipe_is_refused(recipe: Path, text: str, said: str) -> None:
    error = refusal(recipe, text)
    assert said in error.what
    assert error.evidence


def test_a_word_that_is_no_assignment_is_refused(recipe: Path) -> None:
    assert "key=value" in refusal(recipe, overrides=["train.seed"]).what


def test_missing_fields_are_all_named(recipe: Path) -> None:
    error = refusal(recipe, "name: x\n")
    assert "model is missing" in error.evidence
    assert "data is missing" in error.evidence


def test_every_recipe_that_ships_is_valid() -> None:
    recipes = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
    assert recipes
    for path in recipes:
        assert isinstance(load(path).spec, RunSpec), path
        assert read_yaml(path)


def test_every_field_of_the_spec_has_a_docstring() -> None:
    """A field's docstring is its help; one without is a field nobody can use."""

    def undocumented(kind: type, prefix: str) -> list[str]:
        names = []
        for name, field in kind.model_fields.items():  # type: ignore[attr-defined]
            nested = getattr(field.annotation, "model_fields", None)
            if nested is not None:
                names += undocumented(field.annotation, f"{prefix}{name}.")
            elif not field.description and name not in {"schema_"}:
                names.append(prefix + name)
        return names

    assert undocumented(RunSpec, "") == []
