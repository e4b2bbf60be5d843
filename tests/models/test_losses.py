"""Cross-entropy with smoothed labels, and by chunks as at once, in both frameworks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import torch
from hypothesis import given
from hypothesis import strategies as st

from hvdtrain.core.families import gpt2
from hvdtrain.core.families.weights import initial_weights
from hvdtrain.core.tasks.causal_lm import TaskSpec
from hvdtrain.core.tasks.custom import TaskSpec as CustomTask
from hvdtrain.core.update.losses import chunks, cross_entropy
from hvdtrain.tensorflow import losses as tensorflow_losses
from hvdtrain.tensorflow import model as tensorflow_model
from hvdtrain.tensorflow import objective as tensorflow_objective
from hvdtrain.torch import losses as torch_losses
from hvdtrain.torch import model as torch_model
from hvdtrain.torch import objective as torch_objective
from tests.models.support import as_hugging_face, batch_of, bytes_saved
from tests.models.test_gpt2 import SMALL, models

# Three rows of 11 predictions of 97 classes: seven chunks of 4 and 5 predictions.
MOST = 500


@given(st.integers(0, 5000), st.integers(1, 70000), st.integers(1, 10**6))
def test_chunks_hold_every_prediction_and_few_logits(n: int, classes: int, most: int) -> None:
    sizes = chunks(n, classes, most)
    assert sum(sizes) == n
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) * classes <= most or max(sizes) <= 1


@pytest.fixture
def by_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    def few(predictions: int, classes: int) -> list[int]:
        found = chunks(predictions, classes, MOST)
        assert len(found) == 7
        return found

    for module in (torch_losses, tensorflow_losses):
        monkeypatch.setattr(module, "chunks", few)


def torch_gradients(spec: gpt2.ModelSpec) -> tuple[float, dict[str, np.ndarray], int]:
    model, batch = models(spec)[0], torch_model.tensors(batch_of(spec))
    losses: list[torch.Tensor] = []
    own = (*model.network.module.parameters(), *batch.values())
    saved = bytes_saved(lambda: losses.append(model.loss_sum(batch, training=True)), own)
    losses[0].backward()
    return losses[0].item(), {n: p.grad.numpy() for n, p in model.parameters.items()}, saved


def tensorflow_gradients(spec: gpt2.ModelSpec) -> tuple[float, dict[str, np.ndarray], int]:
    model, batch = models(spec)[1], tensorflow_model.tensors(batch_of(spec))

    @tf.function(autograph=False)
    def run() -> Any:
        with tf.GradientTape() as tape:
            loss = model.loss_sum(batch, training=True) * 1.0
        return loss, tape.gradient(loss, dict(model.parameters))

    loss, found = run()
    kinds = [operation.type for operation in run.get_concrete_function().graph.get_operations()]
    gradients = {w.name: as_hugging_face(w, found[w.name]) for w in gpt2.weights(spec)}
    return float(loss), gradients, kinds.count("SparseSoftmaxCrossEntropyWithLogits")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("measure", [torch_gradients, tensorflow_gradients])
def test_the_loss_by_chunks_is_the_loss_at_once(
    measure: Any, tied: bool, request: pytest.FixtureRequest
) -> None:
    spec = SMALL.model_copy(update={"tie_word_embeddings": tied})
    loss, gradients, held = measure(spec)
    request.getfixturevalue("by_chunks")
    by_chunks, found, held_by_chunks = measure(spec)
    assert by_chunks == pytest.approx(loss, rel=1e-14)
    for name, expected in gradients.items():
        scale = max(np.abs(expected).max(), 1e-3)
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=1e-13 * scale, err_msg=name)
    if measure is torch_gradients:
        # Neither the logits nor their softmax are held for backward.
        assert held - held_by_chunks >= 33 * 97 * 8
    else:
        # Seven each in the forward and the backward pass, where one would do.
        assert (held, held_by_chunks) == (1, 14)


SMOOTHINGS = st.sampled_from([0.0, 1e-3, 0.1, 0.5, 0.99])


@given(st.integers(1, 6), st.integers(1, 9), SMOOTHINGS, st.floats(1e-3, 1e2), st.integers(0, 2**32 - 1))
def test_smoothed_cross_entropy_is_pytorchs_and_both_adapters(
    predictions: int, classes: int, smoothing: float, scale: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    logits = random.normal(size=(predictions, classes)) * scale
    targets = random.integers(0, classes, predictions)
    expected = cross_entropy(logits, targets, smoothing)
    oracle = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits), torch.from_numpy(targets), reduction="none", label_smoothing=smoothing
    )
    assert expected == pytest.approx(oracle.numpy(), rel=1e-12, abs=1e-12 * scale)
    ours = torch.tensor(logits, requires_grad=True)
    found = torch_losses.each_cross_entropy(ours, torch.from_numpy(targets), smoothing)
    found.sum().backward()
    variable = tf.Variable(logits)
    with tf.GradientTape() as tape:
        theirs = tensorflow_losses.each_cross_entropy(variable, tf.constant(targets), smoothing)
    assert found.detach().numpy() == pytest.approx(expected, rel=1e-12, abs=1e-12 * scale)
    assert theirs.numpy() == pytest.approx(expected, rel=1e-12, abs=1e-12 * scale)
    assert ours.grad is not None
    np.testing.assert_allclose(tape.gradient(theirs, variable), ours.grad.numpy(), rtol=0, atol=1e-12)


def number(scalar: Any) -> float:
    return scalar.item() if torch.is_tensor(scalar) else float(scalar)


def test_labels_are_smoothed_in_training_alone() -> None:
    batch, table = batch_of(SMALL), gpt2.weights(SMALL)
    for module in (torch_model, tensorflow_model):
        losses = {}
        for smoothing in (0.0, 0.2):
            model = module.Model(SMALL, table, task=TaskSpec(label_smoothing=smoothing))
            model.write(initial_weights(table, 3, "float64"))
            given = module.tensors(batch)
            losses[smoothing] = [number(model.loss_sum(given, training)) for training in (True, False)]
            assert float(model.evaluate(given)[0]) == pytest.approx(losses[0.0][1], rel=1e-14)
        assert losses[0.0][0] == pytest.approx(losses[0.0][1], rel=1e-14)
        assert losses[0.2][1] == pytest.approx(losses[0.0][1], rel=1e-14)
        logits = np.concatenate([model.next_logits(batch.inputs["input_ids"][:, : i + 1]) for i in range(11)])
        targets = batch.targets.T.ravel()
        expected = cross_entropy(logits, targets, 0.2) @ batch.loss_weights.T.ravel()
        assert losses[0.2][0] == pytest.approx(expected, rel=1e-12)


def test_so_they_are_of_a_model_of_ones_own() -> None:
    random = np.random.default_rng(2)
    logits, targets = random.normal(size=(5, 3)), np.array([0, 2, 1, -100, 1])
    weights = (targets >= 0).astype(np.float64)
    found = []
    for objective, tensor, dtype in [
        (torch_objective, torch.from_numpy, torch.float64),
        (tensorflow_objective, tf.constant, tf.float64),
    ]:
        made = objective.build_objective(CustomTask(label_smoothing=0.2), dtype)  # type: ignore[attr-defined]
        batch = {"targets": tensor(targets), "loss_weights": tensor(weights)}
        found.append([float(made.loss(tensor(logits), batch, training)[0]) for training in (True, False)])
    kept = np.maximum(targets, 0)
    expected = [cross_entropy(logits, kept, e) @ weights for e in (0.2, 0.0)]
    assert found == pytest.approx(np.array([expected, expected]), rel=1e-12)


def test_the_label_of_another_loss_is_not_smoothed() -> None:
    with pytest.raises(ValueError, match=r"label_smoothing 0.1 is for loss cross_entropy alone, .* mse"):
        CustomTask(loss="mse", label_smoothing=0.1)
