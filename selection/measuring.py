"""What one candidate says of the target's images, in sums that validators are computed from.

Of each image one pass as it is, one for each view (views.py), and one mixed with another image. Where a view changes
what the classifier reads, and not the image, the first pass is gone on with. What is kept of them is a few sums a
class, and the class numbers, compressed. So memory does not grow with the number of candidates times that of pixels,
and no label is read.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from torch import Tensor, nn

from datasets.packed_maps import PackedMaps
from methods.base import infer
from methods.settings import Settings
from nets.confidence import scale_by_class
from nets.probabilities import EPS, log_probabilities
from selection.views import VIEWS, View, dropped_features, grey_range, kept_features, mixed, same, sampled

CLEAN = "clean"
BAND = 3  # pixels to either side of a border


@dataclass(frozen=True)
class Measured:
    """The sums of one candidate over N images, and its class numbers, in the order of the set's rows."""

    sums: Mapping[str, np.ndarray]  # (N, K) each, and (N, K * K) products of probabilities
    masks: Sequence[np.ndarray]  # (W, H) or (D, W, H) uint8 each


@torch.inference_mode()
def measure(
    net: nn.Module, images: Iterator[tuple[Tensor, Tensor]], settings: Settings, temperatures: np.ndarray | None
) -> Measured:
    """Makes all passes of one candidate, in evaluation mode.

    images: batches (B, C, …) on the device, and the rows (B,) that they have in their set; alike for all candidates
    temperatures: one a class, by which the logits of the pixels of that class are divided; None leaves them out
    """
    net.eval()
    parts: list[dict[str, Tensor]] = []
    rows, maps = [], PackedMaps()
    for number, (image, places) in enumerate(images):
        labels, sums = _passes(net, image, settings, number, temperatures)
        parts.append(sums)
        rows.append(places)
        maps.add(labels)
    order = torch.cat(rows).argsort()
    whole = {name: torch.cat([part[name] for part in parts])[order].cpu().numpy() for name in parts[0]}
    return Measured(whole, maps.in_order(order.tolist()))


@torch.inference_mode()
def predicted(net: nn.Module, images: Iterator[tuple[Tensor, Tensor]], settings: Settings) -> Sequence[np.ndarray]:
    """The class numbers alone, as in `Measured`, of one pass over the images as they are."""
    net.eval()
    rows, maps = [], PackedMaps()
    for image, places in images:
        with settings.autocast():
            log_p = log_probabilities(infer(net, image, settings))
        rows.append(places)
        maps.add(surest(log_p)[1])
    return maps.in_order(torch.cat(rows).argsort().tolist())


