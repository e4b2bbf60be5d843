"""The sections of a job spec: frozen, strict values with the names the field uses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from hvdtrain.core.errors import SpecError

Probability = Annotated[float, Field(ge=0.0, lt=1.0)]
Count = Annotated[int, Field(ge=1)]

# Of matrix products, by `mixed_precision`.
PRODUCT_DTYPES = {"fp16": "float16", "bf16": "bfloat16"}
# Far beyond what any float16 gradient survives; it keeps a loss and its inverse scale inside float32.
LARGEST_LOSS_SCALE = 2.0**64


def _power_of_two(value: float) -> float:
    if value <= 0.0 or math.frexp(value)[0] != 0.5:
        raise ValueError(f"{value} is not a power of two such as 0.5, 2 or 65536: only those scale exactly")
    return value


PowerOfTwo = Annotated[float, Field(le=LARGEST_LOSS_SCALE), AfterValidator(_power_of_two)]

# One value or a list of entries: errors are about the form that was given and not about both. Pydantic names
# the form in the location of an error, as it names the type of a section.
FORMS = ("one", "list")
ONE, LIST = map(Tag, FORMS)
BY_FORM = Discriminator(lambda found: "list" if isinstance(found, list | tuple) else "one")


class Section(BaseModel):
    """Base of every section: unknown keys, wrong types, NaN and infinity are refused; values never change."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


class ModelSection(Section):
    """What every family's section has; the family's own names are Hugging Face's.

    Attributes:
        model_type: which family.
        dtype: of the weights.
        init_from: a folder with a saved model, whose weights are the initial values; None: they are drawn, or
            made by the user's code.
    """

    model_type: str
    dtype: Literal["float32", "float64"] = "float32"
    init_from: str | None = None

    @property
    def needs_all_ranks(self) -> bool:
        """Whether forward and backward passes call collectives, so that no rank can take one alone."""
        return False


class DataSection(Section):
    """What the data section of every task has.

    Attributes:
        prefetch: updates that a background thread makes ahead.
    """

    prefetch: Annotated[int, Field(ge=0)] = 2

    @classmethod
    def of_pretrained(cls, folder: Path, given: Mapping[str, Any]) -> dict[str, Any]:
        """Fields that follow from the folder of `model.init_from`, unless a spec gives them.

        Args:
            folder: a Hugging Face model's.
            given: the section in the spec, not validated.

        Raises:
            SpecError: a file of the folder is missing or cannot be used.
        """
        del folder, given
        return {}

    @property
    def why_empty(self) -> str:
        """Why there may be nothing to predict in many updates, and what to do."""
        return "their samples hold nothing to predict; look at the data section"

    def evaluated_on(self, files: Sequence[str], folder: Path, class_names: Sequence[str]) -> DataSection:
        """This section for a saved model, whose tokenizer and classes it has.

        Args:
            files: other data, of which nothing is kept apart and nothing is augmented, as the section's field
                for files has them; empty: the section's own.
            folder: of the saved model, which may hold a tokenizer.
            class_names: of that model; empty where it has none.

        Raises:
            SpecError: the data of this task is given otherwise.
        """
        del folder, class_names
        if files:
            raise SpecError("--data: the data of this task is not given by files; change its spec instead")
        return self


class TaskSection(Section):
    """What every task's section has.

    Attributes:
        type: which task.
        normalize: what the divisor of a mean loss counts.
        label_smoothing: PyTorch's, of cross-entropies, in training alone.
    """

    type: str
    normalize: Literal["token", "example"] = "token"
    label_smoothing: Probability = 0.0

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The means that an evaluation computes beside the loss."""
        return ()


class AccumulationStage(Section):
    """From which update on, counted from 0, how many micro-batches an update has on each rank."""

    from_step: Annotated[int, Field(ge=0)]
    steps: Count


class BatchSpec(Section):
    """What one update is made of: any two give the third (ranks x per-device x accumulation = global).

    Or `gradient_accumulation_steps` is a list of stages, or `target_tokens_per_update` decides.
    """

    per_device_train_batch_size: Count | None = None
    gradient_accumulation_steps: (
        Annotated[Annotated[Count, ONE] | Annotated[tuple[AccumulationStage, ...], LIST], BY_FORM] | None
    ) = None
    global_batch_size: Count | None = None
    target_tokens_per_update: Count | None = None

    @model_validator(mode="after")
    def _enough(self) -> BatchSpec:
        stages, target = self.gradient_accumulation_steps, self.target_tokens_per_update
        if isinstance(stages, tuple) or target is not None:
            self._check_alone(stages, target)
            return self
        if self.per_device_train_batch_size is None and self.gradient_accumulation_steps is None:
            raise ValueError(
                "give two of per_device_train_batch_size, gradient_accumulation_steps and global_batch_size "
                "(per_device_train_batch_size alone means gradient_accumulation_steps 1)"
            )
        if self.per_device_train_batch_size is None and self.global_batch_size is None:
            raise ValueError(
                "gradient_accumulation_steps alone is not enough: add per_device_train_batch_size"
            )
        return self

    def _check_alone(self, stages: object, target: int | None) -> None:
        if target is not None and stages is not None:
            raise ValueError(
                "target_tokens_per_update decides how many micro-batches an update has: "
                "leave gradient_accumulation_steps out"
            )
        if self.global_batch_size is not None or self.per_device_train_batch_size is None:
            raise ValueError(
                "a list of stages or target_tokens_per_update goes with per_device_train_batch_size "
                "and without global_batch_size"
            )
        if isinstance(stages, tuple):
            starts = [stage.from_step for stage in stages]
            if starts[:1] != [0] or sorted(set(starts)) != starts:
                raise ValueError(
                    f"gradient_accumulation_steps: from_step must start at 0 and rise; found {starts}"
                )


class CommunicationSpec(Section):
    """Gradient buckets and Horovod's knobs, by its names; a value here wins over HOROVOD_*."""

    bucket_cap_mb: Annotated[float, Field(gt=0.0)] = 25.0
    cycle_time_ms: Annotated[float, Field(gt=0.0)] | None = None
    fusion_threshold_mb: Annotated[float, Field(ge=0.0)] | None = None


class LossScaleSpec(Section):
    """How the loss is scaled in float16; names and defaults are PyTorch's `GradScaler`'s."""

    initial: PowerOfTwo = 65536.0
    growth_factor: Annotated[PowerOfTwo, Field(gt=1.0)] = 2.0
    growth_interval: Count = 2000
    backoff_factor: Annotated[PowerOfTwo, Field(lt=1.0)] = 0.5
    minimum: PowerOfTwo = 1.0
    fixed: PowerOfTwo | None = None

    @model_validator(mode="after")
    def _starts_above_its_floor(self) -> LossScaleSpec:
        if self.initial < self.minimum:
            raise ValueError(f"initial {self.initial:g} is below minimum {self.minimum:g}: raise it")
        return self


class EvaluationSpec(Section):
    """When the validation split is evaluated; it is always evaluated at the end as well."""

    eval_steps: Count | None = None
    per_device_eval_batch_size: Count | None = None


class LoggingSpec(Section):
    """What is written while training; `logging_steps` counts updates between lines of metrics.jsonl."""

    logging_steps: Count = 1
    tensorboard: bool = True
    progress_bar: bool = True
