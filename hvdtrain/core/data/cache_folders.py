"""Where caches of tokens lie, and how one of them is made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hvdtrain.core.data import building
from hvdtrain.core.data.building import Recipe
from hvdtrain.core.data.store import Store, open_store
from hvdtrain.core.data.text import SourceSpec

FORMAT = 2


def cache_directory(data: SourceSpec) -> Path:
    """`data.cache_dir`, else data/ in the folder of all caches (see `cache_root`)."""
    return building.cache_directory(data.cache_dir)


def text_recipe(name: str, source: str, vocab_size: int, write: Callable[[Path], None]) -> Recipe[Store]:
    """How a cache of tokens is made.

    Args:
        name: of its directory: a hash of all that it is made from.
        source: what is tokenised, for the user.
        vocab_size: the model's.
        write: makes a valid store of an empty directory.
    """

    def done(store: Store) -> str:
        return (
            f"{len(store.offsets) - 1:,} sequences, {store.offsets[-1]:,} tokens, "
            f"{store.unknown_share:.2%} of the text [UNK]; tokenizer of {store.token_ids.size:,} tokens "
            f"(model.vocab_size {vocab_size:,})"
        )

    return Recipe(name, open_store, write, f"tokenising {source}", done)
