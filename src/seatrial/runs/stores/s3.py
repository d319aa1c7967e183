"""S3, and what speaks its protocol.

Each object goes up with the SHA-256 of its bytes, or of its parts, which the server checks as it takes them; what it then says
of the object is compared with what was computed here. A server that knows no checksums has its object read back instead.
Credentials, region and endpoint come by boto3's usual chain (environment, profile, the machine's role; `AWS_ENDPOINT_URL`).
"""

from __future__ import annotations

import base64
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from seatrial.errors import SpecError
from seatrial.runs.stores.base import ABSENT, ConflictError, Entry, MissingError, StoreError, checked
from seatrial.runs.stores.directory import ASIDE

_WHOLE_BYTES = 64 << 20
"""Larger files go up in parts."""
_PART_BYTES = 16 << 20
_MOST_PARTS = 9_000
"""S3 takes 10,000."""
_AT_ONCE = 4
"""Parts of one file: with what is read ahead, no more memory than a file that goes as a whole takes."""
_TRIES = 5
_FIRST_WAIT_S = 0.5
_PAGE = 1_000
"""Keys that one request deletes."""
_REMEDIES = {
    "ExpiredToken": "log in anew; the usual chain of credentials is read at each start",
    "InvalidAccessKeyId": "which credentials does `aws sts get-caller-identity` see?",
    "SignatureDoesNotMatch": "which credentials does `aws sts get-caller-identity` see?",
    "AccessDenied": "may these credentials list, read and write there?",
    "NoSuchBucket": "is the bucket's name right, and does it still exist?",
}
_ALREADY = {"PreconditionFailed", "ConditionalRequestConflict", "412", "409"}
_MISSING = {"NoSuchKey", "404", "NotFound"}
_T = TypeVar("_T")


