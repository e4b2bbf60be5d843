"""Models and training state on disk."""
