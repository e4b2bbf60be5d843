"""What one rank does for all: progress on the screen, and the best model on disk."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Literal

import horovod.tensorflow as hvd
import keras

from hvdtrain.core.errors import CheckpointError, SpecError
from hvdtrain.core.process.environment import launched_rank
from hvdtrain.keras.attach import attach, shardings_of
from hvdtrain.keras.callbacks.base import Callback
from hvdtrain.keras.sharding import whole_state
from hvdtrain.tensorflow.dropin.messages import broadcast_bytes


class ProgressBar(keras.callbacks.ProgbarLogger):
    """Keras' progress on rank 0, and silence on the others: a bar on a terminal, else a line an epoch."""

    def set_params(self, params: dict[str, Any]) -> None:
        """Called by Keras; `verbose=0` of `fit` does not silence rank 0."""
        # A launcher gives ranks a pipe, or a terminal whose lines it prefixes: a bar would be torn to pieces.
        shown = 1 if sys.stdout.isatty() and launched_rank() is None else 2
        super().set_params(params | {"verbose": shown if hvd.rank() == 0 else 0})

    def set_model(self, model: keras.Model) -> None:
        """Called by Keras."""
        super().set_model(model)
        attach(model)


class BestModel(Callback):
    """Saves the whole model as a `.keras` file on rank 0 whenever a metric is better than ever.

    Put `MetricAverage` before it, so that the metric is that of all ranks.
    """

    def __init__(
        self,
        filepath: str | Path = "best.keras",
        monitor: str = "val_loss",
        verbose: int = 0,
        mode: Literal["auto", "min", "max"] = "auto",
        save_freq: str = "epoch",
    ) -> None:
        """Choose the metric.

        Args:
            filepath: of the file; it appears whole or not at all.
            monitor: name of the metric.
            verbose: whether rank 0 says that it saves.
            mode: whether less or more is better; `auto`: more where the name ends as accuracies and AUC do.
            save_freq: accepted as Horovod's; `epoch` alone.
        """
        super().__init__()
        if mode not in ("auto", "min", "max"):
            raise SpecError(f"BestModel: mode: expected auto, min or max (found {mode!r})")
        if save_freq != "epoch":
            raise SpecError(f"BestModel: save_freq: expected 'epoch' (found {save_freq!r})")
        if Path(filepath).suffix != ".keras":
            raise SpecError(
                f"BestModel: filepath: expected a name that ends in .keras (found {str(filepath)!r}); the "
                "metric's is monitor="
            )
        self.filepath, self.monitor, self.verbose = Path(filepath), monitor, verbose
        more = monitor.endswith(("acc", "accuracy", "auc", "AUC", "precision", "recall", "f1_score"))
        self._sign = 1.0 if mode == "max" or (mode == "auto" and more) else -1.0
        self.best: float | None = None

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Save, where this epoch was the best."""
        value = (logs or {}).get(self.monitor)
        if value is None:
            raise SpecError(
                f"BestModel: monitor: there is no metric {self.monitor!r} in this epoch; there are "
                f"{', '.join(sorted(logs or {}))}"
            )
        better = self.best is None or self._sign * value > self._sign * self.best
        shardings = shardings_of(self.model)
        if shardings:
            # Ranks collect the state together, and the metric may be each rank's own.
            better = broadcast_bytes(b"better" if better else b"-") == b"better"
        if not better:
            return
        self.best = float(value)
        with whole_state(shardings):
            if hvd.rank() == 0:
                _save(self.model, self.filepath)
                if self.verbose:
                    print(
                        f"\nEpoch {epoch + 1}: {self.monitor} {value:g} saved to {self.filepath}", flush=True
                    )


def _save(model: keras.Model, path: Path) -> None:
    fresh = path.with_name(f".{path.stem}.tmp-{os.getpid()}.keras")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        model.save(fresh)
        fresh.replace(path)
    except OSError as error:
        raise CheckpointError(f"{path}: the model could not be saved: {error}") from None
    finally:
        fresh.unlink(missing_ok=True)
