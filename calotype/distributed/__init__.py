"""Several processes on one job: ranks, sharded weights, shared work, cost estimates, and jobs for clusters.

May import `core`.
"""
