"""The hearts as PnP-AdaNet prepared them (Dou et al. 2019), used by Bateson et al. 2022: TFRecords -> a set of slices.

    python -m preprocess.archives.pnp_tfrecords --train 'release/ct_train_tfs/*.tfrecords' \\
        --val 'release/ct_val_tfs/*.tfrecords' --dest data/ct

Layout: a file a slice, one Example in it: data_vol, 256 x 256 x 3 float32 (a coronal slice between its neighbours,
z-scored by volume), label_vol, 256 x 256 x 1 float32 (of the slice in the middle), and their sizes dsize_dim0, …,
lsize_dim2. Classes: 1 myocardium, 2 left atrium, 3 left ventricle, 4 ascending aorta.
Oddities: the files do not tell whose slice it is. So a slice stands for itself (a set of such slices has no 3D scores),
and train and val are the archive's own. Only the slice in the middle is taken, as the label is of it alone; it is
called <file>_1, as in the csv. Grey levels become (x + 4) / 8.5, cut to 0..1, as published. No spacing is known.
"""

import processes.ctrl_c  # noqa: F401  first: from here on Ctrl-C is one line

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from files.faults import Fault
from files.pairing import find_files
from preprocess.archives.tfrecords import read_example, read_records
from preprocess.new_set import refuse, refuse_existing, whole_folder, write_card
from preprocess.slicing.case import save_nifti
from utils import ProgramParser, doubled, run_program

SHIFT, WIDTH = 4.0, 8.5
MIDDLE = 1  # of the three neighbours
N_CLASS = 5


def read_slice(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Image (W, H) float32 in 0..1 and class numbers (W, H) uint8. Raises ValueError."""
    records = list(read_records(path))
    if len(records) != 1:
        raise ValueError(f"it holds {len(records)} records, not one slice")
    example = read_example(records[0])
    image, label = _array(example, "data_vol", "dsize"), _array(example, "label_vol", "lsize")
    if image.shape[:2] != label.shape[:2] or image.shape[2:] != (3,) or label.shape[2:] != (1,):
        raise ValueError(f"its image is {image.shape} and its label {label.shape}")
    classes = label[..., 0].astype(np.uint8)
    if not np.isfinite(image).all() or (classes != label[..., 0]).any() or classes.max() >= N_CLASS:
        raise ValueError(f"its label is not 0..{N_CLASS - 1}, or its image not finite")
    return np.clip((image[..., MIDDLE] + SHIFT) / WIDTH, 0, 1).astype(np.float32), classes


def _array(example: dict, name: str, size: str) -> np.ndarray:
    wanted = [name, *(f"{size}_dim{axis}" for axis in range(3))]
    if lacking := [key for key in wanted if len(example.get(key, ())) != 1]:
        raise ValueError(f"it lacks {lacking[0]}")
    content, *shape = (example[key][0] for key in wanted)
    if not isinstance(content, bytes) or min(shape) < 1 or len(content) != 4 * math.prod(shape):
        raise ValueError(f"{name} does not hold {shape} numbers of 4 bytes")
    return np.frombuffer(content, "<f4").reshape(shape)


def make_set(splits: dict[str, Sequence[Path]], dest: Path) -> dict[str, int]:
    """Writes <dest>/<split>/{IMG,GT}/<file>_1.nii and dataset.json; the number of slices of each split.

    Raises UserError that lists every file at fault; then nothing is left.
    """
    refuse_existing(dest, "--dest")
    faults: list[Fault] = [("no file matches", f"--{split}") for split, paths in splits.items() if not paths]
    names = [path.stem for paths in splits.values() for path in paths]
    faults += [("name of several files", name) for name in doubled(names)]
    size = None
    with whole_folder(dest) as made:
        for split, paths in splits.items():
            for folder in ("IMG", "GT"):
                (made / split / folder).mkdir(parents=True)
            for path in tqdm(paths, split, unit="slice", disable=None):
                try:
                    image, classes = read_slice(path)
                except (OSError, ValueError) as error:
                    faults.append(("cannot be read", f"{path} ({error})"))
                    continue
                size = image.shape
                save_nifti(made / split / "IMG" / f"{path.stem}_1.nii", image, np.eye(4))
                save_nifti(made / split / "GT" / f"{path.stem}_1.nii", classes, np.eye(4))
        refuse(faults, dest)
        counts = {split: len(paths) for split, paths in splits.items()}
        write_card(made, _card(dest, counts, size))
    return counts


def _card(dest: Path, counts: dict[str, int], size: tuple[int, int]) -> dict:
    return {
        "name": dest.name,
        "modality": "",
        "site": "PnP-AdaNet release",
        "phantom": None,
        "n_class": N_CLASS,
        "normalisation": {"kind": "zscore", "scope": "volume", "then": f"(x + {SHIFT:g}) / {WIDTH:g}, cut to 0..1"},
        "images": ["IMG"],
        "labels": "GT",
        "size": size,
        "split_unit": "slice",
        "split": "as the archive has it; whose slices they are is not told",
        "counts": {split: {"slices": count} for split, count in counts.items()},
        "uses_labels": "the archive's crop is centred on the heart by its labels",
        "tool": "preprocess.archives.pnp_tfrecords 1",
    }


def main() -> None:
    parser = ProgramParser("python -m preprocess.archives.pnp_tfrecords", description=__doc__)
    for split in ("train", "val"):
        parser.add_argument(f"--{split}", required=True, metavar="GLOB", help="the files of this split")
    parser.add_argument("--dest", type=Path, required=True, help="folder of the new set; must not exist")
    args = parser.parse_args()
    counts = make_set({split: find_files(getattr(args, split)) for split in ("train", "val")}, args.dest)
    print(f"{args.dest}: {', '.join(f'{count} slices in {split}' for split, count in counts.items())}")


if __name__ == "__main__":
    run_program(main)
