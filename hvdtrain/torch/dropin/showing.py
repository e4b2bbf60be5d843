"""What `.grad` shows of the buckets, and whether somebody else holds a part of one."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hvdtrain.torch.buckets import GradBucket


class Shown:
    """The tensors that this layer puts into `.grad`: views of a bucket where dtypes allow it, else copies."""

    def __init__(self) -> None:
        """Nothing is shown."""
        self._views: dict[str, torch.Tensor] = {}
        # Those that have memory of their own, and their versions when they were noted.
        self._copies: dict[str, tuple[weakref.ref[torch.Tensor], int]] = {}
        # Of each bucket by its index: its memory, and how many tensors of ours lie there.
        self._memory: dict[int, tuple[Any, int | None]] = {}
        self._versions: dict[int, int] = {}

    def add(self, bucket: GradBucket) -> None:
        """Begin to show a bucket, or show it in new memory."""
        self._show(bucket)
        storage = bucket.flat.untyped_storage()
        self._memory[bucket.layout.index] = storage, _tensors_on(storage)

    def view(self, name: str) -> torch.Tensor:
        """A parameter's place in its bucket, as `.grad` shows it."""
        return self._views[name]

    def of(self, bucket: GradBucket, name: str, dtype: torch.dtype) -> torch.Tensor:
        """What a bucket has for a parameter, in the parameter's dtype."""
        place = bucket.views[name]
        return self._views[name] if place.dtype == dtype else self.note(name, place.to(dtype))

    def note(self, name: str, gradient: torch.Tensor) -> torch.Tensor:
        """Remember a tensor that `.grad` is to have."""
        if gradient is not self._views[name]:
            self._copies[name] = weakref.ref(gradient), gradient._version
        return gradient

    def note_versions(self, buckets: Sequence[GradBucket]) -> None:
        """From now on, whatever is written to the tensors shown is written by the user."""
        self._versions = {bucket.layout.index: bucket.flat._version for bucket in buckets}
        for name, (found, _) in self._copies.items():
            gradient = found()
            if gradient is not None:
                self._copies[name] = found, gradient._version

    def is_ours(self, name: str, gradient: torch.Tensor | None) -> bool:
        """Whether this layer has put a tensor into `.grad`."""
        return gradient is self._views[name] or (name in self._copies and self._copies[name][0]() is gradient)

    def is_current(self, name: str, gradient: torch.Tensor) -> bool:
        """Whether the bucket has what a tensor in `.grad` says."""
        return gradient is self._views[name] or self._is_noted(name, gradient)

    def is_untouched(self, bucket: GradBucket, name: str, gradient: torch.Tensor) -> bool:
        """Whether a tensor in `.grad` is ours, and nobody has written to it since versions were noted."""
        if gradient is self._views[name]:
            return bucket.flat._version == self._versions.get(bucket.layout.index)
        return self._is_noted(name, gradient)

    def is_held(self, bucket: GradBucket, parameters: Mapping[str, torch.nn.Parameter]) -> bool:
        """Whether the user has kept a part of a bucket that is in no `.grad` any more."""
        if self._counts_differ(bucket):
            return True
        # Two: that of the dictionary, and that of the call.
        return any(
            sys.getrefcount(self._views[name]) > 2 and parameters[name].grad is not self._views[name]
            for name in bucket.views
        )

    def mend(self, bucket: GradBucket) -> None:
        """Show the bucket again where a conversion of the model has moved what was shown elsewhere."""
        if self._counts_differ(bucket):
            self._show(bucket)

    def _show(self, bucket: GradBucket) -> None:
        self._views |= {name: place.detach() for name, place in bucket.views.items()}

    def _counts_differ(self, bucket: GradBucket) -> bool:
        storage, count = self._memory[bucket.layout.index]
        if count is None:
            return any(self._views[n].data_ptr() != place.data_ptr() for n, place in bucket.views.items())
        return _tensors_on(storage) != count

    def _is_noted(self, name: str, gradient: torch.Tensor) -> bool:
        if name not in self._copies:
            return False
        reference, version = self._copies[name]
        noted = reference()
        return noted is not None and noted is gradient and bool(noted._version == version)


def _tensors_on(storage: Any) -> int | None:
    """How many tensors lie in a storage; None where PyTorch (early versions without CUDA) does not tell.

    Then a gradient that is kept is noticed, and a view of one is not.
    """
    count = getattr(torch._C, "_storage_Use_Count", None)
    return None if count is None else int(count(storage._cdata))
