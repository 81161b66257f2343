"""What a run reads: opens and checks its sets, looks up what losses may know of the sizes, and makes the streams."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datasets.augmentation import Augmentation
from datasets.code_identity import source_hash
from datasets.files import check_class_count, check_patients, parse_name, parse_volume
from datasets.grey_matching import SourceLevels, match_set, with_share
from datasets.sampling import FixedSteps, Sampler, Shuffled
from datasets.set_tables import is_split_by_patients, read_card
from datasets.slices import SliceSet, join, lay_bounds, open_slices, place
from datasets.stacks import about_places, numbers_of
from datasets.streams import Stream
from datasets.transforms import TRANSFORMS, FolderSpec, nii_transform, parse_folders, parse_image_folder
from datasets.volumes import CropStream, VolumeSet, WholeStream, open_volumes
from processes.errors import UserError
from processes.team import ALONE, Team
from utils import counted, derived_seed, listing, sha256_of, tell_once

DEBUG_SLICES, DEBUG_VOLUMES = 10, 6  # that --debug keeps of a set; the latter where batches are drawn volume by volume
AnySet = SliceSet | VolumeSet
AnyStream = Stream | CropStream


@dataclass(frozen=True)
class Demand:
    """What a method wants of the data that it learns from; see methods/base.py."""

    method: str
    streams: Mapping[str, int]  # those that the run consumes, and how many images of each one step sees
    labelled: tuple[str, ...]  # its streams whose batches carry ground truth
    segments: bool  # whether it is evaluated, on a set of its own
    sampler: Callable[[Sequence[str]], Sampler] | None = None  # of slices of these patients; None: all in random order


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What is read, and how, under the names of the flags."""

    target_dataset: Path
    source_dataset: Path | None
    unlabelled_dataset: Path | None
    unlabelled_split: str
    target_folders: str
    val_target_folders: str | None
    source_folders: str | None
    grp_regex: str
    source_regex: str | None
    n_class: int
    ignore: int | None
    modalities: int
    n_labelled: int
    n_target: int
    draw: int
    batch_size: int
    crop: Sequence[int] | None
    overlap: float
    steps: int
    augment: int
    augmentation: str
    cache: str
    workers: int
    trainval: int
    valonly: int
    ontest: int
    ontrain: int
    scores: str
    seed: int
    device: str
    debug: int


def open_data(
    demand: Demand,
    reading: Reading,
    bounds: Sequence[Any],
    team: Team = ALONE,
    levels: SourceLevels | None = None,
) -> tuple[dict[str, AnyStream], Stream | WholeStream | None]:
    """The streams that the method consumes, and the one that evaluation goes through, if the method has one.

    levels: what the images are matched to, apart from those of the source
    """
    sets = open_sets(demand, reading, bounds)
    check_channels(sets, reading.modalities)
    sets = {name: match_set(found, None if name == "source" else levels) for name, found in sets.items()}
    device, share = torch.device(reading.device), {"team": team, "workers": reading.workers}
    if not reading.crop:
        sets = place(sets, reading.cache, device, team.world)
    val = _in_order(sets.pop("val"), reading, **share) if "val" in sets else None
    augmentation = Augmentation.read(reading.augmentation) if reading.augment else None
    share |= {"augmentation": augmentation, "n_class": reading.n_class}
    streams = {}
    for number, (name, found) in enumerate(sets.items()):
        size, seed = demand.streams[name], derived_seed(reading.seed, number)
        sampler = demand.sampler(found.patients) if demand.sampler else Shuffled(len(found), size)
        sampler = FixedSteps(sampler, size, reading.steps) if reading.steps else sampler
        share["with_targets"] = name in demand.labelled
        if reading.crop:
            streams[name] = CropStream(found, size, device, seed, sampler=sampler, **share)
        else:
            streams[name] = Stream(found, size, device, seed, sampler=sampler, **share)
    return streams, val


