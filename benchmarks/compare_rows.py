"""Comparing two prediction files: against the same statistics in plain Python, and alone on millions of rows.

    benchmarks/compare_rows.py --plain 2000 --rows 5000000

The plain side reads the same two files, joins them by id, and does what the comparison does of accuracy, macro F1 and log loss: McNemar's
exact test, a paired bootstrap of all three (BCa needs more; percentiles are taken), and a paired randomization test of the last two, with as many
resamples. Nobody would write more of it by hand.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from seatrial.runs.predictions import PredictionsInfo, classification_table, write_predictions

PLAIN = """
import math, random, sys
import pyarrow.parquet as pq

def rows(path):
    return {row["id"]: (row["label"], row["prediction"], row["probabilities"]) for row in pq.read_table(path).to_pylist()}

a, b = rows(sys.argv[1]), rows(sys.argv[2])
resamples = int(sys.argv[3])
labels = sorted({label for label, _, _ in a.values()})
place = {label: i for i, label in enumerate(labels)}
pairs = [(place[a[i][0]], place[a[i][1]], place[b[i][1]], -math.log(a[i][2][place[a[i][0]]]), -math.log(b[i][2][place[a[i][0]]])) for i in sorted(a)]

def f1(hits, predicted, support):
    return sum(2 * h / (p + s) if p + s else 0.0 for h, p, s in zip(hits, predicted, support)) / len(hits)

def metrics(sample):
    k = len(labels)
    hits, predicted, support, loss = ([0] * k, [0] * k), ([0] * k, [0] * k), [0] * k, [0.0, 0.0]
    for label, one, two, first, second in sample:
        support[label] += 1
        for m, said in enumerate((one, two)):
            predicted[m][said] += 1
            hits[m][label] += said == label
        loss[0] += first
        loss[1] += second
    n = len(sample)
    return [(sum(hits[1]) - sum(hits[0])) / n, f1(hits[1], predicted[1], support) - f1(hits[0], predicted[0], support), (loss[1] - loss[0]) / n]

random.seed(0)
observed = metrics(pairs)
drawn = sorted(zip(*(metrics(random.choices(pairs, k=len(pairs))) for _ in range(resamples))))
extreme = [0, 0, 0]
for _ in range(resamples):
    swapped = metrics([(l, q, p, y, x) if random.random() < 0.5 else (l, p, q, x, y) for l, p, q, x, y in pairs])
    for m in range(3):
        extreme[m] += abs(swapped[m]) >= abs(observed[m]) - 1e-12
only = [sum(p == l != q for l, p, q, _, _ in pairs), sum(q == l != p for l, p, q, _, _ in pairs)]
n = sum(only)
mcnemar = min(1.0, 2 * sum(math.comb(n, k) for k in range(min(only) + 1)) / 2**n)
print(observed[0], mcnemar)
"""
RESAMPLES = 10_000


def make(path: Path, rows: int, accuracy: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    label = np.random.default_rng(1).integers(0, 2, rows)
    right = rng.random(rows) < accuracy
    sure = rng.uniform(0.5001, 0.9999, rows)
    prediction = np.where(right, label, 1 - label)
    first = np.where(prediction == 0, sure, 1 - sure)
    info = PredictionsInfo(
        task="text-classification", labels=("bad", "good"), data_sha256="d" * 64, model_name=path.stem, model_sha256=f"{seed:064x}",
        run_id="r", split="test", num_samples=rows,
    )  # fmt: skip
    ids = [f"sample-{n:09d}" for n in range(rows)]
    rows_ = classification_table(ids, label, prediction, np.stack([first, 1 - first], 1), ("bad", "good"))
    write_predictions(path, rows_, info)


def timed(argv: list[str]) -> tuple[float, float, str]:
    """Seconds, peak memory in MB, stdout."""
    began = time.perf_counter()
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    return time.perf_counter() - began, usage.ru_maxrss / 1024, said


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--plain", type=int, default=2000)
    parser.add_argument("--rows", type=int, default=5_000_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="seatrial-compare-") as directory:
        for rows in (args.plain, args.rows):
            files = [Path(directory, f"{name}-{rows}.parquet") for name in ("original", "trained")]
            for path, accuracy, seed in zip(files, (0.80, 0.83), (1, 2), strict=True):
                make(path, rows, accuracy, seed)
            seconds, peak, said = timed(
                [sys.executable, "-m", "seatrial", "compare", *map(str, files), "--json"]
            )
            result = json.loads(said)
            print(
                f"{rows} rows: seatrial {seconds:.1f} s, {peak:.0f} MB ({result['metrics']['accuracy']['p_value']:.3g})",
                flush=True,
            )
            if rows == args.plain:
                plain, _, told = timed([sys.executable, "-c", PLAIN, *map(str, files), str(RESAMPLES)])
                difference, p_value = map(float, told.split())
                assert abs(difference - result["metrics"]["accuracy"]["difference"]) < 1e-9
                assert abs(p_value - result["metrics"]["accuracy"]["p_value"]) < 1e-9
                print(
                    f"{rows} rows: plain Python {plain:.1f} s, {plain / seconds:.0f} x (goal 20)", flush=True
                )


if __name__ == "__main__":
    main()
