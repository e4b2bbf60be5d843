"""Starting a job: hosts, the choice of launcher, its command line, and the one place that runs it."""
