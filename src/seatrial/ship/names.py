"""Names of models and versions, which become names of directories and objects."""

from __future__ import annotations

import re
import unicodedata

from seatrial.errors import SpecError

_VERSION = re.compile(r"v([1-9]\d*)")
_MOST = 100


def model_name(name: str) -> str:
    """The name, where it can be a directory's; composed (NFC), so that it is one name everywhere.

    Raises:
        SpecError: it is empty, hidden, too long, or has a separator or control characters.
    """
    name = unicodedata.normalize("NFC", name)
    wrong = (
        "it is empty" if not name.strip()
        else "it begins with a dot" if name.startswith(".")
        else "it begins or ends with a space" if name != name.strip()
        else f"it has {len(name.encode())} bytes" if len(name.encode()) > _MOST
        else "it has a separator or a control character" if re.search(r"[/\\\x00-\x1f\x7f]", name)
        else ""
    )  # fmt: skip
    if wrong:
        raise SpecError(f"{name!r} can't be a model's name", evidence=wrong, remedy="--as sentiment")
    return name


def version_number(version: str) -> int:
    """7 of ``v7``.

    Raises:
        SpecError: it is no version.
    """
    found = _VERSION.fullmatch(version)
    if found is None:
        raise SpecError(
            f"{version!r} is no version", evidence="versions are v1, v2, …", remedy="seatrial releases list"
        )
    return int(found[1])


def is_version(text: str) -> bool:
    """Whether a text is one."""
    return _VERSION.fullmatch(text) is not None
