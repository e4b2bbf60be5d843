"""Local SGD, DiLoCo and Adasum in real jobs, against both ranks emulated in one process."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from hvdtrain.core.checkpoints.model_folder import load_model
from hvdtrain.core.data import Window, train_windows
from hvdtrain.core.families import bert
from hvdtrain.core.families.weights import initial_weights
from hvdtrain.core.plan.plan import make_plan
from hvdtrain.core.run.job import prepare_data
from hvdtrain.core.run.metrics import read_metrics
from hvdtrain.core.spec.job_spec import JobSpec, load_spec
from hvdtrain.core.update.optimizers import ReferenceOptimizer, clip_factor
from hvdtrain.core.update.schedules import schedule_factor
from tests.jobs.runs import FRAMEWORKS, TINY, WORKER, launch, train_all

Arrays = dict[str, np.ndarray]
# (every rank's weights, whether they are due) -> what each goes on with.
Exchange = Callable[[list[Arrays], bool], list[Arrays]]

RANKS, UPDATES, COMPARED = 2, 50, 8
# The emulation takes as long as the job: the quick tests follow it a third of the way.
FIRST = 16
# Ragged: the ranks' weights differ.
RAGGED = [
    *TINY,
    "model.dtype=float64",
    "data.packing=false",
    "batch.per_device_train_batch_size=2",
    "batch.gradient_accumulation_steps=2",
    "communication.bucket_cap_mb=0.1",
    "max_grad_norm=0.5",
    f"max_steps={UPDATES}",
    f"checkpointing.save_steps={COMPARED}",
]
# By example every rank has the same weight; with plain SGD an update is linear in the gradient.
LINEAR = [
    *TINY,
    "model.dtype=float64",
    "task.normalize=example",
    "batch.per_device_train_batch_size=4",
    "optimizer={type: sgd, momentum: 0.0, learning_rate: 0.1}",
    "max_grad_norm=null",
    "max_steps=5",
]
REFERENCED = {
    "local_sgd": "{type: local_sgd, sync_every: 4}",
    "overlapped": "{type: local_sgd, sync_every: 4, overlap: true}",
    "diloco": "{type: diloco, sync_every: 4, outer_learning_rate: 0.7, outer_momentum: 0.9}",
    "adasum": "{type: adasum}",
}
SCENARIOS = {
    **{name: [*RAGGED, f"compression={text}"] for name, text in REFERENCED.items()},
    "summed": LINEAR,
    "every update": [*LINEAR, "compression={type: local_sgd, sync_every: 1}"],
    "post": [*LINEAR, "max_steps=7", "compression={type: local_sgd, sync_every: 2, start_localSGD_iter: 3}"],
}


class Runs(dict[tuple[str, str], Path]):
    """Output directories by framework and scenario; runs are made when they are first asked for."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __missing__(self, key: tuple[str, str]) -> Path:
        framework, name = key
        found = train_all(self._root / framework, framework, RANKS, SCENARIOS)
        self.update({(framework, n): run for n, run in found.items()})
        return found[name]


SLOW = pytest.mark.slow
# TensorFlow takes its time to trace; its local updates are quickly tested in test_resume.py, against torch's.
BOTH = pytest.mark.parametrize("framework", ["torch", pytest.param("tensorflow", marks=SLOW)])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("periodic"))


@functools.cache
def emulated(name: str, updates: int) -> tuple[np.ndarray, Arrays]:
    return reference(load_spec("bert", SCENARIOS[name]), updates)


def losses(run: Path) -> np.ndarray:
    return np.array([line["loss"] for line in read_metrics(run)[0]])


@pytest.mark.parametrize("name", REFERENCED)
def test_ranks_do_what_the_emulation_does(runs: Runs, name: str) -> None:
    check_emulation(runs["torch", name], name, FIRST)


@pytest.mark.slow
@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("name", REFERENCED)
def test_so_they_do_to_the_end(runs: Runs, framework: str, name: str) -> None:
    check_emulation(runs[framework, name], name, UPDATES)


