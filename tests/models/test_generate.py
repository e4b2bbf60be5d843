"""`hvdtrain generate`: the text of a saved model, in both frameworks and by Transformers; what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner, Result

from hvdtrain.cli import app
from hvdtrain.core.checkpoints.arrays import ArrayStream
from hvdtrain.core.checkpoints.model_folder import WEIGHTS_FILE, load_model, save_model
from hvdtrain.core.checkpoints.saved_models import read_model
from hvdtrain.core.data.byte_level_bpe import ByteLevelBPE, bpe_files
from hvdtrain.core.data.special_tokens import END_OF_TEXT
from hvdtrain.core.errors import CheckpointError, DataError
from hvdtrain.core.families import bert, family_of, gpt2, llama
from hvdtrain.core.families.rope import RopeParameters
from hvdtrain.core.families.weights import initial_weights
from hvdtrain.core.spec.sections import ModelSection
from hvdtrain.core.tasks.task import most_positions
from tests.models.support import far_from_initial

MODEL = gpt2.ModelSpec(vocab_size=300, n_positions=16, n_embd=24, n_layer=2, n_head=3, n_inner=40)
LLAMA = llama.ModelSpec(
    vocab_size=300,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=4,
    max_position_embeddings=16,
    rope_parameters=RopeParameters(rope_type="linear", factor=2.0),
)
PROMPT = "the words"
BOTH = pytest.mark.parametrize("framework", ["torch", "tensorflow"])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output directory whose model was never trained."""
    folder = tmp_path_factory.mktemp("generate")
    save(folder / "model")
    return folder


TEXTS = ["the words of the page, and the page of words"] * 3


def save(folder: Path, model: ModelSection = MODEL, tokenizer: Tokenizer | None = None) -> None:
    family = family_of(model)
    tokenizer = tokenizer or ByteLevelBPE().train(lambda: TEXTS, 300)
    ids = ByteLevelBPE().token_ids(tokenizer, 300, "it")
    arrays = {n: a.astype("float32") for n, a in far_from_initial(family.weights(model)).items()}
    config = {**family.hf_config(model), "bos_token_id": ids.cls, "eos_token_id": ids.sep}
    save_model(
        folder,
        {WEIGHTS_FILE: ArrayStream.of(arrays)},
        config,
        bpe_files(tokenizer.to_str(), most_positions(model) or 0, ids),
    )


def generate(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["generate", *map(str, arguments)])


def by_transformers(folder: Path, prompt: str, count: int) -> str:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    mask = torch.ones_like(ids)
    found = model.generate(ids, attention_mask=mask, max_new_tokens=count, do_sample=False, pad_token_id=0)
    text: str = tokenizer.decode(found[0], skip_special_tokens=True)
    return text


@BOTH
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model", [MODEL, LLAMA], ids=lambda model: model.model_type)
def test_the_greedy_text_is_that_of_transformers(
    model: ModelSection, tied: bool, framework: str, tmp_path: Path
) -> None:
    save(tmp_path / "model", model.model_copy(update={"tie_word_embeddings": tied}))
    done = generate(tmp_path, PROMPT, "--framework", framework, "--max-new-tokens", "8")
    assert done.exit_code == 0, done.output
    expected = by_transformers(tmp_path / "model", PROMPT, 8)
    assert done.stdout == expected + "\n"
    assert done.stdout.startswith(PROMPT)
    assert len(expected) > len(PROMPT)