def _passes(
    net: nn.Module, image: Tensor, settings: Settings, number: int, temperatures: np.ndarray | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """(B, …) uint8 class numbers, and the sums (B, K) of a batch."""

    def logits_of(disturbed: Tensor) -> Tensor:
        with settings.autocast():
            return infer(net, disturbed, settings)

    def in_order(view: tuple[int, tuple[str, View]]) -> bool:
        return not view[1][1].drops_features  # those first: what they read need not be kept for long

    def answer_to(disturbed: Tensor, undo: Callable[[Tensor], Tensor] = same) -> tuple[Tensor, Tensor]:
        return surest(log_probabilities(undo(logits_of(disturbed))))

    keep = not settings.crop and not getattr(net, "mixes", False)  # of all windows of a volume they are large
    with kept_features(net, keep=keep) as maps:
        log_p = log_probabilities(logits_of(image))
    sure, first = surest(log_p)
    n_class, labels = log_p.shape[1], {CLEAN: first}
    sums = clean_sums(log_p, first, temperatures) | border_sums(image, first, n_class)
    del log_p  # of a volume it is larger than all that follows
    for place, (name, view) in sorted(enumerate(VIEWS.items()), key=in_order):
        generator = torch.Generator(image.device).manual_seed(number * len(VIEWS) + place)
        with dropped_features(net, number, maps) if view.drops_features else nullcontext():
            sure_too, labels[name] = answer_to(view.image(image, generator), view.undo)
        sums[f"joint_{name}"] = joint_confidence(sure, sure_too, first, labels[name], n_class)
    sums |= overlaps({name: labels[name] for name in (CLEAN, *VIEWS)}, n_class)
    mixture, partner = mixed(image)
    sums |= mixture_sums(answer_to(mixture)[1], first, partner(first.unsqueeze(1)).squeeze(1), n_class)
    return first, sums


def surest(log_p: Tensor) -> tuple[Tensor, Tensor]:
    """(B, K, …) log-probabilities -> (B, …): the largest of each pixel, and the uint8 number of its class."""
    largest, labels = log_p.max(1)
    return largest, labels.to(torch.uint8)


def by_class(values: Tensor, labels: Tensor, n_class: int) -> Tensor:
    """(B, …) values, or booleans, which it counts -> (B, K) float64: their sums over the pixels of each class."""
    return torch.stack([_sums_of(values, labels == k) for k in range(n_class)], 1)


def by_foreground(values: Tensor, labels: Tensor, n_class: int) -> Tensor:
    """As `by_class`, and 0 for the background: in what compares two passes, nobody asks for that."""
    return without_background([_sums_of(values, labels == k) for k in range(1, n_class)])


def _sums_of(values: Tensor, mask: Tensor) -> Tensor:
    return (values.flatten(1) * mask.flatten(1)).sum(1, dtype=torch.float64)


def without_background(sums: Sequence[Tensor]) -> Tensor:
    """K - 1 times (B,), a sum of each foreground class -> (B, K) float64, 0 for the background."""
    return torch.stack([torch.zeros_like(sums[0]), *sums], 1).double()


def everywhere(p: Tensor) -> Tensor:
    """(B, K, …) -> (B, K) float64: sums over all pixels, first along the last axis, which saves a copy in float64."""
    return p.sum(-1).flatten(2).sum(2, dtype=torch.float64)


def clean_sums(log_p: Tensor, labels: Tensor, temperatures: np.ndarray | None = None) -> dict[str, Tensor]:
    """Sums (B, K) of the pass over images as they are.

    log_p: (B, K, …) log-probabilities; labels: (B, …) their most probable classes

    size          pixels of the class
    soft          probability of the class, everywhere
    sure          probability of the class, in its own pixels
    entropy       entropy in the pixels of the class; log K is the most
    gram_<k>      see `spectrum`
    soft_t, sure_t  as soft and sure, with each pixel's logits divided by the temperature of its class
    """
    n_class, p = log_p.shape[1], log_p.exp()
    sums = {
        "size": by_class(torch.ones_like(labels, dtype=torch.bool), labels, n_class),
        "soft": everywhere(p),
        "sure": by_class(p.amax(1), labels, n_class),
        "entropy": by_class(-(p * log_p).sum(1), labels, n_class),
    } | spectrum(p, labels)
    if temperatures is not None:
        del p  # of a volume it is large
        cooled = scale_by_class(log_p, labels, temperatures).exp_()
        sums["soft_t"] = everywhere(cooled)
        sums["sure_t"] = by_class(cooled.amax(1), labels, n_class)
    return sums


def spectrum(p: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Products of probabilities, class by class: "gram_c" (B, K * K), summed over sampled pixels that are labelled c.

    p: (B, K, …) probabilities. Their balanced sum over c is PᵀP of the matrix P of pixels and classes.
    """
    flat, at = sampled(p.flatten(2)).double(), sampled(labels.flatten(1))
    found = {}
    for k in range(p.shape[1]):
        kept = flat * (at == k).unsqueeze(1)
        found[f"gram_{k}"] = (kept @ kept.transpose(1, 2)).flatten(1)
    return found


def border_sums(image: Tensor, labels: Tensor, n_class: int) -> dict[str, Tensor]:
    """How the borders of the foreground classes of (B, …) labels lie on the image (B, C, …): sums (B, K).

    edge   steepness of the image at the class's border pixels, which touch another class
    near   the same in all pixels at most BAND away from that border, on both sides
    in     grey levels within BAND of the border, inside the class
    out    the same outside

    Each is several sums, "<name>_n" of ones, "<name>_1" of the values and, of grey levels, "<name>_2" of their squares.
    Grey levels are divided by the image's range, and their channels averaged.
    """
    low, high = grey_range(image)
    grey = ((image.float() - low) / (high - low).clamp_min(EPS)).mean(1)
    steep = steepness(grey)
    found = defaultdict(list)
    for k in range(1, n_class):
        mask = labels == k
        inner, outer = mask & _grown(~mask, BAND), _grown(mask, BAND) & ~mask
        edge, near = mask & _grown(~mask, 1), inner | outer
        of_k = {"edge": (edge, steep), "near": (near, steep), "in": (inner, grey), "out": (outer, grey)}
        for name, (where, values) in of_k.items():
            kept = torch.where(where, values, 0).flatten(1).double()
            found[f"{name}_n"].append(where.flatten(1).sum(1).double())
            found[f"{name}_1"].append(kept.sum(1))
            if name in ("in", "out"):
                found[f"{name}_2"].append(kept.square_().sum(1))
    return {name: without_background(values) for name, values in found.items()}


def steepness(grey: Tensor) -> Tensor:
    """(B, …) -> (B, …): the norm of the central differences along all axes of more than one pixel."""
    squares = torch.zeros_like(grey)
    for axis in range(1, grey.ndim):
        if grey.shape[axis] > 1:
            squares += torch.gradient(grey, dim=axis)[0].square()
    return squares.sqrt()


def _grown(mask: Tensor, pixels: int) -> Tensor:
    """(B, …) booleans: those that are at most so many pixels away from a true one along each axis."""
    for axis in range(1, mask.ndim):  # one axis after another, and booleans: max_pool takes fifty times as long
        grown, size = mask.clone(), mask.shape[axis]
        for step in range(1, min(pixels + 1, size)):
            grown.narrow(axis, step, size - step).logical_or_(mask.narrow(axis, 0, size - step))
            grown.narrow(axis, 0, size - step).logical_or_(mask.narrow(axis, step, size - step))
        mask = grown
    return mask


def joint_confidence(log_p: Tensor, log_q: Tensor, first: Tensor, second: Tensor, n_class: int) -> Tensor:
    """(B, K): Σ √(p_k q_k) over the pixels that both passes give the foreground class k.

    log_p, log_q: (B, …) largest log-probabilities of the two; first, second: (B, …) the classes that have them
    """
    both = torch.where(first == second, (0.5 * (log_p + log_q)).exp(), 0)
    return by_foreground(both, first, n_class)


def overlaps(labels: Mapping[str, Tensor], n_class: int) -> dict[str, Tensor]:
    """Of every pass its "size_<pass>" and of every two "both_<pass>_<pass>": pixels (B, K) of each foreground class.

    labels: pass -> (B, …) class numbers
    """
    found = defaultdict(list)
    for k in range(1, n_class):
        masks = {name: (of_pass == k).flatten(1) for name, of_pass in labels.items()}
        for name, mask in masks.items():
            found[f"size_{name}"].append(mask.sum(1))
        for one, two in combinations(masks, 2):
            found[f"both_{one}_{two}"].append((masks[one] & masks[two]).sum(1))
    return {name: without_background(counts) for name, counts in found.items()}


def mixture_sums(answer: Tensor, first: Tensor, second: Tensor, n_class: int) -> dict[str, Tensor]:
    """How often a mixture is given the class of its larger part, (B, K) by that class (MixVal, Hu et al. 2023).

    answer, first, second: (B, …) most probable classes of the mixture, of its larger and of its smaller part
    Counted are pixels in which either part is no background: those where the parts agree ("intra") and the others
    ("inter"); "hit" are those that the mixture gives the class of its larger part.
    """
    either, agree, hit = (first > 0) | (second > 0), first == second, answer == first
    return {
        "intra": by_foreground(either & agree, first, n_class),
        "intra_hit": by_foreground(either & agree & hit, first, n_class),
        "inter": by_foreground(either & ~agree, first, n_class),
        "inter_hit": by_foreground(either & ~agree & hit, first, n_class),
    }


def per_patient(sums: Mapping[str, np.ndarray], patients: Sequence[str]) -> dict[str, np.ndarray]:
    """Sums of slices (N, *) -> sums of patients (P, *), patients in the order of their first slice."""
    places = {patient: place for place, patient in enumerate(dict.fromkeys(patients))}
    at = [places[patient] for patient in patients]
    found = {}
    for name, values in sums.items():
        found[name] = np.zeros((len(places), values.shape[1]))
        np.add.at(found[name], at, values)
    return found
