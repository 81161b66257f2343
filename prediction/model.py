"""A network out of its checkpoint, with what it wants of an image, and its probabilities."""

import itertools
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datasets.grey_matching import SHARE, SourceLevels, levels_to_match
from datasets.set_tables import read_card
from datasets.transforms import FolderSpec, parse_image_folder
from files.run_names import CHOSEN
from nets.bundle import read_bundle
from nets.checkpoint_files import load_checkpoint, require
from nets.decoding import DECODED
from nets.expected_dice import ExpectedDice, expected_dice
from nets.network_folder import MANIFEST, WEIGHTS
from nets.precision import AUTOCAST, PRECISIONS, allow_tf32
from nets.probabilities import log_probabilities
from nets.sliding_window import sliding_logits, sliding_window
from networks import network_of
from prediction.card_values import PLANE, check_card, mistyped
from prediction.nnunet_plan import ENTRY, NnunetPlan
from prediction.orientation import STORED, directions_of
from preprocess.slicing.spec import cut_round_labels
from processes.errors import UserError
from utils import fits

PREPROCESSING = {"card": Mapping[str, Any], "image": Sequence[str], "crop": Sequence[int] | None, "overlap": float}
PREPROCESSING |= {SHARE: float}
FLIPS = {"D": -3, "W": -2, "H": -1}  # axis of an image from its end


@dataclass(frozen=True)
class Recipe:
    """How a volume becomes the network's input.

    card     dataset.json of the set that the network was evaluated on
    image    folder and transform of its images
    crop     (D, W, H) of the windows of a volumetric network, else None; `overlap` of them
    directions  that the axes of a volume are turned to, as in LPS; None: it is taken as it is stored
    plan     of nnU-Net, whose images, windows and mirroring are its own; None for all other networks
    """

    card: Mapping[str, Any]
    image: FolderSpec
    crop: tuple[int, int, int] | None
    overlap: float
    directions: str | None
    plan: NnunetPlan | None = None

    @property
    def window(self) -> tuple[int, ...] | None:
        """Of what the network is given at a time; None: the whole image."""
        return tuple(self.plan.window) if self.plan else self.crop or self.tile

    @property
    def tile(self) -> tuple[int, int] | None:
        """(W, H) of the windows of a network that saw planes cut round their labels: other planes are given whole."""
        size = self.card.get("cut", self.card).get("size")
        return tuple(size) if self.crop is None and size and cut_round_labels(self.card) else None

    @property
    def channels(self) -> int | None:
        """Images of a patient that are put together; None for volumes, whose files may hold several."""
        return self.card.get("channels", {}).get(self.image.folder) if self.crop is None or self.plan else None


@dataclass(frozen=True)
class Model:
    """A network in evaluation mode, and how it is called.

    windows: of a volumetric network at a time
    flips: of D, W, H: the probabilities are the mean over the image and its mirror images along them
    told: what its source bundle tells of how good masks are, or in words why it tells nothing
    decode: how its probabilities become classes, a key of DECODERS
    levels: what the grey levels of a patient are matched to; None: they stay
    labels: what the classes are called, the background first
    """

    net: nn.Module
    recipe: Recipe
    in_channels: int
    n_class: int
    network: str
    device: torch.device
    precision: str = "fp32"
    windows: int = 1
    flips: tuple[str, ...] = ()
    told: ExpectedDice | str = ""
    decode: str = "argmax"
    levels: SourceLevels | None = None
    labels: tuple[str, ...] = ()

    @torch.inference_mode()
    def log_probabilities(self, image: Tensor) -> Tensor:
        """(B, C, W, H) or (B, C, D, W, H), float32 on the device -> (B, K, …) float32."""
        if self.recipe.plan:
            return self._as_nnunet(image)
        if not self.flips:
            return self._forward(image)
        mirrored = self._mirrored()
        total = sum(self._forward(image.flip(axes)).exp().flip(axes) for axes in mirrored)
        return (total / len(mirrored)).clamp_min(torch.finfo(torch.float32).tiny).log()

    def _mirrored(self) -> list[tuple[int, ...]]:
        """The axes that each mirror image is mirrored along, the image itself first."""
        axes = [FLIPS[name] for name in self.flips]
        return [chosen for n in range(len(axes) + 1) for chosen in itertools.combinations(axes, n)]

    def _forward(self, image: Tensor) -> Tensor:
        with self._autocast():
            window = self.recipe.window
            if window is None:
                return log_probabilities(self.net(image))
            return log_probabilities(sliding_window(self.net, image, window, self.recipe.overlap, self.windows))

    def _as_nnunet(self, image: Tensor) -> Tensor:
        """Mirrors each window, not the image, and takes the mean of logits, not of probabilities."""
        mirrored = self._mirrored()

        def predict(window: Tensor) -> Tensor:
            return sum(self.net(window.flip(axes)).float().flip(axes) for axes in mirrored) / len(mirrored)

        with self._autocast():
            return sliding_logits(predict, image, self.recipe.window, self.recipe.overlap, self.windows)

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = AUTOCAST.get(self.precision)
        return torch.autocast(self.device.type, dtype) if dtype else nullcontext()


