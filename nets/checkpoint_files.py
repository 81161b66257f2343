"""A checkpoint as a file: read without running anything, and without believing what it says of its own sizes.

It is a zip as torch.save writes it: members that are stored as they are, one of them a pickle. Of a pickle nothing
is loaded that names more than tensors, their numbers and plain types; of a tensor nothing is computed that claims more
numbers than the file holds.
"""

import io
import pickle
import pickletools
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nets.bundle import bundle_faults
from nets.network_folder import MANIFEST, read_network_folder
from nets.weight_checks import check_weights, is_old, is_state_dict
from processes.errors import UserError
from utils import atomic_write, described, fits, listing

NAMES = {"torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter", "collections OrderedDict", "torch Size"}
STORAGES = {f"torch {kind}Storage" for kind in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short")}
STORAGES |= {f"torch {kind}Storage" for kind in ("Char", "Byte", "Bool", "ComplexFloat", "ComplexDouble")}
SPELT = {name.encode().replace(b" ", b"\n") + b"\n" for name in NAMES | STORAGES}  # as a pickle spells them
LONGEST_SPELT = max(map(len, SPELT))
# How many bytes an operation of a pickle has, by its code; 0 for those that tell it themselves, and all others.
SIZES = [0] * 256
for size, codes in {1: b"()0Q]NRabestu}\x85\x86\x87\x88\x89", 2: b"Khq\x80", 3: b"M", 5: b"Jjr", 9: b"G"}.items():
    for code in codes:
        SIZES[code] = size
GLOBAL, STOP, TEXT, LONG = b"c.X\x8a"
UNKNOWN = ("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4")  # other ways of a pickle to name things
NOTHING: Mapping[str, Any] = {}
PLAIN = (bool, int, float, complex, str, bytes, type(None))
COPIES = 8  # of the numbers in a file, as tied weights share them

# What main.py writes, and of what type. "best": the best epoch so far, its score and that before the first step.
# "choice": what was chosen, and why; "labelled": the patients whose labels chose it, or what it started from; "labels":
# how the classes are called. What "bundle" holds, bundle.py tells.
ENTRIES: dict[str, Any] = {
    "network": str,
    "in_channels": int,
    "n_class": int,
    "epoch": int,
    "caution": float,
    "best": Mapping[str, float | None],
    "choice": Mapping[str, str | int | Sequence[str]],
    "labelled": Sequence[str],
    "labels": Sequence[str],
    **dict.fromkeys(("alarms", "method", "preprocessing", "identity"), Mapping[str, Any]),
    "mean": Mapping[str, Tensor],
    **dict.fromkeys(("counts", "rows"), Sequence[Any]),
}
# Of these, what whoever uses a network asks for, and no resume alone; the bundle, where its source wrote one.
OF_A_NETWORK = ("network", "in_channels", "n_class", "seed", "net", "preprocessing", "epoch", "identity")
OF_PLAIN_TYPES = ("best", "choice", "labelled", "labels", "alarms", "preprocessing", "identity")


def load_checkpoint(path: Path, bare: bool = False) -> dict[str, Any]:
    """Tensors and plain types; never runs code. The manifest of a network's folder stands for a checkpoint, too.

    bare: a network's tensors alone will do; they come as the entry "bare" (published_weights.py)

    Raises UserError for a missing, torn or foreign file, for entries of another type than ENTRIES states, and for
    weights that are not finite.
    """
    state = read_network_folder(path) if path.name == MANIFEST else _read(path)
    is_bare = is_state_dict(state) and len(state) > 0
    if is_bare and not bare:
        raise UserError(
            f"{path} holds tensors alone, not how their network is called. Make a run of them: python main.py --method "
            f"noadap --model_weights {path} --network …, whose last.pkl is what is wanted here."
        )
    if is_bare:
        state = {"bare": state}
    if not isinstance(state, dict) or not state.keys() & {"net", "bare"}:
        raise UserError(f"{path} holds no network of this program (no entry 'net').")
    check_weights(path, state["bare"] if "bare" in state else state["net"])
    wrong = [
        f"'{name}' is {type(state[name]).__name__}, expected {described(kind)}"
        for name, kind in ENTRIES.items()
        if name in state and not fits(state[name], kind)
    ]
    told = [name for name in OF_PLAIN_TYPES if name in state and any(True for _ in _tensors_in(state[name]))]
    wrong += [f"'{name}' holds tensors, expected plain types" for name in told]
    wrong += [f"'bundle': {fault}" for fault in bundle_faults(state)] if "bundle" in state else []
    if wrong:
        raise UserError(f"{path} was not written by main.py of this program: {'; '.join(wrong)}.")
    return state


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes tensors and plain types. The file gets its name only when it is whole."""
    whole = io.BytesIO()  # torch hides the error of a full disk behind one of its own
    torch.save(state, whole)
    with atomic_write(path) as file:
        file.write(whole.getbuffer())


def load_chosen(path: Path, allowed: Mapping[str, Any], choose: Callable[[Any], Mapping[str, Any]]) -> dict[str, Any]:
    """Parts of what another program saved, in tensors and plain types; never runs code.

    allowed: what else than tensors its pickle may name, "module name" -> the type, which makes nothing but a value, or
        None for what torch knows as harmless itself
    choose: what is in the file -> the parts that are wanted, by name

    Raises UserError for a missing, torn or foreign file, for one that names anything else, and for parts that are no
    tensors and plain types.
    """
    return dict(_read(path, allowed, choose))


def of_a_network(state: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint without what a resume alone needs."""
    return {name: state[name] for name in (*OF_A_NETWORK, "bundle", "labelled", "labels") if name in state}


def require(path: Path, state: Mapping[str, Any], names: Sequence[str]) -> None:
    """Raises UserError for a checkpoint that lacks any of these entries."""
    if lost := [name for name in names if name not in state]:
        raise UserError(f"{path} does not tell its {listing(lost)}: it was not written by main.py of this program.")


def _read(path: Path, allowed: Mapping[str, Any] = NOTHING, choose: Callable[[Any], Any] = lambda state: state) -> Any:
    """What is chosen of what the file holds."""
    try:
        _must_be_plain(path, allowed)
        with torch.serialization.safe_globals([each for each in allowed.values() if each is not None]):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"The weights {path} do not exist. Train them first (make results/<set>/cesource).") from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds more than tensors and plain types, and to load that is to run code. Where it is a network "
            "as the published codes save it, make a file of its tensors alone: published_weights.py says how."
        ) from error
    except Exception as error:  # torch.load raises anything on a torn file
        raise _unreadable(path, error) from error
    state = choose(state)
    try:
        size = sum(_bytes_of(tensor) for tensor in _tensors_in(state))
    except ValueError as error:
        raise UserError(
            f"{path} holds {error}; expected tensors and plain types, as torch.save writes them."
        ) from error
    if size > COPIES * path.stat().st_size:
        raise UserError(f"{path} holds tensors of {size} bytes that share one memory, more than was ever saved so.")
    return state


