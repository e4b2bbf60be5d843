"""A user's optimizer whose gradients are those of all ranks."""

from __future__ import annotations

import itertools
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from numbers import Real
from typing import Any

import torch

from hvdtrain.core.dropin import (
    Settings,
    by_position,
    keeps_residuals,
    process_set_of,
    residuals_are_scaled,
    settings_of,
)
from hvdtrain.core.errors import SpecError, TrainingError
from hvdtrain.core.update.optimizers import clip_factor
from hvdtrain.engine.cache import wire_types
from hvdtrain.torch.dropin.arguments import HOROVOD
from hvdtrain.torch.dropin.copies import extend, own_class
from hvdtrain.torch.dropin.gradients import Gradients
from hvdtrain.torch.dropin.naming import Names, check_optimizer, named, names_of
from hvdtrain.torch.dropin.session import require_init
from hvdtrain.torch.dropin.sharding import Shardable, Sharding, check_shardable
from hvdtrain.torch.world import reduces_over_mpi

_numbers = itertools.count()
_live: weakref.WeakSet[Any] = weakref.WeakSet()
# What follows `compression` in Horovod's wrapper.
_POSITIONAL = (
    "backward_passes_per_step",
    "op",
    "gradient_predivide_factor",
    "num_groups",
    "groups",
    "sparse_as_dense",
    "process_set",
)


def DistributedOptimizer(
    optimizer: torch.optim.Optimizer,
    named_parameters: Iterable[tuple[str, torch.nn.Parameter]] | None = None,
    compression: Any = "none",
    *positional: Any,
    gradient_accumulation_steps: int = 1,
    max_grad_norm: float | None = None,
    average: str = "mean",
    bucket_cap_mb: float = 25.0,
    zero_stage: int = 0,
    **horovod: Any,
) -> Any:
    """Make an optimizer one of all ranks; every rank calls it for the same optimizers in the same order.

    Args:
        optimizer: any of PyTorch's or of your own. It is changed in place: it stays an instance of its class,
            with its state, options and `state_dict`.
        named_parameters: `model.named_parameters()`: names for errors and for the `match` of `compression`.
        compression: `"fp16"`, `{"type": "powersgd", ...}` or a list with `match`, as in a job spec; or
            Horovod's `Compression.none` and `Compression.fp16`.
        gradient_accumulation_steps: backward calls that one `step()` follows. A `step()` that comes earlier
            is of those there were.
        max_grad_norm: `step()` scales gradients to at most this global L2 norm; None: it does not.
        average: what gradients of your losses are divided by: see `hvdtrain.core.dropin.Settings`.
        bucket_cap_mb: largest flat bucket, in MiB.
        zero_stage: 1: each rank keeps the optimizer's state of some parameters alone, whole ones, of about
            equal size in all. It steps those, and the others receive them. See docs/sharding.md.
        *positional: Horovod's arguments that follow `compression`, in Horovod's order.
        **horovod: arguments of Horovod's wrapper: `backward_passes_per_step`, `op`, `process_set` and the
            like.

    Returns:
        The optimizer given.

    Raises:
        SpecError: an argument cannot be used.
        TrainingError: `init()` was not called, or a parameter has no name.
    """
    require_init("DistributedOptimizer")
    check_optimizer(optimizer, "DistributedOptimizer")
    horovod |= by_position("DistributedOptimizer", _POSITIONAL, positional, horovod)
    process_set = process_set_of("DistributedOptimizer", HOROVOD, horovod)
    settings = settings_of(
        "DistributedOptimizer",
        HOROVOD,
        horovod,
        compression=compression,
        gradient_accumulation_steps=gradient_accumulation_steps,
        max_grad_norm=max_grad_norm,
        average=average,
        bucket_cap_mb=bucket_cap_mb,
        zero_stage=zero_stage,
    )
    if isinstance(optimizer, _Distributed):
        raise SpecError("DistributedOptimizer: this optimizer is wrapped already; wrap it once")
    for group in optimizer.param_groups:
        settings.check_momentum(group.get("momentum", 0.0))
    if settings.zero_stage:
        check_shardable(optimizer)
    names = names_of(named_parameters)
    parameters = named(optimizer, names)
    settings.rules.check([*parameters])
    settings.rules.check_wire(wire_types())
    settings.rules.check_ranks(process_set.size(), reduces_over_mpi())
    gradients = Gradients(settings, next(_numbers), process_set)
    gradients.add(parameters)
    gradients.options = partial(_options, weakref.ref(optimizer))
    optimizer.__class__ = extend(own_class(optimizer), _Distributed)
    # A scheduler made before has put the old `step` there, so as to see it called; ours tells it.
    vars(optimizer).pop("step", None)
    vars(optimizer).update(_gradients=gradients, _names=names, _early=0, _is_early=False)
    optimizer._sharding = Sharding(gradients.filling, gradients.prefix, process_set, settings.zero_stage)
    optimizer._sharding.add(optimizer)
    _live.add(optimizer)
    return optimizer


def gradients_in_use() -> list[Gradients]:
    """Those of all wrapped optimizers that there are, in the order in which they were wrapped."""
    found = [optimizer._gradients for optimizer in _live]
    return sorted((each for each in found if each.hooks.active), key=lambda each: each.index)


