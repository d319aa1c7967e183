"""The verdict in three shapes: they agree, they fit, and they trust no text."""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as Xml

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seatrial.check.reports import files, junit, matrix, page, terminal
from seatrial.check.reports.model import CLUSTER, Pairs, cells, lines, pairs, printable
from seatrial.runs.acceptance import Acceptance, Coverage
from seatrial.runs.paths import RunPaths
from seatrial.runs.signature import verify

from .acceptance_samples import (
    ERROR,
    FAIL,
    HOSTILE,
    PASS,
    SKIP,
    UNMEASURED,
    WARN,
    conclude,
    finding,
    healthy,
    pair_samples,
    troubled,
)  # fmt: skip
from .test_report import Balanced

Golden = Callable[[str, Path | str], None]


@pytest.fixture(scope="module")
def verdict() -> Acceptance:
    missing = {"xid": f"dmesg: {HOSTILE}", "cluster_data": "a rank died"}
    coverage = Coverage(required=("gemm", "xid", "pairs", "cluster_data"), missing=missing)
    return conclude(troubled(), coverage=coverage, ceilings={"node0": {"gemm_bf16": 712.0}})


class TestModel:
    def test_a_cell_is_the_worst_of_its_metrics(self) -> None:
        found = cells(conclude(troubled()))
        assert found["gemm", "node3"] == FAIL
        assert found["gemm", "node2"] == PASS
        assert (found["pairs", "node0"], found["pairs", "node2"]) == (FAIL, FAIL)
        assert found["infiniband", CLUSTER] == SKIP

    def test_parts_are_counted_by_what_a_check_is_of(self, verdict: Acceptance) -> None:
        counts = {line.check: line.counts for line in lines(verdict)}
        assert counts["gemm"] == "7 GPUs pass, 1 GPU fails"
        assert counts["report"] == "4 nodes pass"
        assert counts["pairs"] == "1 link fails"
        assert counts["cluster_collectives"] == "passes"
        assert counts["cluster_data"] == "a rank died"

    @given(st.text())
    def test_texts_are_one_line_without_control_characters(self, text: str) -> None:
        shown = printable(text)
        assert shown.isprintable()
        assert shown == printable(shown)


class TestTerminal:
    @pytest.mark.parametrize("width", [80, 44])
    def test_as_it_was_approved(self, verdict: Acceptance, golden: Golden, width: int) -> None:
        golden(terminal.render(verdict, width=width), f"check/terminal-{width}.txt")

    @pytest.mark.parametrize("width", [10, 30, 80, 500])
    def test_it_fits(self, verdict: Acceptance, width: int) -> None:
        text = terminal.render(verdict, width=width)
        assert max(map(len, text.splitlines())) <= max(30, min(width, 110))
        assert "\x1b" not in text and "\x00" not in text

    def test_the_last_line_is_the_sentence(self) -> None:
        assert terminal.render(conclude(healthy())).splitlines()[-1] == "PASS: 4 of 4 nodes pass"

    def test_failures_are_red_only_where_colour_is_wanted(self, verdict: Acceptance) -> None:
        painted = terminal.render(verdict, colour=True)
        assert re.search(r"\x1b\[31m✗ gemm, node3, GPU 1: .*\x1b\[0m", painted)
        assert re.sub(r"\x1b\[\d*m", "", painted) == terminal.render(verdict)

    @pytest.mark.parametrize(
        ("tty", "environ", "wanted"),
        [(True, {}, True), (True, {"NO_COLOR": "1"}, False), (False, {}, False), (True, {"TERM": "dumb"}, False),
         (True, {"NO_COLOR": ""}, True)],
    )  # fmt: skip
    def test_colour(self, tty: bool, environ: dict[str, str], wanted: bool) -> None:
        class Stream(io.StringIO):
            def isatty(self) -> bool:
                return tty

        assert terminal.wants_colour(Stream(), environ) == wanted

    def test_a_thousand_failures_stay_readable(self) -> None:
        text = terminal.render(
            conclude([finding("report", FAIL, f"n{i}", blame="node") for i in range(1000)])
        )
        assert "and 960 more: see verdict.json" in text
        assert len(text.splitlines()) < 70

    @pytest.mark.parametrize(
        ("profile", "said"),
        [("gpu", "4 nodes, 8 GPUs"), ("cpu", "CPUs only"), ("rehearsal", "4 pretend nodes")],
    )
    def test_what_was_tested_is_said(self, profile: str, said: str) -> None:
        text = terminal.render(conclude(healthy(), profile=profile))
        assert said in " ".join(text.split())


RESULTS = {"failure", "error", "skipped"}


