"""Maps of many images, compressed in memory."""

import zlib
from collections.abc import Sequence

import numpy as np
from torch import Tensor


class PackedMaps(Sequence[np.ndarray]):
    """uint8 maps of slices (W, H) or volumes (D, W, H), compressed in memory: hundreds of them are one evaluation."""

    def __init__(self) -> None:
        self.parts: list[tuple[bytes, tuple[int, ...]]] = []

    def add(self, maps: Tensor) -> None:
        """Adds the class numbers or grey levels (B, W, H) or (B, D, W, H) of a batch, uint8."""
        self.parts += [(zlib.compress(one.tobytes(), 1), one.shape) for one in maps.cpu().numpy()]

    def in_order(self, order: Sequence[int]) -> "PackedMaps":
        """The same maps, those of these places one after another."""
        found = PackedMaps()
        found.parts = [self.parts[place] for place in order]
        return found

    def __getitem__(self, row: int) -> np.ndarray:
        content, shape = self.parts[row]
        return np.frombuffer(zlib.decompress(content), np.uint8).reshape(shape)

    def __len__(self) -> int:
        return len(self.parts)

    def whole(self) -> Sequence[np.ndarray]:
        """All maps, each unpacked when it is asked for."""
        return self
