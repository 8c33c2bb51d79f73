"""Images from a model, and their files. The only caller of `model.sample` and `model.complete`.

May import `core`, `distributed` and `data`.
"""