def open_images(
    reading: Reading, split: str, bounds: Sequence[Any] = (), levels: SourceLevels | None = None
) -> Stream | WholeStream:
    """The target's images of a split, each once, as they lie: no folder of ground truth is named, let alone opened.

    Those of train are read as --target_folders says, all others as --val_target_folders does. Every image stays, also
    one that a prior leaves out.

    bounds: the run's, one object of bounds.py per loss, or None. A batch has an entry for each: (B, K, 2) pixels, or
        None where ground truth went into them, or where they do not speak of every image
    levels: what the images are matched to

    Raises UserError as `open_slices` and `open_volumes` do, and for other channels than --modalities.
    """
    found = images_of(reading, split)
    blind = [None if bound is None or knows_truth(bound) else bound for bound in bounds]
    found = match_set(lay_bounds(found, blind, required=False), levels)
    if not reading.crop:
        found = place({"images": found}, reading.cache, torch.device(reading.device))["images"]
    return _in_order(found, reading, workers=reading.workers)


def images_of(reading: Reading, split: str) -> AnySet:
    """The target's images of a split, as they are stored; otherwise as `open_images`."""
    text = reading.target_folders if split == "train" else reading.val_target_folders or reading.target_folders
    limit = DEBUG_SLICES if reading.debug else None
    folders = [parse_image_folder(text)]
    found = _open_folders(reading.target_dataset, split, folders, reading.grp_regex, reading, limit)
    check_channels({"images": found}, reading.modalities)
    return found


def knows_truth(bound: Any) -> bool:
    """Whether ground truth of the very images went into a bound: it reads that, or a csv of true sizes."""
    return bound.needs_label or "oracle" in bound.supervision


def _in_order(found: AnySet, reading: Reading, **share: Any) -> Stream | WholeStream:
    """Each image of a set once, as they lie."""
    device = torch.device(reading.device)
    if reading.crop:
        return WholeStream(found, device, **share)
    return Stream(found, reading.batch_size, device, shuffle=False, **share)


def open_sets(demand: Demand, reading: Reading, bounds: Sequence[Any]) -> dict[str, AnySet]:
    """The sets that a run reads, by name: "val", unless the method is a pre-training, and one for each of its streams.

    Each knows what its losses may know of the sizes.
    """
    sets = {}
    if demand.segments:
        roots = [reading.target_dataset, *([reading.source_dataset] if "source" in demand.streams else [])]
        check_class_count(roots, reading.n_class)
        folders = parse_folders(reading.target_folders, len(bounds))
        check_patients(
            reading.target_dataset, folders[0].folder, reading.grp_regex, parse_volume if reading.crop else parse_name
        )
        split = validation_split(reading)
        sets["val"] = lay_bounds(open_split(demand, "val", split, reading, len(bounds)), bounds, required=False)
        if reading.scores == "volume" and sets["val"].has_truth:
            tell_places(sets["val"], reading.debug)
    for name in demand.streams:
        found = join([open_split(demand, name, split, reading, len(bounds)) for split in splits_of(name, reading)])
        if reading.n_target and name == "target":
            found = found.keep(drawn_rows(found, "n_target", reading))
        if reading.n_labelled and name in demand.labelled:
            found = found.keep(drawn_rows(found, "n_labelled", reading))
        if reading.debug and not demand.segments:
            found = found.keep(rows_of(found, sorted(set(found.patients))[:DEBUG_VOLUMES]))
        sets[name] = lay_bounds(found, bounds) if bounds and name != "unlabelled" else found
    for name in ("val", *demand.labelled):
        must_have_classes(sets.get(name), reading.ignore)
    return sets


def must_have_classes(slices: AnySet | None, ignore: int | None) -> None:
    """Raises UserError if every pixel of the ground truth is to be ignored: it can teach and score nothing."""
    truths = [folder for folder in slices.folders[1:] if not folder.is_map] if slices and ignore is not None else []
    for folder in dict.fromkeys(truths):
        if not any((slices.labels([row], folder)[0] != ignore).any() for row in range(len(slices))):
            raise UserError(
                f"Every pixel of {slices.root / slices.split / folder.folder} is {ignore}, which --ignore takes for no "
                "class: nothing can be learnt from it, or scored. Mend the ground truth, or leave --ignore out."
            )


