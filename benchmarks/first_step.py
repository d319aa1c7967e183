"""From the command to the first optimizer step, on CPU: forks of a warm process against torchrun, interleaved.

The clock starts when ``seatrial train`` is started and stops at the row that rank 0 writes after step 1. Both ways run
the same recipe: a small encoder with random weights over 600 short texts. ``--bare`` adds torchrun with a script that
imports what the ranks import, loads the model and takes one step: no look at the data, no record.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

BARE = """
import sys, torch, torch.distributed as dist
from datasets import load_dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer
dist.init_process_group("gloo")
data = load_dataset("csv", data_files=sys.argv[2], split="train")
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1], num_labels=2)
net = torch.nn.parallel.DistributedDataParallel(model)
batch = tokenizer(data["sentence"][:8], padding=True, truncation=True, max_length=32, return_tensors="pt")
net(**batch, labels=torch.zeros(8, dtype=torch.int64)).loss.backward()
torch.optim.AdamW(net.parameters(), fused=True).step()
if dist.get_rank() == 0: open(sys.argv[3], "w").close()
dist.destroy_process_group()
"""


def make_inputs(directory: Path) -> None:
    """A model directory ``encoder`` and ``data.csv``."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    rng = random.Random(0)
    words = [f"w{i}" for i in range(900)]
    with (directory / "data.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["sentence", "label"])
        rows.writerows([" ".join(rng.choices(words, k=rng.randint(3, 16))), i % 2] for i in range(600))
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *words])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=1000, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128,
        max_position_embeddings=64,
    )  # fmt: skip
    BertModel(config).save_pretrained(directory / "encoder")
    PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="[UNK]", pad_token="[PAD]", model_max_length=64
    ).save_pretrained(directory / "encoder")


def seatrial_s(directory: Path, launcher: str, nproc: int) -> float:
    """Seconds from the command to the first row of the metrics."""
    runs = Path(tempfile.mkdtemp(dir=directory))
    began = time.time()
    subprocess.run(
        [sys.executable, "-m", "seatrial", "train", "--model", str(directory / "encoder"), "--data",
         str(directory / "data.csv"), "--nproc", str(nproc), "--gpus", "0", "--batch-size", "4", "--max-steps", "1",
         "--max-length", "32", "--train-only", "--launcher", launcher, "--runs-dir", str(runs)],
        check=True, capture_output=True, cwd=directory,
    )  # fmt: skip
    row = json.loads(next(runs.glob("*/metrics.jsonl")).read_text().splitlines()[0])
    return datetime.fromisoformat(row["time"]).timestamp() - began


def bare_s(directory: Path, nproc: int) -> float:
    """The same for torchrun and the script `BARE`."""
    script, mark = directory / "bare.py", directory / "mark"
    script.write_text(BARE)
    mark.unlink(missing_ok=True)
    began = time.time()
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={nproc}", str(script),
         str(directory / "encoder"), str(directory / "data.csv"), str(mark)],
        check=True, capture_output=True, cwd=directory,
    )  # fmt: skip
    return mark.stat().st_mtime - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=5, help="runs of each")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 8])
    parser.add_argument("--bare", action="store_true")
    args = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        make_inputs(directory)
        for nproc in args.ranks:
            times: dict[str, list[float]] = {}
            for _ in range(args.n):
                for launcher in ("torchrun", "warm"):
                    times.setdefault(launcher, []).append(seatrial_s(directory, launcher, nproc))
                if args.bare:
                    times.setdefault("torchrun, bare script", []).append(bare_s(directory, nproc))
            unit = statistics.median(times["warm"])
            for what, found in times.items():
                median = statistics.median(found)
                spread = f"{min(found):.1f} to {max(found):.1f}"
                print(
                    f"{nproc} ranks  {what:<22} {median:6.1f} s   {median / unit:.2f} × warm   ({spread})",
                    flush=True,
                )


if __name__ == "__main__":
    main()
