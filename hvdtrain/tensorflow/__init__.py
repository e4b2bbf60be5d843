"""The TensorFlow adapter: the mirror image of `hvdtrain.torch`.

For a loop of your own, `import hvdtrain.tensorflow as hvd` in place of `import horovod.tensorflow as hvd`:
every name of Horovod's is here, and those of `hvdtrain.tensorflow.dropin` are ours. `hvdtrain.keras` is for
Keras. Nothing is imported until a name is used.
"""

import os
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from hvdtrain.engine.cache import require_fit

# Both are read once, when TensorFlow and Keras are first imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

_OURS = {
    "init": "session",
    "DistributedGradientTape": "tape",
    "broadcast_variables": "messages",
}


def __getattr__(name: str) -> Any:
    # Tools that look a module over, and imports of submodules, must not import a framework by it.
    if name.startswith("_") or find_spec(f"{__name__}.{name}"):
        raise AttributeError(name)
    if name == "DistributedOptimizer":
        raise AttributeError("hvdtrain.tensorflow has no DistributedOptimizer: use that of hvdtrain.keras")
    # A Horovod for another TensorFlow would crash when it is imported.
    require_fit("tensorflow")
    home = f"hvdtrain.tensorflow.dropin.{_OURS[name]}" if name in _OURS else "horovod.tensorflow"
    try:
        found = getattr(import_module(home), name)
    except AttributeError:
        raise AttributeError(f"neither hvdtrain.tensorflow nor horovod.tensorflow has a {name!r}") from None
    return globals().setdefault(name, found)


def __dir__() -> list[str]:
    return sorted({*globals(), *_OURS, *dir(import_module("horovod.tensorflow"))})
