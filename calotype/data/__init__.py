"""Pictures of any kind -> packed bytes of one size: sources, decoding, packing, and `check`."""

from calotype.data.config import DataConfig, parse_size
from calotype.data.packs.packed import PackedDataset
from calotype.data.packs.packing import prepare
from calotype.data.records import Skipped

__all__ = ["DataConfig", "PackedDataset", "Skipped", "parse_size", "prepare"]
