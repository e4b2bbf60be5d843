"""The reference of one ragged update: autograd over the real samples in one process, and AdamW in NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertForMaskedLM

from hvdtrain.core.checkpoints.model_folder import load_model
from hvdtrain.core.data import global_batches
from hvdtrain.core.families import bert
from hvdtrain.core.families.weights import initial_weights
from hvdtrain.core.run.job import prepare_data
from hvdtrain.core.run.metrics import read_metrics
from hvdtrain.core.spec.job_spec import JobSpec, load_spec
from hvdtrain.core.update.accumulation import Accumulation
from hvdtrain.core.update.optimizers import ReferenceOptimizer, clip_factor
from tests.jobs.runs import TINY

SETTINGS = [
    *TINY,
    "model.dtype=float64",
    "task.normalize=example",
    "batch.per_device_train_batch_size=16",
    "max_steps=1",
    "schedule.warmup_steps=0",
    "max_grad_norm=0.1",
    "optimizer.weight_decay=0.5",
]


def check_exact(run: Path, settings: list[str]) -> None:
    """The job's loss, gradient norm and weights are the reference's."""
    loss, norm, expected = reference_update(load_spec("bert", settings))
    line = read_metrics(run)[0][0]
    assert line["loss"] == pytest.approx(loss, rel=1e-12)
    assert line["grad_norm"] == pytest.approx(norm, rel=1e-11)
    found = load_model(run / "model")
    for name, array in expected.items():
        # Where the gradient is rounding alone (see the key biases), AdamW moves it by less than this.
        np.testing.assert_allclose(found[name], array, rtol=1e-11, atol=1e-10, err_msg=name)


def reference_update(spec: JobSpec) -> tuple[float, float, dict[str, np.ndarray]]:
    dataset = prepare_data(spec, print)
    whole = Accumulation(1, len(dataset.train))
    everything = next(global_batches(spec.seed, dataset.train.costs, whole)).indices
    weights = bert.weights(spec.model)
    arrays = initial_weights(weights, spec.seed, "float64")
    model = _hugging_face(spec, arrays)
    loss_sum, weight = 0.0, 0.0
    for indices in np.array_split(everything, len(everything) // 16):
        batch = dataset.train.collate(indices, 0, len(indices))
        logits = model(
            input_ids=torch.from_numpy(batch.inputs["input_ids"]).long(),
            attention_mask=torch.from_numpy(batch.inputs["attention_mask"]),
        ).logits
        rows = torch.arange(len(indices))[:, None]
        log_p = torch.log_softmax(logits[rows, torch.from_numpy(batch.inputs["masked_positions"]).long()], -1)
        picked = log_p.gather(-1, torch.from_numpy(batch.targets).long()[..., None])[..., 0]
        loss = -(picked * torch.from_numpy(batch.loss_weights)).sum()
        loss.backward()
        loss_sum, weight = loss_sum + loss.item(), weight + batch.weight
    gradients = {n: p.grad.numpy() / weight for n, p in model.named_parameters() if p.grad is not None}
    norm = float(np.sqrt(sum(np.sum(gradients[w.name] ** 2) for w in weights)))
    factor = clip_factor(norm, spec.max_grad_norm or np.inf)
    updated = {
        w.name: ReferenceOptimizer(spec.optimizer, w).update(
            arrays[w.name], factor * gradients[w.name], spec.optimizer.learning_rate
        )
        for w in weights
    }
    return loss_sum / weight, norm, updated


def _hugging_face(spec: JobSpec, arrays: dict[str, np.ndarray]) -> BertForMaskedLM:
    from transformers import BertConfig

    model = BertForMaskedLM(BertConfig(**bert.hf_config(spec.model))).double()
    model.bert.embeddings.word_embeddings.padding_idx = None
    model.load_state_dict({n: torch.from_numpy(a) for n, a in arrays.items()}, strict=False)
    return model.train()
