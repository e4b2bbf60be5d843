"""Training on many simulated ranks: what a compression policy does at a scale that is not at hand."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import psutil
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from hvdtrain.bench.candidates import Candidate
from hvdtrain.bench.problems import Arrays, Problem
from hvdtrain.core.compression.fleet import Fleet
from hvdtrain.core.compression.periodic import Periodic
from hvdtrain.core.compression.protocol import Policy
from hvdtrain.core.errors import SpecError
from hvdtrain.core.families.weights import initial_weights
from hvdtrain.core.plan.plan import peak_learning_rate, warmup_updates
from hvdtrain.core.spec.job_spec import JobSpec
from hvdtrain.core.update.buckets import Bucket, plan_buckets
from hvdtrain.core.update.optimizers import ReferenceOptimizer, clip_factor
from hvdtrain.core.update.schedules import schedule_factor

_MIB = 2**20
# Arrays of all ranks' gradients that a policy holds at a time, about.
_COPIES = 10


@dataclass
class Outcome:
    """What one policy did on one problem.

    Attributes:
        policy: its label.
        problem: its name.
        ranks: how many were simulated.
        updates: numbers of those at whose end the loss was taken; 0 is the start.
        losses: the problem's loss then; of the ranks' mean weights where each has its own.
        sent: bytes that one rank had handed to collectives by then.
        received: bytes that collectives had given one rank by then.
        distance: from the optimum in the end, relative to its norm; None where it is not known.
        state_bytes: memory of the policy's state (residuals and what else it keeps) on one rank.
        skipped: updates that were not finite, and left no trace.
        seconds: how long the simulation took.
    """

    policy: str
    problem: str
    ranks: int
    updates: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)
    received: list[int] = field(default_factory=list)
    distance: float | None = None
    state_bytes: int = 0
    skipped: int = 0
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, but for what is not a number."""
        return asdict(self)


