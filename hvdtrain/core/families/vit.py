"""Vision Transformer (Dosovitskiy et al. 2020, arXiv:2010.11929): its weights by Hugging Face name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from hvdtrain.core.families.checkpointing import bytes_with_inputs_alone
from hvdtrain.core.families.heads import default_labels, with_num_labels
from hvdtrain.core.families.initializers import ZEROS, Normal
from hvdtrain.core.families.weights import TRANSPOSED, Layout, Weight, layer_norm
from hvdtrain.core.spec.sections import Count, ModelSection, Probability

TASKS = ("image_classification",)
DROPOUT = ("hidden_dropout_prob", "attention_probs_dropout_prob")
LAYERS = "num_hidden_layers"
NETWORKS = {"torch": "hvdtrain.torch.families.vit", "tensorflow": "hvdtrain.tensorflow.families.vit"}
KERAS_MODEL = "hvdtrain.keras_models.vit"
HEADS = ("classifier.",)
HEAD_FIELDS = {"num_labels": "image_classification"}

_ARCHITECTURE = "ViTForImageClassification"
_EMBEDDINGS, _HEAD = "vit.embeddings", "classifier"
# Hugging Face module of a layer -> Keras layer path.
_LAYER = {
    "layernorm_before": "ln_1",
    "attention.attention.query": "mha/query",
    "attention.attention.key": "mha/key",
    "attention.attention.value": "mha/value",
    "attention.output.dense": "mha/attention_output",
    "layernorm_after": "ln_2",
    "intermediate.dense": "mlp/dense_1",
    "output.dense": "mlp/dense_2",
}
_LEAVES = {"weight": "kernel", "bias": "bias"}
_NORM_LEAVES = {"weight": "gamma", "bias": "beta"}
# PyTorch has a convolution's (out, in, height, width).
_CONVOLUTION = Layout(axes=(2, 3, 1, 0))


class ModelSpec(ModelSection):
    """A ViT encoder with a classifier on its [CLS] token, in Hugging Face's `ViTConfig` names."""

    model_type: Literal["vit"] = "vit"
    num_labels: Annotated[int, Field(ge=2)]
    image_size: Count = 224
    patch_size: Count = 16
    num_channels: Literal[1, 3] = 3
    hidden_size: Count = 768
    num_hidden_layers: Count = 12
    num_attention_heads: Count = 12
    intermediate_size: Count = 3072
    hidden_act: Literal["gelu", "gelu_new"] = "gelu"
    hidden_dropout_prob: Probability = 0.0
    attention_probs_dropout_prob: Probability = 0.0
    layer_norm_eps: Annotated[float, Field(gt=0.0)] = 1e-12
    qkv_bias: bool = True
    initializer_range: Annotated[float, Field(gt=0.0)] = 0.02

    @property
    def patches(self) -> int:
        """Of an image."""
        return (self.image_size // self.patch_size) ** 2

    @model_validator(mode="after")
    def _sizes_fit(self) -> ModelSpec:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of "
                f"num_attention_heads {self.num_attention_heads}"
            )
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}"
            )
        return self


def weights(model: ModelSpec) -> tuple[Weight, ...]:
    """Every trainable weight in the order of the forward pass.

    Args:
        model: the hyper-parameters.

    Returns:
        The weights under the names that `transformers.ViTForImageClassification` saves.
    """
    hidden, inner, patch = model.hidden_size, model.intermediate_size, model.patch_size
    normal, projection = Normal(model.initializer_range), f"{_EMBEDDINGS}.patch_embeddings.projection"
    kernel = (hidden, model.num_channels, patch, patch)
    found = [
        Weight(f"{_EMBEDDINGS}.cls_token", (1, 1, hidden), True, normal),
        Weight(f"{_EMBEDDINGS}.position_embeddings", (1, model.patches + 1, hidden), True, normal),
        Weight(f"{projection}.weight", kernel, True, normal, _CONVOLUTION),
        Weight(f"{projection}.bias", (hidden,), False, ZEROS),
    ]
    found = [replace(weight, embedding=True) for weight in found]
    sizes = {"intermediate.dense": (inner, hidden), "output.dense": (hidden, inner)}
    for i in range(model.num_hidden_layers):
        for part in _LAYER:
            name = f"vit.encoder.layer.{i}.{part}"
            if "norm" in part:
                found += layer_norm(name, hidden)
            else:
                bias = model.qkv_bias or not part.startswith("attention.attention")
                found += _linear(name, *sizes.get(part, (hidden, hidden)), normal, bias)
    found += layer_norm("vit.layernorm", hidden)
    return (*found, *_linear(_HEAD, model.num_labels, hidden, normal))


def untrained(model: ModelSpec) -> tuple[Weight, ...]:
    """Both libraries open what is trained."""
    del model
    return ()