def check_emulation(run: Path, name: str, updates: int) -> None:
    curve, expected = emulated(name, updates)
    found = load_model(run / f"checkpoint-{COMPARED}")
    for weight, array in expected.items():
        np.testing.assert_allclose(found[weight], array, rtol=1e-10, atol=1e-10, err_msg=weight)
    assert updates < UPDATES or len(curve) == len(losses(run))
    np.testing.assert_allclose(losses(run)[: len(curve)], curve, rtol=1e-8)
    assert losses(run)[-1] < losses(run)[0] - 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_the_frameworks_follow_one_curve(runs: Runs, name: str) -> None:
    ours, theirs = (losses(runs[framework, name]) for framework in FRAMEWORKS)
    np.testing.assert_allclose(ours, theirs, rtol=1e-7)


@BOTH
def test_averaging_after_every_plain_update_is_summing_gradients(runs: Runs, framework: str) -> None:
    summed, averaged = (runs[framework, name] for name in ("summed", "every update"))
    np.testing.assert_allclose(losses(averaged), losses(summed), rtol=1e-12)
    expected, found = load_model(summed / "model"), load_model(averaged / "model")
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-11, atol=1e-13, err_msg=name)


@BOTH
@pytest.mark.parametrize("name", SCENARIOS)
def test_bytes_are_those_of_the_plan_and_nothing_is_sent_between_exchanges(
    runs: Runs, framework: str, name: str
) -> None:
    spec = load_spec("bert", SCENARIOS[name])
    plan, lines = plan_of(spec), read_metrics(runs[framework, name])[0]
    steps = {
        "local_sgd": [*range(4, 50, 4), 50],
        "overlapped": [*range(4, 50, 4), 50],
        "diloco": [*range(4, 50, 4), 50],
        "post": [1, 2, 3, 4, 6, 7],
    }
    assert [line["step"] for line in lines] == steps.get(name, [*range(1, (spec.max_steps or 0) + 1)])
    assert plan.wire_bytes_per_update == 8 * plan.parameters
    # An exchange under way when a line is written counts to the next; weights are due every 8 updates.
    exchanges = [0, 2] * 6 + [1] if name == "overlapped" else [1] * len(lines)
    assert [line["wire_bytes"] for line in lines] == [n * plan.wire_bytes_per_update for n in exchanges]
    samples = plan.batch.global_batch_size * (spec.max_steps or 0)
    assert sum(line["samples"] for line in lines) == samples


@pytest.mark.slow
def test_adasum_without_mpi_is_refused(tmp_path: Path) -> None:
    listing = tmp_path / "scenarios.json"
    listing.write_text('[{"name": "refused", "set": ["compression.type=adasum"]}]')
    done = launch(RANKS, [str(WORKER), "torch", str(listing)], wire="gloo", timeout=120)
    assert done.returncode != 0
    assert "adasum needs Horovod's MPI operations" in done.stdout


def plan_of(spec: JobSpec):  # type: ignore[no-untyped-def]
    weights, tokens = bert.weights(spec.model), np.full(1000, 32)
    return make_plan(spec, weights, size=RANKS, threads=1, train_tokens=tokens, validation_samples=0)


def reference(spec: JobSpec, updates: int) -> tuple[np.ndarray, Arrays]:
    """Both ranks one after the other: the curve of so many updates, and the weights after COMPARED."""
    weights, plan = bert.weights(spec.model), plan_of(spec)
    dataset = prepare_data(spec, print)
    streams = [
        train_windows(
            dataset.train,
            seed=spec.seed,
            accumulation=plan.accumulation,
            rank=rank,
        )
        for rank in range(RANKS)
    ]
    start = initial_weights(weights, spec.seed, "float64")
    optimizers = [{w.name: ReferenceOptimizer(spec.optimizer, w) for w in weights} for _ in range(RANKS)]
    ranks, exchange, model = [start] * RANKS, exchange_of(spec, start), hugging_face(spec)
    curve, loss_sum, weight = [], 0.0, 0.0
    compared: Arrays = {}
    for update in range(1, updates + 1):
        windows = [next(stream) for stream in streams]
        found = [backward(model, arrays, window) for arrays, window in zip(ranks, windows, strict=True)]
        loss_sum, weight = loss_sum + sum(f[0] for f in found), weight + sum(w.weight for w in windows)
        means = [
            {name: array / window.weight for name, array in gradients.items()}
            for (_, gradients), window in zip(found, windows, strict=True)
        ]
        if spec.compression.type == "adasum":  # type: ignore[attr-defined]
            means = [{name: adasum(means[0][name], means[1][name]) for name in start}] * RANKS
        peak = plan.learning_rate
        rate = peak * schedule_factor(spec.schedule, update - 1, plan.warmup_steps, plan.max_steps, peak)
        ranks = [step(*work, spec, rate) for work in zip(optimizers, ranks, means, strict=True)]
        if update % plan.sync_every == 0 or update == UPDATES:
            ranks = exchange(ranks, update % COMPARED == 0 or update == UPDATES)
            curve.append(loss_sum / weight)
            loss_sum = weight = 0.0
        compared = ranks[0] if update == COMPARED else compared
    return np.array(curve), compared


