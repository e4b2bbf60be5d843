"""BERT with a masked-LM head: its weights by Hugging Face name, and where each lives in KerasHub's model."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from hvdtrain.core.families.initializers import ZEROS, Normal
from hvdtrain.core.families.weights import TRANSPOSED, Weight, layer_norm
from hvdtrain.core.spec.sections import Count, ModelSection, Probability

TASKS = ("masked_lm",)
DROPOUT = ("hidden_dropout_prob", "attention_probs_dropout_prob")
NETWORKS = {"torch": "hvdtrain.torch.families.bert", "tensorflow": "hvdtrain.tensorflow.families.bert"}
HEADS = ("cls.",)
FIXED = {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False}

# Hugging Face module -> Keras layer path, and the kind of weights it has.
_EMBEDDINGS = {
    "bert.embeddings.word_embeddings": ("token_embedding", "vocab_size"),
    "bert.embeddings.position_embeddings": ("position_embedding", "max_position_embeddings"),
    "bert.embeddings.token_type_embeddings": ("segment_embedding", "type_vocab_size"),
}
_LAYER = {
    "attention.self.query": "self_attention_layer/query",
    "attention.self.key": "self_attention_layer/key",
    "attention.self.value": "self_attention_layer/value",
    "attention.output.dense": "self_attention_layer/attention_output",
    "attention.output.LayerNorm": "self_attention_layer_norm",
    "intermediate.dense": "feedforward_intermediate_dense",
    "output.dense": "feedforward_output_dense",
    "output.LayerNorm": "feedforward_layer_norm",
}
_TIED_BIAS = "cls.predictions.bias"
_DECODER = "cls.predictions.decoder"


class ModelSpec(ModelSection):
    """A BERT encoder with a masked-LM head, in Hugging Face's `BertConfig` names (Devlin et al. 2018)."""

    model_type: Literal["bert"] = "bert"
    vocab_size: Annotated[int, Field(ge=16)] = 30522
    hidden_size: Count = 768
    num_hidden_layers: Count = 12
    num_attention_heads: Count = 12
    intermediate_size: Count = 3072
    max_position_embeddings: Count = 512
    type_vocab_size: Count = 2
    hidden_act: Literal["gelu", "gelu_new"] = "gelu"
    hidden_dropout_prob: Probability = 0.1
    attention_probs_dropout_prob: Probability = 0.1
    layer_norm_eps: Annotated[float, Field(gt=0.0)] = 1e-12
    tie_word_embeddings: bool = True
    initializer_range: Annotated[float, Field(gt=0.0)] = 0.02

    @model_validator(mode="after")
    def _fits_both_frameworks(self) -> ModelSpec:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of "
                f"num_attention_heads {self.num_attention_heads}"
            )
        if self.hidden_dropout_prob != self.attention_probs_dropout_prob:
            raise ValueError(
                f"hidden_dropout_prob {self.hidden_dropout_prob} and attention_probs_dropout_prob "
                f"{self.attention_probs_dropout_prob} differ; KerasHub's BERT has one rate for both: "
                "make them equal"
            )
        return self


def weights(model: ModelSpec) -> tuple[Weight, ...]:
    """Every trainable weight in the order of the forward pass.

    Args:
        model: the hyper-parameters.

    Returns:
        The weights under the names that `transformers.BertForMaskedLM` saves.
    """
    hidden, inner = model.hidden_size, model.intermediate_size
    normal = Normal(model.initializer_range)
    found = [
        Weight(
            f"{name}.weight",
            (getattr(model, rows), hidden),
            True,
            normal,
            lookup=rows == "vocab_size" and not model.tie_word_embeddings,
            embedding=True,
        )
        for name, (_, rows) in _EMBEDDINGS.items()
    ]
    found += [replace(w, embedding=True) for w in layer_norm("bert.embeddings.LayerNorm", hidden)]
    sizes = {"intermediate.dense": (inner, hidden), "output.dense": (hidden, inner)}
    for i in range(model.num_hidden_layers):
        for part in _LAYER:
            name = f"bert.encoder.layer.{i}.{part}"
            if part.endswith("LayerNorm"):
                found += layer_norm(name, hidden)
            else:
                found += _linear(name, *sizes.get(part, (hidden, hidden)), normal)
    found += _linear("cls.predictions.transform.dense", hidden, hidden, normal)
    found += layer_norm("cls.predictions.transform.LayerNorm", hidden)
    if model.tie_word_embeddings:
        found.append(Weight(_TIED_BIAS, (model.vocab_size,), False, ZEROS))
    else:
        found += _linear(_DECODER, model.vocab_size, hidden, normal)
    return tuple(found)


def untrained(model: ModelSpec) -> tuple[Weight, ...]:
    """The pooler, without which KerasHub's `BertBackbone` does not open; masked-LM training has none."""
    normal = Normal(model.initializer_range)
    return tuple(_linear("bert.pooler.dense", model.hidden_size, model.hidden_size, normal))


