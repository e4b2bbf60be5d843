"""Convolutions with batch norm behind them, as residual networks are made of."""

from __future__ import annotations

from dataclasses import dataclass

from hvdtrain.core.families.batch_norm import layer_weights
from hvdtrain.core.families.initializers import KaimingNormal
from hvdtrain.core.families.weights import Layout, Weight

# OIHW -> HWIO.
_KERNEL = Layout(axes=(2, 3, 1, 0))


@dataclass(frozen=True)
class Convolution:
    """A convolution without bias and the batch norm behind it.

    Attributes:
        name: what the names of both begin with.
        inputs: channels.
        outputs: channels.
        kernel: height and width.
        stride: in both directions.
        size: height and width of what it makes.
    """

    name: str
    inputs: int
    outputs: int
    kernel: int
    stride: int
    size: int

    @property
    def weights(self) -> list[Weight]:
        """Of both."""
        shape = self.outputs, self.inputs, self.kernel, self.kernel
        initial = KaimingNormal("fan_out")
        kernel = Weight(f"{self.name}.convolution.weight", shape, True, initial, _KERNEL)
        return [kernel, *layer_weights(f"{self.name}.normalization", self.outputs)]

    @property
    def products(self) -> int:
        """Multiplications of one image's forward pass."""
        return self.kernel**2 * self.inputs * self.outputs * self.size**2


@dataclass(frozen=True)
class Block:
    """A residual layer.

    Attributes:
        path: convolutions one behind the other, with ReLU between them.
        shortcut: what its input is added through; None: as it is.
    """

    path: tuple[Convolution, ...]
    shortcut: Convolution | None


def half(size: int) -> int:
    """What is left of a side by a stride of 2 and the padding of an odd kernel."""
    return (size + 1) // 2
