"""The directory that a cluster's making leaves on this machine: the recipe as it was used, and what is secret.

``$XDG_DATA_HOME/seatrial/clusters/NAME`` (mode 0700)::

    cluster.json    what it is, where, by which recipe, since when
    cluster.yaml    as it was last planned
    recipe/         the recipe's files: a cluster is changed and removed by the recipe that made it
    private/        the state's key, the backups' password, plans while they are used, Terraform's log
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from seatrial.errors import SpecError
from seatrial.provision.nebius.account import Key, write_private
from seatrial.provision.nebius.adapters import SECRETS, Rendered
from seatrial.provision.nebius.checkout import EXAMPLE, Checkout
from seatrial.runs import lock
from seatrial.runs.files import read_json
from seatrial.spec.cluster import NAME, ClusterSpec, State

ADOPTED = "seatrial_adopted.tf.json"


@dataclass(frozen=True, slots=True)
class Work:
    """One cluster's directory."""

    name: str
    root: Path

    @classmethod
    def of(cls, name: str) -> Work:
        """The directory of a cluster, whether it is there or not.

        Raises:
            SpecError: no cluster can be called so.
        """
        if not NAME.fullmatch(name):
            raise SpecError(
                f"{name!r} can't be a cluster's name", evidence="2 to 32 small letters, digits and hyphens"
            )
        return cls(name, clusters() / name)

    @property
    def private(self) -> Path:
        """For what is secret."""
        return self.root / "private"

    @property
    def log(self) -> Path:
        """What Terraform said, in its machine-readable form; the current one's."""
        return self.private / "terraform.jsonl"

    @property
    def installation(self) -> Path:
        """Where Terraform runs."""
        return self.root / "recipe" / "soperator" / "installations" / self.name

    @property
    def is_begun(self) -> bool:
        """Something of it may exist."""
        return bool(self.record.get("begun"))

    @property
    def record(self) -> dict[str, Any]:
        """``cluster.json``."""
        found = read_json(self.root / "cluster.json")
        return found if isinstance(found, dict) else {}

    def note(self, **values: Any) -> None:
        """Adds to ``cluster.json``."""
        write_private(self.root / "cluster.json", {"schema": 1, **self.record, **values})

    def require(self) -> dict[str, Any]:
        """The record of a cluster that this machine made.

        Raises:
            SpecError: it made none of that name.
        """
        if not self.is_begun:
            known = sorted(p.parent.name for p in clusters().glob("*/cluster.json"))
            raise SpecError(
                f"this machine made no cluster {self.name!r}",
                evidence=f"{clusters()} has {', '.join(known) if known else 'none'}",
                remedy="go to the machine that made it; or, if its directory is lost: seatrial cluster plan --adopt, then up",
            )
        return self.record

    @contextmanager
    def held(self, what: str) -> Iterator[None]:
        """The directory, made where it is missing, for this command alone.

        Raises:
            SpecError: another command has it, or a Terraform that outlived its command still works.
        """
        for directory in (self.root, self.private):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if stat.S_IMODE(directory.stat().st_mode) & 0o077:
                directory.chmod(0o700)
        try:
            with lock.hold(self.root / ".lock", what):
                self._check_no_orphan()
                yield
        except SpecError as error:
            if "is in use" in error.what:
                raise SpecError(
                    f"another command works on the cluster {self.name}", evidence=error.evidence, remedy="wait for it to end"
                ) from None  # fmt: skip
            raise

    def _check_no_orphan(self) -> None:
        """A Terraform whose command was killed goes on, rightly: it saves what it makes."""
        found = read_json(self.private / "terraform.pid")
        if not isinstance(found, dict):
            return
        try:
            process = psutil.Process(int(found["pid"]))
            alive = (
                abs(process.create_time() - found["created"]) < 1 and process.status() != psutil.STATUS_ZOMBIE
            )
        except (psutil.Error, KeyError, ValueError):
            alive = False
        if alive:
            raise SpecError(
                f"a Terraform of an earlier command still works on {self.name}",
                evidence=f"process {found['pid']}, for {time.time() - found['created']:.0f} s; it says what it does in {self.log}",
                remedy=f"wait for it (kill -INT {found['pid']} has it finish what is begun, save, and end)",
            )

    def bundle(self, recipe: Checkout, name: str) -> None:
        """Copies what is needed of a recipe, once.

        Raises:
            SpecError: the cluster was made by another version.
        """
        kept = self.root / "recipe"
        version = self.record.get("recipe_version")
        if self.is_begun and version is not None and version != recipe.version:
            raise SpecError(
                f"{self.name} was made by the recipe {version}, and this one is {recipe.version}",
                evidence=f"{recipe.root}; the recipe that made it is kept in {kept}",
                remedy=f"--recipe with {version}; a cluster is upgraded by the operator's own way, not by another recipe",
            )
        if (self.installation / "main.tf").exists() and self.is_begun:
            return
        base = recipe.root.parent
        for file in recipe.files():
            target = kept / "soperator" / file.relative_to(recipe.root) if file.is_relative_to(recipe.root) else kept / file.relative_to(base)  # fmt: skip
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
            target.chmod(0o700 if os.access(file, os.X_OK) else 0o600)
        example = kept / "soperator" / EXAMPLE
        self.installation.mkdir(parents=True, exist_ok=True)
        for file in example.glob("*.tf"):
            shutil.copyfile(file, self.installation / file.name)

    def write_inputs(
        self, spec: ClusterSpec, rendered: Rendered, text: str, bucket: str | None, *, lockfile: bool
    ) -> None:
        """The variables, the place of the state, and the description that they come from; nothing secret."""
        assert not SECRETS & rendered.values.keys()
        write_private(self.installation / "seatrial.auto.tfvars.json", rendered.values)
        backend = _backend(spec, spec.state, self, bucket, lockfile=lockfile)
        write_private(self.installation / "backend_override.tf.json", {"terraform": {"backend": backend}})
        mask = os.umask(0o077)
        try:
            (self.root / "cluster.yaml").write_text(text, encoding="utf-8")
        finally:
            os.umask(mask)

    def adopt(self, imports: list[tuple[str, str]]) -> None:
        """Import blocks for addresses and ids; none takes the file away."""
        path = self.installation / ADOPTED
        if not imports:
            path.unlink(missing_ok=True)
            return
        write_private(path, {"import": [{"to": to, "id": id_} for to, id_ in imports]})

    def password(self) -> str:
        """Of the backups: made once."""
        path = self.private / "secrets.json"
        kept = read_json(path)
        if not isinstance(kept, dict):
            kept = {"backups_password": secrets.token_urlsafe(24)}
            write_private(path, kept)
        return str(kept["backups_password"])

    def started(self) -> set[str]:
        """Addresses that Terraform has begun to make here, in this or earlier commands: what exists of them is ours."""
        found: set[str] = set()
        for path in self.private.glob("terraform*.jsonl"):
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                if '"apply_start"' in line:
                    try:
                        found.add(json.loads(line)["hook"]["resource"]["addr"])
                    except (ValueError, KeyError, TypeError):
                        continue
        return found

    def rotate_log(self) -> None:
        """Puts the log of an earlier Terraform aside."""
        if self.log.exists():
            self.log.rename(self.private / f"terraform-{int(time.time() * 1000)}.jsonl")

    def forget(self) -> None:
        """Removes the directory of a cluster that is gone."""
        shutil.rmtree(self.root)


