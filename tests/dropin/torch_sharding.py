"""`zero_stage=1` against `zero_stage=0` and one process. `check_*` run on any number of ranks."""

from __future__ import annotations

import copy
import io
import itertools
from collections.abc import Callable
from typing import Any

import torch

import hvdtrain.torch as hvd
from tests.dropin.torch_misuse import told
from tests.dropin.trial import FEATURES, adamw, assert_same, batch, every, mlp, own, sgd, twins, wrap

Optimizer = torch.optim.Optimizer
F64 = torch.float64


class Lamb(torch.optim.Optimizer):
    """Needs whole parameters: a step is as long as the parameter."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1})

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                state["mean"] = state.get("mean", torch.zeros_like(p)) * 0.9 + p.grad
                state["steps"], state["kind"] = state.get("steps", 0) + 1, {"of": ["lamb", None, True]}
                ratio = p.detach().norm() / (state["mean"].norm() + 1e-9)
                p.data.sub_(state["mean"], alpha=group["lr"] * float(ratio))


OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": sgd,
    "adamw": adamw,
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.02, amsgrad=True, foreach=True),
    "fused": lambda p: torch.optim.Adam(p, lr=0.02, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    # Has state from the start.
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05, initial_accumulator_value=0.1),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.02),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.02),
    "lamb": Lamb,
    "muon": lambda p: torch.optim.Muon([each for each in p if each.ndim == 2], lr=0.02),
}


def deep(dtype: torch.dtype = F64) -> torch.nn.Module:
    """More parameters than ranks, of which none is large."""
    torch.manual_seed(3)
    layers = [
        torch.nn.Linear(FEATURES, 16),
        *(torch.nn.Linear(16, 16) for _ in range(12)),
        torch.nn.Linear(16, 3),
    ]
    return torch.nn.Sequential(*itertools.chain(*((each, torch.nn.Tanh()) for each in layers))).to(dtype)


def run(
    optimizer: Any, model: torch.nn.Module, updates: Any = range(4), backwards: int = 1, schedule: Any = None
) -> None:
    for update in updates:
        optimizer.zero_grad()
        for _ in range(backwards):
            own(model, update).backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()


def same(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    """To the bit on two ranks; three add in an order that depends on which buckets Horovod sends together."""
    assert_same(ours, theirs, 0.0 if hvd.size() < 3 else rounding(ours))


def rounding(of: Any) -> float:
    return 1e-12 if next(of.parameters()).dtype == F64 else 1e-5


def check_updates_are_those_of_zero_stage_0() -> None:
    for make in OPTIMIZERS.values():
        for arguments in (
            {},
            {"gradient_accumulation_steps": 2, "max_grad_norm": 0.1, "bucket_cap_mb": 0.001},
        ):
            models = []
            for stage in (0, 1):
                model = mlp()
                optimizer = wrap(make(model.parameters()), model, zero_stage=stage, **arguments)
                run(optimizer, model, backwards=arguments.get("gradient_accumulation_steps", 1))
                models.append(model)
            same(*models)


def check_a_rank_that_has_nothing() -> None:
    for make in OPTIMIZERS.values():
        models = []
        for stage in (0, 1):
            torch.manual_seed(0)
            model = torch.nn.Linear(FEATURES, 3, bias=False, dtype=F64)
            optimizer = wrap(make(model.parameters()), model, zero_stage=stage)
            run(optimizer, model)
            optimizer.consolidate_state_dict()
            models.append(model)
        assert len(optimizer.state) == (hvd.rank() == 0)
        same(*models)


def check_groups_and_a_schedule() -> None:
    models = []
    for stage in (0, 1):
        model = deep()
        kernels = [p for p in model.parameters() if p.ndim == 2]
        biases = {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0, "lr": 0.01}
        optimizer = wrap(torch.optim.AdamW([{"params": kernels}, biases], lr=0.05), model, zero_stage=stage)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
        run(optimizer, model, range(10), schedule=schedule)
        assert optimizer.param_groups[1]["lr"] < 1e-9
        assert len(optimizer.param_groups[0]["params"]) == len(kernels)
        models.append(model)
    same(*models)


def check_it_is_what_one_process_computes() -> None:
    model, twin = twins(deep)
    optimizer, other = wrap(adamw(model.parameters()), model, zero_stage=1), adamw(twin.parameters())
    run(optimizer, model, range(20))
    for update in range(20):
        other.zero_grad()
        every(twin, update).backward()
        other.step()
    assert_same(model, twin, 1e-10)


def check_each_rank_has_its_part_of_the_state() -> None:
    for name, make in OPTIMIZERS.items():
        model = deep(torch.float32)
        plain = make(deep(torch.float32).parameters())
        optimizer = wrap(make(model.parameters()), model, zero_stage=1)
        run(optimizer, model, range(2))
        for p in plain.param_groups[0]["params"]:
            p.grad = torch.ones_like(p)
        plain.step()
        largest = max(map(elements, plain.state.values()))
        total, mine = (sum(map(elements, each.state.values())) for each in (plain, optimizer))
        assert mine <= total / hvd.size() + largest, name
        assert hvd.allreduce(torch.tensor(mine), op=hvd.Sum, name="elements") == total, name


def elements(state: dict[str, Any]) -> int:
    return sum(value.numel() for value in state.values() if torch.is_tensor(value))


def check_what_is_collected_is_whole() -> None:
    for name, make in OPTIMIZERS.items():
        found = []
        for stage in (0, 1):
            model = mlp()
            optimizer = wrap(make(model.parameters()), model, zero_stage=stage)
            assert len(optimizer.state_dict()["state"]) == (4 if name == "adagrad" else 0)
            run(optimizer, model)
            optimizer.consolidate_state_dict(to=hvd.size() - 1)
            if hvd.rank() == hvd.size() - 1:
                found.append(copy.deepcopy(optimizer.state_dict()))
            elif stage and hvd.size() > 1:
                told(("state_dict()", "consolidate_state_dict(to=0)"), optimizer.state_dict)
            run(optimizer, model, [9])
            if stage and hvd.size() > 1:
                told(("state_dict()", "consolidate_state_dict(to=0)"), optimizer.state_dict)
        if found:
            assert_equal(*found, 0.0 if hvd.size() < 3 else 1e-9)
            assert not torch.is_tensor(found[1]["state"][0].get("steps", 0))
            torch.save(found[1], io.BytesIO())


def assert_equal(ours: Any, theirs: Any, tolerance: float = 0.0) -> None:
    if torch.is_tensor(theirs):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    elif isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            assert_equal(ours[key], value, tolerance)
    elif isinstance(theirs, list | tuple):
        assert type(ours) is type(theirs) and len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_equal(one, other, tolerance)
    else:
        assert ours == theirs


def check_training_goes_on_from_any_stage() -> None:
    """Loaded before it is wrapped or after, by all ranks or by one that broadcasts."""
    model = deep()
    first = wrap(adamw(model.parameters()), model)
    run(first, model)
    saved, weights = copy.deepcopy(first.state_dict()), copy.deepcopy(model.state_dict())
    run(first, model, range(4, 8))

    def before(twin: torch.nn.Module) -> Any:
        plain = adamw(twin.parameters())
        plain.load_state_dict(copy.deepcopy(saved))
        return wrap(plain, twin, zero_stage=1)

    def after(twin: torch.nn.Module) -> Any:
        optimizer = wrap(adamw(twin.parameters()), twin, zero_stage=1)
        optimizer.load_state_dict(copy.deepcopy(saved))
        assert_equal(optimizer.state_dict(), saved)
        return optimizer

    def on_one_rank(twin: torch.nn.Module) -> Any:
        optimizer = wrap(adamw(twin.parameters()), twin, zero_stage=1)
        if hvd.rank() == 0:
            optimizer.load_state_dict(copy.deepcopy(saved))
        hvd.broadcast_optimizer_state(optimizer, root_rank=0)
        return optimizer

    for way in (before, after, on_one_rank):
        twin = deep()
        twin.load_state_dict(weights)
        optimizer = way(twin)
        run(optimizer, twin, range(4, 8))
        same(twin, model)
        if hvd.size() > 1:
            assert len(optimizer.state) < len(saved["state"])


def check_hooks_see_all_gradients_before_and_all_weights_after() -> None:
    model, twin = twins()
    optimizer, other = wrap(sgd(model.parameters()), model, zero_stage=1), wrap(sgd(twin.parameters()), twin)
    seen: dict[Any, list[torch.Tensor]] = {}

    def before(each: Any, *_: Any) -> None:
        torch.nn.utils.clip_grad_norm_(each.param_groups[0]["params"], 0.05)

    def after(each: Any, *_: Any) -> None:
        seen[each] = [p.detach().clone() for p in each.param_groups[0]["params"]]

    for each in (optimizer, other):
        each.register_step_pre_hook(before)
        each.register_step_post_hook(after)
    for update in range(3):
        run(optimizer, model, [update])
        run(other, twin, [update])
        for one, two in zip(seen[optimizer], seen[other], strict=True):
            torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-15)
        for one, two in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(one.grad, two.grad, rtol=1e-12, atol=1e-15)


def check_a_closure() -> None:
    models = []
    for stage in (0, 1):
        model = mlp()
        optimizer = wrap(sgd(model.parameters()), model, zero_stage=stage)
        for update in range(3):

            def closure(update: int = update, model: Any = model, optimizer: Any = optimizer) -> torch.Tensor:
                optimizer.zero_grad()
                loss = own(model, update)
                loss.backward()
                return loss

            optimizer.step(closure)
        models.append(model)
    same(*models)


def check_parameters_that_come_later() -> None:
    models = []
    for stage in (0, 1):
        model = deep()
        *body, head = [m for m in model if isinstance(m, torch.nn.Linear)]
        optimizer = wrap(adamw([p for m in body for p in m.parameters()]), model, zero_stage=stage)
        run(optimizer, model, range(2))
        optimizer.add_param_group({"params": head.parameters(), "lr": 0.1})
        run(optimizer, model, range(2, 5))
        for p in body[0].parameters():
            p.requires_grad_(False)
        run(optimizer, model, range(5, 7))
        optimizer.consolidate_state_dict()
        if hvd.rank() == 0:
            assert len(optimizer.state_dict()["state"]) == len([*model.parameters()])
        models.append(model)
    same(*models)


def check_dtypes_beside_each_other() -> None:
    models = []
    for stage in (0, 1):
        model = deep(torch.float32)
        for layer in itertools.islice(model, 2, 10, 2):
            layer.bias.data = layer.bias.data[:13].bfloat16().repeat(2)[:16]
        cast = [p for p in model.parameters() if p.dtype == torch.bfloat16]
        odd = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
        optimizer = wrap(
            torch.optim.SGD([odd, *model.parameters()], lr=0.1), Named(odd, model), zero_stage=stage
        )
        for update in range(3):
            optimizer.zero_grad()
            x, _ = batch((update, hvd.rank(), 0), 2, torch.float32)
            out = x
            for layer in model:
                out = (
                    layer(out) if not hasattr(layer, "weight") else out @ layer.weight.T + layer.bias.float()
                )
            (out.square().mean() + odd.float().square().sum()).backward()
            optimizer.step()
        assert len(cast) == 4
        assert float(odd.detach()[0]) < 1.0
        models.append(model)
    same(*models)


class Named:
    def __init__(self, odd: torch.nn.Parameter, model: torch.nn.Module) -> None:
        self.odd, self.model = odd, model

    def named_parameters(self) -> Any:
        return [("odd", self.odd), *self.model.named_parameters()]


def check_sparse_gradients() -> None:
    tables = []
    for stage in (0, 1):
        torch.manual_seed(0)
        table = torch.nn.ModuleList(torch.nn.Embedding(9, 4, sparse=True, dtype=F64) for _ in range(3))
        optimizer = wrap(torch.optim.SparseAdam(table.parameters(), lr=0.1), table, zero_stage=stage)
        for update in range(3):
            optimizer.zero_grad()
            rows = torch.tensor([update, update + hvd.rank() + 1])
            sum(each(rows).square().mean() for each in table).backward()
            optimizer.step()
        tables.append(table)
    same(*tables)


def check_a_gradient_scaler_that_skips() -> None:
    models = []
    for stage, make in itertools.product((0, 1), ("sgd", "fused")):
        model = mlp(torch.float32)
        optimizer = wrap(OPTIMIZERS[make](model.parameters()), model, zero_stage=stage)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4, growth_interval=2)
        for update in range(4):
            optimizer.zero_grad()
            loss = own(model, update)
            if update == 1 and hvd.rank() == 0:
                loss = loss * torch.inf
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        models.append(model)
    same(models[0], models[2])
    same(models[1], models[3])


def check_compression() -> None:
    for compression in ("fp16", "bf16", "int8", {"type": "powersgd"}, {"type": "topk"}):
        models = []
        for stage in (0, 1):
            model = mlp()
            run(wrap(sgd(model.parameters()), model, zero_stage=stage, compression=compression), model)
            models.append(model)
        same(*models)


def check_what_is_refused() -> None:
    model = mlp()

    def wrapping(optimizer: Optimizer, stage: Any = 1) -> Callable[[], Any]:
        return lambda: wrap(optimizer, model, zero_stage=stage)

    for stage in (2, 3):
        told(
            ("zero_stage", "expected 0 or 1", f"--set zero_stage={stage}"),
            wrapping(sgd(model.parameters()), stage),
        )
    told(("zero_stage", "expected 0 or 1 (found -1)"), wrapping(sgd(model.parameters()), -1))
    told(("zero_stage", "'1'"), wrapping(sgd(model.parameters()), "1"))
    told(("zero_stage", "LBFGS", "zero_stage=0"), wrapping(torch.optim.LBFGS(model.parameters())))
    optimizer = wrap(sgd(model.parameters()), model, zero_stage=1)
    told(("zero_stage", "equally many batches"), hvd.join)
    told(("TorchState", "zero_stage=1"), lambda: hvd.elastic.TorchState(model, optimizer))
    if hvd.size() > 1:
        told(("copy", "consolidate_state_dict"), lambda: copy.deepcopy(optimizer))
    for p in model.parameters():
        p.requires_grad_(False)
    optimizer.zero_grad()


def check_state_that_cannot_be_sent() -> None:
    model = mlp()
    optimizer = wrap(sgd(model.parameters()), model, zero_stage=1)
    run(optimizer, model, [0])
    for state in optimizer.state.values():
        state["pair"] = (1, 2)
    if hvd.size() > 1:
        told(("consolidate_state_dict", "tensors, numbers"), optimizer.consolidate_state_dict)
