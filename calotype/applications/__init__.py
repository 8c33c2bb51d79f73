"""Uses of trained models: completing, reconstructing, measuring, comparing families.

May import all but `commands`.
"""
