"""The wrappers' arguments, and Horovod's spelling of them."""

from __future__ import annotations

from typing import Any

import horovod.tensorflow as hvd

from hvdtrain.core.dropin import Settings, make_settings
from hvdtrain.core.errors import SpecError

# Buckets replace groups, sparse gradients are made dense, Horovod finds the device; where a mean is divided
# does not change it.
_WITHOUT_MEANING = {
    "device_dense",
    "device_sparse",
    "sparse_as_dense",
    "num_groups",
    "groups",
    "gradient_predivide_factor",
    "scale_local_gradients",
}
_COMPRESSION = {hvd.Compression.none: "none", hvd.Compression.fp16: "fp16"}


def settings_of(wrapper: str, horovods: dict[str, Any], **ours: Any) -> Settings:
    """A wrapper's arguments, in Horovod's spelling as well.

    Args:
        wrapper: how the user calls it, for errors.
        horovods: arguments that have Horovod's names alone.
        **ours: the others; `compression` may be one of `Compression`.

    Returns:
        The settings.

    Raises:
        SpecError: an argument is unknown, or asks for what is not done here.
    """
    found = dict(ours)
    if isinstance(found["compression"], type):
        if found["compression"] not in _COMPRESSION:
            raise SpecError(
                f"{wrapper}: compression {found['compression'].__name__}: expected Compression.none, "
                "Compression.fp16, or a policy of docs/compression.md such as 'int8'"
            )
        found["compression"] = _COMPRESSION[found["compression"]]
    rest = {name: value for name, value in horovods.items() if name not in _WITHOUT_MEANING}
    passes, averaged = (
        rest.pop("backward_passes_per_step", None),
        rest.pop("average_aggregated_gradients", False),
    )
    if passes is not None:
        if found["gradient_accumulation_steps"] != 1:
            raise SpecError(
                f"{wrapper}: backward_passes_per_step {passes} and gradient_accumulation_steps "
                f"{found['gradient_accumulation_steps']} mean the same: give one of them"
            )
        found["gradient_accumulation_steps"] = passes
        # Horovod adds micro-batches up unless told otherwise.
        if found["average"] == "mean" and not averaged:
            found["average"] = "ranks"
    op = rest.pop("op", hvd.Average)
    if op not in (hvd.Average, hvd.Sum, hvd.Adasum):
        raise SpecError(f"{wrapper}: op: expected Average, Sum or Adasum (found {op!r})")
    if op != hvd.Average and ours["average"] != "mean":
        raise SpecError(
            f"{wrapper}: op says how to divide, and so does average={ours['average']!r}: give one"
        )
    if op == hvd.Sum:
        found["average"] = "sum"
    if op == hvd.Adasum:
        if found["compression"] != "none":
            raise SpecError(f"{wrapper}: op=Adasum goes without compression, found {found['compression']!r}")
        found["compression"] = "adasum"
    if rest.pop("process_set", hvd.global_process_set) is not hvd.global_process_set:
        raise SpecError(f"{wrapper}: process_set: gradients are reduced over all ranks; leave it out")
    if rest:
        raise SpecError(f"{wrapper}: unknown argument {', '.join(sorted(rest))}")
    return make_settings(wrapper, **found)
