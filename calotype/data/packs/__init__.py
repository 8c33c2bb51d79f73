"""Packs: pictures decoded once, split into training and held-out sets, and read in batches."""
