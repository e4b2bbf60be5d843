"""Competitors that train the same model on the same batches, taking turns on one machine."""
