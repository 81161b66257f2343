"""What the user of `preprocess.new_dataset` typed in addition to the volumes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Wishes:
    """None, or nothing: to be proposed."""

    name: str
    tolerance: float = 0.1  # mm
    modality: str = ""
    group: str | None = None
    plane: str | None = None
    val: int | None = None
    val_list: tuple[str, ...] = ()
    spacing: tuple[float, float] | None = None  # mm; of pictures that of their pixels, along width and height
    size: tuple[int, int] | None = None  # pixels; of pictures width and height
    tile: tuple[int, int] | None = None  # of pictures, in place of size
    label_map: str | None = None
    class_names: tuple[str, ...] = ()
    organ_mm2: tuple[float, ...] = ()
    organ_mm3: tuple[float, ...] = ()
    tags: str | None = None
    phantom: str | None = None  # small or full, where the volumes are a phantom's
