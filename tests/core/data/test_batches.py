"""Micro-batches: static shapes, exact weights, and the same samples whatever the ranks and accumulation."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvdtrain.core.data.batches import (
    Batch,
    Window,
    eval_batches,
    eval_rounds,
    train_windows,
)
from hvdtrain.core.data.corpus import Corpus, Sequences
from hvdtrain.core.data.masking import max_predictions
from hvdtrain.core.data.text import TokenIds
from hvdtrain.core.tasks.masked_lm import MaskedSplit, TaskSpec
from hvdtrain.core.update.accumulation import Accumulation

IDS = TokenIds(size=500, pad=0, cls=2, sep=3, mask=4, special=(0, 1, 2, 3, 4))
WIDTH = 24


def dataset(train: int, validation: int = 0) -> Corpus:
    """Ragged sequences, each with tokens of its own, so that a sample can be told by its labels."""
    lengths = [3 + (7 * i) % (WIDTH - 2) for i in range(train + validation)]
    bodies = [[IDS.cls, *(5 + (i * 31 + np.arange(n - 2)) % 490), IDS.sep] for i, n in enumerate(lengths)]
    tokens = np.concatenate([np.array(body, dtype=np.uint16) for body in bodies])
    offsets = np.cumsum([0, *lengths])
    views = (Sequences(tokens, offsets, m) for m in np.split(np.arange(train + validation), [train]))
    return Corpus(*views, Path("tokenizer.json"), IDS, WIDTH, "")


def samples(corpus: Corpus, task: TaskSpec | None = None, seed: int = 0) -> MaskedSplit:
    return MaskedSplit(corpus.train, corpus, task or TaskSpec(), seed)


def questions(corpus: Corpus) -> MaskedSplit:
    return MaskedSplit(corpus.validation, corpus, TaskSpec(), 1)


def rows_of(batches: Sequence[Batch]) -> list[tuple[Any, ...]]:
    """Every real row with all that belongs to it, in an order of its own."""
    return sorted(
        tuple(array[row].tobytes() for array in batch.arrays().values())
        for batch in batches
        for row in range(batch.counts["samples"])
    )


def windows(
    data: Corpus, size: int, accumulation: int, per_device: int, count: int, **more: Any
) -> list[list[Window]]:
    """The first `count` windows of every rank, by update."""
    cut = Accumulation(size, per_device, ((0, accumulation),))
    streams = [
        train_windows(samples(data, seed=1), seed=1, accumulation=cut, rank=rank, **more)
        for rank in range(size)
    ]
    return [[next(stream) for stream in streams] for _ in range(count)]


def test_full_and_short_and_empty_batches_have_the_same_shapes() -> None:
    data = dataset(5)
    places = max_predictions(0.15, WIDTH)
    for count in (4, 3, 0):
        batch = samples(data).collate(np.arange(count), 0, 4)
        assert {name: (array.shape, array.dtype.name) for name, array in batch.arrays().items()} == {
            "input_ids": ((4, WIDTH), "int32"),
            "attention_mask": ((4, WIDTH), "int32"),
            "token_type_ids": ((4, WIDTH), "int32"),
            "masked_positions": ((4, places), "int32"),
            "targets": ((4, places), "int32"),
            "loss_weights": ((4, places), "float64"),
        }
        assert batch.counts["samples"] == count
        assert batch.counts["tokens"] == data.train.lengths[:count].sum()
        assert not batch.inputs["token_type_ids"].any()
        np.testing.assert_array_equal(
            batch.inputs["attention_mask"][:count].sum(axis=1), data.train.lengths[:count]
        )


def test_rows_beyond_the_data_weigh_nothing_and_attend_to_something() -> None:
    data = dataset(5)
    batch = samples(data).collate(np.arange(2), 0, 4)
    assert (batch.inputs["input_ids"][2:] == IDS.pad).all()
    assert (batch.inputs["attention_mask"][2:] == 1).all()
    assert not batch.loss_weights[2:].any()


def test_weights_by_token_count_the_predictions() -> None:
    data = dataset(6)
    batch = samples(data, TaskSpec(normalize="token")).collate(np.arange(6), 0, 8)
    expected = [max(1, round(0.15 * (length - 2))) for length in data.train.lengths]
    assert batch.loss_weights.sum(axis=1).tolist() == [*expected, 0, 0]
    assert set(np.unique(batch.loss_weights)) == {0.0, 1.0}
    assert batch.weight == sum(expected)


def test_weights_by_example_count_the_rows() -> None:
    data = dataset(6)
    batch = samples(data, TaskSpec(normalize="example")).collate(np.arange(6), 0, 8)
    np.testing.assert_allclose(batch.loss_weights.sum(axis=1), [1] * 6 + [0] * 2, rtol=1e-15)
    assert batch.weight == 6.0


def test_padding_is_masked_out_of_real_rows() -> None:
    data = dataset(6)
    batch = samples(data).collate(np.arange(6), 0, 6)
    assert (batch.inputs["input_ids"][batch.inputs["attention_mask"] == 0] == IDS.pad).all()
    assert (batch.inputs["input_ids"][batch.inputs["attention_mask"] == 1] != IDS.pad).sum() >= batch.counts[
        "tokens"
    ] - batch.weight


@pytest.mark.parametrize(
    ("size", "accumulation", "per_device"), [(1, 8, 1), (2, 4, 1), (4, 2, 1), (8, 1, 1), (2, 1, 4)]
)
def test_any_split_makes_the_same_updates(size: int, accumulation: int, per_device: int) -> None:
    data = dataset(21)
    one_rank = windows(data, 1, 1, 8, 7)
    split = windows(data, size, accumulation, per_device, 7)
    for [whole], parts in zip(one_rank, split, strict=True):
        together = [batch for window in parts for batch in window.micro_batches]
        assert rows_of(together) == rows_of(whole.micro_batches)
        assert sum(window.weight for window in parts) == whole.weight
        assert sum(window.tokens for window in parts) == whole.tokens
        assert sum(batch.counts["samples"] for batch in together) == whole.samples_global
        assert {(window.epoch, window.samples_consumed, window.samples_global) for window in parts} == {
            (whole.epoch, whole.samples_consumed, whole.samples_global)
        }
    assert [whole.samples_consumed for [whole] in one_rank] == [8, 16, 21, 29, 37, 42, 50]
    assert [whole.epoch for [whole] in one_rank] == [0, 0, 0, 1, 1, 1, 2]


def test_resumed_windows_are_those_of_the_unbroken_run() -> None:
    data = dataset(21)
    whole = windows(data, 2, 2, 2, 6)
    resumed = windows(data, 2, 2, 2, 3, start_samples=whole[2][0].samples_consumed)
    for expected, found in zip(whole[3:], resumed, strict=True):
        assert [rows_of(w.micro_batches) for w in found] == [rows_of(w.micro_batches) for w in expected]
        assert found[0].samples_consumed == expected[0].samples_consumed


def test_epochs_repeat_the_samples_under_other_masks() -> None:
    first, second = (window for [window] in windows(dataset(8), 1, 1, 8, 2))
    assert first.tokens == second.tokens
    assert rows_of(first.micro_batches) != rows_of(second.micro_batches)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(0, 30), size=st.integers(1, 5), per_device=st.integers(1, 6))
def test_evaluation_asks_every_sample_once_with_equal_rounds(n: int, size: int, per_device: int) -> None:
    data = dataset(1, n)
    whole = list(eval_batches(questions(data), per_device=max(n, 1), rank=0, size=1))
    ranks = [
        list(eval_batches(questions(data), per_device=per_device, rank=rank, size=size))
        for rank in range(size)
    ]
    assert {len(batches) for batches in ranks} == {eval_rounds(n, per_device, size)}
    assert rows_of([batch for batches in ranks for batch in batches]) == rows_of(whole)
    assert sum(batch.counts["samples"] for batches in ranks for batch in batches) == n


def test_every_evaluation_asks_the_same() -> None:
    data = dataset(4, 10)
    once, again = (
        list(islice(eval_batches(questions(data), per_device=4, rank=0, size=1), 3)) for _ in range(2)
    )
    assert rows_of(once) == rows_of(again)
