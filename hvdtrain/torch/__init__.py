"""The PyTorch adapter: the mirror image of `hvdtrain.tensorflow`.

For a loop of your own, `import hvdtrain.torch as hvd` in place of `import horovod.torch as hvd`: every name
of Horovod's is here, and those of `hvdtrain.torch.dropin` are ours. Nothing is imported until a name is used.
"""

from typing import Any

from hvdtrain.core.lazy import LazyNames
from hvdtrain.engine.cache import require_fit

_NAMES = LazyNames(
    __name__,
    {
        "init": "hvdtrain.torch.dropin.session",
        "join": "hvdtrain.torch.dropin.joining",
        "metric_average": "hvdtrain.torch.dropin.session",
        "DistributedOptimizer": "hvdtrain.torch.dropin.optimizer",
        "broadcast_parameters": "hvdtrain.torch.dropin.state",
        "broadcast_optimizer_state": "hvdtrain.torch.dropin.state",
        "Checkpoint": "hvdtrain.torch.dropin.checkpoint",
        "DataLoader": "hvdtrain.torch.dropin.loader",
        "DistributedSampler": "hvdtrain.torch.dropin.sampler",
        "SyncBatchNorm": "hvdtrain.torch.dropin.sync_batch_norm",
    },
    "horovod.torch",
    # A Horovod for another PyTorch would crash when it is imported.
    lambda: require_fit("torch"),
    modules=("elastic",),
)


def __getattr__(name: str) -> Any:
    return _NAMES.find(name)


def __dir__() -> list[str]:
    return _NAMES.listed()
