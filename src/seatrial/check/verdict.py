"""From findings to a verdict: which nodes fail, what the whole comes to, in one sentence. Pure."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from seatrial.errors import ExitCode
from seatrial.runs.acceptance import Acceptance, Coverage, Finding, NodeVerdict, Profile
from seatrial.runs.evidence import Verdict
from seatrial.runs.hardware import fingerprint
from seatrial.runs.samples import Sample
from seatrial.spec.checks import SuiteSpec

_BY_WEIGHT = (Verdict.SKIP, Verdict.PASS, Verdict.UNMEASURED, Verdict.WARN, Verdict.ERROR, Verdict.FAIL)
_NAMED = 32
"""So many nodes a sentence names, at most."""
_CEILINGS = ("gemm_", "memory_copy")
"""Metrics whose best is kept, by how they begin."""


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """FAIL before ERROR, WARN, UNMEASURED, PASS and SKIP; UNMEASURED where there are none."""
    return max(verdicts, key=_BY_WEIGHT.index, default=Verdict.UNMEASURED)


def by_metric(findings: Iterable[Finding]) -> dict[tuple[Any, ...], Verdict]:
    """What a metric of a part came to, by ``(check, node, gpu, peer, peer_gpu, metric)``.

    One judge that could tell is enough: a metric that the peers passed is measured, though no specification has a floor for it.
    """
    heard: dict[tuple[Any, ...], set[Verdict]] = defaultdict(set)
    for f in findings:
        heard[f.check, f.node, f.gpu, f.peer, f.peer_gpu, f.metric].add(f.verdict)
    blank = {Verdict.UNMEASURED, Verdict.SKIP}
    return {part: worst(said - blank or said) for part, said in heard.items()}


def conclude(
    findings: Sequence[Finding],
    coverage: Coverage,
    *,
    run_id: str,
    suite: SuiteSpec,
    platform: str,
    cluster: str,
    profile: Profile,
    tested: datetime,
    hardware: Mapping[str, Mapping[str, Any]],
    gpus: Mapping[str, Sequence[str]],
    valid_days: float = 7,
    ceilings: Mapping[str, Mapping[str, float]] | None = None,
    strict: bool = False,
) -> Acceptance:
    """The whole verdict, not signed yet.

    Args:
        findings: of all judges.
        coverage: which required checks have no result.
        run_id: of the test.
        suite: that was run.
        platform: the backend's name.
        cluster: which one of that platform; the host's name for ``local``.
        profile: what was tested.
        tested: when, with a time zone.
        hardware: of each node, as `runs.hardware.read` has it.
        gpus: names of each node's GPUs.
        valid_days: how long launchers may go by it.
        ceilings: as `ceilings` gives them.
        strict: a warning fails the test, too.
    """
    tested = tested.astimezone(UTC)
    met = by_metric(findings)
    failed = any(verdict is Verdict.FAIL for verdict in met.values())
    warned = any(verdict in {Verdict.WARN, Verdict.ERROR} for verdict in met.values())
    names = {*hardware, *gpus, *(n for f in findings for n in (f.node, f.peer) if n is not None)}
    nodes = _nodes(findings, sorted(names, key=natural), hardware, gpus, coverage.missing)
    if failed:
        verdict, code = Verdict.FAIL, ExitCode.FAILED
    elif coverage.missing or Verdict.PASS not in met.values():
        verdict, code = Verdict.UNMEASURED, ExitCode.INCOMPLETE
    elif warned:
        verdict, code = Verdict.WARN, ExitCode.FAILED if strict else ExitCode.OK
    else:
        verdict, code = Verdict.PASS, ExitCode.OK
    return Acceptance(
        run_id=run_id, suite=suite.name, suite_sha256=suite_sha256(suite), platform=platform, cluster=cluster,
        profile=profile, verdict=verdict, exit_code=int(code),
        sentence=_sentence(verdict, nodes, findings, coverage, strict=strict),
        tested=tested, expires=tested + timedelta(days=valid_days), nodes=nodes, coverage=coverage,
        findings=tuple(_plain(f) for f in _kept(findings)),
        ceilings={node: dict(best) for node, best in (ceilings or {}).items()},
    )  # fmt: skip


def suite_sha256(suite: SuiteSpec) -> str:
    """The suite's hash, in hex: two of one name may ask for different things."""
    return hashlib.sha256(json.dumps(suite.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


def ceilings(samples: Iterable[Sample]) -> dict[str, dict[str, float]]:
    """By node, the best rate that any of its GPUs reached in each precision (TFLOP/s), and copying its memory (GB/s)."""
    best: dict[str, dict[str, float]] = defaultdict(dict)
    for s in samples:
        if s.metric.startswith(_CEILINGS) and isinstance(s.value, int | float) and math.isfinite(s.value):
            best[s.node][s.metric] = max(float(s.value), best[s.node].get(s.metric, 0.0))
    return {node: dict(sorted(rates.items())) for node, rates in sorted(best.items())}


def _nodes(
    findings: Sequence[Finding],
    names: Sequence[str],
    hardware: Mapping[str, Mapping[str, Any]],
    gpus: Mapping[str, Sequence[str]],
    missing: Collection[str],
) -> tuple[NodeVerdict, ...]:
    told: dict[str, list[tuple[Verdict, str]]] = {name: [] for name in names}
    met = by_metric(findings)
    for f in findings:
        # A judge that could not tell does not count against another that could.
        agreed = met[f.check, f.node, f.gpu, f.peer, f.peer_gpu, f.metric] is f.verdict
        bad = f.verdict in {Verdict.FAIL, Verdict.WARN}
        optional = f.verdict is Verdict.UNMEASURED and f.check not in missing
        if f.node is None or not agreed or optional:
            continue
        if not bad or f.blames_node:
            told[f.node].append((f.verdict, f.message))
        elif f.blame == "link":
            for end, other in ((f.node, f.peer), (f.peer, f.node)):
                if end is not None:
                    told[end].append((Verdict.WARN, f"link to {other}: {f.message}" if other else f.message))
    return tuple(_node(name, told[name], hardware.get(name, {}), gpus.get(name, ())) for name in names)


def _node(
    name: str, told: Sequence[tuple[Verdict, str]], hardware: Mapping[str, Any], gpus: Sequence[str]
) -> NodeVerdict:
    verdict = worst(v for v, _ in told)
    reason = next((message for v, message in told if v is verdict), "nothing was measured")
    return NodeVerdict(
        name=name, verdict=verdict, reason="" if verdict in {Verdict.PASS, Verdict.SKIP} else reason,
        gpus=tuple(gpus), hardware=dict(hardware), fingerprint=fingerprint(hardware) if hardware else "",
    )  # fmt: skip


def _sentence(
    verdict: Verdict,
    nodes: Sequence[NodeVerdict],
    findings: Sequence[Finding],
    coverage: Coverage,
    *,
    strict: bool,
) -> str:
    of = f"of {len(nodes)} node{'s' if len(nodes) != 1 else ''}"
    bad = [n.name for n in nodes if n.verdict is Verdict.FAIL]
    warned = [n.name for n in nodes if n.verdict in {Verdict.WARN, Verdict.ERROR}]
    parts = []
    if bad:
        checks = _by_node(findings)
        parts.append(f"{len(bad)} {of} fail{'s' * (len(bad) == 1)}: {_list(bad, checks)}")
    elsewhere = [f for f in findings if f.verdict is Verdict.FAIL and f.node not in bad]
    if elsewhere:
        links = sorted(
            {"–".join(sorted((f.node, f.peer))) for f in elsewhere if f.blame == "link" and f.node and f.peer}
        )
        if links:
            parts.append(
                f"{len(links)} link{'s' * (len(links) > 1)} fail{'s' * (len(links) == 1)}: {_list(links)}"
            )
        rest = sorted({f.check for f in elsewhere if f.peer is None or f.blame != "link"})
        if rest:
            parts.append(f"{', '.join(rest)} fail{'s' * (len(rest) == 1)}")
    if coverage.missing:
        did = len(coverage.required) - len(coverage.missing)
        parts.append(
            f"{did} of {len(coverage.required)} required checks ran; not: {', '.join(sorted(coverage.missing))}"
        )
    if not parts and verdict is Verdict.UNMEASURED:
        parts.append("nothing was measured")
    if not bad:
        passed = sum(n.verdict is Verdict.PASS for n in nodes)
        parts.append(f"{passed} {of} pass{'es' * (passed == 1)}")
    if warned:
        parts.append(f"warnings of {_list(warned)}" + (", which fail a strict test" if strict else ""))
    return f"{verdict}: {'; '.join(parts)}"


def _by_node(findings: Sequence[Finding]) -> dict[str, str]:
    """What failed on each node, in a few words."""
    failed: dict[str, dict[str, None]] = defaultdict(dict)
    for f in findings:
        if f.verdict is Verdict.FAIL and f.node is not None and f.blames_node:
            failed[f.node][f.check if f.gpu is None else f"{f.check} of GPU {f.gpu}"] = None
    return {node: ", ".join([*list(what)[:2], *(["…"] * (len(what) > 2))]) for node, what in failed.items()}


def _list(names: Sequence[str], about: Mapping[str, str] | None = None) -> str:
    shown = [f"{name} ({about[name]})" if about and name in about else name for name in names[:_NAMED]]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _kept(findings: Sequence[Finding]) -> list[Finding]:
    """All but passes that say the same again: of those, one for each check on each GPU (of links, on each node).

    With a thousand nodes a launcher reads this file in a second, not in a minute. Figures of what passed are in the samples.
    """
    blank = {(f.check, f.node, f.gpu, f.peer, f.peer_gpu, f.metric) for f in findings
             if f.verdict in {Verdict.UNMEASURED, Verdict.SKIP}}  # fmt: skip
    seen: set[tuple[Any, ...]] = set()
    kept = []
    for f in findings:
        if f.verdict is Verdict.PASS:
            whole = (f.check, f.node, f.gpu, f.peer, f.peer_gpu, f.metric)
            part = whole if whole in blank else whole[:3]
            if part in seen:
                continue
            seen.add(part)
        kept.append(f)
    return kept


def _plain(finding: Finding) -> Finding:
    """With figures that are JSON: NaN and infinity, which it lacks, as words."""
    return finding.model_copy(
        update={"measured": _json(finding.measured), "expected": _json(finding.expected)}
    )


def _json(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_json(inner) for inner in value]
    if isinstance(value, set | frozenset):
        return sorted(_json(inner) for inner in value)
    return value


def natural(name: str) -> tuple[Any, ...]:
    """A key to sort by: node2 before node10."""
    return re.sub("[0-9]+", "0", name), [int(digits) for digits in re.findall("[0-9]+", name)], name
