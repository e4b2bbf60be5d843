"""What a model family supplies: facts for the core, and a network in each framework."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from hvdtrain.core.families.weights import Weight
from hvdtrain.core.spec.sections import ModelSection


class Family(Protocol):
    """What the core asks of a model family; the other modules of this package are some.

    Attributes:
        ModelSpec: its section of the spec; the functions take such a section as `model`.
        TASKS: what it can be trained for, the default first.
        DROPOUT: fields of its section that are rates of dropout.
        NETWORKS: the module whose `Network` builds the model, by framework.
        KERAS_MODEL: the module whose `build` makes a `keras.Model` of a section and the folder of a saved
            model; optional.
        HEADS: beginnings of the names of weights that a saved model without this head lacks; optional.
        HEAD_FIELDS: fields of its section that shape a head, each with the task that has this head; optional.
            A spec may give others than those of the folder that it starts from, whose head is not taken then.
        FIXED: values of fields of a `config.json` that the family has no field for, since it computes nothing
            else; optional.
        LAYERS: the field of its section that is the number of its equal layers; optional.
        FREE: fields of its section that do not say what the weights are, so that a spec may have other values
            than the `config.json` it starts from; optional.

    A family whose layers can be computed again in the backward pass has `checkpointed_bytes`, which is
    `activation_bytes` with `gradient_checkpointing`; its networks have `gradient_checkpointing_enable`, which
    takes no argument.

    A family whose `config.json` has, or once had, other names than the section also has `current_config`,
    which takes the content of one and returns it in the section's. One with `counts` has
    arrays by name that Transformers asks for in `model.safetensors`, and that nothing trains.
    """

    ModelSpec: type[ModelSection]
    TASKS: tuple[str, ...]
    DROPOUT: tuple[str, ...]
    NETWORKS: Mapping[str, str]

    def weights(self, model: Any) -> tuple[Weight, ...]:
        """Every trainable weight in the order of the forward pass."""
        ...

    def untrained(self, model: Any) -> tuple[Weight, ...]:
        """Weights that another library asks for when it opens a saved model, and that training has not."""
        ...

    def activation_bytes(
        self, model: Any, rows: int, length: int, predictions: int, itemsize: int
    ) -> int | None:
        """What the forward pass of a micro-batch saves for its backward pass, in bytes; None: not known.

        Args:
            model: the hyper-parameters.
            rows: sequences.
            length: tokens of each.
            predictions: most predictions of each.
            itemsize: bytes of one element in matrix products.
        """
        ...

    def product_elements(self, model: Any) -> int:
        """Elements of all weights and biases that are used in matrix products."""
        ...

    def flops(self, model: Any, length: int, predictions: int) -> int | None:
        """Floating-point operations of one sample in matrix products, forward and backward; None: not known.

        Args:
            model: the hyper-parameters.
            length: tokens.
            predictions: most predictions.
        """
        ...

    def hf_config(self, model: Any) -> dict[str, Any]:
        """The content of `config.json`, but for what the data adds."""
        ...


class Network(Protocol):
    """A family's model in one framework; class `Network` of `hvdtrain.torch.families.<family>` is one.

    Attributes:
        parameters: what holds each weight, by its Hugging Face name. Values are arbitrary until they are set.
        classes: logits of one prediction.

    What `zero_stage` may ask of it beside this: in PyTorch `module`, the `torch.nn.Module` that has the
    parameters, each of which is used by its own module alone; in TensorFlow `gathered` and `variables` (see
    `hvdtrain.tensorflow.gathers`). Stage 3 refuses a network without them. In TensorFlow a checkpoint finds
    the states of the layers' random generators among `variables` too.
    """

    parameters: Mapping[str, Any]
    classes: int

    def __init__(self, model: Any, compute_dtype: str) -> None:
        """Build the model.

        Args:
            model: the hyper-parameters.
            compute_dtype: of matrix products.
        """
        ...

    def features(self, inputs: Mapping[str, Any], training: bool) -> Any:
        """What the head takes, where predictions are asked for: (..., features).

        Args:
            inputs: a batch's tensors by name.
            training: whether dropout is on.
        """
        ...

    def logits(self, features: Any) -> Any:
        """The head's output, (..., classes), of the weights' dtype or narrower."""
        ...
