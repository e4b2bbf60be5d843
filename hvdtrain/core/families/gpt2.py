"""GPT-2 (Radford et al. 2019): its weights by Hugging Face name, and where each lives in Keras' model."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from hvdtrain.core.families.checkpointing import bytes_with_inputs_alone
from hvdtrain.core.families.initializers import ZEROS, Normal
from hvdtrain.core.families.weights import TRANSPOSED, Layout, Weight, layer_norm
from hvdtrain.core.spec.sections import Count, ModelSection, Probability

TASKS = ("causal_lm",)
DROPOUT = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
LAYERS = "n_layer"
NETWORKS = {"torch": "hvdtrain.torch.families.gpt2", "tensorflow": "hvdtrain.tensorflow.families.gpt2"}
KERAS_MODEL = "hvdtrain.keras_models.gpt2"
HEADS = ("lm_head.",)
FIXED = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "add_cross_attention": False,
}

# Hugging Face's Conv1D holds (in, out), as Keras' Dense does; its fused projection is three layers in Keras.
_FUSED = Layout(parts=3)
_ATTENTION = tuple(f"self_attention/{part}" for part in ("query", "key", "value"))
_LAYER = {
    "ln_1": ("self_attention_layer_norm",),
    "attn.c_attn": _ATTENTION,
    "attn.c_proj": ("self_attention/attention_output",),
    "ln_2": ("feedforward_layer_norm",),
    "mlp.c_fc": ("feedforward_intermediate_dense",),
    "mlp.c_proj": ("feedforward_output_dense",),
}
_TOKENS, _POSITIONS, _HEAD = "transformer.wte.weight", "transformer.wpe.weight", "lm_head.weight"


class ModelSpec(ModelSection):
    """A GPT-2 decoder with a language-model head, in Hugging Face's `GPT2Config` names."""

    model_type: Literal["gpt2"] = "gpt2"
    vocab_size: Annotated[int, Field(ge=16)] = 50257
    n_positions: Count = 1024
    n_embd: Count = 768
    n_layer: Count = 12
    n_head: Count = 12
    n_inner: Count | None = None
    activation_function: Literal["gelu", "gelu_new"] = "gelu_new"
    resid_pdrop: Probability = 0.1
    embd_pdrop: Probability = 0.1
    attn_pdrop: Probability = 0.1
    layer_norm_epsilon: Annotated[float, Field(gt=0.0)] = 1e-5
    initializer_range: Annotated[float, Field(gt=0.0)] = 0.02
    tie_word_embeddings: bool = True

    @property
    def inner(self) -> int:
        """Width of the feed-forward part."""
        return self.n_inner or 4 * self.n_embd

    @model_validator(mode="after")
    def _fits_both_frameworks(self) -> ModelSpec:
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} is not a multiple of n_head {self.n_head}")
        rates = {self.resid_pdrop, self.embd_pdrop, self.attn_pdrop}
        if len(rates) > 1:
            raise ValueError(
                f"resid_pdrop {self.resid_pdrop}, embd_pdrop {self.embd_pdrop} and attn_pdrop "
                f"{self.attn_pdrop} differ; KerasHub's decoder has one rate for all: make them equal"
            )
        return self


def weights(model: ModelSpec) -> tuple[Weight, ...]:
    """Every trainable weight in the order of the forward pass.

    Projections whose output is added to the residual stream start smaller, by 1/sqrt(2 · layers), as in the
    paper: each layer adds to it twice.

    Args:
        model: the hyper-parameters.

    Returns:
        The weights under the names that `transformers.GPT2LMHeadModel` saves.
    """
    hidden, inner = model.n_embd, model.inner
    normal = Normal(model.initializer_range)
    residual = Normal(model.initializer_range / math.sqrt(2 * model.n_layer))
    tied = model.tie_word_embeddings
    found = [
        Weight(_TOKENS, (model.vocab_size, hidden), True, normal, lookup=not tied, embedding=True, tied=tied),
        Weight(_POSITIONS, (model.n_positions, hidden), True, normal, embedding=True),
    ]
    for i in range(model.n_layer):
        layer = f"transformer.h.{i}"
        found += layer_norm(f"{layer}.ln_1", hidden)
        found += [
            replace(w, layout=_FUSED) for w in _conv1d(f"{layer}.attn.c_attn", hidden, 3 * hidden, normal)
        ]
        found += _conv1d(f"{layer}.attn.c_proj", hidden, hidden, residual)
        found += layer_norm(f"{layer}.ln_2", hidden)
        found += _conv1d(f"{layer}.mlp.c_fc", hidden, inner, normal)
        found += _conv1d(f"{layer}.mlp.c_proj", inner, hidden, residual)
    found += layer_norm("transformer.ln_f", hidden)
    if not model.tie_word_embeddings:
        found.append(Weight(_HEAD, (model.vocab_size, hidden), True, normal, TRANSPOSED))
    return tuple(found)


