"""worker.py, on ranks that think that each is on a host of its own, and whose runs keep their snapshots."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hvdtrain.core.process.environment import launched_rank
from hvdtrain.core.run import snapshots
from hvdtrain.core.run.snapshots import SnapshotOptions, Snapshots
from tests.jobs import worker
from tests.jobs.runs import start_sooner

if __name__ == "__main__":
    start_sooner()
    host, train_spec = SimpleNamespace(gethostname=lambda: f"host{launched_rank()}"), worker.train_spec

    def train(framework: Any, ranks: Any, spec: Any, place: Path, *rest: Any, **more: Any) -> Any:
        return train_spec(
            framework, ranks, spec, place, *rest, **more, snapshots=SnapshotOptions(place.name, 4)
        )

    with_changes: list[tuple[Any, str, Any]] = [
        (snapshots, "socket", host),
        (Snapshots, "delete", lambda self: self.writer.wait()),
        (worker, "train_spec", train),
    ]
    for owner, name, value in with_changes:
        setattr(owner, name, value)
    try:
        worker.main()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
