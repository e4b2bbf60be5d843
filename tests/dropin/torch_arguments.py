"""Each argument of the wrapper, by ranks and by one process. Functions named `check_*` run on 2 ranks."""

from __future__ import annotations

from typing import Any

import torch

import hvdtrain.torch as hvd
from hvdtrain.core.errors import SpecError, TrainingError
from tests.dropin.trial import (
    Trial,
    adamw,
    assert_same,
    batch,
    mean_loss,
    mlp,
    own,
    same_on_all_ranks,
    sgd,
    step_both,
    wrap,
)

EVEN = ((3, 3), (3, 3))
# The last update of an epoch: short micro-batches, and a rank that has one less.
RAGGED = ((4, 4), (4, 1))


def ragged(update: int) -> Any:
    return ((4, 4), (4, 4)) if update < 3 else ((4, 1), (2,))


def check_mean_of_ranks() -> None:
    for dtype in (torch.float64, torch.float32):
        for optimizer in (sgd, adamw):
            Trial(dtype=dtype, optimizer=optimizer).check()
            # Equal micro-batches: the mean of means is the mean over the concatenated batch.
            Trial(dtype=dtype, optimizer=optimizer, average="samples").check()


def check_accumulation() -> None:
    for dtype in (torch.float64, torch.float32):
        trial = Trial({"gradient_accumulation_steps": 2}, EVEN, "samples", dtype=dtype)
        trial.check()


def check_a_window_with_fewer_micro_batches_is_their_mean() -> None:
    Trial({"gradient_accumulation_steps": 2}, ragged).check()


def check_samples_are_exact_however_they_are_spread() -> None:
    for dtype in (torch.float64, torch.float32):
        arguments = {"gradient_accumulation_steps": 2, "average": "samples"}
        Trial(arguments, RAGGED, "samples", dtype=dtype).check()
        Trial(arguments, ragged, "samples", adamw, dtype=dtype).check()
    Trial({"average": "samples"}, ((5,), (1,)), "samples").check()


def check_sum_divides_by_nothing() -> None:
    def loss(model: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(model(x), y, reduction="sum") / 20

    for arguments in ({"average": "sum"}, {"op": hvd.Sum}):
        Trial(arguments | {"gradient_accumulation_steps": 2}, RAGGED, "sum", loss=loss).check()


def check_backward_passes_per_step_adds_up_as_horovods() -> None:
    Trial({"backward_passes_per_step": 2}, EVEN, "ranks").check()
    Trial({"backward_passes_per_step": 2}, ragged, "ranks").check()


def check_max_grad_norm() -> None:
    clip = [0.05]

    def clipped(model: Any) -> None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip[0])

    for dtype in (torch.float64, torch.float32):
        ours = Trial({"max_grad_norm": clip[0]}, dtype=dtype)
        theirs = Trial(dtype=dtype, after_backward=clipped)
        assert_same(ours.together(), theirs.alone(), 1e-12 if dtype == torch.float64 else 1e-6)


def check_clipping_by_the_user_after_backward() -> None:
    def clipped(model: Any) -> None:
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        assert norm > 0.05

    Trial({"gradient_accumulation_steps": 2}, EVEN, after_backward=clipped).check()


def check_small_buckets() -> None:
    Trial({"bucket_cap_mb": 1e-5, "gradient_accumulation_steps": 2}, ragged, optimizer=adamw).check()


def check_compression_by_rules() -> None:
    rules = [{"match": "0.*", "type": "none"}, {"type": "fp16"}]
    ours, theirs = (Trial(w, updates=1) for w in ({"compression": rules}, {}))
    found, expected = ours.together(), theirs.alone()
    assert_same(found[0], expected[0], 1e-12)
    assert_same(found[2], expected[2], 1e-3)
    assert not torch.equal(found[2].weight, expected[2].weight)


def check_compression_in_half_precision() -> None:
    for compression in ("fp16", hvd.Compression.fp16):
        trial = Trial({"compression": compression}, dtype=torch.float32)
        trial.check(5e-3)
        same_on_all_ranks(trial.together())
    Trial({"compression": hvd.Compression.none}).check()


def check_error_feedback_sends_all_in_the_end() -> None:
    """Gradients of a linear loss never change: what top-k held back comes later, update by update."""
    model = mlp()
    start = [p.detach().clone() for p in model.parameters()]
    weights = [torch.linspace(0.1, 1.0, p.numel(), dtype=p.dtype).view_as(p) for p in model.parameters()]
    topk = {"type": "topk", "ratio": 0.25}
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=1.0), model.named_parameters(), compression=topk
    )
    updates = 80
    for _ in range(updates):
        optimizer.zero_grad()
        sum((w * p).sum() for w, p in zip(weights, model.parameters(), strict=True)).backward()
        optimizer.step()
    for before, weight, parameter in zip(start, weights, model.parameters(), strict=True):
        moved = (before - parameter.detach()) / weight
        # Some updates' worth may still wait, but nothing is lost or sent twice.
        assert moved.min() > updates - 35
        assert moved.max() <= updates + 1e-9


