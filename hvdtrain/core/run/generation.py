"""Text from a causal language model: one token after the other, the same in either framework."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hvdtrain.core.checkpoints.saved_models import TOKENIZER_FILE, SavedModel
from hvdtrain.core.data.byte_level_bpe import ByteLevelBPE
from hvdtrain.core.data.special_tokens import named_beside
from hvdtrain.core.errors import CheckpointError, DataError
from hvdtrain.core.random import random_words, unit_floats
from hvdtrain.core.tasks.task import most_positions

# From tokens, (rows, length), to the logits of what follows each row, (rows, vocab_size).
NextLogits = Callable[[NDArray[np.int32]], NDArray[np.floating]]


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen; Hugging Face's names.

    Attributes:
        temperature: what logits are divided by before the softmax; 0 takes the most likely token.
        top_k: draw from so many most likely tokens (and those as likely as the last); None: from all.
        seed: of the draws. The same seed and logits give the same tokens.
    """

    temperature: float = 0.0
    top_k: int | None = None
    seed: int = 0

    def choose(self, logits: NDArray[np.floating], step: int) -> int:
        """A token.

        Args:
            logits: of each token, (vocab_size,).
            step: tokens chosen before it.
        """
        if self.temperature == 0.0:
            return int(np.argmax(logits))
        scores = logits.astype(np.float64)
        if self.top_k is not None and self.top_k < len(scores):
            smallest = np.partition(scores, -self.top_k)[-self.top_k]
            scores[scores < smallest] = -np.inf
        # Less the largest first: a small temperature would overflow.
        with np.errstate(over="ignore"):
            total = np.cumsum(np.exp((scores - scores.max()) / self.temperature))
        (place,) = unit_floats(random_words(1, self.seed, "generate", step)) * total[-1]
        return int(np.searchsorted(total, place, side="right"))


def continue_text(
    next_logits: NextLogits,
    saved: SavedModel,
    prompt: str,
    sampling: Sampling,
    max_new_tokens: int,
    note: Callable[[str], None],
) -> str:
    """What a model writes behind a prompt, up to the end of the text.

    Args:
        next_logits: the model in a framework.
        saved: the same model, with its tokenizer.
        prompt: any text; an empty one starts a new text.
        sampling: how tokens are chosen.
        max_new_tokens: at most.
        note: called with a line for the user when the model cannot see all of the prompt.

    Raises:
        DataError: the prompt is not text, or the tokenizer is not that of a causal language model.
        CheckpointError: the model's logits are not finite.
    """
    tokenizer, file = saved.tokenizer, saved.directory / TOKENIZER_FILE
    special = ByteLevelBPE().token_ids(tokenizer, saved.model.vocab_size, str(file), named_beside(file))
    start, end = special.cls, special.sep
    tokenizer.no_truncation()
    tokenizer.no_padding()
    try:
        ids = tokenizer.encode(prompt, add_special_tokens=False).ids
    except TypeError:  # the library raises TypeError for half of a surrogate pair
        raise DataError("the prompt is not text in UTF-8") from None
    # Where no token begins a text, the end of another one does.
    ids = [start, *ids] if start != end else ids or [end]
    most = most_positions(saved.model)
    if most is not None and len(ids) > most:
        note(
            f"the prompt has {len(ids)} tokens and the model sees {most}: the first {len(ids) - most} are cut"
        )
    new = continue_tokens(next_logits, ids, end, sampling, max_new_tokens, most)
    found: str = tokenizer.decode(list(new), skip_special_tokens=False)
    return found


def continue_tokens(
    next_logits: NextLogits,
    ids: list[int],
    end: int,
    sampling: Sampling,
    max_new_tokens: int,
    most: int | None = None,
) -> Iterator[int]:
    """Tokens behind others, until the end of the text, which is not among them.

    Args:
        next_logits: the model.
        ids: of the prompt, at least one.
        end: id of the end of the text.
        sampling: how tokens are chosen.
        max_new_tokens: at most.
        most: tokens that the model can see; it is given the last ones. None: any number.

    Raises:
        CheckpointError: the model's logits are not finite.
    """
    seen = [*ids]
    for step in range(max_new_tokens):
        context = seen if most is None else seen[-most:]
        (logits,) = next_logits(np.array([context], dtype=np.int32))
        if not np.isfinite(logits).all():
            raise CheckpointError("the model's logits are not finite: its training has diverged")
        token = sampling.choose(logits, step)
        if token == end:
            return
        yield token
        seen.append(token)
