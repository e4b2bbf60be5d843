"""The CNN by a program of your own:

python examples/own_model/train_cnn.py torch
horovodrun -np 2 python examples/own_model/train_cnn.py tensorflow
"""

from __future__ import annotations

import sys
from typing import Any

import digits

import hvdtrain


def build() -> Any:
    """A model of the framework that is asked for."""
    if sys.argv[1] == "torch":
        from cnn_torch import CNN

        return CNN(channels=16)
    from cnn_keras import cnn

    return cnn(channels=16)


if __name__ == "__main__":
    train_dataset, eval_dataset = digits.make()
    hvdtrain.train(
        spec={
            "optimizer": {"type": "sgd", "learning_rate": 0.1, "weight_decay": 1e-4},
            "batch": {"per_device_train_batch_size": 32},
            "num_train_epochs": 5,
        },
        framework=sys.argv[1],
        model=build,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        loss="cross_entropy",
        metrics=["accuracy"],
        output_dir=f"outputs/own-cnn-{sys.argv[1]}",
    )
