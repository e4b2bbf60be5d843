"""Llama (Touvron et al. 2023): its weights by Hugging Face name, and what follows from its sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from hvdtrain.core.families.checkpointing import bytes_with_inputs_alone
from hvdtrain.core.families.initializers import ONES, ZEROS, Normal
from hvdtrain.core.families.rope import RopeParameters
from hvdtrain.core.families.weights import TRANSPOSED, Weight
from hvdtrain.core.spec.sections import Count, ModelSection, Probability

TASKS = ("causal_lm",)
DROPOUT = ("attention_dropout",)
LAYERS = "num_hidden_layers"
NETWORKS = {"torch": "hvdtrain.torch.families.llama", "tensorflow": "hvdtrain.tensorflow.families.llama"}
KERAS_MODEL = "hvdtrain.keras_models.llama"
HEADS = ("lm_head.",)

_TOKENS, _NORM, _HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"


class ModelSpec(ModelSection):
    """A Llama decoder with a language-model head, in Hugging Face's `LlamaConfig` names."""

    model_type: Literal["llama"] = "llama"
    vocab_size: Annotated[int, Field(ge=16)] = 32000
    hidden_size: Count = 4096
    intermediate_size: Count = 11008
    num_hidden_layers: Count = 32
    num_attention_heads: Count = 32
    num_key_value_heads: Count | None = None
    head_dim: Count | None = None
    hidden_act: Literal["silu"] = "silu"
    max_position_embeddings: Count = 2048
    rope_parameters: RopeParameters = RopeParameters()
    rms_norm_eps: Annotated[float, Field(gt=0.0)] = 1e-6
    attention_bias: bool = False
    mlp_bias: bool = False
    attention_dropout: Probability = 0.0
    initializer_range: Annotated[float, Field(gt=0.0)] = 0.02
    tie_word_embeddings: bool = False

    @property
    def key_value_heads(self) -> int:
        """Heads of keys and values; each serves as many heads of queries as any other."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_size(self) -> int:
        """Elements of a head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @model_validator(mode="after")
    def _heads_fit(self) -> ModelSpec:
        heads = self.num_attention_heads
        if self.hidden_size % heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {heads}"
            )
        if heads % self.key_value_heads:
            raise ValueError(
                f"num_attention_heads {heads} is not a multiple of num_key_value_heads {self.key_value_heads}"
            )
        if self.head_size % 2:
            raise ValueError(
                f"a head has {self.head_size} elements, and rotary embeddings turn pairs of them: make "
                "head_dim, or hidden_size / num_attention_heads, an even number"
            )
        return self


def weights(model: ModelSpec) -> tuple[Weight, ...]:
    """Every trainable weight in the order of the forward pass.

    Args:
        model: the hyper-parameters.

    Returns:
        The weights under the names that `transformers.LlamaForCausalLM` saves.
    """
    hidden, inner, size = model.hidden_size, model.intermediate_size, model.head_size
    queries, keys = model.num_attention_heads * size, model.key_value_heads * size
    normal, tied = Normal(model.initializer_range), model.tie_word_embeddings
    found = [
        Weight(_TOKENS, (model.vocab_size, hidden), True, normal, lookup=not tied, embedding=True, tied=tied)
    ]
    for i in range(model.num_hidden_layers):
        layer = f"model.layers.{i}"
        found.append(_norm(f"{layer}.input_layernorm.weight", hidden))
        for name, outputs in {"q_proj": queries, "k_proj": keys, "v_proj": keys}.items():
            found += _linear(f"{layer}.self_attn.{name}", outputs, hidden, normal, model.attention_bias)
        found += _linear(f"{layer}.self_attn.o_proj", hidden, queries, normal, model.attention_bias)
        found.append(_norm(f"{layer}.post_attention_layernorm.weight", hidden))
        for name in ("gate_proj", "up_proj"):
            found += _linear(f"{layer}.mlp.{name}", inner, hidden, normal, model.mlp_bias)
        found += _linear(f"{layer}.mlp.down_proj", hidden, inner, normal, model.mlp_bias)
    found.append(_norm(_NORM, hidden))
    if not tied:
        found.append(Weight(_HEAD, (model.vocab_size, hidden), True, normal, TRANSPOSED))
    return tuple(found)


def untrained(model: ModelSpec) -> tuple[Weight, ...]:
    """Both libraries open what is trained."""
    del model
    return ()


