"""GPT-2 as Hugging Face Transformers builds it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from hvdtrain.core.families.gpt2 import ModelSpec
from hvdtrain.torch.families._transformers import decoder_features, recompute_layers
from hvdtrain.torch.placeholders import place
from hvdtrain.torch.world import device

_ACTIVATIONS = {"gelu": torch.nn.GELU, "gelu_new": lambda: torch.nn.GELU(approximate="tanh")}


class Network:
    """`GPT2LMHeadModel`, whose head predicts the token behind each position."""

    def __init__(self, model: ModelSpec, compute_dtype: str) -> None:
        """Build the model; see `Network` of `hvdtrain.core.families.family`."""
        del compute_dtype  # autocast casts what enters matrix products
        config = GPT2Config(
            **model.model_dump(exclude={"dtype", "init_from", "model_type"}),
            bos_token_id=None,
            eos_token_id=None,
            use_cache=False,
            attn_implementation="sdpa",
        )
        self.module = place(GPT2LMHeadModel(config), getattr(torch, model.dtype), device())
        # Transformers' gelu_new is a chain of Python operations; this is one kernel with the same formula.
        for block in self.module.transformer.h:
            block.mlp.act = _ACTIVATIONS[model.activation_function]()
        self.classes = model.vocab_size
        self.parameters = dict(self.module.named_parameters())

    def gradient_checkpointing_enable(self) -> None:
        """Compute layers again in the backward pass, and keep nothing but their inputs."""
        recompute_layers(self.module)

    def features(self, inputs: Mapping[str, torch.Tensor], training: bool) -> torch.Tensor:
        """The last hidden state at every position but the last, (rows, length - 1, n_embd)."""
        self.module.train(training)
        return decoder_features(self.module.transformer, inputs)

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """The language-model head, (rows, length - 1, vocab_size)."""
        return self.module.lm_head(features)
