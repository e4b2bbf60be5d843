"""Calls of the user's own code, whose errors name the file and line they come from."""

from __future__ import annotations

import inspect
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hvdtrain.core.errors import DataError, HvdtrainError
from hvdtrain.core.spec.reference import resolve

_OURS = f"{Path(__file__).resolve().parents[1]}/"
_LIBRARIES = tuple(f"{sysconfig.get_path(name)}/" for name in ("stdlib", "platstdlib", "purelib", "platlib"))


@contextmanager
def user_code(what: str, called: Any = None, kind: type[HvdtrainError] = DataError) -> Iterator[None]:
    """Turn an exception into one message: what was done, the exception, the user's file and line.

    Args:
        what: the field, and what was done with it, such as `data.dataset[3]`.
        called: the user's function or object; its own place is named where the exception has none, as when
            arguments do not fit.
        kind: of the error.

    Raises:
        HvdtrainError: of `kind`; errors for the user pass as they are.
    """
    try:
        yield
    except HvdtrainError:
        raise
    except (Exception, SystemExit) as error:
        place = _place(error, called)
        message = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise kind(f"{what}: {message}" + (f" ({place})" if place else "")) from error


def load_user(reference: Any, field: str, kind: type[HvdtrainError] = DataError) -> Any:
    """As `resolve`; an exception of the user's module becomes an error as by `user_code`."""
    if not isinstance(reference, str):
        return reference
    with user_code(f"{field}: importing {reference!r}", kind=kind):
        return resolve(reference, field)


def _place(error: BaseException, called: Any) -> str | None:
    """The innermost line of the user's own code, or of whatever code there is."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((_OURS, "<frozen"))
    ]
    own = [frame for frame in frames if not frame.filename.startswith(_LIBRARIES)]
    if own or frames:
        frame = (own or frames)[-1]
        return f"{frame.filename}:{frame.lineno}, in {frame.name}"
    try:
        source, (_, line) = inspect.getsourcefile(called), inspect.getsourcelines(called)
    except (TypeError, OSError):
        return None
    return f"{source}:{line}"
