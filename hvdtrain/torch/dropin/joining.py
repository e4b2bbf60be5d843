"""Ranks that have no more data."""

from __future__ import annotations

import gc
import json
from typing import Any

import horovod.torch as hvd

from hvdtrain.core.dropin import check_join, known_to_all
from hvdtrain.core.errors import SpecError
from hvdtrain.torch.dropin.optimizer import gradients_in_use
from hvdtrain.torch.dropin.session import require_init, waiting_for_ranks
from hvdtrain.torch.world import gather_bytes


def join(*arguments: Any, **options: Any) -> int:
    """Horovod's own: this rank has no more data, and takes part with zeros until all have said so.

    What compression knows, and the ranks that left early have missed, is brought up to date; the weights and
    the optimizer's state are for the program to broadcast.

    Args:
        *arguments: Horovod's.
        **options: Horovod's.

    Returns:
        The last rank that has joined.

    Raises:
        SpecError: an optimizer has a compression with which no rank can leave early.
    """
    require_init("join")
    try:
        _check()
    except SpecError:
        # Not for an optimizer that the program has done with.
        gc.collect()
        _check()
    found = gradients_in_use()
    with waiting_for_ranks("join"):
        last = int(hvd.join(*arguments, **options))
        # Garbage collection need not have seen the same on every rank.
        mine = [each.index for each in found if known_to_all(each.driver.states)]
        common = set(mine).intersection(*map(json.loads, gather_bytes(json.dumps(mine).encode(), "join")))
        for each in found:
            if each.index in common:
                each.catch_up(last)
    return last


def _check() -> None:
    for each in gradients_in_use():
        check_join("hvdtrain.torch.join()", each.settings, each.applied)
