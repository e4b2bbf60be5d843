"""my_job.py FRAMEWORK OUT GLOBAL_BATCH: a program of a user's, in the form of the guide.

On one process it trains twice, and goes on from a checkpoint, also with dropout; in between it makes a
mistake.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

from tests.jobs.runs import start_sooner

start_sooner()

import hvdtrain  # noqa: E402
from hvdtrain.core.errors import HvdtrainError  # noqa: E402
from hvdtrain.core.process.environment import launched_rank  # noqa: E402
from tests.own import data  # noqa: E402

FRAMEWORK, OUT, GLOBAL_BATCH = sys.argv[1], sys.argv[2], int(sys.argv[3])

if FRAMEWORK == "torch":
    import torch
    from torch import nn

    # The program computes before it trains.
    torch.ones(3).sum()

    def build_model(dropout: float = 0.0) -> Any:
        torch.manual_seed(1)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Dropout(dropout), nn.Tanh(), nn.Linear(8, 8))
else:
    import keras
    import tensorflow as tf

    tf.reduce_sum(tf.ones(3))

    def build_model(dropout: float = 0.0) -> Any:
        keras.utils.set_random_seed(1)
        # Layers without names.
        return keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                keras.layers.Flatten(),
                keras.layers.Dense(8),
                keras.layers.Dropout(dropout),
                keras.layers.Activation("tanh"),
                keras.layers.Dense(8),
            ]
        )


def train(place: str, **arguments: Any) -> Any:
    """What the guide shows."""
    train_dataset, eval_dataset = data.pictures()
    # Samples are tuples.
    train_pairs, pairs = (
        list(zip(arrays["image"], arrays["labels"], strict=True)) for arrays in (train_dataset, eval_dataset)
    )
    return hvdtrain.train(
        **{  # type: ignore[arg-type]
            "spec": {
                "model": {"dtype": "float64"},
                "optimizer": {"type": "sgd", "learning_rate": 0.1},
                "batch": {"per_device_train_batch_size": 4, "global_batch_size": GLOBAL_BATCH},
                "max_steps": 8,
                "checkpointing": {"save_steps": 4},
                "logging": {"tensorboard": False, "progress_bar": False},
            },
            "framework": FRAMEWORK,
            "model": build_model,
            "train_dataset": train_pairs,
            "eval_dataset": pairs,
            "loss": "cross_entropy",
            "metrics": ["accuracy"],
            "output_dir": f"{OUT}/{place}",
            **arguments,
        }
    )


def main() -> None:
    result = train("first")
    if launched_rank() is None:
        try:
            train("wrong", loss=lambda outputs, batch: outputs[0, 0])
        except HvdtrainError as error:
            print(f"told: {error}")
        train("second")
        train("resumed", resume_from_checkpoint=f"{OUT}/first/checkpoint-4")
        drops = partial(build_model, 0.5)
        train("dropped", model=drops)
        train("dropped again", model=drops, resume_from_checkpoint=f"{OUT}/dropped/checkpoint-4")
    print(f"updates {result.state.step}, loss {result.loss}, {result.eval_loss}, {result.model_dir}")


if __name__ == "__main__":
    main()
