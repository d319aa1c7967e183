"""Images of every form become the values that the model's own processor gives, once, or are refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

datasets = pytest.importorskip("datasets", reason="the job side needs the extra 'train'")
pytest.importorskip("PIL", reason="images need the extra 'images'")

import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from seatrial.errors import SpecError
from seatrial.job import data, image_files, images, model, token_cache
from seatrial.job.batches import BatchPlan, collate
from seatrial.job.data import Data, load_data
from seatrial.job.images import Images, Imaging, normalised
from seatrial.job.inputs import Wanted, prepare
from seatrial.spec.load import load_values
from seatrial.spec.run import DataSpec

from ..image_samples import SHAPES, drawn, save_resnet, save_vit, write_folders

TASK = "image-classification"
VIT = {"size": {"height": 32, "width": 32}}


@pytest.fixture(autouse=True)
def _caches_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setenv("SEATRIAL_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()
    yield


def load(path: Path, seed: int = 0, **more: Any) -> Data:
    return load_data(DataSpec(path=str(path), **more), TASK, seed)  # type: ignore[arg-type]


def refusal(path: Path, **more: Any) -> SpecError:
    with pytest.raises(SpecError) as caught:
        load(path, **more)
    assert caught.value.exit_code == 2 and caught.value.evidence
    return caught.value


def encoded(path: Path, processor: Any, tmp_path: Path) -> tuple[Data, Images]:
    """The training split of what lies at `path`."""
    found = load(path)
    (tmp_path / "scratch").mkdir(exist_ok=True)
    return found, Imaging(processor).encode(found.train, tmp_path / "scratch")


class TestForms:
    def test_folders_of_classes_in_folders_of_splits(self, tmp_path: Path) -> None:
        found = load(write_folders(tmp_path / "d", train=12, validation=6))
        assert found.labels == SHAPES
        assert (len(found.train), len(found.test)) == (12, 6)
        assert found.train.ids[0] == "train/circle/0000.png"
        assert found.test.labels.tolist() == [0, 0, 1, 1, 2, 2]

    def test_folders_of_classes_alone_are_split_by_the_seed(self, tmp_path: Path) -> None:
        path = write_folders(tmp_path / "d", whole=30)
        found = load(path)
        assert (len(found.train), len(found.test)) == (27, 3)
        assert load(path).test.ids == found.test.ids != load(path, seed=1).test.ids
        assert set(found.train.ids + found.test.ids) == {
            p.relative_to(path).as_posix() for p in path.rglob("*.png")
        }

    @pytest.mark.parametrize("form", ["parquet", "bytes.parquet", "disk", "csv"])
    def test_a_column_of_images_is_the_same_samples(self, tmp_path: Path, form: str) -> None:
        files = sorted(write_folders(tmp_path / "d", whole=12).rglob("*.png"))
        labels = datasets.ClassLabel(names=list(SHAPES))
        codes = [SHAPES.index(f.parent.name) for f in files]
        features = datasets.Features({"img": datasets.Image(), "label": labels})
        rows = {"img": [{"bytes": f.read_bytes(), "path": f.name} for f in files], "label": codes}
        if form == "csv":
            path = tmp_path / "d" / "list.csv"
            path.write_text(
                "img,label\n" + "".join(f"{f.relative_to(tmp_path / 'd')},{f.parent.name}\n" for f in files)
            )
        elif form == "bytes.parquet":
            path = tmp_path / "d.parquet"
            names = [f.parent.name for f in files]
            datasets.Dataset.from_dict({"img": [f.read_bytes() for f in files], "label": names}).to_parquet(
                path
            )
        elif form == "parquet":
            path = tmp_path / "d.parquet"
            datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
        else:
            path = tmp_path / "saved"
            whole = datasets.Dataset.from_dict(rows, features=features)
            datasets.DatasetDict(
                {"train": whole.select(range(0, 12, 2)), "test": whole.select(range(1, 12, 2))}
            ).save_to_disk(path)
        found = load(path)
        assert found.labels == SHAPES and found.facts["columns"]["image"] == "img"
        assert found.train.ids[0].startswith("train-")
        by_content = {image_files.hashlib.sha256(f.read_bytes()).hexdigest(): f for f in files}
        for samples in (found.train, found.test):
            assert [by_content[h].parent.name for h in samples.texts] == [SHAPES[i] for i in samples.labels]

    def test_the_same_image_on_both_sides_is_counted(self, tmp_path: Path) -> None:
        path = write_folders(tmp_path / "d", train=12, test=6)
        (path / "test/circle/leak.png").write_bytes((path / "train/circle/0000.png").read_bytes())
        assert load(path).facts["held_out_texts_seen_in_training"] == 1


class TestPixels:
    @pytest.mark.parametrize(
        "processor",
        [
            ViTImageProcessorPil(**VIT),
            ViTImageProcessorPil(**VIT, do_normalize=False),
            ConvNextImageProcessorPil(size={"shortest_edge": 32}),
            CLIPImageProcessorPil(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}),
        ],
        ids=["vit", "not normalised", "convnext", "clip"],
    )
    def test_they_are_those_of_the_processor(self, tmp_path: Path, processor: Any) -> None:
        found, split = encoded(write_folders(tmp_path / "d", whole=12), processor, tmp_path)
        assert split.pixels.dtype == np.uint8 and split.pixels.shape == (11, 3, 32, 32)
        batch = normalised(collate(split, [5, 0, 7], 0))
        opened = [Image.open(tmp_path / "d" / found.train.ids[i]) for i in (5, 0, 7)]
        expected = processor(opened, return_tensors="pt")["pixel_values"]
        assert batch["pixel_values"].dtype == torch.float32
        assert torch.allclose(batch["pixel_values"], expected, atol=1e-6)
        assert batch["labels"].tolist() == found.train.labels[[5, 0, 7]].tolist()

    def test_grey_palette_transparent_deep_and_turned_images_are_read_as_people_see_them(
        self, tmp_path: Path
    ) -> None:
        path = write_folders(tmp_path / "d", train=12, test=3)
        plain = drawn("circle", np.random.default_rng(1))
        grey = np.asarray(plain.convert("L"))
        (tmp_path / "d/train/odd").mkdir()
        turned = Image.Exif()
        turned[0x0112] = 6  # to be shown turned by 90° to the right
        plain.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "d/train/odd/turned.png", exif=turned)
        plain.convert("L").save(tmp_path / "d/train/odd/grey.png")
        plain.quantize(256).save(tmp_path / "d/train/odd/palette.gif")
        plain.convert("RGBA").save(tmp_path / "d/train/odd/transparent.png")
        Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "d/train/odd/deep.png")
        found, split = encoded(path, ViTImageProcessorPil(**VIT), tmp_path)
        by_name = {Path(name).stem: split.pixels[i].astype(int) for i, name in enumerate(found.train.ids)}
        resized = ViTImageProcessorPil(**VIT, do_rescale=False, do_normalize=False)
        for name, same in (("turned", plain), ("transparent", plain), ("palette", plain), ("grey", plain.convert("L").convert("RGB")),
                           ("deep", plain.convert("L").convert("RGB"))):  # fmt: skip
            expected = resized(same, return_tensors="np")["pixel_values"][0].astype(int)
            assert np.abs(by_name[name] - expected).mean() < 4, name

    def test_a_second_start_decodes_nothing_and_maps_the_same(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = write_folders(tmp_path / "d", train=12, test=6)
        wanted, how = Wanted(DataSpec(path=str(path)), TASK, 0), Imaging(ViTImageProcessorPil(**VIT))  # type: ignore[arg-type]
        record = prepare(wanted, how)
        entry = token_cache.cache_root() / record["entry"]
        assert {p.name for p in entry.iterdir()} == {
            "train.arrow",
            "test.arrow",
            "train.npy",
            "test.npy",
            "COMMITTED.json",
        }
        assert not [p for p in entry.parent.iterdir() if p.name.startswith(".")], (
            "the scratch directory is gone"
        )
        split = token_cache.open_entry(record["entry"])["train"]
        _, fresh = encoded(path, ViTImageProcessorPil(**VIT), tmp_path)
        assert isinstance(split.tokens, Images) and isinstance(split.tokens.pixels, np.memmap)
        assert (split.tokens.pixels == fresh.pixels).all() and (split.tokens.scale == fresh.scale).all()
        assert token_cache.open_entry(record["entry"])["test"].texts[0].as_py() == "test/circle/0000.png"

        decodings: list[int] = []
        monkeypatch.setattr(
            images, "decoded", lambda content: decodings.append(1) or image_files.decoded(content)
        )
        assert (
            prepare(replace(wanted, spec=wanted.spec.model_copy(update={"augment": "flip"})), how) == record
        )
        assert not decodings
        content = bytearray((entry / "train.npy").read_bytes())
        content[-1] ^= 1
        (entry / "train.npy").write_bytes(content)
        assert prepare(wanted, how) == record
        assert len(decodings) == 18, "a flipped bit is not trained on"
        other = Imaging(ViTImageProcessorPil(size={"height": 16, "width": 16}))
        assert prepare(wanted, other)["entry"] != record["entry"]


def split_of(num_samples: int, **more: Any) -> Images:
    pixels = np.random.default_rng(0).integers(0, 256, (num_samples, 3, 16, 16)).astype(np.uint8)
    one = np.ones(3, np.float32)
    return Images(pixels, np.arange(num_samples) % 2, one, 0 * one, **more)


class TestAugmentation:
    def test_a_flip_is_a_function_of_seed_epoch_and_sample(self) -> None:
        """In whatever batch, in whatever order, on whatever rank, after whatever resumption."""
        split = split_of(64, augment="flip", seed=3)
        whole = split.batch(np.arange(64), 1)["pixel_values"].numpy()
        flipped = (whole == split.pixels[..., ::-1]).all((1, 2, 3))
        assert (flipped | (whole == split.pixels).all((1, 2, 3))).all()
        assert 16 < flipped.sum() < 48
        again = replace(split).batch([40, 3], 1)["pixel_values"].numpy()
        assert (again == whole[[40, 3]]).all()
        for other in (replace(split, seed=4).batch(np.arange(64), 1), split.batch(np.arange(64), 2)):
            assert (other["pixel_values"].numpy() != whole).any()

    def test_a_crop_moves_and_fills_from_the_edge(self) -> None:
        split = split_of(64, augment="crop")
        found = split.batch(np.arange(64), 0)["pixel_values"].numpy()
        inner = [
            any(
                (found[i, :, 2:-2, 2:-2] == view[:, 2 + y : 14 + y, 2 + x : 14 + x]).all()
                for view in (split.pixels[i], split.pixels[i, :, :, ::-1])
                for y in range(-2, 3)
                for x in range(-2, 3)
            )
            for i in range(64)
        ]
        assert all(inner)
        assert images.changed(np.arange(3)[None, None], False, np.asarray([0, 1])).tolist() == [[[1, 2, 1]]]
        assert images.changed(np.arange(3)[None, None], False, np.asarray([0, -1])).tolist() == [[[1, 0, 1]]]

    def test_what_is_not_trained_on_stays_as_it_is(self) -> None:
        split = split_of(8, augment="crop")
        assert (collate(split, range(8), 0)["pixel_values"].numpy() == split.pixels).all()
        assert (split.inputs(np.arange(8))["pixel_values"].numpy() == split.pixels).all()
        assert (split_of(8).batch(range(8), 0)["pixel_values"].numpy() == split.pixels).all()

    def test_images_are_grouped_by_nothing(self) -> None:
        """All are of one size: each window of the order stays the random one."""
        split = split_of(40)
        assert set(split.lengths.tolist()) == {1} and split.targets.sum() == 40
        plan = BatchPlan(split.lengths, 8, micro_batch=4, world_size=1, seed=0)
        grouped, free = (
            set(map(tuple, p.order(0).reshape(-1, 8).tolist())) for p in (plan, replace(plan, grouped=False))
        )
        assert grouped == free
        assert [plan.epoch(step) for step in (0, 4, 5, 9, 10)] == [0, 0, 1, 1, 2]


class TestRefusals:
    def test_damaged_images_are_counted_and_named(self, tmp_path: Path) -> None:
        path = write_folders(tmp_path / "d", train=12, test=3)
        good = (path / "train/square/0002.png").read_bytes()
        (path / "train/square/0002.png").write_bytes(good[: len(good) // 2])
        (path / "train/circle/0003.png").write_bytes(b"no image at all")
        with pytest.raises(SpecError, match="2 train images can't be decoded") as caught:
            encoded(path, ViTImageProcessorPil(**VIT), tmp_path)
        assert "the first is train/circle/0003.png: UnidentifiedImageError" in caught.value.evidence

    def test_no_images(self, tmp_path: Path) -> None:
        (tmp_path / "train" / "a").mkdir(parents=True)
        (tmp_path / "train" / "a" / "notes.txt").touch()
        error = refusal(tmp_path)
        assert "there are no images" in error.what and "train/CLASS/*.png" in error.remedy
        write_folders(tmp_path / "flat", whole=3)
        for file in (tmp_path / "flat").rglob("*.png"):
            file.rename(tmp_path / "flat" / file.name)
        assert "0000.png" in refusal(tmp_path / "flat").evidence

    def test_one_class_and_classes_that_training_never_saw(self, tmp_path: Path) -> None:
        path = write_folders(tmp_path / "d", train=12, test=6)
        (path / "test/circle").rename(path / "test/oval")
        error = refusal(path)
        assert "training never saw" in error.what and "'oval' (2 samples)" in error.evidence
        one = write_folders(tmp_path / "one", train=1, test=1)
        assert "one class only" in refusal(one).what

    def test_cells_that_are_no_images(self, tmp_path: Path) -> None:
        (tmp_path / "d.csv").write_text("image,label\nnone.png,a\nnone.png,b\n")
        assert "none.png" in refusal(tmp_path / "d.csv").evidence
        datasets.Dataset.from_dict({"image": [1, 2], "label": ["a", "b"]}).to_parquet(tmp_path / "d.parquet")
        assert "column 'image' holds" in refusal(tmp_path / "d.parquet").evidence
        datasets.Dataset.from_dict({"x": [1, 2], "label": ["a", "b"]}).to_parquet(tmp_path / "e.parquet")
        assert refusal(tmp_path / "e.parquet").remedy == "data.image=COLUMN"

    def test_folders_of_images_for_a_task_of_texts_name_the_task(self, tmp_path: Path) -> None:
        write_folders(tmp_path / "d", train=3, test=3)
        with pytest.raises(SpecError) as caught:
            load_data(DataSpec(path=str(tmp_path / "d")), "text-classification", 0)
        assert "--task image-classification" in caught.value.remedy

    def test_without_pillow_nothing_is_tried(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = save_vit(tmp_path / "vit")
        monkeypatch.setattr(image_files, "find_spec", lambda name: None)
        with pytest.raises(SpecError) as caught:
            model.check_model(str(path), TASK, None)  # type: ignore[arg-type]
        assert caught.value.remedy == "pip install 'seatrial[images]'"

    def test_models_that_do_not_take_images(self, tmp_path: Path) -> None:
        from transformers import BertConfig, ViTConfig

        BertConfig().save_pretrained(tmp_path / "bert")
        with pytest.raises(SpecError, match="does not classify images") as caught:
            model.check_model(str(tmp_path / "bert"), TASK, None)  # type: ignore[arg-type]
        assert "bert" in caught.value.evidence and "text-classification" in caught.value.remedy
        ViTConfig(num_channels=1).save_pretrained(tmp_path / "grey")
        with pytest.raises(SpecError, match="1 channels"):
            model.check_model(str(tmp_path / "grey"), TASK, None)  # type: ignore[arg-type]
        ViTConfig().save_pretrained(tmp_path / "bare")
        with pytest.raises(SpecError, match="the image processor of the model"):
            model.check_model(str(tmp_path / "bare"), TASK, None)  # type: ignore[arg-type]

    def test_processors_whose_work_can_not_be_kept(self, tmp_path: Path) -> None:
        with pytest.raises(SpecError, match="images of one size"):
            _ = Imaging(CLIPImageProcessorPil(size={"shortest_edge": 32}, do_center_crop=False)).shape

        class Inverting(ViTImageProcessorPil):
            def normalize(self, *values: Any, **more: Any) -> np.ndarray:
                return np.asarray(-super().normalize(*values, **more))

        with pytest.raises(SpecError, match="does more than resize"):
            encoded(write_folders(tmp_path / "d", whole=6), Inverting(**VIT), tmp_path)

    def test_a_processor_of_another_size_than_the_model(self, tmp_path: Path) -> None:
        meta = model.meta_model(str(save_vit(tmp_path / "vit")), TASK, SHAPES)  # type: ignore[arg-type]
        images.check_fits(meta, (3, 32, 32))
        with pytest.raises(SpecError, match="does not fit the model"):
            images.check_fits(meta, (3, 48, 48))

    @pytest.mark.parametrize(
        ("task", "words", "said"),
        [
            (TASK, ["train.packing=true"], "train.packing is given, which is for texts"),
            (TASK, ["train.batch_tokens=99"], "train.batch_tokens is given, which is for texts"),
            (TASK, ["data.max_length=9"], "data.max_length is given, which is for texts"),
            (TASK, ["gates.compare.metric=nll"], "does not exist for image-classification"),
            ("text-classification", ["data.augment=flip"], "data.augment is given, which is for image-classification"),
        ],
    )  # fmt: skip
    def test_keys_of_the_other_kind_of_sample(self, task: str, words: list[str], said: str) -> None:
        recipe = {"name": "t", "task": task, "model": "m", "data": {"path": "d"}}
        assert load_values(recipe, []).task == task
        with pytest.raises(SpecError) as caught:
            load_values(recipe, words)
        assert said in caught.value.evidence + caught.value.what


def test_an_adapter_sits_in_an_image_model_and_leaves_its_processor_alone(tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="adapters need the extra 'lora'")
    from seatrial.job import adapters
    from seatrial.spec.run import AdapterSpec

    loaded = model.load_model(str(save_vit(tmp_path / "vit")), TASK, SHAPES)  # type: ignore[arg-type]
    adapters.check(AdapterSpec(), TASK, loaded.model)  # type: ignore[arg-type]
    net = adapters.wrap(loaded.model, AdapterSpec(), TASK, tuple(loaded.facts["new_weights"]))  # type: ignore[arg-type]
    pixels = np.zeros((4, 3, 32, 32), np.uint8)
    split = Images(pixels, np.arange(4) % 3, np.ones(3, np.float32), np.zeros(3, np.float32))
    model.loss_and_hits(net, collate(split, range(4), 0), TASK)[0].backward()  # type: ignore[arg-type]
    trained = {name for name, p in net.named_parameters() if p.grad is not None}
    assert any("lora_" in name for name in trained) and any("classifier" in name for name in trained)
    assert all("lora_" in name or "classifier" in name for name in trained)
    model.save_model(tmp_path / "saved", net, loaded.tokenizer)
    assert (tmp_path / "saved" / "preprocessor_config.json").is_file()
    assert not (tmp_path / "saved" / "model.safetensors").exists()
    convolutions = model.meta_model(str(save_resnet(tmp_path / "resnet")), TASK, SHAPES)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="finds nothing in this model"):
        adapters.check(AdapterSpec(), TASK, convolutions)  # type: ignore[arg-type]


def test_held_out_images_of_elsewhere_have_the_classes_of_the_model(tmp_path: Path) -> None:
    path = write_folders(tmp_path / "d", whole=6)
    found = data.load_held_out(DataSpec(path=str(path)), TASK, SHAPES)  # type: ignore[arg-type]
    assert found.labels.tolist() == [0, 0, 1, 1, 2, 2] and found.ids[0] == "circle/0000.png"
