"""What policies have in common that exchange weights now and then instead of gradients at every update."""

from __future__ import annotations

from typing import ClassVar, Literal

from hvdtrain.core.compression.protocol import Array, Ops, Policy, Reduction, State
from hvdtrain.core.spec.sections import Count
from hvdtrain.core.update.buckets import Bucket


class Local(Policy):
    """Leaves a bucket on its rank: nothing is asked of the others."""

    elementwise: ClassVar[bool] = True
    local: ClassVar[bool] = True
    type: Literal["local"] = "local"

    def reduce(self, ops: Ops, bucket: Bucket, flat: Array, state: State, update: Array) -> Reduction:
        """The bucket as it is."""
        yield from ()
        return flat, state

    def wire_bytes(self, bucket: Bucket, itemsize: int, ranks: int) -> int:
        """Nothing."""
        return 0


class Periodic(Policy):
    """Accumulates over updates instead of gradients: every rank applies its own, then weights are exchanged.

    `at` gives what is done with gradients. `reduce` is given buckets of *weights*, after every update whose
    number `sync_every` divides and after the last one, and returns what all ranks go on with.
    `hvdtrain.core.run.local_updates` says what a local update means.
    """

    elementwise: ClassVar[bool] = True
    whole: ClassVar[bool] = True
    sync_every: Count

    @property
    def period(self) -> int:
        """Updates from one exchange to the next."""
        return self.sync_every

    @property
    def background(self) -> tuple[Policy, Policy] | None:
        """What stands for an exchange after which nobody looks at the weights; None where nothing does.

        The first is given the weights, and sends nothing. Then the second sends while the next updates run;
        it changes state alone, which nothing else reads before it is done.
        """
        return None

    def at(self, update: int) -> Policy:
        """Gradients stay on their rank."""
        return Local()

    def opening(self) -> Policy:
        """What is done with buckets of weights before the first local update, also of a run that goes on.

        They are alike on all ranks then: those of the last exchange, or of the start.
        """
        return Local()

    def wire_bytes(self, bucket: Bucket, itemsize: int, ranks: int) -> int:
        """Every weight once, at an exchange."""
        return bucket.size * itemsize
