"""Compression policies, each written once and driven by both frameworks and by a simulator."""

from __future__ import annotations

import functools
import operator
from typing import TYPE_CHECKING, Annotated

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
from hvdtrain.core.sections import BY_FORM, LIST, ONE

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

if TYPE_CHECKING:
    Compression = Policy | tuple[Policy, ...]
else:
    _One = Annotated[functools.reduce(operator.or_, POLICIES), Field(discriminator="type")]
    Compression = Annotated[Annotated[_One, ONE] | Annotated[tuple[_One, ...], LIST], BY_FORM]
