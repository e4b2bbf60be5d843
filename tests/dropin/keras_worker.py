"""keras_worker.py RESULTS MODULE...: runs every `check_*` of the modules on this rank, in one job.

Writes {check: "" or its traceback} to RESULTS.RANK, so that tests pay start-up once.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
import traceback
from pathlib import Path

import hvdtrain.keras as hvd
from tests.jobs.runs import start_sooner


def main(results: str, *modules: str) -> None:
    hvd.init()
    os.chdir(hvd.broadcast_object(tempfile.mkdtemp(dir=Path(results).parent)))
    found: dict[str, str] = {}
    for module in map(importlib.import_module, modules):
        for name, check in vars(module).items():
            if not name.startswith("check_"):
                continue
            try:
                check()
                found[name] = ""
            except Exception:
                found[name] = traceback.format_exc()[-4000:]
            Path(f"{results}.{hvd.rank()}").write_text(json.dumps(found))
    hvd.shutdown()


if __name__ == "__main__":
    start_sooner()
    main(*sys.argv[1:])
