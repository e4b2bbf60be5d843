"""Drop-in use: what a training loop of the user's own needs in place of Horovod's TensorFlow API."""
