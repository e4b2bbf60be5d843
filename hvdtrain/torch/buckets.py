"""Flat buckets of gradients in memory."""

from __future__ import annotations

import torch

from hvdtrain.core.update.buckets import Bucket


class GradBucket:
    """The gradients of one bucket in one flat tensor, which a window's backwards fill.

    Attributes:
        layout: which weights lie in the bucket, and in which order.
        flat: the tensor, shape (layout.size,) or longer: beyond that are zeros.
        views: each weight's part of `flat`, in the weight's shape, by its name.
        unfilled: names of the weights that have no gradient in this window yet.
        pending: how many gradients have not arrived in this backward.
    """

    def __init__(self, layout: Bucket, flat: torch.Tensor) -> None:
        """Make the views.

        Args:
            layout: of the bucket.
            flat: where its gradients go, shape (layout.size,) or longer.
        """
        self.layout = layout
        self.unfilled: set[str] = set()
        self.pending = 0
        self._place(flat)

    def start_window(self) -> None:
        """Forget the last window's gradients."""
        self.unfilled = {weight.name for weight in self.layout.weights}
        self.pending = len(self.unfilled)

    def fill(self, name: str, gradient: torch.Tensor, scale: float = 1.0) -> None:
        """Add one micro-batch's gradient of a weight to the window's.

        Args:
            name: the weight's.
            gradient: dense, in the weight's shape; 16 bits are widened before they are scaled.
            scale: a factor of it.
        """
        self._take_memory()
        view = self.views[name]
        if name not in self.unfilled:
            view.add_(gradient, alpha=scale)
            return
        self.unfilled.discard(name)
        if scale != 1.0 and gradient.dtype == view.dtype:
            # One pass over memory.
            torch.mul(gradient, scale, out=view)
            return
        view.copy_(gradient)
        if scale != 1.0:
            view.mul_(scale)

    def zero_unfilled(self) -> None:
        """Set to zero what has no gradient in this window."""
        self._take_memory()
        for name in self.unfilled:
            self.views[name].zero_()

    def release(self) -> None:
        """Give the memory back; the next gradient takes it again."""
        self.flat.untyped_storage().resize_(0)

    def renew(self) -> None:
        """Move to new memory: somebody else keeps the old."""
        self._place(torch.zeros_like(self.flat))

    def _take_memory(self) -> None:
        storage = self.flat.untyped_storage()
        if storage.nbytes() == 0:
            storage.resize_(self.flat.numel() * self.flat.itemsize)
            self.flat[self.layout.size :].zero_()

    def _place(self, flat: torch.Tensor) -> None:
        parts = zip(self.layout.weights, flat[: self.layout.size].split(self.layout.sizes), strict=True)
        self.flat = flat
        self.views = {weight.name: part.view(weight.shape) for weight, part in parts}
