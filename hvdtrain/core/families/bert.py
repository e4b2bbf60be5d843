"""BERT with a masked-LM head or a classifier: its weights by Hugging Face name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from hvdtrain.core.families.checkpointing import bytes_with_inputs_alone
from hvdtrain.core.families.heads import default_labels, with_num_labels
from hvdtrain.core.families.initializers import ZEROS, Normal
from hvdtrain.core.families.weights import TRANSPOSED, Weight, layer_norm
from hvdtrain.core.spec.sections import Count, ModelSection, Probability

TASKS = ("masked_lm", "text_classification")
DROPOUT = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")
LAYERS = "num_hidden_layers"
NETWORKS = {"torch": "hvdtrain.torch.families.bert", "tensorflow": "hvdtrain.tensorflow.families.bert"}
KERAS_MODEL = "hvdtrain.keras_models.bert"
HEADS = ("cls.", "bert.pooler.", "classifier.")
HEAD_FIELDS = {"num_labels": "text_classification"}
FIXED = {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False}

# Hugging Face module -> Keras layer path, and the kind of weights it has.
EMBEDDINGS = {
    "bert.embeddings.word_embeddings": ("token_embedding", "vocab_size"),
    "bert.embeddings.position_embeddings": ("position_embedding", "max_position_embeddings"),
    "bert.embeddings.token_type_embeddings": ("segment_embedding", "type_vocab_size"),
}
LAYER = {
    "attention.self.query": "self_attention_layer/query",
    "attention.self.key": "self_attention_layer/key",
    "attention.self.value": "self_attention_layer/value",
    "attention.output.dense": "self_attention_layer/attention_output",
    "attention.output.LayerNorm": "self_attention_layer_norm",
    "intermediate.dense": "feedforward_intermediate_dense",
    "output.dense": "feedforward_output_dense",
    "output.LayerNorm": "feedforward_layer_norm",
}
TIED_BIAS = "cls.predictions.bias"
DECODER = "cls.predictions.decoder"
POOLER, CLASSIFIER = "bert.pooler.dense", "classifier"


class ModelSpec(ModelSection):
    """A BERT encoder and its head, in Hugging Face's `BertConfig` names (Devlin et al. 2018).

    Attributes:
        num_labels: classes of the classifier behind the pooler; None: the head is that of masked LM.
        classifier_dropout: of what the classifier takes; None: `hidden_dropout_prob`.
    """

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
    num_labels: Annotated[int, Field(ge=2)] | None = None
    classifier_dropout: Probability | None = None

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
        The weights under the names that `transformers.BertForMaskedLM` saves, or with a classifier
        `transformers.BertForSequenceClassification`.
    """
    hidden, inner = model.hidden_size, model.intermediate_size
    normal = Normal(model.initializer_range)
    found = [
        Weight(
            f"{name}.weight",
            (getattr(model, rows), hidden),
            True,
            normal,
            lookup=rows == "vocab_size" and not _decodes_embeddings(model),
            embedding=True,
            tied=rows == "vocab_size" and _decodes_embeddings(model),
        )
        for name, (_, rows) in EMBEDDINGS.items()
    ]
    found += [replace(w, embedding=True) for w in layer_norm("bert.embeddings.LayerNorm", hidden)]
    sizes = {"intermediate.dense": (inner, hidden), "output.dense": (hidden, inner)}
    for i in range(model.num_hidden_layers):
        for part in LAYER:
            name = f"bert.encoder.layer.{i}.{part}"
            if part.endswith("LayerNorm"):
                found += layer_norm(name, hidden)
            else:
                found += _linear(name, *sizes.get(part, (hidden, hidden)), normal)
    return tuple(
        found + (_masked_lm_head(model) if model.num_labels is None else _classification_head(model))
    )


