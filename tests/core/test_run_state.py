"""What an update makes of a run's state: each kind of update, and how it ends."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from hvdtrain.core.data import Batch, Window
from hvdtrain.core.run import ranks as ranks_module
from hvdtrain.core.run.ranks import Ranks
from hvdtrain.core.run.state import RunState
from hvdtrain.core.run.world import World
from hvdtrain.core.spec.sections import LossScaleSpec
from hvdtrain.core.update.precision import LossScale

RULE = LossScaleSpec(initial=8.0, growth_interval=2)
STATE = RunState(
    step=4,
    applied=3,
    windows=6,
    samples_consumed=48,
    skipped_updates=2,
    empty_updates=1,
    loss_scale=LossScale(8.0, 0, RULE),
)
ONE_MORE_GOOD, HALVED = LossScale(8.0, 1, RULE), LossScale(4.0, 0, RULE)


def window(weight: float) -> Window:
    batch = Batch({}, np.zeros((1, 1)), np.ones((1, 1)), weight, {"samples": 1, "tokens": 1})
    return Window((batch,), epoch=0, samples_global=8, samples_consumed=56)


@pytest.mark.parametrize(
    ("applied", "empty", "changes"),
    [
        (True, False, {"step": 5, "applied": 5, "loss_scale": ONE_MORE_GOOD}),
        (False, False, {"skipped_updates": 3, "loss_scale": HALVED}),
        (False, True, {"skipped_updates": 3, "empty_updates": 2}),
    ],
)
def test_an_update_of_all_ranks_is_a_step_only_if_it_is_applied(
    applied: bool, empty: bool, changes: dict[str, Any]
) -> None:
    found = STATE.after_joint(window(0.0 if empty else 2.0), applied, empty)
    assert found == dataclasses.replace(STATE, windows=7, samples_consumed=56, own_samples=1, **changes)


@pytest.mark.parametrize(
    ("applied", "empty", "changes"),
    [
        (True, False, {"applied": 4, "loss_scale": ONE_MORE_GOOD}),
        (False, False, {"loss_scale": HALVED}),
        (False, True, {}),
    ],
)
def test_an_update_of_one_rank_is_a_step_in_any_case(
    applied: bool, empty: bool, changes: dict[str, Any]
) -> None:
    found = STATE.after_local(window(0.0 if empty else 2.0), applied, empty)
    counted = dataclasses.replace(STATE, step=5, windows=7, samples_consumed=56, own_samples=1)
    assert found == dataclasses.replace(counted, **changes)


def test_what_ranks_skipped_alone_is_counted_when_they_meet() -> None:
    found = STATE.after_exchange(HALVED, skipped=3, empty=1)
    assert found == dataclasses.replace(STATE, skipped_updates=5, empty_updates=2, loss_scale=HALVED)


@pytest.mark.parametrize("scale", [LossScale(1024.0, 3, RULE), LossScale(1024.0), LossScale()])
def test_a_loss_scale_comes_back_from_a_checkpoint(scale: LossScale) -> None:
    saved = scale.saved()
    fresh = dataclasses.replace(scale, value=8.0, good_updates=0) if scale.rule else scale
    assert fresh.restored(saved.value, saved.good_updates) == scale
    # Of a run whose scale never changed, a run whose scale does takes nothing over.
    if scale.rule is None:
        assert STATE.loss_scale.restored(saved.value, saved.good_updates) == STATE.loss_scale


def test_ranks_name_what_they_ask_for() -> None:
    asked: list[str] = []

    def note(value: Any, name: str) -> Any:
        asked.append(name)
        return value

    ranks, values = Ranks(World(1, 4, 1, 2, 8), note, note, lambda data, name: [note(data, name)]), np.ones(2)
    assert (ranks.rank, ranks.size, ranks.is_chief) == (1, 4, False)
    assert ranks.sum(values) is values
    np.testing.assert_array_equal(ranks.broadcast(values), values)
    assert ranks.gather(b"data") == [b"data"]
    assert asked == ["sum_over_ranks", "broadcast", "agreement"]


@pytest.mark.parametrize("shape", [(), (0, 3), (2,), (5, 7)])
@pytest.mark.parametrize("dtype", [np.float64, np.int16, np.bool_])
def test_what_is_too_long_for_one_message_goes_in_pieces(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], dtype: type
) -> None:
    monkeypatch.setattr(ranks_module, "MESSAGE_BYTES", 12)
    sent = np.random.default_rng(1).integers(0, 2, shape).astype(dtype)
    messages: list[np.ndarray] = []

    def send(values: np.ndarray, name: str) -> np.ndarray:
        messages.append(values.copy())
        return messages[-1]

    def receive(values: np.ndarray, name: str) -> np.ndarray:
        found = messages.pop(0)
        assert values.size == found.size <= 12
        return found

    first, second = (
        Ranks(World(rank, 2, rank, 2, 8), send, carry, lambda data, name: [data])
        for rank, carry in enumerate((send, receive))
    )
    summed = first.sum(sent)
    assert (summed.dtype, summed.shape, summed.tobytes()) == (sent.dtype, sent.shape, sent.tobytes())
    assert all(message.nbytes <= 12 for message in messages)
    assert sum(message.size for message in messages) == sent.size
    messages.clear()
    assert first.broadcast(sent).tobytes() == sent.tobytes()
    assert len(messages) == -(-sent.nbytes // 12)
    found = second.broadcast(np.empty_like(sent))
    assert (found.dtype, found.shape) == (sent.dtype, sent.shape)
    np.testing.assert_array_equal(found, sent)
    first.broadcast_arrays({"sent": sent, "": np.arange(40)})
    np.testing.assert_array_equal(second.broadcast_arrays({})["sent"], sent)
