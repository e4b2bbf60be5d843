"""The loss by chunks is the loss at once, in both frameworks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import torch
from hypothesis import given
from hypothesis import strategies as st

from hvdtrain.core.families import gpt2
from hvdtrain.core.update.losses import chunks
from hvdtrain.tensorflow import losses as tensorflow_losses
from hvdtrain.tensorflow import model as tensorflow_model
from hvdtrain.torch import losses as torch_losses
from hvdtrain.torch import model as torch_model
from tests.models.support import as_hugging_face, bytes_saved
from tests.models.test_gpt2 import SMALL, batch_of, models

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
    own = (*model.network._module.parameters(), *batch.values())
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