class S3Store:
    """Objects of a bucket below a prefix.

    Args:
        bucket: its name.
        prefix: where the store begins in it.
        client: a boto3 client; None makes one.

    Raises:
        SpecError: boto3 is not installed.
    """

    def __init__(self, bucket: str, prefix: str, client: Any = None) -> None:
        self._bucket = bucket
        self._prefix = prefix.strip("/")
        self.url = f"s3://{bucket}/{self._prefix}".rstrip("/")
        self._client = client if client is not None else _make_client()
        self._begun: dict[str, list[dict[str, Any]]] | None = None
        self._lock = threading.Lock()

    def put(self, path: Path, key: str, sha256: str) -> None:
        """See `Store.put`. A large file that was cut off goes on with the part that is missing."""
        name = self._name(key)
        size = path.stat().st_size
        with _told(self.url, key):
            if size <= _WHOLE_BYTES:
                self._put_whole(path, name, sha256)
            else:
                self._put_parts(path, name, sha256, max(_PART_BYTES, -(-size // _MOST_PARTS)))

    def get(self, key: str, path: Path, sha256: str | None = None) -> None:
        """See `Store.get`; large objects come in parts, several at once."""
        name = self._name(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f"{ASIDE}{os.getpid()}-{hashlib.sha256(path.name.encode()).hexdigest()[:8]}")
        try:
            with _told(self.url, key):
                self._download(name, aside)
            found = _hash(aside)
            if sha256 is not None and found != sha256:
                raise StoreError(
                    f"{key} has other bytes than were put there",
                    evidence=f"{self.url}: SHA-256 {found[:12]}…, not {sha256[:12]}…",
                )
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)

    def read(self, key: str) -> tuple[bytes, str] | None:
        """See `Store.read`; the tag is the ETag."""

        def ask() -> tuple[bytes, str]:
            answer = self._client.get_object(Bucket=self._bucket, Key=self._name(key))
            return answer["Body"].read(), str(answer["ETag"])

        try:
            with _told(self.url, key):
                return _patiently(ask)
        except MissingError:
            return None

    def write(self, key: str, data: bytes, when: str | None = None) -> str:
        """See `Store.write`; the server compares and writes in one."""
        condition = {} if when is None else {"IfNoneMatch": "*"} if when == ABSENT else {"IfMatch": when}
        with _told(self.url, key):
            answer = self._client.put_object(
                Bucket=self._bucket, Key=self._name(key), Body=data,
                ChecksumSHA256=_b64(hashlib.sha256(data).digest()), **condition,
            )  # fmt: skip
        return str(answer["ETag"])

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """See `Store.entries`."""
        start = f"{self._prefix}/" if self._prefix else ""
        pages = self._client.get_paginator("list_objects_v2")
        with _told(self.url, prefix):
            for page in pages.paginate(Bucket=self._bucket, Prefix=start + prefix):
                for row in page.get("Contents", ()):
                    if not row["Key"].endswith("/"):
                        yield Entry(row["Key"][len(start) :], row["Size"], row["LastModified"].timestamp())

    def delete(self, keys: Iterable[str]) -> None:
        """See `Store.delete`."""
        names = [{"Key": self._name(key)} for key in keys]
        with _told(self.url, ""):
            for first in range(0, len(names), _PAGE):
                answer = self._client.delete_objects(
                    Bucket=self._bucket, Delete={"Objects": names[first : first + _PAGE], "Quiet": True}
                )
                for row in answer.get("Errors", ()):
                    raise StoreError(
                        f"{row['Key']} can't be removed", evidence=f"{row['Code']}: {row.get('Message', '')}"
                    )

    def abandon(self, prefix: str) -> None:
        """See `Store.abandon`: parts of uploads cost money until somebody ends them."""
        start = f"{self._prefix}/{prefix}" if self._prefix else prefix
        with _told(self.url, prefix):
            for row in self._client.list_multipart_uploads(Bucket=self._bucket, Prefix=start).get(
                "Uploads", ()
            ):
                self._client.abort_multipart_upload(
                    Bucket=self._bucket, Key=row["Key"], UploadId=row["UploadId"]
                )

    def _name(self, key: str) -> str:
        return f"{self._prefix}/{checked(key)}" if self._prefix else checked(key)

    # --- up --------------------------------------------------------------------------------------------------------

    def _put_whole(self, path: Path, name: str, sha256: str) -> None:
        data = path.read_bytes()
        _same(path, hashlib.sha256(data).hexdigest(), sha256)
        checksum = _b64(bytes.fromhex(sha256))
        told = self._client.put_object(
            Bucket=self._bucket, Key=name, Body=data, ChecksumSHA256=checksum, Metadata={"sha256": sha256}
        )
        self._compare(name, len(data), checksum, sha256, told)

    def _put_parts(self, path: Path, name: str, sha256: str, part_bytes: int) -> None:
        upload_id, there = self._going_on(name, sha256, part_bytes)
        digest = hashlib.sha256()
        parts: list[dict[str, Any]] = []
        running: dict[int, Future[str]] = {}
        with ThreadPoolExecutor(_AT_ONCE) as pool, path.open("rb") as file:
            try:
                while block := file.read(part_bytes):
                    digest.update(block)
                    checksum = _b64(hashlib.sha256(block).digest())
                    number = len(parts) + 1
                    parts.append({"PartNumber": number, "ChecksumSHA256": checksum})
                    if number in there and _is_part(there[number], block, checksum):
                        parts[-1]["ETag"] = there[number][1]
                        continue
                    # No more of the file is held than what is on its way.
                    while len(running) >= _AT_ONCE:
                        first = min(running)
                        parts[first - 1]["ETag"] = running.pop(first).result()
                    running[number] = pool.submit(self._put_part, name, upload_id, number, block, checksum)
                for number, future in running.items():
                    parts[number - 1]["ETag"] = future.result()
                _same(path, digest.hexdigest(), sha256)
            except StoreError:
                self._client.abort_multipart_upload(Bucket=self._bucket, Key=name, UploadId=upload_id)
                raise
            except Exception:
                # The next try goes on with the parts that are there.
                self._uploads_of_earlier_ones()[name] = [
                    {"UploadId": upload_id, "Initiated": datetime.now(UTC)}
                ]
                raise
        told = self._client.complete_multipart_upload(
            Bucket=self._bucket, Key=name, UploadId=upload_id, MultipartUpload={"Parts": parts}
        )
        sums = b"".join(base64.b64decode(part["ChecksumSHA256"]) for part in parts)
        self._compare(name, path.stat().st_size, _b64(hashlib.sha256(sums).digest()), sha256, told)

    def _put_part(self, name: str, upload_id: str, number: int, block: bytes, checksum: str) -> str:
        def send() -> str:
            answer = self._client.upload_part(
                Bucket=self._bucket,
                Key=name,
                UploadId=upload_id,
                PartNumber=number,
                Body=block,
                ChecksumSHA256=checksum,
            )
            return str(answer["ETag"])

        return _patiently(send)

    def _going_on(self, name: str, sha256: str, part_bytes: int) -> tuple[str, dict[int, tuple[str, str]]]:
        """An upload of this object that was begun and not ended, with its parts; else a new one. Others of it are ended."""
        mine = sorted(self._uploads_of_earlier_ones().pop(name, ()), key=lambda row: row["Initiated"])
        for row in mine[:-1]:
            self._client.abort_multipart_upload(Bucket=self._bucket, Key=name, UploadId=row["UploadId"])
        if mine:
            upload_id = str(mine[-1]["UploadId"])
            there: dict[int, tuple[str, str]] = {}
            for page in self._client.get_paginator("list_parts").paginate(
                Bucket=self._bucket, Key=name, UploadId=upload_id
            ):
                there |= {
                    p["PartNumber"]: (p.get("ChecksumSHA256", ""), p["ETag"]) for p in page.get("Parts", ())
                }
            return upload_id, there
        made = self._client.create_multipart_upload(
            Bucket=self._bucket, Key=name, ChecksumAlgorithm="SHA256", Metadata={"sha256": sha256}
        )
        return str(made["UploadId"]), {}

    def _uploads_of_earlier_ones(self) -> dict[str, list[dict[str, Any]]]:
        """What processes before this one began and did not end, by object; asked for once."""
        with self._lock:
            if self._begun is None:
                found: dict[str, list[dict[str, Any]]] = {}
                pages = self._client.get_paginator("list_multipart_uploads")
                for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix):
                    for row in page.get("Uploads", ()):
                        found.setdefault(row["Key"], []).append(row)
                self._begun = found
            return self._begun

    def _compare(self, name: str, size: int, checksum: str, sha256: str, told: dict[str, Any]) -> None:
        """The far side's own word for what it has, in its answer or when asked; where it has none, its bytes."""
        there = told.get("ChecksumSHA256")
        if there is None:
            told = self._client.head_object(Bucket=self._bucket, Key=name, ChecksumMode="ENABLED")
            if told["ContentLength"] != size:
                raise StoreError(
                    f"{name} has {told['ContentLength']} bytes there, {size} were sent", evidence=self.url
                )
            there = told.get("ChecksumSHA256")
        if there is None:
            body = self._client.get_object(Bucket=self._bucket, Key=name)["Body"]
            digest = hashlib.sha256()
            for block in body.iter_chunks(1 << 20):
                digest.update(block)
            there, checksum = digest.hexdigest(), sha256
        # Of an object in parts, S3 says the hash of the parts' hashes, a hyphen, and how many they are.
        if str(there).partition("-")[0] != checksum:
            raise StoreError(
                f"{name} has other bytes there than were sent",
                evidence=f"{self.url}: SHA-256 {there}, not {checksum}",
            )

    # --- down ------------------------------------------------------------------------------------------------------

    def _download(self, name: str, aside: Path) -> None:
        size, etag = _patiently(lambda: self._head(name))
        with aside.open("wb") as file, ThreadPoolExecutor(_AT_ONCE) as pool:
            file.truncate(size)
            descriptor = file.fileno()

            def fetch(start: int) -> None:
                end = min(start + _PART_BYTES, size)

                def ask() -> bytes:
                    # If it is replaced meanwhile, halves of two objects would be one file.
                    body = self._client.get_object(
                        Bucket=self._bucket, Key=name, Range=f"bytes={start}-{end - 1}", IfMatch=etag
                    )["Body"].read()
                    if len(body) != end - start:
                        raise ConnectionError(f"{len(body)} of {end - start} bytes came")
                    return bytes(body)

                os.pwrite(descriptor, _patiently(ask), start)

            list(pool.map(fetch, range(0, size, _PART_BYTES)))
            os.fsync(descriptor)

    def _head(self, name: str) -> tuple[int, str]:
        told = self._client.head_object(Bucket=self._bucket, Key=name)
        return int(told["ContentLength"]), str(told["ETag"])


def _make_client() -> Any:
    try:
        import boto3
        from botocore.config import Config
    except ImportError as error:
        raise SpecError(
            "s3:// needs boto3", evidence=str(error), remedy="pip install 'seatrial[s3]'"
        ) from error
    # "standard" tries again what a server asks to be tried again (503, 429), with growing pauses.
    config = Config(
        retries={"mode": "standard", "max_attempts": _TRIES}, max_pool_connections=8 * _AT_ONCE, connect_timeout=10,
        read_timeout=60,
    )  # fmt: skip
    return boto3.session.Session().client("s3", config=config)


def _patiently(ask: Callable[[], _T]) -> _T:
    """An answer whose body came whole: what breaks off while it comes, botocore does not ask for again."""
    from botocore.exceptions import HTTPClientError, IncompleteReadError, ResponseStreamingError

    for attempt in range(_TRIES):
        try:
            return ask()
        except (HTTPClientError, IncompleteReadError, ResponseStreamingError, ConnectionError):
            if attempt == _TRIES - 1:
                raise
            time.sleep(_FIRST_WAIT_S * 2**attempt)
    raise AssertionError


@contextmanager
def _told(url: str, key: str) -> Iterator[None]:
    """What the library raises, in our words."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    where = f"{url}/{key}" if key else url
    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in _ALREADY:
            raise ConflictError(f"{key} was written by somebody else", evidence=where) from error
        if code in _MISSING:
            raise MissingError(f"there is no {key}", evidence=where) from error
        raise StoreError(
            f"{url} refuses", evidence=f"{where}: {error}", remedy=_REMEDIES.get(code, "")
        ) from error
    except NoCredentialsError as error:
        raise StoreError(
            f"no credentials for {url}",
            evidence=str(error),
            remedy="aws configure    (or AWS_PROFILE=…, or a role)",
        ) from error
    except (BotoCoreError, ConnectionError) as error:
        raise StoreError(f"{url} does not answer as it should", evidence=f"{where}: {error}") from error
    except OSError as error:
        raise StoreError(f"{key} can't be copied", evidence=str(error)) from error


def _is_part(told: tuple[str, str], block: bytes, checksum: str) -> bool:
    """Whether a part that is there has these bytes: by its SHA-256, or by its ETag, an MD5 where nothing is encrypted."""
    there, etag = told
    return (
        there == checksum
        if there
        else etag.strip('"') == hashlib.md5(block, usedforsecurity=False).hexdigest()
    )


def _same(path: Path, found: str, sha256: str) -> None:
    if found != sha256:
        raise StoreError(
            f"{path.name} has other bytes than it should have",
            evidence=f"{path}: SHA-256 {found[:12]}…, not {sha256[:12]}…",
        )


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _b64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()
