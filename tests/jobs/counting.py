"""counting.py FRAMEWORK DIRECTORY PRECISION...: trains by each, Horovod's timeline in PRECISION.json."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from pathlib import Path

from hvdtrain.core.job import train_spec
from hvdtrain.core.spec import load_spec
from tests.jobs.runs import TINY


def main(name: str, directory: Path, precisions: list[str]) -> None:
    os.environ["HOROVOD_TIMELINE"] = "DYNAMIC"
    framework = importlib.import_module(f"hvdtrain.{name}.job")._load()
    hvd = importlib.import_module(f"horovod.{name}")
    world = None
    for precision in precisions:
        spec = load_spec(
            "bert",
            [
                *TINY,
                f"mixed_precision={precision}",
                "max_steps=6",
                "data.validation_split=0.0",
                "communication.bucket_cap_mb=0.05",
            ],
        )
        world = world or framework.init(spec)
        hvd.start_timeline(str(directory / f"{precision}.json"))
        train_spec(framework, world, spec, directory / precision)
        hvd.stop_timeline()
    framework.shutdown()


if __name__ == "__main__":
    try:
        main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
