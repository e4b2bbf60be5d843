"""Several policies in one job: each for those weights whose names it matches."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace

from hvdtrain.core.compression.none import NoCompression
from hvdtrain.core.compression.numpy_ops import Ops
from hvdtrain.core.compression.protocol import Policy
from hvdtrain.core.compression.rows import SparseRows
from hvdtrain.core.errors import SpecError
from hvdtrain.core.families.weights import Weight
from hvdtrain.core.patterns import check_matches, first_match
from hvdtrain.core.update.buckets import Bucket
from hvdtrain.core.update.gathers import plan_gathers
from hvdtrain.core.update.shards import Shard


@dataclass(frozen=True)
class Rules:
    """Which policy sums which weights; a weight that no policy matches travels as it is.

    Attributes:
        policies: in the order of the spec; the first whose `match` fits a weight's name is the weight's.
        zero_stage: of the spec.
        product_dtype: the 16-bit dtype of matrix products, by NumPy's name; None: that of the weights.
    """

    policies: tuple[Policy, ...]
    zero_stage: int = 0
    product_dtype: str | None = None

    @classmethod
    def of_spec(
        cls,
        compression: Policy | Sequence[Policy],
        zero_stage: int = 0,
        product_dtype: str | None = None,
    ) -> Rules:
        """The rules of a spec's `compression`, which is one policy or a list of them."""
        policies = (compression,) if isinstance(compression, Policy) else tuple(compression)
        return cls(policies, zero_stage, product_dtype)

    @property
    def sharded(self) -> bool:
        """Whether each rank is given its shard of a sum, and sends its shard of the weights."""
        return self.zero_stage >= 1

    @property
    def shards_gradients(self) -> bool:
        """Whether ranks hold their shards of the gradients alone: each micro-batch's are summed at once."""
        return self.zero_stage >= 2

    @property
    def shards_weights(self) -> bool:
        """Whether ranks hold their shards of the weights alone, and gather a bucket where it is used."""
        return self.zero_stage >= 3

    def at(self, update: int) -> Rules:
        """The rules in force at an update, counted from 1."""
        # `at` may answer with another policy, such as none: who matches what stays as it is.
        found = (p.at(update).model_copy(update={"match": p.match}) for p in self.policies)
        return replace(self, policies=tuple(found))

    def stages(self) -> list[tuple[int, Rules]]:
        """(first update, the rules in force from there on), ascending; the last are these themselves.

        For one graph that serves all updates; not for a policy that is never in force as it is, as `local`.
        """
        found: list[tuple[int, Rules]] = []
        update = 1
        while not found or found[-1][1] != self:
            now = self.at(update)
            if not found or now != found[-1][1]:
                found.append((update, now))
            update += 1
        return found

    @property
    def local(self) -> bool:
        """Whether ranks take updates of their own now; see `Policy.local`."""
        return self.policies[0].local

    @property
    def period(self) -> int:
        """Updates from one exchange between ranks to the next."""
        return self.policies[0].period

    def divisor(self, own: float, total: float) -> float:
        """What a rank's summed gradients are divided by; see `Policy.divisor`."""
        return self.policies[0].divisor(own, total)

    def group(self, name: str) -> int:
        """The number of a weight's policy: weights of one group may share a bucket."""
        return first_match([policy.match for policy in self.policies], name)

    def apart(self, weight: Weight) -> Hashable:
        """What a weight has in common with those that it may share a bucket with."""
        return self.group(weight.name), self.sharded and bool(self.product_dtype) and weight.product

    def gathered_as(self, bucket: Bucket) -> str | None:
        """The dtype in which ranks send each other a bucket's weights; None: that of the weights."""
        return self.product_dtype if all(weight.product for weight in bucket.weights) else None

    def policy(self, bucket: Bucket) -> Policy:
        """The policy of a bucket, all of whose weights are of one group."""
        found = (*self.policies, NoCompression())[self.group(bucket.weights[0].name)]
        sparse = bucket.touched_rows is not None and isinstance(found, NoCompression)
        return SparseRows(match=found.match) if sparse else found

    def wire_bytes(self, buckets: Sequence[Bucket], itemsize: int, ranks: int, micro_batches: int = 1) -> int:
        """Bytes that one rank hands to collectives for one update of all buckets; see `Policy.wire_bytes`.

        Args:
            buckets: the layout of the gradients.
            itemsize: bytes of one gradient element before compression.
            ranks: how many take part.
            micro_batches: of an update, on each rank.
        """
        if not self.sharded:
            return sum(self.policy(b).wire_bytes(b, itemsize, ranks) for b in buckets)
        gradients = sum(self.policy(b).scatter_bytes(b, itemsize, ranks) for b in buckets)
        weights = {b.index: self.gather_bytes(b, itemsize, ranks) for b in buckets}
        if not self.shards_weights:
            return sum(weights.values()) + gradients * (micro_batches if self.shards_gradients else 1)
        return (sum(weights[index] for index in plan_gathers(buckets).buckets) + gradients) * micro_batches

    def gather_bytes(self, bucket: Bucket, itemsize: int, ranks: int) -> int:
        """Bytes of weights that one rank hands to a collective that gathers a bucket."""
        return self.policy(bucket).shard_size(bucket, ranks) * (2 if self.gathered_as(bucket) else itemsize)

    def shard(self, bucket: Bucket, ranks: int, rank: int) -> Shard:
        """What a rank owns of a bucket: all of it, unless these are sharded."""
        if not self.sharded:
            return Shard.whole(bucket)
        return Shard(bucket, ranks, rank, self.policy(bucket).shard_size(bucket, ranks))

    @property
    def correct_momentum(self) -> bool:
        """Whether any policy takes the optimizer's momentum upon itself."""
        return any(policy.corrects_momentum for policy in self.policies)

    def state_bytes(self, buckets: Iterable[Bucket], dtype: str, ranks: int) -> int:
        """Bytes that a rank keeps from update to update: residuals, and the like."""
        ops = Ops(ranks, rank=0, seed=0)
        states = (self.policy(b).init(ops, b, dtype) for b in buckets)
        return sum(array.nbytes for state in states for array in state.values())

    def not_yet(self, update: int) -> tuple[str, ...]:
        """Says of each policy that is not in force at an update, counted from 1, that it is not."""
        now = self.at(update).policies
        return tuple(
            f"{self._field(index, 'type')}: {policy.type} would start after the last update, {update}"
            for index, (policy, found) in enumerate(zip(self.policies, now, strict=True))
            if found.type != policy.type and not found.local
        )

    def check(self, names: Sequence[str]) -> None:
        """Refuse a policy that no weight would travel by, or that cannot stand beside others.

        Args:
            names: of all the model's weights.

        Raises:
            SpecError: naming the policy or the pattern, and a weight that looks like it.
        """
        for index, policy in enumerate(self.policies):
            if self.sharded and not policy.shards:
                raise SpecError(
                    f"{self._field(index, 'type')}: {policy.type} needs the whole sum of gradients on every "
                    "rank, which ranks do not have with zero_stage: choose none, fp16, bf16 or int8, or "
                    "zero_stage: 0"
                )
            if policy.whole and (len(self.policies) > 1 or policy.match != "*"):
                raise SpecError(
                    f"compression: {policy.type} is for all weights of a job or for none: give it alone and "
                    "without match, or choose another type"
                )
        patterns = [policy.match for policy in self.policies]
        check_matches(patterns, names, lambda index: self._field(index, "match"))

    def check_wire(self, carried: Collection[str]) -> None:
        """Refuse, before anything starts, a policy whose numbers Horovod cannot send.

        Args:
            carried: dtypes that the wire has beyond those of Horovod's releases, by NumPy's names.

        Raises:
            SpecError: naming the policy and what it sends.
        """
        for index, policy in enumerate(self.policies):
            for lacking in sorted(policy.wire_types - set(carried)):
                raise SpecError(
                    f"{self._field(index, 'type')}: {policy.type} sends {lacking}, which the installed "
                    "Horovod cannot; build one that can by `hvdtrain engine build --install`, or use fp16, "
                    "which every Horovod can send in as few bytes"
                )

    def check_ranks(self, ranks: int, mpi: bool = True) -> None:
        """Refuse ranks that a policy cannot serve; see `Policy.check`."""
        for policy in self.policies:
            policy.check(ranks, mpi)

    def _field(self, index: int, name: str) -> str:
        return f"compression.{index}.{name}" if len(self.policies) > 1 else f"compression.{name}"
