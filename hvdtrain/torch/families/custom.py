"""A user's own `torch.nn.Module`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from hvdtrain.core.errors import SpecError
from hvdtrain.core.families.custom import ModelSpec, build, by_place, check_weights, in_order_of_names
from hvdtrain.core.families.initializers import ZEROS
from hvdtrain.core.families.weights import Weight
from hvdtrain.core.spec.reference import describe
from hvdtrain.core.user_code import user_code
from hvdtrain.torch.weights import Parameters
from hvdtrain.torch.world import device


class Network:
    """The model that `model.torch` builds; its weights have the names of its `state_dict`."""

    def __init__(self, model: ModelSpec, compute_dtype: str, example: Mapping[str, torch.Tensor]) -> None:
        """Build the model.

        Args:
            model: the section of the spec.
            compute_dtype: of matrix products.
            example: inputs of one sample, with which lazy layers learn their shapes.

        Raises:
            SpecError: the user's code fails, or returns something else than a model that can be trained.
        """
        del compute_dtype  # autocast casts what enters matrix products
        self._what = f"model.torch: {describe(model.torch)}"
        module = build(model, "torch")
        if not isinstance(module, torch.nn.Module):
            raise SpecError(f"{self._what} returned a {type(module).__name__}; expected a torch.nn.Module")
        self._refuse_kinds(module)
        self._dtype = getattr(torch, model.dtype)
        self.module = module.to(dtype=self._dtype, device=device())
        self._arguments = inspect.signature(module.forward).parameters
        if any(torch.nn.parameter.is_lazy(p) for p in (*module.parameters(), *module.buffers())):
            self.outputs(example, training=False)
        self._numbers_alone = model.names is not None
        found = [_weight(name, array) for name, array in self.parameters.items()]
        self.weights = tuple(found) if model.names is None else in_order_of_names(found, model.names)
        check_weights(model, "torch", self.weights)

    def _refuse_kinds(self, module: torch.nn.Module) -> None:
        for name, array in (*module.named_parameters(), *module.named_buffers()):
            if array.is_complex():
                raise SpecError(
                    f"{self._what}: {name} is {array.dtype}; expected real numbers: hold the real "
                    "and the imaginary part"
                )
            if array.is_meta:
                raise SpecError(
                    f"{self._what}: {name} is on the device meta and has no values: build the "
                    "model without a device"
                )

    @property
    def parameters(self) -> Parameters:
        """What holds each weight now: a module may give a buffer a new tensor."""
        return _arrays(self.module, self._numbers_alone)

    def outputs(self, inputs: Mapping[str, torch.Tensor], training: bool) -> Any:
        """What the model returns.

        Args:
            inputs: tensors by the names of the model's arguments, or by their positions (`0`, `1`, ...).
            training: whether dropout is on, and statistics are those of the batch.
        """
        self.module.train(training)
        given = {n: t.to(self._dtype) if t.is_floating_point() else t for n, t in inputs.items()}
        with user_code(f"{self._what}: the forward pass", self.module, SpecError):
            if by_place(given, self._arguments):
                return self.module(*given.values())
            return self.module(**given)


def _arrays(module: torch.nn.Module, numbers_alone: bool) -> dict[str, torch.Tensor]:
    """What the model saves, in its own order; without the counts that only PyTorch has, if so asked."""
    kept = module.state_dict().keys()
    found: dict[str, torch.Tensor] = dict(module.named_parameters())
    buffers = {name: buffer for name, buffer in module.named_buffers() if name in kept}
    if numbers_alone:
        buffers = {name: buffer for name, buffer in buffers.items() if buffer.is_floating_point()}
    return found | buffers


def _weight(name: str, array: torch.Tensor) -> Weight:
    shape = tuple(array.shape)
    buffer, parameter = not array.requires_grad, isinstance(array, torch.nn.Parameter)
    return Weight(name, shape, len(shape) > 1, ZEROS, buffer=buffer, frozen=buffer and parameter, custom=True)
