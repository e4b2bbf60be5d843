"""The drop-in packages on 2 ranks with GPUs, whose gradients travel by NCCL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.dropin import test_keras, test_torch
from tests.jobs.runs import INSTALLED

pytestmark = pytest.mark.gpu

TENSORFLOW = ("keras_arguments", "keras_fitting", "keras_callbacks")
CHECKS = {
    "torch": test_torch.checks("torch_gpu"),
    # NCCL has no Adasum of ours.
    "tensorflow": [name for name in test_keras.checks(TENSORFLOW) if "adasum" not in name],
}
CASES = [(framework, check) for framework in INSTALLED for check in CHECKS[framework]]
Results = Mapping[str, Sequence[Mapping[str, str | None]]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return {framework: said(framework, tmp_path_factory.mktemp(framework)) for framework in INSTALLED}


def said(framework: str, directory: Path) -> Sequence[Mapping[str, str | None]]:
    if framework == "torch":
        return test_torch.said(directory / "results", ["torch_gpu"], wire="nccl")
    return test_keras.said(TENSORFLOW, directory, wire="nccl")


@pytest.mark.parametrize(("framework", "check"), CASES)
def test_on_two_ranks_with_gpus(framework: str, check: str, results: Results) -> None:
    for rank, found in enumerate(results[framework]):
        assert check in found, f"rank {rank} did not come so far: {found.get('launch')}"
        assert not found[check], f"rank {rank}: {found[check]}"