def check_schema(root: Xml.Element) -> None:
    """What junit-10.xsd of Jenkins' xunit plugin demands of the elements that we write."""
    assert root.tag == "testsuites" and set(root.attrib) <= {
        "name",
        "time",
        "tests",
        "failures",
        "errors",
        "skipped",
    }
    for suite in root:
        assert suite.tag == "testsuite"
        assert {"name", "tests"} <= set(suite.attrib)
        assert set(suite.attrib) <= {"name", "tests", "failures", "errors", "time", "skipped", "timestamp", "hostname",
                                     "id", "package", "file", "log", "url", "version", "group"}  # fmt: skip
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", suite.attrib["timestamp"])
        assert {child.tag for child in suite} <= {
            "testsuite",
            "properties",
            "testcase",
            "system-out",
            "system-err",
        }
        for item in suite.findall("properties/property"):
            assert set(item.attrib) == {"name", "value"}
        for case in suite.findall("testcase"):
            assert (
                {"name", "classname"}
                <= set(case.attrib)
                <= {"name", "classname", "time", "assertions", "status"}
            )
            float(case.attrib["time"])
            assert len(case) <= 1 and {child.tag for child in case} <= RESULTS | {"system-out"}
            assert all(set(child.attrib) <= {"type", "message"} for child in case)
        for tag, attribute in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
            assert int(suite.attrib[attribute]) == len(suite.findall(f"testcase/{tag}"))
        assert int(suite.attrib["tests"]) == len(suite.findall("testcase"))


class TestJunit:
    def test_as_it_was_approved(self, verdict: Acceptance, golden: Golden) -> None:
        golden(junit.render(verdict), "check/junit.xml")

    def test_it_is_what_a_ci_reads(self, verdict: Acceptance) -> None:
        root = Xml.fromstring(junit.render(verdict))
        check_schema(root)
        assert (root.get("failures"), root.get("skipped")) == ("4", "1")
        failure = root.find(".//testcase[@name='node3']/failure")
        assert failure is not None and failure.get("type") == "below_floor"
        assert "Next: nvidia-smi" in (failure.text or "")

    @pytest.mark.parametrize(
        ("verdict", "tag"),
        [(FAIL, "failure"), (ERROR, "error"), (UNMEASURED, "error"), (SKIP, "skipped"), (WARN, "system-out")],
    )
    def test_each_verdict_has_its_element(self, verdict: str, tag: str) -> None:
        xml = junit.render(conclude([finding("ecc", verdict, message=HOSTILE)]))  # type: ignore[arg-type]
        case = Xml.fromstring(xml).find(".//testcase")
        assert case is not None and [child.tag for child in case] == [tag]

    def test_a_pass_has_none_and_every_failing_test_has_a_failure(self) -> None:
        assert not list(Xml.fromstring(junit.render(conclude(healthy()))).iter("failure"))
        link = finding("pairs", FAIL, "node0", peer="node1", blame="link")
        assert len(list(Xml.fromstring(junit.render(conclude([link]))).iter("failure"))) == 2

    @given(st.text(max_size=30), st.text(min_size=1, max_size=10))
    def test_any_text_gives_xml(self, text: str, node: str) -> None:
        check_schema(Xml.fromstring(junit.render(conclude([finding("xid", FAIL, node, message=text)]))))


class TestPage:
    @pytest.fixture
    def html(self, verdict: Acceptance) -> str:
        return page.render(verdict, pairs(pair_samples(5)))

    def test_as_it_was_approved(self, html: str, golden: Golden) -> None:
        golden(html, "check/page.html")

    def test_the_markup_is_balanced_and_hostile_text_stays_text(self) -> None:
        told = [finding("xid", FAIL, HOSTILE, peer=HOSTILE, gpu=0, message=HOSTILE, remedy=HOSTILE, source=HOSTILE,
                        measured=HOSTILE, expected=[HOSTILE], unit=HOSTILE, code=HOSTILE)]  # fmt: skip
        nasty = conclude(
            told, coverage=Coverage(required=("ecc",), missing={"ecc": HOSTILE, HOSTILE: HOSTILE}), run_id=HOSTILE,
            cluster=HOSTILE, platform=HOSTILE, ceilings={HOSTILE: {HOSTILE: 1.0}},
        )  # fmt: skip
        for few in (2, 40):
            names = tuple(f"{HOSTILE}{i}" for i in range(few))
            html = page.render(nasty, Pairs(names, {(a, b): 1.0 for a in names for b in names if a != b}))
            parser = Balanced()
            parser.feed(html)
            assert parser.open == []
            assert "script" not in parser.seen
            assert "&lt;script&gt;" in html and "\x1b" not in html and "\x00" not in html

    def test_nothing_is_asked_of_a_network(self, html: str) -> None:
        assert "default-src 'none'" in html
        assert not re.findall(r"""(?:src|href)=["'](?!data:)""", html)
        assert "@import" not in html and "url(" not in html

    def test_a_symbol_stands_beside_every_colour(self, html: str) -> None:
        for kind, sign in (("FAIL", "✗"), ("WARN", "!"), ("ERROR", "E"), ("UNMEASURED", "?"), ("PASS", "✓")):
            found = re.findall(rf'<td class="{kind}"[^>]*>(.)</td>', html)
            assert found and set(found) == {sign}

    def test_a_thousand_nodes_share_rows(self) -> None:
        told = [
            *healthy(1024, 1),
            finding("clock", WARN, "node7"),
            finding("gemm", FAIL, "node900", gpu=0, metric="x"),
        ]
        found = conclude(told)
        rows, left_out = page.heat_map(found)
        assert [row.name for row in rows] == ["node900", "node7", "1022 nodes alike"]
        assert left_out == 0
        nodes = tuple(f"node{i}" for i in range(1024))
        around = {(a, nodes[(i + k) % 1024]): 40.0 + k for i, a in enumerate(nodes) for k in range(1, 300)}
        html = page.render(found, Pairs(nodes, around))
        assert len(html.encode()) < 1_500_000
        assert "data:image/png;base64," in html

    def test_a_page_of_nothing_says_so(self) -> None:
        html = page.render(conclude([]))
        assert "Not measured." in html and "None: nothing failed" in html


