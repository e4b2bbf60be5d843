"""The loss scale on real ranks, whose gradients are spoilt by scripts: what is skipped, and who agrees."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest

from hvdtrain.core.compression import Adasum, DiLoCo, LocalSGD
from hvdtrain.core.compression.simulator import Simulator
from hvdtrain.core.data import Batch, Dataset, Window, train_windows
from hvdtrain.core.data.corpus import split_members
from hvdtrain.core.data.tokenizer import train_tokenizer
from hvdtrain.core.families.weights import initial_weights
from hvdtrain.core.plan.plan import Plan, make_plan
from hvdtrain.core.run.job import prepare_data
from hvdtrain.core.run.metrics import METRICS_FILE, read_metrics
from hvdtrain.core.spec.job_spec import JobSpec, load_spec
from hvdtrain.core.update.optimizers import ReferenceOptimizer, clip_factor
from hvdtrain.core.update.schedules import schedule_factor
from tests.conformance.cases import POLICIES
from tests.jobs import spoilt
from tests.jobs.runs import FRAMEWORKS, TINY, launch

Results = dict[str, list[dict[str, np.ndarray]]]
OUTPUT = "output.txt"
ELEMENTS = 2 * spoilt.ROWS * spoilt.WIDTH


def run(directory: Path, framework: str, ranks: int, scenarios: list[dict[str, Any]]) -> Results:
    """What each rank of each scenario left."""
    directory.mkdir(parents=True, exist_ok=True)
    listing = directory / "scenarios.json"
    listing.write_text(json.dumps(scenarios))
    done = launch(ranks, [spoilt.__file__, framework, str(listing)])
    assert done.returncode == 0, done.stdout[-5000:]
    (directory / OUTPUT).write_text(done.stdout)
    names = [scenario["name"] for scenario in scenarios]
    return {n: [dict(np.load(directory / f"{n}-{rank}.npz")) for rank in range(ranks)] for n in names}


class Runs(dict[str, Results]):
    """All that the quick tests ask of a framework, on 2 ranks in one launch."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __missing__(self, framework: str) -> Results:
        # The first is what ranks take their seeds from.
        scenarios = [*empty(self.root / "corpus", framework), *scripted()]
        # TensorFlow takes its time to trace: what else it does is for slow tests.
        scenarios += [*unscripted(EVERY, 2), *tiny()] if framework == "torch" else []
        self[framework] = run(self.root / framework, framework, 2, scenarios)
        return self[framework]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("scale"))


COMMON = [
    *TINY,
    "data.validation_split=0.0",
    "batch.per_device_train_batch_size=2",
]
SCRIPTED = [
    *COMMON,
    "model.dtype=float64",
    "batch.gradient_accumulation_steps=3",
    "optimizer.learning_rate=0.05",
    "loss_scale={initial: 16, growth_interval: 3}",
    "max_grad_norm=0.2",
    "max_steps=12",
]
SPOILS: spoilt.Spoils = [
    (1, 1, 2, 17, "inf"),
    (4, 0, 0, ELEMENTS - 1, "nan"),
    (5, 0, 1, 0, "-inf"),
    (5, 1, 1, 0, "inf"),
    # Large and finite: clipped and applied.
    (8, 1, 0, 5, "3e4"),
    (14, 0, 2, 100, "inf"),
]
SKIPPED = [1, 4, 5, 14]
SCALES = [16.0, 16.0, 8.0, 8.0, 8.0, 4.0, 2.0, 2.0, 2.0, 4.0, 4.0, 4.0, 8.0, 8.0, 8.0, 4.0, 4.0]
COMPRESSIONS = {"none": "{type: none}", "topk": "{type: topk, ratio: 0.02}"}


