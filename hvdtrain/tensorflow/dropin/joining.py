"""Ranks that have no more data."""

from __future__ import annotations

import gc
import json
from typing import Any

import horovod.tensorflow as hvd
import tensorflow as tf

from hvdtrain.core.dropin import check_join, known_to_all
from hvdtrain.core.errors import SpecError
from hvdtrain.tensorflow.dropin.gradients import gradients_in_use
from hvdtrain.tensorflow.dropin.session import require_init, waiting_for_ranks
from hvdtrain.tensorflow.world import gather_bytes


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
        SpecError: an optimizer or a tape has a compression with which no rank can leave early, or this rank
            leaves before all have compared themselves.
    """
    require_init("join")
    # Not for a model that the program has done with.
    gc.collect()
    _check()
    found = gradients_in_use()
    # A function of its own: Horovod's operation says neither that it has effects nor that it depends on
    # anything, so TensorFlow keeps the answer of its first call, and a second would not wait for anybody.
    with waiting_for_ranks("join"):
        last = int(tf.function(lambda: hvd.join(*arguments, **options), autograph=False)())
        # Garbage collection need not have seen the same on every rank.
        mine = [each.prefix for each in found if known_to_all(each.driver.states)]
        common = set(mine).intersection(*map(json.loads, gather_bytes(json.dumps(mine).encode(), "join")))
        for each in found:
            if each.prefix in common:
                each.catch_up(last)
    return last


def _check() -> None:
    for each in gradients_in_use():
        check_join("hvdtrain.tensorflow.join()", each.settings, each.applied)
        if not each.over_all_ranks:
            raise SpecError(
                "hvdtrain.tensorflow.join(): process_set: Horovod joins all ranks or none: give every rank "
                "of the set equally many batches"
            )
        if each.windows < each.compared_windows:
            raise SpecError(
                "hvdtrain.tensorflow.join(): ranks compare their models in the first "
                f"{each.compared_windows} updates, and this one leaves after {each.windows}: give every rank "
                "so many batches"
            )
