"""ResNet (He et al. 2015, arXiv:1512.03385): its weights by Hugging Face name, and what follows from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from hvdtrain.core.families.convolutions import Block, Convolution, half
from hvdtrain.core.families.heads import default_labels, with_num_labels
from hvdtrain.core.families.initializers import Uniform
from hvdtrain.core.families.weights import TRANSPOSED, Weight
from hvdtrain.core.spec.sections import Count, ModelSection

TASKS = ("image_classification",)
DROPOUT = ()
NETWORKS = {"torch": "hvdtrain.torch.families.resnet", "tensorflow": "hvdtrain.tensorflow.families.resnet"}
KERAS_MODEL = "hvdtrain.keras_models.resnet"
HEADS = (HEAD := "classifier.",)
HEAD_FIELDS = {"num_labels": "image_classification"}
FREE = ("image_size",)

STEM, STAGES, _CLASSIFIER = "resnet.embedder.embedder", "resnet.encoder.stages", f"{HEAD}1"
_ARCHITECTURE = "ResNetForImageClassification"
# Of a bottleneck: channels of its output for one inside.
_REDUCTION = 4


class ModelSpec(ModelSection):
    """A ResNet with a classification head, in Hugging Face's `ResNetConfig` names, and the size of images."""

    model_type: Literal["resnet"] = "resnet"
    num_labels: Annotated[int, Field(ge=2)]
    image_size: Count = 224
    num_channels: Literal[1, 3] = 3
    embedding_size: Count = 64
    hidden_sizes: Annotated[tuple[Count, ...], Field(min_length=1)] = (256, 512, 1024, 2048)
    depths: Annotated[tuple[Count, ...], Field(min_length=1)] = (3, 4, 6, 3)
    layer_type: Literal["basic", "bottleneck"] = "bottleneck"
    hidden_act: Literal["relu"] = "relu"
    downsample_in_first_stage: bool = False
    downsample_in_bottleneck: bool = False
    sync_batch_norm: bool = False

    @property
    def needs_all_ranks(self) -> bool:
        """With `sync_batch_norm`, ranks share statistics in every forward and backward pass."""
        return self.sync_batch_norm

    @model_validator(mode="after")
    def _stages_fit(self) -> ModelSpec:
        if len(self.hidden_sizes) != len(self.depths):
            raise ValueError(
                f"hidden_sizes has {len(self.hidden_sizes)} stages and depths {len(self.depths)}: give both "
                "as many numbers"
            )
        odd = [size for size in self.hidden_sizes if size % _REDUCTION]
        if self.layer_type == "bottleneck" and odd:
            raise ValueError(
                f"hidden_sizes {odd[0]} is not a multiple of {_REDUCTION}, by which a bottleneck divides it: "
                "choose a multiple, or layer_type: basic"
            )
        return self


def stem(model: ModelSpec) -> Convolution:
    """What the image goes through first; a max-pool of 3 x 3 and stride 2 follows."""
    return Convolution(STEM, model.num_channels, model.embedding_size, 7, 2, half(model.image_size))


def blocks(model: ModelSpec) -> Iterator[Block]:
    """All residual layers, in the order of the forward pass."""
    inputs, size = model.embedding_size, half(stem(model).size)
    for stage, (outputs, depth) in enumerate(zip(model.hidden_sizes, model.depths, strict=True)):
        for i in range(depth):
            halves = i == 0 and (stage > 0 or model.downsample_in_first_stage)
            name = f"{STAGES}.{stage}.layers.{i}"
            block = _block(model, name, inputs, outputs, 2 if halves else 1, size)
            yield block
            inputs, size = outputs, block.path[-1].size


def weights(model: ModelSpec) -> tuple[Weight, ...]:
    """Every weight and buffer in the order of the forward pass.

    Args:
        model: the hyper-parameters.

    Returns:
        The weights under the names that `transformers.ResNetForImageClassification` saves, without its counts
        of batches.
    """
    found = [weight for convolution in _convolutions(model) for weight in convolution.weights]
    # As PyTorch draws those of a linear layer.
    features, initial = model.hidden_sizes[-1], Uniform(model.hidden_sizes[-1] ** -0.5)
    shape = model.num_labels, features
    return (
        *found,
        Weight(f"{_CLASSIFIER}.weight", shape, True, initial, TRANSPOSED),
        Weight(f"{_CLASSIFIER}.bias", shape[:1], False, initial),
    )


def untrained(model: ModelSpec) -> tuple[Weight, ...]:
    """Transformers opens what is trained, with `counts`."""
    del model
    return ()


