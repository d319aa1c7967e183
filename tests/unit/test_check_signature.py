"""The signature notices every change, and the key stays with its owner."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from seatrial.errors import PlatformError, SpecError
from seatrial.runs import signature
from seatrial.runs.acceptance import Acceptance
from seatrial.runs.signature import canonical, sign, verify

from .acceptance_samples import conclude, healthy, troubled

pytest.importorskip("cryptography")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "data" / "seatrial"


def through_a_file(acceptance: Acceptance) -> Acceptance:
    return Acceptance.model_validate_json(
        json.dumps(acceptance.model_dump(mode="json", by_alias=True), indent=2)
    )


class TestKey:
    def test_is_made_on_first_use_for_its_owner_alone(self, home: Path) -> None:
        first = sign(conclude(healthy()))
        assert (home / "signing_key").stat().st_mode & 0o777 == 0o600
        assert home.stat().st_mode & 0o777 == 0o700
        assert sign(conclude(troubled())).key == first.key
        assert [p.name for p in home.iterdir()] == ["signing_key"]

    @pytest.mark.parametrize("umask", [0o000, 0o777])
    def test_the_umask_has_no_say(self, home: Path, umask: int) -> None:
        home.parent.mkdir()
        before = os.umask(umask)
        try:
            sign(conclude(healthy()))
        finally:
            os.umask(before)
        assert (home / "signing_key").stat().st_mode & 0o777 == 0o600
        assert home.stat().st_mode & 0o777 == 0o700

    def test_verifying_makes_none(self, home: Path) -> None:
        assert verify(conclude(healthy())) == "not signed"
        assert not home.exists()

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
    def test_is_refused_when_others_can_read_or_change_it(self, home: Path, mode: int) -> None:
        signed = sign(conclude(healthy()))
        (home / "signing_key").chmod(mode)
        for use in (lambda: sign(conclude(healthy())), lambda: verify(signed)):
            with pytest.raises(PlatformError, match="others can read or change") as caught:
                use()
            assert "chmod 600" in caught.value.remedy

    def test_is_refused_in_a_directory_that_others_can_write_to(self, home: Path) -> None:
        sign(conclude(healthy()))
        home.chmod(0o777)
        with pytest.raises(PlatformError, match="others can change"):
            sign(conclude(healthy()))

    @pytest.mark.parametrize("content", [b"", b"ab", b"\xff\xfe", b"z" * 64])
    def test_a_damaged_one_is_refused_and_kept(self, home: Path, content: bytes) -> None:
        sign(conclude(healthy()))
        (home / "signing_key").write_bytes(content)
        with pytest.raises(PlatformError, match="signing key"):
            sign(conclude(healthy()))
        assert (home / "signing_key").read_bytes() == content

    def test_one_that_cannot_be_read_is_no_traceback(self, home: Path) -> None:
        (home / "signing_key").mkdir(parents=True, mode=0o700)
        home.chmod(0o700)
        with pytest.raises(PlatformError, match="can't be read"):
            sign(conclude(healthy()))

    def test_a_place_that_cannot_be_written_to_is_said(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "file"))
        with pytest.raises(PlatformError, match="can't be"):
            sign(conclude(healthy()))

    def test_a_relative_place_is_ignored(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_DATA_HOME", "here")
        assert signature.data_dir() == Path.home() / ".local/share/seatrial"

    def test_processes_that_make_it_at_once_agree(self, home: Path) -> None:
        context = multiprocessing.get_context("fork")
        with context.Pool(2) as pool:
            keys = pool.map(_key_of_this_process, range(8), chunksize=1)
        assert len(set(keys)) == 1
        assert [p.name for p in home.iterdir()] == ["signing_key"]


def _key_of_this_process(_: int) -> str:
    return sign(conclude(healthy(1))).key


class TestTrust:
    def test_ones_own_is_trusted_through_a_file(self) -> None:
        assert verify(through_a_file(sign(conclude(troubled())))) is None

    def test_of_others_only_those_that_are_listed(
        self, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        theirs = sign(conclude(healthy()))
        monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "mine"))
        assert verify(theirs) == f"signed by an unknown key ({theirs.key[:16]}…)"
        listed = tmp_path / "mine" / "seatrial" / "trusted_keys"
        listed.parent.mkdir(parents=True)
        listed.write_text(f"# the admins\n\n{theirs.key.upper()}  # of hal\n")
        listed.chmod(0o644)
        listed.parent.chmod(0o755)
        assert verify(theirs) is None
        listed.chmod(0o666)
        with pytest.raises(PlatformError, match="others can change"):
            verify(theirs)

    def test_a_line_that_is_no_key_is_refused(self, home: Path) -> None:
        signed = sign(conclude(healthy()))
        (home / "trusted_keys").write_text("# x\nssh-ed25519 AAAA\n")
        (home / "trusted_keys").chmod(0o600)
        with pytest.raises(SpecError) as caught:
            verify(signed)
        assert "line 2" in caught.value.evidence

    @pytest.mark.parametrize("word", ["", "00", "zz" * 64, "0" * 128])
    def test_a_signature_that_is_none(self, word: str) -> None:
        signed = sign(conclude(healthy()))
        assert verify(signed.model_copy(update={"signature": word}))


SIGNED: dict[str, Any] = {}


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every leaf of a document."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [leaf for key, inner in items for leaf in places(inner, (*path, key))] or [path]


class TestTampering:
    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.data())
    def test_any_change_of_any_field_is_noticed(self, data: st.DataObject) -> None:
        signed = sign(conclude(troubled()[-9:], ceilings={"node0": {"gemm_bf16": 700.0}}))
        document = signed.model_dump(mode="json", by_alias=True)
        changed = copy.deepcopy(document)
        *way, last = data.draw(st.sampled_from(places(document)))
        holder = changed
        for key in way:
            holder = holder[key]
        holder[last] = data.draw(
            st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.just({}) | st.just([])
            | st.floats(allow_nan=False) | st.sampled_from(["PASS", "FAIL", "node", "", "2030-01-01T00:00:00Z"])
        )  # fmt: skip
        try:
            read = Acceptance.model_validate(changed)
        except ValidationError:
            return
        assume(canonical(read) != canonical(signed) or read.signature != signed.signature)
        assert verify(read) is not None

    def test_a_finding_left_out_is_noticed(self) -> None:
        signed = sign(conclude(troubled()))
        assert verify(signed.model_copy(update={"findings": signed.findings[1:]}))
        assert verify(signed.model_copy(update={"nodes": signed.nodes[:-1]}))

    def test_canonical_json_is_sorted_dense_ascii(self) -> None:
        text = canonical(conclude(troubled())).decode("ascii")
        data = json.loads(text)
        assert text == json.dumps(data, sort_keys=True, separators=(",", ":"))
        assert "signature" not in data and data["schema"] == 1
