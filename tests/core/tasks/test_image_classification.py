"""Image classification: what is in a batch, and what a saved model says of its data."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from hvdtrain.core.data.augmentation import Augmentation
from hvdtrain.core.data.batches import EVALUATION_EPOCH
from hvdtrain.core.data.images import Normalisation
from hvdtrain.core.errors import DataError, SpecError
from hvdtrain.core.spec.job_spec import parse_spec
from hvdtrain.core.tasks import image_classification
from hvdtrain.core.tasks.image_classification import DataSpec, TaskSpec, prepare

MODEL = SimpleNamespace(image_size=8, num_channels=1, num_labels=10, init_from=None)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HVDTRAIN_CACHE_DIR", str(tmp_path / "cache"))


def prepared(model: Any = MODEL, seed: int = 3, **fields: Any) -> Any:
    fields = fields if fields.keys() & {"files", "folder"} else {"dataset": "digits", **fields}
    return prepare(model, DataSpec(**fields), TaskSpec(), seed, print)


def archive(folder: Path, labels: list[Any], name: str = "a") -> str:
    pixels = np.random.default_rng(0).integers(0, 256, (len(labels), 8, 8), dtype=np.uint8)
    np.savez(folder / f"{name}.npz", image=pixels, label=np.array(labels))
    return str(folder / f"{name}.npz")


def test_a_batch_has_pixels_as_bytes_and_one_target_a_row() -> None:
    dataset, digits = prepared(validation_split=0.0), load_digits()
    batch = dataset.train.collate(np.array([5, 2]), 0, 3)
    pixels = batch.inputs["pixel_values"]
    assert (pixels.shape, pixels.dtype) == ((3, 8, 8, 1), np.uint8)
    np.testing.assert_allclose(pixels[:2, :, :, 0], digits.images[[5, 2]] * 255 / 16, atol=0.5)
    assert not pixels[2].any()
    assert batch.targets.tolist() == [[5], [2], [0]]
    assert batch.loss_weights.tolist() == [[1.0], [1.0], [0.0]]
    assert (batch.weight, batch.counts) == (2.0, {"tokens": 2, "samples": 2})
    assert dataset.train.collate(np.arange(0), 0, 3).weight == 0.0


def test_constants_normalise_as_hugging_face_does() -> None:
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    found = Normalisation.of(DataSpec(dataset="digits", image_mean=mean, image_std=std), 3).inputs
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    expected = (pixels / 255 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(pixels * found["pixel_scale"] + found["pixel_offset"], expected, atol=1e-14)


def test_both_splits_are_all_images() -> None:
    dataset = prepared(validation_split=0.2)
    assert (len(dataset.train), len(dataset.validation)) == (1438, 359)
    assert not {*dataset.train.members.tolist()} & {*dataset.validation.members.tolist()}
    assert dataset.train.costs.tolist() == [1] * 1438
    assert dataset.config["id2label"] == {str(n): str(n) for n in range(10)}
    told = json.loads(dataset.files["preprocessor_config.json"])
    assert (told["image_mean"], told["size"]) == ([0.5], {"height": 8, "width": 8})


def test_what_is_evaluated_is_never_changed() -> None:
    dataset = prepared(random_crop_padding=2, horizontal_flip=True, mixup_alpha=1.0, validation_split=0.5)
    plain, indices = prepared(validation_split=0.5), np.arange(40)
    found = dataset.validation.collate(indices, EVALUATION_EPOCH, 40)
    expected = plain.validation.collate(indices, EVALUATION_EPOCH, 40)
    np.testing.assert_array_equal(found.inputs["pixel_values"], expected.inputs["pixel_values"])
    assert found.targets.shape == (40, 1)


def test_training_images_are_changed_by_epoch_and_sample() -> None:
    fields: dict[str, Any] = {"random_crop_padding": 1, "horizontal_flip": True}
    split, plain = prepared(**fields).train, prepared().train
    whole = split.collate(np.arange(30), 4, 30).inputs["pixel_values"]
    # The same image in whatever batch, and another in another epoch.
    np.testing.assert_array_equal(split.collate(np.array([7]), 4, 2).inputs["pixel_values"][0], whole[7])
    assert (split.collate(np.arange(30), 5, 30).inputs["pixel_values"] != whole).any()
    originals = plain.collate(np.arange(30), 4, 30).inputs["pixel_values"]
    augmentation = Augmentation(1, True, 0.0, 3)
    for row, original in enumerate(originals):
        np.testing.assert_array_equal(whole[row], augmentation.changed(original, 4, row))


def test_mixup_mixes_pixels_and_gives_both_classes_their_shares() -> None:
    split, plain = (
        prepared(mixup_alpha=0.4, random_crop_padding=1).train,
        prepared(random_crop_padding=1).train,
    )
    batch = split.collate(np.array([3, 11]), 2, 3)
    assert batch.targets.shape == batch.loss_weights.shape == (3, 2)
    everything = plain.collate(np.arange(len(plain)), 2, len(plain))
    images, classes = everything.inputs["pixel_values"], everything.targets[:, 0]
    for row, sample in enumerate((3, 11)):
        expected, other, share = split.augmentation.mixed(lambda n: images[n], len(split), 2, sample)
        np.testing.assert_array_equal(batch.inputs["pixel_values"][row], expected)
        assert batch.targets[row].tolist() == [classes[sample], classes[other]]
        assert batch.loss_weights[row].tolist() == [share, 1.0 - share]
    assert batch.loss_weights[2].tolist() == [0.0, 0.0]
    assert batch.weight == 2.0


def test_the_order_of_classes_is_the_files_or_the_specs(tmp_path: Path) -> None:
    model = SimpleNamespace(image_size=8, num_channels=1, num_labels=3, init_from=None)
    files = (archive(tmp_path, ["b", "a", "c"]),)
    assert prepared(model, files=files, validation_split=0.0).train.labels.tolist() == [1, 0, 2]
    named = prepared(model, files=files, validation_split=0.0, class_names=("c", "b", "a"))
    assert named.train.labels.tolist() == [1, 2, 0]
    assert named.config["label2id"] == {"c": 0, "b": 1, "a": 2}


def test_what_ranks_compare_has_the_images_the_split_and_the_classes(tmp_path: Path) -> None:
    model = SimpleNamespace(image_size=8, num_channels=1, num_labels=2, init_from=None)
    files = (archive(tmp_path, ["b", "a"] * 8),)
    found = [
        prepared(model, files=files),
        prepared(model, files=files, random_crop_padding=1),
        prepared(model, files=files, class_names=("b", "a")),
        prepared(model, files=files, validation_split=0.25),
        prepared(model, files=files, seed=4),
        prepared(model, files=(archive(tmp_path, ["a", "b"] * 8, "other"),)),
        prepared(model, files=files, validation_files=files),
    ]
    prints = [dataset.fingerprint for dataset in found]
    assert prints[0] == prints[1], "what augmentation does follows from the spec, which ranks compare as well"
    assert len(set(prints[1:])) == len(prints) - 1


def test_classes_that_a_pretrained_model_numbers_otherwise_are_refused(tmp_path: Path) -> None:
    model = SimpleNamespace(image_size=8, num_channels=1, num_labels=2, init_from=str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {"0": "b", "1": "a"}}))
    files = (archive(tmp_path, ["a", "b"] * 4),)
    with pytest.raises(DataError, match=r"set data\.class_names: \[b, a\]"):
        prepared(model, files=files)
    assert prepared(model, files=files, class_names=("b", "a")).config["id2label"] == {"0": "b", "1": "a"}


def test_a_label_outside_the_set_is_named_with_its_row(tmp_path: Path) -> None:
    model = SimpleNamespace(image_size=8, num_channels=1, num_labels=2, init_from=None)
    train, kept = archive(tmp_path, ["a", "b"]), archive(tmp_path, ["a", "b", "x"], "kept")
    with pytest.raises(DataError, match=r"kept\.npz: row 2: label 'x' is none of the 2 classes 'a', 'b'"):
        prepared(model, files=(train,), validation_files=(kept,))
    with pytest.raises(DataError, match=r"kept\.npz: row 2: label 'x' is none of the 2 classes 'a', 'b'"):
        prepared(model, files=(kept,), class_names=("a", "b"))
    with pytest.raises(DataError, match=r"kept\.npz: 3 classes .*model.num_labels is 2"):
        prepared(model, files=(kept,))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, "give one of dataset: digits, folder"),
        ({"dataset": "digits", "folder": "x"}, r"found dataset and folder"),
        ({"dataset": "digits", "validation_files": ("x",)}, "validation_files go with files"),
        ({"files": ("x",), "validation_files": ("x",), "validation_split": 0.1}, "give one of them"),
        ({"dataset": "digits", "image_std": (0.5, 0.0)}, "expected numbers > 0"),
        ({"dataset": "digits", "image_mean": (0.5, 0.5)}, "image_mean has 2 numbers.*num_channels is 1"),
        ({"dataset": "digits", "class_names": ("a", "b")}, "class_names has 2 names.*num_labels is 10"),
    ],
)
def test_sections_that_contradict_each_other_are_refused(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        image_classification.check(MODEL, DataSpec(**fields))


def test_a_model_that_takes_no_images_is_refused() -> None:
    with pytest.raises(ValueError, match="image_size, num_channels, num_labels"):
        image_classification.check(SimpleNamespace(), DataSpec(dataset="digits"))


def folder_with(folder: Path, **fields: Any) -> Path:
    """A model's folder, with an image processor where fields are given."""
    (folder / "config.json").write_text(json.dumps({"model_type": "vit", "image_size": 8, "patch_size": 4}))
    if fields:
        (folder / "preprocessor_config.json").write_text(json.dumps(fields))
    return folder


