"""`Checkpoint` on real ranks: training goes on as if it had not stopped, and what does not fit is told."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import horovod.torch as horovods
import numpy as np
import torch
from safetensors.numpy import load_file
from torch.nn import functional

import hvdtrain.torch as hvd
from hvdtrain.core.checkpoints.listing import list_checkpoints
from hvdtrain.core.checkpoints.manifest import FORMAT
from hvdtrain.core.run.ranks import Ranks
from tests.dropin.torch_misuse import told
from tests.dropin.torch_sharding import OPTIMIZERS
from tests.dropin.trial import FEATURES, adamw, assert_same, mlp, sgd, wrap

F64 = torch.float64


def rows() -> torch.utils.data.Dataset:
    draw = torch.Generator().manual_seed(4)
    x = torch.randn(21, FEATURES, generator=draw, dtype=F64)
    return torch.utils.data.TensorDataset(x, torch.randint(3, (21,), generator=draw))


def dropped(dtype: torch.dtype = F64) -> torch.nn.Module:
    model = mlp(dtype)
    return torch.nn.Sequential(*model, torch.nn.Dropout(0.3), torch.nn.Linear(3, 3).to(dtype))


def shared_directory() -> Path:
    return Path(hvd.broadcast_object(tempfile.mkdtemp() if hvd.rank() == 0 else None, name="directory"))


class Loop:
    """A loop as a user writes it."""

    def __init__(
        self,
        directory: Path,
        optimizer: Callable[[Any], Any] = adamw,
        model: Callable[[], torch.nn.Module] = dropped,
        seed: int = 3,
        saved: Any = None,
        **wrapper: Any,
    ) -> None:
        torch.manual_seed(7 + hvd.rank())
        self.model = model()
        hvd.broadcast_parameters(self.model.state_dict())
        self.optimizer = wrap(optimizer(self.model.parameters()), self.model, average="samples", **wrapper)
        self.loader = hvd.DataLoader(rows(), 8, seed=seed)
        self.scheduler = torch.optim.lr_scheduler.MultiStepLR(self.optimizer, [2, 4, 6], gamma=0.7)
        self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(self.optimizer, patience=1)
        others = {"lr_scheduler": self.scheduler, "plateau": self.plateau} if saved is None else saved
        self.checkpoint = hvd.Checkpoint(
            self.model, self.optimizer, self.loader, directory=directory, save_total_limit=2, **others
        )
        self.losses: list[float] = []

    def run(self, updates: int) -> Loop:
        while len(self.losses) < updates:
            for x, y in self.loader:
                self.optimizer.zero_grad()
                self.optimizer.batch_samples = self.loader.batch_samples
                loss = functional.cross_entropy(self.model(x), y)
                loss.backward()
                self.optimizer.step()
                self.scheduler.step()
                self.losses.append(loss.item())
                self.plateau.step(1.0)
                if len(self.losses) == updates:
                    break
        return self

    def save(self) -> Loop:
        self.checkpoint.save(len(self.losses), metrics={"loss": self.losses[-1]}, extra=self.losses)
        return self

    def restored(self) -> Loop:
        found = self.checkpoint.restore("auto")
        assert found is not None
        assert found.step == len(found.extra)
        self.losses = found.extra
        return self


def check_training_goes_on_as_if_it_had_not_stopped() -> None:
    wrappers = ({}, {"zero_stage": 1}, {"compression": {"type": "topk", "ratio": 0.3}})
    for wrapper in wrappers:
        directory = shared_directory()
        whole = Loop(directory, **wrapper).run(8)
        # What training does while a checkpoint is being written is not in it.
        Loop(directory, **wrapper).run(5).save().run(7).checkpoint.wait()
        hvd.allgather_object(None)
        resumed = Loop(directory, **wrapper).restored().run(8)
        # The first ones are rank 0's.
        assert resumed.losses[5:] == whole.losses[5:], wrapper
        assert_same(resumed.model, whole.model, 0.0)
        assert resumed.scheduler.state_dict() == whole.scheduler.state_dict()
        assert type(resumed.scheduler.milestones) is type(whole.scheduler.milestones)
        assert resumed.plateau.state_dict() == whole.plateau.state_dict()


def check_any_optimizers_state_fits_again() -> None:
    for make in (*OPTIMIZERS.values(), _two_groups):
        for stages in ((0, 1), (1, 0)):
            directory = shared_directory()
            first = Loop(directory, make, mlp, zero_stage=stages[0]).run(3).save()
            first.checkpoint.wait()
            hvd.allgather_object(None)
            second = Loop(directory, make, mlp, zero_stage=stages[1]).restored()
            for each in (first, second):
                each.run(6)
            assert_same(second.model, first.model, 1e-12)


def _two_groups(parameters: Any) -> torch.optim.Optimizer:
    found = [*parameters]
    return torch.optim.Adam([{"params": found[2:], "lr": 0.02}, {"params": found[:2]}], lr=0.05)


def check_a_grad_scaler_and_16_bits() -> None:
    directory, scalers = shared_directory(), [torch.amp.GradScaler("cpu", init_scale=64.0) for _ in range(2)]

    def half() -> torch.nn.Module:
        return mlp(torch.bfloat16)

    scalers[0].scale(torch.zeros(()))
    scalers[0].update(8.0)
    rows32 = [Loop(directory, model=half, saved={"scaler": each}) for each in scalers]
    rows32[0].losses = [0.5]
    with torch.no_grad():
        rows32[0].model[0].weight.fill_(1.5)
    rows32[0].save().checkpoint.wait()
    hvd.allgather_object(None)
    rows32[1].restored()
    assert scalers[1].get_scale() == 8.0
    assert torch.equal(rows32[1].model[0].weight, rows32[0].model[0].weight)
    assert rows32[1].model[0].weight.dtype == torch.bfloat16


def check_a_ranks_residuals_stay_with_it() -> None:
    """Where all ranks see the directory nobody receives them; else rank 0 does, an array at a time."""
    compression = {"type": "topk", "ratio": 0.3}
    for seen in (True, False):
        directory = shared_directory()
        own = directory if seen or hvd.rank() == 0 else directory / "elsewhere"
        loop = Loop(own, model=_wide, compression=compression, bucket_cap_mb=2e-3).run(3)
        arrays = [array for state in loop.optimizer._gradients.driver.read() for array in state.values()]
        with received() as messages:
            loop.save()
        loop.checkpoint.wait()
        hvd.allgather_object(None)
        mine = load_file(directory / f"checkpoint-3/rank-{hvd.rank()}.safetensors")
        if seen:
            assert max(messages) < 2000 < sum(array.nbytes for array in arrays)
        else:
            assert max(messages) <= max(array.nbytes for array in mine.values())
        kept = [mine[name] for name in sorted(mine) if name.startswith("compression")]
        for ours, theirs in zip(kept, arrays, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def _wide() -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Linear(FEATURES, 99), torch.nn.ReLU(), torch.nn.Linear(99, 3)
    ).double()


@contextmanager
def received() -> Iterator[list[int]]:
    """Bytes of what this rank gets from others by each collective."""
    found: list[int] = []
    plain = {name: getattr(horovods, name) for name in ("allreduce", "allgather", "broadcast")}

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*arguments: Any, **options: Any) -> Any:
            result = call(*arguments, **options)
            found.append(result.numel() * result.element_size())
            return result

        return counting

    try:
        for name, call in plain.items():
            setattr(horovods, name, counted(call))
        yield found
    finally:
        for name, call in plain.items():
            setattr(horovods, name, call)


def check_auto_skips_what_is_damaged_and_old_ones_are_deleted() -> None:
    directory = shared_directory()
    loop = Loop(directory)
    assert loop.checkpoint.restore("auto") is None
    for updates in (2, 4, 6):
        loop.run(updates).save()
    loop.checkpoint.wait()
    hvd.allgather_object(None)
    left = sorted(path.name for path in directory.iterdir())
    assert left == [".lock", "checkpoint-4", "checkpoint-6", "latest"]
    listed = list_checkpoints(directory, every_byte=True)
    assert [(each.step, each.state, each.framework, each.ranks, each.format) for each in listed] == [
        (step, "whole", "torch", hvd.size(), FORMAT) for step in (4, 6)
    ]
    assert listed[0].loss is not None
    hvd.allgather_object(None)
    for name in ("rank-1.safetensors", "state.json"):
        file = directory / "checkpoint-6" / name
        _flip(file)
        torn = partial(loop.checkpoint.restore, file.parent)
        told((f"checkpoint-6/{name}: is damaged", "'auto'"), torn)
        assert len(Loop(directory).restored().losses) == 4
        _flip(file)
    assert len(Loop(directory).restored().losses) == 6
    _flip(file)
    # Later than what it goes on with, the damaged one is in nobody's way.
    Loop(directory).restored().run(5).save().checkpoint.wait()
    hvd.allgather_object(None)
    assert len(Loop(directory).restored().losses) == 5


def _flip(file: Path) -> None:
    if hvd.rank() == 0:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 4
        file.write_bytes(content)
    hvd.allgather_object(None)


def check_what_does_not_fit_is_told() -> None:
    directory = shared_directory()
    Loop(directory).run(2).save().checkpoint.wait()
    hvd.allgather_object(None)
    wide = lambda: torch.nn.Linear(FEATURES, 3).double()  # noqa: E731
    told(
        ("was saved with other weights", "build the model that was saved"),
        Loop(directory, model=wide).restored,
    )
    told(("was saved with AdamW, and the optimizer is SGD",), Loop(directory, sgd).restored)
    told(("was saved with other data", "seed 3", "seed 4"), Loop(directory, seed=4).restored)
    told(("its optimizer had 1 group(s)",), Loop(directory, _adamw_in_two).restored)
    told(("was saved with lr_scheduler, whose state would be lost",), Loop(directory, saved={}).restored)
    # Compression that was not there starts without residuals.
    Loop(directory, compression={"type": "powersgd"}).restored().run(3)
    loop = Loop(directory)
    told(
        ("checkpoint-9: no such directory", "'auto'"),
        lambda: loop.checkpoint.restore(directory / "checkpoint-9"),
    )


def _adamw_in_two(parameters: Any) -> torch.optim.Optimizer:
    found = [*parameters]
    return torch.optim.AdamW([{"params": found[:1]}, {"params": found[1:]}], lr=0.05)


def check_what_cannot_be_saved_is_told() -> None:
    directory = shared_directory()
    loop = Loop(directory).run(1)
    save = loop.checkpoint.save
    told(
        ("extra.what.1: a function cannot be saved",),
        lambda: save(1, extra={"what": [1, mlp]} if hvd.rank() == 0 else 2),
    )
    model = mlp()
    plain = torch.optim.SGD(model.parameters(), lr=0.1)
    make = partial(hvd.Checkpoint, directory=directory)
    told(("optimizer: expected a torch.optim.Optimizer", "found Sequential"), lambda: make(plain, model))
    told(("model: expected a torch.nn.Module (found dict)",), lambda: make({}, plain))
    for limit in (0, "two"):
        told(("save_total_limit: expected an integer",), partial(make, model, plain, save_total_limit=limit))
    told(("scaler: a int has no state_dict",), lambda: Loop(directory, saved={"scaler": 3}))
    other = torch.optim.SGD([*mlp().parameters()], lr=0.1)
    told(("none of the model's", "ModuleDict"), lambda: hvd.Checkpoint(mlp(), other, directory=directory))
    accumulating = Loop(directory, gradient_accumulation_steps=2)
    accumulating.optimizer.batch_samples = 2
    x, y = next(iter(accumulating.loader))
    functional.cross_entropy(accumulating.model(x), y).backward()
    told(("an update is under way", "after optimizer.step()"), lambda: accumulating.checkpoint.save(1))
    loop.save()
    told(("checkpoint-1 is there already",), lambda: save(0))
    assert not list(directory.glob(".checkpoint-*.parts-*"))


def check_who_calls_it_alone_is_told() -> None:
    """Horovod gives up after a while, in the middle of whatever waits."""

    def give_up(*_: Any) -> Any:
        raise horovods.HorovodInternalError("Horovod has been shut down")

    model = mlp()
    plain = torch.optim.SGD(model.parameters(), lr=0.1)
    checkpoint = hvd.Checkpoint(model, plain, directory=shared_directory())
    world = checkpoint._writer.ranks.world
    checkpoint._writer.ranks = Ranks(world, give_up, give_up, give_up)
    for call in ("reached_preemption", "restore", "wait"):
        told((f"Checkpoint.{call}: another rank", "waits for something else"), getattr(checkpoint, call))
    told(("Checkpoint.save: another rank",), lambda: checkpoint.save(1))
    checkpoint._preemption.pause()


def check_a_plain_optimizer_and_extra_tensors() -> None:
    directory, model = shared_directory(), mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    functional.mse_loss(model(torch.ones(2, FEATURES, dtype=F64)), torch.ones(2, 3, dtype=F64)).backward()
    optimizer.step()
    extra = {"mean": torch.arange(3.0), 7: [float("inf"), None, "text"], "hvdtrain.array": 1}
    checkpoint = hvd.Checkpoint(model, optimizer, directory=directory)
    checkpoint.save(1, extra=extra)
    checkpoint.wait()
    hvd.allgather_object(None)
    twin = mlp()
    other = torch.optim.SGD(twin.parameters(), lr=0.5)
    found = hvd.Checkpoint(twin, other, directory=directory).restore(directory / "checkpoint-1")
    assert torch.equal(found.extra.pop("mean"), extra.pop("mean"))
    assert found.extra == extra
    expected = copy.deepcopy(optimizer.state_dict())
    assert other.state_dict()["param_groups"] == expected["param_groups"]
    for place, state in expected["state"].items():
        assert torch.equal(other.state_dict()["state"][place]["momentum_buffer"], state["momentum_buffer"])
    record = json.loads((directory / "checkpoint-1" / "state.json").read_text())
    assert set(record["optimizer"]["state"]) == {name for name, _ in model.named_parameters()}
