"""Image classification: what is in a batch, and what a saved model says of its data."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from hvdtrain.core.data.images import Normalisation
from hvdtrain.core.tasks import image_classification
from hvdtrain.core.tasks.image_classification import DataSpec, TaskSpec, prepare

MODEL = SimpleNamespace(image_size=8, num_channels=1, num_labels=10)


def prepared(**fields: Any) -> Any:
    return prepare(MODEL, DataSpec(dataset="digits", **fields), TaskSpec(), 3, print)


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
    assert dataset.train.costs.tolist() == [1] * 1438
    assert dataset.config["id2label"] == {str(n): str(n) for n in range(10)}
    told = json.loads(dataset.files["preprocessor_config.json"])
    assert (told["image_mean"], told["size"]) == ([0.5], {"height": 8, "width": 8})


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, "give dataset"),
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
