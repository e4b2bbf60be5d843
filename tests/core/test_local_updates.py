"""Local updates without a framework: ranks as threads of one process, each with weights of its own."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hvdtrain.core.compression import LocalSGD
from hvdtrain.core.compression.protocol import Policy
from hvdtrain.core.compression.rules import Rules
from hvdtrain.core.data.text import TextSpec
from hvdtrain.core.errors import TrainingError
from hvdtrain.core.run.local_updates import local_updates
from hvdtrain.core.run.requests import SaveClock
from hvdtrain.core.run.results import UpdateResult
from hvdtrain.core.run.state import RunState
from hvdtrain.core.spec.sections import LossScaleSpec
from hvdtrain.core.update.precision import LossScale


@dataclass
class Window:
    """What one rank sees at one update."""

    gradient: float
    weight: float
    samples_consumed: int
    epoch: int = 0
    samples_global: int = 8
    tokens: int = 5
    own_samples: int = 4


class Meeting:
    """Joins threads: every collective waits for all, and fails when they ask for different things."""

    def __init__(self, size: int) -> None:
        self.size, self._asked = size, [("", np.zeros(0))] * size
        self._barrier = threading.Barrier(size, timeout=20)

    def sum(self, rank: int, what: str, values: np.ndarray) -> np.ndarray:
        self._asked[rank] = (what, values)
        self._barrier.wait()
        assert {name for name, _ in self._asked} == {what}
        total = sum(array for _, array in self._asked)
        self._barrier.wait()
        return np.asarray(total)


class Adapter:
    """One weight that moves against its gradient, and what one rank's `Run` has beside it."""

    def __init__(self, meeting: Meeting, rank: int, policy: LocalSGD, max_steps: int, fp16: bool) -> None:
        self.spec = SimpleNamespace(
            data=TextSpec(corpus="python-docs"),
            rules=Rules((policy,)),
            max_skipped_updates=50,
            mixed_precision="fp16" if fp16 else "no",
        )
        self.weights, self.plan = (
            (SimpleNamespace(name="w", buffer=False),),
            SimpleNamespace(max_steps=max_steps),
        )
        self.ranks = SimpleNamespace(rank=rank, size=meeting.size, sum=self._sum)
        self.adapter, self.reducer = self, SimpleNamespace(wire_bytes=0)
        self.model = SimpleNamespace(write=lambda arrays: None)
        self.generators = SimpleNamespace(read=dict, write=lambda states: None)
        self.weight, self.calls, self.scales = 0.0, [], []
        # Updates since the start, at each exchange.
        self.exchanged_after: list[int] = []
        self._policy, self._meeting, self._updates = policy, meeting, 0
        # Updates after which the weights are looked at, beside the last.
        self.due: set[int] = set()
        self.sent = self.mean = 0.0
        self.events: list[str] = []

    def weights_are_due(self, step: int) -> bool:
        self._updates = step
        return step in self.due or step == self.plan.max_steps

    def epoch_ends(self, before: int, after: int) -> bool:
        return False

    def learning_rate(self, step: int) -> float:
        return 0.1 * (step + 1)

    def local_update(
        self, window: Window, divisor: float, learning_rate: float, update: int, loss_scale: float
    ) -> UpdateResult:
        self.calls.append((update, divisor, learning_rate))
        self.events.append("update")
        self.scales.append(loss_scale)
        gradient = window.gradient / divisor
        if applied := math.isfinite(gradient):
            self.weight -= learning_rate * gradient
        return UpdateResult(2.0 * window.gradient, abs(gradient), applied, 0.0, window.tokens, window.weight)

    def exchange(self, policy: Policy) -> None:
        if policy == self._policy:
            self.exchanged_after.append(self._updates)
            self.weight = self.sent = self.mean = self._average(self.weight + self.mean - self.sent)
            self.events.append("exchange")
        elif policy in (self._policy.background or ()):
            self.weight += self.mean - self.sent
            self.sent = self.weight
            self.events.append("join")

    def start_exchange(self, policy: Policy) -> None:
        assert self._policy.background and policy == self._policy.background[1]
        self.events.append("start")

    def finish_exchange(self) -> None:
        self.mean = self._average(self.sent)
        self.events.append("finish")

    def find_nonfinite(self, window: Window, divisor: float, loss_scale: float) -> np.ndarray:
        return np.array([False, not math.isfinite(window.gradient)])

    def _average(self, value: float) -> float:
        self.reducer.wire_bytes += 8
        return float(self._meeting.sum(self.ranks.rank, "exchange", np.array(value))) / self.ranks.size

    def _sum(self, values: np.ndarray) -> np.ndarray:
        self.events.append("sum")
        return self._meeting.sum(self.ranks.rank, "sum", values)


