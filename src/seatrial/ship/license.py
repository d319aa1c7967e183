"""What is known of a base model's license: the file beside it, and what its card names."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "COPYING", "USE_POLICY.md")
_HEADER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
_FIELD = re.compile(r"^license(?:_name)?:\s*[\"']?([^\"'\n#]+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class License:
    """A license as far as it is known."""

    text: Path | None = None
    """The file."""
    identifier: str | None = None
    """What the model's card says: ``apache-2.0``."""


def find(model: str, cache: Path | None = None) -> License:
    """Looks beside a model that lies on disk, or in the hub's cache.

    Args:
        model: a directory or a hub id.
        cache: the hub's; None is where its own settings put it.
    """
    directory = Path(model).expanduser()
    if not directory.is_dir():
        snapshots = (cache or _hub_cache()) / f"models--{model.replace('/', '--')}" / "snapshots"
        found = sorted(snapshots.glob("*"), key=lambda p: p.stat().st_mtime) if snapshots.is_dir() else []
        if not found:
            return License()
        directory = found[-1]
    text = next((directory / name for name in _FILES if (directory / name).is_file()), None)
    card = directory / "README.md"
    header = _HEADER.match(card.read_text(encoding="utf-8", errors="replace")) if card.is_file() else None
    named = _FIELD.search(header[1]) if header else None
    return License(text, named[1].strip() if named else None)


def _hub_cache() -> Path:
    """As the hub's library decides it (huggingface_hub, environment variables)."""
    if found := os.environ.get("HF_HUB_CACHE"):
        return Path(found)
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")
    return Path(home).expanduser() / "hub"
