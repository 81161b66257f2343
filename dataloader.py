"""What a run reads: opens and checks its sets, looks up what losses may know of the sizes, and makes the streams."""

import hashlib
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch

from datasets.augmentation import Augmentation
from datasets.code_identity import source_hash
from datasets.files import check_class_count, check_patients, parse_name, parse_volume
from datasets.sampling import FixedSteps, Sampler, Shuffled
from datasets.set_tables import is_split_by_patients, read_card
from datasets.slices import SliceSet, join, lay_bounds, open_slices, place
from datasets.stacks import about_places, numbers_of
from datasets.streams import Stream
from datasets.transforms import TRANSFORMS, nii_transform, parse_folders, parse_image_folder
from datasets.volumes import CropStream, VolumeSet, WholeStream, open_volumes
from processes.errors import UserError
from processes.team import ALONE, Team
from utils import counted, derived_seed, listing, sha256_of, tell_once

DEBUG_SLICES, DEBUG_VOLUMES = 10, 6  # that --debug keeps of a set; the latter where batches are drawn volume by volume
AnySet = SliceSet | VolumeSet
AnyStream = Stream | CropStream


class Consumer(Protocol):
    """What a method says of the data that it learns from; see methods/base.py."""

    labelled: ClassVar[tuple[str, ...]]  # its streams whose batches carry ground truth
    segments: ClassVar[bool]  # whether it is evaluated, on a set of its own

    @classmethod
    def streams_of(cls, args: Namespace) -> tuple[str, ...]:
        """The streams that a run with these arguments consumes."""

    @staticmethod
    def batch_size(stream: str, args: Namespace) -> int:
        """How many images of a stream one step sees."""

    @staticmethod
    def sampler(stream: str, patients: Sequence[str], args: Namespace) -> Sampler | None:
        """What draws the batches of a stream; None: all of its images in random order."""


def open_data(
    method: type[Consumer], args: Namespace, bounds: Sequence[Any], team: Team = ALONE
) -> tuple[dict[str, AnyStream], Stream | WholeStream | None]:
    """The streams that the method consumes, and the one that evaluation goes through, if the method has one."""
    sets = open_sets(method, args, bounds)
    check_channels(sets, args.modalities)
    device, share = torch.device(args.device), {"team": team, "workers": args.workers}
    if not args.crop:
        sets = place(sets, args.cache, device, team.world)
    val = sets.pop("val", None)
    if val and args.crop:
        val = WholeStream(val, device, **share)
    elif val:
        val = Stream(val, args.batch_size, device, shuffle=False, **share)
    share["augmentation"] = Augmentation.read(args.augmentation) if args.augment else None
    streams = {}
    for number, (name, found) in enumerate(sets.items()):
        size, seed = method.batch_size(name, args), derived_seed(args.seed, number)
        sampler = method.sampler(name, found.patients, args) or Shuffled(len(found), size)
        sampler = FixedSteps(sampler, size, args.steps) if args.steps else sampler
        share["with_targets"] = name in method.labelled
        if args.crop:
            streams[name] = CropStream(found, size, device, seed, sampler=sampler, **share)
        else:
            streams[name] = Stream(found, size, device, seed, sampler=sampler, **share)
    return streams, val


def open_sets(method: type[Consumer], args: Namespace, bounds: Sequence[Any]) -> dict[str, AnySet]:
    """The sets that a run reads, by name: "val", unless the method is a pre-training, and one for each of its streams.

    Each knows what its losses may know of the sizes.
    """
    learns = args.mode == "learn"
    streams = method.streams_of(args) if learns else ()
    sets = {}
    if method.segments:
        roots = [args.target_dataset, *([args.source_dataset] if "source" in streams else [])]
        check_class_count(roots, args.n_class)
        folders = parse_folders(args.target_folders, len(bounds))
        check_patients(
            args.target_dataset, folders[0].folder, args.grp_regex, parse_volume if args.crop else parse_name
        )
        split = "test" if args.ontest else "train" if args.ontrain else "val"
        sets["val"] = lay_bounds(open_split(method, "val", split, args, len(bounds)), bounds, required=False)
        if args.scores == "volume" and sets["val"].has_truth:
            tell_places(sets["val"], args.debug)
    for name in streams:
        found = join([open_split(method, name, split, args, len(bounds)) for split in splits_of(name, args)])
        if args.n_labelled and name in method.labelled:
            found = found.keep(labelled_rows(found, args))
        if args.debug and not method.segments:
            found = found.keep(rows_of(found, sorted(set(found.patients))[:DEBUG_VOLUMES]))
        sets[name] = lay_bounds(found, bounds) if bounds and name != "unlabelled" else found
    for name in ("val", *method.labelled):
        must_have_classes(sets.get(name), args.ignore)
    return sets


