"""Damages checkpoints: what is taken holds the very weights of the file, all else is refused in a sentence.

python -m tests.tools.fuzz_checkpoints --mutations 2000
"""

import contextlib
import io
import random
import shutil
import warnings
import zipfile
from functools import partial

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

import main as program
import predict
from engine.arguments import get_args
from methods.supervised import Supervised
from nets.weight_checks import not_finite
from prediction.model import load_model
from preprocess.volume_set import make_volume_set
from preprocess.volume_set import read_spec as read_volume_spec
from tests.conftest import CROSS_ENTROPY, write_site
from tests.tiny_network import train_on_volumes, write_volumes
from tests.tools.chaos import arguments, ask_to_stop, before_call
from tests.tools.fuzz_options import ODD, places, replaced
from tests.tools.fuzzing import each_kind, main, mutated

FOLDERS_OF_VOLUMES = "[('IMG', nii_transform, False), ('GT', nii_gt_transform, False)]"
LARGEST = 10**6  # numbers of a tensor that is computed with: an odd one claims more than there are
CANARY = b"cbuiltins\nexec\n"  # what a pickle would say to run code


def odd_tensors():
    return (
        torch.zeros(1),
        torch.full((2,), torch.nan),
        torch.full((4, 1, 3, 3), torch.inf),
        -torch.ones(4),
        torch.ones(4, dtype=torch.int8),
        torch.ones(4, dtype=torch.complex64),
        torch.full((4,), 1e300, dtype=torch.float64),
        torch.ones(4, dtype=torch.float16),
        torch.zeros(1).expand(10**12),
        torch.zeros(1).expand(4),
        torch.zeros(4, device="meta"),
        torch.eye(3).to_sparse(),
        torch.tensor(7),
        torch.empty(0),
    )


# -------------------------------------------------------------------------------------------------- damage


def values(state, rng):
    """One to three values anywhere in the state odd, of another shape, taken out or renamed."""
    for _ in range(rng.randint(1, 3)):
        entry = rng.choice(list(state) or [None])  # each as often as any other, however much it holds
        path = rng.choice([path for path in places(state) if path[:1] == (entry,)] or [()])
        state = replaced(state, path, partial(damaged, rng=rng)) if path else state
    return state


def damaged(old, rng):
    kind = rng.random()
    if isinstance(old, torch.Tensor) and old.layout == torch.strided and old.numel() <= LARGEST and kind < 0.5:
        flat = old.flatten()
        return rng.choice((flat, old.double(), old * torch.nan, 0 - old, flat[:0], old.to(torch.int8), old[None]))
    if isinstance(old, dict) and old and kind < 0.5:
        name = rng.choice(list(old))
        rest = {each: value for each, value in old.items() if each != name}
        return rest | ({f"{name}x": old[name]} if kind < 0.25 else {})
    if isinstance(old, list) and old and kind < 0.5:
        return old[:-1] if kind < 0.25 else old * 2
    return rng.choice((*ODD, *odd_tensors()))


def repacked(content, change):
    """The zip with its pickle changed, under a checksum that is right."""
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(packed, "w") as new:
        for each in old.infolist():
            data = old.read(each)
            new.writestr(each.filename, change(data) if each.filename.endswith("data.pkl") else data)
    return packed.getvalue()


def damage(path, sound, state, rng):
    """Writes the mutant of a checkpoint."""
    dice = random.Random(int(rng.integers(2**62)))
    kind = dice.random()
    if kind < 0.05:
        path.write_bytes(sound)
    elif kind < 0.2:
        path.write_bytes(mutated(sound, rng))
    elif kind < 0.4:
        path.write_bytes(repacked(sound, lambda data: mutated(data, rng)))
    elif kind < 0.43:
        path.write_bytes(repacked(sound, lambda data: data[:2] + CANARY + data[2:]))
    else:
        torch.save(values(state, dice), path)


# -------------------------------------------------------------------------------------------------- readers


def same_weights(net, path):
    """'' if the network has the weights of the file, and nothing that is not finite."""
    theirs = torch.load(path, map_location="cpu", weights_only=True)["net"]
    for name, value in net.state_dict().items():
        if not torch.equal(value, theirs[name].to(value.dtype)):
            return f"{name} is not that of the file"
        if not value.isfinite().all():
            return f"{name} is not finite"
    return ""


def predicts_alike(ours, theirs):
    """Whether two checkpoints have all in common that a mask depends on."""
    told = ("network", "in_channels", "n_class", "preprocessing", "identity")
    weights = [(value, theirs["net"][name]) for name, value in ours["net"].items()]
    return all(theirs.get(name) == ours[name] for name in told) and all(
        own.dtype == other.dtype and torch.equal(own, other) for own, other in weights
    )


@contextlib.contextmanager
def quietly():
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def silent(look):
    """The same without a word on the screen."""

    def quiet():
        with quietly():
            return look()

    return quiet


