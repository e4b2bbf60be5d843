"""A checkpoint that jobs of several numbers of ranks hand on, each with and without `zero_stage=1`."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import keras

import hvdtrain.keras as hvd
from hvdtrain.keras import callbacks
from tests.dropin import keras_cases as cases
from tests.dropin.keras_sharding import same

# All jobs', beside their results.
HANDED_ON = Path(sys.argv[1]).parent / "handed_on"


def check_a_checkpoint_of_other_ranks_and_another_stage() -> None:
    epochs, models = 1, []
    if HANDED_ON.exists():
        newest = HANDED_ON / (HANDED_ON / "latest").read_text().strip()
        epochs += json.loads((newest / "state.json").read_text())["epoch"]
        if hvd.rank() == 0:
            shutil.copytree(HANDED_ON, "stage0")
            shutil.copytree(HANDED_ON, "stage1")
    hvd.allgather_object(None)
    parts = cases.shares(cases.batches([4] * 2 * hvd.size(), seed=epochs))
    for stage in (0, 1):
        optimizer = hvd.DistributedOptimizer(keras.optimizers.Adam(0.05), zero_stage=stage)
        given = [callbacks.BroadcastGlobalVariables(0), callbacks.Checkpoint(f"stage{stage}")]
        models.append(cases.train(optimizer, parts, epochs=epochs, callbacks=given)[0])
        assert int(optimizer.iterations.numpy()) == 2 * epochs
    same(*models)
    if hvd.rank() == 0:
        shutil.copytree(f"stage{epochs % 2}", HANDED_ON, dirs_exist_ok=True)
    hvd.allgather_object(None)
