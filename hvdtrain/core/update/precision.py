"""Mixed precision: what computes in 16 bits, and the loss scale as a state machine that both frameworks obey.

Micikevicius et al. 2018 (arXiv:1710.03740): weights, moments and sums stay in float32, matrix products are
taken in 16 bits, and in float16 the loss is scaled so that small gradients are not rounded to zero. A scale
is a power of two: taking it out again where a gradient enters its float32 bucket is exact, so all that comes
after (residuals, wire, norm, clipping) only ever sees true gradients, whatever the scale was.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hvdtrain.core.spec.job_spec import JobSpec
from hvdtrain.core.spec.sections import LARGEST_LOSS_SCALE, PRODUCT_DTYPES, LossScaleSpec

# Instructions that multiply matrices of that type; any of them will do.
_CPU_FLAGS = {"fp16": {"avx512_fp16", "amx_fp16"}, "bf16": {"avx512_bf16", "amx_bf16"}}
_SLOWER = {
    "fp16": "float16 is many times slower than float32 in PyTorch, and slower in TensorFlow: try bf16",
    "bf16": "bfloat16 is slower than float32",
}


def compute_dtype(spec: JobSpec) -> str:
    """The dtype of matrix products, by NumPy's name; all else has `model.dtype`."""
    return PRODUCT_DTYPES.get(spec.mixed_precision, spec.model.dtype)


def compute_itemsize(spec: JobSpec) -> int:
    """Bytes of one element of `compute_dtype`."""
    return 2 if spec.mixed_precision in PRODUCT_DTYPES else np.dtype(spec.model.dtype).itemsize


def cpu_notes(spec: JobSpec, flags: Collection[str]) -> tuple[str, ...]:
    """What a user should know whose CPU is slow in the 16-bit type that was chosen.

    Args:
        spec: the job.
        flags: the CPU's, as Linux names those of x86; none: the CPU is not known, and nothing is said.
    """
    needed = _CPU_FLAGS.get(spec.mixed_precision)
    if not flags or needed is None or not needed.isdisjoint(flags):
        return ()
    chosen, lacking = spec.mixed_precision, " nor ".join(sorted(needed))
    return (
        f"mixed_precision: {chosen}: this CPU has neither {lacking}, and without them {_SLOWER[chosen]}; "
        "on a GPU this does not matter",
    )


@dataclass(frozen=True)
class LossScale:
    """What a window's loss is multiplied with before backward; constant while a window accumulates.

    Attributes:
        value: a power of two.
        good_updates: applied ones since the value last changed.
        rule: how the value changes; None: never.
    """

    value: float = 1.0
    good_updates: int = 0
    rule: LossScaleSpec | None = None

    @classmethod
    def of_spec(cls, spec: JobSpec) -> LossScale:
        """That of a run's first update: 1 unless float16 computes."""
        if spec.mixed_precision != "fp16":
            return cls()
        fixed = spec.loss_scale.fixed
        return cls(spec.loss_scale.initial, rule=spec.loss_scale) if fixed is None else cls(fixed)

    @property
    def can_fall(self) -> bool:
        """Whether an update that is not finite leaves a scale to go on with."""
        return self.rule is None or self.value * self.rule.backoff_factor >= self.rule.minimum

    def after(self, finite: bool) -> LossScale:
        """That of the next update.

        Args:
            finite: whether this one's gradients were, on all ranks; so every rank comes to the same scale.
        """
        if self.rule is None:
            return self
        if not finite:
            return replace(self, value=self.value * self.rule.backoff_factor, good_updates=0)
        if self.good_updates + 1 < self.rule.growth_interval:
            return replace(self, good_updates=self.good_updates + 1)
        grown = min(self.value * self.rule.growth_factor, LARGEST_LOSS_SCALE)
        return replace(self, value=grown, good_updates=0)

    def agreed(self, values: Sequence[float], good_updates: Sequence[float]) -> LossScale:
        """What all ranks go on with after updates of their own: the least of all scales and counts."""
        return replace(self, value=float(min(values)), good_updates=int(min(good_updates)))

    def saved(self) -> LossScale:
        """What a checkpoint holds of it: its numbers, and 0 for a scale that never changes."""
        return LossScale(self.value if self.rule else 0.0, self.good_updates)

    def restored(self, value: float, good_updates: int) -> LossScale:
        """This with what a checkpoint holds; 0, of a run whose scale never changed, changes nothing."""
        return replace(self, value=value, good_updates=good_updates) if self.rule and value else self
