"""ViT's table of weights against Transformers and KerasHub, and its two networks against each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras_hub
import numpy as np
import pytest
import tensorflow as tf
import torch
from safetensors.numpy import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification

from hvdtrain.core.checkpoints.arrays import ArrayStream
from hvdtrain.core.checkpoints.model_folder import WEIGHTS_FILE, save_model
from hvdtrain.core.checkpoints.pretrained import read_pretrained
from hvdtrain.core.data import Batch
from hvdtrain.core.data.images import ImageSpec, Normalisation
from hvdtrain.core.families import vit
from hvdtrain.core.families.vit import ModelSpec
from hvdtrain.core.families.weights import initial_weights
from hvdtrain.core.tasks.classification import targets_of
from hvdtrain.tensorflow import model as tensorflow_model
from hvdtrain.torch import model as torch_model
from tests.models.support import as_hugging_face, bytes_saved, check_products_in_16_bits, far_from_initial

SMALL = ModelSpec(
    num_labels=7,
    image_size=12,
    patch_size=4,
    num_channels=3,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=40,
    layer_norm_eps=1e-4,
    dtype="float64",
)
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tanh": {"hidden_act": "gelu_new"},
    "no biases": {"qkv_bias": False},
    "grey": {"num_channels": 1, "patch_size": 3},
}
kinds = pytest.mark.parametrize("kind", KINDS)
NORMALISED = ImageSpec(dataset="digits", image_mean=0.4, image_std=0.3)


def changed(spec: ModelSpec, **fields: Any) -> ModelSpec:
    return ModelSpec.model_validate(spec.model_dump() | fields)


def batch_of(model: ModelSpec, rows: int = 3, mixed: bool = False, real: int | None = None) -> Batch:
    """Rows for image_classification, of which so many are real; mixed ones have two targets each."""
    random = np.random.default_rng(5)
    size = (rows, model.image_size, model.image_size, model.num_channels)
    found = targets_of(random.integers(0, model.num_labels, rows)[:real], rows)
    targets, weights = found.targets, found.loss_weights
    if mixed:
        share = random.random((rows, 1))
        targets = np.concatenate([targets, (targets + 1) % model.num_labels], axis=1)
        weights = np.concatenate([weights * share, weights * (1 - share)], axis=1)
    inputs = {"pixel_values": random.integers(0, 256, size, dtype=np.uint8)}
    inputs |= Normalisation.of(NORMALISED, model.num_channels).inputs
    return Batch(inputs, targets, weights, found.weight, {"tokens": rows, "samples": rows})


def pixels_of(batch: Batch, dtype: str) -> torch.Tensor:
    """As an image processor makes them, (rows, channels, height, width)."""
    found = (batch.inputs["pixel_values"] / 255 - 0.4) / 0.3
    return torch.from_numpy(found.transpose(0, 3, 1, 2).astype(dtype))


def save(model: ModelSpec, folder: Path) -> dict[str, np.ndarray]:
    """A saved model, as a job writes it."""
    arrays = {n: a.astype(model.dtype) for n, a in far_from_initial(vit.weights(model)).items()}
    save_model(folder, {WEIGHTS_FILE: ArrayStream.of(arrays)}, vit.hf_config(model), {})
    return arrays


def by_transformers(model: ModelSpec, folder: Path) -> ViTForImageClassification:
    found, told = AutoModelForImageClassification.from_pretrained(
        folder, output_loading_info=True, dtype=getattr(torch, model.dtype)
    )
    assert not any(told.values()), told
    return found.eval()


def models(spec: ModelSpec, compute: str | None = None) -> tuple[torch_model.Model, tensorflow_model.Model]:
    table = vit.weights(spec)
    found = torch_model.Model(spec, table, compute), tensorflow_model.Model(spec, table, compute)
    arrays = {name: a.astype(spec.dtype) for name, a in far_from_initial(table).items()}
    for model in found:
        model.write(arrays)
    return found


@kinds
def test_the_table_is_that_of_what_transformers_saves(kind: str, tmp_path: Path) -> None:
    spec = changed(SMALL, **KINDS[kind])
    config = ViTConfig(**vit.hf_config(spec))
    ViTForImageClassification(config).save_pretrained(tmp_path)
    theirs = {name: array.shape for name, array in load_file(tmp_path / "model.safetensors").items()}
    assert {w.name: w.shape for w in vit.weights(spec)} == theirs


@kinds
def test_a_model_gives_back_the_weights_it_was_given(kind: str) -> None:
    spec = changed(SMALL, **KINDS[kind])
    arrays = far_from_initial(vit.weights(spec))
    for model in models(spec):
        found = dict(model.read())
        assert found.keys() == arrays.keys()
        for name, array in found.items():
            np.testing.assert_array_equal(array, arrays[name], err_msg=name)


@kinds
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_weights_go_through_both_frameworks_and_the_disk_unchanged(
    kind: str, dtype: str, tmp_path: Path
) -> None:
    spec = changed(SMALL, **KINDS[kind], dtype=dtype)
    expected = save(spec, tmp_path / "0")
    for number, model in enumerate([*models(spec), models(spec)[0]]):
        model.write(read_pretrained(tmp_path / f"{number}", vit.weights(spec), (), dtype))
        streams = {WEIGHTS_FILE: ArrayStream.of(dict(model.read()))}
        save_model(tmp_path / f"{number + 1}", streams, vit.hf_config(spec), {})
    found = [(tmp_path / f"{number}" / "model.safetensors").read_bytes() for number in range(4)]
    assert len(set(found)) == 1
    assert load_file(tmp_path / "3" / "model.safetensors").keys() == expected.keys()


def test_initial_values_are_those_of_transformers() -> None:
    spec = changed(SMALL, hidden_size=96, num_channels=1)
    theirs = dict(ViTForImageClassification(ViTConfig(**vit.hf_config(spec))).named_parameters())
    for name, array in initial_weights(vit.weights(spec), 0, "float64").items():
        if array.ndim > 1:
            assert array.std() == pytest.approx(0.02, rel=0.2), name
        else:
            assert set(array) == {1.0 if "norm" in name and "weight" in name else 0.0}, name
    assert theirs["vit.embeddings.position_embeddings"].std().item() == pytest.approx(0.02, rel=0.2)
    assert theirs["classifier.weight"].std().item() == pytest.approx(0.02, rel=0.2)


@kinds
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-6)])
def test_both_frameworks_compute_the_logits_of_transformers(
    kind: str, dtype: str, tolerance: float, tmp_path: Path
) -> None:
    spec = changed(SMALL, **KINDS[kind], dtype=dtype)
    save(spec, tmp_path)
    batch = batch_of(spec)
    with torch.no_grad():
        expected = by_transformers(spec, tmp_path)(pixels_of(batch, dtype)).logits.numpy()
    ours, theirs = models(spec)
    for logits in (
        ours.predict(torch_model.tensors(batch)).numpy(),
        theirs.predict(tensorflow_model.tensors(batch)).numpy(),
    ):
        assert logits.dtype == dtype
        np.testing.assert_allclose(logits, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("epsilon", [1e-6, 1e-12])
def test_kerashub_computes_the_logits_of_a_saved_model(epsilon: float, tmp_path: Path) -> None:
    # KerasHub takes an epsilon of 1e-6, whatever config.json says.
    spec = changed(SMALL, layer_norm_eps=epsilon, dtype="float32")
    save(spec, tmp_path)
    batch = batch_of(spec)
    with torch.no_grad():
        expected = by_transformers(spec, tmp_path)(pixels_of(batch, "float32")).logits.numpy()
    # It counts the classes of config.json, and makes a head of random weights when it is told them.
    found = keras_hub.models.ViTImageClassifier.from_preset(str(tmp_path), preprocessor=None)
    logits = np.asarray(found(pixels_of(batch, "float32").permute(0, 2, 3, 1).numpy()))
    tolerance = 2e-6 if epsilon == 1e-6 else 1e-3
    np.testing.assert_allclose(logits, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@kinds
@pytest.mark.parametrize("mixed", [False, True])
def test_both_frameworks_compute_the_same_loss_and_gradients(kind: str, mixed: bool) -> None:
    spec = changed(SMALL, **KINDS[kind])
    batch, (ours, theirs) = batch_of(spec, mixed=mixed), models(spec)
    loss = ours.loss_sum(torch_model.tensors(batch), training=True)
    loss.backward()
    with tf.GradientTape() as tape:
        theirs_loss = theirs.loss_sum(tensorflow_model.tensors(batch), training=True)
    assert float(theirs_loss) == pytest.approx(loss.item(), rel=1e-13)
    found = tape.gradient(theirs_loss, theirs.parameters)
    for weight in vit.weights(spec):
        expected = ours.parameters[weight.name].grad.numpy()
        scale = max(np.abs(expected).max(), 1e-3)
        gradient = as_hugging_face(weight, found[weight.name])
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-12 * scale, err_msg=weight.name)


def test_two_targets_weigh_what_they_are_told() -> None:
    spec = SMALL
    batch, (ours, theirs) = batch_of(spec, mixed=True), models(spec)
    logits = ours.predict(torch_model.tensors(batch)).numpy().reshape(3, 2, 7)
    np.testing.assert_array_equal(logits[:, 0], logits[:, 1])
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    losses = -np.take_along_axis(logs, batch.targets[..., None], -1)[..., 0]
    expected = (losses * batch.loss_weights).sum()
    assert ours.loss_sum(torch_model.tensors(batch), True).item() == pytest.approx(expected, rel=1e-12)
    assert float(theirs.loss_sum(tensorflow_model.tensors(batch), True)) == pytest.approx(expected, rel=1e-12)


def test_rows_beyond_the_data_change_nothing() -> None:
    batch, whole = batch_of(SMALL, real=2), batch_of(SMALL)
    first = Batch(
        {**whole.inputs, "pixel_values": whole.inputs["pixel_values"][:2]},
        whole.targets[:2],
        whole.loss_weights[:2],
        2.0,
        {},
    )
    for model, tensors in zip(models(SMALL), (torch_model.tensors, tensorflow_model.tensors), strict=True):
        expected = float(model.loss_sum(tensors(first), training=False))
        assert float(model.loss_sum(tensors(batch), training=False)) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("field", vit.DROPOUT)
def test_dropout_is_on_in_training_alone(field: str) -> None:
    spec = changed(SMALL, **{field: 0.5})
    batch = batch_of(spec)
    with tf.device("cpu"):
        for model, tensors in zip(models(spec), (torch_model.tensors, tensorflow_model.tensors), strict=True):
            exact = [float(model.loss_sum(tensors(batch), training=False)) for _ in range(2)]
            random = {float(model.loss_sum(tensors(batch), training=True)) for _ in range(3)}
            assert exact[0] == exact[1]
            assert len(random) == 3


def test_kerashub_drops_nothing_inside_the_feed_forward_part() -> None:
    # With only its output dropped, and by a rate near 1, what is left of a layer is the residual stream.
    spec = changed(SMALL, hidden_dropout_prob=0.5, num_hidden_layers=1)
    _, model = models(spec)
    mlp = model.network._encoder.encoder_layers[0].mlp
    inputs = tf.ones((1, 4000, 24), "float64")
    inner = mlp.dense_2(mlp.dense_1(inputs)).numpy()
    found = mlp(inputs, training=True).numpy()
    kept = found != 0.0
    assert 0.4 < kept.mean() < 0.6
    np.testing.assert_allclose(found[kept], 2 * inner[kept], rtol=1e-12)


SHAPES: dict[str, dict[str, Any]] = {
    "deep": {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4},
    "many patches": {"image_size": 32, "patch_size": 2, "num_channels": 1, "hidden_act": "gelu_new"},
    "large patches": {"image_size": 64, "patch_size": 16},
    "dropout": {
        "hidden_size": 96,
        "intermediate_size": 200,
        "image_size": 32,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
    },
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize(("compute", "itemsize"), [("float32", 4), ("bfloat16", 2)])
def test_activations_are_what_autograd_saves(shape: str, mixed: bool, compute: str, itemsize: int) -> None:
    spec = changed(SMALL, **SHAPES[shape], dtype="float32")
    model = torch_model.Model(spec, vit.weights(spec), compute)
    rows = 16
    tensors = torch_model.tensors(batch_of(spec, rows, mixed))
    own = (*model.network.module.parameters(), *tensors.values())
    saved = bytes_saved(lambda: model.loss_sum(tensors, training=True), own)
    copies = itemsize * vit.product_elements(spec) if compute != "float32" else 0
    predicted = vit.activation_bytes(spec, rows, 1, 1 + mixed, itemsize) + copies
    assert predicted == pytest.approx(saved, rel=0.05)


@pytest.mark.parametrize("shape", SHAPES)
def test_flops_are_what_pytorch_counts(shape: str) -> None:
    spec = changed(SMALL, **SHAPES[shape])
    model, rows = torch_model.Model(spec, vit.weights(spec)), 2
    tensors = torch_model.tensors(batch_of(spec, rows))
    # PyTorch does not count what its fused attention computes.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.loss_sum(tensors, training=True).backward()
    assert rows * vit.flops(spec, 1, 1) == counter.get_total_flops()


@pytest.mark.parametrize("compute", ["bfloat16", "float16"])
def test_products_alone_are_computed_in_16_bits(compute: str) -> None:
    spec = changed(SMALL, dtype="float32")
    batch, (exact, _) = batch_of(spec, rows=8), models(spec)
    arrays = {n: (0.5 * a).astype(np.float32) for n, a in far_from_initial(vit.weights(spec)).items()}
    ours, theirs = models(spec, compute)
    for model in (exact, ours, theirs):
        model.write(arrays)
    # Softmax does not see the biases of keys: their gradients are rounding alone.
    check_products_in_16_bits(exact, ours, theirs, batch, compute, without=("key.bias",))


@kinds
@pytest.mark.parametrize("version", [4, 5])
def test_a_folder_of_transformers_has_all_weights_and_sizes(kind: str, version: int, tmp_path: Path) -> None:
    spec = changed(SMALL, **KINDS[kind])
    found = ViTForImageClassification(ViTConfig(**vit.hf_config(spec))).to(torch.float64)
    names = {n: torch.from_numpy(a) for n, a in far_from_initial(vit.weights(spec)).items()}
    save(spec, tmp_path / "ours")
    found = by_transformers(spec, tmp_path / "ours")
    found.save_pretrained(tmp_path / "theirs")
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    if version == 4:
        config["image_size"] = [spec.image_size, spec.image_size]
    fields = {n: v for n, v in vit.current_config(config).items() if n in ModelSpec.model_fields}
    assert changed(SMALL, **fields) == spec
    arrays = read_pretrained(tmp_path / "theirs", vit.weights(spec), vit.HEADS, "float64")
    assert arrays.keys() == names.keys()
    for name, array in names.items():
        np.testing.assert_array_equal(arrays[name], array.numpy(), err_msg=name)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"num_attention_heads": 5}, "hidden_size 24 is not a multiple of num_attention_heads 5"),
        ({"patch_size": 5}, "image_size 12 is not a multiple of patch_size 5"),
        ({"num_channels": 2}, "num_channels"),
        ({"num_labels": 1}, "num_labels"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        changed(SMALL, **fields)
