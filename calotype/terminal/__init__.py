"""Calotype as a process on a terminal: the command line, exit status, streams, and workers of Ray.

May import everything; nothing imports it.
"""
