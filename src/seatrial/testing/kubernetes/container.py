"""What a pretend node puts around a container: volumes that are directories, variables, names of other pods."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seatrial.testing.kubernetes.kinds import CLAIMS, CONFIG_MAPS, PODS, SECRETS
from seatrial.testing.kubernetes.store import Object, Store

_SYSTEM = ("/tmp", "/dev/shm")
_PASSED_ON = (
    "PATH",
    "PYTHONPATH",
    "LANG",
    "LC_ALL",
    "HF_HUB_OFFLINE",
    "VIRTUAL_ENV",
    "LD_LIBRARY_PATH",
    "SEATRIAL_FAULT",
)
"""What the "image" has of this machine's environment."""


class Surroundings:
    """Makes them.

    Args:
        store: the objects.
        directory: for volumes.
    """

    def __init__(self, store: Store, directory: Path) -> None:
        self._store, self._directory = store, directory
        self._links: set[Path] = set()

    def remove_links(self) -> None:
        """Takes the links to volumes away."""
        for link in self._links:
            link.unlink(missing_ok=True)

    def claim(self, namespace: str, name: str) -> Path:
        """The directory that a volume claim is."""
        path = self._directory / "claims" / namespace / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def volumes(self, pod: Object) -> dict[str, Path]:
        """The directory that each volume is; `LookupError` where one can't be made."""
        namespace, home = pod["metadata"]["namespace"], self._directory / "pods" / pod["metadata"]["uid"]
        found = {}
        for volume in pod["spec"].get("volumes") or []:
            name = volume["name"]
            path = home / name
            if "persistentVolumeClaim" in volume:
                claim = volume["persistentVolumeClaim"]["claimName"]
                if self._store.find(CLAIMS, namespace, claim) is None:
                    raise LookupError(f'persistentvolumeclaim "{claim}" not found')
                path = self.claim(namespace, claim)
            else:
                path.mkdir(parents=True, exist_ok=True)
            sources = (volume.get("projected") or {}).get("sources") or (
                [volume] if "configMap" in volume or "secret" in volume else []
            )
            for source in sources:
                self._project(source, namespace, name, path)
            found[name] = path
        return found

    def _project(self, source: Object, namespace: str, volume: str, path: Path) -> None:
        if "configMap" in source:
            kind, name = CONFIG_MAPS, source["configMap"]["name"]
        elif "secret" in source:
            kind, name = SECRETS, source["secret"].get("secretName") or source["secret"]["name"]
        else:
            return
        body = self._store.find(kind, namespace, name)
        if body is None:
            raise LookupError(
                f'MountVolume.SetUp failed for volume "{volume}" : {kind.kind.lower()} "{name}" not found'
            )
        for key, text in (body.get("data") or {}).items():
            (path / key).write_bytes(text.encode() if kind is CONFIG_MAPS else base64.b64decode(text))
        for key, text in (body.get("binaryData") or {}).items():
            (path / key).write_bytes(base64.b64decode(text))

    def mount(self, at: str, source: Path, swaps: dict[str, str]) -> None:
        """A volume where the pod sees it: by a link where one can be made, else by another path in its arguments."""
        if at in _SYSTEM:
            return
        path = Path(at)
        if path.is_symlink() and path in self._links:
            path.unlink()
        if not path.exists() and os.access(path.parent, os.W_OK) and path.parent != Path("/"):
            path.symlink_to(source)
            self._links.add(path)
        else:
            swaps[at] = str(source)

    def hosts(self, pod: Object) -> Mapping[str, str]:
        """Names of the pods of its job, all of which are this machine."""
        subdomain = pod["spec"].get("subdomain")
        hosts = {f"{pod['spec'].get('hostname', '')}.{subdomain}": "127.0.0.1"} if subdomain else {}
        for other in self._store.every(PODS, pod["metadata"]["namespace"]):
            if subdomain and other["spec"].get("subdomain") == subdomain:
                hosts[f"{other['spec'].get('hostname')}.{subdomain}"] = "127.0.0.1"
        lead = (pod["metadata"].get("annotations") or {}).get("fake/lead")
        return {**hosts, **({lead: "127.0.0.1"} if lead else {})}

    def environment(self, pod: Object) -> dict[str, str]:
        """The container's environment; `LookupError` for a reference to what is not there."""
        namespace = pod["metadata"]["namespace"]
        found = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        found["HOSTNAME"] = pod["metadata"]["name"]
        for entry in pod["spec"]["containers"][0].get("env") or []:
            source = entry.get("valueFrom")
            if source is None:
                found[entry["name"]] = str(entry.get("value", ""))
            elif "fieldRef" in source:
                found[entry["name"]] = _field(pod, source["fieldRef"]["fieldPath"])
            else:
                ref = source.get("secretKeyRef") or source["configMapKeyRef"]
                kind = SECRETS if "secretKeyRef" in source else CONFIG_MAPS
                body = self._store.find(kind, namespace, ref["name"])
                if body is None:
                    raise LookupError(f'{kind.kind.lower()} "{ref["name"]}" not found')
                if ref["key"] not in (body.get("data") or {}):
                    raise LookupError(
                        f"couldn't find key {ref['key']} in {kind.kind} {namespace}/{ref['name']}"
                    )
                text = body["data"][ref["key"]]
                found[entry["name"]] = base64.b64decode(text).decode() if kind is SECRETS else text
        return found


def _field(pod: Object, path: str) -> str:
    if "['" in path:
        head, _, key = path.partition("['")
        return str((pod["metadata"].get(head.partition(".")[2]) or {}).get(key.rstrip("']"), ""))
    if path == "status.podIP":
        return "127.0.0.1"
    value: Any = pod
    for part in path.split("."):
        value = value.get(part, "") if isinstance(value, dict) else ""
    return str(value)


def swapped(text: str, swaps: Mapping[str, str]) -> str:
    """A word with the paths and names that hold here."""
    for old, new in sorted(swaps.items(), key=lambda item: -len(item[0])):
        if text == old or text.startswith((f"{old}/", f"{old}:")):
            return new + text[len(old) :]
    return text
