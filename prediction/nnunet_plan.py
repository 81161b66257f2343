"""What the plans of nnU-Net v2 say of a network and of its images, as a checkpoint's card holds it.

spacing, transpose      mm of the grid that the network sees; the order of the axes of a volume there, of (z, y, x)
window                  of the network, in voxels
schemes, masked, levels how each channel is normalised, whether within the body alone, and the grey levels for that
order, scores_order     of the splines that resample images, and scores on their way back
mirror                  axes of the window along which nnU-Net mirrors when it predicts
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from files.faults import VolumeFault
from processes.errors import UserError
from utils import described, fits, listing

ENTRY = "nnunet"  # of a card
EPS = 1e-8
OF_CT = ("mean", "std", "percentile_00_5", "percentile_99_5")
MASKED = "ZScoreNormalization"


def _z_scored(channel: np.ndarray, body: np.ndarray | None, _: Mapping[str, float]) -> np.ndarray:
    """Outside of the body a voxel stays as it is, which is 0."""
    seen = channel if body is None else channel[body]
    scaled = (seen - seen.mean()) / max(seen.std(), EPS)
    if body is None:
        return scaled
    channel[body] = scaled
    return channel


def _as_ct(channel: np.ndarray, _: np.ndarray | None, told: Mapping[str, float]) -> np.ndarray:
    clipped = np.clip(channel, told["percentile_00_5"], told["percentile_99_5"])
    return (clipped - told["mean"]) / max(told["std"], EPS)


def _to_one(channel: np.ndarray, _: np.ndarray | None, __: Mapping[str, float]) -> np.ndarray:
    lifted = channel - channel.min()
    return lifted / max(lifted.max(), EPS)


def _as_rgb(channel: np.ndarray, _: np.ndarray | None, __: Mapping[str, float]) -> np.ndarray:
    return channel / 255


SCHEMES = {
    MASKED: _z_scored,
    "CTNormalization": _as_ct,
    "NoNormalization": lambda channel, body, told: channel,
    "RescaleTo01Normalization": _to_one,
    "RGBTo01Normalization": _as_rgb,
}


@dataclass(frozen=True, kw_only=True)
class NnunetPlan:
    """See the file. Raises UserError for values that no plan has."""

    spacing: Sequence[float]
    transpose: Sequence[int]
    window: Sequence[int]
    schemes: Sequence[str]
    masked: Sequence[bool]
    levels: Sequence[Mapping[str, float]]
    order: int
    scores_order: int
    mirror: Sequence[int]

    @classmethod
    def from_card(cls, card: Mapping[str, Any], where: str) -> "NnunetPlan | None":
        """The plan that a set's card holds, or None. `where` says in words what the card belongs to."""
        told = card.get(ENTRY)
        if told is None:
            return None
        try:
            return cls(**{str(name): value for name, value in told.items()})
        except (AttributeError, TypeError) as error:
            raise UserError(
                f"{where} tells of a plan of nnU-Net what no plan has ({error}); import it anew."
            ) from error
        except UserError as error:
            raise UserError(f"{where}: {error}") from error

    def __post_init__(self) -> None:
        if wrong := [*self._mistyped()] or [*self._impossible()]:
            raise UserError(f"the plan of nnU-Net cannot be used; {'; '.join(wrong)}.")

    def _mistyped(self) -> Iterator[str]:
        for name, kind in self.__dataclass_fields__.items():
            if not fits(value := getattr(self, name), kind.type):
                yield f"{name} is {str(value)[:40]!r}, expected {described(kind.type)}"

    def _impossible(self) -> Iterator[str]:
        axes, channels = len(self.window), len(self.schemes)
        if axes not in (2, 3) or not all(1 <= size <= 4096 for size in self.window):
            yield f"window is {self.window}, expected two or three sizes"
        if len(self.spacing) != axes or not all(0 < mm < 1e6 for mm in self.spacing):
            yield f"spacing is {self.spacing}, expected mm above 0 along each axis of the window"
        if sorted(self.transpose) != [0, 1, 2]:
            yield f"transpose is {self.transpose}, expected an order of 0, 1 and 2"
        if not channels or channels != len(self.masked) or channels != len(self.levels):
            yield "schemes, masked and levels are not of as many channels"
        if unknown := sorted({*self.schemes} - {*SCHEMES}):
            yield f"schemes are {listing(unknown)}, expected {listing(SCHEMES)}"
        if any({*OF_CT} - each.keys() for name, each in self._channels() if name == "CTNormalization"):
            yield f"levels lack {listing(OF_CT)} of a CT"
        if not all(0 <= order <= 5 for order in (self.order, self.scores_order)):
            yield f"splines have orders 0 to 5, not {self.order} and {self.scores_order}"
        if len({*self.mirror}) < len(self.mirror) or not all(0 <= axis < axes for axis in self.mirror):
            yield f"mirror is {self.mirror}, expected axes of the window"

    def _channels(self) -> Iterator[tuple[str, Mapping[str, float]]]:
        return zip(self.schemes, self.levels, strict=False)

    @property
    def axes(self) -> tuple[int, int, int]:
        """Which axes of a volume (X, Y, Z) become the network's; nnU-Net counts them from the last on."""
        return tuple(2 - axis for axis in self.transpose)

    def spacing_for(self, own_mm: Sequence[float]) -> tuple[float, ...]:
        """mm that a volume of this spacing, its axes in the network's order, is resampled to: planes stay apart."""
        return (*own_mm[: 3 - len(self.spacing)], *self.spacing)

    def normalise(self, image: np.ndarray, body: np.ndarray, name: str) -> np.ndarray:
        """(C, D, W, H) float32 -> the same, normalised; `body` (D, W, H) is where it is not empty.

        name: of the volume. Raises VolumeFault for grey levels that its scheme does not take.
        """
        made = []
        for channel, scheme, masked, levels in zip(image, self.schemes, self.masked, self.levels, strict=True):
            if scheme == "RGBTo01Normalization" and not (channel.min() >= 0 and channel.max() <= 255):
                raise VolumeFault(
                    "holds grey levels outside 0..255, which the network takes for those of a photo", name
                )
            made.append(SCHEMES[scheme](channel.copy(), body if masked else None, levels))
        return np.stack(made).astype(np.float32, copy=False)

    def told(self) -> dict[str, Any]:
        """The entry of a card, in plain types."""
        return {name: _listed(value) for name, value in asdict(self).items()}


def _listed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): float(each) for name, each in value.items()}
    return [_listed(each) for each in value] if isinstance(value, list | tuple) else value
