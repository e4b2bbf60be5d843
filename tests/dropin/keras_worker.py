"""keras_worker.py DIRECTORY GROUP: runs a group of checks on this rank, so that start-up is paid once.

What each check said is left in DIRECTORY/GROUP.RANK.json: "" where it passed.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from pathlib import Path

import hvdtrain.keras as hvd


def main(directory: Path, group: str) -> None:
    hvd.init()
    os.chdir(directory)
    module = importlib.import_module(f"tests.dropin.keras_{group}")
    said: dict[str, str] = {}
    for name, check in vars(module).items():
        if not name.startswith("check_"):
            continue
        try:
            check()
            said[name] = ""
        except Exception:
            said[name] = traceback.format_exc()[-3000:]
        (directory / f"{group}.{hvd.rank()}.json").write_text(json.dumps(said))
    hvd.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