def run(
    gradients: list[list[float]],
    weights: list[list[float]],
    sync_every: int,
    scale: LossScale = LossScale(),  # noqa: B008 - frozen
    overlap: bool = False,
    due: Sequence[int] = (),
) -> tuple[list[Adapter], list[RunState], list[list[dict[str, Any]]]]:
    """Train on one list of gradients and one of window weights for each rank.

    Returns the ranks' adapters, where each stands at the end, and its lines.
    """
    size, steps = len(gradients), len(gradients[0])
    meeting = Meeting(size)
    policy = LocalSGD(sync_every=sync_every, overlap=overlap)
    adapters = [Adapter(meeting, rank, policy, steps, scale.rule is not None) for rank in range(size)]
    for adapter in adapters:
        adapter.due = set(due)

    def train(rank: int) -> list[tuple[dict[str, Any], RunState]]:
        own = zip(gradients[rank], weights[rank], strict=True)
        windows = (Window(g, w, 8 * (i + 1)) for i, (g, w) in enumerate(own))
        endless: Any = itertools.chain(windows, itertools.repeat(Window(math.nan, 1.0, 0)))
        held: Any = adapters[rank]
        return list(local_updates(held, RunState(loss_scale=scale), next(endless), endless, SaveClock(None)))

    with ThreadPoolExecutor(size) as pool:
        found = list(pool.map(train, range(size)))
    return adapters, [rank[-1][1] for rank in found], [[line for line, _ in rank] for rank in found]


def test_each_rank_takes_its_own_updates_and_weights_are_averaged_in_the_end_as_well() -> None:
    gradients = [[1.0, 2.0, 3.0, 4.0, 5.0], [6.0, 5.0, 4.0, 3.0, 2.0]]
    weights = [[1.0, 2.0, 1.0, 2.0, 1.0], [2.0, 4.0, 2.0, 1.0, 1.0]]
    adapters, states, lines = run(gradients, weights, sync_every=2)
    assert [adapter.exchanged_after for adapter in adapters] == [[2, 4, 5]] * 2
    rates = 0.1 * np.arange(1, 6)
    expected = -(rates * np.array(gradients) / np.array(weights)).mean(axis=0).sum()
    assert [adapter.weight for adapter in adapters] == [pytest.approx(expected, rel=1e-14)] * 2
    assert [state.samples_consumed for state in states] == [40, 40]
    for mine, theirs in zip(*lines, strict=True):
        assert {k: v for k, v in mine.items() if not k.endswith("_s")} == {
            k: v for k, v in theirs.items() if not k.endswith("_s")
        }
    steps = ("step", "loss", "learning_rate", "tokens", "samples", "samples_consumed", "wire_bytes")
    assert [tuple(line[key] for key in steps) for line in lines[0]] == [
        (2, pytest.approx(2 * (1 + 2 + 6 + 5) / 9), pytest.approx(0.2), 20, 16, 16, 8),
        (4, pytest.approx(2 * (3 + 4 + 4 + 3) / 6), pytest.approx(0.4), 20, 16, 32, 8),
        (5, pytest.approx(2 * (5 + 2) / 2), pytest.approx(0.5), 10, 8, 40, 8),
    ]
    assert lines[0][0]["grad_norm"] == pytest.approx((1 / 1 + 2 / 2 + 6 / 2 + 5 / 4) / 4)


def test_an_exchange_overlaps_with_the_next_updates_until_the_weights_are_due() -> None:
    gradients = [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0], [6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0, 1.0, 2.0]]
    adapters, _, (lines, _) = run(gradients, [[1.0] * 9] * 2, sync_every=2, overlap=True, due=[6])
    period = ["update", "update"]
    assert [adapter.events for adapter in adapters] == 2 * [
        [
            *(*period, "join", "sum", "start"),
            *(*period, "finish", "join", "sum", "start"),
            *(*period, "finish", "exchange", "sum"),
            *(*period, "join", "sum", "start"),
            *("update", "finish", "exchange", "sum"),
        ]
    ]
    assert [adapter.exchanged_after for adapter in adapters] == [[6, 9]] * 2
    # Means lose nothing of what ranks did: in the end it is the sum of all ranks' mean updates.
    expected = -(0.1 * np.arange(1, 10) * np.array(gradients)).mean(axis=0).sum()
    assert [adapter.weight for adapter in adapters] == [pytest.approx(expected, rel=1e-14)] * 2
    # An exchange's bytes are told of with the updates that it ran beside.
    assert [line["wire_bytes"] for line in lines] == [0, 8, 16, 0, 16]


