"""Image classification on real ranks: the same trainer, the same proofs."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("PIL", reason="images need the extra 'images'")

from seatrial.errors import SpecError
from seatrial.runs import commit
from seatrial.runs.evidence import Verdict, read_evidence
from seatrial.runs.predictions import read_predictions

from ..image_samples import SHAPES, save_resnet, save_vit, write_folders
from .conftest import Seatrial
from .test_main_job import losses


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folders(tmp_path_factory.mktemp("data") / "shapes", train=240, test=60)


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch", reason="real ranks need the extra 'train'")
    return save_vit(tmp_path_factory.mktemp("models") / "tiny-vit")


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch", reason="real ranks need the extra 'train'")
    return save_resnet(tmp_path_factory.mktemp("models") / "tiny-resnet")


def words(model: Path, data: Path, *more: str) -> list[str]:
    return [
        "train", "--task", "image-classification", "--model", str(model), "--data", str(data), "--nproc", "2",
        "--batch-size", "8", "--learning-rate", "2e-3", *more,
    ]  # fmt: skip


def test_a_network_with_running_statistics_learns_on_two_ranks(
    seatrial: Seatrial, resnet: Path, shapes: Path
) -> None:
    done = seatrial(*words(resnet, shapes, "--epochs", "4", "--augment", "flip", "--require", "better"))
    assert done.code == 0, done.stderr
    assert done.manifest.results["comparison"]["verdict"] == "better"
    verdicts = {e.check: e.verdict for e in read_evidence(done.run.evidence)}
    assert verdicts["ranks_agree"] is verdicts["held_out_is_new"] is Verdict.PASS
    _, rows = read_predictions(done.run.predictions("trained"))
    assert rows["id"][0].as_py() == rows["text"][0].as_py() == "test/circle/0000.png"

    # Plain Transformers has what it needs, and says the same.
    import torch
    from PIL import Image
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    path = done.run.model("trained")
    model = AutoModelForImageClassification.from_pretrained(path)
    processor = AutoImageProcessor.from_pretrained(path, backend="pil")
    files = [Image.open(shapes / key.as_py()) for key in rows["id"][:8]]
    with torch.no_grad():
        plain = model(**processor(files, return_tensors="pt")).logits.softmax(-1)
    assert torch.allclose(plain, torch.tensor(rows["probabilities"][:8].to_pylist()), atol=1e-4)

    other = seatrial("predict", "last", "--model", "trained", "--data", str(shapes / "train"))
    assert other.code == 0, other.stderr
    assert read_predictions(Path(other.stdout.strip()))[1].num_rows == 240


def test_two_ranks_take_the_steps_of_one(seatrial: Seatrial, vit: Path, shapes: Path) -> None:
    """Flipped as well: what a rank sees of a sample does not depend on the rank."""
    curves = []
    for more in (("resources.nproc=1", "train.batch_size=16"), ("train.batch_size=8",)):
        done = seatrial(
            *words(vit, shapes, "--max-steps", "16", "--train-only", "--augment", "flip"),
            *more,
            "train.log_every=1",
        )
        assert done.code == 0, done.stderr
        curves.append(losses(done.run))
    assert len(curves[0]) == len(curves[1]) == 16
    assert max(abs(a - b) for a, b in zip(*curves, strict=True)) < 1e-4


def test_a_killed_run_ends_with_the_weights_of_an_undisturbed_one(
    seatrial: Seatrial, resnet: Path, shapes: Path
) -> None:
    """Bit for bit, with flips and with running statistics, of which each rank writes a part."""
    command = words(
        resnet, shapes, "--max-steps", "24", "--train-only", "--augment", "flip", "train.checkpoint_every=5"
    )
    undisturbed = seatrial(*command)
    assert undisturbed.code == 0, undisturbed.stderr
    expected = commit.weights_sha256(undisturbed.run.model("trained"))
    assert seatrial(*command, fault="kill:rank=1,step=18").code == 4
    resumed = seatrial("runs", "resume", "last")
    assert resumed.code == 0, resumed.stderr
    assert commit.weights_sha256(resumed.run.model("trained")) == expected


def test_a_model_in_stages_is_estimated_and_offered_only_what_it_can_do(resnet: Path) -> None:
    from seatrial.job import memory, model
    from seatrial.job.activations import activations
    from seatrial.spec.load import load_values

    path = resnet
    spec = load_values(
        {"name": "t", "task": "image-classification", "model": str(path), "data": {"path": "d"}}, []
    )
    facts, _ = model.check_model(str(path), "image-classification", None)  # type: ignore[arg-type]
    assert facts["image"] == [3, 32, 32]
    subject = memory.subject_of(spec, SHAPES, facts, 1, "cpu")
    need = activations(subject, None, False)
    assert need.of(64) > 1.8 * need.of(32) > 0
    found = memory.needs(subject, ("ddp",), alternatives=True)
    assert [(n.adapter, n.activation_checkpointing) for n in found] == [(None, False)]
    with pytest.raises(SpecError, match="can't compute its activations again"):
        model.check_checkpointing(
            load_values(spec.model_dump(by_alias=True), ["train.activation_checkpointing=true"]), subject.meta
        )