class TestMatrix:
    @pytest.mark.parametrize(
        ("rate", "band"),
        [(None, "p0"), (100.0, "p4"), (95.0, "p4"), (94.0, "p3"), (80.0, "p2"), (10.0, "p1")],
    )
    def test_bands(self, rate: float | None, band: str) -> None:
        assert matrix.band(rate, 100.0) == band

    def test_the_slowest_come_first(self) -> None:
        found = matrix.slowest(pairs(pair_samples(6)), 3)
        assert [(a, b) for a, b, _, _ in found[:2]] == [("node0", "node2"), ("node2", "node0")]
        assert found[0][3] == pytest.approx(21 / 44.5, rel=0.03)

    def test_a_pair_measured_again_is_its_median(self) -> None:
        again = [s.model_copy(update={"value": v}) for s in pair_samples(2)[:1] for v in (1.0, 2.0, 9.0)]
        assert pairs(again).rates == {("node0", "node1"): 2.0}

    def test_few_pairs_of_many_nodes_are_no_picture(self) -> None:
        nodes = tuple(f"n{i}" for i in range(100))
        assert matrix.draw(Pairs(nodes, {("n0", "n1"): 3.0})) == ""
        assert matrix.draw(Pairs((), {})) == ""

    def test_the_picture_is_a_png_with_those_pixels(self) -> None:
        data = matrix.png([bytes([0, 1]), bytes([1, 0]), bytes([1, 1])], ["#000000", "#ff8000"])
        assert data.startswith(b"\x89PNG\r\n\x1a\n")
        place, chunks = 8, {}
        while place < len(data):
            size, kind = struct.unpack(">I4s", data[place : place + 8])
            body = data[place + 8 : place + 8 + size]
            assert struct.unpack(">I", data[place + 8 + size : place + 12 + size])[0] == zlib.crc32(
                kind + body
            )
            chunks[kind] = body
            place += 12 + size
        assert struct.unpack(">II", chunks[b"IHDR"][:8]) == (2, 3)
        assert chunks[b"PLTE"] == bytes.fromhex("000000ff8000")
        assert zlib.decompress(chunks[b"IDAT"]) == bytes([0, 0, 1, 0, 1, 0, 0, 1, 1])


class TestFiles:
    @pytest.fixture
    def paths(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunPaths:
        pytest.importorskip("cryptography")
        monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
        (tmp_path / "check-1").mkdir()
        return RunPaths(tmp_path / "check-1")

    def test_what_is_left_behind_can_be_read_back(self, paths: RunPaths) -> None:
        signed, why = files.write(paths, conclude(troubled()), pair_samples(3))
        assert why is None
        read = Acceptance.model_validate_json(paths.verdict.read_text())
        assert read == signed and verify(read) is None
        check_schema(Xml.fromstring(paths.junit.read_text()))
        assert signed.key in paths.report.read_text()

    def test_a_key_that_is_not_safe_loses_no_verdict(self, paths: RunPaths, tmp_path: Path) -> None:
        (tmp_path / "data").write_text("")
        found, why = files.write(paths, conclude(troubled()), [])
        assert why is not None and found.signature == ""
        assert Acceptance.model_validate_json(paths.verdict.read_text()).exit_code == 1
        assert "nobody: launchers don't go by it" in paths.report.read_text().replace("&#39;", "'")
