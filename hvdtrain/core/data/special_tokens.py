"""The special tokens of a given tokenizer: which of them pads, hides, begins and ends."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hvdtrain.core.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
END_OF_TEXT = "<|endoftext|>"
# Hugging Face's files with the roles of tokens, which lie beside tokenizer.json; the first one counts.
_BESIDE = ("tokenizer_config.json", "special_tokens_map.json")
# What those files call a role, where there are several names for it.
_KEYS = {
    "pad": ("pad",),
    "cls": ("cls", "bos"),
    "sep": ("sep", "eos"),
    "eos": ("eos", "sep"),
    "mask": ("mask",),
}
# Usual names; where a tokenizer has the first ones, which are those of hvdtrain's own, nothing else counts.
_NAMES = {
    "pad": ("[PAD]", "<pad>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "eos": ("<|endoftext|>", "</s>", "<|end_of_text|>", "[SEP]"),
    "mask": ("[MASK]", "<mask>"),
}
_OURS = {*SPECIAL_TOKENS, END_OF_TEXT}


def named_beside(path: Path) -> dict[str, str]:
    """The tokens that `tokenizer_config.json` or `special_tokens_map.json` names, by role, such as `pad`.

    Args:
        path: the `tokenizer.json` that they lie beside; they may be missing.

    Returns:
        Nothing where all are tokens that hvdtrain's own tokenizers have: these are known without being named.

    Raises:
        DataError: one of them is no JSON.
    """
    found: dict[str, str] = {}
    for name in _BESIDE:
        file = path.parent / name
        if not file.is_file():
            continue
        try:
            given = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"data.tokenizer_file: {file}, beside it, cannot be read: {error}") from None
        if isinstance(given, dict):
            found = {**dict(_roles(given)), **found}
    return found if set(found.values()) - _OURS else {}


def find_special_tokens(
    tokenizer: Tokenizer, beside: Mapping[str, str], roles: Sequence[str], where: str
) -> dict[str, int]:
    """The ids of special tokens.

    They are hvdtrain's own where the tokenizer has all of these, such as BERT's `[PAD]`; else those named
    beside it, else those that its post-processor puts around a text, else tokens of usual names, such as
    `<pad>`.

    Args:
        tokenizer: given or trained.
        beside: from `named_beside`.
        roles: of `pad`, `cls` (begins a text), `sep` (ends one, or a part of it), `eos` (ends one) and
            `mask`.
        where: what to call the tokenizer in an error.

    Returns:
        An id for each role that is found.

    Raises:
        DataError: the tokenizer lacks a token that is named beside it.
    """
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    if all(_NAMES[role][0] in vocabulary for role in roles):
        return {role: vocabulary[_NAMES[role][0]] for role in roles}
    content = json.loads(tokenizer.to_str())
    around = _around(content.get("post_processor") or {})
    told = {**around, "eos": around.get("sep"), "pad": (content.get("padding") or {}).get("pad_token")}
    found = {}
    for role in roles:
        named = next((beside[key] for key in _KEYS[role] if key in beside), None)
        if named is not None and named not in vocabulary:
            raise DataError(f"{where} lacks {named}, which {_BESIDE[0]} beside it names as {role}_token")
        usual = (name for name in (named, told.get(role), *_NAMES[role]) if name in vocabulary)
        name = next(usual, None)
        if name is not None:
            found[role] = vocabulary[name]
    return found


def begins_a_text(tokenizer: Tokenizer) -> int | None:
    """The id of the token that a tokenizer's own post-processor puts before a text, such as Llama's `<s>`."""
    found = _around(json.loads(tokenizer.to_str()).get("post_processor") or {}).get("cls")
    return None if found is None else tokenizer.token_to_id(found)


def tokenizer_size(tokenizer: Tokenizer, vocab_size: int, where: str) -> int:
    """Its highest id plus 1; DataError where that is more than `model.vocab_size`."""
    size: int = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    if size > vocab_size:
        raise DataError(
            f"{where} has {size} tokens, model.vocab_size is {vocab_size}: set model.vocab_size: {size}"
        )
    return size


def unknown_token(model: Mapping[str, Any]) -> str | None:
    """What stands for text that a tokenizer does not know; None where it knows all text.

    Args:
        model: that of a parsed `tokenizer.json`.
    """
    if model.get("unk_id") is not None:
        return str(model["vocab"][model["unk_id"]][0])
    return model.get("unk_token")


def _roles(given: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for role in {key for keys in _KEYS.values() for key in keys}:
        token = given.get(f"{role}_token")
        name = token.get("content") if isinstance(token, dict) else token
        if isinstance(name, str):
            yield role, name


def _around(processor: Mapping[str, Any]) -> dict[str, str]:
    """The token before a text as `cls`, and the one behind it as `sep`, where a post-processor has them."""
    kind = processor.get("type")
    if kind == "Sequence":
        found: dict[str, str] = {}
        for each in processor.get("processors") or ():
            found |= _around(each)
        return found
    if kind in ("BertProcessing", "RobertaProcessing"):
        return {role: processor[role][0] for role in ("cls", "sep")}
    if kind != "TemplateProcessing":
        return {}
    parts = [_part(processor, part) for part in processor.get("single") or ()]
    if None not in parts:
        return {}
    text = parts.index(None)
    before, behind = parts[:text], parts[text + 1 :]
    tokens = (("cls", before[-1:]), ("sep", behind[:1]))
    return {role: name for role, [name] in ((r, n) for r, n in tokens if n) if name is not None}


def _part(processor: Mapping[str, Any], part: Mapping[str, Any]) -> str | None:
    """A special token of a template; None: the text."""
    if "SpecialToken" not in part:
        return None
    found = processor["special_tokens"][part["SpecialToken"]["id"]]
    return str(found["tokens"][0])
