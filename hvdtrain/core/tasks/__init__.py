"""Tasks: how samples become batches, one file a task."""