@pytest.mark.parametrize("overlap", [False, True])
def test_all_ranks_stop_at_the_exchange_after_one_was_told(
    overlap: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of each exchange, one answer for each of two ranks.
    answers = itertools.chain([False, False, True, False], itertools.repeat(False))
    monkeypatch.setattr("hvdtrain.core.run.local_updates.told_to_stop", lambda: next(answers))
    gradients = [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [6.0, 5.0, 4.0, 3.0, 2.0, 1.0]]
    adapters, states, lines = run(gradients, [[1.0] * 6] * 2, sync_every=2, overlap=overlap)
    assert [(state.step, state.stopping) for state in states] == [(4, True)] * 2
    assert [line["step"] for line in lines[0]] == [2, 4]
    expected = -(0.1 * np.arange(1, 5) * np.array(gradients)[:, :4]).mean(axis=0).sum()
    assert [adapter.weight for adapter in adapters] == [pytest.approx(expected, rel=1e-14)] * 2


def test_a_rank_whose_gradient_is_not_finite_skips_its_own_update_and_nobody_waits() -> None:
    adapters, _, (lines, _) = run([[1.0, math.nan, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]], [[1.0] * 4] * 2, 2)
    expected = -(0.1 + 0.1 + 0.2) / 2 - (0.3 + 0.4)
    assert adapters[0].weight == adapters[1].weight == pytest.approx(expected, rel=1e-14)
    assert [line["step"] for line in lines] == [2, 4]
    assert [line["loss"] for line in lines] == [2.0, 2.0]
    assert [line["skipped_updates"] for line in lines] == [1, 1]
    # The optimizer's own count leaves the skipped one out; the learning rate does not.
    assert [call[0] for call in adapters[0].calls] == [1, 2, 2, 3]
    assert [call[2] for call in adapters[0].calls] == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_a_loss_scale_is_a_ranks_own_until_an_exchange_and_then_the_least() -> None:
    rule = LossScaleSpec(initial=8.0, growth_interval=3)
    gradients = [[math.nan, 1.0, 1.0, 1.0, 1.0, 1.0], [1.0] * 6, [1.0] * 6]
    adapters, states, lines = run(gradients, [[1.0] * 6] * 3, 2, LossScale(8.0, rule=rule))
    # Rank 0 halves it and has one good update; the others would have grown theirs at the fourth.
    assert [adapter.scales for adapter in adapters] == [
        [8.0, 4.0, 4.0, 4.0, 8.0, 8.0],
        [8.0, 8.0, 4.0, 4.0, 8.0, 8.0],
        [8.0, 8.0, 4.0, 4.0, 8.0, 8.0],
    ]
    assert {state.loss_scale for state in states} == {LossScale(8.0, 2, rule)}
    assert [line["loss_scale"] for line in lines[0]] == [4.0, 8.0, 8.0]


def test_a_rank_whose_scale_can_fall_no_further_says_which_gradient_it_was() -> None:
    rule = LossScaleSpec(initial=2.0, minimum=1.0)
    told = r"at a loss scale of 1 either, and loss_scale\.minimum is 1: .* the gradient of w\..*bf16"
    with pytest.raises(TrainingError, match=told):
        run([[math.nan] * 4], [[1.0] * 4], 4, LossScale(2.0, rule=rule))


def test_a_rank_without_data_does_not_move() -> None:
    adapters, _, (lines, _) = run([[1.0, 1.0], [1.0, 0.0]], [[1.0, 1.0], [1.0, 0.0]], 2)
    assert len(adapters[1].calls) == 1
    assert adapters[0].weight == pytest.approx(-(0.1 + 0.2 + 0.1) / 2, rel=1e-14)
    assert lines[0]["loss"] == 2.0
    assert lines[0]["skipped_updates"] == lines[0]["empty_updates"] == 0


def test_an_update_in_which_no_rank_has_data_is_counted_as_empty_and_moves_nobody() -> None:
    gradients, weights = [[1.0, 1.0, math.nan, 1.0]] * 2, [[1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 1.0, 0.0]]
    rule = LossScaleSpec(initial=8.0)
    adapters, _, (lines, _) = run(gradients, weights, 2, LossScale(8.0, rule=rule))
    assert [len(adapter.calls) for adapter in adapters] == [2, 1]
    assert adapters[0].weight == adapters[1].weight == pytest.approx(-0.1 / 2, rel=1e-14)
    assert [line["step"] for line in lines] == [2, 4]
    # In the second period rank 0 and rank 1 skip an update each that is not finite, and all the last one.
    assert [line["empty_updates"] for line in lines] == [1, 2]
    assert [line["skipped_updates"] for line in lines] == [1, 4]
    assert [line["loss"] for line in lines] == [2.0, None]
    assert [line["grad_norm"] for line in lines] == [1.0, None]
    assert lines[-1]["loss_scale"] == 4.0


def test_fifty_updates_that_no_rank_could_apply_end_the_run() -> None:
    with pytest.raises(TrainingError, match=r"52 updates in a row after step 52 .* training has diverged"):
        run([[math.nan] * 60] * 2, [[1.0] * 60] * 2, 4)
    _, states, _ = run([[math.nan] * 60, [1.0] * 60], [[1.0] * 60] * 2, 4)
    assert states[0].step == 60


def test_so_do_fifty_that_had_nothing_to_predict_by_their_own_reason() -> None:
    with pytest.raises(TrainingError, match=r"52 updates in a row after step 52 had nothing to predict"):
        run([[1.0] * 60] * 2, [[0.0] * 60] * 2, 4)
