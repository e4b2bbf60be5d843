"""A run: the job, the loop, what ranks agree on, and what is logged."""
