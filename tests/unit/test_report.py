"""The page shows what there is, says what there is not, and trusts no text."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seatrial.report import build_report, formats
from seatrial.report.chart import Series, downsample, label, line_chart, ticks
from seatrial.runs.manifest import AttemptRecord
from seatrial.runs.paths import RunPaths
from seatrial.runs.state import RunState

from .report_run import make_manifest, make_run

VOID = {"meta", "link", "br", "img", "path", "circle", "polyline"}


class Balanced(HTMLParser):
    """Fails where a tag is closed that was not opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open and self.open.pop() == tag, tag


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    return make_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def page(run: RunPaths) -> str:
    return build_report(run).read_text()


def test_the_page_as_it_was_approved(
    run: RunPaths, page: str, golden: Callable[[str, Path | str], None]
) -> None:
    golden(page.replace(str(run.root), "/runs/demo"), "report/page.html")


def test_the_verdict_comes_first(page: str) -> None:
    main = page[page.index("<main>") :]
    assert main.index("▲ better") < main.index("What was run") < main.index("Curves") < main.index("Evidence")
    assert "Gate passed" in main
    assert "1 min 12 s" in main
    assert "cd &#39;/work dir&#39; &amp;&amp; seatrial train &#39;a file.yaml&#39;" in main


def test_the_markup_is_balanced_and_hostile_text_stays_text(page: str) -> None:
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    assert not {"script", "img", "iframe"} & parser.seen
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "&lt;img src=x onerror=alert(2)&gt;" in page


def test_nothing_is_asked_of_a_network(page: str) -> None:
    assert "default-src 'none'" in page
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page)
    assert "@import" not in page and "url(" not in page
    assert len(page.encode()) < 100_000


def test_a_run_that_failed_early_says_what_is_missing(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path / "r-1")
    failure = {"exit_code": 4, "what": "rank 1 was killed by SIGKILL", "evidence": "torchrun <x>", "remedy": "",
               "rank": 1, "last_lines": ["last words"]}  # fmt: skip
    attempt = AttemptRecord(index=0, stages=["train"], outcome="failed", exit_code=4, failure=failure)
    make_manifest(paths, state=RunState.FAILED, reason="rank 1 was killed by SIGKILL", attempts=[attempt])
    page = build_report(paths).read_text()
    assert "– not measured" in page
    assert "last words" in page and "torchrun &lt;x&gt;" in page
    assert page.count("Not measured:") == 3  # curves, evidence, environment


def test_a_script_has_no_verdict_and_no_reproach(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path / "s-1")
    make_manifest(paths, task="script")
    assert "a script of your own" in build_report(paths).read_text()


class TestCharts:
    @given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
    def test_ticks_are_round_and_span_the_range(self, low: float, span: float) -> None:
        found = ticks(low, low + span)
        assert 2 <= len(found) <= 9
        gap = found[1] - found[0]
        assert found[0] <= low + 1e-6 * gap
        assert found[-1] >= low + span - 1e-6 * gap

    @pytest.mark.parametrize(
        ("low", "high", "expected"),
        [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (3, 3, [2.6, 2.8, 3, 3.2, 3.4])],
    )
    def test_ticks(self, low: float, high: float, expected: list[float]) -> None:
        assert ticks(low, high) == pytest.approx(expected)

    @given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=3000), st.integers(10, 600))
    def test_downsampling_loses_no_spike(self, values: list[float], limit: int) -> None:
        points = [(float(i), v) for i, v in enumerate(values)]
        kept = downsample(points, limit)
        assert len(kept) <= max(limit, len(points) if len(points) <= limit else limit)
        assert (kept[0], kept[-1]) == (points[0], points[-1])
        assert max(v for _, v in kept) == max(values)
        assert min(v for _, v in kept) == min(values)
        assert kept == sorted(kept)

    def test_a_chart_of_nothing_is_nothing(self) -> None:
        assert line_chart("Loss", "nats", [Series("training", [])]) == ""
        assert "<circle" in line_chart("Loss", "nats", [Series("training", [(1, 2.0)])])

    @pytest.mark.parametrize(
        ("value", "text"), [(0, "0"), (0.0005, "5.0e-4"), (12000, "1.2e4"), (0.25, "0.25"), (500, "500")]
    )
    def test_tick_labels_are_short(self, value: float, text: str) -> None:
        assert label(value) == text


class TestFormats:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            (formats.number(1234567), "1 234 567"),
            (formats.number(0.123456), "0.1235"),
            (formats.number(None), "not measured"),
            (formats.of_unit(0.8125, "fraction"), "81.2 %"),
            (formats.difference(-0.01, "fraction"), "-1.0 points"),
            (formats.difference(0.25, "nats/sample"), "+0.2500"),
            (formats.interval([0.01, 0.05], "fraction", signed=True), "+1.0 to +5.0 points"),
            (formats.p_value(0.0), "< 1e-6"),
            (formats.p_value(0.0312), "0.031"),
            (formats.duration("2026-01-01T00:00:00+00:00", "2026-01-01T02:03:00+00:00"), "2 h 3 min"),
            (formats.duration("2026-01-01T00:00:00+00:00", None), "not measured"),
        ],
    )
    def test_numbers_for_people(self, text: str, expected: str) -> None:
        assert text == expected
