"""The names of `hvdtrain.keras.elastic`, where `horovod.tensorflow.keras.elastic` has them."""

from typing import Any

from hvdtrain.core.lazy import LazyNames

_NAMES = LazyNames(__name__, {}, "hvdtrain.keras.elastic", lambda: None)


def __getattr__(name: str) -> Any:
    return _NAMES.find(name)


def __dir__() -> list[str]:
    return _NAMES.listed()