def scripted() -> list[dict[str, Any]]:
    return [
        {"name": f"scripted {name}", "set": [*SCRIPTED, f"compression={text}"], "spoil": SPOILS}
        for name, text in COMPRESSIONS.items()
    ]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_scripted_run_is_the_hand_written_one(runs: Runs, framework: str) -> None:
    for scenario in scripted():
        name, results = scenario["name"], runs[framework][scenario["name"]]
        weights, rates = reference(load_spec("bert", scenario["set"]), SPOILS)
        for found in results:
            assert found["scales"].tolist() == SCALES
            assert np.flatnonzero(~found["applied"]).tolist() == SKIPPED
            np.testing.assert_allclose(found["rates"], rates, rtol=1e-14)
            for weight, array in weights.items():
                np.testing.assert_allclose(found[weight], array, rtol=1e-9, atol=1e-11, err_msg=name)
        lines = read_metrics(runs.root / framework / name)[0]
        assert [line["skipped_updates"] for line in lines] == [0, 1, 1, 3, 3, 3, 3, 3, 3, 3, 3, 4]
        assert [line["loss_scale"] for line in lines] == [
            scale for i, scale in enumerate(SCALES[:-1]) if i not in SKIPPED
        ]


# Beside these the texts have one word each that the tokenizer knows: most updates have few, some have none.
EMPTY = {"none": "{type: none}", "topk": "{type: topk, ratio: 0.02}", "adasum": "{type: adasum}"}
EMPTY_LOCAL = "{type: local_sgd, sync_every: 2}"