def test_a_prompt_begins_as_documents_did_in_training(tmp_path: Path) -> None:
    """Llama's kind of tokenizer: `<s>` before a text, and nothing behind it."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=["<s>", "</s>"],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    save(tmp_path / "model", tokenizer=made)
    for prompt in (PROMPT, ""):
        done = generate(tmp_path, prompt, "--framework", "torch", "--max-new-tokens", "8")
        assert done.exit_code == 0, done.output
        assert done.stdout == by_transformers(tmp_path / "model", prompt, 8) + "\n"


def test_a_sampled_text_is_the_same_in_both_frameworks(saved: Path) -> None:
    def sampled(framework: str, seed: int) -> str:
        settings = ["--temperature", "1.5", "--top-k", "20", "--seed", str(seed), "--max-new-tokens", "12"]
        return generate(saved / "model", PROMPT, "--framework", framework, *settings).stdout

    texts = [(sampled("torch", seed), sampled("tensorflow", seed)) for seed in range(3)]
    assert all(ours == theirs for ours, theirs in texts)
    assert len({ours for ours, _ in texts}) == 3
    assert all(ours.startswith(PROMPT) for ours, _ in texts)


@BOTH
def test_an_empty_prompt_starts_behind_the_end_of_a_text(saved: Path, framework: str) -> None:
    done = generate(saved, "", "--framework", framework, "--max-new-tokens", "5")
    assert done.exit_code == 0, done.output
    assert done.stdout == by_transformers(saved / "model", END_OF_TEXT, 5) + "\n"


@BOTH
def test_of_a_long_prompt_the_model_sees_the_end_and_all_its_positions(saved: Path, framework: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(saved / "model")
    prompt = "words of the page, and then the page of the words, the page and words"
    ids = tokenizer(prompt)["input_ids"]
    assert len(ids) > MODEL.n_positions
    done = generate(saved, prompt, "--framework", framework, "--max-new-tokens", "1")
    assert done.exit_code == 0, done.output
    assert f"the prompt has {len(ids)} tokens and the model sees 16" in done.stderr
    last = torch.tensor([ids[-MODEL.n_positions :]])
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(saved / "model").eval()(last).logits[0, -1]
    assert done.stdout == prompt + tokenizer.decode([int(logits.argmax())]) + "\n"


def test_the_hyper_parameters_are_read_back_as_they_were(saved: Path, tmp_path: Path) -> None:
    assert read_model(saved / "model") == MODEL
    save(tmp_path / "llama", LLAMA)
    assert read_model(tmp_path / "llama") == LLAMA
    small = bert.ModelSpec(vocab_size=32, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    (tmp_path / "config.json").write_text(json.dumps({**bert.hf_config(small), "pad_token_id": 0}))
    assert read_model(tmp_path) == small


def edit_config(**fields: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return edit


def make_bert(folder: Path) -> None:
    model = bert.ModelSpec(
        vocab_size=32, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    arrays = initial_weights(bert.weights(model), 0, "float32")
    save_model(
        folder, {WEIGHTS_FILE: ArrayStream.of(arrays)}, bert.hf_config(model), {"tokenizer.json": "{}"}
    )


def lose_a_weight(folder: Path) -> None:
    arrays = dict(load_model(folder))
    del arrays["transformer.ln_f.bias"]
    save_model(
        folder,
        {WEIGHTS_FILE: ArrayStream.of(arrays)},
        json.loads((folder / "config.json").read_text()),
        {"tokenizer.json": "{}"},
    )


@pytest.mark.parametrize(
    ("spoil", "error", "told"),
    [
        (lambda folder: (folder / "config.json").unlink(), CheckpointError, "holds no model"),
        (
            lambda folder: (folder / "model.safetensors").unlink(),
            CheckpointError,
            "model.safetensors: cannot be read",
        ),
        (lambda folder: (folder / "tokenizer.json").unlink(), CheckpointError, "tokenizer.json: cannot be"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), DataError, "is not a Hugging Face"),
        (lambda folder: (folder / "config.json").write_text("{"), CheckpointError, "not JSON"),
        (lambda folder: (folder / "config.json").write_text("{}"), CheckpointError, "has no model_type"),
        (edit_config(model_type="gpt3"), CheckpointError, "did you mean 'gpt2'"),
        (edit_config(n_embd=25), CheckpointError, "n_embd 25 is not a multiple of n_head 3"),
        (edit_config(n_embd=27), CheckpointError, "expected float32 (300, 27)"),
        (
            edit_config(scale_attn_by_inverse_layer_idx=True),
            CheckpointError,
            "scale_attn_by_inverse_layer_idx",
        ),
        (make_bert, CheckpointError, "model_type bert is trained for masked_lm"),
        (
            lose_a_weight,
            CheckpointError,
            "transformer.ln_f.bias: expected float32 (24,), as config.json says",
        ),
    ],
)
def test_what_cannot_be_used_is_one_message(
    spoil: Callable[[Path], object], error: type[Exception], told: str, tmp_path: Path
) -> None:
    save(tmp_path / "model")
    spoil(tmp_path / "model")
    done = generate(tmp_path, PROMPT)
    assert isinstance(done.exception, error)
    assert told in str(done.exception)
    assert str(tmp_path) in str(done.exception)
    assert "\n" not in str(done.exception)
    assert done.stdout == ""


def test_a_prompt_that_is_not_text_is_told(saved: Path) -> None:
    done = generate(saved, "half a \udc80 character")
    assert isinstance(done.exception, DataError)


@pytest.mark.parametrize(
    "arguments",
    [["--top-k", "5"], ["--temperature", "nan"], ["--temperature", "-1"], ["--max-new-tokens", "0"]],
)
def test_settings_that_mean_nothing_are_a_wrong_command_line(saved: Path, arguments: list[str]) -> None:
    done = generate(saved, PROMPT, *arguments)
    assert done.exit_code == 2
    assert arguments[0] in done.stderr
