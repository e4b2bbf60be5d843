"""spoilt.py FRAMEWORK SCENARIOS.json: a model of two matrices, whose gradients are spoilt by a script.

A scenario is {"name", "set": [overrides], "spoil": [[window, rank, micro-batch, element, value], ...],
"factor"}. Windows and elements are counted from 0, elements through both matrices, and the value (a text that
Python's float reads) is added to that rank's gradient; the factor, if any, is every prediction's. With
model.dtype float64 the loss is scaled all the same: then nothing but the scale is looked at, and no rounding.
Each rank leaves NAME-RANK.npz beside the file: its weights, and of each update tried its scale, its learning
rate and whether it was applied.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from hvdtrain.core.data import Batch, Window
from hvdtrain.core.families.initializers import Normal
from hvdtrain.core.families.weights import Weight
from hvdtrain.core.run import job
from hvdtrain.core.run.framework import Framework
from hvdtrain.core.run.job import train_spec
from hvdtrain.core.spec.job_spec import load_spec
from hvdtrain.core.update.precision import compute_dtype
from tests.jobs.runs import start_sooner

WIDTH = 4
ROWS = 512  # TINY's vocabulary
WEIGHTS = (
    Weight("embedding", (ROWS, WIDTH), True, Normal(0.3)),
    Weight("decoder", (ROWS, WIDTH), False, Normal(0.3)),
)
FAMILY = SimpleNamespace(
    weights=lambda model: WEIGHTS,
    untrained=lambda model: (),
    hf_config=lambda model: {},
    activation_bytes=lambda *shapes: 0,
    product_elements=lambda model: 0,
    flops=lambda *sizes: 0,
)
Spoils = Sequence[tuple[int, int, int, int, str]]
# Of each update tried: the loss scale, the learning rate, and whether it was applied.
Record = list[tuple[float, float, bool]]


class Known:
    """What a model has whose batches weigh what the data says."""

    weighs = False
    held: Any = None
    network: Any = None
    loss_sum: Any
    predict: Any = None

    def weighted_loss(self, batch: dict[str, Any], training: bool) -> tuple[Any, None]:
        return self.loss_sum(batch, training), None


def torch_model() -> type:
    import torch
    from torch.nn import functional

    from hvdtrain.torch.model import tensors

    class Model(Known):
        def tensors(self, batch: Batch) -> dict[str, Any]:
            return tensors(batch)

        def evaluate(self, batch: dict[str, Any]) -> Any:
            loss = self.loss_sum(batch, training=False)
            return torch.stack([loss, torch.zeros_like(loss)])

        def __init__(self, model: Any, weights: tuple[Weight, ...], compute_dtype: str) -> None:
            self.weights = weights
            self._dtype, self._compute = (getattr(torch, name) for name in (model.dtype, compute_dtype))
            self.parameters = {
                w.name: torch.nn.Parameter(torch.zeros(w.shape, dtype=self._dtype)) for w in weights
            }

        def loss_sum(self, batch: dict[str, Any], training: bool) -> Any:
            embedding, decoder = self.parameters.values()
            with torch.set_grad_enabled(training):
                hidden = embedding[batch["input_ids"].gather(1, batch["masked_positions"])]
                logits = (hidden.to(self._compute) @ decoder.to(self._compute).T).to(self._dtype)
                losses = functional.cross_entropy(
                    logits.flatten(0, 1), batch["targets"].flatten(), reduction="none"
                )
                loss = losses @ batch["loss_weights"].flatten().to(self._dtype)
                if "spoil" in batch:
                    both = torch.cat([embedding.flatten(), decoder.flatten()])
                    loss = loss + (both * batch["spoil"].to(self._dtype)).sum()
                return loss

        def read(self, weights: Any = None) -> Iterator[tuple[str, np.ndarray]]:
            return ((name, p.detach().numpy().copy()) for name, p in self.parameters.items())

        def write(self, arrays: dict[str, np.ndarray]) -> None:
            with torch.no_grad():
                for name, array in arrays.items():
                    self.parameters[name].copy_(torch.from_numpy(array))

    return Model


def tensorflow_model() -> type:
    import tensorflow as tf

    from hvdtrain.tensorflow.model import tensors

    class Model(Known):
        def tensors(self, batch: Batch) -> dict[str, Any]:
            return tensors(batch)

        def evaluate(self, batch: dict[str, Any]) -> Any:
            loss = self.loss_sum(batch, training=False)
            return tf.stack([loss, tf.zeros_like(loss)])

        def __init__(self, model: Any, weights: tuple[Weight, ...], compute_dtype: str) -> None:
            self.weights = weights
            self._dtype, self._compute = model.dtype, compute_dtype
            self.parameters = {w.name: (tf.Variable(tf.zeros(w.shape, self._dtype)),) for w in weights}

        def loss_sum(self, batch: dict[str, Any], training: bool) -> Any:
            (embedding,), (decoder,) = self.parameters.values()
            tokens = tf.gather(batch["input_ids"], batch["masked_positions"], batch_dims=1)
            hidden = tf.cast(tf.gather(embedding, tokens), self._compute)
            logits = tf.tensordot(hidden, tf.cast(decoder, self._compute), [[2], [1]])
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
                batch["targets"], tf.cast(logits, self._dtype)
            )
            loss = tf.reduce_sum(losses * tf.cast(batch["loss_weights"], self._dtype))
            both = tf.concat([tf.reshape(embedding, [-1]), tf.reshape(decoder, [-1])], 0)
            return (
                loss + tf.reduce_sum(both * tf.cast(batch["spoil"], self._dtype))
                if "spoil" in batch
                else loss
            )

        def read(self, weights: Any = None) -> Iterator[tuple[str, np.ndarray]]:
            return ((name, variable.numpy()) for name, (variable,) in self.parameters.items())

        def write(self, arrays: dict[str, np.ndarray]) -> None:
            for name, array in arrays.items():
                self.parameters[name][0].assign(array)

    return Model


MODELS = {"torch": torch_model, "tensorflow": tensorflow_model}


def spoilt(window: Window, number: int, rank: int, spoils: Spoils, factor: float) -> Window:
    """A window whose micro-batches bring what the script adds to their gradients, as one more input."""
    batches = []
    for i, batch in enumerate(window.micro_batches):
        spoil = np.zeros(2 * ROWS * WIDTH)
        for at, whose, micro_batch, element, value in spoils:
            if (at, whose, micro_batch) == (number, rank, i):
                spoil[element] += float(value)
        inputs = {**batch.inputs, "spoil": spoil}
        batches.append(dataclasses.replace(batch, inputs=inputs, loss_weights=factor * batch.loss_weights))
    return dataclasses.replace(window, micro_batches=tuple(batches))


def recording(base: type, rank: int, spoils: Spoils, factor: float, record: Record) -> type:
    """A trainer that spoils its windows and keeps what became of each."""

    class Recording(base):  # type: ignore[misc,valid-type]
        def update(
            self,
            window: Window,
            divisor: float,
            weight: float,
            rate: float,
            update: int,
            scale: float,
            *rest: Any,
        ) -> Any:
            window = spoilt(window, len(record), rank, spoils, factor)
            found = super().update(window, divisor, weight, rate, update, scale, *rest)
            record.append((scale, rate, found.applied))
            return found

        def local_update(self, window: Window, divisor: float, rate: float, update: int, scale: float) -> Any:
            window = spoilt(window, len(record), rank, spoils, factor)
            found = super().local_update(window, divisor, rate, update, scale)
            record.append((scale, rate, found.applied))
            return found

    return Recording


def main() -> None:
    name, listing = sys.argv[1], Path(sys.argv[2])
    framework: Framework = importlib.import_module(f"hvdtrain.{name}.job").load()
    base, make_model = importlib.import_module(f"hvdtrain.{name}.trainer").Trainer, MODELS[name]()
    ranks = None
    for scenario in json.loads(listing.read_text()):
        spec = load_spec("bert", scenario["set"])
        products = compute_dtype(spec)
        if spec.model.dtype == "float64":
            # Which a spec is not allowed.
            spec = spec.model_copy(update={"mixed_precision": "fp16"})
        ranks = ranks or framework.init(spec)
        record: Record = []
        spoils, factor = scenario.get("spoil", ()), scenario.get("factor", 1.0)
        trainer = recording(base, ranks.rank, spoils, factor, record)
        model = make_model(spec.model, WEIGHTS, products)
        # No spec can name this family.
        job.family_of = lambda section: FAMILY  # type: ignore[assignment,return-value]
        changed = dataclasses.replace(
            framework,
            adapter=lambda spec, plan, weights, network, trainer=trainer, model=model: trainer(
                spec, plan, model
            ),
        )
        state = train_spec(changed, ranks, spec, listing.parent / scenario["name"]).state
        scales, rates, applied = zip(*record, strict=True)
        np.savez(
            listing.parent / f"{scenario['name']}-{ranks.rank}.npz",
            scales=np.array([*scales, state.loss_scale.value]),
            rates=np.array(rates),
            applied=np.array(applied),
            step=np.array([state.step, state.windows]),
            **dict(model.read()),
        )
    framework.shutdown()


if __name__ == "__main__":
    start_sooner()
    try:
        main()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
