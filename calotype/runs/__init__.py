"""The run directory: its config, checkpoints and log, and checks of runs from other people.

May import what comes before it: all but `evaluation`, `training`, `applications` and `commands`.
"""
