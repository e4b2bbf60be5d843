"""The TensorFlow adapter: the mirror image of `hvdtrain.torch`."""

import os

# Both are read once, when TensorFlow and Keras are first imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