def must_have_classes(found: AnySet | None, ignore: int | None) -> None:
    """Raises UserError if every pixel of the ground truth is to be ignored: it can teach and score nothing."""
    truths = [folder for folder in found.folders[1:] if not folder.is_map] if found and ignore is not None else []
    for folder in dict.fromkeys(truths):
        if not any((found.labels([row], folder)[0] != ignore).any() for row in range(len(found))):
            raise UserError(
                f"Every pixel of {found.root / found.split / folder.folder} is {ignore}, which --ignore takes for no "
                "class: nothing can be learnt from it, or scored. Mend the ground truth, or leave --ignore out."
            )


def tell_places(found: AnySet, debug: bool) -> None:
    """Says once what a reader must know of the distances between slices.

    With `debug` only a few slices are read, so gaps between them mean nothing.
    """
    whole = not debug and is_split_by_patients(read_card(found.root))
    for line in about_places(numbers_of(found.patients, found.numbers), found.contradicted, whole):
        tell_once(line)


def splits_of(name: str, args: Namespace) -> list[str]:
    """The splits that a stream reads."""
    if name == "unlabelled":
        return [args.unlabelled_split]
    if name == "target" and args.trainval:
        return ["train", "val"]
    return ["val"] if name == "target" and args.valonly else ["train"]


def open_split(method: type[Consumer], name: str, split: str, args: Namespace, n_loss: int) -> AnySet:
    """One split of the set that a stream reads, opened and checked."""
    texts = {"val": args.val_target_folders, "source": args.source_folders}
    roots = {"source": args.source_dataset, "unlabelled": args.unlabelled_dataset}
    text, root = texts.get(name) or args.target_folders, roots.get(name) or args.target_dataset
    regex = args.source_regex or args.grp_regex if name == "source" else args.grp_regex
    blind = name == "unlabelled" or not method.segments
    folders = [parse_image_folder(text)] if blind else parse_folders(text, n_loss)
    if len(folders) == 1 and name in method.labelled:
        raise UserError(
            f"--method {args.method} learns from labels, and the folders {text} of {root} are the images alone: name "
            "the ground truth too, or take a method that needs none (sfda)."
        )
    limit = DEBUG_SLICES if args.debug and method.segments else None
    if args.crop:
        return open_volumes(root, split, folders, args.n_class, regex, args.crop, limit, ignore=args.ignore)
    wide = name == "val" and args.scores == "iou"
    return open_slices(root, split, folders, args.n_class, regex, limit, ignore=args.ignore, any_truth_size=wide)


def labelled_rows(found: AnySet, args: Namespace) -> list[int]:
    """The rows of --n_labelled volumes of the set, drawn by the number --draw."""
    volumes = list(dict.fromkeys(found.patients))
    if args.n_labelled > len(volumes):
        raise UserError(
            f"--n_labelled {args.n_labelled}, but {found.root / found.split} holds {counted(len(volumes), 'volume')}: "
            f"{listing(volumes)}."
        )
    order = np.random.default_rng(args.draw).permutation(sorted(volumes))
    return rows_of(found, order[: args.n_labelled].tolist())


def rows_of(found: AnySet, volumes: Sequence[str]) -> list[int]:
    """The rows of the slices of these volumes."""
    chosen = set(volumes)
    return [row for row, volume in enumerate(found.patients) if volume in chosen]


