"""From text to micro-batches: the same samples and masks in every framework, world size and resume."""

from __future__ import annotations

from hvdtrain.core.data.batches import (
    Batch,
    Dataset,
    Split,
    TextFacts,
    Window,
    eval_batches,
    eval_rounds,
    train_windows,
)
from hvdtrain.core.data.building import cache_directory
from hvdtrain.core.data.cache import prepare
from hvdtrain.core.data.corpus import Corpus, Sequences
from hvdtrain.core.data.masking import max_predictions
from hvdtrain.core.data.order import (
    Position,
    epoch_order,
    global_batches,
    rank_share,
)
from hvdtrain.core.data.prefetch import Prefetcher
from hvdtrain.core.data.text import TokenIds

__all__ = [
    "Batch",
    "Corpus",
    "Dataset",
    "Position",
    "Prefetcher",
    "Sequences",
    "Split",
    "TextFacts",
    "TokenIds",
    "Window",
    "cache_directory",
    "epoch_order",
    "eval_batches",
    "eval_rounds",
    "global_batches",
    "max_predictions",
    "prepare",
    "rank_share",
    "train_windows",
]
