"""One protocol by which every image generator is measured."""