def simulate(
    candidate: Candidate, problem: Problem, ranks: int, tell: Callable[[int], None] = lambda update: None
) -> Outcome:
    """Train a problem on many ranks in lock-step, by the core's rules.

    Args:
        candidate: the policy, and the spec that gives optimizer, schedule, clipping, seed and dtype.
        problem: made for so many ranks.
        ranks: how many.
        tell: called with the number of updates done.

    Returns:
        What came of it.

    Raises:
        SpecError: for a spec whose warm-up does not fit, or more ranks than memory holds.
    """
    job, started = candidate.job, time.perf_counter()
    _check_memory(problem, ranks, job.model.dtype)
    run = _Run(job, problem, ranks)
    outcome = Outcome(candidate.label, problem.name, ranks)
    last = job.max_steps or 0
    every = max(1, last // 100)
    for update in range(last + 1):
        if update:
            outcome.skipped += not run.step(update, last)
        if update % every == 0 or update == last:
            outcome.updates.append(update)
            with np.errstate(all="ignore"):
                outcome.losses.append(problem.loss(run.mean_weights()))
            outcome.sent.append(sum(fleet.sent for fleet in run.fleets))
            outcome.received.append(sum(fleet.received for fleet in run.fleets))
        tell(update)
    outcome.distance = problem.distance(run.mean_weights())
    outcome.state_bytes = sum(fleet.state_bytes for fleet in run.fleets)
    outcome.seconds = time.perf_counter() - started
    return outcome


def simulate_all(tried: Sequence[Candidate], problem: Problem, ranks: int, console: Console) -> list[Outcome]:
    """`simulate` with each policy in turn, with a bar on a terminal and a line for each elsewhere."""
    outcomes = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        for candidate in tried:
            task = bar.add_task(f"{problem.name}: {candidate.label}", total=candidate.job.max_steps)
            outcomes.append(simulate(candidate, problem, ranks, partial(_advance, bar, task)))
            bar.remove_task(task)
            if not console.is_terminal:
                console.print(f"{problem.name}: {candidate.label}: {outcomes[-1].seconds:.1f} s")
    return outcomes


def _advance(bar: Progress, task: TaskID, update: int) -> None:
    bar.update(task, completed=update)


class _Run:
    """All ranks' weights, moments and policy states; arrays have one row for all ranks or one for each."""

    def __init__(self, job: JobSpec, problem: Problem, ranks: int) -> None:
        self._job, self._problem, self._ranks = job, problem, ranks
        dtype = job.model.dtype
        cap = job.communication.bucket_cap_mb * _MIB
        self._buckets = plan_buckets(problem.weights, np.dtype(dtype).itemsize, cap, job.rules.apart)
        self.fleets = [Fleet(job.rules.policy(b), b, ranks, job.seed, dtype) for b in self._buckets]
        first = initial_weights(problem.weights, job.seed, dtype)
        self._flats = self._flatten({name: array[None] for name, array in first.items()})
        self._optimizers = {w.name: ReferenceOptimizer(job.optimizer, w) for w in problem.weights}
        self._warmup = warmup_updates(job, job.max_steps or 0)
        self._opened = False

    def step(self, update: int, last: int) -> bool:
        """One update; False when it was skipped."""
        now = self._job.rules.at(update)
        if now.local and not self._opened:
            self._exchange(self._periodic.opening())
            self._opened = True
        own = float(self._problem.examples)
        divisor = own if now.local else now.divisor(own, own * self._ranks)
        with np.errstate(all="ignore"):
            found = self._flatten(self._problem.gradients(self._named(self._flats), update))
            totals = [fleet.reduce(g / divisor, update) for fleet, g in zip(self.fleets, found, strict=True)]
            applied = self._apply(totals, update, last)
        if now.local and (update % self._periodic.period == 0 or update == last):
            in_between = self._periodic.background if update < last else None
            for part in in_between or (self._periodic,):
                self._exchange(part)
        return applied

    def mean_weights(self) -> Arrays:
        return self._named([flat.mean(axis=0, keepdims=True) for flat in self._flats])

    @property
    def _periodic(self) -> Periodic:
        (policy,) = self._job.rules.policies
        assert isinstance(policy, Periodic)
        return policy

    def _apply(self, totals: list[np.ndarray], update: int, last: int) -> bool:
        norms = np.sqrt(sum(np.square(total, dtype=np.float64).sum(axis=1) for total in totals))
        # Of ranks that update alone a trainer would skip only some; here such a run has diverged anyway.
        if not np.isfinite(norms).all():
            return False
        job = self._job
        peak = peak_learning_rate(job.optimizer, self._ranks)
        rate = peak * schedule_factor(job.schedule, update - 1, self._warmup, last, peak)
        factors = np.ones_like(norms)
        if job.max_grad_norm is not None:
            factors = clip_factor(norms, job.max_grad_norm, np.minimum)
        clipped = self._named([total * factors[:, None].astype(total.dtype) for total in totals])
        now = self._named(self._flats).items()
        updated = {name: self._optimizers[name].update(w, clipped[name], rate) for name, w in now}
        self._flats = self._flatten(updated)
        for fleet in self.fleets:
            fleet.commit()
        return True

    def _exchange(self, policy: Policy) -> None:
        self._flats = [f.exchange(policy, flat) for f, flat in zip(self.fleets, self._flats, strict=True)]

    def _flatten(self, arrays: Arrays) -> list[np.ndarray]:
        return [
            np.concatenate([arrays[w.name].reshape(len(arrays[w.name]), -1) for w in b.weights], axis=1)
            for b in self._buckets
        ]

    def _named(self, flats: Sequence[np.ndarray]) -> Arrays:
        return dict(part for b, flat in zip(self._buckets, flats, strict=True) for part in _parts(b, flat))


def _parts(bucket: Bucket, flat: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    parts = np.split(flat, np.cumsum(bucket.sizes)[:-1], axis=1)
    for weight, part in zip(bucket.weights, parts, strict=True):
        yield weight.name, part.reshape(len(flat), *weight.shape)


def _check_memory(problem: Problem, ranks: int, dtype: str) -> None:
    needed = ranks * sum(w.size for w in problem.weights) * np.dtype(dtype).itemsize * _COPIES
    there = psutil.virtual_memory().available
    if needed > there:
        raise SpecError(
            f"--ranks: {ranks} ranks of {problem.name} need about {needed / 2**30:.1f} GiB, and "
            f"{there / 2**30:.1f} GiB are free: simulate fewer"
        )
