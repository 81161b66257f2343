"""A network as a folder that needs no pickle: its weights in model.safetensors, all else in manifest.json.

Users call the folder a bundle; the *source bundle* (bundle.py) is an entry of it, "source". The two files are a
checkpoint in another form: what is read of them is what was written, bit by bit. Nothing in them is run. The manifest
holds the SHA-256 of the weights and one of itself, so a torn file, or one that was edited, is not taken for whole.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from processes.errors import UserError
from utils import atomic_write, fits, listing

FORMAT = 1
MANIFEST, WEIGHTS = "manifest.json", "model.safetensors"
# entries of a checkpoint that stand in the manifest as they are; "bundle" is called "source" there
ENTRIES = ("network", "in_channels", "n_class", "seed", "epoch", "preprocessing", "identity", "labelled", "choice")
ENTRIES = (*ENTRIES, "labels")
OWN = ("format", "weights", "seal", "source", *ENTRIES)
INSTALL = "pip install safetensors==0.8.0"


def write_network_folder(folder: Path, state: Mapping[str, Any], told: Mapping[str, Any]) -> None:
    """Writes the network of a checkpoint into a folder that is there, the manifest last.

    told: what else the manifest tells, in plain types

    Raises UserError for entries that JSON cannot hold exactly, as NaN.
    """
    if clash := sorted({*told} & {*OWN}):
        raise KeyError(f"these names of the manifest are taken: {clash}")
    entries = {name: state[name] for name in ENTRIES if name in state}
    entries |= {"source": state["bundle"]} if "bundle" in state else {}
    content = _packed(state["net"])
    weights = {"file": WEIGHTS, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    manifest = {"format": FORMAT, **told, **entries, "weights": weights}
    try:
        text = json.dumps({**manifest, "seal": _seal(manifest)}, indent=1, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(f"The checkpoint holds what JSON cannot ({error}): no bundle can be made of it.") from error
    if lost := [name for name, entry in entries.items() if json.loads(text)[name] != _listed(entry)]:
        raise UserError(f"The checkpoint's {listing(lost)} would not come back from JSON as it was: no bundle is made.")
    with atomic_write(folder / WEIGHTS) as file:
        file.write(content)
    with atomic_write(folder / MANIFEST, "w") as file:
        file.write(f"{text}\n")


def read_network_folder(manifest: Path) -> dict[str, Any]:
    """The entries of a checkpoint out of this manifest and the weights beside it.

    Raises UserError for files that are missing, torn, of another program, or changed since they were written. What the
    entries tell is not looked at here: `load_checkpoint` does, as for any checkpoint.
    """
    told = read_manifest(manifest)
    path = manifest.with_name(WEIGHTS)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); a bundle is {MANIFEST} and {WEIGHTS}.") from error
    if hashlib.sha256(content).hexdigest() != told["weights"]["sha256"]:
        raise UserError(
            f"{path} is not the file that {manifest.name} tells of: it holds {len(content)} bytes, of "
            f"{told['weights']['bytes']}, and another SHA-256. It is torn, was changed, or is of another bundle; copy "
            "the folder anew, or make it again (make … bundle)."
        )
    state = {name: told[name] for name in ENTRIES if name in told}
    state |= {"bundle": told["source"]} if "source" in told else {}
    return state | {"net": _unpacked(content, path)}


def read_manifest(path: Path) -> dict[str, Any]:
    """What a manifest tells. Raises UserError for a file that is none, or was changed since it was written."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}). A bundle is a folder that make … bundle made, with {MANIFEST} "
            f"and {WEIGHTS}."
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is torn, or no JSON ({type(error).__name__}); copy the bundle anew.") from error
    weights = told.get("weights") if isinstance(told, dict) else None
    if not fits(weights, Mapping[str, str | int]) or not {"sha256", "bytes"} <= weights.keys() or "seal" not in told:
        raise UserError(f"{path} is no manifest of this program: it does not tell of weights, with a seal.")
    if told.get("format") != FORMAT:
        raise UserError(f"{path} has the format {told.get('format')!r}, and {FORMAT} is the one that is known.")
    if told["seal"] != _seal({name: entry for name, entry in told.items() if name != "seal"}):
        raise UserError(
            f"{path} was changed since it was written: its seal does not fit what it tells. Take the file as it was; a "
            "licence and names of labels are given when a bundle is made (--licence, --labels)."
        )
    return told


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def _seal(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of what a manifest tells, however its lines are broken and its names are ordered."""
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _packed(net: Mapping[str, Tensor]) -> bytes:
    """Each tensor on its own, as the format knows no two that share their memory."""
    try:
        from safetensors.torch import save
    except ImportError as error:
        raise _lacking(error) from error
    return save({name: value.detach().cpu().contiguous().clone() for name, value in net.items()}, {"format": "pt"})


def _unpacked(content: bytes, path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load
    except ImportError as error:
        raise _lacking(error) from error
    try:
        return load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise UserError(f"{path} holds no tensors as safetensors writes them ({error}).") from error


def _lacking(error: ImportError) -> UserError:
    return UserError(f"Bundles need the package safetensors, which the environment does not have ({error}): {INSTALL}.")


def _listed(value: Any) -> Any:
    """Plain values with lists for tuples, as JSON has them."""
    if isinstance(value, Mapping):
        return {key: _listed(each) for key, each in value.items()}
    return [_listed(each) for each in value] if isinstance(value, list | tuple) else value
