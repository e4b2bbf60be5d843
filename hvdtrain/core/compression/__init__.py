"""Compression policies, each written once and driven by both frameworks and by a simulator."""

from __future__ import annotations

import functools
import operator
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from hvdtrain.core.compression.adasum import Adasum
from hvdtrain.core.compression.bf16 import Bf16
from hvdtrain.core.compression.diloco import DiLoCo
from hvdtrain.core.compression.fp16 import Fp16
from hvdtrain.core.compression.int8 import Int8
from hvdtrain.core.compression.local_sgd import LocalSGD
from hvdtrain.core.compression.none import NoCompression
from hvdtrain.core.compression.powersgd import PowerSGD
from hvdtrain.core.compression.protocol import Policy
from hvdtrain.core.compression.randomk import RandomK
from hvdtrain.core.compression.sign import Sign
from hvdtrain.core.compression.topk import TopK
from hvdtrain.core.registry import Registry
from hvdtrain.core.spec.sections import BY_FORM, LIST, ONE

# The registry: a policy named here works everywhere.
POLICIES: tuple[type[Policy], ...] = (
    NoCompression,
    Fp16,
    Bf16,
    Int8,
    Sign,
    TopK,
    RandomK,
    PowerSGD,
    Adasum,
    LocalSGD,
    DiLoCo,
)

# What others install, and dotted paths.
OTHERS = Registry(
    "compression.type", "hvdtrain.compression", {p.model_fields["type"].default: "" for p in POLICIES}
)


def field_type(policies: tuple[type[Policy], ...]) -> Any:
    """The type of a field that is one of these policies, or a list of them."""
    one: Any = Annotated[functools.reduce(operator.or_, policies), Field(discriminator="type")]
    many: Any = tuple.__class_getitem__((one, ...))
    return Annotated[Annotated[one, ONE] | Annotated[many, LIST], BY_FORM]


if TYPE_CHECKING:
    Compression = Policy | tuple[Policy, ...]
else:
    Compression = field_type(POLICIES)
