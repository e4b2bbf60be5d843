"""Ranks that differ are told which, in what, and what to do."""

from __future__ import annotations

import threading

import pytest

from hvdtrain.core.dropin import Parameter, check_same, describe, digest, make_settings
from hvdtrain.core.errors import TrainingError

W, B = Parameter("fc.weight", (4, 3), "float32"), Parameter("fc.bias", (4,), "float32")
ADVICE = "call broadcast_parameters"


def message(*ranks: bytes) -> str | None:
    """What `check_same` says when these are the ranks' descriptions; all ranks must say the same."""
    met, board, said = threading.Barrier(len(ranks)), {}, {}

    def rank(number: int) -> None:
        def gather(data: bytes) -> list[bytes]:
            board[number] = data
            met.wait()
            found = [board[i] for i in range(len(ranks))]
            met.wait()
            return found

        try:
            check_same(ranks[number], gather, ADVICE)
            said[number] = None
        except TrainingError as error:
            said[number] = str(error)

    threads = [threading.Thread(target=rank, args=(i,)) for i in range(len(ranks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [common] = set(said.values())
    return common


def test_equal_ranks_are_equal() -> None:
    mine = describe([W, B], make_settings("w"), [digest(b"1"), digest(b"2")])
    assert message(mine, mine, mine) is None


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        ([Parameter("fc.weight", (5, 3), "float32"), B], ["'fc.weight'", "[4, 3]", "[5, 3]", "rank 1"]),
        ([Parameter("fc.weight", (4, 3), "float64"), B], ["'fc.weight'", "float32", "float64"]),
        ([W], ["parameter 1", "'fc.bias' on rank 0", "missing on rank 1"]),
        ([W, B, Parameter("extra", (1,), "float32")], ["parameter 2", "missing on rank 0", "'extra'"]),
        ([B, W], ["parameter 0", "'fc.weight' on rank 0", "'fc.bias' on rank 1"]),
    ],
)
def test_another_model_is_named(odd: list[Parameter], words: list[str]) -> None:
    found = message(describe([W, B]), describe(odd), describe([W, B]))
    for word in [*words, "the same model"]:
        assert word in str(found)


def test_values_that_differ_come_with_advice_and_all_their_ranks() -> None:
    alike = describe([W, B], None, [digest(b"1"), digest(b"2")])
    other = describe([W, B], None, [digest(b"1"), digest(b"3")])
    assert message(alike, other, alike, other) == (
        "parameter 'fc.bias' has other values on ranks 1, 3 than on rank 0: call broadcast_parameters"
    )


def test_other_arguments_are_named() -> None:
    ours, theirs = (describe([W], make_settings("w", max_grad_norm=norm)) for norm in (1.0, 2.0))
    assert message(ours, theirs) == (
        "max_grad_norm is 1.0 on rank 0, but 2.0 on rank 1: give every rank the same arguments"
    )


def test_whatever_else_the_user_has_chosen_is_compared() -> None:
    ours, theirs = (describe([W], options={"Adam.learning_rate": rate}) for rate in (0.1, 0.2))
    assert message(ours, theirs, theirs) == (
        "Adam.learning_rate is 0.1 on rank 0, but 0.2 on ranks 1, 2: give every rank the same arguments"
    )
    for ranks in ((ours, describe([W])), (describe([W]), ours)):
        assert "missing on rank" in str(message(*ranks))


def test_a_name_may_differ_where_the_shared_part_of_it_does_not() -> None:
    def named(name: str, shared: str, shape: tuple[int, ...] = (4, 3), value: bytes = b"1") -> bytes:
        found = Parameter(name, shape, "float32", shared_name=shared)
        return describe([found], make_settings("w"), [digest(value)])

    loaded, built = named("dense/kernel", "kernel"), named("model/dense/kernel", "kernel")
    assert message(loaded, built) is None
    for other, word in (
        (named("model/dense/bias", "bias"), "'model/dense/bias' on rank 1"),
        (named("model/dense/kernel", "kernel", (3, 4)), "shape [3, 4]"),
        (named("model/dense/kernel", "kernel", value=b"2"), "'dense/kernel' has other values on rank 1"),
    ):
        assert word in str(message(loaded, other))


def test_names_that_choose_another_compression_are_told() -> None:
    policies = [{"type": "int8", "match": "dense*"}, {"type": "fp16"}]

    def named(name: str) -> bytes:
        found = Parameter(name, (4, 3), "float32", shared_name="kernel")
        return describe([found], make_settings("w", compression=policies))

    found = message(named("dense/kernel"), named("model/dense/kernel"))
    assert "entry 0 of compression on rank 0, but" in str(found)
