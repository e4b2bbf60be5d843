"""The values that Horovod's arguments have in this framework."""

from __future__ import annotations

import horovod.torch as hvd

from hvdtrain.core.dropin import Horovod

HOROVOD = Horovod(
    compressions={hvd.Compression.none: "none", hvd.Compression.fp16: "fp16"},
    operations={"Average": hvd.Average, "Sum": hvd.Sum, "Adasum": hvd.Adasum},
    everyone=hvd.global_process_set,
)
