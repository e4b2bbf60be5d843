"""Users' own models: built by their own code, in one framework or in both."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, NoReturn

from pydantic import Field, model_validator

from hvdtrain.core.errors import SpecError, TrainingError
from hvdtrain.core.families.weights import Weight, trained
from hvdtrain.core.spec.reference import Reference, describe
from hvdtrain.core.spec.sections import ModelSection
from hvdtrain.core.user_code import load_user, user_code

TASKS = ("custom",)
DROPOUT: tuple[str, ...] = ()
NETWORKS = {"torch": "hvdtrain.torch.families.custom", "tensorflow": "hvdtrain.tensorflow.families.custom"}
KERAS_MODEL = "hvdtrain.keras_models.custom"
# The order of a module's arrays where names of both frameworks are matched.
_LEAVES = ("weight", "bias", "running_mean", "running_var")


class ModelSpec(ModelSection):
    """A model that the user's code builds.

    Attributes:
        torch: a function or class that returns a `torch.nn.Module`.
        tensorflow: a function or class that returns a `keras.Model`.
        args: keyword arguments of either.
        names: the layer of the Keras model for each module of the PyTorch model, so that both have one set of
            weights, under PyTorch's names; None: a model's weights have its own framework's names.
        find_unused_parameters: whether weights that the loss does not depend on are allowed, as in
            `DistributedDataParallel`; their gradient is 0.
    """

    model_type: Literal["custom"] = "custom"
    torch: Reference | None = None
    tensorflow: Reference | None = None
    args: dict[str, Any] = Field(default={})
    names: dict[str, str] | None = None
    find_unused_parameters: bool = False

    @model_validator(mode="after")
    def _names_are_of_both(self) -> ModelSpec:
        layers = list((self.names or {}).values())
        twice = sorted({layer for layer in layers if layers.count(layer) > 1})
        if twice:
            raise ValueError(f"names: {', '.join(twice)} stands for more than one module")
        return self


class BuiltFamily:
    """A family of one model: its weights are known once a framework has built it.

    Attributes:
        network: the built model.
    """

    ModelSpec: type[ModelSection] = ModelSpec
    TASKS: tuple[str, ...] = TASKS
    DROPOUT: tuple[str, ...] = DROPOUT
    NETWORKS: Mapping[str, str] = NETWORKS

    def __init__(self, network: Any) -> None:
        """Take a built model as a family."""
        self.network = network

    def weights(self, model: Any) -> tuple[Weight, ...]:
        """Every weight in the order in which the model has them, which should be that of the forward pass."""
        del model
        found: tuple[Weight, ...] = self.network.weights
        return found

    def untrained(self, model: Any) -> tuple[Weight, ...]:
        """No library asks for more than there is."""
        del model
        return ()

    def activation_bytes(self, model: Any, rows: int, length: int, predictions: int, itemsize: int) -> None:
        """Not predicted."""

    def product_elements(self, model: Any) -> int:
        """Elements of all weights with two axes or more."""
        return sum(w.size for w in trained(self.weights(model)) if len(w.shape) > 1)

    def flops(self, model: Any, length: int, predictions: int) -> None:
        """Not predicted."""

    def hf_config(self, model: Any) -> dict[str, Any]:
        """The content of `config.json`: which code builds the model."""
        found: dict[str, Any] = model.model_dump(mode="json", exclude={"init_from"})
        return found


def build(model: ModelSpec, framework: str) -> Any:
    """Call the user's code that builds the model.

    Args:
        model: the section of the spec.
        framework: `torch` or `tensorflow`.

    Raises:
        SpecError: there is no model for this framework, or the code has failed.
    """
    field, reference = f"model.{framework}", getattr(model, framework)
    if reference is None:
        raise SpecError(
            f"{field}: this spec has no model for {framework}: give the function or class that builds it, as "
            "'package.module:name'"
        )
    make = load_user(reference, field, SpecError)
    if not callable(make) or _is_built(make):
        raise SpecError(
            f"{field}: expected a function or a class that returns a new model, found {type(make).__name__}: "
            "the model is built when its precision is known; wrap it in a function"
        )
    with user_code(f"{field}: {describe(reference)}", make, SpecError):
        return make(**model.args)


def _is_built(found: Any) -> bool:
    """Whether it is a model and no class: both frameworks' can be called."""
    names = ("state_dict", "trainable_variables")
    return not isinstance(found, type) and any(hasattr(found, name) for name in names)


def by_place(inputs: Collection[str], arguments: Mapping[str, inspect.Parameter]) -> bool:
    """Whether a model takes inputs by place: elements of a tuple, or one whose name it does not have.

    Args:
        inputs: their names; elements of a tuple have numbers.
        arguments: of the model's forward pass.
    """
    takes_any = any(argument.kind is argument.VAR_KEYWORD for argument in arguments.values())
    unknown = not takes_any and not arguments.keys() >= {*inputs}
    return all(name.isdigit() for name in inputs) or (len(inputs) == 1 and unknown)


def check_weights(model: ModelSpec, framework: str, weights: Sequence[Weight]) -> None:
    """Refuse a model that cannot be trained, or whose weights have one name.

    Raises:
        SpecError: naming the model.
    """
    what = f"model.{framework}: {describe(getattr(model, framework))}"
    names = [weight.name for weight in weights]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SpecError(f"{what}: more than one weight is called {twice[0]}: give its layers different names")
    if not trained(weights):
        raise SpecError(f"{what}: the model has no trainable parameter, so there is nothing to train")


def in_order_of_names(weights: Sequence[Weight], names: Mapping[str, str]) -> tuple[Weight, ...]:
    """Weights of either framework in one order: that of `model.names`.

    Args:
        weights: under PyTorch's names.
        names: the section's.

    Raises:
        SpecError: a weight's module is not among the names, or a name has no weight.
    """
    modules = {weight.name: weight.name.rpartition(".")[0] for weight in weights}
    missing = sorted(set(modules.values()) - names.keys())
    idle = sorted(names.keys() - set(modules.values()))
    if missing or idle:
        told = [f"no entry for the module(s) {', '.join(map(repr, missing))}"] * bool(missing)
        told += [f"no weight belongs to {', '.join(map(repr, idle))}"] * bool(idle)
        raise SpecError(f"model.names: {'; '.join(told)}")
    places = {name: place for place, name in enumerate(names)}

    def place(weight: Weight) -> tuple[int, int, str]:
        leaf = weight.name.rpartition(".")[2]
        return places[modules[weight.name]], _LEAVES.index(leaf) if leaf in _LEAVES else len(_LEAVES), leaf

    return tuple(sorted(weights, key=place))


def unused_parameters(names: Sequence[str]) -> NoReturn:
    """Tell of weights that the loss does not depend on."""
    shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if names[10:] else "")
    raise TrainingError(
        f"model: the loss does not depend on {shown}: freeze them (requires_grad=False, trainable=False), "
        "leave them out of the model, or set model.find_unused_parameters: true"
    )


def _unknown(*arguments: Any) -> NoReturn:
    del arguments
    raise SpecError("model: the weights of a model of your own are known once a framework has built it")


# Of a model that is not built yet.
weights = untrained = activation_bytes = product_elements = flops = hf_config = _unknown