def empty(directory: Path, framework: str) -> list[dict[str, Any]]:
    """Runs on a corpus most of whose documents are [UNK], with the largest seed that evaluates on one."""
    directory.mkdir(parents=True, exist_ok=True)
    words = " ".join(topics.values()).lower().split()
    tokenizer, corpus = directory / "tokenizer.json", directory / "corpus.txt"
    train_tokenizer(lambda: [" ".join(words)], 200).save(str(tokenizer))
    documents = ["\u2603 \u2604" if i % 4 else "the a" for i in range(100)]
    corpus.write_text("\n\n".join(documents), encoding="utf-8")
    seeds = (2**63 - n for n in itertools.count(1))
    seed = next(s for s in seeds if split_members(100, 0.01, s)[1][0] % 4)
    settings = [
        *SCRIPTED,
        "data={corpus: null, packing: false, max_seq_length: 32, validation_split: 0.01, "
        f"files: [{corpus}], tokenizer_file: {tokenizer}}}",
        "batch={per_device_train_batch_size: 1, gradient_accumulation_steps: 2}",
        f"seed={seed}",
    ]
    texts = EMPTY if framework == "torch" else {"none": EMPTY["none"]}
    return [
        {"name": f"empty {name}", "set": [*settings, f"compression={text}"]}
        for name, text in [*texts.items(), ("local_sgd", EMPTY_LOCAL)]
    ]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_an_update_with_nothing_to_predict_is_skipped_for_its_own_reason(
    runs: Runs, framework: str, tmp_path: Path
) -> None:
    for scenario in empty(runs.root / "corpus", framework):
        name, results = scenario["name"], runs[framework][scenario["name"]]
        if name.endswith("local_sgd"):
            continue
        spec = load_spec("bert", scenario["set"])
        weights, rates = reference(spec, [])
        nothing = [w for w, total in enumerate(totals(spec, 40)) if total == 0.0]
        windows = int(results[0]["step"][1])
        nothing = [w for w in nothing if w < windows]
        assert len(nothing) > 2, "some updates were meant to be empty"
        for found in results:
            assert found["applied"].all()
            assert found["step"].tolist() == [12, 12 + len(nothing)]
            # Of applied updates alone: three raise the scale.
            assert found["scales"].tolist() == [16.0 * 2 ** (i // 3) for i in range(13)]
            np.testing.assert_allclose(found["rates"], rates, rtol=1e-14)
            for weight, array in weights.items():
                np.testing.assert_allclose(found[weight], array, rtol=1e-9, atol=1e-11, err_msg=name)
        check_lines(runs.root / framework / name, nothing, windows)


def check_lines(run: Path, nothing: list[int], windows: int) -> None:
    text = (run / METRICS_FILE).read_text()
    assert "NaN" not in text
    *lines, evaluated = [json.loads(line) for line in text.splitlines()]
    assert [i for i, line in enumerate(lines) if "loss" not in line] == nothing
    assert [line["samples_consumed"] for line in lines] == [4 * (i + 1) for i in range(windows)]
    for i, line in enumerate(lines):
        assert line["empty_updates"] == line["skipped_updates"] == sum(n <= i for n in nothing)
        assert line["wire_bytes"] == 0 if i in nothing else line["wire_bytes"] > 0
    # Of both ranks' [CLS], [UNK], [UNK] and [SEP], twice.
    assert {lines[i]["tokens"] for i in nothing} == {16}
    assert evaluated["eval_samples"] == 1
    assert evaluated["eval_loss"] is evaluated["eval_perplexity"] is None
    assert "no validation loss, for that split has nothing to predict" in (run.parent / OUTPUT).read_text()
    assert (
        f"{len(nothing)} skipped, {len(nothing)} of them with nothing to predict"
        in (run.parent / OUTPUT).read_text()
    )


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_so_it_is_where_ranks_take_updates_alone(runs: Runs, framework: str) -> None:
    (scenario,) = [s for s in empty(runs.root / "corpus", framework) if s["name"] == "empty local_sgd"]
    spec = load_spec("bert", scenario["set"])
    weights, own = local_reference(spec)
    for rank, found in enumerate(runs[framework][scenario["name"]]):
        assert found["applied"].tolist() == [True] * own[rank]
        assert found["step"].tolist() == [12, 12]
        for weight, array in weights.items():
            np.testing.assert_allclose(found[weight], array, rtol=1e-9, atol=1e-11)
    lines = read_metrics(runs.root / framework / scenario["name"])[0]
    nothing = np.cumsum(np.array(totals(spec, 12)) == 0.0)[1::2].tolist()
    assert nothing[-1] > 0
    assert [line["empty_updates"] for line in lines] == nothing
    assert [line["skipped_updates"] for line in lines] == nothing


def totals(spec: JobSpec, count: int) -> list[float]:
    """W of the first updates."""
    return [sum(part.weight for part in parts) for parts in itertools.islice(windows_of(spec), count)]


def windows_of(spec: JobSpec) -> Iterator[tuple[Window, ...]]:
    """Both ranks' windows."""
    dataset, plan = prepared(spec)
    streams = [
        train_windows(dataset.train, seed=spec.seed, accumulation=plan.accumulation, rank=rank)
        for rank in range(2)
    ]
    return zip(*streams, strict=True)


def prepared(spec: JobSpec) -> tuple[Dataset, Plan]:
    dataset = prepare_data(spec, print)
    tokens = dataset.train.costs
    plan = make_plan(spec, spoilt.WEIGHTS, size=2, threads=1, train_tokens=tokens, validation_samples=0)
    return dataset, plan


def learning_rate(spec: JobSpec, plan: Plan, step: int) -> float:
    peak, warmup, last = plan.learning_rate, plan.warmup_steps, plan.max_steps
    return peak * schedule_factor(spec.schedule, step, warmup, last, peak)


def local_reference(spec: JobSpec) -> tuple[dict[str, np.ndarray], list[int]]:
    """Both ranks' local updates in NumPy: the weights in the end, and how many each rank has applied."""
    _, plan = prepared(spec)
    start = initial_weights(spoilt.WEIGHTS, spec.seed, "float64")
    ranks, own = [dict(start), dict(start)], [0, 0]
    optimizers = [{w.name: ReferenceOptimizer(spec.optimizer, w) for w in spoilt.WEIGHTS} for _ in range(2)]
    for step, parts in enumerate(itertools.islice(windows_of(spec), plan.max_steps)):
        rate = learning_rate(spec, plan, step)
        for rank, part in enumerate(parts):
            if not part.weight:
                continue
            own[rank] += 1
            weights = ranks[rank]
            found = sum(gradient(*weights.values(), batch) for batch in part.micro_batches) / part.weight
            found *= clip_factor(float(np.linalg.norm(found)), spec.max_grad_norm or np.inf)
            for name, flat in zip(weights, np.split(found, 2), strict=True):
                moved = flat.reshape(weights[name].shape)
                weights[name] = optimizers[rank][name].update(weights[name], moved, rate)
        if step % 2:
            mean = {name: (ranks[0][name] + ranks[1][name]) / 2 for name in start}
            ranks = [dict(mean), dict(mean)]
    return ranks[0], own


def reference(spec: JobSpec, spoils: spoilt.Spoils) -> tuple[dict[str, np.ndarray], list[float]]:
    """Both ranks in NumPy: the weights in the end, and the learning rate of each update tried."""
    _, plan = prepared(spec)
    weights = initial_weights(spoilt.WEIGHTS, spec.seed, "float64")
    optimizers = {w.name: ReferenceOptimizer(spec.optimizer, w) for w in spoilt.WEIGHTS}
    (bucket,) = plan.buckets
    assert [w.name for w in bucket.weights] == list(weights)
    simulator = Simulator(spec.rules.policies[0], bucket, 2, seed=spec.seed)
    step, window, rates = 0, 0, []
    for parts in windows_of(spec):
        if step == plan.max_steps:
            break
        total = sum(part.weight for part in parts)
        if not total:
            continue
        mine = np.zeros((2, ELEMENTS))
        for rank, part in enumerate(parts):
            for i, batch in enumerate(part.micro_batches):
                divisor = spec.rules.divisor(part.weight, total)
                mine[rank] += gradient(*weights.values(), batch) / divisor
                for at, whose, micro_batch, element, value in spoils:
                    if (at, whose, micro_batch) == (window, rank, i):
                        mine[rank, element] += float(value) / total
        with np.errstate(invalid="ignore"):
            reduced = simulator.reduce(mine, step + 1)[0]
        rates.append(learning_rate(spec, plan, step))
        if not spoils or window not in SKIPPED:
            simulator.commit()
            reduced *= clip_factor(float(np.linalg.norm(reduced)), spec.max_grad_norm or np.inf)
            for name, part in zip(weights, np.split(reduced, 2), strict=True):
                moved = part.reshape(weights[name].shape)
                weights[name] = optimizers[name].update(weights[name], moved, rates[-1])
            step += 1
        window += 1
    return weights, rates


def gradient(embedding: np.ndarray, decoder: np.ndarray, batch: Batch) -> np.ndarray:
    """That of the summed cross-entropy, flat."""
    rows = np.arange(len(batch.inputs["input_ids"]))[:, None]
    tokens = batch.inputs["input_ids"][rows, batch.inputs["masked_positions"]].ravel()
    logits = embedding[tokens] @ decoder.T
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    p[np.arange(len(p)), batch.targets.ravel()] -= 1.0
    p *= batch.loss_weights.reshape(-1, 1)
    by_token = np.zeros_like(embedding)
    np.add.at(by_token, tokens, p @ decoder)
    return np.concatenate([by_token.ravel(), (p.T @ embedding[tokens]).ravel()])


EVERY = {
    **{name: policy for name, policy in POLICIES.items() if name != "example"},
    "adasum": Adasum(),
    "local_sgd": LocalSGD(sync_every=3),
    "diloco": DiLoCo(sync_every=4),
}
TRIED = 9
RANDOM = [
    *COMMON,
    "model.dtype=float64",
    "batch.gradient_accumulation_steps=2",
    "loss_scale={initial: 16, growth_interval: 2}",
]


def script(name: str, ranks: int) -> list[tuple[int, int, int, int, str]]:
    """Up to three spoilt elements, each in any window, rank, micro-batch and place."""
    draw = np.random.default_rng([len(name), ranks, *name.encode()])
    return [
        (
            # Not the last: what is tried last is applied, and ends the run.
            int(draw.integers(TRIED - 1)),
            int(draw.integers(ranks)),
            int(draw.integers(2)),
            int(draw.integers(ELEMENTS)),
            str(draw.choice(["inf", "-inf", "nan"])),
        )
        for _ in range(3)
    ]


def unscripted(names: Iterable[str], ranks: int) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "set": [
                *RANDOM,
                f"compression={json.dumps(EVERY[name].model_dump(mode='json'))}",
                f"max_steps={TRIED if local(name) else TRIED - len(spoilt_windows(name, ranks))}",
            ],
            "spoil": script(name, ranks),
        }
        for name in names
    ]


