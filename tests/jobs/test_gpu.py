"""Jobs on GPUs, whose gradients travel by NCCL, against the same jobs on CPUs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hvdtrain.core.run.metrics import read_metrics
from tests.jobs.runs import INSTALLED, TINY_GPT2, train_all
from tests.jobs.test_policies import POLICIES, SETTINGS

pytestmark = pytest.mark.gpu

EXACT = {name: [*SETTINGS, f"compression={found}"] for name, found in POLICIES.items()} | {
    "none": [*SETTINGS, "checkpointing.save_steps=25"],
    "bf16": [*SETTINGS, "compression.type=bf16"],
    "rows": [*SETTINGS, "model.tie_word_embeddings=false", "model.vocab_size=8192"],
    "local": [*SETTINGS, "compression={type: local_sgd, sync_every: 2}"],
    "overlapped": [*SETTINGS, "compression={type: local_sgd, sync_every: 2, overlap: true}"],
    "diloco": [*SETTINGS, "compression={type: diloco, sync_every: 5}"],
}
SHORT = [setting for setting in SETTINGS if not setting.startswith("model.dtype")]
MIXED = {
    f"mixed_precision={name}": [*SHORT, f"mixed_precision={name}", "compression.type=fp16"]
    for name in ("no", "bf16", "fp16")
}
FLOAT32 = "mixed_precision=no"
GPT2 = {
    "gpt2": [*TINY_GPT2, "max_steps=12"],
    "gpt2 powersgd": [*TINY_GPT2, "max_steps=12", "compression={type: powersgd, start_powerSGD_iter: 2}"],
}
Runs = dict[str, Path]


@pytest.fixture(scope="module", params=INSTALLED)
def framework(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def cpu(framework: str, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    place = tmp_path_factory.mktemp("cpu")
    bert = train_all(place, framework, 2, EXACT | {FLOAT32: MIXED[FLOAT32]}, wire="gloo")
    return bert | train_all(place, framework, 2, GPT2, wire="gloo", spec="gpt2")


@pytest.fixture(scope="module")
def gpu(framework: str, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    place = tmp_path_factory.mktemp("gpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOROVOD_TIMELINE", "DYNAMIC")
        bert = train_all(place, framework, 2, EXACT | MIXED, wire="nccl")
        return bert | train_all(place, framework, 2, GPT2, wire="nccl", spec="gpt2")


def losses(run: Path) -> np.ndarray:
    return np.array([line["loss"] for line in read_metrics(run)[0]])


@pytest.mark.parametrize("name", EXACT | GPT2)
def test_a_gpu_follows_the_curve_of_a_cpu(name: str, cpu: Runs, gpu: Runs) -> None:
    np.testing.assert_allclose(losses(gpu[name]), losses(cpu[name]), rtol=1e-7)
    sent = [[line["wire_bytes"] for line in read_metrics(runs[name])[0]] for runs in (gpu, cpu)]
    assert sent[0] == sent[1]


def test_gradients_travel_by_nccl(gpu: Runs) -> None:
    for name in EXACT | GPT2:
        assert "NCCL_" in gpu[name].with_name(f"{name}.json").read_text()


def test_float32_is_float32(gpu: Runs, cpu: Runs) -> None:
    """And not TF32, whose 10 bits a GPU may multiply in its place."""
    np.testing.assert_allclose(losses(gpu[FLOAT32]), losses(cpu[FLOAT32]), rtol=2e-5)


def test_mixed_precision_learns_as_well(gpu: Runs) -> None:
    plain, *mixed = (losses(gpu[name]) for name in MIXED)
    for found in mixed:
        np.testing.assert_allclose(found, plain, rtol=0.02)


def test_a_gpus_checkpoint_goes_on_on_a_cpu(framework: str, gpu: Runs, cpu: Runs, tmp_path: Path) -> None:
    scenario = {"none": EXACT["none"]}
    runs = train_all(tmp_path, framework, 2, scenario, {"none": gpu["none"] / "checkpoint-25"}, wire="gloo")
    np.testing.assert_allclose(losses(runs["none"]), losses(cpu["none"])[25:], rtol=1e-7)
