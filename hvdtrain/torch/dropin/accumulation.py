"""The micro-batches of a window: when they are complete, and what their sum is divided by."""

from __future__ import annotations

import horovod.torch as hvd
import torch

from hvdtrain.core.dropin import Settings
from hvdtrain.core.errors import TrainingError
from hvdtrain.torch.driver import Driver
from hvdtrain.torch.dropin.session import waiting_for_ranks


class Accumulation:
    """Counts the micro-batches of a window, and says what their gradients are multiplied with.

    Attributes:
        settings: the wrapper's arguments.
        samples: of the next micro-batch, when `average` is by them.
        micro_batches: how many the window has.
        own_samples: this rank's in the window.
        weight: what windows of the same update that have been reduced count for.
        scale: what the last micro-batch's gradients are multiplied with.
        closing: whether that micro-batch completes the window.
    """

    def __init__(self, settings: Settings, driver: Driver) -> None:
        """No micro-batch has been seen.

        Args:
            settings: the wrapper's arguments.
            driver: sums samples over ranks.
        """
        self.settings, self._driver = settings, driver
        self.samples: float | None = None
        self.micro_batches, self.own_samples = 0, 0.0
        self.weight, self.scale, self.closing = 0.0, 1.0, False
        self._divisor_handle: int | None = None
        self._closing_scale: float | None = None
        self._total_samples = 0.0

    def start_window(self) -> None:
        """Forget the last window's micro-batches."""
        # What a failed backward has left behind must not meet this window's under the same name.
        if self._divisor_handle is not None and self._closing_scale is None:
            hvd.synchronize(self._divisor_handle)
        self.micro_batches, self.own_samples, self._divisor_handle = 0, 0.0, None

    def check(self) -> None:
        """Refuse a micro-batch whose samples are not known.

        Raises:
            TrainingError: saying how to set them.
        """
        if self.settings.by_samples and self.samples is None:
            raise TrainingError(
                "average='samples': set optimizer.batch_samples to the number of samples of this micro-batch "
                "before each backward()"
            )

    def add(self) -> None:
        """Count a micro-batch."""
        self.micro_batches += 1
        self.scale = self.settings.scale(self._driver.ops.ranks, self.samples)
        self.own_samples += self.samples or 0.0
        self.samples = None
        self.closing = self.micro_batches == self.settings.gradient_accumulation_steps
        if self.closing:
            self.close()

    def close(self) -> None:
        """Ask the other ranks, where necessary, what the window is divided by: no micro-batch follows."""
        if not self.settings.by_samples:
            self._closing_scale = self.settings.closing_scale(self.micro_batches)
        elif self._divisor_handle is None:
            self._samples = torch.tensor([self.own_samples], dtype=torch.float64)
            self._divisor_handle = self._driver.sum_async(self._samples, "samples")
            self._closing_scale = None

    def closing_scale(self) -> float:
        """What each bucket of the window is multiplied with before it is reduced."""
        if self._closing_scale is None:
            with waiting_for_ranks("the number of samples of this update"):
                self._total_samples = float(hvd.synchronize(self._divisor_handle))
            self._closing_scale = self.settings.closing_scale(
                self.micro_batches, self.own_samples, self._total_samples
            )
        return self._closing_scale

    def end(self, micro_batches: int) -> tuple[float, float]:
        """The window has been reduced.

        Args:
            micro_batches: of all ranks.

        Returns:
            Factors of the gradients of the update's windows before, and of this window's.
        """
        if self.settings.by_samples:
            # A rank that has reduced no bucket has not waited for them yet.
            self.closing_scale()
        weight = self._total_samples if self.settings.by_samples else micro_batches
        shares = self.settings.shares(self.weight, weight)
        self.weight += weight
        self.micro_batches, self.closing = 0, False
        return shares

    def mean(self, loss: torch.Tensor) -> torch.Tensor:
        """A loss of the last window as one process would have it, by the wrapper's `average`."""
        own = torch.tensor([1.0, 1.0], dtype=torch.float64)
        if self.settings.by_samples:
            own *= self.own_samples
        own[0] *= loss.detach().double().cpu()
        with waiting_for_ranks("loss"):
            total = hvd.synchronize(self._driver.sum_async(own, "loss"))
        mean = total[0] if self.settings.average == "sum" else total[0] / total[1]
        return mean.to(loss)
