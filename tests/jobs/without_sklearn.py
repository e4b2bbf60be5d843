"""Imported by ranks before a framework: Keras and Transformers then start as where scikit-learn is absent.

Only the examples need it, and it is a quarter of the time in which TensorFlow starts.
"""

import sys

sys.modules["sklearn"] = None  # type: ignore[assignment]