def activation_bytes(model: ModelSpec, rows: int, length: int, predictions: int, itemsize: int) -> int:
    """What PyTorch saves in a forward pass for the backward pass, with fused attention.

    Args:
        model: the hyper-parameters.
        rows: sequences.
        length: tokens of each.
        predictions: most predictions of each.
        itemsize: bytes of one element in matrix products.
    """
    whole, mixed = np.dtype(model.dtype).itemsize, itemsize < np.dtype(model.dtype).itemsize
    hidden, heads, wide = model.hidden_size, model.num_attention_heads, max(itemsize, 4)
    queries, keys = heads * model.head_size, model.key_value_heads * model.head_size
    # Its input, that divided by its root mean square, and the factor.
    norm = (2 * hidden + 1) * whole
    # Autocast makes a copy of an input for each product that takes it.
    inputs = (5 if mixed else 2) * hidden * itemsize
    if model.attention_dropout > 0.0:
        # Fused attention has no dropout on CPUs, and without it keys and values are repeated: these, scores,
        # softmax and what dropout multiplied it with.
        attention = 3 * queries * wide + 3 * heads * length * wide + queries * itemsize
    else:
        attention = 2 * (queries + keys) * itemsize + heads * 4
    layer = 2 * norm + inputs + attention + 4 * model.intermediate_size * itemsize
    angles = 2 * length * model.head_size * whole
    found = rows * length * (model.num_hidden_layers * layer + norm) + angles
    return found + rows * predictions * (hidden * itemsize + model.vocab_size * whole)


def checkpointed_bytes(model: ModelSpec, rows: int, length: int, predictions: int, itemsize: int) -> int:
    """As `activation_bytes`, with gradient checkpointing: the input of each layer, and all of one layer."""
    shape, elements = (rows, length, predictions, itemsize), rows * length * model.hidden_size
    return bytes_with_inputs_alone(activation_bytes, model, LAYERS, elements, *shape)


def product_elements(model: ModelSpec) -> int:
    """Elements of all weights and biases that are used in matrix products.

    Args:
        model: the hyper-parameters.
    """
    head = model.vocab_size * model.hidden_size if model.tie_word_embeddings else 0
    return head + sum(w.size for w in weights(model) if not w.embedding and "norm" not in w.name)


def flops(model: ModelSpec, length: int, predictions: int) -> int:
    """Floating-point operations of one sequence's forward and backward passes, matrix products alone.

    A product of (m, k) and (k, n) is 2 m k n; backward takes two such for each of the forward pass. Scores of
    attention count whole, as PyTorch's counter does, although half of them are masked.

    Args:
        model: the hyper-parameters.
        length: tokens.
        predictions: positions that the head is computed at.
    """
    hidden, queries = model.hidden_size, model.num_attention_heads * model.head_size
    projections = 2 * hidden * (queries + model.key_value_heads * model.head_size)
    layer = length * (projections + 3 * hidden * model.intermediate_size) + 2 * length * length * queries
    return 3 * 2 * (model.num_hidden_layers * layer + predictions * hidden * model.vocab_size)


def hf_config(model: ModelSpec) -> dict[str, Any]:
    """The content of `config.json` for `transformers.AutoModelForCausalLM`.

    Args:
        model: the hyper-parameters.

    Returns:
        A JSON-ready mapping; KerasHub wants the heads of keys and values told.
    """
    return model.model_dump(exclude={"dtype", "init_from"}) | {
        "num_key_value_heads": model.key_value_heads,
        "head_dim": model.head_size,
        "rope_parameters": model.rope_parameters.hf_config(),
        "architectures": ["LlamaForCausalLM"],
        "dtype": model.dtype,
    }


def current_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A `config.json` in today's names; before version 5, Transformers had `rope_theta` and `rope_scaling`.

    Args:
        config: its content.
    """
    if config.get("rope_parameters") is not None:
        return dict(config)
    scaling = dict(config.get("rope_scaling") or {})
    if "type" in scaling:
        scaling.setdefault("rope_type", scaling.pop("type"))
    return {**config, "rope_parameters": {"rope_theta": config.get("rope_theta", 10000.0), **scaling}}


def _norm(name: str, size: int) -> Weight:
    return Weight(name, (size,), False, ONES)


def _linear(name: str, outputs: int, inputs: int, initial: Normal, bias: bool) -> list[Weight]:
    found = [Weight(f"{name}.weight", (outputs, inputs), True, initial, TRANSPOSED)]
    return [*found, Weight(f"{name}.bias", (outputs,), False, ZEROS)] if bias else found
