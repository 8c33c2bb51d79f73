"""The run directory: its config, checkpoints and log, and what may be taken from a stranger's.

May import what comes before it: all but `evaluation`, `training`, `applications`, `commands` and `terminal`.
"""
