"""Saved models: whole or not at all, and what Transformers opens."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import BertPreTokenizer
from transformers import AutoModelForMaskedLM, AutoTokenizer

from hvdtrain.core.checkpoints.arrays import ArrayStream
from hvdtrain.core.checkpoints.finding import left_behind
from hvdtrain.core.checkpoints.model_folder import WEIGHTS_FILE, load_model, save_model
from hvdtrain.core.data.text import TokenIds
from hvdtrain.core.data.tokenizer_files import tokenizer_files
from hvdtrain.core.errors import CheckpointError
from hvdtrain.core.families import bert
from hvdtrain.core.families.bert import ModelSpec
from hvdtrain.core.families.weights import initial_weights
from hvdtrain.core.process import directories

IDS = TokenIds(24, 0, 2, 3, 4, (0, 1, 2, 3, 4))
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmno", *(f"##{c}" for c in "abcd")]
SPEC = ModelSpec(
    vocab_size=len(VOCABULARY),
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=16,
    max_position_embeddings=32,
    hidden_act="gelu_new",
    layer_norm_eps=1e-5,
    hidden_dropout_prob=0.2,
    attention_probs_dropout_prob=0.2,
)
FILES = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
Arrays = dict[str, np.ndarray]


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    made = Tokenizer(WordPiece({token: i for i, token in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    made.pre_tokenizer = BertPreTokenizer()
    file = tmp_path / "made" / "tokenizer.json"
    file.parent.mkdir()
    made.save(str(file))
    return file


def arrays(seed: int = 0, dtype: str = "float32") -> Arrays:
    return initial_weights(bert.weights(SPEC), seed, dtype)


def of(weights: Arrays) -> dict[str, ArrayStream]:
    return {WEIGHTS_FILE: ArrayStream.of(weights)}


def save(directory: Path, tokenizer: Path, weights: Arrays) -> None:
    dtype = str(next(iter(weights.values())).dtype)
    config = {**bert.hf_config(SPEC.model_copy(update={"dtype": dtype})), "pad_token_id": 0}
    save_model(directory, of(weights), config, tokenizer_files(tokenizer.read_text(), 32, IDS))


def assert_holds(directory: Path, expected: Arrays) -> None:
    found = load_model(directory)
    assert found.keys() == expected.keys()
    for name, array in found.items():
        assert (array.dtype, array.shape) == (expected[name].dtype, expected[name].shape)
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_transformers_opens_a_saved_model_as_it_was(tmp_path: Path, tokenizer: Path, dtype: str) -> None:
    directory, weights = tmp_path / "deep" / "down" / "model", arrays(dtype=dtype)
    save(directory, tokenizer, weights)
    model, told = AutoModelForMaskedLM.from_pretrained(directory, output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    assert not told["mismatched_keys"]
    assert model.dtype == getattr(torch, dtype)
    for name, parameter in model.named_parameters():
        np.testing.assert_array_equal(parameter.detach().numpy(), weights[name], err_msg=name)
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    config = model.config
    assert (config.hidden_act, config.layer_norm_eps, config.hidden_dropout_prob) == ("gelu_new", 1e-5, 0.2)
    assert config.pad_token_id == 0


def test_transformers_opens_the_tokenizer_with_its_special_tokens(tmp_path: Path, tokenizer: Path) -> None:
    save(tmp_path / "model", tokenizer, arrays())
    opened = AutoTokenizer.from_pretrained(tmp_path / "model")
    special = (opened.pad_token, opened.unk_token, opened.cls_token, opened.sep_token, opened.mask_token)
    assert special == ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    assert opened.mask_token_id == VOCABULARY.index("[MASK]")
    assert opened.model_max_length == 32
    assert opened.tokenize("ab [MASK]") == ["a", "##b", "[MASK]"]


def test_only_the_model_is_there_afterwards(tmp_path: Path, tokenizer: Path) -> None:
    save(tmp_path / "out" / "model", tokenizer, arrays())
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["model"]
    assert {file.name for file in (tmp_path / "out" / "model").iterdir()} == FILES


def test_an_older_model_is_replaced_as_a_whole(tmp_path: Path, tokenizer: Path) -> None:
    out = tmp_path / "out"
    save(out / "model", tokenizer, arrays(1))
    (out / "model" / "left-over.txt").write_text("from another version")
    save(out / "model", tokenizer, arrays(2))
    assert_holds(out / "model", arrays(2))
    assert {file.name for file in (out / "model").iterdir()} == FILES
    assert [file.name for file in out.iterdir()] == ["model"]


def test_arrays_of_any_memory_layout_are_saved_as_they_read(tmp_path: Path, tokenizer: Path) -> None:
    weights = {name: np.asfortranarray(array) for name, array in arrays().items()}
    weights["without.axes"] = np.array(3, np.int64)
    save(tmp_path / "model", tokenizer, weights)
    assert_holds(tmp_path / "model", weights)


def test_a_write_that_fails_leaves_the_old_model_whole(tmp_path: Path, tokenizer: Path) -> None:
    out = tmp_path / "out"
    save(out / "model", tokenizer, arrays(1))
    with pytest.raises(CheckpointError, match=r"model: the model could not be saved: .*missing"):
        save_model(out / "model", of(arrays(2)), {}, {"missing/file": ""})
    assert_holds(out / "model", arrays(1))
    assert [file.name for file in out.iterdir()] == ["model"]


def test_a_first_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        save_model(tmp_path / "out" / "model", of(arrays()), {}, {"missing/file": ""})
    assert not [*(tmp_path / "out").iterdir()]


def test_a_place_that_is_no_directory_is_named(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="file/model: the model could not be saved"):
        save(tmp_path / "file" / "model", tokenizer, arrays())


# The limit on a file's size stands for a full disk: the kernel refuses the write half-way.
FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from hvdtrain.core.checkpoints.arrays import ArrayStream
from hvdtrain.core.checkpoints.model_folder import save_model
from hvdtrain.core.errors import CheckpointError

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, resource.RLIM_INFINITY))
try:
    files = {"tokenizer.json": Path(sys.argv[2]).read_text()}
    save_model(Path(sys.argv[1]), {"model.safetensors": ArrayStream.of({"w": np.ones(1_000_000)})}, {}, files)
except CheckpointError as error:
    print(error)
    sys.exit(3)
"""


