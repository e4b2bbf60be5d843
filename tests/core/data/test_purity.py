"""The data pipeline needs no framework."""

from __future__ import annotations

import subprocess
import sys


def test_no_framework_is_imported_by_making_batches() -> None:
    program = """
import sys, tempfile
from hvdtrain.core.update.accumulation import Accumulation
from hvdtrain.core.data import Prefetcher, prepare, train_windows
from hvdtrain.core.tasks.masked_lm import DataSpec, TaskSpec
from hvdtrain.core.tasks.masked_lm import MaskedSplit
data = prepare(DataSpec(corpus="python-docs", cache_dir=tempfile.mkdtemp()), 500, 0)
samples = MaskedSplit(data.train, data, TaskSpec(), 0)
windows = train_windows(samples, seed=0, accumulation=Accumulation(1, 4, ((0, 2),)), rank=0)
with Prefetcher(windows, 2) as prefetcher:
    assert next(prefetcher).samples_global == 8
print(sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "tensorflow", "keras", "horovod"}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
