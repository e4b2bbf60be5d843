"""Where a run stands: the numbers that every update replaces, and that a checkpoint keeps."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hvdtrain.core.data.batches import Window
from hvdtrain.core.update.precision import LossScale


@dataclass(frozen=True)
class RunState:
    """Where a run stands on this rank; each update gives the next one.

    All but `own_samples` are the same on every rank, apart from `applied` and `loss_scale` in local
    updates.

    Attributes:
        step: updates that count. The next update is number `step + 1`.
        applied: updates that this rank's optimizer has applied. In local updates a step also counts where a
            rank skips its own.
        windows: updates tried, the skipped ones included.
        samples_consumed: samples used up, over all ranks.
        skipped_updates: updates that were not applied, whatever the reason. Local updates that were not
            finite are counted once for each rank that skipped its own.
        empty_updates: the part of `skipped_updates` in which no rank had anything to predict.
        loss_scale: of the next update.
        own_samples: samples that this rank has trained on since the run was started or resumed.
        stopping: whether ranks have agreed to stop here, because some of them were told to.
        saving: whether they save here, although no number of steps says so.
    """

    step: int = 0
    applied: int = 0
    windows: int = 0
    samples_consumed: int = 0
    skipped_updates: int = 0
    empty_updates: int = 0
    loss_scale: LossScale = field(default_factory=LossScale)
    own_samples: int = 0
    stopping: bool = False
    saving: bool = False

    def after_joint(
        self, window: Window, applied: bool, empty: bool, stopping: bool = False, saving: bool = False
    ) -> RunState:
        """The state after an update that all ranks took together.

        Args:
            window: this rank's micro-batches of the update.
            applied: whether the update was applied. One that was not uses its samples up and is no step.
            empty: whether no rank had anything to predict; then the loss scale stays as it is.
            stopping: whether some rank was told to stop.
            saving: whether ranks are to save.
        """
        tried = replace(self._after_trying(window), stopping=stopping, saving=saving)
        if applied:
            number = self.step + 1
            return replace(tried, step=number, applied=number, loss_scale=self.loss_scale.after(True))
        return replace(
            tried,
            skipped_updates=self.skipped_updates + 1,
            empty_updates=self.empty_updates + empty,
            loss_scale=self.loss_scale if empty else self.loss_scale.after(False),
        )

    def after_local(self, window: Window, applied: bool, empty: bool) -> RunState:
        """The state after an update that this rank took alone; skipped ones are counted at the exchange.

        Args:
            window: this rank's micro-batches of the update.
            applied: whether this rank applied the update. It is a step in either case.
            empty: whether this rank had nothing to predict; then the loss scale stays as it is.
        """
        return replace(
            self._after_trying(window),
            step=self.step + 1,
            applied=self.applied + applied,
            loss_scale=self.loss_scale if empty else self.loss_scale.after(applied),
        )

    def after_exchange(
        self, loss_scale: LossScale, skipped: int, empty: int, stopping: bool = False, saving: bool = False
    ) -> RunState:
        """The state after ranks have told each other about their local updates.

        Args:
            loss_scale: what they go on with.
            skipped: updates that some rank skipped since the last exchange; one that all ranks skipped
                because it was empty counts once.
            empty: the part of `skipped` that was empty.
            stopping: whether some rank was told to stop.
            saving: whether ranks are to save.
        """
        return replace(
            self,
            loss_scale=loss_scale,
            skipped_updates=self.skipped_updates + skipped,
            empty_updates=self.empty_updates + empty,
            stopping=stopping,
            saving=saving,
        )

    def _after_trying(self, window: Window) -> RunState:
        return replace(
            self,
            windows=self.windows + 1,
            samples_consumed=window.samples_consumed,
            own_samples=self.own_samples + window.own_samples,
        )