def test_a_full_disk_is_one_message_and_leaves_the_old_model_whole(tmp_path: Path, tokenizer: Path) -> None:
    out = tmp_path / "out"
    save(out / "model", tokenizer, arrays(1))
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, out / "model", tokenizer],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    assert done.stdout.startswith(f"{out / 'model'}: the model could not be saved: ")
    assert len(done.stdout.splitlines()) == 1
    assert not done.stderr
    assert_holds(out / "model", arrays(1))
    assert [file.name for file in out.iterdir()] == ["model"]


# The process ends at the very moment the new model would become visible; without an exchange of names, as on
# NFS, between two renames.
KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from hvdtrain.core.process import directories
from hvdtrain.core.checkpoints.arrays import ArrayStream
from hvdtrain.core.checkpoints.model_folder import save_model

def audit(event, arguments):
    if event == "os.rename" and ".tmp-" in str(arguments[0]):
        os.kill(os.getpid(), signal.SIGKILL)
    if event == "ctypes.dlsym" and arguments[1] == "renameat2":
        os.kill(os.getpid(), signal.SIGKILL)

if sys.argv[3] == "renames":
    directories._exchange = lambda first, second: False

sys.addaudithook(audit)
streams = {"model.safetensors": ArrayStream.of({"w": np.ones(10)})}
save_model(Path(sys.argv[1]), streams, {}, {"tokenizer.json": Path(sys.argv[2]).read_text()})
"""


def kill_while_saving(directory: Path, tokenizer: Path, how: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, directory, tokenizer, how],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        check=False,
    )
    assert done.returncode == -9


def test_a_process_killed_while_saving_leaves_the_old_model_whole(tmp_path: Path, tokenizer: Path) -> None:
    directory = tmp_path / "out" / "model"
    save(directory, tokenizer, arrays(1))
    kill_while_saving(directory, tokenizer, "exchange")
    assert_holds(directory, arrays(1))
    save(directory, tokenizer, arrays(2))
    assert_holds(directory, arrays(2))


def test_what_a_kill_between_two_renames_has_set_aside_is_put_back(tmp_path: Path, tokenizer: Path) -> None:
    out = tmp_path / "out"
    save(out / "model", tokenizer, arrays(1))
    kill_while_saving(out / "model", tokenizer, "renames")
    assert not (out / "model").exists()
    # Whoever comes next, and whatever becomes of what that one writes.
    copy = shutil.copytree(out, tmp_path / "copy")
    with pytest.raises(CheckpointError):
        save_model(copy / "model", of(arrays(2)), {}, {"missing/file": ""})
    assert [file.name for file in copy.iterdir()] == ["model"]
    assert_holds(copy / "model", arrays(1))
    assert [path.name.partition(".tmp-")[0] for path in left_behind(out)] == [".model"]
    assert_holds(out / "model", arrays(1))


def test_a_rename_that_fails_leaves_the_old_model_whole(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, rename = tmp_path / "out", Path.rename

    def failing(path: Path, target: Path) -> Path:
        if ".tmp-" in path.name:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(path, target)

    save(out / "model", tokenizer, arrays(1))
    monkeypatch.setattr(directories, "_exchange", lambda first, second: False)
    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(CheckpointError, match="Input/output error; what was there before is as it was"):
        save(out / "model", tokenizer, arrays(2))
    assert [file.name for file in out.iterdir()] == ["model"]
    assert_holds(out / "model", arrays(1))


def test_the_old_model_is_deleted_when_the_name_of_the_new_one_is_synced(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, sync, held = tmp_path / "out", directories.sync, []

    def watched(path: Path) -> None:
        if path == out:
            held.extend(sorted(file.parent.name.partition("-")[0] for file in out.rglob(WEIGHTS_FILE)))
        sync(path)

    save(out / "model", tokenizer, arrays(1))
    monkeypatch.setattr(directories, "_exchange", lambda first, second: False)
    monkeypatch.setattr(directories, "sync", watched)
    save(out / "model", tokenizer, arrays(2))
    assert held == [".model.before", "model"]
    assert [file.name for file in out.iterdir()] == ["model"]


def test_others_may_read_what_they_may_read_elsewhere(tmp_path: Path, tokenizer: Path) -> None:
    umask = os.umask(0o022)
    try:
        save(tmp_path / "model", tokenizer, arrays())
    finally:
        os.umask(umask)
    for file in (tmp_path / "model").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) & 0o044 == 0o044, file.name


@pytest.mark.parametrize("content", [None, b"", b"\x10\0\0\0\0\0\0\0{}", b"not safetensors at all"])
def test_a_missing_or_damaged_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / WEIGHTS_FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read"):
        load_model(tmp_path)


def test_the_configuration_is_json_that_transformers_names_its_own(tmp_path: Path, tokenizer: Path) -> None:
    save(tmp_path / "model", tokenizer, arrays())
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("bert", ["BertForMaskedLM"])


@pytest.mark.parametrize("deletable", [True, False])
def test_what_a_kill_between_two_renames_leaves_hinders_no_later_save(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch, deletable: bool
) -> None:
    """As on NFS, which cannot exchange two names, and where what others have open does not go away."""
    monkeypatch.setattr(directories, "_exchange", lambda first, second: False)
    for name in (".model.before", ".model.before-1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"older")
    if not deletable:
        delete = shutil.rmtree

        def refusing(path: Path, ignore_errors: bool = False) -> None:
            if ".before" not in Path(path).name:
                delete(path, ignore_errors)

        monkeypatch.setattr(directories.shutil, "rmtree", refusing)
    for seed in range(3):
        save(tmp_path / "model", tokenizer, arrays(seed))
        assert_holds(tmp_path / "model", arrays(seed))
    if deletable:
        assert {path.name for path in tmp_path.iterdir()} == {"model", "made"}
