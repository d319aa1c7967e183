"""Every store keeps its word: the same suite over a directory, fsspec, and S3 on loopback."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from seatrial.errors import PlatformError, SpecError
from seatrial.runs.stores import ABSENT, ConflictError, MissingError, Store, StoreError, open_store
from seatrial.testing.s3 import FaultyProxy, S3Server

LARGE = 80 << 20
"""Goes up in parts."""


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    pytest.importorskip("moto", reason="needs moto[server]: pip install 'moto[server]'")
    with S3Server() as server:
        server.make_bucket("models")
        yield server


@pytest.fixture(params=["directory", "fsspec", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    if request.param == "directory":
        return open_store(str(tmp_path / "a store"))
    if request.param == "fsspec":
        return open_store(f"memory://{tmp_path.name}/prefix")
    server: S3Server = request.getfixturevalue("s3_server")
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    return open_store(f"s3://models/{tmp_path.name}/prefix")


@pytest.fixture
def proxied(
    s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Store, FaultyProxy]]:
    with FaultyProxy(s3_server.port) as proxy:
        for name, value in proxy.env.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("seatrial.runs.stores.s3._FIRST_WAIT_S", 0.01)
        yield open_store(f"s3://models/{tmp_path.name}"), proxy


@pytest.fixture
def make(tmp_path: Path) -> Callable[[int], tuple[Path, str]]:
    def write(size: int) -> tuple[Path, str]:
        path = tmp_path / f"file-{size}"
        path.write_bytes(os.urandom(size))
        return path, hashlib.sha256(path.read_bytes()).hexdigest()

    return write


class TestFiles:
    @pytest.mark.parametrize("size", [0, 1, 70_000, LARGE])
    def test_come_back_as_they_went(
        self, store: Store, make: Callable[[int], tuple[Path, str]], size: int, tmp_path: Path
    ) -> None:
        path, sha256 = make(size)
        store.put(path, "run/models/trained/model.safetensors", sha256)
        store.get("run/models/trained/model.safetensors", tmp_path / "back" / "again", sha256)
        assert (tmp_path / "back" / "again").read_bytes() == path.read_bytes()
        assert [(e.key, e.bytes) for e in store.entries("run/")] == [
            ("run/models/trained/model.safetensors", size)
        ]

    def test_names_may_be_odd(self, store: Store, make: Callable[[int], tuple[Path, str]]) -> None:
        path, sha256 = make(10)
        names = ["run one/ä ö.txt", "run/50% off#1?.json", "run/日本.bin", "a" * 200]
        for name in names:
            store.put(path, name, sha256)
        assert sorted(e.key for e in store.entries()) == sorted(names)
        assert all(store.read(name) is not None for name in names)

    @pytest.mark.parametrize("key", ["../out", "/etc/passwd", "a/../../b", "", "a//b", "./a"])
    def test_never_leave_the_store(
        self, store: Store, make: Callable[[int], tuple[Path, str]], key: str, tmp_path: Path
    ) -> None:
        path, sha256 = make(1)
        for deed in (
            lambda: store.put(path, key, sha256),
            lambda: store.get(key, tmp_path / "x"),
            lambda: store.write(key, b""),
            lambda: store.delete([key]),
        ):
            with pytest.raises(SpecError, match="no name inside a store"):
                deed()

    def test_that_are_not_what_was_said_do_not_arrive(
        self, store: Store, make: Callable[[int], tuple[Path, str]]
    ) -> None:
        path, _ = make(20)
        with pytest.raises(StoreError, match="other bytes"):
            store.put(path, "run/file", "0" * 64)

    def test_with_another_hash_do_not_come(
        self, store: Store, make: Callable[[int], tuple[Path, str]], tmp_path: Path
    ) -> None:
        path, sha256 = make(20)
        store.put(path, "run/file", sha256)
        (tmp_path / "here").write_text("mine")
        with pytest.raises(StoreError, match="other bytes"):
            store.get("run/file", tmp_path / "here", "0" * 64)
        assert (tmp_path / "here").read_text() == "mine"
        assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]

    def test_that_are_missing_are_named(self, store: Store, tmp_path: Path) -> None:
        with pytest.raises(MissingError, match="run/file"):
            store.get("run/file", tmp_path / "here")
        assert not (tmp_path / "here").exists()
        assert store.read("run/file") is None
        assert list(store.entries()) == []

    def test_go_when_they_are_removed(self, store: Store) -> None:
        for name in ("a/1", "a/2", "b/1"):
            store.write(name, b"x")
        store.delete(["a/1", "a/2", "a/never"])
        assert [e.key for e in store.entries()] == ["b/1"]


class TestSmallObjects:
    def test_are_replaced(self, store: Store) -> None:
        first = store.write("current.json", b"1")
        assert store.read("current.json") == (b"1", first)
        second = store.write("current.json", b"2")
        assert second != first
        assert store.read("current.json") == (b"2", second)

    def test_are_made_once(self, store: Store) -> None:
        store.write("v1/claim", b"mine", when=ABSENT)
        with pytest.raises(ConflictError):
            store.write("v1/claim", b"also mine", when=ABSENT)
        assert (store.read("v1/claim") or (b"", ""))[0] == b"mine"

    def test_are_replaced_only_unchanged(self, store: Store) -> None:
        tag = store.write("current.json", b"1")
        if type(store).__name__ == "FsspecStore":
            with pytest.raises(SpecError, match="only where it is unchanged"):
                store.write("current.json", b"2", when=tag)
            return
        store.write("current.json", b"2", when=tag)
        with pytest.raises(ConflictError):
            store.write("current.json", b"3", when=tag)
        assert (store.read("current.json") or (b"", ""))[0] == b"2"

    def test_of_many_writers_one_wins(self, store: Store) -> None:
        wins: list[int] = []

        def claim(number: int) -> None:
            try:
                store.write("claim", str(number).encode(), when=ABSENT)
            except ConflictError:
                return
            wins.append(number)

        threads = [threading.Thread(target=claim, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(wins) == 1
        assert (
            store.read("claim") is not None and (store.read("claim") or (b"", ""))[0] == str(wins[0]).encode()
        )


class TestUrls:
    @pytest.mark.parametrize(
        ("url", "words"),
        [
            ("s3://key:secret@bucket/x", "no credentials"),
            ("file://host/x", "names a machine"),
            ("nosuch://x", "can't be used as a store"),
        ],
    )
    def test_that_are_wrong_are_refused(self, url: str, words: str) -> None:
        with pytest.raises(SpecError, match=words) as caught:
            open_store(url)
        assert "secret" not in str(caught.value)

    def test_a_directory_is_named_in_three_ways(self, tmp_path: Path) -> None:
        for url in (str(tmp_path), f"file://{tmp_path}"):
            open_store(url).write("x", url.encode())
            assert (tmp_path / "x").read_text() == url


class TestS3Faults:
    def test_a_server_that_is_busy_is_asked_again(
        self, proxied: tuple[Store, FaultyProxy], make: Callable[[int], tuple[Path, str]], tmp_path: Path
    ) -> None:
        store, proxy = proxied
        path, sha256 = make(1000)
        proxy.faults.refuse = 2
        store.put(path, "file", sha256)
        store.get("file", tmp_path / "back", sha256)
        assert proxy.faults.refuse == 0

    def test_connections_that_break_are_made_again(
        self, proxied: tuple[Store, FaultyProxy], make: Callable[[int], tuple[Path, str]], tmp_path: Path
    ) -> None:
        store, proxy = proxied
        path, sha256 = make(LARGE)
        proxy.faults.resets, proxy.faults.reset_after, proxy.faults.only = 3, 1 << 20, "partNumber"
        store.put(path, "file", sha256)
        assert proxy.faults.resets == 0
        proxy.faults.resets, proxy.faults.cut_after, proxy.faults.only = 3, 1 << 20, "GET"
        store.get("file", tmp_path / "back", sha256)
        assert proxy.faults.resets == 0

    def test_wrong_bytes_on_the_way_down_are_found(
        self, proxied: tuple[Store, FaultyProxy], make: Callable[[int], tuple[Path, str]], tmp_path: Path
    ) -> None:
        store, proxy = proxied
        path, sha256 = make(1000)
        store.put(path, "file", sha256)
        proxy.faults.flip, proxy.faults.only = 100, "GET"
        with pytest.raises(StoreError, match=r"other bytes|answer as it should"):
            store.get("file", tmp_path / "back", sha256)
        assert not (tmp_path / "back").exists()

    @pytest.mark.parametrize(
        ("status", "code", "words"),
        [
            ("400 Bad Request", "ExpiredToken", "log in anew"),
            ("404 Not Found", "NoSuchBucket", "still exist"),
            ("403 Forbidden", "AccessDenied", "may these credentials"),
        ],
    )
    def test_what_does_not_pass_by_is_said(
        self,
        proxied: tuple[Store, FaultyProxy],
        make: Callable[[int], tuple[Path, str]],
        status: str,
        code: str,
        words: str,
    ) -> None:
        store, proxy = proxied
        path, sha256 = make(10)
        proxy.faults.refuse, proxy.faults.status, proxy.faults.code = 1000, status, code
        with pytest.raises(StoreError) as caught:
            store.put(path, "file", sha256)
        assert words in caught.value.remedy
        assert code in caught.value.evidence

    def test_an_upload_that_was_cut_off_goes_on(
        self, proxied: tuple[Store, FaultyProxy], make: Callable[[int], tuple[Path, str]], tmp_path: Path
    ) -> None:
        """Parts that are there are not sent again."""
        store, proxy = proxied
        path, sha256 = make(LARGE)
        proxy.faults.refuse, proxy.faults.only, proxy.faults.status = (
            1000,
            "partNumber=3",
            "500 Internal Server Error",
        )
        proxy.faults.code = "InternalError"
        with pytest.raises(PlatformError):
            store.put(path, "file", sha256)
        proxy.faults.refuse = 0
        proxy.requests.clear()
        store.put(path, "file", sha256)
        assert [line for line in proxy.requests if "partNumber" in line and "partNumber=3" not in line] == []
        store.get("file", tmp_path / "back", sha256)
