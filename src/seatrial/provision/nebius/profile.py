"""A profile in the site's file, so that ``--on NAME`` submits through a cluster's login node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from seatrial.errors import SpecError
from seatrial.provision.nebius.work import Work
from seatrial.runs.files import write_text
from seatrial.spec.document import read_text
from seatrial.spec.site import config_path, site_layers

_DIRECTORY = "seatrial"


def profile_of(work: Work, address: str, python: str | None, directory: str | None) -> dict[str, Any]:
    """What a recipe is given to run there."""
    shared = directory or f"{_shared(work)}/{_DIRECTORY}"
    return {
        "resources": {"on": f"ssh://root@{address}"},
        "slurm": {"remote": {"python": python or f"{shared}/venv/bin/python", "directory": shared}},
    }


def write_profile(name: str, profile: dict[str, Any]) -> Path:
    """Adds it to the site's file, or puts it in the place of an older one; all else in the file stays as it is written.

    Raises:
        SpecError: the file is not valid.
    """
    from io import StringIO

    from ruamel.yaml import YAML

    site_layers()  # a file that is wrong is told, and not written to
    path = config_path()
    yaml = YAML()
    try:
        data = yaml.load(read_text(path)) or {}
    except FileNotFoundError:
        data = {}
    if not isinstance(data, dict):
        raise SpecError(f"{path} is not a mapping", evidence=type(data).__name__)
    if data.get("profiles") is None:
        data["profiles"] = {}
    data["profiles"][name] = profile
    out = StringIO()
    yaml.dump(data, out)
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
    write_text(path, out.getvalue())
    path.chmod(mode)
    return path


def _shared(work: Work) -> str:
    """A file system that all nodes see: the first submount, or the jail's own."""
    from seatrial.spec.cluster import load_cluster

    path = work.root / "cluster.yaml"
    submounts = load_cluster(path).storage.submounts if path.exists() else ()
    return submounts[0].path if submounts else "/home"
