"""Distributed training in Keras 3's `compile` and `fit`, on the TensorFlow backend.

`import hvdtrain.keras as hvd` in place of `import horovod.keras as hvd`; what is not of Keras is as in
`horovod.tensorflow`. Nothing is imported until a name is used.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import hvdtrain.tensorflow  # noqa: F401 (sets what TensorFlow and Keras read when they are first imported)
from hvdtrain.core.errors import TrainingError
from hvdtrain.engine.cache import require_fit

_OURS = {
    "DistributedOptimizer": "hvdtrain.keras.optimizer",
    "allgather": "hvdtrain.keras.values",
    "allreduce": "hvdtrain.keras.values",
    "broadcast": "hvdtrain.keras.values",
    "broadcast_variables": "hvdtrain.tensorflow.dropin.messages",
    "init": "hvdtrain.tensorflow.dropin.session",
    "load_model": "hvdtrain.keras.optimizer",
}


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(name)
    # A Horovod for another TensorFlow would crash when it is imported.
    require_fit("tensorflow")
    _require_tensorflow()
    if find_spec(f"{__name__}.{name}"):
        return import_module(f"{__name__}.{name}")
    try:
        found = getattr(import_module(_OURS.get(name, "horovod.tensorflow")), name)
    except AttributeError:
        raise AttributeError(f"neither hvdtrain.keras nor horovod.tensorflow has a {name!r}") from None
    return globals().setdefault(name, found)


def __dir__() -> list[str]:
    return sorted({*globals(), *_OURS, "callbacks", *dir(import_module("horovod.tensorflow"))})


def _require_tensorflow() -> None:
    found = import_module("keras").backend.backend()
    if found != "tensorflow":
        raise TrainingError(
            f"hvdtrain.keras needs Keras on TensorFlow (found {found}): set KERAS_BACKEND=tensorflow before "
            "keras is imported; for PyTorch there is hvdtrain.torch"
        )