def checkpoint_of(path: Path) -> Path:
    """The checkpoint that --weights means. Raises UserError for a folder that holds none, and tells which it takes."""
    if not path.is_dir():
        return path
    names = (CHOSEN, "last.pkl", "chosen/last.pkl")
    file = next((path / name for name in names if (path / name).is_file()), None)
    if file is None:
        raise UserError(
            f"{path} holds none of {', '.join(names)}: name a checkpoint with --weights, the folder of a finished run, "
            "or a folder of runs in which `make … chosen` chose one network."
        )
    print(f"The network is {file}.", flush=True)
    return file


def manifest_of(folder: Path) -> Path:
    """The manifest of the bundle that --bundle means. Raises UserError for what is none."""
    if not (folder / MANIFEST).is_file():
        what = "is no folder" if not folder.is_dir() else f"has no {MANIFEST}"
        raise UserError(
            f"--bundle {folder} {what}: a bundle is what make … bundle makes, a folder with {MANIFEST} and {WEIGHTS}. "
            "A checkpoint, or a run's folder, is named with --weights."
        )
    return folder / MANIFEST


def load_model(
    weights: Path,
    device: str,
    *,
    precision: str | None = None,
    windows: int = 1,
    flips: tuple[str, ...] | None = None,
    decode: str | None = None,
    like: Path | None = None,
    orient: str | None = None,
) -> Model:
    """The network of a checkpoint of main.py, or of a bundle, by its manifest.

    precision: auto, fp32, tf32, bf16 or fp16; by default that of the run, where the device has it
    flips: axes to mirror along, of FLIPS; by default none, and those of its plan for a network of nnU-Net
    decode: a key of DECODERS; by default that of the run
    like: a set's folder, whose card is taken instead of the checkpoint's
    orient: directions of its axes, or 'stored', where neither card tells them

    Raises UserError for a file that is no such checkpoint, and for one that does not tell how images were made.
    """
    state = load_checkpoint(weights)
    require(weights, state, ("network", "in_channels", "n_class"))
    recipe = read_recipe(state, weights, like, orient)
    flips = flips_of(recipe, flips)
    net = network_of(state, weights)
    identity = state.get("identity", {})
    noted = identity.get("precision", "fp32")
    precision = precision or (noted if noted in PRECISIONS else "fp32")
    if precision == "fp16" and not device.startswith("cuda"):
        precision = "fp32"
    allow_tf32(precision)
    decode = decode or ("dice" if identity.get("decode") == "dice" else "argmax")
    return Model(
        net.eval().requires_grad_(False).to(device),
        recipe,
        *(state[name] for name in ("in_channels", "n_class", "network")),
        torch.device(device),
        precision,
        windows,
        flips,
        expected_dice(read_bundle(state)) if decode == "argmax" else DECODED,
        decode,
        levels_to_match(state, None),
        label_names(state, recipe.card),
    )


