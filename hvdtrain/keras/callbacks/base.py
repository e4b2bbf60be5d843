"""What all callbacks have in common."""

from __future__ import annotations

from typing import Any

import keras

from hvdtrain.keras.attach import Attached, attach


class Callback(keras.callbacks.Callback):
    """Attaches itself to the model, so that ranks agree before the first step of `fit`."""

    attached: Attached

    def set_model(self, model: keras.Model) -> None:
        """Called by Keras for every callback before any `on_train_begin`."""
        super().set_model(model)
        self.attached = attach(model)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Every callback's comes here; the first does it."""
        del logs
        self.attached.start()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Likewise."""
        del logs
        self.attached.finish()
