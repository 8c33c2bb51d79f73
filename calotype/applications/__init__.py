"""What a trained model is put to: completing, reconstructing, measuring, comparing families.

May import all but `commands` and `terminal`.
"""
