"""The arguments that every wrapper takes, and what they make of a window of micro-batches."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator

from hvdtrain.core.compression import Compression, NoCompression
from hvdtrain.core.compression.periodic import Periodic
from hvdtrain.core.compression.rules import Rules
from hvdtrain.core.errors import SpecError
from hvdtrain.core.spec.problems import problems
from hvdtrain.core.spec.sections import Count, Section


class Settings(Section):
    """What a wrapper was asked for. A window is the micro-batches that one update is made of.

    A window that is incomplete when an epoch ends is not lost, nor scaled for what it does not have. Where
    the loop says when an update is due, as by PyTorch's `step()`, it is applied then, divided by the
    micro-batches that it has. Where it does not, as in Keras' `fit`, the next epoch completes it.

    Attributes:
        compression: as in a job spec: one policy, or a list of them with `match`.
        gradient_accumulation_steps: k, micro-batches a window.
        max_grad_norm: the update's gradients are scaled to at most this global L2 norm; None: never.
        average: what a micro-batch's gradient, of a loss that the user has computed, is divided by.
            `mean`: n ranks · k, so each rank counts the same, and in it each micro-batch.
            `ranks`: n alone; micro-batches add up (Horovod's `backward_passes_per_step`).
            `samples`: it is multiplied by its samples, and divided by the window's over all ranks: a mean
            over samples, however they are spread.
            `sum`: nothing.
        bucket_cap_mb: largest flat bucket in MiB.
        zero_stage: 1: each rank keeps the optimizer's state of the parameters that it owns: see `Owners`.
    """

    compression: Compression = NoCompression()
    gradient_accumulation_steps: Count = 1
    max_grad_norm: Annotated[float, Field(gt=0.0)] | None = None
    average: Literal["mean", "ranks", "samples", "sum"] = "mean"
    bucket_cap_mb: Annotated[float, Field(gt=0.0)] = 25.0
    zero_stage: int = 0

    @field_validator("compression")
    @classmethod
    def _fits_a_loop_of_the_users(cls, found: Compression) -> Compression:
        policies = Rules.of_spec(found).policies
        if not policies:
            raise ValueError("an empty list; give its entries, or 'none'")
        for policy in policies:
            if isinstance(policy, Periodic):
                raise ValueError(
                    f"{policy.type} exchanges weights between updates, which only a loop that knows it can: "
                    "train a job spec by `hvdtrain run`, or choose a type that sends gradients"
                )
        return found

    @field_validator("zero_stage")
    @classmethod
    def _is_a_stage_for_a_loop_of_the_users(cls, found: int) -> int:
        if found in (2, 3):
            raise ValueError(
                f"expected 0 or 1 (found {found}): a loop of your own has whole gradients and weights; to "
                f"divide those, train a job spec by `hvdtrain run --set zero_stage={found}`"
            )
        if found not in (0, 1):
            raise ValueError(f"expected 0 or 1 (found {found})")
        return found

    @property
    def rules(self) -> Rules:
        """Which compression policy sums which weights."""
        return Rules.of_spec(self.compression)

    @property
    def by_samples(self) -> bool:
        """Whether it must be known how many samples each micro-batch has."""
        return self.average == "samples"

    def scale(self, ranks: int, samples: float | None = None) -> float:
        """What a micro-batch's gradient is multiplied with when it is added to its window.

        Args:
            ranks: how many take part.
            samples: of this micro-batch, when `by_samples`.
        """
        if self.average == "samples":
            assert samples is not None
            return samples
        if self.average == "sum":
            return 1.0
        # Adasum combines the ranks' own means: there the divisor is the rank's own.
        divisor = self.rules.divisor(1.0, float(ranks))
        return 1.0 / (divisor * (self.gradient_accumulation_steps if self.average == "mean" else 1))

    def closing_scale(self, micro_batches: int, own: float = 1.0, total: float = 1.0) -> float:
        """What a rank's window is multiplied with when it ends, before it is reduced by sum.

        Args:
            micro_batches: that this rank's window has, at most `gradient_accumulation_steps`.
            own: samples of this rank's window, when `by_samples`.
            total: their sum over ranks.
        """
        if self.average == "samples":
            divisor = self.rules.divisor(own, total)
            return 1.0 / divisor if divisor else 0.0
        if self.average == "mean" and micro_batches:
            return self.gradient_accumulation_steps / micro_batches
        return 1.0

    def shares(self, earlier: float, now: float) -> tuple[float, float]:
        """How windows of one update are put together: it has had more micro-batches than one.

        Where the mean of k micro-batches was asked for, k > 1, an update is the mean of all there have been
        since the last one. Otherwise backwards add up, as in PyTorch.

        Args:
            earlier: what the windows before count for: micro-batches over all ranks, or samples when
                `by_samples`; 0 when there are none.
            now: the same of the window that has just been reduced.

        Returns:
            Factors of the gradients before, and of the window's.
        """
        adds_up = self.average in ("sum", "ranks") or self.gradient_accumulation_steps == 1
        if adds_up or not earlier or not now:
            return 1.0, 1.0
        return earlier / (earlier + now), now / (earlier + now)

    def check_momentum(self, momentum: float) -> None:
        """Refuse momentum that would be taken twice.

        Args:
            momentum: the optimizer's own.

        Raises:
            SpecError: compression takes momentum before it selects.
        """
        if momentum and self.rules.correct_momentum:
            raise SpecError(
                f"the optimizer's momentum is {momentum}: compression takes momentum before it selects, and "
                "it would be taken twice; set the optimizer's or the compression's to 0"
            )


def make_settings(wrapper: str, **arguments: Any) -> Settings:
    """Check a wrapper's arguments.

    Args:
        wrapper: how the user calls it, for errors.
        **arguments: fields of `Settings`; `compression` may also be a type's name alone.

    Returns:
        The frozen settings.

    Raises:
        SpecError: naming every bad argument, its value and what was expected.
    """
    if isinstance(arguments.get("compression"), str):
        arguments["compression"] = {"type": arguments["compression"]}
    try:
        # Through JSON, as a job spec: the same values are accepted, the same refused.
        return Settings.model_validate_json(json.dumps(arguments, default=_plain), strict=True)
    except ValidationError as error:
        lines = "\n".join(f"  {line}" for line in problems(error, Settings))
        raise SpecError(f"{wrapper}:\n{lines}") from None


def _plain(value: Any) -> Any:
    """NumPy's numbers as Python's; anything else as text, which the error then shows."""
    return value.item() if hasattr(value, "item") else repr(value)
