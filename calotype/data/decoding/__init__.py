"""Decoding: picture files of every format and bit depth -> bytes."""