def check_channels(sets: Mapping[str, AnySet], wanted: int) -> None:
    """Raises UserError for images of another number of channels than --modalities, or than those of another set."""
    counts = {name: found.shape[0] for name, found in sets.items()}
    if len({*counts.values(), wanted or next(iter(counts.values()))}) > 1:
        told = ", ".join(f"{count} in {sets[name].root}/{sets[name].split}" for name, count in counts.items())
        asked = f"--modalities {wanted}" if wanted else "one number of channels"
        raise UserError(f"Expected images of {asked}, found {told}; slice them anew with the same --image volumes.")
    if "unlabelled" in sets and sets["target"].shape != (shape := sets["unlabelled"].shape):
        raise UserError(
            f"Images with and without labels are in one batch, but those of {sets['target'].root} have size "
            f"{sets['target'].shape[1:]}, those of {sets['unlabelled'].root} {shape[1:]}; slice both to one size."
        )


# Of a card: what it tells of its volumes one by one.
LONG = ("sources", "counts", "split", "foreground_cut_away", "placed_labels", "stored_as", "guessed_directions")


def describe_preprocessing(args: Namespace) -> dict[str, Any]:
    """How an image of the set that the run is evaluated on came from its volume to the network, in plain types.

    card     the set's dataset.json without what it tells of single volumes; empty where there is none
    image    folder and transform of the images
    crop     size of the windows of a volumetric run, else None; `overlap` of them
    """
    image = parse_image_folder(args.val_target_folders or args.target_folders)
    card = {name: value for name, value in read_card(args.target_dataset).items() if name not in LONG}
    return {
        "card": card,
        "image": [image.folder, image.transform],
        "crop": args.crop and list(args.crop),
        "overlap": args.overlap,
    }


ZSCORED = (-4.0, 4.5)  # grey levels that the published heart recipe brings to 0..1
SAMPLED = 16  # slices that are looked at


def grey_note(found: AnySet) -> str:
    """What to say of slices that are read as stored and look as if they had mean 0 and sd 1; '' of all others.

    The published transform of that name, nii_transform, takes such images to 0..1. A set whose card tells how its
    grey levels were made is as it is on purpose.
    """
    image, card = found.folders[0], read_card(found.root)
    if isinstance(found, VolumeSet) or TRANSFORMS[image.transform] is not nii_transform or "normalisation" in card:
        return ""
    rows = np.linspace(0, len(found) - 1, min(len(found), SAMPLED)).astype(int)
    seen = np.stack([found.image(row) for row in rows])
    low, high = float(seen.min()), float(seen.max())
    if not ZSCORED[0] <= low < -0.5 < high <= ZSCORED[1]:
        return ""
    return (
        f"{found.root / found.split / image.folder}: grey levels from {low:.2f} to {high:.2f}, as of images of mean 0 "
        "and standard deviation 1, read as they are stored. The published nii_transform, of the heart, makes them "
        "(x + 4) / 8.5: name nii_zscore_transform, or give --published sfda, for that."
    )


def label_uses(method: type[Consumer], args: Namespace) -> dict[str, str]:
    """Set -> in what way labels shaped its images (a crop round them, a scale by them), as the sets' cards tell.

    Of every set that the run reads; one whose images no label has touched is left out.
    """
    streams = method.streams_of(args) if args.mode == "learn" else ()
    others = {"source": args.source_dataset, "unlabelled": args.unlabelled_dataset}
    roots = [args.target_dataset, *(root for name, root in others.items() if root and name in streams)]
    cards = {root: read_card(root) for root in dict.fromkeys(roots)}
    told = {root: card["uses_labels"] for root, card in cards.items() if card.get("uses_labels")}
    return {str(cards[root].get("name") or root.name): str(how) for root, how in told.items()}


def describe_inputs(
    args: Namespace, streams: Mapping[str, AnyStream], val: Stream | WholeStream | None
) -> dict[str, str]:
    """SHA-256 of everything that the run reads, and of what turns it: what makes it this run and no other."""
    inputs = {"val": val.slices.digest} if val else {}
    inputs |= {name: stream.slices.digest for name, stream in streams.items()}
    read = [*streams.values(), *([val] if val else [])]
    for name in sorted({spec.transform for stream in read for spec in stream.slices.folders}):
        inputs[f"code of {name}"] = source_hash([TRANSFORMS[name]])
    for name, stream in streams.items():
        laid = b"".join(bound.tobytes() for bound in stream.slices.bounds if bound is not None)
        inputs |= {f"bounds of {name}": hashlib.sha256(laid).hexdigest()} if laid else {}
    for name in ("model_weights", "backbone_weights"):
        if getattr(args, name):
            inputs[name] = sha256_of(Path(getattr(args, name)))
    return inputs
