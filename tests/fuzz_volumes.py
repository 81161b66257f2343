"""Mutates the headers of small volumes: each must read with the geometry that it states, or be refused in a sentence.

python -m tests.fuzz_volumes --mutations 10000
"""

import argparse
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from preprocess.faults import VolumeFault
from preprocess.formats import open_volume
from preprocess.reading import read_grid, read_stack

FORMATS = (".nii", ".mhd", ".nrrd")
HEADER = {".nii": 352, ".mhd": 2**12, ".nrrd": 2**9}  # bytes that are mutated


def write_seed(folder, kind):
    """A sound volume of this format, 4 x 5 x 6."""
    path = folder / f"seed{kind}"
    voxels = np.arange(120, dtype=np.int16).reshape(4, 5, 6)
    if kind == ".nii":
        nib.save(nib.Nifti1Image(voxels, np.diag([-0.5, -0.75, 3, 1])), path)
    else:
        image = sitk.GetImageFromArray(voxels.T)
        image.SetSpacing((0.5, 0.75, 3))
        image.SetOrigin((10, -20, 30))
        sitk.WriteImage(image, str(path), useCompression=False)
    return path


def mutated(content, rng, length):
    """One to four bytes of the header changed, taken out, put in or copied."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        at, kind = int(rng.integers(0, min(length, len(data)))), rng.integers(0, 4)
        if kind == 0:
            data[at] = int(rng.integers(0, 256))
        elif kind == 1:
            data[at] ^= 1 << int(rng.integers(0, 8))
        elif kind == 2:
            data[at : at + 1] = (
                b"" if rng.random() < 0.5 else bytes([data[at], int(rng.choice(list(b"0123456789- .")))])
            )
        else:
            data[at : at + 4] = rng.integers(0, 256, 4, dtype=np.uint8).tobytes()
    return bytes(data)


def stated(path):
    """Shape and matrix as the reader of the format has them, by another way than the project's."""
    if path.suffix == ".nii":
        with nib.imageglobals.LoggingOutputSuppressor():
            image = nib.load(path)
        units = {1: 1e3, 3: 1e-3}.get(int(image.header["xyzt_units"]) & 7, 1)
        return image.shape[:3], np.diag([units, units, units, 1]) @ image.affine
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError:
        return None  # ITK refuses what is read here: a stranger's key, say
    corners = np.array([image.TransformContinuousIndexToPhysicalPoint(list(map(float, p))) for p in np.eye(4, 3, -1)])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = (corners[1:] - corners[0]).T, corners[0]
    return image.GetSize()[:3], np.diag([-1, -1, 1, 1]) @ affine


def fuzz(seed_path, mutations, seed=0):
    """{"read", "refused": how many; "wrong": what was neither; "faults": kind -> how many}."""
    rng, found = np.random.default_rng(seed), {"read": 0, "refused": 0, "wrong": [], "faults": Counter()}
    content, place = seed_path.read_bytes(), seed_path.with_name("mutant")
    place.mkdir(exist_ok=True)
    for other in open_volume(seed_path).files[1:]:
        shutil.copy(other, place / other.name)
    path = place / seed_path.name
    for number in range(mutations):
        path.write_bytes(mutated(content, rng, HEADER[seed_path.suffix]))
        try:
            grid, stack = read_grid(path), read_stack(path, 0)
        except VolumeFault as error:
            found["refused"] += 1
            found["faults"][error.fault[0]] += 1
            continue
        except Exception as error:  # noqa: BLE001  whatever else it is, it is a fault of ours
            found["wrong"].append(f"{number}: {type(error).__name__}: {error}")
            continue
        found["read"] += 1
        told = stated(path)
        if told is None:
            continue
        shape, affine = told
        if not (stack.shape == grid.shape == tuple(shape) and np.allclose(grid.affine, affine, rtol=1e-5, atol=1e-3)):
            found["wrong"].append(
                f"{number}: {grid.shape} {shape} {stack.shape} {grid.affine.tolist()} {affine.tolist()}"
            )
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutations", type=int, default=10000, help="in all, the formats in equal parts")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        for kind in FORMATS:
            found = fuzz(write_seed(Path(folder), kind), args.mutations // len(FORMATS), args.seed)
            wrong += len(found["wrong"])
            print(f"{kind}: {found['read']} read, {found['refused']} refused, {len(found['wrong'])} wrong")
            for what, count in found["faults"].most_common():
                print(f"    {count:5} {what}")
            print(*found["wrong"][:20], sep="\n")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
