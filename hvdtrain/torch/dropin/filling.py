"""Moving gradients from `.grad` into flat buckets, and their sums over ranks back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import torch

from hvdtrain.core.dropin import accumulator
from hvdtrain.core.errors import TrainingError
from hvdtrain.torch.buckets import GradBucket
from hvdtrain.torch.dropin.agreement import facts
from hvdtrain.torch.dropin.showing import Shown

# A use counts in the lower half of an int32, one with a sparse gradient in both.
SPARSE = 1 << 16


class Filling:
    """Fills buckets from the `.grad` of a user's parameters, and follows what the user makes of it.

    Attributes:
        parameters: by name.
        buckets: in the order of their index.
        bucket_of: the bucket of each parameter, by its name.
    """

    def __init__(self) -> None:
        """Start without parameters."""
        self.parameters: dict[str, torch.nn.Parameter] = {}
        self.buckets: list[GradBucket] = []
        self.bucket_of: dict[str, GradBucket] = {}
        self._shown = Shown()
        # What `.grad` held before this window, and where it was a tensor outside its bucket.
        self._carried: dict[str, torch.Tensor] = {}
        self._theirs: set[str] = set()
        self._sparse: set[str] = set()
        # Those whose gradient the bucket alone has.
        self._hidden: set[str] = set()

    def add(self, parameters: Mapping[str, torch.nn.Parameter], buckets: Sequence[GradBucket]) -> None:
        """Take in parameters.

        Args:
            parameters: by name, in the order of the forward pass.
            buckets: of these parameters.
        """
        self.parameters |= parameters
        for bucket in buckets:
            self.buckets.append(bucket)
            self.bucket_of |= dict.fromkeys(bucket.views, bucket)
            self._shown.add(bucket)

    def start_window(self) -> None:
        """Forget the last window's gradients."""
        for bucket in self.buckets:
            bucket.start_window()
            if self._shown.is_held(bucket, self.parameters):
                bucket.renew()
                self._shown.add(bucket)
        for forgotten in (self._carried, self._theirs, self._sparse, self._hidden):
            forgotten.clear()

    def make_way(self, name: str) -> None:
        """Take what `.grad` holds out of PyTorch's way: a gradient is about to be accumulated."""
        bucket = self.bucket_of[name]
        if name in bucket.unfilled:
            self._keep(name)
        else:
            self._heed(bucket, name)
        self.parameters[name].grad = None

    def take(self, name: str, scale: float, closing: bool) -> None:
        """Move what `.grad` holds into the bucket, and have `.grad` show what has added up there.

        Args:
            name: the parameter's.
            scale: a factor of the gradient.
            closing: whether the window ends with this micro-batch.
        """
        bucket, parameter = self.bucket_of[name], self.parameters[name]
        gradient = parameter.grad.detach()
        if gradient.is_sparse:
            self._sparse.add(name)
            gradient = gradient.to_dense()
        bucket.fill(name, gradient, scale)
        if closing and bucket.views[name].dtype != parameter.dtype:
            # Whole in a moment.
            self._hidden.add(name)
            parameter.grad = None
        else:
            parameter.grad = self._shown.of(bucket, name, parameter.dtype)

    def check_converted(self, name: str) -> None:
        """Refuse a parameter that a conversion has made another one.

        Raises:
            TrainingError: it does not fit its bucket any more, or what was in `.grad` was converted as well.
        """
        parameter, place = self.parameters[name], self.bucket_of[name].views[name]
        (fact,) = facts({name: parameter})
        now = accumulator(fact), parameter.device, parameter.shape
        if now != (str(place.dtype).removeprefix("torch."), place.device, place.shape):
            raise TrainingError(
                f"parameter {name!r} was converted after it was wrapped, and is {fact.dtype} of shape "
                f"{list(fact.shape)} on {parameter.device} now: convert and move the model first, then make "
                "its optimizer and call DistributedOptimizer"
            )
        if self._shown.is_ours(name, parameter.grad):
            raise TrainingError(
                f"parameter {name!r} was converted after it was wrapped, and its gradient has been added to "
                "what the conversion made of the last one: call zero_grad() after you convert a model"
            )

    def complete(self, bucket: GradBucket) -> None:
        """Read `.grad` once more before a bucket is reduced."""
        for name in bucket.views:
            if name not in bucket.unfilled:
                self._heed(bucket, name)
        for name in bucket.unfilled:
            self._keep(name)

    @property
    def discarded(self) -> bool:
        """Whether the user has taken away, or set to zero, all that earlier micro-batches left in `.grad`."""
        for bucket in self.buckets:
            for name in bucket.views.keys() - bucket.unfilled:
                held = self.parameters[name].grad
                if held is not None and (self._shown.is_untouched(bucket, name, held) or held.any()):
                    return False
        return True

    @property
    def hand_made(self) -> bool:
        """Whether the user has put anything into `.grad` since versions were noted."""
        held = [(self.bucket_of[name], name, p.grad) for name, p in self.parameters.items()]
        return any(g is not None and not self._shown.is_untouched(b, n, g) for b, n, g in held)

    def note_versions(self) -> None:
        """From now on, whatever is written to the tensors in `.grad` is written by the user."""
        self._shown.note_versions(self.buckets)

    def uses(self) -> list[int]:
        """Of each parameter, whether this rank's window has a gradient of it, and whether a sparse one."""
        used = Counter([*self.parameters])
        for bucket in self.buckets:
            used.subtract(bucket.unfilled)
        return [used[name] * (1 + SPARSE * (name in self._sparse)) for name in self.parameters]

    @torch.no_grad()
    def put(self, uses: Sequence[int], reduced: Collection[int], earlier: float, now: float) -> None:
        """Put what was reduced into `.grad`, added to what was there.

        Args:
            uses: what `uses` gives, summed over ranks.
            reduced: indices of the buckets that were.
            earlier: factor of what was there.
            now: factor of what was reduced.
        """
        used = dict(zip(self.parameters, uses, strict=True))
        for bucket in self.buckets:
            self._shown.mend(bucket)
            factor = now if bucket.layout.index in reduced else earlier
            if factor != 1.0:
                bucket.flat.mul_(factor)
            for name in bucket.views:
                parameter, carried = self.parameters[name], self._carried.get(name)
                if carried is not None and earlier != 1.0:
                    carried.mul_(earlier)
                if used[name]:
                    parameter.grad = self._whole(bucket, name, used[name] >= SPARSE)
                # Used by no rank: `.grad` stays what it was, and optimizers skip None.
                elif carried is not None and parameter.grad is self._shown.view(name):
                    bucket.views[name].copy_(carried)
        self._carried.clear()
        self._theirs.clear()

    def _whole(self, bucket: GradBucket, name: str, sparse: bool) -> torch.Tensor:
        gradient = self._shown.of(bucket, name, self.parameters[name].dtype)
        carried = self._carried.get(name)
        if carried is not None:
            if name in self._theirs and not (sparse or carried.is_sparse):
                # As PyTorch, which adds in place.
                gradient = carried.add_(gradient)
            else:
                gradient += carried.to_dense() if carried.is_sparse else carried
        return self._shown.note(name, gradient.to_sparse(1) if sparse else gradient)

    def _heed(self, bucket: GradBucket, name: str) -> None:
        """Follow what the user has made of `.grad` since the last micro-batch."""
        held = self.parameters[name].grad
        if held is None:
            if name not in self._hidden:
                bucket.unfilled.add(name)
                self._carried.pop(name, None)
                self._theirs.discard(name)
        elif not self._shown.is_current(name, held):
            bucket.views[name].copy_(held.to_dense() if held.is_sparse else held)

    def _keep(self, name: str) -> None:
        held = self.parameters[name].grad
        if held is None:
            return
        if held is self._shown.view(name):
            self._carried[name] = held.clone()
        else:
            self._carried[name] = held
            self._theirs.add(name)