def _must_be_plain(path: Path, allowed: Mapping[str, Any]) -> None:
    """Raises BadZipFile for members that are damaged, or would grow; UnpicklingError for a pickle of other things.

    torch.load looks at no checksum, and unpacks what is compressed, however large that says it is.
    """
    with zipfile.ZipFile(path) as whole:
        members = whole.infolist()
        if any(each.compress_type != zipfile.ZIP_STORED for each in members):
            raise zipfile.BadZipFile("compressed members, which torch.save does not write")
        if sum(each.file_size for each in members) > path.stat().st_size:
            raise zipfile.BadZipFile("members that overlap")
        if damaged := whole.testzip():
            raise zipfile.BadZipFile(damaged)
        for each in members:
            if each.filename.endswith("data.pkl"):
                _must_name_tensors_alone(whole.read(each), allowed)


def _must_name_tensors_alone(content: bytes, allowed: Mapping[str, Any]) -> None:
    if _plainly_names_tensors_alone(content):
        return
    for operation, what, _ in pickletools.genops(content):
        if operation.name in UNKNOWN:  # torch knows none of these either
            raise pickle.UnpicklingError(operation.name)
        if operation.name == "GLOBAL" and what not in NAMES | STORAGES | allowed.keys():
            raise pickle.UnpicklingError(what)


def _plainly_names_tensors_alone(content: bytes) -> bool:
    """Whether a whole pickle has the operations of torch.save alone, and names what it may, as torch.save spells it.

    It walks from operation to operation as pickletools does, in a third of its time. Where it says no, nothing is
    settled: pickletools then tells what is there.
    """
    place, end = 0, len(content)
    while place < end:
        code = content[place]
        if size := SIZES[code]:
            place += size
        elif code == TEXT:
            place += 5 + int.from_bytes(content[place + 1 : place + 5], "little")
        elif code == GLOBAL:
            spelt = content[place + 1 : place + 1 + LONGEST_SPELT]
            length = spelt.find(b"\n", spelt.find(b"\n") + 1) + 1
            if spelt[:length] not in SPELT:
                return False
            place += 1 + length
        elif code == LONG and place + 1 < end:
            place += 2 + content[place + 1]
        else:
            return code == STOP
    return False


def _unreadable(path: Path, error: Exception) -> UserError:
    if path.is_file() and is_old(path):
        return UserError(
            f"{path} is in the format of torch before 1.6, which carries no checksum and is not read here. Save it "
            "anew: python -c \"import torch; torch.save(torch.load('old.pkl', map_location='cpu', weights_only=True), "
            "'new.pkl')\"."
        )
    return UserError(f"{path} is no checkpoint of this program or is torn ({type(error).__name__}).")


def _tensors_in(state: Any) -> Iterator[Tensor]:
    """Every tensor in nested dicts and lists, each once. Raises ValueError for a value of any other kind."""
    seen, todo = set(), [state]
    while todo:
        value = todo.pop()
        if id(value) in seen or type(value) in PLAIN:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Mapping):
            todo += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple):
            todo += value
        else:
            raise ValueError(f"a {type(value).__name__}")


def _bytes_of(tensor: Tensor) -> int:
    """What it would take in memory. Raises ValueError for one that is not there, or claims numbers that are not."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        raise ValueError("a tensor that is no plain array")
    size = tensor.numel() * tensor.element_size()
    if size > tensor.untyped_storage().nbytes():
        raise ValueError(f"a tensor of {tensor.numel()} numbers in {tensor.untyped_storage().nbytes()} bytes")
    return size