def stored_as_planned(card: Mapping[str, Any]) -> str | None:
    """nnU-Net takes volumes as they are stored, unless its reader turns them."""
    return STORED if ENTRY in card and not card.get("orient") else None


def flips_of(recipe: Recipe, asked: tuple[str, ...] | None) -> tuple[str, ...]:
    """The axes to mirror along. Raises UserError for D of a network that sees planes."""
    planes = len(recipe.window) == 2 if recipe.window else True
    if planes and "D" in (asked or ()):
        raise UserError("--flip D mirrors volumes, and this network sees their planes, which have W and H.")
    if asked is None and recipe.plan:
        return tuple(("W", "H")[axis] if planes else "DWH"[axis] for axis in recipe.plan.mirror)
    return asked or ()


def label_names(state: Mapping[str, Any], card: Mapping[str, Any]) -> tuple[str, ...]:
    """What the classes are called, by a bundle's manifest, else by the set's card, else "class 1", "class 2", …"""
    n_class = state["n_class"]
    for names in (state.get("labels"), card.get("class_names")):
        if fits(names, Sequence[str]) and len(names) == n_class:
            return tuple(names)
    return ("background", *(f"class {k}" for k in range(1, n_class)))


def check_recipe(recipe: Mapping[str, Any], weights: Path) -> None:
    """Raises UserError for an entry "preprocessing" that main.py did not write."""
    wrong = mistyped((name, recipe[name], kind) for name, kind in PREPROCESSING.items() if name in recipe)
    crop, overlap = recipe.get("crop"), recipe.get("overlap", 0.5)
    if not wrong and crop is not None and not (len(crop) == 3 and min(crop) > 0 and math.prod(crop) <= PLANE):
        wrong.append(f"crop is {crop}, expected D, W and H in voxels")
    if not wrong and not 0 <= overlap < 1:
        wrong.append(f"overlap is {overlap:g}, expected 0 to below 1")
    if not wrong and not -1 <= recipe.get(SHARE, 0) <= 1:
        wrong.append(f"{SHARE} is {recipe[SHARE]:g}, expected -1 to 1")
    if wrong:
        raise UserError(f"{weights} tells what cannot be of the network's images: {'; '.join(wrong)}.")


def read_recipe(state: Mapping[str, Any], weights: Path, like: Path | None, orient: str | None = None) -> Recipe:
    """What a checkpoint, or the card of the set `like`, tells of images. Raises UserError if neither does."""
    if like and not (like / "dataset.json").is_file():
        what = "it has no dataset.json" if like.is_dir() else "there is no such folder"
        raise UserError(f"--like {like}: {what}. Name a set of this program, as --like data/prostate_target.")
    told, identity = state.get("preprocessing", {}), state.get("identity", {})
    check_recipe(told, weights)
    card = read_card(like) if like else told.get("card", {})
    check_card(card, f"The card of {like or weights}")
    crop = told.get("crop", identity.get("crop"))
    known = card.get("axes") if crop else card.get("normalisation")
    folders = told.get("image") or identity.get("val_target_folders") or identity.get("target_folders")
    if not known or not folders:
        where = f"the dataset.json of {like}" if like else str(weights)
        tool = "preprocess.volume_set" if crop else "preprocess.slice_volumes"
        raise UserError(
            f"{where} does not tell how the network's images were made of volumes (orientation, grey levels, size), "
            "without which a prediction is worthless: the checkpoint is of an older version, or its set has no "
            f"dataset.json of python -m {tool}. Give --like FOLDER, a set that was made the same way, as "
            "--like data/prostate_target."
        )
    image = parse_image_folder(str([(*folders, False)]) if isinstance(folders, list) else str(folders))
    overlap = told.get("overlap", identity.get("overlap", 0.5))
    home = like or (Path(str(identity["target_dataset"])) if identity.get("target_dataset") else None)
    directions = directions_of(card, f"The card of {like or weights}", home, orient or stored_as_planned(card))
    plan = NnunetPlan.from_card(card, f"The card of {like or weights}")
    return Recipe(card, image, crop and tuple(crop), overlap, directions, plan)
