"""Builds Horovod for the frameworks that are installed, and says what a machine lacks."""
