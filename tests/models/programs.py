"""Programs of users, each of which trains twice in one process: `programs.py NAME FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

import hvdtrain
from hvdtrain.core.errors import SpecError

IDS = np.random.default_rng(0).integers(0, 20, (32, 5))
SPEC: dict[str, Any] = {
    "batch": {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2},
    "checkpointing": {"save_steps": 2},
    "max_steps": 4,
}


def used_before(folder: str) -> None:
    """TensorFlow has its threads already; layers have no names; the second run goes on from the first."""
    import keras
    import tensorflow as tf
    from keras import layers

    tf.constant(1.0) + 1.0
    layers.Dense(3)

    def build() -> keras.Model:
        return keras.Sequential([layers.Embedding(20, 4), layers.Flatten(), layers.Dense(3), layers.Dense(3)])

    data = {"ids": IDS, "labels": IDS[:, 0] % 3}
    losses = [
        hvdtrain.train(
            SPEC,
            "tensorflow",
            model=build,
            train_dataset=data,
            output_dir=f"{folder}/{run}",
            resume_from_checkpoint=checkpoint,
        ).loss
        for run, checkpoint in (("first", None), ("second", f"{folder}/first/checkpoint-2"))
    ]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-6)


def sparse(folder: str) -> None:
    """An embedding with sparse gradients trains as one with dense gradients."""
    import torch
    from torch import nn

    def build(sparse: bool) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Embedding(20, 4, sparse=sparse), nn.Flatten(), nn.Linear(20, 3))

    data = [(row, int(row[0] % 3)) for row in IDS]
    losses = [
        hvdtrain.train(
            {**SPEC, "model": {"args": {"sparse": kind}}},
            "torch",
            model=build,
            train_dataset=data,
            output_dir=f"{folder}/{kind}",
        ).loss
        for kind in (True, False)
    ]
    assert losses[0] == losses[1]


def bad_metric(folder: str) -> None:
    """A metric that raises is found by the first batch of the evaluation, and no update is taken before."""
    from torch import nn

    def typo(outputs: Any, batch: Any) -> Any:
        return batch["label"]

    data = [(row, int(row[0] % 3)) for row in IDS]
    try:
        hvdtrain.train(
            SPEC,
            "torch",
            model=lambda: nn.Sequential(nn.Embedding(20, 4), nn.Flatten(), nn.Linear(20, 3)),
            train_dataset=data,
            eval_dataset=data,
            metrics=[typo],
            output_dir=folder,
        )
    except SpecError as error:
        assert "task.metrics" in str(error)
        assert "KeyError: 'label'" in str(error)
    assert not (Path(folder) / "metrics.jsonl").exists()


if __name__ == "__main__":
    programs = {"used_before": used_before, "sparse": sparse, "bad_metric": bad_metric}
    programs[sys.argv[1]](sys.argv[2])
