"""The trainer: optimizers, precision, accumulation, clipping, averaged weights, and the counters of training.

Names no family. May import `core`, `distributed` and `data`.
"""
