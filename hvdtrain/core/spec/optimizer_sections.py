"""The sections of a job spec that say how weights are updated: the optimizer and the schedule."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from hvdtrain.core.spec.sections import Count, Probability, Section


class GroupSpec(Section):
    """How the weights whose names fit a shell pattern (`*`, `?`, `[...]`) are updated.

    Attributes:
        match: the pattern.
        learning_rate_factor: what their learning rate is multiplied with; 0 leaves them as they are.
        weight_decay: of all of them, biases and norms included; None: as without the group.
    """

    match: Annotated[str, Field(min_length=1)]
    learning_rate_factor: Annotated[float, Field(ge=0.0)] = 1.0
    weight_decay: Annotated[float, Field(ge=0.0)] | None = None


class OptimizerSpec(Section):
    """AdamW (Loshchilov & Hutter 2019, decoupled decay) or SGD with momentum, by PyTorch's formulas.

    Or for large global batches LAMB (You et al. 2019, arXiv:1904.00962) or LARS (You et al. 2017,
    arXiv:1708.03888), which are these two with the step of each weight scaled by a trust ratio.
    """

    type: Literal["adamw", "sgd", "lamb", "lars"] = "adamw"
    learning_rate: Annotated[float, Field(gt=0.0)] = 5e-5
    learning_rate_scaling: Literal["none", "linear", "sqrt"] = "none"
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    adam_beta1: Probability = 0.9
    adam_beta2: Probability = 0.999
    adam_epsilon: Annotated[float, Field(gt=0.0)] = 1e-8
    momentum: Probability = 0.9
    nesterov: bool = False
    trust_coefficient: Annotated[float, Field(gt=0.0)] = 0.001
    groups: tuple[GroupSpec, ...] = ()

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> OptimizerSpec:
        if self.nesterov and self.momentum == 0.0:
            raise ValueError("nesterov: true needs momentum above 0; found momentum 0")
        return self


class ScheduleSpec(Section):
    """Linear warm-up (`warmup_steps` wins over `warmup_ratio`), then decay or a constant rate.

    Types, and the fields that one of them has, are called as in `transformers.optimization`.
    """

    type: Literal[
        "linear",
        "cosine",
        "constant",
        "constant_with_warmup",
        "cosine_with_min_lr",
        "inverse_sqrt",
        "polynomial",
    ] = "linear"
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    warmup_ratio: Probability | None = None
    min_lr: Annotated[float, Field(ge=0.0)] | None = None
    min_lr_rate: Probability | None = None
    power: Annotated[float, Field(gt=0.0)] = 1.0
    lr_end: Annotated[float, Field(ge=0.0)] = 1e-7
    timescale: Count | None = None

    @model_validator(mode="after")
    def _fields_of_the_type(self) -> ScheduleSpec:
        for name, owner in _OWNERS.items():
            found = getattr(self, name)
            if self.type != owner and found != type(self).model_fields[name].default:
                raise ValueError(f"{name} {found:g} is for type {owner} alone, and type is {self.type}")
        if self.type == "cosine_with_min_lr" and (self.min_lr is None) == (self.min_lr_rate is None):
            raise ValueError("cosine_with_min_lr needs either min_lr or min_lr_rate, not both")
        return self


# The type of schedule that has a field.
_OWNERS = {
    "min_lr": "cosine_with_min_lr",
    "min_lr_rate": "cosine_with_min_lr",
    "power": "polynomial",
    "lr_end": "polynomial",
    "timescale": "inverse_sqrt",
}
