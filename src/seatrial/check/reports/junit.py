"""The verdict as JUnit XML: a test suite a phase, a test case a check on a node.

FAIL is a failure; ERROR and UNMEASURED are errors, since what was not measured did not pass; SKIP is skipped; WARN passes,
with its message as output. The format is that of Ant's JUnit task, as Jenkins reads it:
https://github.com/jenkinsci/xunit-plugin/blob/master/src/main/resources/org/jenkinsci/plugins/xunit/types/model/xsd/junit-10.xsd
"""

from __future__ import annotations

from collections import defaultdict
from xml.etree import ElementTree as Xml

from seatrial.check.reports.model import BAD, CLUSTER, cells, checks, phase, printable, where
from seatrial.check.verdict import natural
from seatrial.runs.acceptance import Acceptance, Finding
from seatrial.runs.evidence import Verdict

_ELEMENTS = {
    Verdict.FAIL: "failure",
    Verdict.ERROR: "error",
    Verdict.UNMEASURED: "error",
    Verdict.SKIP: "skipped",
}
_COUNTED = {"failure": "failures", "error": "errors", "skipped": "skipped"}


def render(acceptance: Acceptance) -> str:
    """The XML."""
    verdicts = cells(acceptance)
    told = _told(acceptance)
    order = checks(acceptance)
    root = Xml.Element("testsuites", name="seatrial check")
    for name in dict.fromkeys(phase(check) for check in order):
        suite = Xml.SubElement(
            root, "testsuite", name=name, timestamp=f"{acceptance.tested:%Y-%m-%dT%H:%M:%S}",
            hostname=printable(acceptance.cluster), time="0",
        )  # fmt: skip
        properties = Xml.SubElement(suite, "properties")
        for key in ("run_id", "suite", "suite_sha256", "platform", "cluster", "profile", "sentence"):
            Xml.SubElement(properties, "property", name=key, value=printable(getattr(acceptance, key)))
        for check in order:
            if phase(check) == name:
                nodes = sorted((node for key, node in verdicts if key == check), key=natural)
                for node in nodes:
                    missing = acceptance.coverage.missing.get(check, "")
                    _case(suite, check, node, verdicts[check, node], told[check, node], missing)
        cases = suite.findall("testcase")
        suite.set("tests", str(len(cases)))
        for element, attribute in _COUNTED.items():
            suite.set(attribute, str(sum(case.find(element) is not None for case in cases)))
    for attribute in ("tests", "failures", "errors", "skipped"):
        root.set(attribute, str(sum(int(suite.get(attribute, "0")) for suite in root)))
    Xml.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + Xml.tostring(root, encoding="unicode") + "\n"


def _told(acceptance: Acceptance) -> dict[tuple[str, str], list[Finding]]:
    told: dict[tuple[str, str], list[Finding]] = defaultdict(list)
    for finding in acceptance.findings:
        told[finding.check, finding.node or CLUSTER].append(finding)
        if finding.peer is not None and finding.verdict in BAD:
            told[finding.check, finding.peer].append(finding)
    return told


def _case(
    suite: Xml.Element, check: str, node: str, verdict: Verdict, told: list[Finding], missing: str
) -> None:
    case = Xml.SubElement(
        suite, "testcase", classname=f"seatrial.check.{check}", name=printable(node), time="0"
    )
    if verdict is Verdict.PASS:
        return
    here = [f for f in told if f.verdict is verdict]
    lines = [_line(f) for f in here] or [printable(missing) or "no result"]
    if verdict is Verdict.WARN:
        Xml.SubElement(case, "system-out").text = "\n".join(f"WARN {line}" for line in lines)
        return
    message = printable(here[0].message) if here else lines[0]
    kind = (here[0].code if here else "") or str(verdict).lower()
    Xml.SubElement(case, _ELEMENTS[verdict], type=printable(kind), message=message).text = "\n".join(lines)


def _line(finding: Finding) -> str:
    remedy = f" Next: {printable(finding.remedy)}" if finding.remedy else ""
    return f"{where(finding)}: {printable(finding.message)} [{finding.judge}]{remedy}"
