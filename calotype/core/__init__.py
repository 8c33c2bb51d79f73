"""The base of all packages: configs, randomness, images as bytes, the interfaces of models, and files.

May import `errors` alone.
"""