def tell_places(slices: AnySet, debug: bool) -> None:
    """Says once what a reader must know of the distances between slices.

    With `debug` only a few slices are read, so gaps between them mean nothing.
    """
    whole = not debug and is_split_by_patients(read_card(slices.root))
    for line in about_places(numbers_of(slices.patients, slices.numbers), slices.contradicted, whole):
        tell_once(line)


def splits_of(name: str, reading: Reading) -> list[str]:
    """The splits that a stream reads."""
    if name == "unlabelled":
        return [reading.unlabelled_split]
    if name == "target" and reading.trainval:
        return ["train", "val"]
    return ["val"] if name == "target" and reading.valonly else ["train"]


def validation_split(reading: Reading) -> str:
    """The split of the target that a run is evaluated on."""
    return "test" if reading.ontest else "train" if reading.ontrain else "val"


def open_split(demand: Demand, name: str, split: str, reading: Reading, n_loss: int) -> AnySet:
    """One split of the set that a stream reads, opened and checked."""
    texts = {"val": reading.val_target_folders, "source": reading.source_folders}
    roots = {"source": reading.source_dataset, "unlabelled": reading.unlabelled_dataset}
    text, root = texts.get(name) or reading.target_folders, roots.get(name) or reading.target_dataset
    regex = reading.source_regex or reading.grp_regex if name == "source" else reading.grp_regex
    blind = name == "unlabelled" or not demand.segments
    folders = [parse_image_folder(text)] if blind else parse_folders(text, n_loss)
    if len(folders) == 1 and name in demand.labelled:
        raise UserError(
            f"--method {demand.method} learns from labels, and the folders {text} of {root} are the images alone: name "
            "the ground truth too, or take a method that needs none (sfda)."
        )
    limit = DEBUG_SLICES if reading.debug and demand.segments else None
    return _open_folders(root, split, folders, regex, reading, limit, wide=name == "val" and reading.scores == "iou")


def _open_folders(
    root: Path,
    split: str,
    folders: Sequence[FolderSpec],
    regex: str,
    reading: Reading,
    limit: int | None,
    wide: bool = False,
) -> AnySet:
    """The volumes or slices of these folders.

    limit: how many are kept of them; wide: the ground truth need not have the size of the images
    """
    if reading.crop:
        return open_volumes(root, split, folders, reading.n_class, regex, reading.crop, limit, ignore=reading.ignore)
    return open_slices(root, split, folders, reading.n_class, regex, limit, ignore=reading.ignore, any_truth_size=wide)


def drawn_rows(slices: AnySet, flag: str, reading: Reading) -> list[int]:
    """The rows of as many volumes of the set as the flag says, drawn by the number --draw; more are drawn to fewer.

    Volumes are drawn by their names alone. With --debug, where few slices are read, it is all of these at most.
    """
    volumes, number = list(dict.fromkeys(slices.patients)), getattr(reading, flag)
    if number > len(volumes) and not (reading.debug and flag == "n_target"):
        raise UserError(
            f"--{flag} {number}, but {slices.root / slices.split} holds {counted(len(volumes), 'volume')}: "
            f"{listing(volumes)}."
        )
    order = np.random.default_rng(reading.draw).permutation(sorted(volumes))
    return rows_of(slices, order[:number].tolist())


def rows_of(slices: AnySet, volumes: Sequence[str]) -> list[int]:
    """The rows of the slices of these volumes."""
    chosen = set(volumes)
    return [row for row, volume in enumerate(slices.patients) if volume in chosen]


def check_channels(sets: Mapping[str, AnySet], channels: int) -> None:
    """Raises UserError for images of another number of channels than --modalities, or than those of another set."""
    counts = {name: found.shape[0] for name, found in sets.items()}
    if len({*counts.values(), channels or next(iter(counts.values()))}) > 1:
        told = ", ".join(f"{count} in {sets[name].root}/{sets[name].split}" for name, count in counts.items())
        asked = f"--modalities {channels}" if channels else "one number of channels"
        raise UserError(f"Expected images of {asked}, found {told}; slice them anew with the same --image volumes.")
    if "unlabelled" in sets and sets["target"].shape != (shape := sets["unlabelled"].shape):
        raise UserError(
            f"Images with and without labels are in one batch, but those of {sets['target'].root} have size "
            f"{sets['target'].shape[1:]}, those of {sets['unlabelled'].root} {shape[1:]}; slice both to one size."
        )


