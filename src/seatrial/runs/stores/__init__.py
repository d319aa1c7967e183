"""Stores by URL: a directory, ``s3://bucket/prefix``, or any other URL that fsspec knows."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from seatrial.errors import SpecError
from seatrial.runs.stores.base import ABSENT, ConflictError, Entry, MissingError, Store, StoreError
from seatrial.runs.stores.directory import DirectoryStore

__all__ = ["ABSENT", "ConflictError", "Entry", "MissingError", "Store", "StoreError", "open_store"]


def open_store(url: str) -> Store:
    """The store at a URL. Nothing is asked of it yet.

    Raises:
        SpecError: the URL can't be read, has a password in it, or its library is not installed.
    """
    parts = urlsplit(url)
    if parts.password or (parts.scheme == "s3" and parts.username):
        raise SpecError(
            "a store's URL holds no credentials", evidence=f"{parts.scheme}://…@{parts.hostname}",
            remedy="leave them to the environment, the profile or the machine's role",
        )  # fmt: skip
    if parts.scheme in {"", "file"}:
        if parts.netloc:
            raise SpecError(
                f"{url!r} names a machine",
                evidence=parts.netloc,
                remedy=f"file:///{parts.netloc}{parts.path}",
            )
        return DirectoryStore(Path(unquote(parts.path) if parts.scheme else url).expanduser().absolute())
    if parts.scheme == "s3":
        from seatrial.runs.stores.s3 import S3Store

        return S3Store(parts.netloc, unquote(parts.path))
    from seatrial.runs.stores.others import FsspecStore

    return FsspecStore(url)
