"""The evaluation protocol, the same for every image generator."""