def exchange_of(spec: JobSpec, start: Arrays) -> Exchange:
    policy = spec.compression.model_dump()
    if policy["type"] == "adasum":
        return lambda ranks, due: ranks
    if policy["type"] == "diloco":
        return diloco(start, policy)
    return overlapped(start) if policy["overlap"] else lambda ranks, due: [mean(ranks)] * RANKS


def overlapped(start: Arrays) -> Exchange:
    """What ranks had at the last exchange is their mean by now, and counts."""
    sent, last = [start] * RANKS, start

    def exchange(ranks: list[Arrays], due: bool) -> list[Arrays]:
        nonlocal sent, last
        ranks = [
            {name: last[name] + (now[name] - then[name]) for name in start}
            for now, then in zip(ranks, sent, strict=True)
        ]
        last = mean(ranks)
        sent = [last] * RANKS if due else ranks
        return sent

    return exchange


def diloco(start: Arrays, policy: dict[str, Any]) -> Exchange:
    outer = {name: torch.tensor(array.copy()) for name, array in start.items()}
    optimizer = torch.optim.SGD(
        outer.values(), lr=policy["outer_learning_rate"], momentum=policy["outer_momentum"], nesterov=True
    )

    def exchange(ranks: list[Arrays], due: bool) -> list[Arrays]:
        for name, array in mean(ranks).items():
            outer[name].grad = outer[name] - torch.tensor(array)
        optimizer.step()
        return [{name: tensor.numpy().copy() for name, tensor in outer.items()}] * RANKS

    return exchange


def mean(ranks: list[Arrays]) -> Arrays:
    return {name: np.mean([arrays[name] for arrays in ranks], axis=0) for name in ranks[0]}


def adasum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    dot = np.sum(a * b)
    return (1 - dot / (2 * np.sum(a * a))) * a + (1 - dot / (2 * np.sum(b * b))) * b


def step(
    optimizers: dict[str, ReferenceOptimizer], arrays: Arrays, gradients: Arrays, spec: JobSpec, rate: float
) -> Arrays:
    norm = float(np.sqrt(sum(np.sum(gradients[name] ** 2) for name in arrays)))
    factor = clip_factor(norm, spec.max_grad_norm or np.inf)
    return {name: optimizers[name].update(arrays[name], factor * gradients[name], rate) for name in arrays}


def backward(model: BertForMaskedLM, arrays: Arrays, window: Window) -> tuple[float, Arrays]:
    """One rank's summed loss and its gradients."""
    model.load_state_dict({n: torch.from_numpy(a) for n, a in arrays.items()}, strict=False)
    model.zero_grad()
    total = 0.0
    for batch in window.micro_batches:
        logits = model(
            input_ids=torch.from_numpy(batch.inputs["input_ids"]).long(),
            attention_mask=torch.from_numpy(batch.inputs["attention_mask"]),
        ).logits
        log_p = torch.log_softmax(logits, -1)
        rows = torch.arange(len(logits))[:, None]
        positions, labels = (
            torch.from_numpy(a).long() for a in (batch.inputs["masked_positions"], batch.targets)
        )
        loss = -(log_p[rows, positions, labels] * torch.from_numpy(batch.loss_weights)).sum()
        loss.backward()
        total += loss.item()
    return total, {n: p.grad.numpy().copy() for n, p in model.named_parameters() if n in arrays}


def hugging_face(spec: JobSpec) -> BertForMaskedLM:
    model = BertForMaskedLM(BertConfig(**bert.hf_config(spec.model))).double()
    model.bert.embeddings.word_embeddings.padding_idx = None
    return model.train()
