"""A network adapted to the very volumes it is to predict: made a set, given a size prior, trained on without labels.

    OUT/adaptation/set         the volumes as slices, or as they are, made as those of the network's own set
    OUT/adaptation/sizes.csv   the size of each class in each of them, where --prior_mm2 or --prior_mm3 gives it
    OUT/adaptation/run         the run: parameters, log, checkpoints

The run is one of main.py with --method sfda and the published loss, on grey levels in which the network is at home
(--match_source auto); what is there already is gone on with. A network of nnU-Net gets its images prepared as nnU-Net
does. One of volumes may be told no sizes: it then learns from two views of each window, --method consistency.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from datasets.grey_matching import AUTO
from datasets.set_tables import read_card
from datasets.size_table import WITHOUT_TAGS
from files.pairing import Case
from prediction.model import Model, Recipe
from prediction.nnunet_preparation import PlannedPreparation
from prediction.outputs import MADE_WITH, PROGRAM
from prediction.preparation import preparation
from prediction.prepared_set import describe as describe_prepared
from prediction.prepared_set import write_prepared_set
from prediction.volumes import digest
from preprocess.packing import IMAGE, VolumeSpec
from preprocess.size_priors import Prior, make_prior
from preprocess.slice_volumes import slice_set
from preprocess.slicing.spec import Blocks, SliceSpec
from preprocess.slicing.tables import describe
from preprocess.volume_set import describe as describe_volumes
from preprocess.volume_set import make_volume_set
from processes.errors import UserError
from processes.lock import locked
from processes.ownership import begin
from utils import listing, load_npy

SLICE_NAME = r"^(.+)_(\d+)$"  # as the slicer names them
VOLUME_NAME = r"^(.+)$"
CROPS = 2  # of volumes in a batch, at most
ENTROPY_SHARE = 0.1  # weight of the background in the entropy, as published; the rest goes to the classes from 1


def add_adaptation_flags(add: Callable[..., Any]) -> None:
    add("--adapt", action="store_true", help="first adapt the network to these volumes, in OUT/adaptation")
    add("--prior_mm2", type=float, nargs="+", metavar="MM2", help="area of each class from 1 in a slice that shows it")
    add("--prior_mm3", type=float, nargs="+", metavar="MM3", help="volume of each class from 1, taken for a ball's")
    add("--sizes", type=Path, metavar="CSV", help="sizes slice by slice, <patient>_<number>, with --prior_column")
    add("--prior_column", metavar="NAME", help="the column of --sizes that is the prior")
    add("--n_epoch", type=int, default=100, help="of the adaptation (default %(default)s)")
    add("--l_rate", type=float, default=1e-6, help="of the adaptation (default %(default)s, as published)")


@dataclass(frozen=True, kw_only=True)
class Adapting:
    """What is adapted, to which volumes, and how, under the names of the flags."""

    weights: Path
    out: Path
    overwrite: bool
    device: str
    batch_size: int
    prior_mm2: Sequence[float] | None
    prior_mm3: Sequence[float] | None
    sizes: Path | None
    prior_column: str | None
    n_epoch: int
    l_rate: float


def refuse_idle_sizes(flags: Mapping[str, Any]) -> None:
    """Raises UserError for sizes of the classes where nothing is adapted: who gives them means --adapt."""
    if not flags["adapt"] and (given := sizes_given(flags)):
        raise UserError(f"--{given[0]} is for --adapt alone: give that too, or leave it out.")


def sizes_given(flags: Mapping[str, Any]) -> list[str]:
    """Which of the flags that tell how large the classes are stand in these."""
    return [name for name in ("prior_mm2", "prior_mm3", "sizes") if flags[name] is not None]


Train = Callable[[Mapping[str, Any]], None]  # what trains a run whose flags have these values


def adapt(adapting: Adapting, model: Model, cases: Sequence[Case], train: Train) -> Path:
    """Adapts the network and returns the file of its weights.

    Raises UserError if something lacks, or if slicing fails.
    """
    _check(adapting, model, len(cases))
    place = adapting.out / "adaptation"
    if (adapting.out / MADE_WITH).exists() and not place.exists() and not adapting.overwrite:
        raise UserError(
            f"{adapting.out} holds predictions of a network that was not adapted here; name another --out, or give "
            "--overwrite."
        )
    begin(adapting.out, PROGRAM)
    with locked(place):
        return _adapt(place, adapting, model, cases, train)


def _adapt(place: Path, adapting: Adapting, model: Model, cases: Sequence[Case], train: Train) -> Path:
    recipe = model.recipe
    is_3d = recipe.crop is not None
    card = _made(place / "set", recipe, cases)
    if "val" not in card["counts"]:
        raise UserError(
            "--adapt learns from some slices and watches itself on others, and there is but one slice, of "
            f"{listing(case.patient for case in cases)}. Give it more --volumes, or predict without --adapt."
        )
    sized = bool(sizes_given(vars(adapting)))
    flags = {
        "target_dataset": place / "set",
        "target_folders": repr([(_folder(recipe), recipe.image.transform, False)]),
        "grp_regex": VOLUME_NAME if is_3d else SLICE_NAME,
        "workdir": place / "run",
        "model_weights": adapting.weights,
        "match_source": AUTO,
        "network": model.network,
        "n_class": model.n_class,
        "device": adapting.device,
        "precision": model.precision,
        "decode": model.decode,
        "n_epoch": adapting.n_epoch,
        "l_rate": adapting.l_rate,
        "resume": True,  # a second call goes on with the first
        **(_by_sizes(place, adapting, model) if sized else _by_consistency(adapting, model)),
    }
    if is_3d and sized:  # a crop that holds each volume, as the sizes are those of whole volumes
        flags |= {"crop": _largest(place / "set", recipe), "overlap": recipe.overlap, "batch_size": 1}
    elif sized:
        flags |= {"trainval": True, "batch_size": adapting.batch_size}  # every volume is learnt from
    print(f"Adapting to {_described(card, recipe)}", flush=True)
    train(flags)
    return place / "run" / "last.pkl"


def _by_sizes(place: Path, adapting: Adapting, model: Model) -> dict[str, Any]:
    """The flags of an adaptation that a prior tells how large the classes are."""
    sizes, column = _prior(place, adapting, model)
    told = {"sizefile": str(sizes), "predcol": column, "margin": 0, "dir": "high", "mode": "percentage"}
    terms = {"lamb_se": 1, "lamb_consprior": 1, "weights_se": _shares(model), "power": 1}
    return {
        "method": "sfda",
        "target_losses": repr([("EntKLProp", terms, "PredictionBounds", told, "norm_soft_size", 1)]),
    }


def _by_consistency(adapting: Adapting, model: Model) -> dict[str, Any]:
    """The flags of an adaptation to windows of volumes, in which nobody knows how large a class is."""
    return {
        "method": "consistency",
        "target_losses": repr([("SelfEntropy", {"weights": _shares(model)}, 1)]),  # is shown alone
        "crop": list(model.recipe.window),
        "overlap": model.recipe.overlap,
        "batch_size": min(adapting.batch_size, CROPS),
    }


def _shares(model: Model) -> list[float]:
    """Of the classes in the entropy."""
    return [ENTROPY_SHARE, *[(1 - ENTROPY_SHARE) / (model.n_class - 1)] * (model.n_class - 1)]


def _described(card: Mapping[str, Any], recipe: Recipe) -> str:
    """A line on the set that was made."""
    if recipe.plan:
        return describe_prepared(card)
    return describe(card) if recipe.crop is None else describe_volumes(card)


def _folder(recipe: Recipe) -> str:
    """The folder of the images in the set that is made."""
    return recipe.image.folder if recipe.crop is None or recipe.plan else IMAGE


def _check(adapting: Adapting, model: Model, count: int) -> None:
    """Raises UserError where there is something that the adaptation of this network to so many patients lacks."""
    given = sizes_given(vars(adapting))
    if model.recipe.crop is not None:
        if given == ["prior_mm2"]:
            raise UserError(
                "--prior_mm2 is the area of a class in a slice, and this network takes volumes: give --prior_mm3, the "
                "volume of each class from 1, or --sizes CSV --prior_column NAME, in voxels, patient by patient."
            )
        if count < 2:
            raise UserError(
                "--adapt learns from some volumes and watches itself on the last, and there is but one. Give it more "
                "--volumes, or predict without --adapt."
            )
    if model.recipe.tile:
        raise UserError(
            "--adapt cuts slices to the size that the network was trained on, and its training set was cut round the "
            "labels (--centre labels), which these volumes do not have: in a cut round their middle an organ may be "
            "lost. Slice them with python -m preprocess.slice_volumes at a --size that holds the organ, adapt with "
            "main.py --method sfda, then predict with its weights."
        )
    if not given and model.recipe.plan and model.recipe.crop is not None:
        return
    if len(given) != 1 or (adapting.sizes is None) != (adapting.prior_column is None):
        raise UserError(
            "--adapt needs to know how large each class is: give --prior_mm2 (its area in a slice), --prior_mm3 (its "
            f"volume), or --sizes CSV --prior_column NAME (slice by slice), one of them; got {listing(given) or 'none'}"
            "."
        )


def _made(dest: Path, recipe: Recipe, cases: Sequence[Case]) -> Mapping[str, Any]:
    """Makes the set unless it is there, and returns its card. Raises UserError for a set of other volumes."""
    if not dest.exists() and recipe.plan:
        return write_prepared_set(dest, PlannedPreparation(recipe, recipe.plan), cases)
    if not dest.exists():
        return _slice(dest, recipe, cases) if recipe.crop is None else _pack(dest, recipe, cases)
    card = read_card(dest)
    files = {(path.resolve(), digest(path)) for case in cases for path in case.paths.values()}
    if {(Path(source["path"]).resolve(), source["sha256"]) for source in card["sources"]} != files:
        raise UserError(
            f"{dest} was made of other volumes than these; remove {dest.parent} (rm -r), or name another --out."
        )
    return card


def _slice(dest: Path, recipe: Recipe, cases: Sequence[Case]) -> Mapping[str, Any]:
    spec = preparation(recipe, dest).spec
    return slice_set(
        replace(
            spec,
            size=spec.size or _usual_size(spec, recipe),
            val=1 if len(cases) > 1 else 0,
            split_by_blocks=None if len(cases) > 1 else Blocks(1, 2),  # of one volume
        ),
        _by_role(cases, spec.folders()[recipe.image.folder]),
    )


def _pack(dest: Path, recipe: Recipe, cases: Sequence[Case]) -> Mapping[str, Any]:
    """A set of the whole volumes, turned and scaled as those of the network's own set; the last one is watched."""
    spec = VolumeSpec(
        dest,
        ("",) * len(cases[0].paths),
        None,
        VOLUME_NAME,
        orient=recipe.directions,
        axes=tuple(recipe.card["axes"]),
        channels=tuple(recipe.card.get("kept_channels", ())),
        train=len(cases) - 1,
        phantom=recipe.card.get("phantom"),
    )
    return make_volume_set(spec, _by_role(cases, spec.roles(spec.image)), recipe.card)


