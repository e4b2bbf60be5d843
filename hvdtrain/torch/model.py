"""A spec's model and its loss, with weights that are read and set as NumPy arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch

from hvdtrain.core.data import Batch
from hvdtrain.core.families import custom as custom_family
from hvdtrain.core.families.weights import Weight, trained
from hvdtrain.core.spec.job_spec import JobSpec
from hvdtrain.core.spec.sections import ModelSection, TaskSection
from hvdtrain.core.tasks import custom
from hvdtrain.core.tasks.causal_lm import next_token_batch
from hvdtrain.core.tasks.objective import Objective
from hvdtrain.core.tasks.objective_checks import split_labels
from hvdtrain.core.update.precision import compute_dtype
from hvdtrain.torch.families import custom as custom_network
from hvdtrain.torch.families import network_of
from hvdtrain.torch.flat_weights import HeldWeights
from hvdtrain.torch.losses import cross_entropy
from hvdtrain.torch.objective import build_objective
from hvdtrain.torch.placeholders import without_memory
from hvdtrain.torch.weights import Parameters, read, write
from hvdtrain.torch.world import device


def build_network(spec: JobSpec, example: Batch) -> custom_network.Network:
    """Build a user's model.

    Args:
        spec: the job.
        example: a batch of one sample.

    Raises:
        SpecError: the user's code fails, or returns something else than a model that can be trained.
    """
    labels = getattr(spec.task, "label_names", ())
    inputs, _ = split_labels(tensors(example), labels)
    assert isinstance(spec.model, custom_family.ModelSpec)
    return custom_network.Network(spec.model, compute_dtype(spec), inputs)


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
        self._dtype = getattr(torch, model.dtype)
        self._compute_dtype = getattr(torch, compute_dtype or model.dtype)
        with without_memory() if empty else nullcontext():
            self.network: Any = network or network_of(model)(model, compute_dtype or model.dtype)
        self.weights = tuple(weights)
        # What holds them where ranks train them.
        self.held: HeldWeights | None = None
        # Whether only the loss function knows what a batch weighs.
        self.weighs = False
        self._label_smoothing = task.label_smoothing if task else 0.0
        self._objective = build_objective(task, self._dtype) if isinstance(task, custom.TaskSpec) else None

    def tensors(self, batch: Batch) -> dict[str, torch.Tensor]:
        """As the function `tensors`; DataError where a label is no class of the user's model."""
        if self._objective is not None:
            self._objective.check(batch)
        return tensors(batch)

    def loss_sum(self, batch: dict[str, torch.Tensor], training: bool) -> torch.Tensor:
        """The summed loss of a batch; without a user's own loss, of cross-entropies in nats.

        Args:
            batch: what `tensors` made of a micro-batch.
            training: whether dropout is on.

        Returns:
            A scalar; gradients flow when `training`.
        """
        return self.weighted_loss(batch, training)[0]

    def weighted_loss(
        self, batch: dict[str, torch.Tensor], training: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`loss_sum`, and the batch's weight where only the user's loss function knows it."""
        with self._pass(training):
            if self._objective is None:
                return self._cross_entropy(batch, training), None
            if not len(batch["loss_weights"]):
                nothing = torch.zeros((), dtype=self._dtype, device=device(), requires_grad=training)
                return nothing, nothing.detach() if self.weighs else None
            outputs = self._outputs(self._objective, batch, training)
            loss, weight, given = self._objective.loss(outputs, batch, training)
            return loss, weight if given else None

    def evaluate(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """What an evaluation sums up over a batch, without dropout.

        Args:
            batch: as in `loss_sum`.

        Returns:
            The loss and its weight, and the sum and the weight of each metric of a user's model, (sums,). The
            loss's weight is 0 where it is known from the data.
        """
        with self._pass(training=False):
            if self._objective is None:
                loss = self._cross_entropy(batch, training=False)
                return torch.stack([loss, torch.zeros_like(loss)])
            if not len(batch["loss_weights"]):
                return torch.zeros(2 * self._objective.count, dtype=self._dtype)
            outputs = self._outputs(self._objective, batch, training=False)
            loss, *metrics = (
                self._objective.loss(outputs, batch),
                *self._objective.metrics(outputs, batch),
            )
            found = [loss[:2] if loss[2] else (loss[0], torch.zeros_like(loss[0])), *(m[:2] for m in metrics)]
            return torch.stack([part for pair in found for part in pair])

    def predict(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The logits of a batch, without dropout, in the weights' dtype: (rows · predictions, classes)."""
        with self._pass(training=False):
            with self._mixed():
                features = self.network.features(batch, training=False)
            return self._logits(features).flatten(0, -2).to(self._dtype)

    def examine(self, batch: dict[str, torch.Tensor]) -> np.ndarray:
        """The loss of a batch; takes note of whether the loss says its weight: see `Adapter.examine`."""
        assert self._objective is not None
        with self._pass(training=False):
            outputs = self._outputs(self._objective, batch, training=False)
            self.weighs = self._objective.loss(outputs, batch)[2]
            self._objective.metrics(outputs, batch)
            return self._objective.examples(outputs, batch).double().cpu().numpy().reshape(-1)

    def unused(self, batch: dict[str, torch.Tensor]) -> list[str]:
        """The names of weights that the loss of a batch does not depend on."""
        names = [weight.name for weight in trained(self.weights)]
        loss = self.loss_sum(batch, training=True)
        tensors = [self.parameters[name] for name in names]
        if not loss.requires_grad:
            return names
        found = torch.autograd.grad(loss, tensors, allow_unused=True)
        return [name for name, gradient in zip(names, found, strict=True) if gradient is None]

    def _outputs(self, objective: Objective, batch: dict[str, torch.Tensor], training: bool) -> Any:
        with self._mixed():
            return self.network.outputs(objective.inputs(batch), training)

    def _cross_entropy(self, batch: dict[str, torch.Tensor], training: bool) -> torch.Tensor:
        with self._mixed():
            features = self.network.features(batch, training)
        # Outside of autocast, which would take the weighted sum in 16 bits.
        targets, weights = batch["targets"], batch["loss_weights"]
        head, smoothing = (self._logits, self.network.classes), self._label_smoothing if training else 0.0
        return cross_entropy(*head, features, targets, weights, self._dtype, smoothing)

    def next_logits(self, ids: np.ndarray) -> np.ndarray:
        """What a causal language model predicts behind each row of tokens.

        Args:
            ids: int32 (rows, length).

        Returns:
            Logits in the weights' dtype, (rows, vocab_size).
        """
        with self._pass(training=False):
            with self._mixed():
                features = self.network.features(tensors(next_token_batch(ids)), training=False)
            return self._logits(features[:, -1:]).flatten(0, -2).to(self._dtype).cpu().numpy()

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
                array = arrays[weight.name]
                if self.held is None or weight.buffer:
                    write(weight, parameters[weight.name], array)
                else:
                    self.held.write(weight, array)

    @contextmanager
    def _pass(self, training: bool) -> Iterator[None]:
        """Around a forward pass, which a backward pass follows where the model is in training."""
        in_use = nullcontext() if self.held is None else self.held.in_use(training)
        with torch.set_grad_enabled(training), in_use:
            yield

    def _logits(self, features: torch.Tensor) -> torch.Tensor:
        with self._mixed():
            return self.network.logits(features)

    def _mixed(self) -> torch.autocast:
        # Casts what enters matrix products alone; PyTorch takes softmax and norms of 16 bits in float32.
        mixed = self._compute_dtype != self._dtype
        return torch.autocast(device().type, self._compute_dtype if mixed else None, enabled=mixed)


def tensors(batch: Batch) -> dict[str, torch.Tensor]:
    """A micro-batch's arrays as tensors by field name, on this rank's device."""
    # Moved before they are widened: the pixels of an image are a byte each.
    found = {name: torch.from_numpy(array).to(device()) for name, array in batch.arrays().items()}
    # PyTorch's cross-entropy and indexing take int64 alone; its masks are booleans.
    kept = (torch.bool, torch.complex64, torch.complex128)
    return {
        name: tensor if tensor.is_floating_point() or tensor.dtype in kept else tensor.long()
        for name, tensor in found.items()
    }
