"""Who vouches for a verdict: an Ed25519 signature (RFC 8032) over its canonical JSON.

What it proves: the verdict is, to the letter, what a holder of the private key wrote. Accidents, edits by hand and files of
other people are noticed. What it does not prove: that the measurement was honest, or that the tested machine is the one that
it says. Whoever can read the private key, be it the user or root, can sign anything.

The key is made on first use, in ``$XDG_DATA_HOME/seatrial/signing_key`` (``~/.local/share`` by default, as the XDG Base
Directory Specification says): 64 hexadecimal digits, readable by the owner alone. One's own key is trusted, and those in
``trusted_keys`` beside it: a public key of 64 hexadecimal digits a line, ``#`` begins a comment.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import stat
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, cast

from seatrial.errors import PlatformError, SpecError
from seatrial.runs.acceptance import Acceptance
from seatrial.runs.files import sync_directory

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_KEY = re.compile(r"[0-9a-f]{64}")
_OTHERS = 0o077
_OTHERS_WRITE = 0o022


def data_dir() -> Path:
    """Where this user's keys are; it need not exist."""
    chosen = os.environ.get("XDG_DATA_HOME", "")
    # The specification has relative paths ignored.
    base = Path(chosen) if chosen.startswith("/") else Path.home() / ".local" / "share"
    return base / "seatrial"


def canonical(acceptance: Acceptance) -> bytes:
    """What is signed: everything but the signature as JSON, keys sorted, no spaces, ASCII."""
    data = acceptance.model_dump(mode="json", by_alias=True, exclude={"signature"})
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def sign(acceptance: Acceptance) -> Acceptance:
    """The same verdict with this user's public key and signature.

    Raises:
        PlatformError: the key can't be made or read, or others can read it.
    """
    private = _read_private(data_dir() / "signing_key") or _make_private(data_dir())
    keyed = acceptance.model_copy(update={"key": _public(private), "signature": ""})
    return keyed.model_copy(update={"signature": private.sign(canonical(keyed)).hex()})


def verify(acceptance: Acceptance) -> str | None:
    """None where a trusted key signed exactly this; else why it can't be relied on.

    Raises:
        PlatformError: one's own key, or the list of trusted ones, is not safe to go by.
        SpecError: the list of trusted keys can't be read.
    """
    if not acceptance.key or not acceptance.signature:
        return "not signed"
    if acceptance.key not in trusted():
        return f"signed by an unknown key ({acceptance.key[:16]}…)"
    from cryptography.exceptions import InvalidSignature

    try:
        public = _ed25519().Ed25519PublicKey.from_public_bytes(bytes.fromhex(acceptance.key))
        public.verify(bytes.fromhex(acceptance.signature), canonical(acceptance))
    except (InvalidSignature, ValueError):
        return "tampered with: the signature does not fit the content"
    return None


def trusted() -> set[str]:
    """Public keys, in hex, whose verdicts count here. Makes no key.

    Raises:
        PlatformError: a file that others could have changed, or a private key that others can read.
        SpecError: a line of the list is no key.
    """
    private = _read_private(data_dir() / "signing_key")
    listed = data_dir() / "trusted_keys"
    found = {_public(private)} if private else set()
    try:
        _check_private(listed, _OTHERS_WRITE, "chmod go-w")
        lines = listed.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return found
    except (OSError, UnicodeDecodeError) as error:
        raise PlatformError("the list of trusted keys can't be read", evidence=str(error)) from error
    for number, line in enumerate(lines, 1):
        word = line.partition("#")[0].strip().lower()
        if word and not _KEY.fullmatch(word):
            raise SpecError(
                "the list of trusted keys has a line that is no key", evidence=f"{listed}, line {number}",
                remedy='64 hexadecimal digits a line: the "key" of a verdict.json of theirs',
            )  # fmt: skip
        found |= {word} - {""}
    return found


def _ed25519() -> ModuleType:
    # Imported late: most commands sign nothing.
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise PlatformError(
            "signatures need the package cryptography", evidence=str(error), remedy="pip install cryptography"
        ) from error
    return ed25519


def _public(private: Ed25519PrivateKey) -> str:
    return private.public_key().public_bytes_raw().hex()


def _read_private(path: Path) -> Ed25519PrivateKey | None:
    try:
        _check_private(path, _OTHERS, "chmod 600")
        word = path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise PlatformError("the signing key can't be read", evidence=str(error)) from error
    if not _KEY.fullmatch(word):
        raise PlatformError(
            "the signing key is damaged", evidence=f"{path} has no 64 hexadecimal digits",
            remedy=f"mv {path} {path}.damaged    (a new one is made; verdicts of the old one count no more)",
        )  # fmt: skip
    return cast("Ed25519PrivateKey", _ed25519().Ed25519PrivateKey.from_private_bytes(bytes.fromhex(word)))


def _check_private(path: Path, forbidden: int, remedy: str) -> None:
    """Refuses a file, or its directory, that somebody else has or may have a hand in."""
    for place, bits in ((path, forbidden), (path.parent, _OTHERS_WRITE)):
        found = place.stat()
        if found.st_uid not in {os.geteuid(), 0}:
            raise PlatformError(
                f"{place} belongs to somebody else", evidence=f"its owner is uid {found.st_uid}"
            )
        if stat.S_IMODE(found.st_mode) & bits:
            what = "read or change" if bits == _OTHERS else "change"
            raise PlatformError(
                f"others can {what} {place}", evidence=f"its mode is {stat.S_IMODE(found.st_mode):04o}",
                remedy=f"{remedy if place == path else 'chmod go-w'} {place}"
                + ("    (and make a new one if they may have read it)" if bits == _OTHERS else ""),
            )  # fmt: skip


def _make_private(directory: Path) -> Ed25519PrivateKey:
    """Makes the key, unless another process does so at this moment: then takes that one."""
    generated = _ed25519().Ed25519PrivateKey.generate()
    path = directory / "signing_key"
    aside = directory / f".signing_key.{os.getpid()}.{secrets.token_hex(4)}.tmp"
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            directory.mkdir()
            directory.chmod(0o700)  # whatever the umask
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.fchmod(descriptor, 0o600)
            os.write(descriptor, generated.private_bytes_raw().hex().encode() + b"\n")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        try:
            with contextlib.suppress(FileExistsError):
                path.hardlink_to(aside)  # a rename would replace the key of whoever was quicker
        finally:
            aside.unlink()
        sync_directory(directory)
    except OSError as error:
        raise PlatformError(
            "the signing key can't be made", evidence=str(error), remedy="XDG_DATA_HOME=DIRECTORY"
        ) from error
    private = _read_private(path)
    assert private is not None
    return private
