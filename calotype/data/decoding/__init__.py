"""Files of pictures -> bytes, of every format and depth."""
