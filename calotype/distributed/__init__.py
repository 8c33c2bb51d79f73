"""Several processes at one job: who they are, weights divided between them, work shared, costs, and jobs of clusters.

May import `core`.
"""
