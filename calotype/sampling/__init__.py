"""Drawing images from a model and writing them to files. The only caller of `model.sample` and `model.complete`.

May import `core`, `distributed` and `data`.
"""
