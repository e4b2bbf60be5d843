"""When sharded weights are gathered: before each use, in the order of the forward pass and back."""

from __future__ import annotations

import itertools
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from hvdtrain.core.compression.fp16 import Fp16
from hvdtrain.core.compression.none import NoCompression
from hvdtrain.core.compression.rules import Rules
from hvdtrain.core.families import bert, gpt2, llama
from hvdtrain.core.families.weights import Weight
from hvdtrain.core.update.buckets import Bucket, plan_buckets
from hvdtrain.core.update.gathers import Gathers, plan_gathers

# Rows of them are looked up or added: backward needs no values of theirs.
TABLES = {
    "transformer.wte.weight",
    "transformer.wpe.weight",
    "model.embed_tokens.weight",
}
TIED = {"transformer.wte.weight", "bert.embeddings.word_embeddings.weight", "model.embed_tokens.weight"}


def _weights(family: str, layers: int, tied: bool) -> tuple[Weight, ...]:
    if family == "gpt2":
        shape = {"n_embd": 8, "n_layer": layers, "n_head": 2, "n_positions": 16}
        return gpt2.weights(gpt2.ModelSpec(vocab_size=40, tie_word_embeddings=tied, **shape))
    sizes = {"hidden_size": 8, "num_hidden_layers": layers, "num_attention_heads": 2, "intermediate_size": 16}
    if family == "bert":
        return bert.weights(bert.ModelSpec(vocab_size=40, tie_word_embeddings=tied, **sizes))
    return llama.weights(
        llama.ModelSpec(vocab_size=40, num_key_value_heads=2, tie_word_embeddings=tied, **sizes)
    )


MODELS = st.builds(
    lambda family, layers, tied: (_weights(family, layers, tied), tied),
    st.sampled_from(["gpt2", "bert", "llama"]),
    st.integers(1, 5),
    st.booleans(),
)
RULES = st.builds(
    lambda patterns, mixed: Rules(
        (*(Fp16(match=pattern) for pattern in patterns), NoCompression()), 3, "bfloat16" if mixed else None
    ),
    st.lists(st.sampled_from(["*bias", "*.1.*", "*orm*", "*embed*"]), max_size=2, unique=True),
    st.booleans(),
)
CAPS = st.floats(10.0, 10_000.0)


def _plan(weights: tuple[Weight, ...], rules: Rules, cap: float) -> tuple[tuple[Bucket, ...], Gathers]:
    buckets = plan_buckets(weights, 4, cap, rules.apart, by_layer=True)
    return buckets, plan_gathers(buckets)


@given(MODELS, RULES, CAPS)
def test_forward_gathers_each_bucket_once_and_a_tied_embedding_twice(
    model: tuple[tuple[Weight, ...], bool], rules: Rules, cap: float
) -> None:
    weights, tied = model
    buckets, gathers = _plan(weights, rules, cap)
    counts = Counter(index for unit in gathers.forward for index in gathers.units[unit])
    for bucket in buckets:
        twice = tied and {w.name for w in bucket.weights} <= TIED
        assert counts.pop(bucket.index) == 1 + twice
    assert not counts


@given(MODELS, RULES, CAPS)
def test_the_order_is_that_of_the_forward_pass_and_then_back(
    model: tuple[tuple[Weight, ...], bool], rules: Rules, cap: float
) -> None:
    weights, tied = model
    buckets, gathers = _plan(weights, rules, cap)
    place = {weight.name: i for i, weight in enumerate(weights)}

    def places(unit: int) -> list[int]:
        return sorted(place[w.name] for index in gathers.units[unit] for w in buckets[index].weights)

    first = gathers.forward[:-1] if tied else gathers.forward
    assert [p for unit in first for p in places(unit)] == [*range(len(weights))]
    assert gathers.held == gathers.forward[-1]
    if tied:
        assert {weights[p].name for p in places(gathers.held)} <= TIED
    else:
        assert places(gathers.held)[-1] == len(weights) - 1
    for later, earlier in itertools.pairwise(gathers.backward):
        assert places(earlier)[-1] < places(later)[0]


@given(MODELS, RULES, CAPS)
def test_backward_gathers_once_what_it_needs_and_has_not(
    model: tuple[tuple[Weight, ...], bool], rules: Rules, cap: float
) -> None:
    buckets, gathers = _plan(model[0], rules, cap)
    names = [{w.name for index in unit for w in buckets[index].weights} for unit in gathers.units]
    needed = [i for i, unit in enumerate(names) if i != gathers.held and not unit <= TABLES]
    assert sorted(gathers.backward) == needed
    assert gathers.buckets == tuple(
        index for unit in (*gathers.forward, *gathers.backward) for index in gathers.units[unit]
    )
