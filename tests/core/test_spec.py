"""Job specs: what is accepted, and what a person is told about what is not."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from hvdtrain.core.errors import SpecError
from hvdtrain.core.spec.job_spec import JobSpec, json_schema, load_spec, parse_spec
from hvdtrain.core.spec.reading import PACKAGED_SPECS
from tests.core.specs import GOOD, accepted, refusal


@pytest.mark.parametrize(
    ("override", "told"),
    [
        # Unknown keys: the path, the value and the nearest valid name.
        ("optimizer.learning_rat=0.1", ["optimizer.learning_rat", "unknown", "0.1", "'learning_rate'"]),
        ("optimiser.type=sgd", ["optimiser", "unknown", "'optimizer'"]),
        ("model.hiden_size=64", ["model.hiden_size", "64", "'hidden_size'"]),
        ("framework=torch", ["framework", "unknown", "'torch'", "valid names here", "optimizer"]),
        ("batch.zzz=1", ["batch.zzz", "valid names here", "global_batch_size"]),
        # Values that are none of the choices: the choices and the nearest.
        (
            "optimizer.type=adamW",
            ["optimizer.type", "'adamW'", "expected one of adamw, sgd, lamb, lars", "did you mean 'adamw'"],
        ),
        ("schedule.type=cosin", ["schedule.type", "'cosin'", "did you mean 'cosine'"]),
        ("model.model_type=gpt", ["model.model_type", "'gpt'", "'bert'"]),
        ("mixed_precision=fp8", ["mixed_precision", "'fp8'", "one of no, "]),
        ("mixed_precision=true", ["mixed_precision", "expected one of no, fp16, bf16", "True"]),
        ("mixed_precision=fp61", ["mixed_precision", "did you mean 'fp16'"]),
        ("loss_scale.initial=1000", ["loss_scale.initial", "1000.0 is not a power of two", "exactly"]),
        ("loss_scale.fixed=-2", ["loss_scale.fixed", "-2.0 is not a power of two"]),
        ("loss_scale.growth_factor=1", ["loss_scale.growth_factor", "greater than 1"]),
        ("loss_scale.backoff_factor=2", ["loss_scale.backoff_factor", "less than 1"]),
        ("loss_scale={initial: 2, minimum: 4}", ["loss_scale: initial 2 is below minimum 4"]),
        ("max_skipped_updates=0", ["max_skipped_updates", "or equal to 1"]),
        ("compression.type=zip", ["compression.type", "'zip'", "none, fp16, "]),
        ("compression.type=topkk", ["compression.type", "did you mean 'topk'?"]),
        ("compression={ratio: 0.1}", ["compression.type: required"]),
        ("compression={type: topk, rato: 0.1}", ["compression.rato: unknown key", "'ratio'"]),
        ("compression={type: topk, ratio: 2}", ["compression.ratio: ", "less than or equal to 1"]),
        (
            "compression={type: fp16, ratio: 0.1}",
            ["compression.ratio: unknown", "names here: match, type"],
        ),
        (
            "compression={type: topk, momentum: 0.5, use_error_feedback: false}",
            ["compression: momentum 0.5 needs use_error_feedback"],
        ),
        (
            "compression={type: int8, block_size: 0}",
            ["compression.block_size: ", "or equal to 1"],
        ),
        ("compression=topk", ["compression: "]),
        ("compression=[]", ["compression: an empty list"]),
        ("compression=[{type: none}, {type: topk, rato: 0.1}]", ["compression.1.rato: unknown", "'ratio'"]),
        ("compression=[{type: topkk}]", ["compression.0.type", "did you mean 'topk'?"]),
        ("compression=[{type: topk, match: 3}]", ["compression.0.match: ", "string"]),
        ("task.normalize=tokens", ["task.normalize", "did you mean 'token'"]),
        ("data.corpus=wikipedia", ["data.corpus: expected 'python-docs' (found 'wikipedia')"]),
        # Wrong types: nothing is converted in silence.
        ("max_steps='10'", ["max_steps", "integer", "'10'"]),
        ("max_steps=10.5", ["max_steps", "integer", "10.5"]),
        ("max_steps=true", ["max_steps", "integer", "True"]),
        ("seed=1.5", ["seed", "integer", "1.5"]),
        ("optimizer.learning_rate=fast", ["optimizer.learning_rate", "number", "'fast'"]),
        ("optimizer.nesterov=1", ["optimizer.nesterov", "boolean", "found 1"]),
        ("logging.progress_bar='yes'", ["logging.progress_bar", "boolean", "'yes'"]),
        ("data.text_field=5", ["data.text_field", "string", "found 5"]),
        ("batch=8", ["batch", "object", "found 8"]),
        ("model=[1]", ["model", "object", "[1]"]),
        # Out of range.
        ("max_steps=0", ["max_steps", "expected a number greater than or equal to 1 (found 0)"]),
        ("optimizer.learning_rate=0", ["optimizer.learning_rate", "greater than 0", "found 0"]),
        ("optimizer.learning_rate=-1e-4", ["optimizer.learning_rate", "greater than 0", "-0.0001"]),
        ("optimizer.adam_beta2=1.0", ["optimizer.adam_beta2", "less than 1", "1.0"]),
        ("data.validation_split=0.6", ["data.validation_split", "less than or equal to 0.5", "0.6"]),
        ("task.mlm_probability=0", ["task.mlm_probability", "greater than 0"]),
        ("max_grad_norm=-1", ["max_grad_norm", "greater than 0", "-1"]),
        ("seed=-1", ["seed", "greater than or equal to 0", "-1"]),
        ("optimizer.learning_rate=.inf", ["optimizer.learning_rate", "finite", "inf"]),
        ("optimizer.weight_decay=.nan", ["optimizer.weight_decay", "finite", "nan"]),
        # Missing.
        ("batch={}", ["batch", "per_device_train_batch_size", "two of"]),
        # Impossible combinations.
        ("num_train_epochs=2", ["max_steps", "num_train_epochs", "not both"]),
        ("max_steps=null", ["max_steps", "num_train_epochs", "not neither"]),
        ("data.max_seq_length=1024", ["data.max_seq_length 1024", "max_position_embeddings 512"]),
        ("model.hidden_size=100", ["model", "hidden_size 100", "num_attention_heads 12"]),
        ("model.hidden_dropout_prob=0.1", ["hidden_dropout_prob 0.1", "attention_probs_dropout_prob 0.0"]),
        ("data.files=[a.txt]", ["data", "corpus", "files", "not both"]),
        ("data.corpus=null", ["data", "corpus", "files", "not neither"]),
        ("optimizer={nesterov: true, momentum: 0.0}", ["optimizer", "nesterov", "momentum"]),
        ("batch={global_batch_size: 8}", ["batch", "two of"]),
        ("batch={gradient_accumulation_steps: 8}", ["batch", "add per_device_train_batch_size"]),
    ],
)
def test_a_bad_field_is_named_with_its_value_and_what_was_expected(override: str, told: list[str]) -> None:
    message = refusal(override)
    assert message.startswith("job.yaml: 1 problem(s)\n")
    for part in told:
        assert part in message, message


def test_every_problem_is_told_at_once() -> None:
    message = refusal("max_steps=0", "optimizer.learning_rat=1", "schedule.type=cosin")
    assert message.startswith("job.yaml: 3 problem(s)\n")
    assert len(message.splitlines()) == 4


@pytest.mark.parametrize("section", ["model", "data", "batch"])
def test_a_missing_section_is_named(section: str) -> None:
    spec = {name: value for name, value in GOOD.items() if name != section}
    with pytest.raises(SpecError, match=f"{section}: required"):
        parse_spec(yaml.safe_dump(spec))


@pytest.mark.parametrize(
    ("field", "name"), [("compression", "topk"), ("optimizer", "sgd"), ("schedule", "cosine")]
)
def test_a_type_in_place_of_a_section_has_a_hint(field: str, name: str) -> None:
    with pytest.raises(SpecError, match=rf"{field}: .*found '{name}'.*; write a section: {{type: {name}}}"):
        load_spec("bert", [f"{field}={name}"])


def test_whole_numbers_are_good_floats() -> None:
    assert accepted("max_grad_norm=1").max_grad_norm == 1.0


def test_a_spec_cannot_be_changed_after_it_was_checked() -> None:
    spec = accepted()
    with pytest.raises(ValueError, match="frozen"):
        spec.optimizer.learning_rate = 1.0


def test_a_spec_survives_its_own_json() -> None:
    spec = accepted("data={files: [a.txt]}", "optimizer.learning_rate=0.1234567890123456789")
    assert parse_spec(spec.model_dump_json()) == spec


@pytest.mark.parametrize("name", [file.stem for file in PACKAGED_SPECS.glob("*.yaml")])
def test_every_packaged_spec_is_valid_by_its_name(name: str) -> None:
    assert load_spec(name) == load_spec(PACKAGED_SPECS / f"{name}.yaml")


def test_the_default_job_is_a_packaged_spec() -> None:
    assert load_spec("bert").model.model_type == "bert"


# Whose section the data of a packaged spec is.
DATA_OF = {"bert.data": "masked_lm", "gpt2.data": "causal_lm", "llama.data": "causal_lm"}


def test_the_json_schema_knows_every_field_of_the_packaged_specs_and_no_other() -> None:
    schema = json_schema()
    json.dumps(schema)

    def check(value: Any, rule: dict[str, Any], path: str) -> None:
        rule = schema["$defs"][rule["$ref"].rpartition("/")[2]] if "$ref" in rule else rule
        if "discriminator" in rule and isinstance(value, dict):
            chosen = value[rule["discriminator"]["propertyName"]]
            rule = schema["$defs"][rule["discriminator"]["mapping"][chosen].rpartition("/")[2]]
        if path in DATA_OF:
            names = [each["$ref"].rpartition("/")[2] for each in rule["anyOf"]]
            rule = next(schema["$defs"][name] for name in names if DATA_OF[path] in name)
        if isinstance(value, dict):
            assert rule["additionalProperties"] is False, path
            for name, child in value.items():
                assert name in rule["properties"], f"{path}.{name}"
                check(child, rule["properties"][name], f"{path}.{name}")
        for choices in [rule["enum"]] if "enum" in rule else []:
            assert value in choices, path
        if rule.get("type") == "integer":
            assert isinstance(value, int), path
            assert value >= rule.get("minimum", value), path

    for name in ("bert", "gpt2", "llama"):
        check(yaml.safe_load((PACKAGED_SPECS / f"{name}.yaml").read_text()), schema, name)
    assert set(schema["properties"]) == set(JobSpec.model_fields)
    assert set(schema["required"]) == {"model", "data", "batch"}


def test_momentum_is_not_taken_twice() -> None:
    momentum = "compression={type: topk, momentum: 0.9}"
    told = refusal(momentum, "optimizer={type: sgd, momentum: 0.5}")
    assert "optimizer.momentum 0.5: compression takes" in told
    assert accepted(momentum, "optimizer={type: sgd, momentum: 0.0}").rules.correct_momentum


def test_mixed_precision_wants_float32_masters() -> None:
    told = refusal("mixed_precision=bf16", "model.dtype=float64")
    assert "mixed_precision bf16" in told
    assert "model.dtype is float64" in told


def test_a_model_of_the_users_is_not_recomputed() -> None:
    own = {
        "model": {"torch": "some.module:build"},
        "data": {"dataset": "some.module:data"},
        "task": {"type": "custom"},
    }
    with pytest.raises(SpecError, match=r"gradient_checkpointing: model_type custom has no layers .* itself"):
        parse_spec(yaml.safe_dump(GOOD | own), ["gradient_checkpointing=true"])
