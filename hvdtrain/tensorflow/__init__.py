"""The TensorFlow adapter: the mirror image of `hvdtrain.torch`.

For a loop of your own, `import hvdtrain.tensorflow as hvd` in place of `import horovod.tensorflow as hvd`:
every name of Horovod's is here, and those of `hvdtrain.tensorflow.dropin` are ours. `hvdtrain.keras` is for
Keras. Nothing is imported until a name is used.
"""

import os
from typing import Any

from hvdtrain.core.lazy import LazyNames
from hvdtrain.engine.cache import require_fit

# Both are read once, when TensorFlow and Keras are first imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

_NO_SESSIONS = (
    "it needs a session of TensorFlow 1, which Keras 3 has not: use broadcast_variables(model.variables, "
    "root_rank=0), or hvdtrain.keras.callbacks.BroadcastGlobalVariables(root_rank=0) in fit"
)
_NAMES = LazyNames(
    __name__,
    {
        "init": "hvdtrain.tensorflow.dropin.session",
        "DistributedGradientTape": "hvdtrain.tensorflow.dropin.tape",
        "DistributedOptimizer": "hvdtrain.keras",
        "PartialDistributedGradientTape": "hvdtrain.tensorflow.dropin.tape",
        "SyncBatchNormalization": "hvdtrain.tensorflow.dropin.sync_batch_norm",
        "broadcast_variables": "hvdtrain.tensorflow.dropin.messages",
        "dataset": "hvdtrain.tensorflow.dropin.loader",
        "join": "hvdtrain.tensorflow.dropin.joining",
        "metric_average": "hvdtrain.tensorflow.dropin.session",
    },
    "horovod.tensorflow",
    # A Horovod for another TensorFlow would crash when it is imported.
    lambda: require_fit("tensorflow"),
    modules=("elastic", "keras"),
    gone={
        "BroadcastGlobalVariablesHook": _NO_SESSIONS,
        "LocalGradientAggregationHelper": "use DistributedOptimizer(..., gradient_accumulation_steps=k)",
        "broadcast_global_variables": _NO_SESSIONS,
        "broadcast_object_fn": "it needs a session of TensorFlow 1: use broadcast_object",
    },
)


def __getattr__(name: str) -> Any:
    return _NAMES.find(name)


def __dir__() -> list[str]:
    return _NAMES.listed()
