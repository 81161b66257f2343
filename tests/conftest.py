"""A small two-site slice set, a python that is quick to start, and one thread.

Two threads beside another busy process can be ten times slower.
"""

import functools
import json
import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker, spawn
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from engine import run_folder
from tests.tools.warm_python import own_lock, warm_python

os.environ["OMP_NUM_THREADS"] = "1"  # of all that a test starts
torch.set_num_threads(1)

os.fsync = lambda _: None  # it is for power cuts, which no test can make, and takes a tenth of a small training

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as of `make test &`: what a test starts would ignore it too
    signal.signal(signal.SIGINT, signal.default_int_handler)

# asked by each of thousands of trainings, and the same for all; test_resume.py asks for the code anew
run_folder._git = functools.cache(run_folder._git)
run_folder.describe_sources = functools.cache(run_folder.describe_sources)

os.register_at_fork(after_in_child=own_lock)  # as tests kill programs, and pytest's own forks are programs too

for name in ("MAKELEVEL", "MAKEFLAGS", "MFLAGS"):  # of `make test`: a make that a test starts is nobody's part
    os.environ.pop(name, None)

SHARED = Path(__file__).parents[2] / "shared"
# Started first, as each file is one process's from its first test to its last: none of them is left over at the end.
LONGEST = ("test_makefiles", "test_label_guard", "test_resume", "test_recipes", "test_networks", "test_team")
LONGEST += ("test_reading", "test_main", "test_phantom", "test_nuclei", "test_readme", "test_plot", "test_collapse")
FOLDERS = "[('IMG', png_transform, False), ('GT', gt_transform, False), ('GT', gt_transform, False)]"
CROSS_ENTROPY = "[('CrossEntropy', {'idc': [0, 1], 'weights': [1, 1]}, None, None, None, 1)]"


def disc_slice(rng: np.random.Generator, present: bool, inside: int, outside: int) -> tuple[np.ndarray, np.ndarray]:
    """A noisy 24x20 image with a disc of grey level `inside`, and its mask."""
    w, h = np.mgrid[:24, :20]
    centre, radius = rng.uniform(8, 13, 2), rng.uniform(4, 6)
    mask = ((w - centre[0]) ** 2 + (h - centre[1]) ** 2 < radius**2) & present
    image = np.where(mask, inside, outside) + rng.normal(0, 8, mask.shape)
    return image.clip(0, 255).astype(np.uint8), mask.astype(np.uint8)


def write_site(root: Path, inside: int, outside: int, seed: int, patients: int = 6, slices: int = 4) -> Path:
    """A slice set of `patients` patients, the last two of them in val, the first slice of each without the organ."""
    rng = np.random.default_rng(seed)
    for patient in range(patients):
        for index in range(slices):
            image, mask = disc_slice(rng, index > 0, inside, outside)
            split = "val" if patient >= patients - 2 else "train"
            for folder, array in (("IMG", image), ("GT", mask)):
                path = root / split / folder / f"Case{patient:02d}_{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
    (root / "dataset.json").write_text(json.dumps({"name": root.name, "split_unit": "patient"}))
    return root


def train_source(site: Path) -> Path:
    """A network that finds the organ of images that are brighter than those of the site; both lie beside it."""
    import main as program
    from tests.tools.chaos import arguments

    other = write_site(site.parent / "other", 200, 60, seed=1)
    program.main(arguments(other, site.parent / "source", "--network", "Dimwit", "--n_epoch", 8, "--l_rate", 3e-2))
    return site.parent / "source" / "last.pkl"


def here(function, *args):
    """In place of a process of its own (`run_alone`)."""
    return function(*args)


@contextmanager
def all_here(*programs: ModuleType) -> Iterator[None]:
    """Inside it these programs start no process of their own."""
    with pytest.MonkeyPatch.context() as patch:
        for each in programs:
            patch.setattr(each, "run_alone", here)
        yield


def write_prior(path: Path, root: Path, size: float = 80.0, total: float = 480.0) -> Path:
    """One size for every slice whose image-level tag is on, and the true sizes."""
    rows = ["val_ids,dumbpredwtags,val_gt_size"]
    for mask_path in sorted(root.glob("*/GT/*.png")):
        true = int(np.asarray(Image.open(mask_path)).sum())
        prior = size if true else 0
        rows.append(f'{mask_path.name},"[{total - prior}, {prior}]","[{total - true}, {true}]"')
    path.write_text("\n".join(rows) + "\n")
    return path


def pytest_collection_modifyitems(items):
    order = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))
        if item.get_closest_marker("nnunet") and not os.environ.get("NNUNET"):
            item.add_marker(pytest.mark.skip(reason="takes minutes: NNUNET=1 installs nnU-Net and runs it"))


@pytest.fixture(scope="session")
def sites(tmp_path_factory):
    """(source, target, prior csv): the target is the source with another contrast."""
    root = tmp_path_factory.mktemp("sites")
    source = write_site(root / "source", inside=200, outside=60, seed=1)
    target = write_site(root / "target", inside=150, outside=90, seed=2)
    return source, target, write_prior(root / "prior.csv", target)


@pytest.fixture(scope="session")
def python(tmp_path_factory):
    """A python for programs that import torch and the like, which it has imported (tests/tools/warm_python.py)."""
    with warm_python(tmp_path_factory.mktemp("python")) as command:
        yield str(command)


@pytest.fixture(scope="module")
def quick_spawns(python):
    """What this process spawns meanwhile, as `run_alone` does, is a fork of that python, and starts anew as ever."""
    before = spawn.get_executable()
    resource_tracker.ensure_running()  # by the real python, as it stays
    multiprocessing.set_executable(python)
    yield
    multiprocessing.set_executable(before)


@pytest.fixture
def shared():
    """Real images and published csv files, where they are."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not here: the real images and published csv files lie beside the repository")
    return SHARED
