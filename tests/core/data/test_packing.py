"""Sequences made from documents: nothing lost, nothing added but the special tokens."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hvdtrain.core.data.packing import pack, split

CLS, SEP = 101, 102
corpora = st.lists(st.lists(st.integers(0, 99), max_size=30), max_size=12)


def join(documents: list[list[int]]) -> list[int]:
    """The oracle: the stream that packing cuts."""
    stream: list[int] = []
    for document in filter(None, documents):
        stream += [SEP, *document] if stream else document
    return stream


@given(corpora, st.integers(8, 20))
def test_packing_cuts_the_joined_documents(documents: list[list[int]], length: int) -> None:
    sequences = [sequence.tolist() for sequence in pack(documents, length, CLS, SEP)]
    assert [token for sequence in sequences for token in sequence[1:-1]] == join(documents)
    assert all(sequence[0] == CLS and sequence[-1] == SEP for sequence in sequences)
    assert all(len(sequence) == length for sequence in sequences[:-1])
    assert all(3 <= len(sequence) <= length for sequence in sequences)


@given(corpora, st.integers(8, 20))
def test_without_packing_no_sequence_holds_two_documents(documents: list[list[int]], length: int) -> None:
    sequences = iter([sequence.tolist() for sequence in split(documents, length, CLS, SEP)])
    for document in documents:
        for start in range(0, len(document), length - 2):
            cls, *body, sep = next(sequences)
            assert (cls, sep) == (CLS, SEP)
            assert body == document[start : start + length - 2]
    assert next(sequences, None) is None
