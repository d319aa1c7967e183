"""Releases: what is packed, what a policy refuses, which version is current. Without servers and processes."""

from __future__ import annotations

import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seatrial.errors import IncompleteError, MeasuredFailure, PlatformError, SeatrialError, SpecError
from seatrial.runs import commit, released
from seatrial.runs.evidence import Evidence, Verdict
from seatrial.runs.state import RunState
from seatrial.runs.stores import ConflictError
from seatrial.ship import chain, license, names
from seatrial.ship.package import open_release, package, write_tar
from seatrial.ship.promote import damage, promote, rollback
from seatrial.ship.target import Target
from tests.trees import make_run, read

Golden = Callable[[str, Path | str], None]


class TestPackage:
    def test_the_same_run_gives_the_same_bytes(self, tmp_path: Path) -> None:
        run = make_run(tmp_path / "runs", "reviews-1")
        first, second = package(run, tmp_path / "a"), package(run, tmp_path / "b")
        assert first.sha256 == second.sha256
        assert {n: e["sha256"] for n, e in first.marker["files"].items()} == {
            n: e["sha256"] for n, e in second.marker["files"].items()
        }
        os.utime(tmp_path / "b" / "config.json", (1, 1))
        (tmp_path / "x").mkdir()
        assert write_tar(first, tmp_path / "x" / "r.tar") == write_tar(second, tmp_path / "r.tar")
        with tarfile.open(tmp_path / "r.tar") as tar:
            assert "r/model.safetensors" in tar.getnames()
            assert {entry.mtime for entry in tar} == {0}

    def test_packing_twice_is_packing_once(self, tmp_path: Path) -> None:
        run = make_run(tmp_path, "reviews-1")
        assert package(run).sha256 == package(run).sha256
        assert package(run).root == run.root / "release"
        assert [row["kind"] for row in released.read(run.root)] == ["packaged"]

    def test_its_sums_are_what_sha256sum_checks(self, tmp_path: Path) -> None:
        release = package(make_run(tmp_path, "reviews-1"))
        done = subprocess.run(
            ["sha256sum", "--strict", "--check", "SHA256SUMS"],
            cwd=release.root,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0
        listed = {line.partition("  ")[2] for line in (release.root / "SHA256SUMS").read_text().splitlines()}
        there = {p.relative_to(release.root).as_posix() for p in release.root.rglob("*") if p.is_file()}
        assert listed == there - {"SHA256SUMS", commit.MARKER}

    def test_no_host_and_no_home_stands_in_it(self, tmp_path: Path) -> None:
        release = package(make_run(tmp_path, "reviews-1"))
        text = "".join(
            p.read_text() for p in release.root.rglob("*.*") if p.suffix in {".json", ".jsonl", ".md"}
        )
        assert "secret-host" not in text and "/home/ann" not in text

    def test_the_card(self, tmp_path: Path, golden: Golden) -> None:
        rows = (
            Evidence(check="loss_finite", verdict=Verdict.PASS, message="finite | always"),
            Evidence(check="acceptance", verdict=Verdict.UNMEASURED, message="no verdict of these nodes"),
        )
        release = package(make_run(tmp_path, "reviews-1", evidence=rows))
        golden((release.root / "MODEL_CARD.md").read_text(), "ship/MODEL_CARD.md")

    def test_a_hub_folder_has_the_card_where_the_hub_looks(self, tmp_path: Path) -> None:
        release = package(make_run(tmp_path, "reviews-1"), tmp_path / "hub", hub=True)
        assert (release.root / "README.md").read_text().startswith("---\nlibrary_name: transformers\n")
        assert "*.safetensors filter=lfs" in (release.root / ".gitattributes").read_text()

    @pytest.mark.parametrize("state", [state for state in RunState if state is not RunState.COMPLETED])
    def test_a_run_that_is_not_completed_has_no_release(self, tmp_path: Path, state: RunState) -> None:
        with pytest.raises(IncompleteError, match=str(state)):
            package(make_run(tmp_path, "reviews-1", state=state))

    def test_a_model_that_was_changed_is_refused(self, tmp_path: Path) -> None:
        run = make_run(tmp_path, "reviews-1")
        (run.model("trained") / "model.safetensors").write_bytes(b"WEIGHTS")
        with pytest.raises(MeasuredFailure, match="not the one that was measured"):
            package(run)
        assert not (run.root / "release").exists()

    def test_a_model_that_another_comparison_measured_is_refused(self, tmp_path: Path) -> None:
        run, other = make_run(tmp_path, "reviews-1"), make_run(tmp_path, "reviews-2", weights=b"others")
        run.comparison.write_text(other.comparison.read_text())
        with pytest.raises(MeasuredFailure, match="not the one that was measured"):
            package(run)

    def test_what_is_no_release_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis").write_text("all of it")
        with pytest.raises(SpecError, match="is no release"):
            package(make_run(tmp_path / "runs", "reviews-1"), tmp_path / "mine")
        assert (tmp_path / "mine" / "thesis").read_text() == "all of it"

    def test_a_release_that_was_changed_is_not_opened(self, tmp_path: Path) -> None:
        release = package(make_run(tmp_path, "reviews-1"))
        (release.root / "config.json").write_text("{}")
        with pytest.raises(MeasuredFailure, match="not what was packaged"):
            open_release(release.root)


class TestLicense:
    def test_a_file_and_a_card_beside_a_model(self, tmp_path: Path) -> None:
        (tmp_path / "LICENSE").write_text("Do as you please.")
        (tmp_path / "README.md").write_text(
            "---\nlanguage: en\nlicense: apache-2.0\n---\n# Model\nlicense: mit\n"
        )
        found = license.find(str(tmp_path))
        assert (found.text, found.identifier) == (tmp_path / "LICENSE", "apache-2.0")

    def test_the_hubs_cache_is_looked_at(self, tmp_path: Path) -> None:
        snapshot = tmp_path / "models--org--base" / "snapshots" / "abc"
        snapshot.mkdir(parents=True)
        (snapshot / "README.md").write_text("---\nlicense: mit\n---\n")
        assert license.find("org/base", tmp_path).identifier == "mit"
        assert license.find("org/other", tmp_path) == license.License()


class TestNames:
    @pytest.mark.parametrize(
        "name", ["", " ", "../x", "a/b", ".hidden", "a\nb", " a", "x" * 101, "a\\b", ".."]
    )
    def test_that_would_lead_astray_are_refused(self, name: str) -> None:
        with pytest.raises(SpecError, match="can't be a model's name"):
            names.model_name(name)

    @given(st.text(max_size=60))
    def test_what_is_taken_is_one_part_of_a_path(self, name: str) -> None:
        try:
            taken = names.model_name(name)
        except SpecError:
            return
        assert Path("/root", taken).parent == Path("/root")
        assert names.model_name(taken) == taken

    def test_versions(self) -> None:
        assert names.version_number("v12") == 12
        for wrong in ("12", "v0", "v1.2", "../v1", "v"):
            with pytest.raises(SpecError):
                names.version_number(wrong)


class TestChain:
    def links(
        self, required: dict[str, str], *rows: Evidence, verdict: str | None = "better"
    ) -> list[chain.Link]:
        from tests.trees import comparison

        return chain.links(required, None if verdict is None else comparison("r", "s", verdict), rows, "r")

    @pytest.mark.parametrize(
        ("wanted", "verdict", "error"),
        [
            ("better", "better", None), ("better", "no evidence", MeasuredFailure), ("better", "worse", MeasuredFailure),
            ("not worse", "no evidence", None), ("not worse", "worse", MeasuredFailure), ("better", None, IncompleteError),
        ],
    )  # fmt: skip
    def test_the_comparison(
        self, wanted: str, verdict: str | None, error: type[SeatrialError] | None
    ) -> None:
        refused = chain.refusal(self.links({"compare": wanted}, verdict=verdict))
        assert type(refused) is error if error else refused is None

    @pytest.mark.parametrize("verdict", list(Verdict))
    @pytest.mark.parametrize("wanted", ["pass", "warn"])
    def test_only_what_was_shown_passes(self, verdict: Verdict, wanted: str) -> None:
        refused = chain.refusal(
            self.links({"utilisation": wanted}, Evidence(check="utilisation", verdict=verdict, message="m"))
        )
        good = verdict is Verdict.PASS or (verdict is Verdict.WARN and wanted == "warn")
        assert (refused is None) == good
        if verdict in {Verdict.UNMEASURED, Verdict.ERROR, Verdict.SKIP}:
            assert isinstance(refused, IncompleteError)

    def test_a_missing_link_is_named(self) -> None:
        refused = chain.refusal(self.links({"compare": "better", "utilisation": "pass"}))
        assert isinstance(refused, IncompleteError)
        assert "utilisation: UNMEASURED" in refused.evidence

    def test_what_failed_comes_before_what_is_missing(self) -> None:
        refused = chain.refusal(self.links({"utilisation": "pass", "compare": "better"}, verdict="worse"))
        assert isinstance(refused, MeasuredFailure)
        assert "compare" in refused.what and "utilisation: UNMEASURED" in refused.evidence

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("require: {compare: beter}", "did you mean 'better'"), ("require: {check: yes please}", "known: pass, warn"),
            ("require: {}", "requires nothing"), ("requires: {compare: better}", "unknown: requires"), ("", "empty"),
        ],
    )  # fmt: skip
    def test_a_policy_that_means_nothing_is_refused(self, tmp_path: Path, text: str, words: str) -> None:
        (tmp_path / "policy.yaml").write_text(text)
        with pytest.raises(SpecError) as caught:
            chain.read_policy(tmp_path / "policy.yaml")
        assert words in str(caught.value)


