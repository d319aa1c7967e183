"""What a machine says of itself, what it still needs, and the script for it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from seatrial.errors import PlatformError, SpecError
from seatrial.provision.nodes import facts as asking
from seatrial.provision.nodes import remote, script
from seatrial.provision.nodes.facts import Facts, parse
from seatrial.provision.nodes.fleet import add, remove
from seatrial.provision.nodes.ready import judge
from seatrial.provision.nodes.steps import Options, environment, steps
from seatrial.runs.evidence import Verdict
from seatrial.spec.fleet import read_fleet

H100 = "\n".join(f"gpu=NVIDIA H100 80GB HBM3, 81559, 570.{n}" for n in [86] * 8)
DGX = f"""os=ubuntu
os_version=22.04
hostname=gpu1
uid=1000
home=/home/me
sudo=yes
now={{now}}
cpus=128
memory_kib=1676545024
shm_kib=838272512
root_free_kib=104857600
memlock=8192
nofile=1024
python=/usr/bin/python3 3.10
{H100}
pci_gpu=yes
rdma=mlx5_0 1 InfiniBand ACTIVE
rdma=mlx5_1 1 InfiniBand ACTIVE
rdma=mlx5_2 1 InfiniBand DOWN
rdma=mlx5_bond_0 1 Ethernet ACTIVE
route=bond0
address=10.0.0.11
systemd=yes
end=yes
"""
PLAIN = "os=debian\nos_version=12\nsudo=root\nnow={now}\ncpus=2\nmemory_kib=8388608\nshm_kib=4194304\nroute=eth0\nmemlock=unlimited\npython=/usr/bin/python3.11 3.11\nend=yes\n"


def facts(text: str = DGX, host: str = "gpu1") -> Facts:
    now = time.time()
    return parse(host, text.replace("{now}", str(int(now))), now)


def test_what_a_machine_says() -> None:
    found = facts()
    assert len(found.gpus) == 8 and found.gpus[0].driver == "570.86"
    assert found.infiniband == ["mlx5_0", "mlx5_1"] and found.roce == ["mlx5_bond_0"]
    assert found.system == ("ubuntu", "22.04") and found.shell == "sudo -n sh" and found.python is None
    assert abs(found.skew_s) < 2


def test_infiniband_is_never_switched_off() -> None:
    text = environment(facts(), Options())
    assert "NCCL_IB_HCA=mlx5_0,mlx5_1" in text
    assert "NCCL_IB_DISABLE" not in text
    assert "NCCL_SOCKET_IFNAME=bond0" in text
    assert "OMP_NUM_THREADS=8 " in text
    assert "NCCL_IB" not in environment(facts(PLAIN), Options())


@pytest.mark.parametrize(("name", "text"), [("ubuntu-8-gpus", DGX), ("debian", PLAIN)])
def test_the_script(name: str, text: str, golden: Callable[[str, Path | str], None], tmp_path: Path) -> None:
    options = Options(s3="s3://bucket/runs", exporter=True, shared="/mnt/shared") if name != "debian" else Options()  # fmt: skip
    made = script.bootstrap(steps(facts(text), options))
    golden(made, f"nodes/{name}.sh")
    path = tmp_path / "script.sh"
    for its in (made, script.undo()):
        path.write_text(its)
        for shell in ("sh", "bash"):
            checked = subprocess.run([shell, "-n", str(path)], capture_output=True, text=True, check=False)
            assert checked.returncode == 0, checked.stderr


def test_what_can_not_be_made_ready() -> None:
    with pytest.raises(SpecError, match="runs fedora 40"):
        steps(facts("os=fedora\nos_version=40\nsudo=root\nend=yes"), Options())
    with pytest.raises(SpecError, match="takes no orders as root"):
        steps(facts(DGX.replace("sudo=yes", "sudo=no")), Options())
    for directory in ("scratch", "/scratch/$(rm)", "/a b"):
        with pytest.raises(SpecError, match="no directory"):
            steps(facts(), Options(scratch=directory))


def test_a_driver_only_on_request() -> None:
    bare = facts(DGX.replace(H100, ""))
    [missing] = [s for s in steps(bare, Options()) if s.id == "driver"]
    assert missing.body.startswith("warn")
    [wanted] = [s for s in steps(bare, Options(driver="nvidia-driver-570-server")) if s.id == "driver"]
    assert wanted.body == "packages nvidia-driver-570-server"
    assert "driver" not in [s.id for s in steps(facts(), Options())]


@pytest.mark.parametrize("host", ["", "-oProxyCommand=x", "a b", "a;b", "$(x)"])
def test_hosts_that_are_none(host: str) -> None:
    with pytest.raises(SpecError, match="is no host"):
        remote.check_host(host)


def test_what_a_script_said() -> None:
    text = "Reading package lists\n@@seatrial\tpackages\tchanged\tinstalled: git\nnoise\n@@seatrial\tend\tsame\t\n"
    found = script.told(text)
    assert [(t.step, t.outcome, t.words) for t in found] == [("packages", "changed", "installed: git"), ("end", "same", "")]  # fmt: skip
    assert script.ended(found) and not script.ended(found[:1])


def test_verdicts() -> None:
    said = [("seatrial", "0.0.1"), ("torch", "2.13.0 7"), ("file", "changed /etc/profile.d/seatrial.sh"), ("end", "yes")]  # fmt: skip
    found = {e.check: e for e in judge(facts(), said)}
    assert {name: e.verdict for name, e in found.items()} == {
        "seatrial": Verdict.FAIL, "gpus": Verdict.PASS, "torch_gpus": Verdict.FAIL, "files": Verdict.FAIL, "memlock": Verdict.FAIL, "shm": Verdict.PASS,
        "disk": Verdict.PASS, "clock": Verdict.PASS,
    }  # fmt: skip
    later = parse("gpu1", DGX.replace("{now}", str(int(time.time()) + 60)), time.time())
    assert {e.check: e.verdict for e in judge(later, said)}["clock"] is Verdict.WARN
    assert {e.check: e.verdict for e in judge(facts(), [])}["torch_gpus"] is Verdict.UNMEASURED


def test_one_that_fails_stops_no_other() -> None:
    def do(host: str) -> str:
        if host == "bad":
            raise PlatformError("it is away")
        return host

    found = remote.each(["a", "bad", "b"], do)
    assert list(found) == ["a", "bad", "b"]
    assert found["a"] == "a" and isinstance(found["bad"], PlatformError)


def test_the_fleets_file_keeps_what_is_written_in_it(tmp_path: Path) -> None:
    path = tmp_path / "nodes.yaml"
    path.write_text("# ours\nnodes:\n  - host: gpu0   # the old one\n    gpus: 4\n")
    add(path, {"gpu1": facts(), "gpu0": facts(PLAIN, "gpu0")})
    text = path.read_text()
    assert "# ours" in text and "# the old one" in text
    fleet = read_fleet(path)
    assert [(n.host, n.gpus, n.address) for n in fleet.nodes] == [("gpu0", 0, None), ("gpu1", 8, "10.0.0.11")]
    assert remove(path, ["gpu1"]) and not remove(path, ["gpu1"])
    path.write_text("nodes: [{host: a}, {host: a}]")
    with pytest.raises(SpecError, match="not a valid fleet"):
        read_fleet(path)


def test_the_probe_says_what_this_machine_is() -> None:
    done = subprocess.run(["sh", "-s"], input=Path(asking.__file__).with_name("probe.sh").read_text(), capture_output=True, text=True, check=True)  # fmt: skip
    found = parse("here", done.stdout, time.time())
    assert (
        found.values["end"] == "yes" and found.cpus >= 1 and found.memory_gib > 0.1 and abs(found.skew_s) < 5
    )
