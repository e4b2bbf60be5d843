"""The peak memory of a rank's process on a CPU in each framework, predicted before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hvdtrain.core.families.family import Family
from hvdtrain.core.spec.job_spec import JobSpec
from hvdtrain.core.tasks import task_of
from hvdtrain.core.update.accumulation import BatchSizes
from hvdtrain.core.update.losses import MOST_LOGITS
from hvdtrain.core.update.precision import compute_itemsize
from hvdtrain.core.update.shards import Shard

_MIB = 2**20
# What a rank takes at its peak beyond what the plan counts, in MiB: interpreter, modules, compiled graphs.
# Measured by `benchmarks/peak_memory.py` on the smallest jobs in November 2026: Linux on x86-64, Python 3.11,
# PyTorch 2.13.0, TensorFlow 2.21.0 with Keras 3.15. A rank cannot measure it when it makes its plan: a third
# is loaded with the model and in the first update.
_OWN_MIB = {"torch": 435, "tensorflow": 800}
# KerasHub's part of that, and the families that are built with it.
_KERAS_HUB_MIB, _IN_KERAS_HUB = 140, {"bert", "gpt2", "vit"}
# TensorFlow's activations in units of PyTorch's: its attention, GELU and layer norm are several operations,
# each of which keeps arrays of its own. Measured in the same way on jobs of 64 rows: 1.9 (ViT) to 2.2 (BERT
# and GPT-2).
_TENSORFLOW_ACTIVATIONS = 2.2


@dataclass(frozen=True)
class Peak:
    """Bytes of one rank's process when it is largest.

    Attributes:
        framework: what the process takes without the model: interpreter, modules, compiled graphs.
        momentary: temporary arrays of an update, and freed memory that is too scattered to be used again.
        total: these, and all else that the plan counts.
    """

    framework: int
    momentary: int
    total: int


def predict_peaks(
    spec: JobSpec, family: Family, shards: Sequence[Shard], batch: BatchSizes, kept: int, activations: int
) -> dict[str, Peak]:
    """The peak of a rank on a CPU by framework, `torch` and `tensorflow`.

    Args:
        spec: the job.
        family: the model's, which predicts activations.
        shards: what a rank owns of each bucket.
        batch: how the global batch is cut.
        kept: bytes of all that the plan counts, activations included.
        activations: their bytes.
    """
    found = {
        "torch": _torch(spec, family, shards, batch.per_device_train_batch_size),
        "tensorflow": _tensorflow(spec, shards, batch.gradient_accumulation_steps)
        + int((_TENSORFLOW_ACTIVATIONS - 1.0) * activations),
    }
    own = dict(_OWN_MIB)
    if spec.model.model_type in _IN_KERAS_HUB:
        own["tensorflow"] += _KERAS_HUB_MIB
    return {
        name: Peak(own[name] * _MIB, momentary, own[name] * _MIB + momentary + kept)
        for name, momentary in found.items()
    }


def _torch(spec: JobSpec, family: Family, shards: Sequence[Shard], rows: int) -> int:
    """Temporary arrays of an update in PyTorch.

    A gradient is whole before it is copied into its bucket. A tied embedding has one of each of its two uses,
    and their sum. Where the head's backward pass begins there are the gradients of the logits, beside the
    logits themselves. Each layer's backward pass has gradients of what the layer has saved.
    """
    model, shapes = spec.model, task_of(spec.task).shapes(spec.data, spec.task)
    itemsize = np.dtype(model.dtype).itemsize
    weights = [weight for shard in shards for weight in shard.bucket.weights]
    gradient = max(weight.size * (3 if weight.tied else 1) for weight in weights)
    classes: Any = getattr(model, "num_labels", None) or getattr(model, "vocab_size", 0)
    logits = min(rows * shapes.predictions * classes, MOST_LOGITS)
    sizes = rows, shapes.length, shapes.predictions, compute_itemsize(spec)
    layers = getattr(model, getattr(family, "LAYERS", ""), None)
    layer = (family.activation_bytes(model, *sizes) or 0) // layers if layers else 0
    return itemsize * (gradient + 2 * logits) + layer


def _tensorflow(spec: JobSpec, shards: Sequence[Shard], steps: int) -> int:
    """Temporary arrays of an update in TensorFlow, without activations.

    All gradients, each in a block of its own, beside their sums in larger ones. Only a bucket's gradients are
    there at the same time as its sum, but TensorFlow's pool gives no memory back and finds no use for many of
    the freed blocks. With accumulation the buckets of early micro-batches lie beside the sums. With
    `zero_stage` 1 and 2 weights have shards beside them.
    """
    whole = sum(shard.bucket.size for shard in shards)
    rules = spec.rules
    found = whole
    if steps > 1 and not rules.shards_gradients:
        found += whole
    if rules.sharded and not rules.shards_weights:
        found += sum(shard.size for shard in shards)
    return np.dtype(spec.model.dtype).itemsize * found
