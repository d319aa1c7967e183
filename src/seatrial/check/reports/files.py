"""What an acceptance test leaves in its run directory: the signed verdict, JUnit XML, the page."""

from __future__ import annotations

from collections.abc import Iterable

from seatrial.check.reports import junit, page
from seatrial.check.reports.model import pairs
from seatrial.errors import PlatformError
from seatrial.runs.acceptance import Acceptance
from seatrial.runs.files import write_json, write_text
from seatrial.runs.paths import RunPaths
from seatrial.runs.samples import Sample
from seatrial.runs.signature import sign


def write(
    paths: RunPaths, acceptance: Acceptance, samples: Iterable[Sample]
) -> tuple[Acceptance, PlatformError | None]:
    """Signs the verdict, and writes ``verdict.json``, ``junit.xml`` and ``report.html``.

    Without a key that is safe to use the verdict is written all the same: what was measured is not lost, though no launch
    goes by it.

    Returns:
        The verdict as it stands in the file, and why it is not signed (None: it is).
    """
    why = None
    try:
        acceptance = sign(acceptance)
    except PlatformError as error:
        why = error
    write_json(paths.verdict, acceptance.model_dump(mode="json", by_alias=True))
    write_text(paths.junit, junit.render(acceptance))
    write_text(paths.report, page.render(acceptance, pairs(samples)))
    return acceptance, why
