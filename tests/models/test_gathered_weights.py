"""Networks in TensorFlow whose layers are given their weights (ZeRO-3): what they compute and ask for."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from hvdtrain.core.compression.none import NoCompression
from hvdtrain.core.compression.rules import Rules
from hvdtrain.core.errors import SpecError
from hvdtrain.core.families.custom import ModelSpec
from hvdtrain.core.families.weights import statistics, trained
from hvdtrain.core.spec.job_spec import JobSpec
from hvdtrain.core.spec.optimizer_sections import OptimizerSpec
from hvdtrain.core.tasks.custom import TaskSpec
from hvdtrain.core.update.buckets import plan_buckets
from hvdtrain.core.update.gathers import plan_gathers
from hvdtrain.tensorflow import losses
from hvdtrain.tensorflow import model as tensorflow_model
from hvdtrain.tensorflow.gathers import GatheredWeights
from tests.models.support import as_hugging_face, far_from_initial
from tests.models.test_gradient_checkpointing import FAMILIES, batch_for, recomputation

MODELS = FAMILIES | {
    f"{name} untied": (family, spec.model_copy(update={"tie_word_embeddings": name == "llama"}))
    for name, (family, spec) in FAMILIES.items()
    if name in ("bert", "gpt2", "llama")
}
RULES = Rules.of_spec(NoCompression(), zero_stage=3)


class Alone:
    """The exchange of a rank that owns everything."""

    def __init__(self) -> None:
        self.gathered: list[str] = []

    def gather(self, shard: Any, own: tf.Tensor, name: str) -> tf.Tensor:
        self.gathered.append(f"{name}.{shard.bucket.index}")
        return own


def trace(name: str, gathers: bool, whole: bool) -> tuple[list[float], dict[str, np.ndarray], list[str]]:
    """Two losses, the gradients of the second, buffers behind it, and what the first asked for."""
    family, spec = MODELS[name]
    table, exchange = family.weights(spec), Alone()
    keras.utils.set_random_seed(3)
    model = tensorflow_model.Model(spec, table, empty=gathers)
    parameters = {w.name: model.parameters[w.name] for w in trained(table)}
    if gathers:
        buckets = plan_buckets(trained(table), 8, 4000, RULES.apart, by_layer=True)
        shards = [RULES.shard(bucket, 1, 0) for bucket in buckets]
        held = RULES, shards, OptimizerSpec(), parameters, exchange
        model.held = model.network.gathered = GatheredWeights(*held, model.network.variables)  # type: ignore[arg-type]
    model.write(far_from_initial(table))
    batch = tensorflow_model.tensors(batch_for(name.partition(" ")[0], spec))

    def step() -> tuple[tf.Tensor, Any]:
        with tf.GradientTape() as tape:
            loss = model.loss_sum(batch, training=True)
        return loss, tape.gradient(loss, parameters)

    step = tf.function(step, autograph=False) if whole else step
    first, _ = step()
    asked = [*exchange.gathered]
    second, gradients = step()
    if gathers:
        assert asked == [f"{place}.{index}" for place, index in planned(buckets)]
        assert not any(variable.numpy().size for each in parameters.values() for variable in each)
    found = {w.name: as_hugging_face(w, gradients[w.name]) for w in trained(table)}
    return [float(first), float(second)], found | dict(model.read(statistics(table))), asked


def planned(buckets: Any) -> list[tuple[str, int]]:
    plan = plan_gathers(buckets)
    passes = {"forward": plan.forward, "backward": plan.backward}
    return [
        (f"{name}{place}", index)
        for name, units in passes.items()
        for place, unit in enumerate(units)
        for index in plan.units[unit]
    ]


@pytest.mark.parametrize("name", MODELS)
@recomputation
def test_gradients_and_dropout_are_those_of_whole_weights(name: str, whole: bool) -> None:
    """And what is gathered is what the plan says, each time by another name: equal ones might be merged."""
    (expected_losses, expected, _), (found_losses, found, asked) = (
        trace(name, gathers, whole) for gathers in (False, True)
    )
    assert len(set(asked)) == len(asked)
    assert (expected_losses[0] != expected_losses[1]) == (name != "resnet")
    np.testing.assert_allclose(found_losses, expected_losses, rtol=1e-14)
    for weight, gradient in expected.items():
        scale = max(np.abs(gradient).max(), 1e-3)
        np.testing.assert_allclose(found[weight], gradient, rtol=0, atol=1e-13 * scale, err_msg=weight)


@pytest.mark.parametrize("name", ["bert", "gpt2 untied"])
def test_a_head_that_is_computed_part_by_part_is_gathered_once(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "chunks", lambda predictions, classes: [2, predictions - 2])
    (expected_losses, expected, _), (found_losses, found, _) = (
        trace(name, gathers, whole=True) for gathers in (False, True)
    )
    np.testing.assert_allclose(found_losses, expected_losses, rtol=1e-14)
    for weight, gradient in expected.items():
        np.testing.assert_allclose(found[weight], gradient, rtol=1e-11, atol=1e-13, err_msg=weight)


def test_a_model_of_the_users_own_is_refused() -> None:
    model = ModelSpec(tensorflow=lambda: pytest.fail("built"))
    sections = {"data": {"dataset": "tests.own.data:classes"}, "task": TaskSpec(), "max_steps": 1}
    spec = JobSpec.model_construct(model=model, zero_stage=3, compression=NoCompression(), **sections)
    with pytest.raises(SpecError, match=r"zero_stage: 3 .* model_type custom .*zero_stage: 2"):
        tensorflow_model.build_network(spec, batch_for("gpt2", MODELS["gpt2"][1]))
