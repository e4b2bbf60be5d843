"""hvdtrain: one job spec, trained by Horovod in PyTorch or TensorFlow, along the same trajectory."""

from hvdtrain.api import train

__all__ = ["train"]
__version__ = "0.1.0"