def test_no_sequence_of_infs_makes_ranks_disagree(runs: Runs) -> None:
    check_agreement({name: found for name, found in runs["torch"].items() if name in EVERY}, 2)


@pytest.mark.slow
@pytest.mark.parametrize(("framework", "ranks"), [("torch", 4), ("tensorflow", 2), ("tensorflow", 4)])
def test_nor_whatever_the_policy_nor_among_four(framework: str, ranks: int, tmp_path: Path) -> None:
    check_agreement(run(tmp_path, framework, ranks, unscripted(EVERY, ranks)), ranks)


def check_agreement(results: Results, ranks: int) -> None:
    for name, found in results.items():
        assert all(np.isfinite(result["decoder"]).all() for result in found)
        for key in ("embedding", "decoder", "step", "rates"):
            assert len({result[key].tobytes() for result in found}) == 1, (name, key)
        assert len({result["scales"][-1] for result in found}) == 1, name
        if local(name):
            # Each rank skips its own.
            for rank, result in enumerate(found):
                own = sorted({w for w, whose, *_ in script(name, ranks) if whose == rank})
                assert np.flatnonzero(~result["applied"]).tolist() == own, name
            continue
        skipped = spoilt_windows(name, ranks)
        for result in found:
            assert np.flatnonzero(~result["applied"]).tolist() == skipped, name
            assert result["step"].tolist() == [TRIED - len(skipped), TRIED]
            np.testing.assert_array_equal(result["scales"], found[0]["scales"])


