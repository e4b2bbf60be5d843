"""Batches for a loop of the user's own, with a position that is valid on any number of ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf

from hvdtrain.core.data import Prefetcher
from hvdtrain.core.dropin.dealing import Dealer, Positioned, Share, read_samples
from hvdtrain.tensorflow.dropin.session import require_init

_Collate = Callable[[list[Any]], Any]


def dataset(
    dataset: Any,
    global_batch_size: int,
    *,
    seed: int = 0,
    shuffle: bool = True,
    drop_last: bool = False,
    gradient_accumulation_steps: int = 1,
    collate_fn: _Collate | None = None,
    prefetch: int = 2,
) -> Dataset:
    """Make a `tf.data.Dataset` of global batches, shared out over ranks, with a position.

    It is for `fit`, and for loops: iterating gives the rest of the current epoch, so a loop over epochs goes
    on in the middle of one after `load_state_dict`. Global batches are those of a job with this seed, on any
    number of ranks. All ranks get equally many. An epoch's last global batch may be smaller, and ranks' parts
    of it then differ by at most one sample: with `DistributedOptimizer(average="samples")` the mean is over
    the samples of all ranks.

    Args:
        dataset: map-style, with `len(dataset)` and `dataset[i]`, such as `(x, y)`.
        global_batch_size: samples of a global batch, over all ranks and micro-batches.
        seed: of the order, as a job's.
        shuffle: whether the order is random, in every epoch another.
        drop_last: whether to leave out an epoch's last global batch where it is smaller.
        gradient_accumulation_steps: micro-batches in which each rank gets its part of a global batch; the
            position counts whole global batches.
        collate_fn: makes a list of samples a batch of arrays; by default they are stacked.
        prefetch: batches that a thread makes ahead.

    Returns:
        The dataset, of arrays (samples, ...) in the structure of a sample.

    Raises:
        DataError: the dataset is not a map-style one.
        SpecError: the global batch cannot be cut evenly, or the last one of an epoch is too small for all
            ranks; the message says which sizes are near, or what to do.
        TrainingError: `init()` was not called.
    """
    require_init("dataset")
    dealer = Dealer(
        "dataset",
        dataset,
        global_batch_size,
        hvd.rank(),
        hvd.size(),
        seed,
        shuffle,
        drop_last,
        gradient_accumulation_steps,
    )
    # Keras takes the mean of no samples, which is not a number, into its metrics.
    dealer.check_no_share_is_empty()
    return Dataset(dealer, collate_fn or _stack, prefetch)


class Dataset(Positioned, tf.data.Dataset):  # type: ignore[misc]
    """What `dataset` makes.

    A batch counts as consumed when it is taken from this object, and not when it is made ahead. It is so with
    a `map` behind it, but not with another `prefetch`, which Keras adds for `class_weight`.
    """

    def __init__(self, dealer: Dealer, collate_fn: _Collate, prefetch: int) -> None:
        """Start at the beginning.

        Args:
            dealer: of the samples.
            collate_fn: makes a list of them a batch.
            prefetch: batches that a thread makes ahead.
        """
        self._dealer, self._collate_fn, self._prefetch = dealer, collate_fn, prefetch
        first = [self._collate_fn(read_samples(dealer.dataset, [i])) for i in {0, dealer.n_samples - 1}]
        signature = tf.nest.map_structure(_spec, *first)
        # TensorFlow would put a prefetch behind it, which takes batches before the loop does.
        options = tf.data.Options()
        options.experimental_optimization.inject_prefetch = False
        made = tf.data.Dataset.from_generator(self._batches, output_signature=signature)
        self._made = made.with_options(options)
        super().__init__(self._made._variant_tensor)

    @property
    def element_spec(self) -> Any:
        """As of every `tf.data.Dataset`; the number of samples is not fixed."""
        return self._made.element_spec

    def cardinality(self) -> tf.Tensor:
        """Batches of a whole epoch on each rank, an int64 scalar."""
        return tf.constant(len(self._dealer), tf.int64)

    @property
    def within_epoch(self) -> bool:
        """Whether some of this epoch's batches have been consumed, and some not."""
        return self._dealer.within_epoch

    def _inputs(self) -> list[Any]:
        return [self._made]

    def _batches(self) -> Iterator[Any]:
        with Prefetcher(map(self._make, self._dealer.rest_of_epoch()), self._prefetch) as ready:
            for share, batch in ready:
                self._dealer.samples_consumed = share.samples_consumed
                yield batch

    def _make(self, share: Share) -> tuple[Share, Any]:
        return share, self._collate_fn(read_samples(self._dealer.dataset, share.indices.tolist()))


def _stack(samples: Sequence[Any]) -> Any:
    """Samples in the structure of one, which is of tuples and dictionaries."""
    first = samples[0]
    if isinstance(first, dict):
        return {key: _stack([each[key] for each in samples]) for key in first}
    if isinstance(first, tuple):
        return tuple(map(_stack, zip(*samples, strict=True)))
    return np.stack(samples)


def _spec(*arrays: Any) -> tf.TensorSpec:
    """Of batches of which each may have other samples; dimensions that differ are open."""
    found = [np.asarray(each) for each in arrays]
    shape = [
        sizes[0] if len({*sizes}) == 1 else None for sizes in zip(*(a.shape[1:] for a in found), strict=True)
    ]
    return tf.TensorSpec([None, *shape], found[0].dtype)
