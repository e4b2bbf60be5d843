"""Horovod in a PyTorch loop of the user's own; `hvdtrain.torch` has the names."""