def data_of(folder: Path, data: str = "dataset: digits, convert_channels: true") -> Any:
    return parse_spec(
        f"model: {{init_from: {json.dumps(str(folder))}, num_labels: 10}}\ndata: {{{data}}}\n"
        "batch: {per_device_train_batch_size: 2}\nmax_steps: 2\n"
    ).data


def test_a_folders_image_processor_says_what_pixels_are(tmp_path: Path) -> None:
    assert data_of(folder_with(tmp_path)).image_mean == 0.5
    told = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.2] * 3, "resample": 3}
    found = data_of(folder_with(tmp_path, **told, rescale_factor=0.00392156862745098))
    assert (found.image_mean, found.image_std, found.resample) == ((0.1, 0.2, 0.3), (0.2,) * 3, "bicubic")
    own = data_of(tmp_path, "dataset: digits, image_mean: 0.4, resample: box")
    assert (own.image_mean, own.image_std, own.resample) == (0.4, (0.2,) * 3, "box")
    found = data_of(folder_with(tmp_path, **told, do_normalize=False))
    assert (found.image_mean, found.image_std) == (0.0, 1.0)
    with pytest.raises(SpecError, match=r"rescale_factor 1\.0; expected pixels that are divided by 255"):
        data_of(folder_with(tmp_path, rescale_factor=1.0))
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(SpecError, match=r"preprocessor_config\.json cannot be read"):
        data_of(tmp_path)
