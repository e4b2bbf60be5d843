"""A spec's model and its loss, with weights that are read and set as NumPy arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import tensorflow as tf

from hvdtrain.core.data import Batch
from hvdtrain.core.errors import SpecError
from hvdtrain.core.families import custom as custom_family
from hvdtrain.core.families.weights import Weight, trained
from hvdtrain.core.spec.job_spec import JobSpec
from hvdtrain.core.spec.sections import ModelSection, TaskSection
from hvdtrain.core.tasks import custom
from hvdtrain.core.tasks.causal_lm import next_token_batch
from hvdtrain.core.tasks.objective import Objective
from hvdtrain.core.tasks.objective_checks import split_labels
from hvdtrain.core.update.precision import compute_dtype
from hvdtrain.tensorflow.families import custom as custom_network
from hvdtrain.tensorflow.families import network_of
from hvdtrain.tensorflow.flat_weights import HeldWeights
from hvdtrain.tensorflow.losses import cross_entropy
from hvdtrain.tensorflow.objective import build_objective
from hvdtrain.tensorflow.placeholders import without_memory
from hvdtrain.tensorflow.weights import Parameters, read, write


def build_network(spec: JobSpec, example: Batch) -> custom_network.Network:
    """Build a user's model.

    Args:
        spec: the job.
        example: a batch of one sample.

    Raises:
        SpecError: the user's code fails, or returns something else than a model that can be trained, or the
            job shards its weights.
    """
    check_layers(spec, custom_network.Network)
    labels = getattr(spec.task, "label_names", ())
    inputs, _ = split_labels(tensors(example), labels)
    assert isinstance(spec.model, custom_family.ModelSpec)
    return custom_network.Network(spec.model, compute_dtype(spec), inputs)


def check_layers(spec: JobSpec, network: Any) -> None:
    """Refuse to shard the weights of a network that does not call its layers through `gathered`.

    Args:
        spec: the job.
        network: a network, or its class.

    Raises:
        SpecError: naming the family.
    """
    if spec.rules.shards_weights and not hasattr(network, "gathered"):
        raise SpecError(
            f"zero_stage: {spec.zero_stage} gathers weights layer by layer, and in TensorFlow model_type "
            f"{spec.model.model_type} does not say what its layers are: choose zero_stage: 2, or train it in "
            "PyTorch"
        )


class Model:
    """A family's network and the loss of a batch."""

    def __init__(
        self,
        model: ModelSection,
        weights: Sequence[Weight],
        compute_dtype: str | None = None,
        network: Any = None,
        task: TaskSection | None = None,
        empty: bool = False,
    ) -> None:
        """Build the network; its weights are arbitrary until `write`.

        Args:
            model: the hyper-parameters.
            weights: the model's weights and buffers.
            compute_dtype: of matrix products; None: that of the weights.
            network: a user's model, which has been built.
            task: its task, which says the loss.
            empty: whether its weights hold no memory, until `held` has them.
        """
        self._dtype = tf.as_dtype(model.dtype)
        with without_memory() if empty else nullcontext():
            self.network: Any = network or network_of(model)(model, compute_dtype or model.dtype)
        self.weights = tuple(weights)
        # What holds those that ranks train, where they are sharded.
        self.held: HeldWeights | None = None
        # Whether only the loss function knows what a batch weighs.
        self.weighs = False
        self._label_smoothing = task.label_smoothing if task else 0.0
        self._objective = build_objective(task, self._dtype) if isinstance(task, custom.TaskSpec) else None

    def tensors(self, batch: Batch) -> dict[str, tf.Tensor]:
        """As the function `tensors`; DataError where a label is no class of the user's model."""
        if self._objective is not None:
            self._objective.check(batch)
        return tensors(batch)

    def loss_sum(self, batch: dict[str, tf.Tensor], training: bool) -> tf.Tensor:
        """The summed loss of a batch; without a user's own loss, of cross-entropies in nats.

        Args:
            batch: what `tensors` made of a micro-batch.
            training: whether dropout is on.

        Returns:
            A scalar.
        """
        return self.weighted_loss(batch, training)[0]

    def weighted_loss(
        self, batch: dict[str, tf.Tensor], training: bool
    ) -> tuple[tf.Tensor, tf.Tensor | None]:
        """`loss_sum`, and the batch's weight where only the user's loss function knows it."""
        if self._objective is None:
            return self._cross_entropy(batch, training), None
        if not batch["loss_weights"].shape[0]:
            nothing = tf.zeros((), self._dtype)
            return nothing, nothing if self.weighs else None
        outputs = self._outputs(self._objective, batch, training)
        loss, weight, given = self._objective.loss(outputs, batch, training)
        return loss, weight if given else None

    def evaluate(self, batch: dict[str, tf.Tensor]) -> tf.Tensor:
        """What an evaluation sums up over a batch, without dropout.

        Args:
            batch: as in `loss_sum`.

        Returns:
            The loss and its weight, and the sum and the weight of each metric of a user's model, (sums,). The
            loss's weight is 0 where it is known from the data.
        """
        if self._objective is None:
            loss = self._cross_entropy(batch, training=False)
            return tf.stack([loss, tf.zeros_like(loss)])
        if not batch["loss_weights"].shape[0]:
            return tf.zeros(2 * self._objective.count, self._dtype)
        outputs = self._outputs(self._objective, batch, training=False)
        loss, *metrics = self._objective.loss(outputs, batch), *self._objective.metrics(outputs, batch)
        found = [loss[:2] if loss[2] else (loss[0], tf.zeros_like(loss[0])), *(m[:2] for m in metrics)]
        return tf.stack([part for pair in found for part in pair])

    def predict(self, batch: dict[str, tf.Tensor]) -> tf.Tensor:
        """The logits of a batch, without dropout, in the weights' dtype: (rows · predictions, classes)."""
        found = tf.cast(self.network.logits(self.network.features(batch, training=False)), self._dtype)
        return tf.reshape(found, [-1, found.shape[-1]])

    def examine(self, batch: dict[str, tf.Tensor]) -> np.ndarray:
        """The loss of a batch; takes note of whether the loss says its weight: see `Adapter.examine`."""
        assert self._objective is not None
        outputs = self._outputs(self._objective, batch, training=False)
        self.weighs = self._objective.loss(outputs, batch)[2]
        self._objective.metrics(outputs, batch)
        return tf.cast(self._objective.examples(outputs, batch), tf.float64).numpy().reshape(-1)

    def unused(self, batch: dict[str, tf.Tensor]) -> list[str]:
        """The names of weights that the loss of a batch does not depend on."""
        names = [weight.name for weight in trained(self.weights)]
        with tf.GradientTape() as tape:
            loss = self.loss_sum(batch, training=True)
        found = tape.gradient(loss, [self.parameters[name] for name in names])
        return [name for name, parts in zip(names, found, strict=True) if all(part is None for part in parts)]

    def _outputs(self, objective: Objective, batch: dict[str, tf.Tensor], training: bool) -> Any:
        return self.network.outputs(objective.inputs(batch), training)

    def _cross_entropy(self, batch: dict[str, tf.Tensor], training: bool) -> tf.Tensor:
        network, features = self.network, self.network.features(batch, training)
        targets, weights = batch["targets"], batch["loss_weights"]
        head, smoothing = (network.logits, network.classes), self._label_smoothing if training else 0.0
        return cross_entropy(*head, features, targets, weights, self._dtype, smoothing)

    def next_logits(self, ids: np.ndarray) -> np.ndarray:
        """What a causal language model predicts behind each row of tokens.

        Args:
            ids: int32 (rows, length).

        Returns:
            Logits in the weights' dtype, (rows, vocab_size).
        """
        features = self.network.features(tensors(next_token_batch(ids)), training=False)
        found = tf.cast(self.network.logits(features[:, -1:]), self._dtype)
        return tf.reshape(found, [-1, found.shape[-1]]).numpy()

    @property
    def parameters(self) -> Parameters:
        """What holds each weight and buffer, by its name."""
        found: Parameters = self.network.parameters
        return found

    def read(self, weights: Sequence[Weight] | None = None) -> Iterator[tuple[str, np.ndarray]]:
        """Copies of all weights and buffers, or of some, one at a time, in the Hugging Face layout."""
        parameters = self.parameters
        chosen = self.weights if weights is None else weights
        if self.held is not None:
            yield from self.held.read([weight for weight in chosen if not weight.buffer])
        for weight in chosen:
            if self.held is None or weight.buffer:
                yield weight.name, read(weight, parameters[weight.name])

    def write(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Set weights and buffers.

        Args:
            arrays: those to be set by name, in the Hugging Face layout.
        """
        parameters = self.parameters
        for weight in self.weights:
            if weight.name in arrays:
                if self.held is None or weight.buffer:
                    write(weight, parameters[weight.name], arrays[weight.name])
                else:
                    self.held.write(weight, arrays[weight.name])


def tensors(batch: Batch) -> dict[str, tf.Tensor]:
    """A micro-batch's arrays as tensors by field name, on this rank's device."""
    return {name: tf.convert_to_tensor(array) for name, array in batch.arrays().items()}