def untrained(model: ModelSpec) -> tuple[Weight, ...]:
    """The pooler, without which KerasHub's `BertBackbone` does not open; masked-LM training has none."""
    return () if model.num_labels else tuple(_pooler(model))


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
    if model.num_labels is None:
        return found + predicted * (4 * hidden * itemsize + model.vocab_size * whole)
    # The pooler takes a view of all hidden states, or a copy of those of [CLS] in another dtype.
    pooled = rows * hidden * itemsize if mixed else tokens * hidden * whole
    dropped = classifier_dropout(model) > 0.0
    return found + pooled + rows * (hidden * itemsize * (1 + 2 * dropped) + model.num_labels * whole)


def checkpointed_bytes(model: ModelSpec, rows: int, length: int, predictions: int, itemsize: int) -> int:
    """As `activation_bytes`, with gradient checkpointing: the input of each layer, and all of one layer."""
    shape, elements = (rows, length, predictions, itemsize), rows * length * model.hidden_size
    return bytes_with_inputs_alone(activation_bytes, model, LAYERS, elements, *shape)


def product_elements(model: ModelSpec) -> int:
    """Elements of all weights and biases that are used in matrix products.

    Args:
        model: the hyper-parameters.
    """
    decoder = model.vocab_size * model.hidden_size if _decodes_embeddings(model) else 0
    lookups = {f"{name}.weight" for name in EMBEDDINGS}
    return decoder + sum(
        w.size for w in weights(model) if w.name not in lookups and "LayerNorm" not in w.name
    )


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
    head = predictions * (hidden * hidden + hidden * (model.num_labels or model.vocab_size))
    return 3 * 2 * (model.num_hidden_layers * layer + head)


def hf_config(model: ModelSpec) -> dict[str, Any]:
    """The content of `config.json` for Transformers' `AutoModelForMaskedLM` or, with a classifier,
    `AutoModelForSequenceClassification`.

    Args:
        model: the hyper-parameters.

    Returns:
        A JSON-ready mapping.
    """
    fields = model.model_dump(exclude={"dtype", "init_from", "num_labels"}) | {"dtype": model.dtype}
    if model.num_labels is None:
        return fields | {"architectures": ["BertForMaskedLM"]}
    return fields | {"architectures": ["BertForSequenceClassification"], **default_labels(model.num_labels)}


def current_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A `config.json` with the number of classes in place of their names.

    Args:
        config: its content.
    """
    return with_num_labels(config, "BertForSequenceClassification")


def classifier_dropout(model: ModelSpec) -> float:
    """The rate of dropout of what the classifier takes."""
    return model.hidden_dropout_prob if model.classifier_dropout is None else model.classifier_dropout


def _decodes_embeddings(model: ModelSpec) -> bool:
    """Whether the head uses the word embeddings, too."""
    return model.tie_word_embeddings and model.num_labels is None


def _masked_lm_head(model: ModelSpec) -> list[Weight]:
    hidden, normal = model.hidden_size, Normal(model.initializer_range)
    found = _linear("cls.predictions.transform.dense", hidden, hidden, normal)
    found += layer_norm("cls.predictions.transform.LayerNorm", hidden)
    if model.tie_word_embeddings:
        return [*found, Weight(TIED_BIAS, (model.vocab_size,), False, ZEROS)]
    return found + _linear(DECODER, model.vocab_size, hidden, normal)


def _classification_head(model: ModelSpec) -> list[Weight]:
    classes, normal = model.num_labels or 0, Normal(model.initializer_range)
    return _pooler(model) + _linear(CLASSIFIER, classes, model.hidden_size, normal)


def _pooler(model: ModelSpec) -> list[Weight]:
    return _linear(POOLER, model.hidden_size, model.hidden_size, Normal(model.initializer_range))


def _linear(name: str, rows: int, columns: int, initial: Normal) -> list[Weight]:
    return [
        Weight(f"{name}.weight", (rows, columns), True, initial, TRANSPOSED),
        Weight(f"{name}.bias", (rows,), False, ZEROS),
    ]
