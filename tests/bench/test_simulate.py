"""`hvdtrain simulate`: problems against calculus, runs against plain NumPy, and what the command leaves."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import image

from hvdtrain.bench.candidates import Candidate, candidates
from hvdtrain.bench.problems import PROBLEMS, Arrays, LanguageModel, LeastSquares
from hvdtrain.bench.simulate import Outcome, simulate
from hvdtrain.bench.simulate_report import draw, write
from hvdtrain.core.errors import SpecError
from hvdtrain.core.families.weights import initial_weights
from hvdtrain.core.update.buckets import plan_buckets

ROOT = Path(__file__).resolve().parents[2]
PLAIN = (
    "model.dtype=float64",
    "max_steps=6",
    "max_grad_norm=null",
    "optimizer={type: sgd, learning_rate: 0.5, momentum: 0.0, weight_decay: 0.0}",
    "schedule={type: constant, warmup_steps: 0}",
)
BOTH = pytest.mark.parametrize("kind", PROBLEMS.values(), ids=PROBLEMS.keys())


def run(policy: str, ranks: int, *overrides: str, problem: str = "least-squares") -> Outcome:
    *_, candidate = candidates("bert", [*PLAIN, *overrides], [policy], ranks)
    return simulate(candidate, PROBLEMS[problem](ranks, 0, "float64"), ranks)


def some_weights(kind: type[LeastSquares] | type[LanguageModel]) -> Arrays:
    found = initial_weights(kind.weights, 1, "float64")
    draw = np.random.default_rng(0).normal
    return {name: array[None] + draw(0.0, 0.1, array.shape) for name, array in found.items()}


@BOTH
def test_gradients_are_those_of_the_loss(kind: type[LeastSquares] | type[LanguageModel]) -> None:
    ranks = 3
    problem, weights = kind(ranks, 0, "float64"), some_weights(kind)
    if isinstance(problem, LanguageModel):
        # The loss of the very examples that the gradients are of.
        places = _places(problem, ranks)
        contexts, targets = problem._examples(problem._texts, places)
        problem._held_out = contexts.reshape(1, -1, 3), targets.reshape(1, -1, 1)
    found = problem.gradients(weights, 5)
    rng = np.random.default_rng(1)
    for name in weights:
        assert found[name].shape == (ranks, *weights[name].shape[1:])
        direction = rng.normal(size=weights[name].shape)
        up, down = (problem.loss(weights | {name: weights[name] + h * direction}) for h in (1e-5, -1e-5))
        expected = (found[name].sum(axis=0) * direction[0]).sum() / (ranks * problem.examples)
        np.testing.assert_allclose((up - down) / 2e-5, expected, rtol=1e-5, atol=1e-9)


@BOTH
def test_ranks_with_weights_of_their_own_have_gradients_of_their_own(
    kind: type[LeastSquares] | type[LanguageModel],
) -> None:
    problem, weights = kind(2, 0, "float64"), some_weights(kind)
    shared = problem.gradients(weights, 1)
    own = problem.gradients({name: np.concatenate([a, 2.0 * a]) for name, a in weights.items()}, 1)
    for name in weights:
        np.testing.assert_allclose(own[name][0], shared[name][0], rtol=1e-12, atol=1e-15)
    assert any(not np.allclose(own[name][1], shared[name][1]) for name in weights)


def test_nothing_is_better_than_the_optimum() -> None:
    problem = LeastSquares(5, 0, "float64")
    best = {name: array[None] for name, array in problem.optimum.items()}
    assert problem.best == problem.loss(best)
    assert problem.distance(best) == 0.0
    for total in (g.sum(axis=0) for g in problem.gradients(best, 1).values()):
        np.testing.assert_allclose(total, 0.0, atol=1e-12)


@pytest.mark.parametrize("ranks", [1, 7])
def test_without_compression_it_is_gradient_descent(ranks: int) -> None:
    problem = LeastSquares(ranks, 0, "float64")
    x, y = problem._x.reshape(-1, 64), problem._y.reshape(-1, 32)
    w, b, losses = np.zeros((32, 64)), np.zeros(32), []
    for _ in range(7):
        errors = x @ w.T + b - y
        losses.append(0.5 * (errors**2).sum() / len(x) + 0.5e-3 * (w**2).sum())
        w, b = w - 0.5 * (errors.T @ x / len(x) + 1e-3 * w), b - 0.5 * errors.mean(axis=0)
    found = run("none", ranks)
    assert found.updates == list(range(7))
    np.testing.assert_allclose(found.losses, losses, rtol=1e-12)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_averaging_weights_after_every_sgd_update_is_summing_gradients(problem: str) -> None:
    average = run("{type: local_sgd, sync_every: 1}", 4, problem=problem)
    np.testing.assert_allclose(average.losses, run("none", 4, problem=problem).losses, rtol=1e-10)


def test_an_overlapped_mean_comes_one_exchange_later_and_costs_the_same() -> None:
    policies = (f"{{type: local_sgd, sync_every: 2, overlap: {overlap}}}" for overlap in ("false", "true"))
    plain, late = (run(policy, 4, "optimizer.learning_rate=0.02") for policy in policies)
    assert (
        late.sent == plain.sent == [0, 0, *[plain.sent[2]] * 2, *[2 * plain.sent[2]] * 2, 3 * plain.sent[2]]
    )
    # Until the third update ranks' mean is the same: what they do meanwhile does not hang on it.
    np.testing.assert_allclose(late.losses[:3], plain.losses[:3], rtol=1e-12)
    assert late.losses[3] != pytest.approx(plain.losses[3], rel=1e-9)
    assert late.losses[-1] == pytest.approx(plain.losses[-1], rel=0.1)


def test_bytes_are_those_of_the_policies_to_the_byte() -> None:
    policies = "[{match: 'hidden*', type: topk, ratio: 0.1}, {type: powersgd, start_powerSGD_iter: 3}]"
    *_, candidate = candidates("bert", PLAIN, [policies], 8)
    found = simulate(candidate, LanguageModel(8, 0, "float64"), 8)
    rules = candidate.job.rules
    buckets = plan_buckets(LanguageModel.weights, 8, 25 * 2**20, rules.apart)
    planned = [rules.at(update).wire_bytes(buckets, 8, 8) for update in range(1, 7)]
    assert found.sent == [0, *np.cumsum(planned)]
    gathered = sum(8 * rules.at(1).policy(b).wire_bytes(b, 8, 8) for b in buckets if "hidden" in str(b))
    summed = sum(rules.at(1).policy(b).wire_bytes(b, 8, 8) for b in buckets if "hidden" not in str(b))
    assert found.received[1] == gathered + summed


def test_a_thousand_ranks_learn() -> None:
    found = run("{type: topk, ratio: 0.05}", 1000)
    assert found.losses[-1] < found.losses[0]
    assert found.state_bytes == 8 * (32 * 64 + 32)


def test_what_is_tried_is_none_the_specs_own_and_what_was_asked_for() -> None:
    own = [*PLAIN, "compression={type: topk, ratio: 0.5}"]
    assert [c.label for c in candidates("bert", own, ["fp16", "none"], 2)] == [
        "none",
        "topk ratio=0.5",
        "fp16",
    ]
    every = {c.label.split()[0] for c in candidates("bert", PLAIN, [], 6)}
    # Adasum cannot combine six.
    assert {"none", "fp16", "powersgd", "diloco"} <= every
    assert "adasum" not in every
    assert not any(c.note for c in candidates("bert", [*PLAIN, "max_steps=100"], [], 6))
    (_, late) = candidates("bert", PLAIN, ["powersgd"], 2)
    assert late.note
    assert "first 6 updates" in late.note


def test_more_ranks_than_text_or_memory_are_refused() -> None:
    with pytest.raises(SpecError, match="long enough for"):
        LanguageModel(10**6, 0, "float64")
    candidate: Candidate = candidates("bert", PLAIN, [], 2)[0]
    with pytest.raises(SpecError, match="simulate fewer"):
        simulate(candidate, LeastSquares(2, 0, "float64"), 10**9)


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hvdtrain.cli", "simulate", "bert", *arguments],
        cwd=folder,
        env={
            "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
            "PATH": "/usr/bin:/bin",
            "COLUMNS": "150",
        },
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_leaves_a_picture_and_numbers_and_says_where(tmp_path: Path) -> None:
    done = command(tmp_path, "--ranks", "4", "--updates", "3", "--policy", "sign", "--policy", "{type: topk}")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "outputs" / "simulate-bert-4"
    assert image.imread(folder / "curves.png").ndim == 3
    found = json.loads((folder / "results.json").read_text())
    assert [part["problem"] for part in found] == list(PROBLEMS)
    for part in found:
        assert [outcome["policy"] for outcome in part["outcomes"]] == ["none", "sign", "topk"]
        assert all(outcome["updates"] == [0, 1, 2, 3] for outcome in part["outcomes"])
    last = done.stdout.strip().splitlines()[-1]
    assert "outputs/simulate-bert-4/curves.png" in last
    assert "outputs/simulate-bert-4/results.json" in last


def test_the_figure_shows_the_numbers(tmp_path: Path) -> None:
    outcomes = [Outcome("none", "least-squares", 2, [0, 1], [3.0, 2.0], [0, 10], [0, 20])]
    outcomes += [Outcome("sign", "least-squares", 2, [0, 1], [3.0, math.inf], [0, 1], [0, 2], math.nan)]
    problems: dict[str, Any] = {"least-squares": LeastSquares(2, 0, "float64")}
    best = problems["least-squares"].best
    rows = draw({"least-squares": outcomes}, problems).axes
    assert [axes.get_xlabel() for axes in rows] == [
        "update",
        "bytes sent by one rank",
        "bytes received by one rank",
    ]
    for axes, name in zip(rows, ("updates", "sent", "received"), strict=True):
        assert [line.get_label() for line in axes.lines] == ["none", "sign"]
        for line, outcome in zip(axes.lines, outcomes, strict=True):
            np.testing.assert_array_equal(line.get_xdata(), getattr(outcome, name))
            np.testing.assert_allclose(line.get_ydata(), np.array(outcome.losses) - best)
    _, numbers = write({"least-squares": outcomes}, problems, tmp_path)
    assert "NaN" not in numbers.read_text()
    assert "Infinity" not in numbers.read_text()
    (part,) = json.loads(numbers.read_text())
    assert [outcome["losses"] for outcome in part["outcomes"]] == [[3.0, 2.0], [3.0, None]]
    assert part["outcomes"][1]["distance"] is None


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["--policy", "fp61"], 1, "did you mean 'fp16'"),
        (["--policy", "{type: topk, ratio: 2}"], 1, "compression.ratio"),
        (["--policy", "{type:"], 1, "expected a name or YAML"),
        (["--policy", "adasum", "--ranks", "12"], 1, "found 12"),
        (["--set", "optimizer.learning_rat=1"], 1, "did you mean 'learning_rate'"),
        (["--ranks", "0"], 2, "--ranks"),
        (["--problem", "chess"], 2, "least-squares"),
    ],
)
def test_what_is_wrong_is_one_message(tmp_path: Path, arguments: list[str], status: int, told: str) -> None:
    done = command(tmp_path, "--updates", "2", *arguments)
    assert done.returncode == status
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "outputs").exists()


def _places(problem: LanguageModel, ranks: int) -> np.ndarray:
    from hvdtrain.core.random import generator

    most = problem._texts.shape[1] - 3
    return generator(0, "simulate batch", 5).integers(0, most, (ranks, problem.examples))
