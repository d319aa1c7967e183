"""What a look at ``cluster.yaml`` finds before any cloud is asked: each rule has a cluster that it refuses, and one that it lets pass."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest

from seatrial.command import Completed
from seatrial.errors import SpecError
from seatrial.provision.nebius import preflight
from seatrial.provision.nebius.checkout import Checkout
from seatrial.provision.nebius.hcl import object_keys, variables
from seatrial.provision.nebius.preflight import Looked, line_of
from seatrial.provision.nebius.rules import RULES
from seatrial.provision.nebius.templates import TEMPLATES, Answers, cluster_yaml, fabrics_of, regions_of
from seatrial.spec.cluster import load_cluster
from tests.nebius.recipe import VERSIONS, write_recipe

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHUTZDHBmnGAyFKKSDMwHKJWxSZs4QmzWt2PrvvTGCuy me@here"


def look(path: Path, recipe: Path | None = None) -> Looked:
    """Without this machine's programs, which have tests of their own."""
    return preflight.look(path, recipe, runner=_at_once)


def _at_once(argv: Any, **_: Any) -> Any:
    text = '{"terraform_version": "1.11.4"}' if "terraform" in argv[0] else "mikefarah v4.1"
    return Completed(tuple(argv), 0, text, "")


def answers(template: str = "2x8-h100", **more: Any) -> Answers:
    return Answers(
        **{
            "name": "demo", "tenant": "tenant-e00a1", "project": "project-e00b2", "region": regions_of(template)[0],
            "ssh_key": KEY, "template": template, **more,
        }
    )  # fmt: skip


