"""A spec's model and its loss, with weights that are read and set as NumPy arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from hvdtrain.core.data import Batch
from hvdtrain.core.families.weights import Weight
from hvdtrain.core.spec.sections import ModelSection
from hvdtrain.core.tasks.causal_lm import next_token_batch
from hvdtrain.torch.families import network_of
from hvdtrain.torch.losses import cross_entropy
from hvdtrain.torch.weights import Parameters, read, write
from hvdtrain.torch.world import device


class Model:
    """A family's network and the loss of a batch."""

    def __init__(
        self, model: ModelSection, weights: Sequence[Weight], compute_dtype: str | None = None
    ) -> None:
        """Build the network; its weights are arbitrary until `write`.

        Args:
            model: the hyper-parameters.
            weights: the model's weights.
            compute_dtype: of matrix products; None: that of the weights.
        """
        self._dtype = getattr(torch, model.dtype)
        self._compute_dtype = getattr(torch, compute_dtype or model.dtype)
        self.network = network_of(model)(model, compute_dtype or model.dtype)
        self.weights = tuple(weights)
        self.parameters: Parameters = {w.name: self.network.parameters[w.name] for w in weights}

    def loss_sum(self, batch: dict[str, torch.Tensor], training: bool) -> torch.Tensor:
        """The weighted sum of cross-entropies in nats over a batch's predictions.

        Args:
            batch: what `tensors` made of a micro-batch.
            training: whether dropout is on.

        Returns:
            A scalar; gradients flow when `training`.
        """
        with torch.set_grad_enabled(training):
            with self._mixed():
                features = self.network.features(batch, training)
            # Outside of autocast, which would take the weighted sum in 16 bits.
            targets, weights = batch["targets"], batch["loss_weights"]
            return cross_entropy(self._logits, self.network.classes, features, targets, weights, self._dtype)

    def next_logits(self, ids: np.ndarray) -> np.ndarray:
        """What a causal language model predicts behind each row of tokens.

        Args:
            ids: int32 (rows, length).

        Returns:
            Logits in the weights' dtype, (rows, vocab_size).
        """
        with torch.no_grad():
            with self._mixed():
                features = self.network.features(tensors(next_token_batch(ids)), training=False)
            return self._logits(features[:, -1:]).flatten(0, -2).to(self._dtype).cpu().numpy()

    def read(self) -> dict[str, np.ndarray]:
        """Copies of the weights by name, in the Hugging Face layout."""
        return {w.name: read(w, self.parameters[w.name]) for w in self.weights}

    def write(self, arrays: dict[str, np.ndarray]) -> None:
        """Set every weight.

        Args:
            arrays: by weight name, in the Hugging Face layout.
        """
        for weight in self.weights:
            write(weight, self.parameters[weight.name], arrays[weight.name])

    def _logits(self, features: torch.Tensor) -> torch.Tensor:
        with self._mixed():
            return self.network.logits(features)

    def _mixed(self) -> torch.autocast:
        # Casts what enters matrix products alone; PyTorch takes softmax and norms of 16 bits in float32.
        mixed = self._compute_dtype != self._dtype
        return torch.autocast(device().type, self._compute_dtype if mixed else None, enabled=mixed)


def tensors(batch: Batch) -> dict[str, torch.Tensor]:
    """A micro-batch's arrays as tensors by field name, on this rank's device."""
    found = {name: torch.from_numpy(array) for name, array in batch.arrays().items()}
    # PyTorch's cross-entropy and indexing take int64 alone.
    return {n: t.to(device(), t.dtype if t.is_floating_point() else torch.int64) for n, t in found.items()}