def activation_bytes(model: ModelSpec, rows: int, length: int, predictions: int, itemsize: int) -> int:
    """What PyTorch saves in a forward pass for the backward pass, with fused attention.

    A layer saves eight arrays as wide as the hidden state (its input, query, key, value, the attention's
    output, the inputs of both layer norms, the input of the feed-forward part) and two as wide as that part's
    inside (before and after its activation). Inputs of layer norms have the dtype of the weights, the others
    that of matrix products. Where these differ, query, key and value are each made of an own copy of the
    input. Dropout saves what it multiplied with.

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
    mixed, dropout = itemsize != whole, model.hidden_dropout_prob > 0.0
    tokens, hidden, heads = rows * length, model.hidden_size, model.num_attention_heads
    norm = tokens * (hidden * whole + 2 * whole)
    attention = (6 + 2 * mixed) * hidden * itemsize + heads * 4
    if dropout:
        # Fused attention has no dropout on CPUs: scores, softmax and what dropout multiplied it with.
        attention += heads * length * 3 * 4
    layer = tokens * (attention + 2 * model.intermediate_size * itemsize) + 2 * norm
    masks = tokens * hidden * whole * dropout
    found = norm + masks + model.num_hidden_layers * (layer + 2 * masks)
    predicted = rows * predictions
    return found + predicted * (4 * hidden * itemsize + model.vocab_size * whole)


def checkpointed_bytes(model: ModelSpec, rows: int, length: int, predictions: int, itemsize: int) -> int:
    """As `activation_bytes`, with gradient checkpointing: the input of each layer, and all of one layer."""
    one = model.model_copy(update={"num_hidden_layers": 1})
    inputs = rows * length * model.hidden_size * np.dtype(model.dtype).itemsize
    return activation_bytes(one, rows, length, predictions, itemsize) + (model.num_hidden_layers - 1) * inputs


def product_elements(model: ModelSpec) -> int:
    """Elements of all weights and biases that are used in matrix products.

    Args:
        model: the hyper-parameters.
    """
    decoder = model.vocab_size * model.hidden_size if model.tie_word_embeddings else 0
    lookups = {f"{name}.weight" for name in _EMBEDDINGS}
    return decoder + sum(
        w.size for w in weights(model) if w.name not in lookups and "LayerNorm" not in w.name
    )


def keras_paths(model: ModelSpec) -> dict[str, tuple[str, ...]]:
    """Where each weight lives in `keras_hub`'s `BertBackbone` + `MaskedLMHead` (named `mlm_head`).

    Args:
        model: the hyper-parameters.

    Returns:
        The paths of the Keras variables that hold a weight, by its Hugging Face name.
    """
    layers = {hf: keras for hf, (keras, _) in _EMBEDDINGS.items()}
    layers["bert.embeddings.LayerNorm"] = "embeddings_layer_norm"
    for i in range(model.num_hidden_layers):
        layers |= {
            f"bert.encoder.layer.{i}.{hf}": f"transformer_layer_{i}/{keras}" for hf, keras in _LAYER.items()
        }
    layers["cls.predictions.transform.dense"] = "mlm_head/intermediate_dense"
    layers["cls.predictions.transform.LayerNorm"] = "mlm_head/intermediate_layer_norm"
    paths = (
        {_TIED_BIAS: "mlm_head/output_bias"}
        if model.tie_word_embeddings
        else {f"{_DECODER}.weight": "mlm_head/output_kernel", f"{_DECODER}.bias": "mlm_head/output_bias"}
    )
    for weight in weights(model):
        if weight.name not in paths:
            module, leaf = weight.name.rsplit(".", 1)
            paths[weight.name] = f"{layers[module]}/{_keras_leaf(module, leaf)}"
    return {name: (path,) for name, path in paths.items()}


def flops(model: ModelSpec, length: int, predictions: int) -> int:
    """Floating-point operations of one sequence's forward and backward passes, matrix products alone.

    A product of (m, k) and (k, n) is 2 m k n; backward takes two such for each of the forward pass.

    Args:
        model: the hyper-parameters.
        length: tokens.
        predictions: positions that the head is computed at.
    """
    hidden, inner = model.hidden_size, model.intermediate_size
    layer = length * (4 * hidden * hidden + 2 * hidden * inner) + 2 * length * length * hidden
    head = predictions * (hidden * hidden + hidden * model.vocab_size)
    return 3 * 2 * (model.num_hidden_layers * layer + head)


def hf_config(model: ModelSpec) -> dict[str, Any]:
    """The content of `config.json` for `transformers.AutoModelForMaskedLM`.

    Args:
        model: the hyper-parameters.

    Returns:
        A JSON-ready mapping.
    """
    fields = model.model_dump(exclude={"dtype", "init_from"})
    return fields | {
        "architectures": ["BertForMaskedLM"],
        "dtype": model.dtype,
    }


def _linear(name: str, rows: int, columns: int, initial: Normal) -> list[Weight]:
    return [
        Weight(f"{name}.weight", (rows, columns), True, initial, TRANSPOSED),
        Weight(f"{name}.bias", (rows,), False, ZEROS),
    ]


def _keras_leaf(module: str, leaf: str) -> str:
    if "_embeddings" in module:
        return "embeddings"
    if module.endswith("LayerNorm"):
        return {"weight": "gamma", "bias": "beta"}[leaf]
    return {"weight": "kernel", "bias": "bias"}[leaf]
