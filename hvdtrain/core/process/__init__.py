"""The process that a rank or a command is: its environment, paths, outputs and its end."""
