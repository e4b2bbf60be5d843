"""All ranks start from one rank's variables."""

from __future__ import annotations

import keras

from hvdtrain.keras.callbacks.base import Callback
from hvdtrain.tensorflow.dropin.messages import check_root


class BroadcastGlobalVariables(Callback):
    """Gives every rank one rank's model and optimizer variables before the first step of `fit`.

    A model that is built by its first step is built for that beforehand. Random generators of layers such as
    dropout stay each rank's own.
    """

    def __init__(self, root_rank: int = 0, device: str = "") -> None:
        """Choose whose variables.

        Args:
            root_rank: the rank.
            device: accepted as Horovod's; it changes nothing.
        """
        super().__init__()
        del device
        self.root_rank = root_rank

    def set_model(self, model: keras.Model) -> None:
        """Say who sends, before any callback begins."""
        super().set_model(model)
        check_root("BroadcastGlobalVariables", self.root_rank)
        self.attached.root_rank = self.root_rank
