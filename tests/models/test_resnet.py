"""ResNet's table of weights against Transformers, and its two networks against Transformers' own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import torch
import yaml
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from transformers import ResNetConfig, ResNetForImageClassification

from hvdtrain.core.checkpoints.pretrained import read_pretrained
from hvdtrain.core.errors import SpecError
from hvdtrain.core.families import resnet
from hvdtrain.core.families.batch_norm import recomputing
from hvdtrain.core.families.resnet import ModelSpec
from hvdtrain.core.families.weights import initial_weights, statistics, trained
from hvdtrain.core.spec.job_spec import load_spec, parse_spec
from hvdtrain.core.spec.reading import PACKAGED_SPECS
from hvdtrain.tensorflow import model as tensorflow_model
from hvdtrain.torch import model as torch_model
from tests.models.images import batch_of, pixels_for_transformers, resnet_values, transformers_resnet
from tests.models.support import as_hugging_face, bytes_saved

SMALL = ModelSpec(
    num_labels=4,
    image_size=21,
    num_channels=3,
    embedding_size=4,
    hidden_sizes=(8, 12),
    depths=(1, 2),
    layer_type="basic",
    dtype="float64",
)
KINDS: dict[str, dict[str, Any]] = {
    "basic": {},
    "basic, early": {"downsample_in_first_stage": True},
    "basic, as wide": {"embedding_size": 8, "hidden_sizes": (8, 8), "image_size": 16},
    "bottleneck": {"layer_type": "bottleneck"},
    "bottleneck, early": {"layer_type": "bottleneck", "downsample_in_first_stage": True},
    "bottleneck, in its first": {
        "layer_type": "bottleneck",
        "downsample_in_first_stage": True,
        "downsample_in_bottleneck": True,
        "image_size": 32,
    },
}
kinds = pytest.mark.parametrize("kind", KINDS)


def changed(spec: ModelSpec, **fields: Any) -> ModelSpec:
    return ModelSpec.model_validate(spec.model_dump() | fields)


def models(spec: ModelSpec, compute: str | None = None) -> tuple[torch_model.Model, tensorflow_model.Model]:
    table = resnet.weights(spec)
    found = torch_model.Model(spec, table, compute), tensorflow_model.Model(spec, table, compute)
    for model in found:
        model.write(resnet_values(spec))
    return found


@kinds
def test_the_table_is_that_of_transformers(kind: str) -> None:
    spec = changed(SMALL, **KINDS[kind])
    model = transformers_resnet(spec)
    assert {w.name: w.shape for w in trained(resnet.weights(spec))} == {
        name: tuple(p.shape) for name, p in model.named_parameters()
    }
    counts = {name: array.shape for name, array in resnet.counts(spec).items()}
    assert {w.name: w.shape for w in statistics(resnet.weights(spec))} | counts == {
        name: tuple(b.shape) for name, b in model.named_buffers()
    }


@kinds
def test_a_model_gives_back_the_weights_it_was_given(kind: str) -> None:
    spec = changed(SMALL, **KINDS[kind])
    arrays = resnet_values(spec)
    for model in models(spec):
        found = dict(model.read())
        assert found.keys() == arrays.keys()
        for name, array in found.items():
            np.testing.assert_array_equal(array, arrays[name], err_msg=name)


def test_initial_values_are_those_of_transformers() -> None:
    spec = changed(SMALL, embedding_size=48, hidden_sizes=(64, 96))
    theirs = ResNetForImageClassification(ResNetConfig(**resnet.hf_config(spec))).state_dict()
    for name, array in initial_weights(resnet.weights(spec), 0, "float64").items():
        expected = theirs[name].double().numpy()
        if array.ndim == 1 and "classifier" not in name:
            np.testing.assert_array_equal(array, expected, err_msg=name)
        elif array.size > 100:
            assert array.std() == pytest.approx(expected.std(), rel=0.15), name
            assert np.abs(array).max() == pytest.approx(np.abs(expected).max(), rel=0.35), name


def test_norms_and_biases_do_not_decay() -> None:
    decays = {weight.name for weight in resnet.weights(SMALL) if weight.decays}
    assert decays == {w.name for w in trained(resnet.weights(SMALL)) if len(w.shape) > 1}


@kinds
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-13), ("float32", 1e-6)])
@pytest.mark.parametrize("training", [False, True])
def test_both_frameworks_compute_the_logits_of_transformers(
    kind: str, dtype: str, tolerance: float, training: bool
) -> None:
    spec = changed(SMALL, **KINDS[kind], dtype=dtype)
    batch, real = batch_of(spec, 4, 6), 4
    theirs = transformers_resnet(spec).train(training)
    with torch.no_grad():
        expected = theirs(pixels_for_transformers(batch)[:real].to(theirs.dtype)).logits.numpy()
    ours, others = models(spec)
    with torch.no_grad():
        features = ours.network.features(torch_model.tensors(batch), training)
        mine = ours.network.logits(features)[:, 0].numpy()
    found = others.network.logits(others.network.features(tensorflow_model.tensors(batch), training))
    for logits in (mine, found.numpy()):
        assert logits.dtype == dtype
        atol = tolerance * np.abs(expected).max()
        np.testing.assert_allclose(logits[:real], expected, rtol=0, atol=atol)
    for weight in statistics(resnet.weights(spec)):
        expected = theirs.get_buffer(weight.name).numpy()
        for model in (ours, others):
            array = dict(model.read([weight]))[weight.name]
            if training:
                np.testing.assert_allclose(array, expected, rtol=10 * tolerance, atol=tolerance)
            else:
                np.testing.assert_array_equal(array, resnet_values(spec)[weight.name])


@kinds
def test_both_frameworks_compute_the_gradients_of_transformers(kind: str) -> None:
    spec = changed(SMALL, **KINDS[kind])
    batch, theirs = batch_of(spec, 4, 6), transformers_resnet(spec).train()
    logits, labels = theirs(pixels_for_transformers(batch)[:4]).logits, torch.from_numpy(batch.targets[:4, 0])
    expected = functional.cross_entropy(logits, labels.long(), reduction="sum")
    expected.backward()
    ours, others = models(spec)
    loss = ours.loss_sum(torch_model.tensors(batch), training=True)
    loss.backward()
    variables = {w.name: others.parameters[w.name] for w in trained(resnet.weights(spec))}

    @tf.function(autograph=False)
    def both(tensors: dict[str, tf.Tensor]) -> tuple[tf.Tensor, Any]:
        with tf.GradientTape() as tape:
            found = others.loss_sum(tensors, training=True)
        return found, tape.gradient(found, variables)

    found, gradients = both(tensorflow_model.tensors(batch))
    assert [loss.item(), float(found)] == pytest.approx([expected.item()] * 2, rel=1e-13)
    for weight in trained(resnet.weights(spec)):
        theirs_gradient = theirs.get_parameter(weight.name).grad.numpy()
        scale = max(np.abs(theirs_gradient).max(), 0.1)
        mine = ours.parameters[weight.name].grad.numpy(), as_hugging_face(weight, gradients[weight.name])
        for gradient in mine:
            np.testing.assert_allclose(
                gradient, theirs_gradient, rtol=0, atol=1e-12 * scale, err_msg=weight.name
            )


def test_repeated_forward_passes_leave_the_statistics() -> None:
    batch = batch_of(SMALL)
    for model, tensors in zip(models(SMALL), (torch_model.tensors, tensorflow_model.tensors), strict=True):
        with recomputing():
            model.loss_sum(tensors(batch), training=True)
        for name, array in model.read(statistics(resnet.weights(SMALL))):
            np.testing.assert_array_equal(array, resnet_values(SMALL)[name], err_msg=name)


@kinds
@pytest.mark.parametrize(("compute", "itemsize"), [("float32", 4), ("bfloat16", 2)])
def test_activations_are_what_autograd_saves(kind: str, compute: str, itemsize: int) -> None:
    spec = changed(SMALL, **KINDS[kind], dtype="float32")
    spec = changed(spec, image_size=2 * spec.image_size, embedding_size=4 * spec.embedding_size)
    model, rows = torch_model.Model(spec, resnet.weights(spec), compute), 8
    tensors = torch_model.tensors(batch_of(spec, rows))
    own = (*model.parameters.values(), *tensors.values())
    saved = bytes_saved(lambda: model.loss_sum(tensors, training=True), own)
    copies = itemsize * resnet.product_elements(spec) if compute != "float32" else 0
    # The places that a max-pool saves are integers.
    side = (spec.image_size + 3) // 4
    places = 8 * rows * spec.embedding_size * side**2
    predicted = resnet.activation_bytes(spec, rows, 1, 1, itemsize) + copies - places
    assert predicted == pytest.approx(saved, rel=0.1)


@kinds
def test_flops_are_what_pytorch_counts(kind: str) -> None:
    spec = changed(SMALL, **KINDS[kind])
    model, rows = torch_model.Model(spec, resnet.weights(spec)), 3
    with FlopCounterMode(display=False) as counter:
        model.loss_sum(torch_model.tensors(batch_of(spec, rows)), training=True).backward()
    assert rows * resnet.flops(spec, 1, 1) == counter.get_total_flops()


@pytest.mark.parametrize("compute", ["bfloat16", "float16"])
def test_convolutions_are_computed_in_16_bits_and_statistics_are_not(compute: str) -> None:
    spec = changed(SMALL, dtype="float32")
    batch, (exact, _), both = batch_of(spec, 12), models(spec), models(spec, compute)
    expected = exact.loss_sum(torch_model.tensors(batch), training=True)
    expected.backward()
    loss = both[0].loss_sum(torch_model.tensors(batch), training=True)
    loss.backward()
    variables = {w.name: both[1].parameters[w.name] for w in trained(resnet.weights(spec))}
    with tf.GradientTape() as tape:
        found = both[1].loss_sum(tensorflow_model.tensors(batch), training=True)
    gradients = tape.gradient(found, variables)
    rounding = {"bfloat16": 2.0**-8, "float16": 2.0**-11}[compute]
    losses = [loss.item(), float(found)]
    assert losses == pytest.approx([expected.item()] * 2, rel=10 * rounding)
    assert expected.item() not in losses, "16 bits must be seen somewhere"
    in_16_bits = torch.tensor(losses).to(getattr(torch, compute)).tolist()
    assert not {*losses} & {*in_16_bits}, "the sum is taken in 32 bits"
    for weight in trained(resnet.weights(spec)):
        theirs = exact.parameters[weight.name].grad.numpy()
        mine = both[0].parameters[weight.name].grad.numpy(), as_hugging_face(weight, gradients[weight.name])
        for gradient in mine:
            assert gradient.dtype == np.float32
            norm = max(float(np.linalg.norm(theirs)), 0.1)
            # A max-pool may take its neighbour of what is rounded alike.
            assert np.linalg.norm(gradient - theirs) < 0.2 * norm, weight.name
    for weight in statistics(resnet.weights(spec)):
        theirs = dict(exact.read([weight]))[weight.name]
        for model in both:
            array = dict(model.read([weight]))[weight.name]
            np.testing.assert_allclose(array, theirs, rtol=20 * rounding, atol=20 * rounding)


@kinds
def test_a_folder_of_transformers_is_a_spec(kind: str, tmp_path: Path) -> None:
    spec = changed(SMALL, **KINDS[kind])
    transformers_resnet(spec).save_pretrained(tmp_path)
    raw = yaml.safe_load((PACKAGED_SPECS / "resnet.yaml").read_text())
    model = {"init_from": str(tmp_path), "dtype": "float64", "image_size": 33}
    data = {"dataset": "digits", "image_mean": 0.4}
    found = parse_spec(yaml.safe_dump({**raw, "model": model, "data": data})).model
    assert found == changed(spec, init_from=str(tmp_path), image_size=33)
    table = resnet.weights(spec)
    arrays = read_pretrained(tmp_path, table, resnet.HEADS, "float64")
    for name, array in resnet_values(spec).items():
        np.testing.assert_array_equal(arrays[name], array, err_msg=name)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"depths": (1, 2, 3)}, "hidden_sizes has 2 stages and depths 3"),
        ({"hidden_sizes": (8, 10), "layer_type": "bottleneck"}, "hidden_sizes 10 is not a multiple of 4"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        changed(SMALL, **fields)


@pytest.mark.parametrize("kind", ["local_sgd", "diloco"])
def test_shared_statistics_are_refused_where_ranks_take_updates_alone(kind: str) -> None:
    sets = [f"compression={{type: {kind}, sync_every: 4}}", "evaluation.eval_steps=null"]
    load_spec("resnet", sets)
    with pytest.raises(
        SpecError, match=rf"sync_batch_norm: true .* with compression {kind} each takes updates"
    ):
        load_spec("resnet", [*sets, "model.sync_batch_norm=true"])


def test_a_model_without_a_head_lacks_the_heads_weights_alone(tmp_path: Path) -> None:
    transformers_resnet(SMALL).resnet.save_pretrained(tmp_path)
    table = resnet.weights(SMALL)
    found = read_pretrained(tmp_path, table, resnet.HEADS, "float64")
    assert {w.name for w in table} - found.keys() == {"classifier.1.weight", "classifier.1.bias"}
    name = "resnet.encoder.stages.1.layers.0.shortcut.normalization.running_var"
    np.testing.assert_array_equal(found[name], resnet_values(SMALL)[name])
