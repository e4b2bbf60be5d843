"""A tokenizer on disk, as Transformers and KerasHub open it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_SPECIAL = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}


def tokenizer_files(tokenizer: str, model_max_length: int) -> dict[str, str]:
    """The files of a tokenizer by name.

    `tokenizer.json` and `tokenizer_config.json` are for Transformers. BERT's WordPiece has two more for
    KerasHub: `vocab.txt`, one token a line, and `sentence_bert_config.json`, where it finds the length of
    sequences; without that they have 512 tokens whatever the model.

    Args:
        tokenizer: the content of `tokenizer.json`.
        model_max_length: longest sequence in tokens.

    Returns:
        The content of each file.
    """
    found = json.loads(tokenizer)
    options = bert_options(found)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model_max_length,
        **{f"{kind}_token": token for kind, token in _SPECIAL.items()},
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


def _vocabulary(tokenizer: Mapping[str, Any]) -> list[str] | None:
    """The tokens by id, without gaps; None where lines of text could not hold them."""
    ids = dict(tokenizer["model"]["vocab"])
    ids.update((token["content"], token["id"]) for token in tokenizer.get("added_tokens", ()))
    tokens = {number: token for token, number in ids.items()}
    lines = [tokens.get(number, f"[unused{number}]") for number in range(max(tokens) + 1)]
    whole = all(line == line.strip() and len(line.splitlines()) == 1 for line in lines)
    return lines if whole and len(set(lines)) == len(lines) else None
