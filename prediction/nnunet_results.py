"""A folder of results of nnU-Net v2 as a checkpoint of this program.

    FOLDER/plans.json  FOLDER/dataset.json  FOLDER/fold_0/checkpoint_final.pth

Of the checkpoint its weights and three plain entries are read. It is a pickle, and nothing in it is run: what it names
beside tensors must be numpy's numbers and the like (`ALLOWED`), or the file is refused. The optimiser stays behind.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from files.foreign import read_json
from nets.checkpoint_files import load_chosen
from nets.dynamic import own_names
from nets.filling import fitting_weights
from nets.weight_checks import check_weights, unwrapped
from networks import ghost_network
from prediction.nnunet_plan import ENTRY, OF_CT, NnunetPlan
from preprocess.layouts.nnunet import read_labels
from processes.errors import UserError
from utils import described, fits, listing

SCALAR = np.float64(0).__reduce__()[0]  # what numpy's pickles make a number of
NUMBERS = {f"numpy.dtypes {type(np.dtype(kind)).__name__}": type(np.dtype(kind)) for kind in ("f8", "f4", "i8", "?")}
ALLOWED: dict[str, Any] = {
    "numpy._core.multiarray scalar": SCALAR,
    "numpy.core.multiarray scalar": (SCALAR, "numpy.core.multiarray.scalar"),
    "numpy dtype": np.dtype,
    "torch device": torch.device,
    "_codecs encode": None,  # these torch knows as harmless itself
    **NUMBERS,
}
ENTRIES = {"network_weights": Mapping[str, Any], "configuration": str, "mirror": Sequence[int] | None}
CURE = "expected the one that nnU-Net v2 writes"
NETWORKS = {"PlainConvUNet": "n_conv_per_stage", "ResidualEncoderUNet": "n_blocks_per_stage"}
USUAL = {
    "conv_bias": True,
    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
    "dropout_op": None,
    "nonlin": "torch.nn.LeakyReLU",
    "nonlin_kwargs": {"inplace": True},
}
READERS = {"SimpleITKIO": None, "NibabelIO": None, "SimpleITKIOWithReorient": "RAS", "NibabelIOWithReorient": "RAS"}
RESAMPLERS = ("resampling_fn_data", "resampling_fn_probabilities")
KIND = "resample_data_or_seg_to_shape"
PREPROCESSOR = "DefaultPreprocessor"


def checkpoint_of_nnunet(folder: Path, fold: str, name: str) -> dict[str, Any]:
    """The checkpoint of this network. Raises UserError for what is missing, foreign, or cannot be done here.

    fold: 0, 1, … or all; name: of the file in its folder
    """
    plans, card = (read_json(folder / each, CURE) for each in ("plans.json", "dataset.json"))
    path = folder / f"fold_{fold}" / name
    state = _read(path)
    told = _configuration(plans, state["configuration"], folder / "plans.json")
    names = _class_names(card, folder / "dataset.json")
    plan = _plan(plans, told, state["mirror"], folder / "plans.json")
    built = (_network(told, folder / "plans.json"), len(plan.schemes), len(names))
    check_weights(path, state["network_weights"])
    weights = own_names(unwrapped(state["network_weights"], {}))
    network = dict(zip(("network", "in_channels", "n_class"), built, strict=True))
    net = fitting_weights(ghost_network(*built), path, *built, {**network, "net": weights})
    return {
        **network,
        "net": net,
        "epoch": 0,
        "labels": names,
        "preprocessing": {
            "card": _card(plans, card, plan, names, folder),
            "image": ["IMG", "nii_transform"],
            "crop": list(plan.window) if len(plan.window) == 3 else None,
            "overlap": 0.5,
        },
    }


def _chosen(state: Any) -> dict[str, Any]:
    """Of the dict that nnU-Net saves."""
    whole = state if isinstance(state, Mapping) else {}
    args = whole.get("init_args")
    found = {"network_weights": whole.get("network_weights"), "mirror": whole.get("inference_allowed_mirroring_axes")}
    return found | {"configuration": args.get("configuration") if isinstance(args, Mapping) else None}


def _read(path: Path) -> dict[str, Any]:
    """What is wanted of the checkpoint."""
    if not path.is_file():
        there = sorted(each.relative_to(path.parents[1]) for each in path.parents[1].glob("fold_*/*.pth"))
        raise UserError(f"There is no {path}; there {'are ' + listing(there) if there else 'is none in any fold'}.")
    state = load_chosen(path, ALLOWED, _chosen)
    wrong = [
        f"{name} is {type(state[name]).__name__}, expected {described(kind)}"
        for name, kind in ENTRIES.items()
        if not fits(state[name], kind)
    ]
    if wrong:
        raise UserError(f"{path} is no checkpoint of nnU-Net v2: {'; '.join(wrong)}.")
    return state


def _configuration(plans: Mapping[str, Any], name: Any, path: Path) -> dict[str, Any]:
    """The settings of a configuration, with those that it inherits."""
    known = plans.get("configurations")
    found: dict[str, Any] = {}
    while (
        fits(known, Mapping[str, Any])
        and isinstance(known.get(name), Mapping)
        and len(known) > len(found.get("way", ()))
    ):
        found = {**known[name], **found, "way": (*found.get("way", ()), name)}
        parent = known[name].get("inherits_from")
        if parent is None:
            break
        name = parent
    lacking = [
        each for each in ("patch_size", "spacing", "normalization_schemes", "use_mask_for_norm") if each not in found
    ]
    if lacking:
        raise UserError(f"{path} does not tell {listing(lacking)} of the configuration {name!r}, {CURE}.")
    if found.get("previous_stage"):
        raise UserError(
            f"{path}: {found['way'][0]} is the second network of a cascade, which sees the masks of another. Import "
            "3d_lowres or 3d_fullres."
        )
    return found


def _class_names(card: Mapping[str, Any], path: Path) -> list[str]:
    """What the classes are called, the background first."""
    told = card.get("labels")
    names, _, _ = read_labels(told, path)
    if regions := [name for name, value in told.items() if isinstance(value, list)]:
        raise UserError(
            f"{path}: the network learnt regions that overlap ({listing(regions, 4)}), and networks here give each "
            "voxel one class. Import a network that learnt labels."
        )
    return [names[label] for label in sorted(names)]


def _network(told: Mapping[str, Any], path: Path) -> str:
    """As --network takes it."""
    found = told.get("architecture") or _of_older_plans(told, path)
    kind = str(found.get("network_class_name")).rpartition(".")[2]
    shape = found.get("arch_kwargs")
    if kind not in NETWORKS or not fits(shape, Mapping[str, Any]):
        raise UserError(f"{path}: the network is a {kind}; {listing(NETWORKS)} are known here.")
    other = [f"{name}={shape.get(name)!r}" for name, value in USUAL.items() if shape.get(name) != value]
    other += [] if "InstanceNorm" in str(shape.get("norm_op")) else [f"norm_op={shape.get('norm_op')!r}"]
    if other:
        raise UserError(f"{path}: the network is built of other layers than nnU-Net's own ({listing(other, 4)}).")
    lists = {
        "widths": shape.get("features_per_stage"),
        "strides": shape.get("strides"),
        "kernels": shape.get("kernel_sizes"),
        "convs": shape.get(NETWORKS[kind]),
        "decoder_convs": shape.get("n_conv_per_stage_decoder"),
    }
    words = ",".join(f"{name}={str(value).replace(' ', '')}" for name, value in lists.items())
    is_3d = len(told["patch_size"]) == 3
    return f"DynamicUNet{'3D' if is_3d else ''}:{words}{',residual=True' if kind.startswith('Residual') else ''}"


def _of_older_plans(told: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The same of plans written before nnU-Net 2.4, which list the numbers alone."""
    try:
        kind, counts = told["UNet_class_name"], told["n_conv_per_stage_encoder"]
        base, most = told["UNet_base_num_features"], told["unet_max_num_features"]
        shape = {
            "features_per_stage": [min(base * 2**stage, most) for stage in range(len(counts))],
            "strides": told["pool_op_kernel_sizes"],
            "kernel_sizes": told["conv_kernel_sizes"],
            NETWORKS.get(kind, "n_conv_per_stage"): counts,
            "n_conv_per_stage_decoder": told["n_conv_per_stage_decoder"],
        }
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} does not tell of what layers the network is ({error!r}), {CURE}.") from error
    return {"network_class_name": kind, "arch_kwargs": {**USUAL, "norm_op": "InstanceNorm", **shape}}


