"""`sync_batch_norm` on real ranks, some without rows, against one process with Transformers' own ResNet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from hvdtrain.core.families import resnet
from hvdtrain.core.families.weights import statistics, trained
from tests.jobs.runs import launch
from tests.models import norm_ranks
from tests.models.images import pixels_for_transformers, transformers_resnet
from tests.models.norm_ranks import SHARES, SPEC

WORKER = Path(norm_ranks.__file__)


@pytest.mark.parametrize(
    ("framework", "size"),
    [
        ("torch", 2),
        ("tensorflow", 2),
        pytest.param("torch", 3, marks=pytest.mark.slow),
        pytest.param("tensorflow", 3, marks=pytest.mark.slow),
    ],
)
def test_ranks_have_the_statistics_of_all_rows(framework: str, size: int, tmp_path: Path) -> None:
    done = launch(size, [str(WORKER), framework, str(tmp_path)])
    assert done.returncode == 0, done.stdout[-5000:]
    ranks = [dict(np.load(tmp_path / f"{rank}.npz")) for rank in range(size)]
    model, table = transformers_resnet(SPEC).train(), resnet.weights(SPEC)
    ways = ("eager",) if framework == "torch" else ("eager", "compiled")
    for number, shares in enumerate(SHARES[size]):
        batches = [norm_ranks.share(number, rank, real) for rank, real in enumerate(shares)]
        rows = torch.cat([pixels_for_transformers(b)[:n] for b, n in zip(batches, shares, strict=True)])
        labels = np.concatenate([b.targets[:n, 0] for b, n in zip(batches, shares, strict=True)])
        model.zero_grad()
        loss = functional.cross_entropy(model(rows).logits, torch.from_numpy(labels).long(), reduction="sum")
        loss.backward()
        for way in ways:
            total = sum(float(rank[f"{way}.{number}.loss"]) for rank in ranks)
            assert total == pytest.approx(loss.item(), rel=1e-13)
            for weight in trained(table):
                expected = model.get_parameter(weight.name).grad.numpy()
                found = sum(rank[f"{way}.{number}.{weight.name}"] for rank in ranks)
                scale = max(np.abs(expected).max(), 0.1)
                np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * scale, err_msg=weight.name)
    for weight in statistics(table):
        expected = model.get_buffer(weight.name).numpy()
        for rank in ranks:
            for way in ways:
                np.testing.assert_allclose(rank[f"{way}.{weight.name}"], expected, rtol=1e-13)
                np.testing.assert_array_equal(rank[f"{way}.{weight.name}"], ranks[0][f"{way}.{weight.name}"])
