"""The base of all packages: errors, configs, randomness, images as bytes, the interfaces of models, and files.

May import `errors` alone.
"""