def activation_bytes(model: ModelSpec, rows: int, length: int, predictions: int, itemsize: int) -> int:
    """What PyTorch saves in a forward pass for the backward pass, with fused attention.

    A layer saves what one of BERT's does: see `hvdtrain.core.families.bert.activation_bytes`.

    Args:
        model: the hyper-parameters.
        rows: images.
        length: not used: the patches are the model's.
        predictions: targets of each image.
        itemsize: bytes of one element in matrix products.
    """
    del length
    whole = np.dtype(model.dtype).itemsize
    mixed, dropout = itemsize != whole, model.hidden_dropout_prob > 0.0
    hidden, heads, places = model.hidden_size, model.num_attention_heads, model.patches + 1
    tokens = rows * places
    norm = tokens * (hidden + 2) * whole
    attention = (6 + 2 * mixed) * hidden * itemsize + heads * 4
    if model.attention_probs_dropout_prob > 0.0:
        # Fused attention has no dropout on CPUs: scores, softmax and what dropout multiplied it with.
        attention += heads * places * 3 * 4
    layer = tokens * (attention + 2 * model.intermediate_size * itemsize) + 2 * norm
    masks = tokens * hidden * whole * dropout
    pixels = rows * model.num_channels * model.image_size**2 * itemsize
    found = pixels + masks + model.num_hidden_layers * (layer + 2 * masks) + norm
    return found + rows * predictions * (hidden * itemsize + model.num_labels * whole)


def checkpointed_bytes(model: ModelSpec, rows: int, length: int, predictions: int, itemsize: int) -> int:
    """As `activation_bytes`, with gradient checkpointing: the input of each layer, and all of one layer."""
    shape, elements = (rows, length, predictions, itemsize), rows * (model.patches + 1) * model.hidden_size
    return bytes_with_inputs_alone(activation_bytes, model, LAYERS, elements, *shape)


def product_elements(model: ModelSpec) -> int:
    """Elements of all weights and biases that are used in matrix products.

    Args:
        model: the hyper-parameters.
    """
    others = ("cls_token", "position_embeddings")
    return sum(w.size for w in weights(model) if "norm" not in w.name and not w.name.endswith(others))


def flops(model: ModelSpec, length: int, predictions: int) -> int:
    """Floating-point operations of one image's forward and backward passes, matrix products alone.

    A product of (m, k) and (k, n) is 2 m k n; backward takes two such for each of the forward pass, but one
    for the patches, whose pixels have no gradient.

    Args:
        model: the hyper-parameters.
        length: not used: the patches are the model's.
        predictions: targets of an image.
    """
    del length
    hidden, inner, places = model.hidden_size, model.intermediate_size, model.patches + 1
    layer = places * (4 * hidden * hidden + 2 * hidden * inner) + 2 * places * places * hidden
    patches = model.patches * model.num_channels * model.patch_size**2 * hidden
    head = predictions * hidden * model.num_labels
    return 2 * 2 * patches + 3 * 2 * (model.num_hidden_layers * layer + head)


def hf_config(model: ModelSpec) -> dict[str, Any]:
    """The content of `config.json` for `transformers.AutoModelForImageClassification`.

    Args:
        model: the hyper-parameters.

    Returns:
        A JSON-ready mapping.
    """
    return model.model_dump(exclude={"dtype", "init_from", "num_labels"}) | {
        **default_labels(model.num_labels),
        "architectures": [_ARCHITECTURE],
        "dtype": model.dtype,
    }


def current_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A `config.json` in the section's names: Transformers numbers the classes and does not count them.

    Args:
        config: its content.
    """
    found = with_num_labels(config, _ARCHITECTURE)
    for name in ("image_size", "patch_size"):
        sides = found.get(name)
        if isinstance(sides, list) and len(set(sides)) == 1:
            found[name] = sides[0]
    return found


def keras_paths(model: ModelSpec) -> dict[str, tuple[str, ...]]:
    """Where each weight lives in the layers of `keras_hub`'s `ViTBackbone` and a dense layer `predictions`.

    Args:
        model: the hyper-parameters.

    Returns:
        The paths of the Keras variables that hold a weight, by its Hugging Face name.
    """
    embeddings = "vit_patching_and_embedding"
    layers = {
        f"{_EMBEDDINGS}.patch_embeddings.projection": f"{embeddings}/patch_embedding",
        "vit.layernorm": "vit_encoder/ln",
        _HEAD: "predictions",
    }
    for i in range(model.num_hidden_layers):
        layers |= {
            f"vit.encoder.layer.{i}.{hf}": f"vit_encoder/transformer_block_{i + 1}/{keras}"
            for hf, keras in _LAYER.items()
        }
    paths = {
        f"{_EMBEDDINGS}.cls_token": f"{embeddings}/class_token",
        f"{_EMBEDDINGS}.position_embeddings": f"{embeddings}/position_embedding/embeddings",
    }
    for weight in weights(model):
        if weight.name not in paths:
            module, leaf = weight.name.rsplit(".", 1)
            leaves = _NORM_LEAVES if "norm" in module else _LEAVES
            paths[weight.name] = f"{layers[module]}/{leaves[leaf]}"
    return {name: (path,) for name, path in paths.items()}


def _linear(name: str, outputs: int, inputs: int, initial: Normal, bias: bool = True) -> list[Weight]:
    found = [Weight(f"{name}.weight", (outputs, inputs), True, initial, TRANSPOSED)]
    return [*found, Weight(f"{name}.bias", (outputs,), False, ZEROS)] if bias else found
