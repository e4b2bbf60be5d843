"""Job specs as text: what YAML and overrides are read as, and what is refused with its place."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from pydantic import BaseModel

from hvdtrain.core.errors import SpecError
from hvdtrain.core.spec.job_spec import JobSpec, load_spec, parse_spec
from tests.core.specs import GOOD, accepted, refusal


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("model: [", "not valid YAML"),
        ("- a\n- b\n", "expected a mapping of sections, found list"),
        ("", "expected a mapping of sections, found NoneType"),
        ("a: &x [*x]", "inside its own anchor"),
        ("1: 2", "1: unknown key"),
        ("model: !!python/object/apply:os.getcwd []", "not valid YAML"),
    ],
)
def test_text_that_is_no_spec_is_refused(text: str, told: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(text, where="job.yaml")
    assert "job.yaml" in str(caught.value)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("max_steps: 1\nseed: 2\nmax_steps: 3", "job.yaml:3:1: the key 'max_steps' is given twice"),
        ("data: {files: [a]}\n\ndata:\n  files: [b]\n", "job.yaml:3:1: the key 'data' is given twice"),
        ("data:\n  files: [a]\n  files: [b]\n", "job.yaml:3:3: the key 'files' is given twice"),
        ("data:\n  files: [*.txt]\n", "job.yaml:2:11: not valid YAML: .*; .* needs quotes: ['*.txt']"),
        ("data: {files: [**/*.txt]}", "job.yaml:1:16: not valid YAML: .*; .* needs quotes"),
        ("data: {files: *}", "job.yaml:1:16: not valid YAML: .*; .* needs quotes"),
        ("data: {files: &}", "job.yaml:1:16: not valid YAML: .*; .* & needs quotes"),
        ("data:\n\tcorpus: python-docs\n", "job.yaml:2:1: not valid YAML: .*; YAML is indented with spaces"),
        ("seed: @1", "job.yaml:1:7: not valid YAML: .*; .* needs quotes"),
        ("seed: !one 1", "job.yaml:1:7: not valid YAML: .*; .* needs quotes"),
        ("seed: 1\n---\nseed: 2\n", "job.yaml:2:1: not valid YAML: .*; one file holds one document"),
        ("seed: !!binary aGk=", "job.yaml: a value of type bytes"),
        ("seed: !!set {a, b}", "job.yaml: a value of type set"),
        ("? [a]\n: b\n", "job.yaml: a key of type tuple"),
        ("? {a: b}\n: c\n", "job.yaml:1:3: not valid YAML: "),
        ("seed: \x01", "job.yaml: not valid YAML: unacceptable character"),
        ("seed: " + "9" * 5000, "job.yaml: not valid YAML: Exceeds the limit"),
        ("seed: !!float x", "job.yaml: not valid YAML: "),
        ("%YAML 1.1\n---\nseed: 010\n", "job.yaml: %YAML asks for another version"),
        ("[" * 100_000, "job.yaml: not valid YAML: nested too deeply"),
        ("seed: " + "[" * 500 + "]" * 500, "job.yaml: "),
        ("#" * (1 << 20) + "#", "job.yaml: above 1 Mi characters"),
        (
            "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
            + "\n".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]" for a, b in pairwise("abcdefghi")),
            "job.yaml: more than 100,000 values",
        ),
    ],
)
def test_yaml_that_is_not_what_it_looks_like_is_refused_with_its_place(text: str, told: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(text, where="job.yaml")
    message = str(caught.value)
    start, *rest = told.split(".*")
    assert message.startswith(start), message
    assert all(part in message for part in rest), message
    assert len(message.splitlines()) == 1 or "problem(s)" in message


def test_yaml_is_read_as_version_1_2() -> None:
    assert accepted("max_steps=010").max_steps == 10
    assert accepted("seed=0o17").seed == 15
    assert accepted("data.text_field=1:30").data.text_field == "1:30"
    for text in ("2001-01-01", "2001-99-99", "yes", "=", "on", "12:30:45"):
        assert accepted(f"data.text_field={text}").data.text_field == text
    assert "found '1:30'" in refusal("max_steps=1:30")
    assert "found 'yes'); write true or false" in refusal("data.packing=yes")


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("batch={per_device_train_batch_size: 1, per_device_train_batch_size: 2}", "is given twice"),
        ("data.files=[*.txt]", "needs quotes: ['*.txt']"),
        ("data.files=*.txt", "needs quotes"),
        ("data.files=&", "& needs quotes"),
        ("seed=!!set {a}", "a value of type set"),
        ("seed=" + "[" * 100_000, "nested too deeply"),
    ],
)
def test_overrides_are_read_as_the_file_is(override: str, told: str) -> None:
    message = refusal(override)
    assert message.startswith(f"--set {override}: ")
    assert told in message


@pytest.mark.parametrize("text", ["corpus.txt", "'*.txt'", "a b.txt"])
def test_one_file_is_still_a_list(text: str) -> None:
    assert f'; write a list: ["{text.strip(chr(39))}"]' in refusal("data.corpus=null", f"data.files={text}")


def test_a_section_without_lines_takes_its_defaults() -> None:
    lines = [f"{name}: {json.dumps(value)}" for name, value in GOOD.items() if name != "model"]
    empty = [name for name in JobSpec.model_fields if name not in GOOD and documents_a_section(name)]
    assert {"optimizer", "compression", "loss_scale", "logging"} <= set(empty)
    commented = [f"{name}:\n#  nothing: 1" for name in ["model", *empty]]
    plain = parse_spec("\n".join(["model: {}", *lines]))
    assert parse_spec("\n".join([*lines, *commented])) == plain
    assert accepted("optimizer=null") == accepted()
    # An override may fill one.
    assert parse_spec("\n".join([*lines, *commented]), ["optimizer.type=sgd"]).optimizer.type == "sgd"
    # One that has to say something says what is missing.
    for name, told in (("data", "give either corpus"), ("batch", "two of")):
        with pytest.raises(SpecError, match=f"{name}: .*{told}"):
            parse_spec("\n".join([*(line for line in lines if not line.startswith(name)), f"{name}:"]))


def documents_a_section(name: str) -> bool:
    default = JobSpec.model_fields[name].default
    return isinstance(default, BaseModel)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("max_steps", "expected field.path=value"),
        ("=3", "expected field.path=value"),
        ("max_steps=[", "not valid YAML"),
        ("max_steps.x=3", "max_steps is 10, not a section"),
        ("data.corpus.name=3", "corpus is 'python-docs', not a section"),
    ],
)
def test_an_override_that_cannot_be_applied_is_shown(override: str, told: str) -> None:
    message = refusal(override)
    assert f"--set {override}" in message
    assert told in message


def test_overrides_change_add_and_remove_fields_and_the_last_one_wins() -> None:
    spec = accepted(
        "optimizer.learning_rate=1e-4",
        "optimizer.learning_rate=2e-4",
        "max_steps=null",
        "num_train_epochs=1.5",
        "data={files: ['a=b.txt', c.jsonl]}",
        "model.hidden_act=gelu_new",
    )
    assert spec.optimizer.learning_rate == 2e-4
    assert (spec.max_steps, spec.num_train_epochs) == (None, 1.5)
    assert spec.data.files == ("a=b.txt", "c.jsonl")
    assert spec.model.hidden_act == "gelu_new"


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.e-4", "+1e-4", "0.0001", ".1e-3", "1.0e-4"])
def test_numbers_in_scientific_notation_are_numbers(text: str) -> None:
    assert accepted(f"optimizer.learning_rate={text}").optimizer.learning_rate == 1e-4


@pytest.mark.parametrize("text", ["1e", "e4", "1e-4x", "1-e4"])
def test_what_only_looks_like_a_number_is_text(text: str) -> None:
    assert accepted(f"data.text_field={text}").data.text_field == text


def test_a_spec_that_is_not_there_is_named_with_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"missing\.yaml: no such file.*packaged: .*bert"):
        load_spec(tmp_path / "missing.yaml")


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    binary = tmp_path / "spec.yaml"
    binary.write_bytes(b"\x80\x81\xff")
    with pytest.raises(SpecError, match=r"spec\.yaml: cannot be read as UTF-8"):
        load_spec(binary)


@pytest.mark.parametrize("text", ["no", "'no'", "false"])
def test_an_unquoted_no_is_no(text: str) -> None:
    assert accepted(f"mixed_precision={text}").mixed_precision == "no"
