"""The TensorFlow adapter: the mirror image of `hvdtrain.torch`.

For a training loop of your own, `import hvdtrain.tensorflow as hvd` has the names of `horovod.tensorflow`;
`hvdtrain.keras` has those for Keras.
"""

import importlib
import importlib.util
import os
from typing import Any

# Both are read once, when TensorFlow and Keras are first imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

_OURS = {
    "DistributedGradientTape": "hvdtrain.tensorflow.dropin.tape",
    "broadcast_variables": "hvdtrain.tensorflow.dropin.messages",
    "init": "hvdtrain.tensorflow.dropin.session",
}


def __getattr__(name: str) -> Any:
    # Late, so that importing the package imports no TensorFlow.
    if name.startswith("_") or importlib.util.find_spec(f"{__name__}.{name}"):
        raise AttributeError(name)
    if name == "DistributedOptimizer":
        raise AttributeError(
            "hvdtrain.tensorflow has no DistributedOptimizer: use hvdtrain.keras', of Keras 3"
        )
    return getattr(importlib.import_module(_OURS.get(name, "horovod.tensorflow")), name)