class _Distributed(Shardable):
    """What a wrapped optimizer does beside its own class."""

    _gradients: Gradients
    _names: Names | None
    # Updates in a row that were asked for too early, and whether this one is.
    _early: int
    _is_early: bool
    param_groups: list[dict[str, Any]]

    @property
    def batch_samples(self) -> float | None:
        """Samples of the next micro-batch, with `average="samples"`; set it before each backward."""
        return self._gradients.accumulation.samples

    @batch_samples.setter
    def batch_samples(self, samples: float) -> None:
        self._gradients.accumulation.samples = float(samples)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update from the gradients of all ranks.

        Args:
            closure: as the optimizer's own; the loss it returns becomes that of all ranks.

        Raises:
            TrainingError: there was no backward since the last step, and no gradient was set by hand.
        """
        self._opt_called = True
        if closure is None:
            self.synchronize()
            if not self._gradients.ready:
                raise TrainingError(
                    "optimizer.step(): since the last step() or zero_grad() no backward() has reached any of "
                    "its parameters: call step() once, after backward(). To set gradients by hand, write "
                    "`p.grad = g` or `p.grad.copy_(g)`: PyTorch does not show writes through `.data` or NumPy"
                )
            self._clip()
            with self._sharding.stepping(self, closure=False):
                result = super().step()  # type: ignore[misc]
        else:
            with self._sharding.stepping(self, closure=True):
                result = super().step(self._of_all_ranks(closure))  # type: ignore[misc]
        # An optimizer that takes GradScaler's part in its kernel has skipped the update if this is not 0.
        found_inf = getattr(self, "found_inf", None)
        if found_inf is None or not found_inf.item():
            self._gradients.commit()
        self._warn_of_early_steps()
        return result

    # PyTorch would wrap it for profiling and for step hooks, which the optimizer's own step has been already.
    step.hooked = True  # type: ignore[attr-defined]
    # Schedulers look for it, whether made before or after the wrapper.
    step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]

    def synchronize(self) -> None:
        """Reduce now what micro-batches there are, or gradients that the user has put into `.grad`.

        There is nothing to do after a window's last backward.
        """
        if self._gradients.accumulation.micro_batches:
            self._is_early = not self._gradients.closing
            self._gradients.close()
        elif not self._gradients.ready:
            self._gradients.take_hand_made()

    @contextmanager
    def skip_synchronize(self) -> Iterator[None]:
        """Horovod's; nothing needs to be skipped here."""
        yield

    def zero_grad(self, *arguments: Any, **options: Any) -> None:
        """Forget the gradients, also those of micro-batches whose window is not complete.

        Args:
            *arguments: the optimizer's own, such as `set_to_none`.
            **options: likewise.
        """
        super().zero_grad(*arguments, **options)  # type: ignore[misc]
        self._gradients.drop()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Take in more parameters; every rank does it at the same update."""
        # The last ones by now: those that cannot have gradients are not among the gradients'.
        known = {id(p) for group in self.param_groups for p in group["params"]}
        super().add_param_group(param_group)  # type: ignore[misc]
        try:
            found = named(self, self._names, known)
            self._gradients.add({name: p for name, p in found.items() if id(p) not in known})
            self._sharding.add(self)
        except Exception:
            # Else it would be trained on this rank's gradients alone.
            self.param_groups.pop()
            raise

    def set_backward_passes_per_step(self, passes: int) -> None:
        """Horovod's: from the next window on, so many micro-batches."""
        settings = self._gradients.settings.model_dump(mode="json")
        settings["gradient_accumulation_steps"] = passes
        self._gradients.accumulation.settings = Settings.model_validate(settings)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        # GradScaler asks for it before each step, and nobody else does.
        if keeps_residuals(self._gradients.driver.states):
            raise residuals_are_scaled("GradScaler", "autocast with bfloat16 and no GradScaler")
        return bool(vars(self).get("_step_supports_amp_scaling", False))

    def _of_all_ranks(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        def whole() -> Any:
            self._sharding.show()
            loss, mean = closure(), self._gradients.accumulation.mean
            self.synchronize()
            self._clip()
            self._sharding.hide()
            # An optimizer that decides by the loss must decide alike on every rank.
            if isinstance(loss, Real):
                return mean(torch.tensor(float(loss), dtype=torch.float64)).item()
            return mean(loss) if torch.is_tensor(loss) else loss

        return whole

    def _clip(self) -> None:
        limit = self._gradients.settings.max_grad_norm
        if limit is None:
            return
        # Where the optimizer takes GradScaler's part in its kernel, gradients are still scaled.
        scale = getattr(self, "grad_scale", None)
        gradients = [p.grad for p in self._gradients.filling.parameters.values() if p.grad is not None]
        # As PyTorch's clip_grad_norm_, which takes no sparse gradients.
        found = [g._values() if g.is_sparse else g for g in gradients]
        norms = [
            torch.linalg.vector_norm(g, dtype=torch.promote_types(g.dtype, torch.float32)) for g in found
        ]
        norm = torch.stack([each.double() for each in norms]).norm()
        factor = clip_factor(norm, limit * (1.0 if scale is None else scale), torch.clamp_max)
        for gradient in found:
            gradient.mul_(factor)

    def _warn_of_early_steps(self) -> None:
        # Only in a row: the last update of an epoch may have fewer.
        self._early, self._is_early = self._early + 1 if self._is_early else 0, False
        if self._early == 3:
            steps = self._gradients.settings.gradient_accumulation_steps
            warnings.warn(
                f"step() was called three times in a row after fewer than {steps} micro-batches. Each "
                f"update used the micro-batches that were ready. Call it after every {steps} micro-batches; "
                "the last update of an epoch may have fewer",
                stacklevel=3,
            )


def _options(reference: weakref.ref[torch.optim.Optimizer]) -> dict[str, Any]:
    """The optimizer's class, and the options of each group that are numbers or texts."""
    optimizer = reference()
    if optimizer is None:
        return {}
    found: dict[str, Any] = {"optimizer": type(optimizer).__name__}
    for index, group in enumerate(optimizer.param_groups):
        for name, value in group.items():
            plain = value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 else value
            if isinstance(plain, bool | int | float | str):
                found[f"{name} of group {index}"] = plain
    return found