def _plan(plans: Mapping[str, Any], told: Mapping[str, Any], mirror: Any, path: Path) -> NnunetPlan:
    """How images are made."""
    if told.get("preprocessor_name", PREPROCESSOR) != PREPROCESSOR:
        raise UserError(
            f"{path}: volumes are prepared by {told['preprocessor_name']}; {PREPROCESSOR} alone is known here."
        )
    levels = plans.get("foreground_intensity_properties_per_channel")
    levels = levels if fits(levels, Mapping[str, Mapping[str, Any]]) else {}
    schemes = told["normalization_schemes"]
    kept = [
        {name: levels.get(str(channel), {}).get(name) for name in OF_CT} if scheme == "CTNormalization" else {}
        for channel, scheme in enumerate(schemes if isinstance(schemes, list) else ())
    ]
    try:
        return NnunetPlan(
            spacing=told["spacing"],
            transpose=plans.get("transpose_forward", [0, 1, 2]),
            window=told["patch_size"],
            schemes=schemes,
            masked=told["use_mask_for_norm"],
            levels=kept,
            order=_spline(told, RESAMPLERS[0], 3, path),
            scores_order=_spline(told, RESAMPLERS[1], 1, path),
            mirror=list(mirror or ()),
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _spline(told: Mapping[str, Any], name: str, usual: int, path: Path) -> int:
    """The order of the splines that resample. Raises UserError for another way to resample."""
    how = told.get(f"{name}_kwargs", {})
    known = {"is_seg": False, "order_z": 0, "force_separate_z": None}
    if (
        told.get(name, KIND) != KIND
        or not isinstance(how, Mapping)
        or any(how.get(key, v) != v for key, v in known.items())
    ):
        raise UserError(
            f"{path}: images are resampled by {told.get(name)} {how}; {KIND} is known here, as nnU-Net sets it."
        )
    return how.get("order", usual)


def _card(
    plans: Mapping[str, Any], card: Mapping[str, Any], plan: NnunetPlan, names: Sequence[str], folder: Path
) -> dict[str, Any]:
    """What the card of a set that is prepared so tells."""
    reader = str(plans.get("image_reader_writer"))
    if reader not in READERS:
        raise UserError(f"{folder / 'plans.json'}: volumes are read by {reader}; {listing(READERS)} are known here.")
    channels = card.get("channel_names", card.get("modality"))
    words = [str(each)[:60] for each in channels.values()] if isinstance(channels, Mapping) else []
    return {
        "name": str(plans.get("dataset_name", folder.parent.name))[:200],
        "modality": " + ".join(words),
        "n_class": len(names),
        "class_names": list(names),
        "label_map": {str(k): k for k in range(len(names))},
        "other_labels": "error",
        "normalisation": {"kind": ENTRY},
        "images": ["IMG"],
        "channels": {"IMG": len(plan.schemes)},
        "labels": None,
        "orient": READERS[reader],
        "resized": True,
        "format": "npy",
        **({"volumetric": True, "axes": list(plan.axes), "scale": None} if len(plan.window) == 3 else {}),
        ENTRY: plan.told(),
    }