def check_adasum_of_equal_gradients_is_that_gradient() -> None:
    def shared(model: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return mean_loss(model, *batch((0, 0, 0), 4, x.dtype))

    Trial({"op": hvd.Adasum, "gradient_accumulation_steps": 2}, EVEN, loss=shared).check(1e-9)


def check_horovods_spelling() -> None:
    Trial({"gradient_predivide_factor": 2.0, "num_groups": 2, "sparse_as_dense": True}).check()
    Trial({"groups": 2, "op": hvd.Average, "process_set": hvd.global_process_set}).check()


def check_bad_arguments_are_named() -> None:
    cases: list[tuple[dict[str, Any], tuple[str, ...]]] = [
        ({"compression": "zip"}, ("compression", "zip")),
        ({"compression": {"type": "topk", "ratio": 2}}, ("ratio", "2")),
        ({"compression": "local_sgd"}, ("local_sgd", "hvdtrain run")),
        ({"compression": [{"match": "head*", "type": "fp16"}]}, ("head*", "nearest is")),
        ({"gradient_accumulation_steps": 0}, ("gradient_accumulation_steps", "0")),
        ({"average": "median"}, ("average", "median")),
        ({"backwards_per_step": 2}, ("backwards_per_step",)),
        ({"op": hvd.Max}, ("op", "Average, Sum, Adasum")),
        ({"op": hvd.Sum, "average": "samples"}, ("op", "samples")),
        ({"op": hvd.Adasum, "compression": "fp16"}, ("Adasum", "fp16")),
        ({"op": hvd.Sum, "gradient_predivide_factor": 2.0}, ("gradient_predivide_factor",)),
        ({"backward_passes_per_step": 2, "gradient_accumulation_steps": 2}, ("give one",)),
        ({"process_set": object()}, ("process_set",)),
        ({"compression": {"type": "topk", "momentum": 0.9}}, ("momentum", "0.9")),
    ]
    for arguments, words in cases:
        model = mlp()
        try:
            hvd.DistributedOptimizer(sgd(model.parameters()), model.named_parameters(), **arguments)
        except SpecError as error:
            for word in words:
                assert word in str(error), (word, str(error))
        else:
            raise AssertionError(f"{arguments} was accepted")


def check_parameters_must_have_names() -> None:
    model, other = mlp(), mlp()
    every = [*model.parameters(), *other.parameters()]
    for names, word in (
        (model.named_parameters(), "group 0, shape (8, 6)"),
        ([*model.named_parameters(), *other.named_parameters()], "two parameters are named"),
    ):
        try:
            hvd.DistributedOptimizer(sgd(every), names)
        except TrainingError as error:
            assert word in str(error), str(error)
        else:
            raise AssertionError("accepted")


def check_horovods_positions_and_empty_names() -> None:
    for k, op, average in ((2, hvd.Average, "ranks"), (2, hvd.Sum, "sum")):
        ours, theirs = mlp(), Trial({}, EVEN, average, updates=1)
        optimizer = hvd.DistributedOptimizer(
            sgd(ours.parameters()),
            [],
            hvd.Compression.none,
            k,
            op,
            1.0,
            0,
            None,
            False,
            hvd.global_process_set,
        )
        for m in range(2):
            mean_loss(ours, *batch((0, hvd.rank(), m), 3, torch.float64)).backward()
        optimizer.step()
        assert_same(ours, theirs.alone(), 1e-12)


def check_a_parameter_of_integers() -> None:
    model, twin = mlp(), mlp()
    for each in (model, twin):
        each[2].register_parameter("steps", torch.nn.Parameter(torch.tensor([3]), requires_grad=False))
    optimizer, other = wrap(sgd(model.parameters()), model), sgd(twin.parameters())
    for update in range(2):
        step_both(optimizer, model, other, twin, update)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.tensor([4]), requires_grad=False)]})
    step_both(optimizer, model, other, twin, 2)
    assert_same(model, twin, 1e-12)


def check_what_is_no_argument_is_named() -> None:
    model = mlp()
    optimizer = sgd(model.parameters())
    named = "model.named_parameters()"
    cases: list[tuple[Any, tuple[str, ...]]] = [
        (lambda: hvd.DistributedOptimizer(model), ("torch.optim.Optimizer", "Sequential")),
        (lambda: hvd.DistributedOptimizer(optimizer, dict(model.named_parameters())), (named, "found dict")),
        (lambda: hvd.DistributedOptimizer(optimizer, model.state_dict()), (named, "OrderedDict")),
        (lambda: hvd.DistributedOptimizer(optimizer, model.parameters()), (named, "Parameter among")),
        (lambda: hvd.DistributedOptimizer(optimizer, model), (named, "Sequential")),
        (lambda: hvd.DistributedOptimizer(optimizer, 3), (named, "found int")),
        (lambda: hvd.DistributedOptimizer(optimizer, None, "none", *range(8)), ("by position",)),
        (
            lambda: hvd.DistributedOptimizer(optimizer, None, "none", 2, backward_passes_per_step=2),
            ("backward_passes_per_step", "by position and by name"),
        ),
        (lambda: hvd.broadcast_parameters(model), ("model.state_dict()", "Sequential")),
        (
            lambda: hvd.broadcast_parameters(torch.nn.ModuleList([model])),
            ("model.state_dict()", "ModuleList"),
        ),
        (lambda: hvd.broadcast_parameters([model]), ("model.state_dict()", "Sequential among them")),
        (lambda: hvd.broadcast_parameters(model[0].weight), ("model.state_dict()", "Parameter")),
        (lambda: hvd.broadcast_parameters(optimizer), ("model.state_dict()", "SGD")),
        (lambda: hvd.broadcast_parameters(None), ("model.state_dict()", "NoneType")),
        (lambda: hvd.broadcast_optimizer_state(model), ("torch.optim.Optimizer", "Sequential")),
    ]
    for call, words in cases:
        try:
            call()
        except SpecError as error:
            for word in words:
                assert word in str(error), (word, str(error))
        else:
            raise AssertionError(f"{words} was accepted")
    # Nothing was left half done.
    wrapped = wrap(optimizer, model)
    own(model, 0).backward()
    wrapped.step()
