"""Llama as Hugging Face Transformers builds it, but in the weights' precision throughout."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from hvdtrain.core.families.llama import ModelSpec
from hvdtrain.core.families.rope import rope_table
from hvdtrain.torch.families._transformers import decoder_features, recompute_layers
from hvdtrain.torch.placeholders import place
from hvdtrain.torch.world import device


class Network:
    """`LlamaForCausalLM`, whose head predicts the token behind each position."""

    def __init__(self, model: ModelSpec, compute_dtype: str) -> None:
        """Build the model; see `Network` of `hvdtrain.core.families.family`."""
        del compute_dtype  # autocast casts what enters matrix products
        config = LlamaConfig(
            **model.model_dump(exclude={"dtype", "init_from", "model_type", "rope_parameters"}),
            rope_parameters=model.rope_parameters.hf_config(),
            bos_token_id=None,
            eos_token_id=None,
            use_cache=False,
            attn_implementation="sdpa",
        )
        self.module = place(LlamaForCausalLM(config), getattr(torch, model.dtype), device())
        _take_norms_in_their_precision(self.module, model.rms_norm_eps)
        self.module.model.rotary_emb = _Rotation(model)
        self.classes = model.vocab_size
        self.parameters = dict(self.module.named_parameters())

    def gradient_checkpointing_enable(self) -> None:
        """Compute layers again in the backward pass, and keep nothing but their inputs."""
        recompute_layers(self.module)

    def features(self, inputs: Mapping[str, torch.Tensor], training: bool) -> torch.Tensor:
        """The last hidden state at every position but the last, (rows, length - 1, hidden_size)."""
        self.module.train(training)
        return decoder_features(self.module.model, inputs)

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """The language-model head, (rows, length - 1, vocab_size)."""
        return self.module.lm_head(features)


class _Rotation(torch.nn.Module):
    """Cosines and sines of each position; Transformers takes the angles in float32 whatever the dtype."""

    def __init__(self, model: ModelSpec) -> None:
        super().__init__()
        self._rope, self._head_dim, self._dtype = model.rope_parameters, model.head_size, model.dtype
        self._tables: dict[int, list[torch.Tensor]] = {}

    def forward(self, hidden: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Both (rows, length, head_dim), once for each half of a head."""
        length = hidden.shape[1]
        if length not in self._tables:
            found = rope_table(self._rope, self._head_dim, length)
            self._tables = {
                length: [torch.from_numpy(t.astype(self._dtype)).repeat(1, 2).to(device()) for t in found]
            }
        cosines, sines = self._tables[length]
        return cosines[position_ids], sines[position_ids]


def _take_norms_in_their_precision(module: torch.nn.Module, epsilon: float) -> None:
    """Replace Transformers' norms, which compute in float32 whatever the dtype, by PyTorch's."""
    for name, child in module.named_children():
        if isinstance(child, LlamaRMSNorm):
            norm = torch.nn.RMSNorm(child.weight.shape, eps=epsilon)
            norm.weight = child.weight
            setattr(module, name, norm)
        else:
            _take_norms_in_their_precision(child, epsilon)
