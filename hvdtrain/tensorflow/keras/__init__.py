"""`import hvdtrain.tensorflow.keras as hvd` in place of `import horovod.tensorflow.keras as hvd`.

Every name is that of `hvdtrain.keras`; nothing is imported until a name is used.
"""

from typing import Any

from hvdtrain.core.lazy import LazyNames

_NAMES = LazyNames(__name__, {}, "hvdtrain.keras", lambda: None, modules=("callbacks", "elastic"))


def __getattr__(name: str) -> Any:
    return _NAMES.find(name)


def __dir__() -> list[str]:
    return _NAMES.listed()
