"""Every number of a run, computed before it starts."""
