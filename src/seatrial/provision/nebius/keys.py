"""Public SSH keys: read, checked, and never confused with private ones."""

from __future__ import annotations

import base64
import binascii
import struct
from dataclasses import dataclass
from pathlib import Path

KINDS = (
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
)
_LEAST_RSA_BITS = 2048


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key as it stands in ``authorized_keys``."""

    line: str


class NotAKey(ValueError):
    """Why a text is no public key; the text itself is never repeated."""


def read_key(text: str, base: Path) -> PublicKey:
    """A key, or the one in the file that a text names.

    Args:
        text: ``ssh-ed25519 AAAA… comment``, or a path.
        base: where relative paths begin.

    Raises:
        NotAKey: it is neither.
    """
    words = text.strip()
    if not words:
        raise NotAKey("it is empty")
    if "PRIVATE KEY" in words:
        raise NotAKey("it is a private key (not repeated here)")
    if "\n" not in words and words.split()[0] not in KINDS and len(words) < 4096:
        path = base / Path(words).expanduser()
        if not path.is_file():
            raise NotAKey(
                f"it is neither a key ({', '.join(KINDS[:3])} …) nor a file that is there"
                if len(words) > 200 else f"{words}: neither a key nor a file that is there"
            )  # fmt: skip
        try:
            words = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise NotAKey(f"{path} can't be read: {type(error).__name__}") from None
        if "PRIVATE KEY" in words:
            raise NotAKey(f"{path} is a private key; the public one is in {path.name}.pub")
        if not words:
            raise NotAKey(f"{path} is empty")
    return _parsed(words)


def _parsed(line: str) -> PublicKey:
    if "\n" in line:
        raise NotAKey("it has several lines; one key is one line")
    kind, _, rest = line.partition(" ")
    if kind not in KINDS:
        raise NotAKey(f"it does not begin with a kind of key: {', '.join(KINDS[:3])} …")
    try:
        blob = base64.b64decode(rest.split()[0], validate=True) if rest.split() else b""
        fields = _fields(blob)
    except (binascii.Error, struct.error, ValueError):
        raise NotAKey("its middle part is cut off or damaged (not base64 of a key)") from None
    if not fields or fields[0] != kind.encode():
        raise NotAKey(f"its middle part is not that of {kind}")
    if kind == "ssh-rsa" and (len(fields) < 3 or (len(fields[2]) - 1) * 8 < _LEAST_RSA_BITS):
        raise NotAKey(f"an RSA key below {_LEAST_RSA_BITS} bits is refused by today's servers")
    return PublicKey(line)


def _fields(blob: bytes) -> list[bytes]:
    """The length-prefixed strings of a key (RFC 4251, section 5)."""
    found, at = [], 0
    while at < len(blob):
        (size,) = struct.unpack_from(">I", blob, at)
        field = blob[at + 4 : at + 4 + size]
        if len(field) != size:
            raise ValueError("cut off")
        found.append(field)
        at += 4 + size
    return found
