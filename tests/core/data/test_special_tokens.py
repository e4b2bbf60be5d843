"""Given tokenizers of every kind: their special tokens are found, and Transformers makes the same ids."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hvdtrain.core.data import prepare
from hvdtrain.core.data.byte_level_bpe import ByteLevelBPE, bpe_files
from hvdtrain.core.data.special_tokens import named_beside
from hvdtrain.core.data.tokenizer import encoder, token_ids, tokenizer_from, unknown_id
from hvdtrain.core.data.tokenizer_files import tokenizer_files
from hvdtrain.core.errors import DataError
from hvdtrain.core.tasks import causal_lm, masked_lm

TEXTS = ["hello world, this is a text", "another text says hello to the world", "this <mask> is no mask"] * 30
ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
ODD = ["{first}", "{fill}", "{last}", "{what}", "{hide}"]


def byte_level(names: list[str]) -> Tokenizer:
    """RoBERTa's kind."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=names, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    made.post_processor = processors.RobertaProcessing((names[2], 2), (names[0], 0))
    return made


def unigram(names: list[str]) -> Tokenizer:
    """XLM-RoBERTa's kind."""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=60, special_tokens=names, unk_token=names[3], show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    made.post_processor = around(names[0], names[2])
    return made


def around(first: str, last: str) -> Any:
    return processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} {last} $B {last}",
        special_tokens=[(first, 0), (last, 2)],
    )


KINDS = pytest.mark.parametrize("make", [byte_level, unigram])


def save(folder: Path, made: Tokenizer, named: list[str] | None = None) -> Path:
    if named is None:
        made.save(str(folder / "tokenizer.json"))
    else:
        roles = dict(
            zip(("cls_token", "pad_token", "sep_token", "unk_token", "mask_token"), named, strict=True)
        )
        PreTrainedTokenizerFast(tokenizer_object=made, **roles).save_pretrained(folder)
    return folder / "tokenizer.json"


def masked(path: Path, **more: Any) -> Any:
    folder = path.parent
    (folder / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS[:3]))
    return masked_lm.DataSpec(
        files=(str(folder / "a.jsonl"),),
        tokenizer_file=str(path),
        cache_dir=str(folder / "cache"),
        packing=False,
        validation_split=0.0,
        **more,
    )


@KINDS
@pytest.mark.parametrize(("names", "beside"), [(ROBERTA, False), (ROBERTA, True), (ODD, True)])
def test_sequences_are_those_of_transformers(
    tmp_path: Path, make: Callable[[list[str]], Tokenizer], names: list[str], beside: bool
) -> None:
    path = save(tmp_path, make(names), names if beside else None)
    corpus = prepare(masked(path), 400, 0)
    ids = corpus.token_ids
    assert (ids.cls, ids.pad, ids.sep, ids.mask, ids.special) == (0, 1, 2, 4, (0, 1, 2, 3, 4))
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(path), split_special_tokens=True)
    expected = [theirs(text)["input_ids"] for text in TEXTS[:3]]
    assert [sequence.tolist() for sequence in map(corpus.train.__getitem__, range(3))] == expected
    # What is saved says the same again.
    for name, content in tokenizer_files(corpus.tokenizer_path.read_text(), 128, ids).items():
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / name).write_text(content)
    saved = AutoTokenizer.from_pretrained(tmp_path / "out")
    tokens = (saved.cls_token, saved.pad_token, saved.sep_token, saved.unk_token, saved.mask_token)
    assert tokens[:3] + tokens[4:] == (*names[:3], names[4])
    assert tokens[3] == (names[3] if make is unigram else None)


def test_a_template_in_a_sequence_says_what_begins_and_ends(tmp_path: Path) -> None:
    made = unigram(ODD)
    made.post_processor = processors.Sequence([processors.ByteLevel(), around("{first}", "{last}")])
    path = save(tmp_path, made)
    (tmp_path / "special_tokens_map.json").write_text(
        json.dumps({"mask_token": {"content": "{hide}", "lstrip": True}, "pad_token": "{fill}"})
    )
    ids = token_ids(tokenizer_from(path.read_bytes(), path), 400, "it", named_beside(path))
    assert (ids.cls, ids.pad, ids.sep, ids.mask) == (0, 1, 2, 4)


@KINDS
def test_tokens_without_a_name_are_refused(tmp_path: Path, make: Callable[[list[str]], Tokenizer]) -> None:
    path = save(tmp_path, make(ODD))
    with pytest.raises(
        DataError, match=r"tokenizer\.json lacks \[PAD\], \[MASK\]; .*names as pad_token, mask_token"
    ):
        prepare(masked(path), 400, 0)
    (tmp_path / "tokenizer_config.json").write_text('{"mask_token": "<none>", "pad_token": "{fill}"}')
    with pytest.raises(DataError, match=r"lacks <none>, which tokenizer_config\.json .* as mask_token"):
        prepare(masked(path), 400, 0)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(DataError, match=r"tokenizer_config\.json, beside it, cannot be read"):
        prepare(masked(path), 400, 0)
    assert {file.suffix for file in (tmp_path / "cache").iterdir()} <= {".lock", ".json"}


def test_other_roles_make_another_cache(tmp_path: Path) -> None:
    path = save(tmp_path, byte_level(ODD), ODD)
    before = prepare(masked(path), 400, 0)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "mask_token": "{what}"}))
    after = prepare(masked(path), 400, 0)
    assert (before.token_ids.mask, after.token_ids.mask) == (4, 3)
    assert before.fingerprint != after.fingerprint


def test_what_unigram_does_not_know_is_never_predicted(tmp_path: Path) -> None:
    made = unigram(ROBERTA)
    assert unknown_id(made) == 3
    (ids,) = encoder(made)(["hello 文"])
    assert 3 in ids


@KINDS
def test_causal_lm_puts_the_tokenizers_own_tokens_around_documents(
    tmp_path: Path, make: Callable[[list[str]], Tokenizer]
) -> None:
    path = save(tmp_path, make(ROBERTA))
    data = causal_lm.DataSpec.model_validate(masked(path).model_dump(exclude={"lowercase", "strip_accents"}))
    corpus = prepare(data, 400, 0)
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(path), split_special_tokens=True)
    assert [corpus.train[i].tolist() for i in range(3)] == [theirs(text)["input_ids"] for text in TEXTS[:3]]
    config = json.loads(
        bpe_files(corpus.tokenizer_path.read_text(), 64, corpus.token_ids)["tokenizer_config.json"]
    )
    assert (config["bos_token"], config["eos_token"], config["pad_token"]) == ("<s>", "</s>", "</s>")


def test_a_tokenizer_that_begins_nothing_has_documents_joined_by_their_ends() -> None:
    made = byte_level(ROBERTA)
    made.post_processor = processors.ByteLevel()
    scheme = ByteLevelBPE()
    ids = scheme.token_ids(made, 400, "it", {"eos": "<unk>"})
    assert (ids.cls, ids.sep) == (3, 3)
    found = np.concatenate([*scheme.sequences([[7, 8], [9]], 8, True, ids)])
    assert found.tolist() == [7, 8, 3, 9, 3]


def test_causal_lm_without_an_end_is_refused() -> None:
    made = byte_level(ODD)
    made.post_processor = processors.ByteLevel()
    with pytest.raises(DataError, match=r"it lacks <\|endoftext\|>, .* names as eos_token"):
        ByteLevelBPE().token_ids(made, 400, "it")
