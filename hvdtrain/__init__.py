"""hvdtrain: one job spec, trained by Horovod in PyTorch or TensorFlow, along the same trajectory."""

__version__ = "0.1.0"
