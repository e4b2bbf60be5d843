"""The PyTorch adapter: the mirror image of `hvdtrain.tensorflow`."""
