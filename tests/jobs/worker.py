"""worker.py FRAMEWORK SCENARIOS.json: trains several specs in one launch, so that tests pay start-up once.

A scenario is {"name", "set": [overrides], "resume": a checkpoint, if any, "allow": [fields that it may find
changed], "spec": BERT's by default}; rank 0 leaves each run in a folder of its name beside the file. With
HOROVOD_TIMELINE=DYNAMIC it leaves Horovod's timeline there too, NAME.json.

In the place of the file, a folder is where `standing` gives its ranks one file after another.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import traceback
from pathlib import Path

from hvdtrain.core.run.framework import Framework
from hvdtrain.core.run.job import train_spec
from hvdtrain.core.spec.job_spec import load_spec
from tests.jobs.runs import start_sooner
from tests.jobs.standing import listings


def main() -> None:
    place = Path(sys.argv[2])
    framework = importlib.import_module(f"hvdtrain.{sys.argv[1]}.job").load()
    for listing in listings(place, int(os.environ["OMPI_COMM_WORLD_RANK"])) if place.is_dir() else [place]:
        train(framework, listing)
        gc.collect()
    framework.shutdown()


def train(framework: Framework, scenarios: Path) -> None:
    hvd = importlib.import_module(f"horovod.{framework.name}")
    timelines, ranks = os.environ.get("HOROVOD_TIMELINE") == "DYNAMIC", None
    for scenario in json.loads(scenarios.read_text()):
        spec = load_spec(scenario.get("spec", "bert"), scenario["set"])
        ranks = ranks or framework.init(spec)
        resume = Path(scenario["resume"]) if scenario.get("resume") else None
        if timelines:
            hvd.start_timeline(str(scenarios.parent / f"{scenario['name']}.json"))
        place, allowed = scenarios.parent / scenario["name"], scenario.get("allow", ())
        train_spec(framework, ranks, spec, place, resume, allow_changes=allowed)
        if timelines:
            hvd.stop_timeline()


if __name__ == "__main__":
    # Mixup draws its shares by SciPy.
    start_sooner(("scipy",))
    try:
        main()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