def keras_paths(model: ModelSpec) -> dict[str, tuple[str, ...]]:
    """Where each weight lives in the Keras model of `hvdtrain.tensorflow.families.gpt2`.

    Args:
        model: the hyper-parameters.

    Returns:
        The paths of the Keras variables that hold a weight, by its Hugging Face name.
    """
    layers: dict[str, tuple[str, ...]] = {"transformer.ln_f": ("layer_norm",)}
    for i in range(model.n_layer):
        layers |= {
            f"transformer.h.{i}.{hf}": tuple(f"transformer_layer_{i}/{name}" for name in names)
            for hf, names in _LAYER.items()
        }
    paths: dict[str, tuple[str, ...]] = {
        _TOKENS: ("token_embedding/embeddings",),
        _POSITIONS: ("position_embedding/embeddings",),
        _HEAD: ("lm_head/kernel",),
    }
    for weight in weights(model):
        if weight.name not in paths:
            module, leaf = weight.name.rsplit(".", 1)
            paths[weight.name] = tuple(f"{layer}/{_keras_leaf(module, leaf)}" for layer in layers[module])
    return {weight.name: paths[weight.name] for weight in weights(model)}


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

    Returns:
        Bytes, without the weights' copies in another dtype.
    """
    whole = np.dtype(model.dtype).itemsize
    dropout = model.resid_pdrop > 0.0
    tokens, hidden, heads, inner = rows * length, model.n_embd, model.n_head, model.inner
    norm = tokens * (hidden * whole + 2 * whole)
    # The inputs of both projections, and query, key and value.
    attention = 5 * hidden * itemsize + heads * 4
    if dropout:
        # Fused attention has no dropout on CPUs: scores, softmax and what dropout multiplied it with.
        attention += heads * length * 3 * 4
    layer = tokens * (attention + (hidden + 2 * inner) * itemsize) + 2 * norm
    masks = tokens * hidden * whole * dropout
    found = masks + norm + model.n_layer * (layer + 2 * masks)
    return found + rows * predictions * (hidden * itemsize + model.vocab_size * whole)


def checkpointed_bytes(model: ModelSpec, rows: int, length: int, predictions: int, itemsize: int) -> int:
    """As `activation_bytes`, with gradient checkpointing: the input of each layer, and all of one layer."""
    shape, elements = (rows, length, predictions, itemsize), rows * length * model.n_embd
    return bytes_with_inputs_alone(activation_bytes, model, LAYERS, elements, *shape)


def product_elements(model: ModelSpec) -> int:
    """Elements of all weights and biases that are used in matrix products.

    Args:
        model: the hyper-parameters.
    """
    head = model.vocab_size * model.n_embd if model.tie_word_embeddings else 0
    return head + sum(w.size for w in weights(model) if not w.embedding and ".ln_" not in w.name)


def flops(model: ModelSpec, length: int, predictions: int) -> int:
    """Floating-point operations of one sequence's forward and backward passes, matrix products alone.

    A product of (m, k) and (k, n) is 2 m k n; backward takes two such for each of the forward pass. Scores of
    attention count whole, as PyTorch's counter does, although half of them are masked.

    Args:
        model: the hyper-parameters.
        length: tokens.
        predictions: positions that the head is computed at.
    """
    hidden, inner = model.n_embd, model.inner
    layer = length * (4 * hidden * hidden + 2 * hidden * inner) + 2 * length * length * hidden
    return 3 * 2 * (model.n_layer * layer + predictions * hidden * model.vocab_size)


def hf_config(model: ModelSpec) -> dict[str, Any]:
    """The content of `config.json` for `transformers.AutoModelForCausalLM`.

    Args:
        model: the hyper-parameters.

    Returns:
        A JSON-ready mapping.
    """
    return model.model_dump(exclude={"dtype", "init_from"}) | {
        "architectures": ["GPT2LMHeadModel"],
        "dtype": model.dtype,
    }


def _conv1d(name: str, inputs: int, outputs: int, initial: Normal) -> list[Weight]:
    return [
        Weight(f"{name}.weight", (inputs, outputs), True, initial),
        Weight(f"{name}.bias", (outputs,), False, ZEROS),
    ]


def _keras_leaf(module: str, leaf: str) -> str:
    if "ln_" in module:
        return {"weight": "gamma", "bias": "beta"}[leaf]
    return {"weight": "kernel", "bias": "bias"}[leaf]
