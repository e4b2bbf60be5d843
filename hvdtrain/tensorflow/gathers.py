"""Weights of which each rank holds its shards alone, whole where layers use them (ZeRO-3)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import keras
import numpy as np
import tensorflow as tf

from hvdtrain.core.compression.rules import Rules
from hvdtrain.core.families.batch_norm import recomputing
from hvdtrain.core.families.weights import Weight
from hvdtrain.core.spec.optimizer_sections import OptimizerSpec
from hvdtrain.core.update.gathers import plan_gathers
from hvdtrain.core.update.shards import Shard
from hvdtrain.tensorflow.flat_weights import HeldWeights
from hvdtrain.tensorflow.shards import ShardExchange
from hvdtrain.tensorflow.weights import Parameters

# Variables of Keras' layers, and tensors that they have for values.
_Values: TypeAlias = list[tuple[keras.Variable, tf.Tensor]]


class GatheredWeights(HeldWeights):
    """Shards of the weights; a layer's are gathered before its forward and its backward pass.

    A network calls its layers through this, in the order of the forward pass. A layer keeps nothing but its
    input: the backward pass gathers its weights and computes it again. The head's stay from one to the other.

    A graph would begin all gathers at once, since they depend on variables alone: each waits for the input of
    the layer before, so that no more than two layers are whole. The gathers of forward and backward pass
    would be merged into one if they waited for the same.
    """

    def __init__(
        self,
        rules: Rules,
        shards: Sequence[Shard],
        spec: OptimizerSpec,
        parameters: Parameters,
        exchange: ShardExchange,
        variables: Sequence[keras.Variable],
    ) -> None:
        """Hold zeros.

        Args:
            rules: say in which dtype buckets travel.
            shards: what this rank owns of each bucket of the plan.
            spec: the update rule, which says where shards are cut.
            parameters: the variables that hold each weight, by its name.
            exchange: with the ranks that own the rest.
            variables: of the network's layers; those that hold weights have no memory.
        """
        super().__init__(rules, shards, spec, parameters, exchange)
        self._plan = plan_gathers([shard.bucket for shard in shards])
        held = {v.value.ref(): v for v in variables}
        self._variables = {name: [held[v.ref()] for v in each] for name, each in parameters.items()}
        # Those of random generators, which draw the same numbers when a layer is computed again.
        self._states = [v for v in variables if not v.trainable]
        # While TensorFlow traces a pass: the next unit's place in it, its weights, and all weights so far.
        self._place, self._coming = 0, list[tuple[keras.Variable, tf.Tensor]]()
        self._gathered: dict[int, tf.Tensor] = {}
        self._returning: dict[int, _Values] = {}

    def __call__(self, call: Callable[..., tf.Tensor], x: tf.Tensor, *args: Any, **kwargs: Any) -> tf.Tensor:
        """Compute the next layer of the forward pass.

        Args:
            call: uses the layer's weights and no others.
            x: its input; nothing else that it takes has a gradient.
            args: what it takes beside this.
            kwargs: likewise.
        """
        if self._place == len(self._plan.forward) - 1:
            return self.head(lambda x: call(x, *args, **kwargs), x)
        unit, weights = self._plan.forward[self._place], self._next(x)
        inputs = [x] if x.dtype.is_floating else []

        def compute(values: _Values, *inputs: tf.Tensor) -> tuple[tf.Tensor, keras.StatelessScope]:
            with keras.StatelessScope(values) as scope:
                return call(*(inputs or [x]), *args, **kwargs), scope

        @tf.custom_gradient
        def layer(*inputs: tf.Tensor) -> tuple[tf.Tensor, Any]:
            _name(variable for variable, _ in weights)
            found, scope = compute(weights, *inputs)
            states = self._keep_states(scope, weights)

            def backward(
                upstream: tf.Tensor, variables: Sequence[tf.Variable]
            ) -> tuple[list[tf.Tensor | None], list[tf.Tensor | None]]:
                again = self._again(unit, upstream)
                # Nothing is computed before, or merged with what the forward pass has computed.
                with tf.control_dependencies([upstream]):
                    later = [tf.identity(each) for each in inputs]
                    known = [(state, tf.identity(value)) for state, value in states]
                with tf.GradientTape() as tape, recomputing():
                    sources = [*later, *(value for _, value in again)]
                    tape.watch(sources)
                    repeated, _ = compute([*again, *known], *later)
                gradients = tape.gradient(repeated, sources, output_gradients=upstream)
                own = gradients[: len(later)]
                return own, _in_order(variables, again, gradients[len(later) :])

            return found, backward

        return layer(*inputs)

    def head(
        self, call: Callable[[tf.Tensor], tf.Tensor], x: tf.Tensor, *others: keras.Variable
    ) -> tf.Tensor:
        """Compute the head, whose weights stay whole for the backward pass; it may be called part by part.

        Args:
            call: uses the weights of the last layer of the forward pass.
            x: its input.
            others: weights of the layer before that it uses, too.
        """
        if self._place:
            assert self._place == len(self._plan.forward) - 1, "the network has called too few layers"
            self._next(x)
        names = [w.name for i in self._plan.units[self._plan.held] for w in self._shards[i].bucket.weights]
        held = [*(variable for name in names for variable in self._variables[name]), *others]

        @tf.custom_gradient
        def use(*values: tf.Tensor) -> tuple[list[tf.Tensor], Any]:
            _name(held)

            def backward(*upstream: tf.Tensor, variables: Sequence[tf.Variable]) -> tuple[Any, Any]:
                pairs = list(zip(held, values, strict=True))
                return [None] * len(values), _in_order(variables, pairs, upstream)

            return [tf.identity(value) for value in values], backward

        values = use(*(self._gathered[id(variable)] for variable in held))
        with keras.StatelessScope(list(zip(held, values, strict=True))):
            return call(x)

    def write(self, weight: Weight, array: np.ndarray) -> None:
        """See `HeldWeights.write`."""
        super().write(weight, array)

    def send(self) -> None:
        """The other ranks ask for what this one has updated when they use it."""

    def _next(self, x: tf.Tensor) -> _Values:
        """The weights of the next unit of the forward pass, whose input this is."""
        forward = self._plan.forward
        if not self._place:
            self._coming, self._gathered = self._gather(forward[0], "forward0", [x]), {}
        weights = self._coming
        self._gathered |= {id(variable): value for variable, value in weights}
        self._place = (self._place + 1) % len(forward)
        if self._place:
            self._coming = self._gather(forward[self._place], f"forward{self._place}", [x])
        return weights

    def _again(self, unit: int, upstream: tf.Tensor) -> _Values:
        """The weights of a unit of the backward pass, whose output has this gradient."""
        backward = self._plan.backward
        if unit not in backward:
            # No gradient depends on the values of a table.
            return [(v, tf.zeros(v.shape, v.dtype)) for v in self._of(unit)]
        place = backward.index(unit)
        weights = self._returning.pop(unit, None) or self._gather(unit, f"backward{place}", [upstream])
        for following in backward[place + 1 : place + 2]:
            self._returning[following] = self._gather(following, f"backward{place + 1}", [upstream])
        return weights

    def _gather(self, unit: int, name: str, behind: Sequence[tf.Tensor]) -> _Values:
        found: Mapping[str, Sequence[tf.Tensor]] = {}
        with tf.control_dependencies(behind):
            for index in self._plan.units[unit]:
                found = {**found, **self.whole(index, name)}
        return list(zip(self._of(unit), (part for parts in found.values() for part in parts), strict=True))

    def _of(self, unit: int) -> list[keras.Variable]:
        names = [w.name for index in self._plan.units[unit] for w in self._shards[index].bucket.weights]
        return [variable for name in names for variable in self._variables[name]]

    def _keep_states(self, scope: keras.StatelessScope, weights: _Values) -> _Values:
        """Move random generators on by what a layer has drawn; returns them as they were before."""
        changed = [state for state in self._states if scope.get_current_value(state) is not None]
        assert len(scope.state_mapping) == len(weights) + len(changed), (
            "a generator is not among the variables"
        )
        before = [(state, tf.identity(state.value)) for state in changed]
        for state in changed:
            state.assign(scope.get_current_value(state))
        return before


def _name(variables: Iterable[keras.Variable]) -> None:
    """Have TensorFlow ask a function with a gradient of its own for those of some variables."""
    for variable in variables:
        tf.convert_to_tensor(variable.value)


def _in_order(
    variables: Sequence[tf.Variable], values: _Values, gradients: Iterable[tf.Tensor | None]
) -> list[tf.Tensor | None]:
    """Gradients of some values as those of the variables that TensorFlow asks for."""
    found = {v.value.ref(): gradient for (v, _), gradient in zip(values, gradients, strict=True)}
    dense = (found[variable.ref()] for variable in variables)
    return [None if gradient is None else tf.convert_to_tensor(gradient) for gradient in dense]
