"""A bundle of MONAI as a checkpoint of this program: its network and its weights, not its transforms.

    FOLDER/configs/inference.json  FOLDER/configs/metadata.json  FOLDER/models/model.pt

A config of MONAI is code. Of this one `network_def` is read, as plain values, and the size of the windows. A value that
is an expression ($…) is refused, and so is a class that is none of monai.networks.nets. Of the model the tensors are.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from files.foreign import read_json
from nets.checkpoint_files import load_chosen
from nets.filling import fitting_weights
from nets.monai_networks import GIVEN, KINDS
from nets.weight_checks import check_weights, is_state_dict, unwrapped
from networks import ghost_network
from processes.errors import UserError
from utils import fits, listing

CURE = "expected the one of a bundle of MONAI"
HOME = "monai.networks.nets"
WRAPPERS = ("model", "state_dict", "network")  # under which trainers save a state dict
DEEPEST = 8  # references of references
OTHERS = {"Unet": "UNet", "BasicUnet": "BasicUNet", "DynUnet": "DynUNet"}  # second names there


def checkpoint_of_monai(folder: Path, name: str) -> dict[str, Any]:
    """The checkpoint of this network. Raises UserError for what is missing, foreign, or cannot be done here.

    name: of the weights, below the folder
    """
    path = folder / "configs/inference.json"
    config = read_json(path, CURE)
    told = _plain(config.get("network_def", config.get("network")), config, path)
    kind, dims, channels, classes = _checked(told, path)
    rest = {key: value for key, value in told.items() if key not in {*GIVEN, "_target_"}}
    built = (f"MonaiNet{'3D' * (dims == 3)}:net={kind},told={rest!r}", channels, classes)
    network = dict(zip(("network", "in_channels", "n_class"), built, strict=True))
    ghost = ghost_network(*built)
    weights = load_chosen(folder / name, {}, lambda state: {"net": _state_dict(state)})["net"]
    check_weights(folder / name, weights)
    weights = {f"net.{key}": value for key, value in unwrapped(weights, ghost.net.state_dict()).items()}
    found = fitting_weights(ghost, folder / name, *built, {**network, "net": weights})
    window = _window(config, path)
    image = {"image": ["IMG", "nii_transform"], "crop": window if dims == 3 else None, "overlap": 0.5}
    return {**network, "net": found, "epoch": 0, "labels": _labels(folder, classes), "preprocessing": image}


def transforms_in(folder: Path) -> list[str]:
    """What the bundle does to an image, by the names of its transforms."""
    told = read_json(folder / "configs/inference.json", CURE).get("preprocessing")
    steps = told.get("transforms") if isinstance(told, Mapping) else None
    return [str(each.get("_target_")) for each in steps or () if isinstance(each, Mapping)]


def _plain(value: Any, config: Mapping[str, Any], path: Path, depth: int = 0) -> Any:
    """A value without references. Raises UserError for an expression, and for a reference to nothing."""
    if isinstance(value, str) and value.startswith("$"):
        raise UserError(
            f"{path}: {value[:60]} is an expression, and none is evaluated here; write the value in its place."
        )
    if isinstance(value, str) and value.startswith("@"):
        key = value[1:]
        if key not in config or depth > DEEPEST:
            raise UserError(f"{path}: {value[:60]} refers to no entry of the file; write the value in its place.")
        return _plain(config[key], config, path, depth + 1)
    if isinstance(value, Mapping):
        return {str(key): _plain(each, config, path, depth + 1) for key, each in value.items()}
    return [_plain(each, config, path, depth + 1) for each in value] if isinstance(value, list) else value


def _checked(told: Any, path: Path) -> tuple[str, int, int, int]:
    """Name of the class, spatial axes, channels, classes."""
    target = str(told.get("_target_")) if isinstance(told, Mapping) else ""
    home, _, name = target.rpartition(".")
    name = OTHERS.get(name, name)
    if name not in KINDS or not (home == "" or home == HOME or home.startswith(f"{HOME}.")):
        raise UserError(f"{path}: network_def is of {target or 'nothing'}; of {HOME} are known {listing(KINDS)}.")
    if odd := [key for key in told if key.startswith("_") and key != "_target_"]:
        raise UserError(f"{path}: network_def says {listing(odd)}, which tells MONAI what to run; take it out.")
    dims, channels, classes = (told.get(key) for key in ("spatial_dims", "in_channels", "out_channels"))
    if dims not in (2, 3) or not fits(channels, int) or not fits(classes, int) or classes < 2:
        raise UserError(
            f"{path}: network_def must say spatial_dims (2 or 3), in_channels and out_channels (2 or more, the "
            f"background one of them); it says {dims}, {channels} and {classes}."
        )
    return name, dims, channels, classes


def _state_dict(state: Any) -> Any:
    """The tensors, perhaps under one of the names that trainers save them under."""
    inner = [state[name] for name in WRAPPERS if isinstance(state, Mapping) and is_state_dict(state.get(name))]
    return inner[0] if inner else state


def _window(config: Mapping[str, Any], path: Path) -> list[int]:
    """What the network is given at a time."""
    inferer = config.get("inferer")
    size = _plain(inferer.get("roi_size"), config, path) if isinstance(inferer, Mapping) else None
    return list(size) if fits(size, list) and len(size) == 3 and all(fits(n, int) and n > 0 for n in size) else [96] * 3


def _labels(folder: Path, classes: int) -> list[str]:
    """What the classes are called, by metadata.json, else by their numbers."""
    told: Any = {}
    if (folder / "configs/metadata.json").is_file():
        told = read_json(folder / "configs/metadata.json", CURE)
    for key in ("network_data_format", "outputs", "pred", "channel_def"):
        told = told.get(key, {}) if isinstance(told, Mapping) else {}
    names = [told.get(str(k)) if isinstance(told, Mapping) else None for k in range(classes)]
    if all(isinstance(name, str) and 0 < len(name) <= 200 for name in names):
        return ["background" if k == 0 else str(name) for k, name in enumerate(names)]
    return ["background", *(f"class {k}" for k in range(1, classes))]
