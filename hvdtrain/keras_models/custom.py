"""A user's own `keras.Model`, with the weights that a job has saved."""

from __future__ import annotations

import sys
from pathlib import Path

import keras
import numpy as np

from hvdtrain.core.checkpoints.saved_models import open_weights
from hvdtrain.core.families.custom import ModelSpec
from hvdtrain.core.run.job import prepare_data
from hvdtrain.core.run.saved_evaluation import read_job
from hvdtrain.tensorflow.model import build_network
from hvdtrain.tensorflow.weights import write


def build(model: ModelSpec, folder: Path) -> keras.Model:
    """Build a saved model by the user's code.

    Args:
        model: the hyper-parameters.
        folder: of the model; it, or the one above, holds the job's spec, whose data says what the inputs are.

    Raises:
        CheckpointError: there is no spec, or the weights are those of another model.
        SpecError: the user's code fails, or builds no Keras model.
    """
    spec, _ = read_job(folder)
    dataset = prepare_data(spec, lambda line: print(line, file=sys.stderr))
    network = build_network(spec, dataset.train.collate(np.arange(1), 0, 1))
    arrays = open_weights(folder, network.weights, model.dtype)
    for weight in network.weights:
        write(weight, network.parameters[weight.name], arrays[weight.name])
    return network.module
