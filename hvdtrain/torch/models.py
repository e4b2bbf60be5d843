"""Models built from a spec with Hugging Face Transformers."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional
from transformers import BertConfig, BertForMaskedLM

from hvdtrain.core.data import MicroBatch
from hvdtrain.core.sections import ModelSpec
from hvdtrain.core.weights import Weight
from hvdtrain.torch.weights import read, write
from hvdtrain.torch.world import device


class MaskedLM:
    """`BertForMaskedLM` whose head is computed at the masked positions alone."""

    def __init__(
        self, model: ModelSpec, weights: tuple[Weight, ...], compute_dtype: str | None = None
    ) -> None:
        """Build the model; its weights are arbitrary until `write`.

        Args:
            model: the hyper-parameters.
            weights: the model's weights.
            compute_dtype: of matrix products; None: that of the weights.
        """
        self._dtype, self._compute_dtype = (
            getattr(torch, name) for name in (model.dtype, compute_dtype or model.dtype)
        )
        config = BertConfig(**model.model_dump(exclude={"dtype", "model_type"}))
        self._module = BertForMaskedLM(config).to(dtype=self._dtype, device=device())
        # Hugging Face freezes row 0 of the word embeddings through padding_idx; the definition here does not.
        self._module.bert.embeddings.word_embeddings.padding_idx = None
        found = dict(self._module.named_parameters())
        self.weights = weights
        self.parameters = {w.name: found[w.name] for w in weights}

    def loss_sum(self, batch: dict[str, torch.Tensor], training: bool) -> torch.Tensor:
        """The weighted sum of cross-entropies in nats over a batch's masked positions.

        Args:
            batch: what `tensors` made of a micro-batch.
            training: whether dropout is on.

        Returns:
            A scalar; gradients flow when `training`.
        """
        self._module.train(training)
        with torch.set_grad_enabled(training), self._mixed():
            hidden = self._module.bert(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                token_type_ids=batch["token_type_ids"],
            ).last_hidden_state
            rows = torch.arange(len(hidden), device=hidden.device)[:, None]
            logits = self._module.cls(hidden[rows, batch["masked_positions"]])
        with torch.set_grad_enabled(training):
            losses = functional.cross_entropy(
                logits.flatten(0, 1).to(self._dtype), batch["masked_labels"].flatten(), reduction="none"
            )
            return losses @ batch["masked_weights"].flatten().to(losses.dtype)

    def _mixed(self) -> torch.autocast:
        # Casts what enters matrix products alone; PyTorch takes softmax and norms of 16 bits in float32.
        mixed = self._compute_dtype != self._dtype
        return torch.autocast(device().type, self._compute_dtype if mixed else None, enabled=mixed)

    def read(self) -> dict[str, np.ndarray]:
        """Copies of the weights by name."""
        return {w.name: read(w, self.parameters[w.name]) for w in self.weights}

    def write(self, arrays: dict[str, np.ndarray]) -> None:
        """Set every weight.

        Args:
            arrays: by weight name, in the Hugging Face layout.
        """
        for weight in self.weights:
            write(weight, self.parameters[weight.name], arrays[weight.name])


def tensors(batch: MicroBatch) -> dict[str, torch.Tensor]:
    """A micro-batch's arrays as tensors by field name, on this rank's device."""
    found = {name: torch.from_numpy(array) for name, array in batch.arrays().items()}
    # PyTorch's cross-entropy and indexing take int64 alone.
    return {n: t.to(device(), t.dtype if t.is_floating_point() else torch.int64) for n, t in found.items()}