class TestPromote:
    def test_versions_follow_each_other(self, tmp_path: Path) -> None:
        target = Target(str(tmp_path / "deploy"), "senti ment ä")
        for number in (1, 2):
            run = make_run(tmp_path / "runs", f"r-{number}", weights=f"w{number}".encode())
            done = promote(package(run), target, chain.DEFAULT, run=run)
            assert (done.version, done.previous) == (f"v{number}", f"v{number - 1}" if number > 1 else None)
            assert [row["kind"] for row in released.read(run.root)] == ["packaged", "promoting", "promoted"]
        home = tmp_path / "deploy" / "senti ment ä"
        assert (home / "current").resolve() == home / "v2"
        assert (home / "current" / "model.safetensors").read_bytes() == b"w2"
        assert (home / "v1" / "model.safetensors").read_bytes() == b"w1"
        assert damage(target, "v1") == damage(target, "v2") == []
        assert [(row["kind"], row["version"]) for row in target.history()] == [
            ("promoted", "v1"),
            ("promoted", "v2"),
        ]

    def test_the_same_release_twice_is_one_version(self, tmp_path: Path) -> None:
        target, release = Target(str(tmp_path / "d"), "m"), package(make_run(tmp_path, "r-1"))
        promote(release, target, chain.DEFAULT)
        assert promote(release, target, chain.DEFAULT).version is None
        assert list(target.versions()) == ["v1"]

    def test_a_refusal_changes_nothing_and_an_override_is_on_record(self, tmp_path: Path) -> None:
        target, release = (
            Target(str(tmp_path / "d"), "m"),
            package(make_run(tmp_path, "r-1", verdict="worse")),
        )
        with pytest.raises(MeasuredFailure, match="compare is worse"):
            promote(release, target, chain.DEFAULT)
        assert not (tmp_path / "d").exists()
        promote(release, target, chain.DEFAULT, override="the customer asked")
        record = read(tmp_path / "d" / "m" / "v1.json")
        assert record["override"] == "the customer asked"
        assert record["links"][0]["standing"] == "failed"
        assert record["by"]["user"] and record["by"]["host"]

    def test_an_override_that_was_not_needed_is_none(self, tmp_path: Path) -> None:
        target, release = Target(str(tmp_path / "d"), "m"), package(make_run(tmp_path, "r-1"))
        promote(release, target, chain.DEFAULT, override="just in case")
        assert read(tmp_path / "d" / "m" / "v1.json")["override"] == ""

    def test_a_dry_run_touches_nothing(self, tmp_path: Path) -> None:
        target, release = Target(str(tmp_path / "d"), "m"), package(make_run(tmp_path, "r-1"))
        promote(release, target, chain.DEFAULT, dry_run=True)
        assert not (tmp_path / "d").exists()

    def test_who_promoted_meanwhile_wins(self, tmp_path: Path) -> None:
        """The other copied for longer, finds another version current, and is told."""
        target = Target(str(tmp_path / "d"), "m")
        releases = [package(make_run(tmp_path / "runs", f"r-{n}", weights=bytes([n]))) for n in range(3)]
        promote(releases[0], target, chain.DEFAULT)
        slow = Target(str(tmp_path / "d"), "m")
        fill = slow.fill

        def meanwhile(version: str, root: Path) -> None:
            promote(releases[1], target, chain.DEFAULT)
            fill(version, root)

        slow.fill = meanwhile  # type: ignore[method-assign]
        with pytest.raises(ConflictError, match="somebody else promoted m meanwhile") as caught:
            promote(releases[2], slow, chain.DEFAULT)
        assert "it was v1, and is v3" in caught.value.evidence
        assert target.current()[0] == "v3"
        assert [v for v, r in target.versions().items() if r["complete"]] == ["v1", "v3"]
        assert not (tmp_path / "d" / "m" / "v2").exists()

    def test_a_full_disk_leaves_what_was_current(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        target = Target(str(tmp_path / "d"), "m")
        promote(package(make_run(tmp_path, "r-1")), target, chain.DEFAULT)
        release = package(make_run(tmp_path, "r-2", weights=b"more"))

        def full(*args: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("seatrial.runs.stores.directory.copy_verified", full)
        with pytest.raises(PlatformError, match="can't be used as a store"):
            promote(release, target, chain.DEFAULT)
        monkeypatch.undo()
        assert target.current()[0] == "v1"
        assert damage(target, "v1") == []

    def test_what_is_no_link_of_ours_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "d" / "m" / "current").mkdir(parents=True)
        with pytest.raises(SpecError, match="is not ours"):
            promote(package(make_run(tmp_path, "r-1")), Target(str(tmp_path / "d"), "m"), chain.DEFAULT)


class TestRollback:
    @pytest.fixture
    def target(self, tmp_path: Path) -> Target:
        target = Target(str(tmp_path / "d"), "m")
        for number in (1, 2, 3):
            promote(
                package(make_run(tmp_path, f"r-{number}", weights=bytes([number]))), target, chain.DEFAULT
            )
        return target

    def test_goes_to_what_was_current_before(self, target: Target) -> None:
        assert rollback(target) == ("v2", "v3")
        assert rollback(target) == ("v1", "v2")
        assert rollback(target, "v3") == ("v3", "v1")
        assert rollback(target) == ("v2", "v3")
        assert [row["kind"] for row in target.history()].count("rolled back") == 4

    def test_a_damaged_version_does_not_become_current(self, target: Target, tmp_path: Path) -> None:
        (tmp_path / "d" / "m" / "v2" / "model.safetensors").write_bytes(b"?")
        with pytest.raises(MeasuredFailure, match="not what was promoted"):
            rollback(target)
        assert target.current()[0] == "v3"
        assert rollback(target, "v1") == ("v1", "v3")

    @pytest.mark.parametrize(
        ("version", "words"), [("v9", "has no v9"), ("v3", "already"), ("latest", "no version")]
    )
    def test_what_makes_no_sense_is_refused(self, target: Target, version: str, words: str) -> None:
        with pytest.raises(SpecError, match=words):
            rollback(target, version)

    def test_the_first_version_has_none_before(self, tmp_path: Path) -> None:
        target = Target(str(tmp_path / "e"), "m")
        with pytest.raises(SpecError, match="has no version"):
            rollback(target)
        promote(package(make_run(tmp_path, "r-9")), target, chain.DEFAULT)
        with pytest.raises(SpecError, match="no version before"):
            rollback(target)

    def test_a_switch_that_nobody_noted_is_found(self, target: Target) -> None:
        target.switch("v1", "v3")  # and killed
        assert rollback(target, "v2") == ("v2", "v1")
        assert [(row["kind"], row["version"]) for row in target.history()][-2:] == [
            ("found", "v1"),
            ("rolled back", "v2"),
        ]
