"""Whether a volume is like those that a network was trained on: its spacing, and its grey levels.

Too little for a refusal, for a network may well do its work on what is new to it; a line says so.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from datasets.set_tables import normalisation_of
from datasets.trained_on import PERCENTILES, SPACINGS
from files.faults import Fault

FACTOR = 1.5  # a spacing so many times above the largest or below the smallest of the training is far off
SHARE = 0.5  # and a percentile of the grey levels that leaves those of the training by this share of their range
TIMES = 10  # where grey levels are scaled volume by volume: a range so many times as wide, or as narrow
SCALED = ("minmax", "percentile", "zscore")  # ways to normalise that undo shift and scale
ALONG = {"slice": "from slice to slice", "w": "along W", "h": "along H"}


def unlike_training(
    card: Mapping[str, Any], folder: str, patient: str, spacing_mm: Sequence[float], levels: Sequence[Sequence[float]]
) -> list[Fault]:
    """What is far from what the card tells of the training volumes: what, and whose; nothing where it tells nothing.

    spacing_mm: mm from slice to slice, along W and H, as the network sees them
    levels: of each channel of this folder, see trained_on
    """
    found = list(_unlike_spacing((card.get("geometry") or {}).get("spacing", {}), patient, spacing_mm))
    known = (card.get("grey_levels") or {}).get(folder, [])
    how = normalisation_of(card)
    is_scaled = how.get("kind") in SCALED and not how.get("clip") and how.get("scope") != "set"
    for number, (told, own) in enumerate(zip(known, levels, strict=False)):
        low, *_, high = (told[str(percent)] for percent in PERCENTILES)
        if _is_far(told, own, is_scaled):
            what = (
                f"range of grey levels {TIMES} times that of the training, or a {TIMES}th"
                if is_scaled
                else (f"grey levels that leave those of the training by more than {SHARE:.0%} of their range")
            )
            channel = f", channel {number}" if len(known) > 1 else ""
            shown = f"{own[0]:.4g} to {own[-1]:.4g}, trained on {low[1]:.4g} to {high[1]:.4g}{channel}"
            found.append((what, f"{patient} ({shown})"))
    return found


def _unlike_spacing(spacings: Mapping[str, Sequence[float]], patient: str, spacing_mm: Sequence[float]) -> list[Fault]:
    what = f"spacing more than {FACTOR:g} times that of the training, or less than its {FACTOR:g}th part"
    pairs = [(name, mm, spacings[name]) for name, mm in zip(SPACINGS, spacing_mm, strict=True) if name in spacings]
    return [
        (what, f"{patient} ({mm:.3g} mm {ALONG[name]}, trained on {low:.3g} to {high:.3g})")
        for name, mm, (low, _, high) in pairs
        if not low / FACTOR <= mm <= high * FACTOR
    ]


def _is_far(by_percent: Mapping[str, Sequence[float]], own: Sequence[float], is_scaled: bool) -> bool:
    spreads = [by_percent[str(percent)] for percent in PERCENTILES]
    usual = spreads[-1][1] - spreads[0][1]
    if is_scaled:
        return not usual / TIMES <= own[-1] - own[0] <= usual * TIMES
    slack = SHARE * usual
    return any(not low - slack <= level <= high + slack for (low, _, high), level in zip(spreads, own, strict=True))
