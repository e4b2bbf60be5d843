"""What Transformers' models need to compute what the spec says."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from transformers import PreTrainedModel


def decoder_features(decoder: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The last hidden state at every position but the last, (rows, length - 1, features).

    Args:
        decoder: one of Transformers', without its head.
        inputs: a batch of `causal_lm`.
    """
    hidden = decoder(
        input_ids=inputs["input_ids"],
        position_ids=inputs.get("position_ids"),
        attention_mask=_attention_mask(inputs),
    ).last_hidden_state
    return hidden[:, :-1]


def recompute_layers(module: PreTrainedModel) -> None:
    """Have a model compute its layers again in the backward pass, with the same dropout."""
    # Transformers 5.24 renames it.
    name = "activation_checkpointing_enable"
    enable = getattr(module, name, module.gradient_checkpointing_enable)
    enable({"use_reentrant": False})


def _attention_mask(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    """Whether each token may look at each other one, (rows, 1, length, length): back, in its own document."""
    documents = inputs.get("document_ids")
    if documents is None and "position_ids" not in inputs:
        return None
    if documents is None:
        # Without a mask, Transformers takes positions that start again for documents to be kept apart.
        documents = torch.zeros_like(inputs["position_ids"])
    same = documents[:, None, :, None] == documents[:, None, None, :]
    return same.tril()
