"""The main job on real GPUs: bf16, NCCL where there are two, one rank a GPU by default."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..integration.conftest import Seatrial, decoder, encoder, reviews, seatrial

__all__ = ["decoder", "encoder", "reviews", "seatrial"]

torch = pytest.importorskip("torch", reason="needs the extra 'train'")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; torch sees none here"),
]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_main_job_on_all_gpus(seatrial: Seatrial, reviews: Path, encoder: Path, precision: str) -> None:
    done = seatrial(
        "train", "--model", str(encoder), "--data", str(reviews), "--epochs", "4", "--learning-rate", "2e-3",
        "--batch-size", "8", "--precision", precision, "--require", "better",
    )  # fmt: skip
    assert done.code == 0, done.stderr
    assert done.manifest.attempt.device == "cuda"
    assert done.manifest.attempt.nproc == torch.cuda.device_count()


def test_more_ranks_than_gpus_are_refused(seatrial: Seatrial, reviews: Path, encoder: Path) -> None:
    count = torch.cuda.device_count()
    done = seatrial("train", "--model", str(encoder), "--data", str(reviews), "--nproc", str(count + 1))
    assert done.code == 2
    assert f"{count + 1} ranks don't fit on {count} GPUs" in done.stderr