def taken(look):
    """The same, once what is sound was read."""
    if complaint := look():
        raise AssertionError(complaint)
    return look


def of_slices(folder):
    return train_on_volumes(folder, "--plane", "axial", "--size", 12, 8) / "last.pkl"


def of_volumes(folder):
    """Weights of a network that takes volumes whole."""
    volumes = write_volumes(folder / "volumes", size=(12, 10, 9))
    words = ["--dest", folder / "set", "--image", f"{volumes}/p?.nii.gz", "--label", f"{volumes}/p?_gt.nii.gz"]
    words += ["--patient", r"(p\d)", "--axes", 2, 1, 0, "--normalise", "foreground", "--train", 4, "--jobs", 1]
    make_volume_set(read_volume_spec(list(map(str, words))))
    words = ["--target_dataset", folder / "set", "--target_folders", FOLDERS_OF_VOLUMES, "--n_class", 2, "--cpu"]
    words += ["--target_losses", CROSS_ENTROPY, "--crop", 8, 8, 8, "--network", "UNet3D:width=1,depth=1"]
    words += ["--grp_regex", r"(p\d)", "--n_epoch", 1, "--steps", 1, "--workdir", folder / "run"]
    program.main(list(map(str, words)))
    return folder / "run/last.pkl"


def for_predict(train, folder):
    torch.set_num_threads(1)
    with quietly():
        path = train(folder)
    sound, state, masks = path.read_bytes(), torch.load(path, weights_only=True), []

    def look():
        model = load_model(path, "cpu")
        shutil.rmtree(folder / "out", ignore_errors=True)
        words = ["--weights", path, "--volumes", f"{folder}/volumes/p0.nii.gz", "--out", folder / "out"]
        predict.main(list(map(str, [*words, "--device", "cpu"])))
        masks[1:] = [np.asarray(nib.load(folder / "out/p0.nii.gz").dataobj)]
        if masks[0].shape != masks[-1].shape or masks[-1].max() >= model.n_class:
            return "the mask is not of this volume, or of more classes than there are"
        is_same = predicts_alike(state, torch.load(path, map_location="cpu", weights_only=True))
        if is_same and not np.array_equal(masks[0], masks[-1]):
            return "the mask is another"
        return same_weights(model.net, path)

    return lambda rng: damage(path, sound, state, rng), taken(silent(look))


def for_a_start(folder):
    """Weights that another run starts from."""
    path, argv = _trained(folder)
    sound, state = path.read_bytes(), torch.load(path, weights_only=True)
    args = get_args([*argv, "--model_weights", str(path)])
    loss = program.build_objective(args)

    def look():
        return same_weights(program.build_method(args, loss, 1, program.read_start(args)).net, path)

    return lambda rng: damage(path, sound, state, rng), taken(silent(look))


def for_a_resume(folder):
    path, argv = _trained(folder)
    shutil.copytree(path.parent, folder / "begun")
    files = {name: path.with_name(name) for name in ("last.pkl", "paused.pkl")}
    sound = {name: each.read_bytes() for name, each in files.items()}
    state = {name: torch.load(each, weights_only=True) for name, each in files.items()}

    def mutate(rng):
        shutil.rmtree(path.parent)
        shutil.copytree(folder / "begun", path.parent)
        name = str(rng.choice(list(sound)))
        damage(path.with_name(name), sound[name], state[name], rng)

    def look():
        program.main(argv)
        state = torch.load(path, map_location="cpu", weights_only=True)
        if bad := not_finite(state["net"]):
            return f"{bad} are not finite after it"
        log = pd.read_csv(path.with_name("IMG_target_metrics.csv"))
        if state["epoch"] != 1 or list(log["epoch"]) != [0, 1]:
            return f"{list(log['epoch'])} in the log after it, {state['epoch']} in the checkpoint"
        return "" if log["tra_dice"].between(0, 1).all() else f"training Dice of {list(log['tra_dice'])}"

    return mutate, taken(silent(look))


def _trained(folder):
    """A run of which an epoch is done and one is left, and its words."""
    torch.set_num_threads(1)
    site = write_site(folder / "site", 150, 90, seed=2, patients=3, slices=2)
    argv = arguments(site, folder / "run", "--n_epoch", 2, "--network", "Dimwit:nG=4", "--batch_size", 1)
    step = before_call(3, Supervised.step, ask_to_stop)
    with quietly(), pytest.MonkeyPatch.context() as patch, contextlib.suppress(SystemExit):
        patch.setattr(Supervised, "step", step)
        program.main(argv)
    return folder / "run" / "last.pkl", argv


KINDS = {
    "predict": partial(for_predict, of_slices),
    "predict of volumes": partial(for_predict, of_volumes),
    "start": for_a_start,
    "resume": for_a_resume,
}


def campaign(count, seed):
    return each_kind(KINDS, count, seed)


if __name__ == "__main__":
    main(__doc__, campaign)