def counts(model: ModelSpec) -> dict[str, np.ndarray]:
    """How many batches each norm has seen; 0, since a momentum that is fixed does not ask.

    Args:
        model: the hyper-parameters.

    Returns:
        int64 without axes, by the name that Transformers misses in a file without it.
    """
    names = [f"{each.name}.normalization.num_batches_tracked" for each in _convolutions(model)]
    return {name: np.zeros((), np.int64) for name in names}


def activation_bytes(model: ModelSpec, rows: int, length: int, predictions: int, itemsize: int) -> int:
    """What PyTorch saves in a forward pass for the backward pass.

    That is the image, what goes into each norm and what comes out of each ReLU. The max-pool saves places.

    Args:
        model: the hyper-parameters.
        rows: images.
        length: 1.
        predictions: of each.
        itemsize: bytes of one element in convolutions.
    """
    del length
    first = stem(model)
    found = itemsize * model.num_channels * model.image_size**2
    found += itemsize * 2 * first.outputs * first.size**2
    found += (itemsize + np.dtype(np.int64).itemsize) * first.outputs * half(first.size) ** 2
    found += itemsize * sum(_kept(block) for block in blocks(model))
    head = model.hidden_sizes[-1] * itemsize + model.num_labels * np.dtype(model.dtype).itemsize
    return rows * (found + predictions * head)


def checkpointed_bytes(model: ModelSpec, rows: int, length: int, predictions: int, itemsize: int) -> int:
    """As `activation_bytes`, with gradient checkpointing: what each block takes, and all of the largest."""
    every = [*blocks(model)]
    whole = activation_bytes(model, rows, length, predictions, itemsize)
    outputs = sum(block.path[-1].outputs * block.path[-1].size ** 2 for block in every[:-1])
    recomputed = sum(map(_kept, every)) - max(map(_kept, every)) - outputs
    return whole - rows * itemsize * recomputed


def _kept(block: Block) -> int:
    """Elements that a block saves for an image."""
    normed = [*block.path, block.shortcut] if block.shortcut else block.path
    # Behind each convolution of the path is a ReLU: behind the last, once the shortcut is added.
    return sum(each.outputs * each.size**2 for each in (*normed, *block.path))


def product_elements(model: ModelSpec) -> int:
    """Elements of all weights and biases that are used in convolutions and matrix products.

    Args:
        model: the hyper-parameters.
    """
    return sum(w.size for w in weights(model) if ".normalization." not in w.name)


def flops(model: ModelSpec, length: int, predictions: int) -> int:
    """Floating-point operations of one image's forward and backward passes, convolutions and head alone.

    An output of a convolution takes 2 for each input that it sees; backward takes two such passes for each
    forward, but for the image, which needs no gradient.

    Args:
        model: the hyper-parameters.
        length: 1.
        predictions: of each image.
    """
    del length
    first, *others = (each.products for each in _convolutions(model))
    head = predictions * model.hidden_sizes[-1] * model.num_labels
    return 2 * (2 * first + 3 * (sum(others) + head))


def hf_config(model: ModelSpec) -> dict[str, Any]:
    """The content of `config.json` for `transformers.AutoModelForImageClassification`.

    Args:
        model: the hyper-parameters.

    Returns:
        A JSON-ready mapping.
    """
    fields = model.model_dump(mode="json", exclude={"dtype", "init_from", "num_labels", "sync_batch_norm"})
    return fields | {
        **default_labels(model.num_labels),
        "architectures": [_ARCHITECTURE],
        "dtype": model.dtype,
    }


def current_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A `config.json` with the number of classes in place of their names.

    Args:
        config: its content.
    """
    return with_num_labels(config, _ARCHITECTURE)


def _block(model: ModelSpec, name: str, inputs: int, outputs: int, stride: int, size: int) -> Block:
    after = half(size) if stride == 2 else size
    if model.layer_type == "basic":
        path = [(inputs, outputs, 3, stride, after), (outputs, outputs, 3, 1, after)]
    else:
        inside, early = outputs // _REDUCTION, model.downsample_in_bottleneck
        strides = (stride, 1) if early else (1, stride)
        path = [
            (inputs, inside, 1, strides[0], after if early else size),
            (inside, inside, 3, strides[1], after),
            (inside, outputs, 1, 1, after),
        ]
    projected = inputs != outputs or stride != 1
    return Block(
        tuple(Convolution(f"{name}.layer.{i}", *each) for i, each in enumerate(path)),
        Convolution(f"{name}.shortcut", inputs, outputs, 1, stride, after) if projected else None,
    )


def _convolutions(model: ModelSpec) -> Iterator[Convolution]:
    yield stem(model)
    for block in blocks(model):
        yield from block.path
        if block.shortcut:
            yield block.shortcut
