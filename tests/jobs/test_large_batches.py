"""LAMB and LARS on real ranks: one curve in both frameworks, however a batch is cut, also after a resume."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hvdtrain.core.run.metrics import read_metrics
from tests.jobs import exact
from tests.jobs.runs import FRAMEWORKS, TINY, TINY_GPT2, small_corpus, train_all

GROUPS = (
    "[{match: '*.layer.0.*', learning_rate_factor: 0.5}, "
    "{match: '*LayerNorm*', weight_decay: 0.1}, {match: 'bert.embeddings.*', weight_decay: 0.0}]"
)
SETTINGS = [
    *TINY,
    "model.dtype=float64",
    "task.label_smoothing=0.1",
    "model.num_hidden_layers=1",
    "batch={per_device_train_batch_size: 8, global_batch_size: 16}",
    "max_grad_norm=0.5",
    "max_steps=8",
    "checkpointing.save_steps=4",
]
LAMB = "{type: lamb, learning_rate: 0.01, weight_decay: 0.05, groups: %s}"
LARS = "{type: lars, learning_rate: 3.0, weight_decay: 0.05, groups: %s}"
SCENARIOS = {
    "lamb": [*SETTINGS, f"optimizer={LAMB % GROUPS}", "schedule.type=polynomial", "schedule.power=2.0"],
    "lars": [
        *SETTINGS,
        f"optimizer={LARS % GROUPS}",
        "schedule.type=cosine_with_min_lr",
        "schedule.min_lr_rate=0.1",
    ],
}
LONG = {name: [*sets, "max_steps=100", "checkpointing.save_steps=50"] for name, sets in SCENARIOS.items()}
# Ranks with moments of their own, and weights that are averaged now and then.
APART = {
    f"{policy}-{kind}": [*SCENARIOS[kind], f"compression={{type: {policy}, sync_every: 2}}"]
    for policy in ("local_sgd", "diloco")
    for kind in SCENARIOS
}
EXACT = {
    kind: [*exact.SETTINGS, "batch.gradient_accumulation_steps=2", f"optimizer.type={kind}"]
    for kind in SCENARIOS
}
LAYER = "[{match: '*.h.0.*', learning_rate_factor: 0.5}]"
GPT2 = [
    *TINY_GPT2,
    "max_steps=20",
    "task.label_smoothing=0.1",
    f"optimizer={LAMB % LAYER}",
    "schedule.type=inverse_sqrt",
]
Runs = dict[str, dict[str, Path]]


def curve(run: Path) -> np.ndarray:
    return np.array([line["loss"] for line in read_metrics(run)[0]])


def train(root: Path, framework: str, ranks: int, scenarios: dict[str, list[str]], **how: object) -> Runs:
    with_text = {name: [*sets, *small_corpus(root)] for name, sets in scenarios.items()}
    return {framework: train_all(root / f"{framework}{ranks}", framework, ranks, with_text, **how)}  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root = tmp_path_factory.mktemp("large")
    found = train(root, "torch", 2, SCENARIOS)
    saved = {name: run / "checkpoint-4" for name, run in found["torch"].items()}
    return found | train(root, "tensorflow", 2, SCENARIOS, resume=saved)


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_run_goes_on_in_the_other_framework_as_if_it_had_not_stopped(runs: Runs, name: str) -> None:
    whole, rest = curve(runs["torch"][name]), curve(runs["tensorflow"][name])
    assert len(rest) == 4
    np.testing.assert_allclose(rest, whole[4:], rtol=1e-9)
    assert len(np.unique(whole)) == 8
    # Evaluation is about the labels as they are.
    ends = [read_metrics(runs[each][name])[1][-1]["eval_loss"] for each in FRAMEWORKS]
    assert ends[0] == pytest.approx(ends[1], rel=1e-9)


@pytest.fixture(scope="module")
def long_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], dict[str, Path]]:
    root = tmp_path_factory.mktemp("long")
    found = {(f, 2): train(root, f, 2, LONG | APART)[f] for f in FRAMEWORKS}
    return found | {(f, 1): train(root, f, 1, LONG)[f] for f in FRAMEWORKS}


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
@pytest.mark.parametrize(("framework", "ranks"), [("torch", 1), ("tensorflow", 2), ("tensorflow", 1)])
def test_one_curve_over_100_updates(long_runs: dict, name: str, framework: str, ranks: int) -> None:
    whole, found = curve(long_runs["torch", 2][name]), curve(long_runs[framework, ranks][name])
    assert len(found) == 100
    assert whole[-10:].mean() < whole[:10].mean() - 0.3, "it was meant to learn"
    np.testing.assert_allclose(found, whole, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", APART)
def test_ranks_may_take_steps_of_their_own(long_runs: dict, name: str) -> None:
    one, other = (curve(long_runs[framework, 2][name]) for framework in FRAMEWORKS)
    np.testing.assert_allclose(one, other, rtol=1e-9)
    assert len(one) == 4


@pytest.mark.slow
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_back_again(long_runs: dict, framework: str, tmp_path: Path) -> None:
    other = FRAMEWORKS[framework == "torch"]
    saved = {name: long_runs[other, 2][name] / "checkpoint-50" for name in LONG}
    corpus = long_runs[other, 2]["lamb"].parents[1]
    with_text = {name: [*sets, *small_corpus(corpus)] for name, sets in LONG.items()}
    found = train_all(tmp_path, framework, 1, with_text, saved)
    for name, run in found.items():
        np.testing.assert_allclose(curve(run), curve(long_runs["torch", 2][name])[50:], rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_an_update_is_the_references_of_transformers_gradients(framework: str, tmp_path: Path) -> None:
    with_text = {name: [*sets, *small_corpus(tmp_path)] for name, sets in EXACT.items()}
    for name, run in train_all(tmp_path, framework, 2, with_text).items():
        exact.check_exact(run, with_text[name])


@pytest.mark.slow
def test_a_fused_weight_has_one_trust_ratio(tmp_path: Path) -> None:
    runs = [train_all(tmp_path / f, f, 2, {"gpt2": GPT2}, spec="gpt2")["gpt2"] for f in FRAMEWORKS]
    one, other = map(curve, runs)
    assert len(one) == 20
    np.testing.assert_allclose(one, other, rtol=1e-9)