def _by_role(cases: Sequence[Case], roles: Iterable[str]) -> list[Case]:
    """The cases with their files under these roles, in their order."""
    roles = [*roles]
    return [Case(case.patient, dict(zip(roles, case.paths.values(), strict=True))) for case in cases]


def _largest(folder: Path, recipe: Recipe) -> list[int]:
    """D, W and H of a crop that holds each volume of a set, and is no smaller than the network's own."""
    volumes = [load_npy(path, mmap_mode="r") for path in folder.glob(f"*/{_folder(recipe)}/*.npy")]
    return np.max([recipe.crop, *(volume.shape[-3:] for volume in volumes)], axis=0).tolist()


def _usual_size(spec: SliceSpec, recipe: Recipe) -> tuple[int, int] | None:
    """Slices are of one size: where the set's came from volumes of one size, these are cut to it."""
    return None if spec.resize else tuple(recipe.card["size"])


def _prior(place: Path, adapting: Adapting, model: Model) -> tuple[Path, str]:
    """Makes the csv of sizes unless it is there. Returns it and the name of its column."""
    if adapting.sizes is not None:
        return adapting.sizes, adapting.prior_column
    path = place / "sizes.csv"
    path.unlink(missing_ok=True)
    make_prior(
        Prior(
            data=place / "set",
            folder=_folder(model.recipe),
            unlabelled=True,
            out=path,
            n_class=model.n_class,
            constant_mm2=adapting.prior_mm2,
            constant_mm3=adapting.prior_mm3,
        )
    )
    return path, WITHOUT_TAGS
