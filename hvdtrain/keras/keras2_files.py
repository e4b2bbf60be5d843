"""Files under the names that Keras 2 gave them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
from keras.src.legacy.saving import legacy_h5_format

from hvdtrain.core.errors import CheckpointError

_Meet = Callable[[str], None]
_OLD = (".h5", ".hdf5")
_NEW = ".weights.h5"


def bridge(meet: _Meet) -> None:
    """Let weights be saved and loaded under any name.

    Args:
        meet: told of each habit that a program has.
    """
    model, checkpoint = keras.Model, keras.callbacks.ModelCheckpoint
    model.save = _save(model.save, meet)
    model.save_weights = _save_weights(model.save_weights, meet)
    model.load_weights = _load_weights(model.load_weights)
    checkpoint.__init__ = _checkpoint(checkpoint.__init__)
    legacy_h5_format.load_model_from_hdf5 = _load_model(legacy_h5_format.load_model_from_hdf5)


def restore_optimizer(model: keras.Model, filepath: str | Path) -> None:
    """Give a model from an HDF5 file the optimizer state of that file.

    Keras 3 builds the optimizer for the variables of the model itself, and a model of layers has none: it
    would start without momentum, and refuse to train.

    Args:
        model: loaded by Keras, from any file.
        filepath: of that file; nothing is done where it is no HDF5 file with an optimizer.

    Raises:
        CheckpointError: the file's optimizer state does not fit the model.
    """
    path, optimizer = Path(filepath), model.optimizer
    if optimizer is None or not (path.is_file() and h5py.is_hdf5(path)):
        return
    with h5py.File(path, "r") as file:
        if "optimizer_weights" not in file:
            return
        values = [value[()] for value in legacy_h5_format.load_optimizer_weights_from_hdf5_group(file)]
    if len(values) == len(optimizer.variables):
        return
    # What a LossScaleOptimizer counts does not depend on the model.
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    inner.built = False
    inner.build(model.trainable_variables)
    if [value.shape for value in values] != [tuple(variable.shape) for variable in optimizer.variables]:
        raise CheckpointError(
            f"{path}: the optimizer's state does not fit {type(inner).__name__} for this model: load it by "
            "keras.models.load_model(path, compile=False), and compile it again"
        )
    for variable, value in zip(optimizer.variables, values, strict=True):
        variable.assign(value)


def _save(plain: Callable[..., None], meet: _Meet) -> Callable[..., None]:
    @functools.wraps(plain)
    def save(self: Any, filepath: Any, *arguments: Any, **keywords: Any) -> None:
        if str(filepath).endswith(_OLD):
            meet("checkpoint.h5")
        plain(self, filepath, *arguments, **keywords)

    return save


def _save_weights(plain: Callable[..., None], meet: _Meet) -> Callable[..., None]:
    @functools.wraps(plain)
    def save_weights(self: Any, filepath: Any, *arguments: Any, **keywords: Any) -> None:
        if str(filepath).endswith((_NEW, ".weights.json")):
            plain(self, filepath, *arguments, **keywords)
            return
        meet("save_weights('weights.h5')")
        keywords.pop("save_format", None)
        path = Path(filepath)
        fresh = path.with_name(f".{path.name}{_NEW}")
        plain(self, fresh, *arguments, **keywords)
        fresh.replace(path)

    return save_weights


def _load_weights(plain: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(plain)
    def load_weights(self: Any, filepath: Any, *arguments: Any, **keywords: Any) -> Any:
        path = Path(filepath)
        if str(filepath).endswith((_NEW, ".weights.json", ".keras")) or not _is_new(path):
            return plain(self, filepath, *arguments, **keywords)
        # Keras 3 knows its own files by their names alone.
        fresh = path.with_name(f".{path.name}-{id(self)}{_NEW}")
        fresh.symlink_to(path.resolve())
        try:
            return plain(self, fresh, *arguments, **keywords)
        finally:
            fresh.unlink()

    return load_weights


def _checkpoint(plain: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(plain)
    def initialize(self: Any, filepath: Any, *arguments: Any, **keywords: Any) -> None:
        weights_only = keywords.get("save_weights_only", arguments[3] if len(arguments) > 3 else False)
        ending = _NEW if weights_only else ".keras"
        known = (_NEW,) if weights_only else (".keras", *_OLD)
        if str(filepath).endswith(known):
            plain(self, filepath, *arguments, **keywords)
            return
        plain(self, f"{filepath}{ending}", *arguments, **keywords)
        if weights_only:
            self.filepath = str(filepath)

    return initialize


def _load_model(plain: Callable[..., keras.Model]) -> Callable[..., keras.Model]:
    @functools.wraps(plain)
    def load_model(filepath: Any, *arguments: Any, **keywords: Any) -> keras.Model:
        model = plain(filepath, *arguments, **keywords)
        if isinstance(filepath, str | Path):
            restore_optimizer(model, filepath)
        return model

    return load_model


def _is_new(path: Path) -> bool:
    """Whether a file is of Keras 3's `save_weights`; what Keras 2 wrote lists its layers."""
    if not (path.is_file() and h5py.is_hdf5(path)):
        return False
    with h5py.File(path, "r") as file:
        return "layer_names" not in file.attrs and "model_weights" not in file
