"""What one update is made of: micro-batches, buckets, precision, optimizers, schedules."""
