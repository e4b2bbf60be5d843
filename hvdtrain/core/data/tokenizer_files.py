"""A tokenizer on disk, as Transformers and KerasHub open it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hvdtrain.core.data.special_tokens import unknown_token
from hvdtrain.core.data.text import TokenIds


def tokenizer_files(tokenizer: str, model_max_length: int, ids: TokenIds) -> dict[str, str]:
    """The files of a tokenizer by name.

    `tokenizer.json` and `tokenizer_config.json` are for Transformers. BERT's WordPiece has two more for
    KerasHub: `vocab.txt`, one token a line, and `sentence_bert_config.json`, where it finds the length of
    sequences; without that they have 512 tokens whatever the model.

    Args:
        tokenizer: the content of `tokenizer.json`.
        model_max_length: longest sequence in tokens.
        ids: of the tokenizer.

    Returns:
        The content of each file.
    """
    found = json.loads(tokenizer)
    options, tokens = bert_options(found), tokens_by_id(found)
    unknown = unknown_token(found["model"])
    names = {"pad": tokens[ids.pad], "unk": unknown, "cls": tokens[ids.cls], "sep": tokens[ids.sep]}
    names["mask"] = tokens[ids.mask]
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model_max_length,
        **{f"{kind}_token": name for kind, name in names.items() if name is not None},
        **(options or {}),
    }
    files = {"tokenizer.json": tokenizer, "tokenizer_config.json": json.dumps(config, indent=2) + "\n"}
    lines = _vocabulary(found) if options is not None else None
    if lines is not None:
        files["vocab.txt"] = "\n".join(lines) + "\n"
        files["sentence_bert_config.json"] = json.dumps({"max_seq_length": model_max_length}) + "\n"
    return files


def bert_options(tokenizer: Mapping[str, Any]) -> dict[str, bool | None] | None:
    """How a tokenizer cleans text, in the names of Hugging Face's BERT; None for one that is not BERT's.

    Args:
        tokenizer: the parsed content of `tokenizer.json`.
    """
    normalizer, splitter = (tokenizer.get(name) or {} for name in ("normalizer", "pre_tokenizer"))
    first, *_ = splitter.get("pretokenizers") or [splitter]
    model = tokenizer["model"]
    if (model.get("type"), normalizer.get("type"), first.get("type")) != (
        "WordPiece",
        "BertNormalizer",
        "BertPreTokenizer",
    ) or model["continuing_subword_prefix"] != "##":
        return None
    return {
        "do_lower_case": normalizer["lowercase"],
        "strip_accents": normalizer["strip_accents"],
        "tokenize_chinese_chars": normalizer["handle_chinese_chars"],
    }


def tokens_by_id(tokenizer: Mapping[str, Any]) -> dict[int, str]:
    """Every token of the parsed content of a `tokenizer.json`, in the order of that file."""
    vocab = tokenizer["model"]["vocab"]
    # Unigram's is a list of tokens with their scores.
    ids = {token: i for i, (token, _) in enumerate(vocab)} if isinstance(vocab, list) else dict(vocab)
    ids.update((token["content"], token["id"]) for token in tokenizer.get("added_tokens", ()))
    return {number: token for token, number in ids.items()}


def _vocabulary(tokenizer: Mapping[str, Any]) -> list[str] | None:
    """The tokens by id, without gaps; None where lines of text could not hold them."""
    tokens = tokens_by_id(tokenizer)
    lines = [tokens.get(number, f"[unused{number}]") for number in range(max(tokens) + 1)]
    whole = all(line == line.strip() and len(line.splitlines()) == 1 for line in lines)
    return lines if whole and len(set(lines)) == len(lines) else None
