"""The PyTorch adapter: the mirror image of `hvdtrain.tensorflow`.

For a loop of your own, `import hvdtrain.torch as hvd` in place of `import horovod.torch as hvd`: every name
of Horovod's is here, and those of `hvdtrain.torch.dropin` are ours. Nothing is imported until a name is used.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from hvdtrain.engine.cache import require_fit

_OURS = {
    "init": "session",
    "metric_average": "session",
    "DistributedOptimizer": "optimizer",
    "broadcast_parameters": "state",
    "broadcast_optimizer_state": "state",
    "DistributedSampler": "sampler",
}


def __getattr__(name: str) -> Any:
    # Tools that look a module over, and imports of submodules, must not import a framework by it.
    if name.startswith("_") or find_spec(f"{__name__}.{name}"):
        raise AttributeError(name)
    # A Horovod for another PyTorch would crash when it is imported.
    require_fit("torch")
    home = f"hvdtrain.torch.dropin.{_OURS[name]}" if name in _OURS else "horovod.torch"
    try:
        found = getattr(import_module(home), name)
    except AttributeError:
        raise AttributeError(f"neither hvdtrain.torch nor horovod.torch has a {name!r}") from None
    return globals().setdefault(name, found)


def __dir__() -> list[str]:
    return sorted({*globals(), *_OURS, *dir(import_module("horovod.torch"))})
