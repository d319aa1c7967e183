"""A site's defaults and profiles lie under every recipe, and each value says where it came from."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from seatrial.cli.main import cli
from seatrial.errors import SpecError
from seatrial.spec.load import load, load_script
from seatrial.spec.site import OF_A_RECIPE, Layer, config_path, site_layers

CONFIG = """
profile: small
defaults:
  resources: {on: slurm, time: 4h}
  slurm: {account: nlp, partition: main, exclude: [node9], options: {mail-type: END, nice: 5}}
  train: {precision: bf16, seed: 1}
  tags: [ours]
profiles:
  small: {resources: {nodes: 1}}
  big: {resources: {nodes: 8, time: 2d}, slurm: {partition: large, options: {nice: 9}}}
  plain:
"""
RECIPE = "model: m\ndata: {path: d}\ntrain: {seed: 2}\nslurm: {exclude: [], qos: high}\n"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def layers(config: Path, profile: str | None = None, text: str | None = None) -> list[Layer]:
    if text is not None:
        config.write_text(text)
    return site_layers(profile, {"SEATRIAL_CONFIG": str(config)})


def refusal(config: Path, text: str, profile: str | None = None) -> SpecError:
    with pytest.raises(SpecError) as caught:
        layers(config, profile, text)
    assert str(config) in caught.value.what + caught.value.evidence
    return caught.value


def test_a_recipe_lies_over_a_profile_and_that_over_the_defaults(config: Path, recipe: Path) -> None:
    loaded = load(
        recipe,
        flags={"slurm.qos": ("--qos", "low"), "slurm.account": ("--account", "vision")},
        overrides=["slurm.account=speech"],
        under=layers(config, "big"),
    )
    spec, origins = loaded.spec, loaded.origins
    assert (spec.resources.nodes, spec.resources.time, spec.resources.on) == (8, "2d", "slurm")
    assert (spec.slurm.partition, spec.slurm.exclude, spec.slurm.qos) == ("large", (), "low")
    assert spec.slurm.options == {"mail-type": "END", "nice": 9}
    assert (spec.train.seed, spec.train.precision, spec.tags) == (2, "bf16", ("ours",))
    assert {key: origins[key] for key in ("resources.on", "resources.time", "slurm.options.nice", "train.precision")} == {
        "resources.on": f"{config} defaults",
        "resources.time": f"profile big of {config}",
        "slurm.options.nice": f"profile big of {config}",
        "train.precision": f"{config} defaults",
    }  # fmt: skip
    assert (origins["train.seed"], origins["slurm.exclude"], origins["slurm.qos"]) == (
        str(recipe),
        str(recipe),
        "--qos",
    )
    assert origins["slurm.account"] == "slurm.account=speech"
    assert spec.name == "recipe"


def test_the_file_may_choose_a_profile_itself(config: Path) -> None:
    assert [layer.origin for layer in layers(config)] == [f"{config} defaults", f"profile small of {config}"]
    assert [layer.origin for layer in layers(config, "plain")] == [f"{config} defaults"]


def test_a_recipe_can_take_a_whole_section_back(config: Path, recipe: Path) -> None:
    under = layers(config, text="defaults: {adapter: {kind: dora, r: 4}}")
    assert load(recipe, under=under).spec.adapter is not None
    recipe.write_text(RECIPE + "adapter: null\n")
    loaded = load(recipe, under=under)
    assert loaded.spec.adapter is None
    assert loaded.origins["adapter"] == str(recipe)
    assert "adapter.r" not in loaded.origins
    again = load(recipe, flags={"adapter.kind": ("--adapter", "lora")}, under=under).spec.adapter
    assert again is not None
    assert (again.kind, again.r) == ("lora", 8)


def test_an_option_of_the_site_can_be_left_out(config: Path, recipe: Path) -> None:
    recipe.write_text("model: m\ndata: {path: d}\nslurm: {options: {mail-type: false}}\n")
    assert load(recipe, under=layers(config)).spec.slurm.options == {"mail-type": False, "nice": 5}


def test_a_script_gets_what_is_for_scripts(config: Path) -> None:
    values = {"name": "s", "command": ("a.py",), "cwd": "/", "resources": {"launcher": "torchrun"}}
    loaded = load_script(values, flags={"resources.nodes": ("--nodes", 4)}, under=layers(config, "big"))
    spec = loaded.spec
    assert (spec.resources.launcher, spec.resources.on, spec.resources.nodes) == ("torchrun", "slurm", 4)
    assert (spec.slurm.partition, spec.tags) == ("large", ("ours",))
    assert loaded.origins["slurm.account"] == f"{config} defaults"
    assert "train.seed" not in loaded.origins


def test_no_file_is_no_default(tmp_path: Path, recipe: Path) -> None:
    assert site_layers(None, {"XDG_CONFIG_HOME": str(tmp_path)}) == []
    assert site_layers(None, {"XDG_CONFIG_HOME": str(recipe)}) == []
    assert site_layers(None, {"SEATRIAL_CONFIG": "/dev/null"}) == []


def test_the_file_is_found_where_such_files_are(tmp_path: Path, config: Path) -> None:
    assert config_path({"XDG_CONFIG_HOME": "/x"}) == Path("/x/seatrial/config.yaml")
    assert config_path({}) == Path.home() / ".config" / "seatrial" / "config.yaml"
    assert config_path({"XDG_CONFIG_HOME": "/x", "SEATRIAL_CONFIG": "/y.yaml"}) == Path("/y.yaml")


def test_a_named_file_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="there is no file"):
        site_layers(None, {"SEATRIAL_CONFIG": str(tmp_path / "nowhere.yaml")})


@pytest.mark.parametrize(
    ("text", "said", "remedy"),
    [
        ("- a\n", "its top level is list", ""),
        ("defaults: [\n", ":2:1", ""),
        ("default: {}\n", "unknown key 'default'", "did you mean 'defaults'?"),
        ("slurm: {account: a}\n", "unknown key 'slurm'", "defaults: {slurm"),
        ("defaults: 3\n", "3 is not a mapping", ""),
        ("defaults: {slurm: {acount: a}}\n", "unknown key 'slurm.acount'", "did you mean 'slurm.account'?"),
        ("defaults: {partition: a}\n", "unknown key 'partition'", "did you mean 'slurm.partition'?"),
        ("defaults: {slurm: 3}\n", "slurm = 3", ""),
        ("defaults: {train: {seed: -1}}\n", "train.seed = -1", ""),
        ("defaults: {resources: {time: 30}}\n", "30 of what?", ""),
        ("profiles: {big: {resources: {nodes: 0}}}\n", "resources.nodes = 0", ""),
        ("profiles: {big: {modle: x}}\n", "unknown key 'modle'", ""),
        ("profiles: [big]\n", "not a mapping of names", ""),
        ("profiles: {8: {}}\n", "not a mapping of names", ""),
        ("profile: 8\n", "not a profile's name", ""),
        ("profile: big\n", "it has none; its own key profile names it", ""),
        ("profile: bgi\nprofiles: {big: {}, small: {}}\n", "it has: big, small; its own", "did you mean 'big'?"),
    ],
)  # fmt: skip
def test_a_broken_file_is_refused_with_the_place(config: Path, text: str, said: str, remedy: str) -> None:
    error = refusal(config, text)
    assert said in error.evidence
    assert remedy in error.remedy


@pytest.mark.parametrize("key", sorted(OF_A_RECIPE))
def test_what_a_run_is_has_no_default(config: Path, key: str) -> None:
    assert f"{key} can't have a default" in refusal(config, f"defaults: {{{key}: x}}\n").evidence


def test_a_profile_that_does_not_exist_is_refused_with_the_nearest(config: Path) -> None:
    error = refusal(config, CONFIG, "bigg")
    assert "it has: small, big, plain" in error.evidence
    assert error.remedy == "did you mean 'big'?"


def test_a_profile_without_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        site_layers("big", {"XDG_CONFIG_HOME": str(tmp_path)})
    assert caught.value.evidence == f"{tmp_path}/seatrial/config.yaml: no such file"


def test_defaults_that_only_a_recipe_completes_are_no_error_until_it_does_not(
    config: Path, recipe: Path
) -> None:
    under = layers(config, text="defaults: {train: {tp_size: 2}}")
    recipe.write_text("model: m\ndata: {path: d}\ntrain: {parallel: tp}\n")
    assert load(recipe, under=under).spec.train.tp_size == 2
    recipe.write_text("model: m\ndata: {path: d}\n")
    with pytest.raises(SpecError) as caught:
        load(recipe, under=under)
    assert (
        caught.value.evidence
        == f"train: tp_size needs parallel tp\nwith train.tp_size from {config} defaults"
    )


def test_run_shows_where_its_values_come_from(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "script.py").write_text("")
    monkeypatch.setenv("SEATRIAL_CONFIG", str(config))
    config.write_text(
        "defaults: {slurm: {account: nlp}}\nprofiles: {two: {resources: {nproc: 2}, slurm: {qos: high}}}\n"
    )
    script = str(tmp_path / "script.py")
    argv = [
        "run",
        "--dry-run",
        "--profile",
        "two",
        "--qos",
        "low",
        "--on",
        "local",
        "--gpus",
        "0",
        "--",
        script,
    ]
    done = CliRunner().invoke(cli, argv, standalone_mode=False)
    assert done.exception is None
    assert f"slurm.account: {config} defaults\n" in done.stdout
    assert f"resources.nproc: profile two of {config}\n" in done.stdout
    assert "slurm.qos: --qos\n" in done.stdout
    assert "resources.on: --on\n" in done.stdout
    assert '"nproc": 2' in done.stdout
    assert '"launcher": "torchrun"' in done.stdout


def test_a_name_that_is_none_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("")
    done = CliRunner().invoke(
        cli, ["run", "--name", "a b", "--", str(tmp_path / "script.py")], standalone_mode=False
    )
    assert isinstance(done.exception, SpecError)
    assert "name: a name has" in done.exception.evidence