@pytest.fixture(params=VERSIONS)
def recipe(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write_recipe(tmp_path / "library", request.param)


def edited(tmp_path: Path, *changes: str, template: str = "2x8-h100") -> Path:
    """The template's file with ``key.path=YAML`` laid over it."""
    from io import StringIO

    from ruamel.yaml import YAML

    yaml = YAML()
    data = yaml.load(cluster_yaml(answers(template)))
    for change in changes:
        key, _, text = change.partition("=")
        *parents, last = [int(p) if p.isdigit() else p for p in key.split(".")]
        node = data
        for part in parents:
            node = node.setdefault(part, {}) if isinstance(part, str) else node[part]
        value = YAML(typ="safe", pure=True).load(StringIO(text))
        if value == "DROP":
            del node[last]
        elif isinstance(node, list) and isinstance(last, int) and last == len(node):
            node.append(value)
        else:
            node[last] = value
    path = tmp_path / "cluster.yaml"
    with path.open("w") as file:
        yaml.dump(data, file)
    return path


def no_tools(looked: Looked) -> list[Any]:
    return [f for f in looked.findings if f.rule != "tool"]


@pytest.mark.parametrize("template", TEMPLATES)
def test_what_init_writes_has_nothing_to_be_refused(template: str, recipe: Path, tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(cluster_yaml(answers(template)))
    found = [f for f in no_tools(look(path, recipe)) if f.verdict == "FAIL"]
    assert found == []


BOTH, OLD, NEW = VERSIONS, ("1.20.1",), ("1.22.3",)
WORKER = "{name: worker, nodes: 2, platform: gpu-h100-sxm, preset: 8gpu-128vcpu-1600gb, fabric: fabric-6}"
# rule: (recipes, changes, place, words of what is found)
BROKEN: list[tuple[str, tuple[str, ...], list[str], str, str]] = [
    ("region-unknown", BOTH, ["cloud.region=eu-nord1"], "cloud.region", "no region 'eu-nord1'"),
    ("platform-unknown", BOTH, ["workers.0.platform=gpu-h100"], "workers.0.platform", "no platform 'gpu-h100'"),
    ("preset-unknown", BOTH, ["accounting={preset: 9vcpu-36gb}"], "accounting.preset", "no preset '9vcpu-36gb'"),
    ("platform-elsewhere", BOTH, ["cloud.region=eu-west1"], "workers.0.platform", "not in eu-west1"),
    ("too-few-nodes", NEW, ["system={min: 2}"], "system.min", "2 nodes; the recipe needs 3"),
    ("too-few-nodes", BOTH, ["system={min: 4, max: 3}"], "system.max", "at most 3"),
    ("boot-disk-small", NEW, ["workers.0.boot_disk_gib=128"], "workers.0.boot_disk_gib", "needs 512"),
    ("boot-disk-small", OLD, ["workers.0.boot_disk_gib=93"], "workers.0.boot_disk_gib", "needs 128"),
    ("preset-small", BOTH, ["system={preset: 2vcpu-8gb}"], "system.preset", "too small"),
    ("group-uneven", OLD, ["workers.0.nodes=5", "workers.0.nodes_per_group=2"], "workers.0.nodes_per_group", "don't divide"),
    ("worker-sets", OLD, [f"workers.1={WORKER}"], "workers", "exactly one"),
    ("worker-sets", NEW, [f"workers.1={WORKER}"], "workers.1.name", "called 'worker'"),
    ("accounting-incomplete", BOTH, ["storage.accounting=null"], "storage.accounting", "no file system"),
    ("image-disk-null", BOTH, ["variables={node_local_image_disk: {enabled: false}}"], "variables.node_local_image_disk", "no spec"),
    ("existing-or-spec", BOTH, ["storage.jail={size_gib: 10, existing: computefilesystem-e1}"], "storage.jail", "both"),
    ("existing-or-spec", BOTH, ["storage.jail={block_kib: 4}"], "storage.jail", "neither"),
    ("names-twice", BOTH, ["storage.submounts.1.name=training"], "storage.submounts.1.name", "called 'training'"),
    ("id-placeholder", BOTH, ["storage.jail={existing: computefilesystem-<YOUR-FILESTORE-ID>}"], "storage.jail.existing", "no file system's id"),
    ("name", BOTH, ["name=d"], "name", "'d' can't be"),
    ("id-prefix", BOTH, ["cloud.project=tenant-e00b2"], "cloud.project", "no id of this kind"),
    ("id-prefix", BOTH, ["cloud.tenant=tenant-<YOUR-TENANT>"], "cloud.tenant", "no id of this kind"),
    ("nfs-size", BOTH, ["variables={nfs: {enabled: true, size_gibibytes: 1000, resource: {platform: cpu-d3, preset: 32vcpu-128gb}, public_ip: false}}"], "variables.nfs.size_gibibytes", "1000 GiB"),
    ("telemetry-profile", BOTH, ["public_o11y_enabled=true"], "variables.o11y_profile", "no CLI profile"),
    ("variable-unknown", BOTH, ["variables={slurm_sharedmemory_size_gibibytes: 64}"], "variables.slurm_sharedmemory_size_gibibytes", "no variable"),
    ("variable-unknown", BOTH, ["variables={nfs: {enabled: false, size_gibibyte: 93}}"], "variables.nfs.size_gibibyte", "drop it in silence"),
    ("accounting-starved", BOTH, ["accounting={preset: 2vcpu-8gb}"], "accounting.preset", "-1.1 CPUs"),
    ("fabric-empty", BOTH, ["workers.0.fabric=''"], "workers.0.fabric", "no name"),
    ("fabric-elsewhere", BOTH, ["workers.0.fabric=fabric-7"], "workers.0.fabric", "not known for gpu-h100-sxm"),
    ("fabric-unused", BOTH, ["workers.0.preset=1gpu-16vcpu-200gb"], "workers.0.fabric", "can't join"),
    ("fabric-unused", BOTH, ["workers.0.fabric=DROP"], "workers.0.fabric", "would crawl"),
    ("ssh-key", BOTH, ["ssh_keys.0=''"], "ssh_keys.0", "it is empty"),
    ("ssh-key", BOTH, ["ssh_keys.0=ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA"], "ssh_keys.0", "cut off"),
    ("ssh-key", BOTH, ["ssh_keys.0=~/nowhere.pub"], "ssh_keys.0", "neither a key nor a file"),
    ("disk-step", BOTH, ["storage.images={size_gib: 1000}"], "storage.images.size_gib", "multiples of 93"),
    ("disk-step", BOTH, ["storage.local=[{name: a, path: /mnt/a, size_gib: 1000, type: NETWORK_SSD_NON_REPLICATED}]"], "storage.local.0.size_gib", "multiples of 93"),
    ("image-disk-type", BOTH, ["storage.images={size_gib: 930, type: NETWORK_SSD}"], "storage.images.type", "no NETWORK_SSD"),
    ("block-size", BOTH, ["storage.jail={size_gib: 100, block_kib: 6}"], "storage.jail.block_kib", "6 KiB"),
    ("shared-memory-large", BOTH, ["shared_memory_gib=1600"], "shared_memory_gib", "1600 GiB"),
    ("paths-clash", BOTH, ["storage.submounts.1.path=/mnt/training"], "storage.submounts.1.path", "mounted twice"),
    ("paths-clash", BOTH, ["storage.submounts.1.path=/mnt/training/out"], "storage.submounts.1.path", "lies in /mnt/training"),
    ("paths-clash", NEW, ["storage.submounts.1.path=/home"], "storage.submounts.1.path", "homes"),
    ("partitions", BOTH, ["variables={slurm_partition_config_type: custom}"], "variables.slurm_partition_raw_config", "no line"),
    ("partitions", BOTH, ["variables={slurm_partition_config_type: custom, slurm_partition_raw_config: [main]}"], "variables.slurm_partition_raw_config.0", "no partition"),
    ("partitions", BOTH, ["variables={slurm_partition_config_type: custom, slurm_partition_raw_config: ['PartitionName=a Nodes=b State=UP']}"], "variables.slurm_partition_raw_config.0", "called 'b'"),
    ("operator-version", BOTH, ["variables={slurm_operator_version: 1.19.0}"], "variables.slurm_operator_version", "operator 1.19.0"),
    ("telemetry-foreign", BOTH, ["public_o11y_enabled=true"], "public_o11y_enabled", "in the middle of `up`"),
    ("secret-in-file", BOTH, ["variables={backups_password: hunter2}"], "variables.backups_password", "is a secret"),
    ("jail-dies", BOTH, ["storage.jail={size_gib: 13000}"], "storage.jail.size_gib", "not backed up"),
    ("jail-dies", BOTH, [], "storage.jail", "die with it"),
    ("preemptible-unknown", OLD, ["workers.0.preemptible=true"], "workers.0.preemptible", "no preemptible"),
    ("drivers-missing", OLD, [], "drivers", "knows no preinstalled"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "versions", "changes", "place", "words"),
    BROKEN,
    ids=[f"{b[0]}-{i}" for i, b in enumerate(BROKEN)],
)
def test_each_rule_refuses_what_it_is_for(
    rule: str, versions: tuple[str, ...], changes: list[str], place: str, words: str, tmp_path: Path
) -> None:
    for version in versions:
        looked = look(edited(tmp_path, *changes), write_recipe(tmp_path / version, version))
        found = [f for f in looked.findings if f.rule == rule and f.place == place]
        assert len(found) == 1, (version, looked.findings)
        assert words in found[0].found
        assert found[0].fix
        assert "hunter2" not in str(looked.findings)


def test_every_rule_has_a_failing_example() -> None:
    assert {b[0] for b in BROKEN} | {"variable-missing"} == set(RULES)


def test_a_variable_that_nothing_sets(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "library")
    with (recipe / "installations/example/variables.tf").open("a") as file:
        file.write('variable "new_in_this_release" {\n  type = string\n}\n')
    [found] = [f for f in look(edited(tmp_path), recipe).findings if f.rule == "variable-missing"]
    assert "new_in_this_release" in found.found


class TestTheRecipe:
    def test_a_module_that_is_missing(self, recipe: Path, tmp_path: Path) -> None:
        """The eighth part of a copy: modules outside the recipe's own directory."""
        (recipe.parent / "modules/nfs-server/main.tf").unlink()
        [found] = [f for f in look(edited(tmp_path), recipe).findings if f.rule == "recipe-incomplete"]
        assert "nfs-server is not there" in found.found
        assert found.place.startswith("recipe: installations/example/main.tf:")

    def test_a_module_that_is_a_stub(self, recipe: Path, tmp_path: Path) -> None:
        (recipe.parent / "modules/gpu-operator/main.tf").write_text('variable "x" {}\n')
        [found] = [f for f in look(edited(tmp_path), recipe).findings if f.rule == "recipe-incomplete"]
        assert "holds nothing" in found.found

    def test_an_unknown_version(self, recipe: Path, tmp_path: Path) -> None:
        (recipe / "VERSION").write_text("5.0.0-1\n")
        with pytest.raises(SpecError, match=r"5\.0\.0, which Seatrial does not know") as refused:
            look(edited(tmp_path), recipe)
        assert "1.20.x, 1.22.x" in refused.value.evidence

    def test_no_recipe(self, tmp_path: Path) -> None:
        with pytest.raises(SpecError, match="no checkout"):
            look(edited(tmp_path), tmp_path / "elsewhere")
        with pytest.raises(SpecError, match="not said"):
            look(edited(tmp_path))

    def test_a_recipe_that_lacks_a_variable(self, recipe: Path, tmp_path: Path) -> None:
        path = recipe / "installations/example/variables.tf"
        path.write_text(path.read_text().replace("slurm_shared_memory_size_gibibytes", "other"))
        found = [f for f in look(edited(tmp_path), recipe).findings if f.rule == "variable-unknown"]
        assert any("lacks 'slurm_shared_memory_size_gibibytes'" in f.found for f in found)

    def test_the_terraform_that_it_needs(self, recipe: Path) -> None:
        least, why = Checkout.find(recipe).terraform_minimum
        assert least == (1, 9)
        assert "validations look at other variables" in why

    def test_variables_with_their_keys(self, recipe: Path) -> None:
        found = Checkout.find(recipe).variables()
        assert found["company_name"].required and not found["k8s_version"].required
        assert found["filestore_jail"].keys == {
            "existing": {"id": None},
            "spec": {"size_gibibytes": None, "block_size_kibibytes": None},
        }
        workers = found["slurm_nodeset_workers"].keys
        assert workers is not None and workers["gpu_cluster"] == {"infiniband_fabric": None}
        assert found["backups_retention"].keys is None


def test_reading_variables_agrees_with_a_whole_parser(recipe: Path) -> None:
    hcl2 = pytest.importorskip("hcl2", reason="python-hcl2 is not installed")
    path = recipe / "installations/example/variables.tf"
    text = path.read_text() + HARD
    parsed = {name.strip('"'): body for block in hcl2.loads(text)["variable"] for name, body in block.items()}
    found = {v.name: v for v in variables(text)}
    assert list(found) == list(parsed)
    for name, variable in found.items():
        assert variable.required == ("default" not in parsed[name]), name
        assert variable.keys == object_keys(str(parsed[name].get("type", "")).removeprefix("${")), name
    assert found["hard"].keys == {"a": {"b": None, "c": None}, "d": None}
    assert found["hard"].required and not found["after"].required


HARD = """
variable "hard" {
  description = <<-EOT
    A text with "quotes, { braces and
    default = nothing
  EOT
  # default = 3
  type = list(object({
    a = optional(object({ b = string, c = optional(list(number), []) }))
    /* e = string */
    d = map(object({ x = string }))
  }))
  validation {
    condition     = length([for h in var.hard : h if h.d == "}"]) == 0
    error_message = "No ${"braces"} please: default = 1"
  }
}

variable "after" {
  default = {
    type = "x"
  }
}
"""


def fake_tools(directory: Path, **texts: str) -> None:
    directory.mkdir(exist_ok=True)
    for name, text in texts.items():
        path = directory / name
        path.write_text(f"#!/bin/sh\ncat <<'X'\n{text}\nX\n")
        path.chmod(0o755)


class TestTools:
    """Problems 1 to 4 of the tutorial: what is missing, what is another program, what is too old."""

    GOOD: ClassVar[dict[str, str]] = {
        "terraform": '{"terraform_version": "1.11.4"}', "nebius": "0.12", "kubectl": "v1.31", "jq": "jq-1.7", "bash": "",
        "yq": "yq (https://github.com/mikefarah/yq/) version v4.44.3",
    }  # fmt: skip

    def found(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **texts: str) -> dict[str, str]:
        fake_tools(tmp_path / "bin", **{name: text for name, text in texts.items() if text != "NONE"})
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin-of-nothing")
        (tmp_path / "bin" / "cat").symlink_to("/bin/cat")
        looked = preflight.look(edited(tmp_path), write_recipe(tmp_path / "library"))
        return {f.place: f.found for f in looked.findings if f.rule == "tool"}

    def test_all_are_there(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.found(tmp_path, monkeypatch, **self.GOOD) == {}

    @pytest.mark.parametrize("name", ["terraform", "nebius", "kubectl", "jq", "yq"])
    def test_one_is_missing(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        found = self.found(tmp_path, monkeypatch, **{**self.GOOD, name: "NONE"})
        assert list(found) == [f"this machine: {name}"]

    def test_another_yq(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        found = self.found(tmp_path, monkeypatch, **{**self.GOOD, "yq": "yq 0.0.0"})
        assert "another yq: it says 'yq 0.0.0'" in found["this machine: yq"]

    def test_a_terraform_that_the_recipe_says_is_enough(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found = self.found(
            tmp_path, monkeypatch, **{**self.GOOD, "terraform": '{"terraform_version": "1.8.5"}'}
        )
        assert "is 1.8.5, and the recipe says >= 1.8, but its validations" in found["this machine: terraform"]


class TestBadInput:
    def test_a_misspelt_key(self, tmp_path: Path) -> None:
        with pytest.raises(SpecError, match="not a valid cluster") as refused:
            load_cluster(edited(tmp_path, "workers.0.fabrik=fabric-6"))
        assert "unknown key 'workers.0.fabrik'" in refused.value.evidence
        assert "fabric" in refused.value.remedy

    def test_a_private_key(self, tmp_path: Path) -> None:
        """Refused, and never repeated; wherever it was pasted."""
        secret = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXk\n-----END OPENSSH PRIVATE KEY-----"
        path = tmp_path / "cluster.yaml"
        path.write_text(
            cluster_yaml(answers()).replace(f"  - {KEY}", "  - |\n    " + secret.replace("\n", "\n    "))
        )
        with pytest.raises(SpecError, match="private key") as refused:
            load_cluster(path)
        assert "b3BlbnNza" not in str(refused.value)

    def test_a_private_key_in_the_file_that_is_named(self, tmp_path: Path, recipe: Path) -> None:
        (tmp_path / "id").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXk\n")
        looked = look(edited(tmp_path, "ssh_keys.0=id"), recipe)
        [found] = [f for f in looked.findings if f.rule == "ssh-key"]
        assert "id is a private key; the public one is in id.pub" in found.found
        assert "b3Blb" not in str(looked.findings)

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(SpecError, match="there is no"):
            load_cluster(tmp_path / "cluster.yaml")


def test_where_a_key_stands(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(cluster_yaml(answers()))
    lines = path.read_text().splitlines()
    for place, words in (("workers.0.fabric", "fabric:"), ("storage.submounts.1.size_gib", "inference"), ("name", "name: demo"), ("storage.jail.block_kib", "jail:")):  # fmt: skip
        line = line_of(path, place)
        assert line is not None and words in lines[line - 1], place
    assert line_of(path, "this machine: yq") is None


def tutorial(tmp_path: Path) -> Looked:
    """Two nodes of 8 H100, three file systems of 1 TiB, local disks of 1 TiB: counted by hand in the price test."""
    path = edited(
        tmp_path,
        "storage.jail={size_gib: 1024}",
        "storage.accounting={size_gib: 512}",
        "storage.submounts.0.size_gib=1024",
        "storage.submounts.1.size_gib=1024",
        "storage.local=[{name: local-data, path: /mnt/local-data, size_gib: 1024}]",
    )
    return look(path, write_recipe(tmp_path / "library", "1.20.1"))


def test_what_it_takes(tmp_path: Path) -> None:
    need = tutorial(tmp_path).need
    gib = 2**30
    assert need.amounts == {
        "compute.instance.count": 10,
        "compute.disk.count": 10,
        "compute.instance.gpu.h100": 16,
        "compute.instance.non-gpu.vcpu": 104,
        "compute.gpucluster.count": 1,
        "compute.filesystem.count": 5,
        "compute.filesystem.size.network-ssd": 3712 * gib,
        "compute.disk.size.network-ssd": 4544 * gib,
        "compute.disk.size.network-ssd-io-m3": 1860 * gib,
        "mk8s.cluster.count": 1,
        "vpc.ipv4-address.public.count": 1,
    }
    assert need.most["compute.instance.count"] == 16
    assert need.most["compute.instance.non-gpu.vcpu"] == 152


def test_the_quota_that_the_tutorial_ran_into(tmp_path: Path) -> None:
    """128 + 512 + 3 × 2048 GiB are 7,284,264,534,016 bytes, and the author counted three of the five."""
    path = edited(
        tmp_path,
        "storage.jail={size_gib: 2048}",
        "storage.accounting={size_gib: 512}",
        "storage.submounts.0.size_gib=2048",
        "storage.submounts.1.size_gib=2048",
    )
    need = look(path, write_recipe(tmp_path / "library")).need
    assert need.amounts["compute.filesystem.size.network-ssd"] == 7_284_264_534_016 > 5_497_558_138_880
    assert len(need.parts["compute.filesystem.size.network-ssd"]) == 5


def test_what_it_costs(tmp_path: Path) -> None:
    cost = tutorial(tmp_path).cost
    assert cost.hour == pytest.approx(16 * 3.85 + 2.579 + 0.407 + 0.742, abs=0.01)
    assert 1560 < cost.hour * 24 < 1580
    assert cost.to_dict()["prices_of"] == "2026-09-20"
    assert cost.unpriced == []


def test_a_price_of_ones_own(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "library")
    listed = look(edited(tmp_path), recipe).cost.hour
    own = look(edited(tmp_path, "prices={gpu_hour: 2.85}"), recipe).cost.hour
    assert listed - own == pytest.approx(16 * 1.00)


def test_it_takes_less_than_a_second(tmp_path: Path) -> None:
    """Beside Terraform's own start, which is asked for its version."""
    path, recipe = edited(tmp_path), write_recipe(tmp_path / "library")
    began = time.perf_counter()
    look(path, recipe)
    assert time.perf_counter() - began < 1


def test_loading_it_loads_no_sdk() -> None:
    code = "import sys, seatrial.provision.nebius.preflight; print(*[m for m in ('nebius','grpc','hcl2','torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == []  # fmt: skip


def test_templates_name_fabrics_that_exist() -> None:
    for template in TEMPLATES:
        for region in regions_of(template):
            assert bool(fabrics_of(template, region)) == TEMPLATES[template].platform.startswith("gpu-")