# Of a card: what it tells of its volumes one by one.
LONG = ("sources", "counts", "split", "foreground_cut_away", "placed_labels", "stored_as", "guessed_directions")


def describe_preprocessing(reading: Reading, levels: SourceLevels | None = None) -> dict[str, Any]:
    """How an image of the set that the run is evaluated on came from its volume to the network, in plain types.

    card     the set's dataset.json without what it tells of single volumes; empty where there is none
    image    folder and transform of the images
    crop     size of the windows of a volumetric run, else None; `overlap` of them
    match_source  the share by which its grey levels were matched to `levels`, where they were
    """
    image = parse_image_folder(reading.val_target_folders or reading.target_folders)
    card = {name: value for name, value in read_card(reading.target_dataset).items() if name not in LONG}
    told = {
        "card": card,
        "image": [image.folder, image.transform],
        "crop": reading.crop and list(reading.crop),
        "overlap": reading.overlap,
    }
    return with_share(told, levels.share if levels else 0.0)


ZSCORED = (-4.0, 4.5)  # grey levels that the published heart recipe brings to 0..1
SAMPLED = 16  # slices that are looked at


def grey_note(slices: AnySet) -> str:
    """What to say of slices that are read as stored and look as if they had mean 0 and sd 1; '' of all others.

    The published transform of that name, nii_transform, takes such images to 0..1. A set whose card tells how its
    grey levels were made is as it is on purpose.
    """
    image, card = slices.folders[0], read_card(slices.root)
    if isinstance(slices, VolumeSet) or TRANSFORMS[image.transform] is not nii_transform or "normalisation" in card:
        return ""
    rows = np.linspace(0, len(slices) - 1, min(len(slices), SAMPLED)).astype(int)
    seen = np.stack([slices.image(row) for row in rows])
    low, high = float(seen.min()), float(seen.max())
    if not ZSCORED[0] <= low < -0.5 < high <= ZSCORED[1]:
        return ""
    folder = slices.root / slices.split / image.folder
    return (
        f"{folder}: grey levels from {low:.2f} to {high:.2f}, as of images of mean 0 "
        "and standard deviation 1, read as they are stored. The published nii_transform, of the heart, makes them "
        "(x + 4) / 8.5: name nii_zscore_transform, or give --published sfda, for that."
    )


def label_uses(demand: Demand, reading: Reading) -> dict[str, str]:
    """Set -> in what way labels shaped its images (a crop round them, a scale by them), as the sets' cards tell.

    Of every set that the run reads; one whose images no label has touched is left out.
    """
    others = {"source": reading.source_dataset, "unlabelled": reading.unlabelled_dataset}
    roots = [reading.target_dataset, *(root for name, root in others.items() if root and name in demand.streams)]
    cards = {root: read_card(root) for root in dict.fromkeys(roots)}
    told = {root: card["uses_labels"] for root, card in cards.items() if card.get("uses_labels")}
    return {str(cards[root].get("name") or root.name): str(how) for root, how in told.items()}


def describe_inputs(
    weights: Mapping[str, str], streams: Mapping[str, AnyStream], val: Stream | WholeStream | None
) -> dict[str, str]:
    """SHA-256 of everything that the run reads, and of what turns it: what makes it this run and no other.

    weights: by flag the file of weights that the run starts from, '' where there is none
    """
    inputs = {"val": val.slices.digest} if val else {}
    inputs |= {name: stream.slices.digest for name, stream in streams.items()}
    read = [*streams.values(), *([val] if val else [])]
    for name in sorted({spec.transform for stream in read for spec in stream.slices.folders}):
        inputs[f"code of {name}"] = source_hash([TRANSFORMS[name]])
    for name, stream in streams.items():
        laid = b"".join(bound.tobytes() for bound in stream.slices.bounds if bound is not None)
        inputs |= {f"bounds of {name}": hashlib.sha256(laid).hexdigest()} if laid else {}
    return inputs | {name: sha256_of(Path(path)) for name, path in weights.items() if path}
