"""Packed pictures: decoded once, split into training and held-out ones, and read in batches."""
