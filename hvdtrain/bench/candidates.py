"""Which policies a simulation compares: each as the whole spec with that policy in it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from hvdtrain.core.compression import POLICIES, NoCompression
from hvdtrain.core.compression.protocol import Policy
from hvdtrain.core.errors import SpecError
from hvdtrain.core.spec.job_spec import JobSpec, load_spec
from hvdtrain.core.spec.yaml12 import load_yaml

# A run of a few hundred updates would not leave these warm-ups' defaults.
_SHORT = {"start_powerSGD_iter": 10}


@dataclass(frozen=True)
class Candidate:
    """A policy to try: its name in tables, and the whole spec with it."""

    label: str
    job: JobSpec

    @property
    def note(self) -> str | None:
        """What to know about its run, if anything."""
        rules, last = self.job.rules, self.job.max_steps or 0
        late = [
            policy.type
            for policy in rules.policies
            if isinstance(policy.at(last), NoCompression) and not isinstance(policy, NoCompression)
        ]
        return f"{', '.join(late)}: compresses nothing in the first {last} updates" if late else None


def candidates(spec: str, overrides: Sequence[str], policies: Sequence[str], ranks: int) -> list[Candidate]:
    """`none`, the spec's own policy, and those asked for, each once.

    Args:
        spec: a file or a packaged spec's name.
        overrides: `field.path=value` texts.
        policies: names or YAML such as `{type: topk, ratio: 0.001}`; empty means every registered policy.
        ranks: how many will be simulated.

    Returns:
        What to try, `none` first.

    Raises:
        SpecError: the spec, an override or a policy is not valid, or cannot serve so many ranks.
    """
    own = load_spec(spec, overrides)
    texts = list(policies) or [_short(policy) for policy in POLICIES]
    found = {"none": load_spec(spec, [*overrides, "compression={type: none}"])}
    found.setdefault(_label(own), own)
    for text in texts:
        job = _with_policy(spec, overrides, text)
        found.setdefault(_label(job), job)
    for label, job in list(found.items()):
        try:
            job.rules.check_ranks(ranks)
        except SpecError:
            # Nobody asked for this one by name.
            if policies or job is own:
                raise
            del found[label]
    return [Candidate(label, job) for label, job in found.items()]


def _short(policy: type[Policy]) -> str:
    options = {name: value for name, value in _SHORT.items() if name in policy.model_fields}
    return json.dumps({"type": policy.model_fields["type"].default, **options})


def _with_policy(spec: str, overrides: Sequence[str], text: str) -> JobSpec:
    try:
        raw = load_yaml(text, f"--policy {text}", positions=False)
    except SpecError:
        raise SpecError(
            f"--policy {text}: expected a name or YAML such as {{type: topk, ratio: 0.001}}"
        ) from None
    setting = text if isinstance(raw, dict | list) else json.dumps({"type": raw})
    try:
        return load_spec(spec, [*overrides, f"compression={setting}"])
    except SpecError as error:
        raise SpecError(f"--policy {text}: {error}") from None


def _label(job: JobSpec) -> str:
    """The type, and every option that is not the default."""
    every = []
    for policy in job.rules.policies:
        options = policy.model_dump(exclude_defaults=True, exclude={"type"})
        every.append(" ".join([policy.type, *(f"{name}={value}" for name, value in options.items())]))
    return "; ".join(every)
