"""Hooks on a user's parameters, before and after backward accumulates a gradient into `.grad`."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch

# By a parameter's id, because tensors compare element by element.
_hooked: dict[int, tuple[weakref.ref[torch.Tensor], list[Any], Hooks]] = {}


class Hooks:
    """Calls functions with a parameter's name around the accumulation of each of its gradients.

    The hook before lies on a node that PyTorch replaces where a parameter is converted, as by
    `half().float()`. The hook after lies on the tensor: where it runs alone, it puts the other one on the new
    node.
    """

    def __init__(
        self, before: Callable[[str], None], after: Callable[[str], None], converted: Callable[[str], None]
    ) -> None:
        """Start without parameters.

        Args:
            before: `.grad` has what it had before.
            after: `.grad` has the gradient as well.
            converted: called before both where the parameter was converted; may refuse it.
        """
        self._before, self._after, self._converted = before, after, converted
        # PyTorch itself holds a node by a weak reference.
        self._nodes: dict[str, Any] = {}
        # Parameters whose gradient is about to be accumulated.
        self._announced: set[str] = set()

    def watch(self, name: str, parameter: torch.nn.Parameter) -> None:
        """Put hooks on a parameter; those of a wrapper that watched it before are removed."""

        def before(gradients: Any) -> None:
            if gradients[0] is not None:
                self._announce(name)

        def after(parameter: torch.Tensor) -> None:
            if name not in self._announced:
                self._converted(name)
                self._nodes[name] = torch._C._current_autograd_node()
                handles.append(self._nodes[name].register_prehook(before))
                gradient, parameter.grad = parameter.grad, None
                self._announce(name)
                parameter.grad = gradient
            self._announced.discard(name)
            self._after(name)

        trainable = parameter.requires_grad
        # A frozen parameter may be thawed later; hooks stay on it, but none can be put on it while frozen.
        parameter.requires_grad_(True)
        with torch.enable_grad():
            node = parameter.view_as(parameter).grad_fn.next_functions[0][0]
        _unhook(parameter)
        # Before the gradient is accumulated; a tensor's hook would also run for torch.autograd.grad.
        handles = [node.register_prehook(before), parameter.register_post_accumulate_grad_hook(after)]
        parameter.requires_grad_(trainable)
        key = id(parameter)
        _hooked[key] = weakref.ref(parameter, lambda _: _hooked.pop(key, None)), handles, self
        self._nodes[name] = node

    def forget(self) -> None:
        """A backward that has failed has left nothing behind."""
        self._announced.clear()

    @property
    def active(self) -> bool:
        """Whether any parameter is still watched by these hooks, and not by a later wrapper's."""
        return any(hooks is self for _, _, hooks in [*_hooked.values()])

    def _announce(self, name: str) -> None:
        self._before(name)
        self._announced.add(name)


def _unhook(parameter: torch.Tensor) -> None:
    """Remove the hooks of the wrapper before: two would reduce a gradient twice."""
    watched, handles, _ = _hooked.get(id(parameter), (lambda: None, [], None))
    if watched() is parameter:
        for handle in handles:
            handle.remove()
