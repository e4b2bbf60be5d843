"""Distributed training in Keras 3's `compile` and `fit`, on the TensorFlow backend.

`import hvdtrain.keras as hvd` in place of `import horovod.keras as hvd`; what is not of Keras is as in
`hvdtrain.tensorflow`. Nothing is imported until a name is used.
"""

from importlib import import_module
from typing import Any

import hvdtrain.tensorflow  # noqa: F401 (sets what TensorFlow and Keras read when they are first imported)
from hvdtrain.core.errors import TrainingError
from hvdtrain.core.lazy import LazyNames
from hvdtrain.engine.cache import require_fit


def _check() -> None:
    # A Horovod for another TensorFlow would crash when it is imported.
    require_fit("tensorflow")
    found = import_module("keras").backend.backend()
    if found != "tensorflow":
        raise TrainingError(
            f"hvdtrain.keras needs Keras on TensorFlow (found {found}): set KERAS_BACKEND=tensorflow before "
            "keras is imported; for PyTorch there is hvdtrain.torch"
        )
    # Also where a program only calls `init` and trains a model that it has unpickled.
    import_module("hvdtrain.keras.telling")


_NAMES = LazyNames(
    __name__,
    {
        "DistributedOptimizer": "hvdtrain.keras.optimizer",
        "PartialDistributedOptimizer": "hvdtrain.keras.optimizer",
        "allgather": "hvdtrain.keras.values",
        "allreduce": "hvdtrain.keras.values",
        "broadcast": "hvdtrain.keras.values",
        "consolidate_optimizer_state": "hvdtrain.keras.optimizer",
        "load_model": "hvdtrain.keras.optimizer",
        "reducescatter": "hvdtrain.keras.values",
    },
    "hvdtrain.tensorflow",
    _check,
    modules=("callbacks", "elastic"),
)


def __getattr__(name: str) -> Any:
    return _NAMES.find(name)


def __dir__() -> list[str]:
    return _NAMES.listed()
