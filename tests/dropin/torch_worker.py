"""torch_worker.py RESULTS MODULE...: runs every `check_*` of the modules on this rank, in one job.

Writes {check: null or its traceback} to RESULTS.RANK, so that tests pay start-up once.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from pathlib import Path

import torch

import hvdtrain.torch as hvd
from tests.jobs.runs import start_sooner


def main(results: str, *modules: str) -> None:
    hvd.init()
    torch.set_num_threads(1)
    found: dict[str, str | None] = {}
    for module in map(importlib.import_module, modules):
        for name, check in [*vars(module).items()]:
            if not name.startswith("check_"):
                continue
            try:
                check()
                found[name] = None
            except Exception:
                found[name] = traceback.format_exc()
            Path(f"{results}.{hvd.rank()}").write_text(json.dumps(found))
            failed = [bool(each) for each in hvd.allgather_object(found[name], name="failed")]
            # Ranks that have lost step would fail all that follows as well, and mislead.
            if any(failed) and not all(failed):
                os._exit(1)
    hvd.shutdown()


if __name__ == "__main__":
    start_sooner()
    main(*sys.argv[1:])