def clusters() -> Path:
    """Where clusters' directories are (XDG Base Directory Specification)."""
    return Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser() / "seatrial" / "clusters"


def environment(spec: ClusterSpec, work: Work, token: str, key: Key | None) -> dict[str, str]:
    """What Terraform gets beside this process's own: all that is secret, and nothing of it in a file."""
    found = {
        **os.environ,
        "TF_IN_AUTOMATION": "1",
        "TF_INPUT": "0",
        "CHECKPOINT_DISABLE": "1",
        "NEBIUS_IAM_TOKEN": token,
        "TF_VAR_iam_token": token,
        "TF_VAR_backups_password": work.password(),
        "NEBIUS_TENANT_ID": spec.cloud.tenant,
        "NEBIUS_PROJECT_ID": spec.cloud.project,
    }
    for name in ("TF_LOG", "TF_LOG_CORE", "TF_LOG_PROVIDER"):
        found.pop(name, None)  # its traces hold tokens
    if key is not None:
        found |= {
            "AWS_ACCESS_KEY_ID": key.access_key_id, "AWS_SECRET_ACCESS_KEY": key.secret,
            "TF_VAR_aws_access_key_id": key.access_key_id, "TF_VAR_aws_secret_access_key": key.secret,
        }  # fmt: skip
    return found


def _backend(
    spec: ClusterSpec, state: State, work: Work, bucket: str | None, *, lockfile: bool
) -> dict[str, Any]:
    if state.kind == "local":
        return {"local": {"path": str(work.private / "terraform.tfstate")}}
    assert bucket is not None
    region = spec.cloud.region
    return {
        "s3": {
            "bucket": bucket,
            "key": f"{spec.name}/slurm-k8s.tfstate",
            "region": region,
            "endpoints": {"s3": state.endpoint or f"https://storage.{region}.nebius.cloud:443"},
            "skip_region_validation": True,
            "skip_credentials_validation": True,
            "skip_requesting_account_id": True,
            "skip_metadata_api_check": True,
            "skip_s3_checksum": True,
            "use_path_style": True,
            **({"use_lockfile": True} if lockfile else {}),
        }
    }
