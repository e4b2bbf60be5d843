"""The datasets that a spec names: objects of the user's, or what the user's functions return."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import Field

from hvdtrain.core.data.values import kind_of
from hvdtrain.core.errors import DataError
from hvdtrain.core.spec.reference import Reference
from hvdtrain.core.spec.sections import DataSection
from hvdtrain.core.user_code import load_user, user_code

_SPLITS = {"train", "validation", "test"}


class OwnDataSpec(DataSection):
    """The user's datasets.

    Attributes:
        dataset: to train on, or a function or class that is called with `args` and returns it.
        eval_dataset: to evaluate on, likewise.
        args: keyword arguments of both.
        validation_split: share of the training samples that is evaluated on instead.
        collate_fn: makes a list of samples a batch; None: samples of equal shapes are stacked.
        dataloader_num_workers: processes that draw samples; 0: the process that trains does.
    """

    dataset: Reference | None = None
    eval_dataset: Reference | None = None
    args: dict[str, Any] = Field(default={})
    validation_split: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    collate_fn: Reference | None = None
    dataloader_num_workers: Annotated[int, Field(ge=0)] = 0

    @property
    def why_empty(self) -> str:
        """As `DataSection.why_empty`."""
        return (
            "their labels are all task.ignore_index, or the weights that task.loss returns are 0; look at "
            "data.dataset"
        )


def find_datasets(data: OwnDataSpec, announce: Callable[[str], None]) -> tuple[Any, Any | None, str]:
    """Import and call what a data section names.

    Args:
        data: `dataset` is a dataset, or a function or class that is called with `args` and returns one, or a
            pair (training, evaluation), or a mapping with `train` and, where there is one, `validation`.
        announce: called with a line for the user.

    Returns:
        The dataset to train on, the one to evaluate on or None, and what to call the latter in an error.

    Raises:
        DataError: nothing is named, the user's code fails, or two datasets to evaluate on are given.
        SpecError: a path cannot be imported.
    """
    if data.dataset is None:
        raise DataError(
            "data.dataset: required, but not given; name a dataset, or a function that returns one, as "
            "'package.module:name'"
        )
    first, takes_args = _made(data.dataset, "data.dataset", data.args)
    train, evaluation, place = _pair(first, announce)
    if data.eval_dataset is not None:
        if evaluation is not None:
            raise DataError(
                f"data.eval_dataset: {place} is a dataset to evaluate on as well; give one of them"
            )
        place = "data.eval_dataset"
        evaluation, also_takes_args = _made(data.eval_dataset, place, data.args)
        takes_args |= also_takes_args
    if data.args and not takes_args:
        raise DataError(f"data.args: data.dataset is {kind_of(first)}, which is not called and takes none")
    if evaluation is not None and data.validation_split:
        raise DataError(
            f"data.validation_split {data.validation_split}: {place} is a dataset to evaluate on; set "
            "validation_split: 0"
        )
    return train, evaluation, place


def _made(reference: Any, field: str, args: Mapping[str, Any]) -> tuple[Any, bool]:
    """A dataset, and whether a function made it."""
    found = load_user(reference, field)
    if not isinstance(found, type) and (not callable(found) or hasattr(found, "__getitem__")):
        return found, False
    name = getattr(found, "__name__", type(found).__name__)
    call = f"{name}({', '.join(f'{each}={value!r}' for each, value in args.items())})"
    with user_code(f"{field}: {call}", found):
        made = found(**args)
    if made is None:
        raise DataError(f"{field}: {call} returned None; expected a dataset")
    return made, True


def _pair(found: Any, announce: Callable[[str], None]) -> tuple[Any, Any | None, str]:
    field = "data.dataset"
    if isinstance(found, Mapping) and "train" in found and found.keys() <= _SPLITS:
        if "test" in found:
            announce(f"{field}: 'test' is not used; give it as data.eval_dataset to evaluate on it")
        return found["train"], found.get("validation"), f"{field}['validation']"
    if isinstance(found, tuple) and len(found) == 2:
        if all(hasattr(each, "dtype") for each in found):
            raise DataError(
                f"{field} is a pair of arrays; expected a pair (training, evaluation) of datasets, or one "
                "dataset as {'x': x, 'labels': y}"
            )
        return found[0], found[1], f"{field}[1]"
    return found, None, field
