"""``MODEL_CARD.md``: what a model was measured to do, and what was not. Pure; the header is the model hub's."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from seatrial.runs.evidence import Evidence
from seatrial.ship.license import License

_PIPELINES = {"causal-lm": "text-generation"}
"""Hub names of tasks that differ from ours."""
_FEW = 30
"""Held-out samples of a class below which its own figures say little."""


def card(
    name: str,
    run: Mapping[str, Any],
    spec: Mapping[str, Any],
    comparison: Mapping[str, Any] | None,
    evidence: Sequence[Evidence],
    license_: License,
) -> str:
    """The text of the card.

    Args:
        name: of the model.
        run: what a release says of its run (``run.json``).
        spec: the recipe.
        comparison: of the original and the trained model; None where there is none.
        evidence: the run's.
        license_: of the base model.
    """
    sections = [
        _header(spec, comparison, license_),
        f"# {name}\n\n{_what_it_is(run, spec)}",
        _measured(comparison),
        "## Limits of that\n\n" + "\n".join(f"- {line}" for line in _limits(run, spec, comparison, evidence)),
        _training(run, spec),
        _evidence(evidence),
        _license(spec, license_),
        "## Files\n\n`sha256sum --check SHA256SUMS` tells whether these are the files that were packaged; `evidence/` has the "
        "recipe, the comparison and every verdict as they were recorded.",
    ]
    return "\n\n".join(sections) + "\n"


def _header(spec: Mapping[str, Any], comparison: Mapping[str, Any] | None, license_: License) -> str:
    task = str(spec["task"])
    lines = [
        "library_name: transformers",
        f"pipeline_tag: {_PIPELINES.get(task, task)}",
        f"license: {license_.identifier or ('other' if license_.text else 'unknown')}",
    ]
    if not _is_path(spec["model"]):
        lines.append(f"base_model: {_yaml(spec['model'])}")
    if not _is_path(spec["data"]["path"]):
        lines.append(f"datasets: [{_yaml(spec['data']['path'])}]")
    if comparison is not None:
        lines.append(f"metrics: [{', '.join(_yaml(metric) for metric in comparison['metrics'])}]")
    lines.append("tags: [seatrial]")
    return "---\n" + "\n".join(lines) + "\n---"


def _what_it_is(run: Mapping[str, Any], spec: Mapping[str, Any]) -> str:
    train = run["data"].get("train", {})
    kind = f"An adapter ({spec['adapter']['kind']}) for" if spec.get("adapter") else "Fine-tuned from"
    size = run["results"].get("model", {}).get("num_parameters")
    return (
        f"{kind} {_shown(spec['model'])}"
        + (f" ({size:,} parameters)".replace(",", " ") if size else "")
        + f" for {spec['task']} on {train.get('num_samples', 'an unknown number of')} samples of {_shown(spec['data']['path'])}."
        f" Run `{run['run_id']}`, Seatrial {run['seatrial_version']}."
    )


def _measured(comparison: Mapping[str, Any] | None) -> str:
    if comparison is None:
        return "## Measured\n\nNothing: the original and the trained model were not compared."
    confidence = f"{100 * comparison['confidence']:g} % interval"
    rows = [f"| metric | original | trained | difference ({confidence}) | p |", "|---|---|---|---|---|"]
    for metric, row in comparison["metrics"].items():
        unit = row["unit"]
        low, high = row["interval"] or (None, None)
        between = f" ({_change(low, unit)} to {_change(high, unit)})" if low is not None else ""
        rows.append(
            f"| {metric.replace('_', ' ')}{'' if row['higher_is_better'] else ' (less is better)'} "
            f"| {_value(row['original'], unit)} | {_value(row['trained'], unit)} | {_change(row['difference'], unit)}{between} "
            f"| {_p(row['p_value'])} |"
        )
    return (
        f"## Measured\n\nThe original and the trained model on the same {comparison['num_samples']} held-out samples "
        f"(split `{comparison['split']}`, SHA-256 `{str(comparison['data_sha256'])[:16]}…`), paired. "
        f"Verdict: **{comparison['verdict']['verdict']}**: {comparison['verdict']['sentence']}\n\n"
        + "\n".join(rows)
    )


def _limits(
    run: Mapping[str, Any],
    spec: Mapping[str, Any],
    comparison: Mapping[str, Any] | None,
    evidence: Sequence[Evidence],
) -> Iterator[str]:
    yield (
        f"One training with seed {spec['train']['seed']}: the intervals are over held-out samples, not over trainings. Another seed "
        "gives another model."
    )
    yield "The held-out samples come from where the training samples come from. On other data nothing was measured."
    cut = {split: run["data"].get(split, {}).get("num_cut", 0) for split in ("train", "test")}
    if any(cut.values()):
        yield (
            f"Texts were cut at {spec['data']['max_length']} tokens: {cut['test']} of the held-out and {cut['train']} of the "
            "training samples lost their ends."
        )
    for warning in (comparison or {}).get("warnings", ()):
        yield f"{str(warning)[:1].upper()}{str(warning)[1:]}."
    few = [row["label"] for row in (comparison or {}).get("per_class", ()) if row["support"] < _FEW]
    if few:
        yield f"Fewer than {_FEW} held-out samples: {', '.join(map(str, few[:10]))}{' …' if len(few) > 10 else ''}."
    for row in evidence:
        if row.verdict not in {"PASS", "SKIP"}:
            yield f"{row.check}: {row.verdict}: {row.message}."
    yield "Not measured: speed, memory, robustness, fairness, safety."


def _training(run: Mapping[str, Any], spec: Mapping[str, Any]) -> str:
    train, data = spec["train"], run["data"].get("train", {})
    attempt = (run["attempts"] or [{}])[-1]
    ranks = attempt.get("nproc", 1) * attempt.get("nodes", 1)
    gpus = run["environment"].get("gpus") or []
    on = f"{ranks} × {gpus[0]}" if gpus else f"{ranks} CPU ranks"
    steps = run["results"].get("training", {}).get("steps", "an unknown number of")
    keys = ("learning_rate", "schedule", "warmup", "weight_decay", "batch_size", "grad_accumulation", "global_batch",
            "precision", "seed")  # fmt: skip
    rows = [f"| {key} | {train[key]} |" for key in keys if train.get(key) is not None]
    packages = ", ".join(f"{name} {version}" for name, version in run["environment"]["packages"].items())
    return (
        f"## Training\n\n{steps} steps on {on}; training data SHA-256 `{str(data.get('sha256'))[:16]}…`; {packages}.\n\n"
        "| | |\n|---|---|\n" + "\n".join(rows)
    )


def _evidence(evidence: Sequence[Evidence]) -> str:
    rows = [f"| {row.check} | {row.verdict} | {_cell(row.message)} |" for row in evidence]
    return "## Evidence\n\n| check | verdict | what was seen |\n|---|---|---|\n" + "\n".join(rows)


def _license(spec: Mapping[str, Any], license_: License) -> str:
    base = _shown(spec["model"])
    if license_.text is not None:
        said = f"`LICENSE` is that of {base}" + (f" ({license_.identifier})." if license_.identifier else ".")
    elif license_.identifier:
        said = f"The card of {base} names {license_.identifier}; its text was not there to be copied."
    else:
        said = f"Unknown: nothing beside {base} names one. Find out before you pass this model on."
    return f"## License\n\n{said}"


def _is_path(text: str) -> bool:
    return text.startswith(("/", ".", "~", "file:")) or text.count("/") > 1


def _shown(text: str) -> str:
    """A hub id, or the last part of a path: where it lay on somebody's disk tells nobody anything."""
    return f"`{text.rstrip('/').rpartition('/')[2] if _is_path(text) else text}`"


def _yaml(value: Any) -> str:
    return json.dumps(str(value), ensure_ascii=False)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _value(value: float | None, unit: str) -> str:
    if value is None:
        return "not measured"
    return f"{100 * value:.1f} %" if unit == "fraction" else f"{value:.4f}"


def _change(value: float | None, unit: str) -> str:
    if value is None:
        return "not measured"
    return f"{100 * value:+.1f} points" if unit == "fraction" else f"{value:+.4f}"


def _p(value: float | None) -> str:
    return "" if value is None else "< 1e-6" if value < 1e-6 else f"{value:.2g}"
