"""Distributed training in Keras 3's `compile` and `fit`, on the TensorFlow backend.

`import hvdtrain.keras as hvd` in place of `import horovod.keras as hvd`; what is not of Keras is as in
`horovod.tensorflow`. Nothing is imported until a name is used.
"""

from importlib import import_module
from importlib.util import find_spec
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
        "allgather": "hvdtrain.keras.values",
        "allreduce": "hvdtrain.keras.values",
        "broadcast": "hvdtrain.keras.values",
        "broadcast_variables": "hvdtrain.tensorflow.dropin.messages",
        "join": "hvdtrain.tensorflow.dropin.joining",
        "metric_average": "hvdtrain.tensorflow.dropin.session",
        "init": "hvdtrain.tensorflow.dropin.session",
        "load_model": "hvdtrain.keras.optimizer",
    },
    "horovod.tensorflow",
    _check,
)


def __getattr__(name: str) -> Any:
    # `hvd.callbacks`, without an import of its own.
    if not name.startswith("_") and find_spec(f"{__name__}.{name}"):
        _check()
        return import_module(f"{__name__}.{name}")
    return _NAMES.find(name)


def __dir__() -> list[str]:
    return sorted({"callbacks", *_NAMES.listed()})
