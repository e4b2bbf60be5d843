"""All ranks start from one rank's variables."""

from __future__ import annotations

from typing import Any

import keras

from hvdtrain.keras.callbacks.base import Callback
from hvdtrain.tensorflow.dropin.messages import check_root


class BroadcastGlobalVariables(Callback):
    """Gives every rank one rank's model and optimizer variables before the first step of `fit`.

    A model that is built by its first step is built for that beforehand. Random generators of layers such as
    dropout stay each rank's own.
    """

    def __init__(self, root_rank: int = 0, device: str = "", local_variables: Any = None) -> None:
        """Choose whose variables.

        Args:
            root_rank: the rank.
            device: accepted as Horovod's; it changes nothing.
            local_variables: a variable or several that stay each rank's own; those of
                `PartialDistributedOptimizer`'s local layers do so by themselves.
        """
        super().__init__()
        del device
        given = [] if local_variables is None else local_variables
        self.root_rank, self.local_variables = (
            root_rank,
            given if isinstance(given, list | tuple) else [given],
        )

    def set_model(self, model: keras.Model) -> None:
        """Say who sends, before any callback begins."""
        super().set_model(model)
        check_root("BroadcastGlobalVariables", self.root_rank)
        self.attached.root_rank = self.root_rank
        self.attached.local_variables = self.local_variables