def local(name: str) -> bool:
    return EVERY[name].at(1).local


def spoilt_windows(name: str, ranks: int) -> list[int]:
    return sorted({window for window, *_ in script(name, ranks)})


PRECISIONS = {
    "fp32": ["mixed_precision=no"],
    "scaled": ["mixed_precision=fp16"],
    "unscaled": ["mixed_precision=fp16", "loss_scale.fixed=1.0"],
}


def tiny() -> list[dict[str, Any]]:
    settings = [
        *COMMON,
        "optimizer={learning_rate: 0.05, weight_decay: 0.0, adam_epsilon: 1e-20}",
        "max_grad_norm=null",
        "max_steps=40",
    ]
    return [{"name": n, "set": [*settings, *p], "factor": 1e-6} for n, p in PRECISIONS.items()]


def test_gradients_of_1e_7_are_learnt_from_with_a_scale_alone(runs: Runs) -> None:
    assert runs["torch"]
    check_learning(runs.root / "torch")


@pytest.mark.slow
def test_so_they_are_in_tensorflow(tmp_path: Path) -> None:
    run(tmp_path, "tensorflow", 2, tiny())
    check_learning(tmp_path)


def check_learning(directory: Path) -> None:
    lines = {name: read_metrics(directory / name)[0] for name in PRECISIONS}
    largest = max(line["grad_norm"] for line in lines["fp32"])
    assert 1e-8 < largest < 1e-5, "gradients were meant to be small"
    # Of the same batches, so that how hard they are does not matter.
    last = {name: np.mean([line["loss"] for line in found[-8:]]) for name, found in lines.items()}
    assert last["scaled"] == pytest.approx(last["fp32"], rel=0.01)
    # Below half of float16's smallest number gradients are 0, and AdamW's steps with them.
    assert last["unscaled"] > 1.04 * last["fp32"]
