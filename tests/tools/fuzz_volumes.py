"""Mutates volumes: each must read with the geometry and voxels that it states, or be refused in a sentence.

python -m tests.tools.fuzz_volumes --mutations 10000
"""

import locale
import re
from functools import partial

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from files.reading import read_grid, read_stack
from tests.tools.fuzzing import each_kind, main, mutated

VOXELS = np.arange(120, dtype=np.int16).reshape(4, 5, 6)
HEADER = {".nii": 352, ".mhd": 2**12, ".nrrd": 2**9}  # bytes that are mutated; of other kinds all
FORMATS = (".nii", ".mhd", ".nrrd", ".nii.gz", ".mha", "gzip.nrrd")  # the last three compressed
SLICES = 3
KEYS = ("ElementSpacing", "ElementSize", "TransformMatrix", "Offset", "Position", "DimSize", "ElementType")


def write_seed(folder, kind):
    """A sound volume of this format, 4 x 5 x 6."""
    path = folder / f"seed{kind}"
    if ".nii" in kind:
        nib.save(nib.Nifti1Image(VOXELS, np.diag([-0.5, -0.75, 3, 1])), path)
        return path
    image = sitk.GetImageFromArray(VOXELS.T)
    image.SetSpacing((0.5, 0.75, 3))
    image.SetOrigin((10, -20, 30))
    sitk.WriteImage(image, str(path), useCompression=kind not in HEADER)
    return path


def write_series(folder, voxels, step=3.0, places=None, series="1.2.3.4", compressor=None, tags=()):
    """The volume (X, Y, Z) as a DICOM series, a file a plane.

    places: of each along the axis, in mm; compressor: JPEG (which loses nothing), JPEG2000, or None; tags: others
    """
    others = dict(tags)
    before = locale.setlocale(locale.LC_ALL)  # writing sets it to C
    folder.mkdir(parents=True, exist_ok=True)
    for k, place in enumerate(np.arange(voxels.shape[2]) * step if places is None else places):
        image = sitk.GetImageFromArray(voxels[..., k : k + 1].T)
        image.SetSpacing((0.5, 0.75, step))
        tags = {"0008|0060": "MR", "0020|000e": series, "0020|000d": "1.2.3", "0008|0018": f"{series}.{k}"}
        tags |= {"0020|0032": f"0\\0\\{place:.8g}", "0020|0037": "1\\0\\0\\0\\1\\0", "0020|0013": str(k)}
        for tag, value in (tags | others).items():
            image.SetMetaData(tag, value)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        if compressor:
            writer.SetImageIO("GDCMImageIO")
            writer.UseCompressionOn()
            writer.SetCompressor(compressor)
        writer.SetFileName(str(folder / f"{k:02}.dcm"))
        writer.Execute(image)
    locale.setlocale(locale.LC_ALL, before)
    return sorted(folder.iterdir())


def stated(path):
    """Matrix and voxels as the reader of the format has them, by another way than the project's; None if it refuses."""
    if ".nii" in path.name:
        with nib.imageglobals.LoggingOutputSuppressor():
            image = nib.load(path)
            voxels = np.asanyarray(image.dataobj)
        units = {1: 1e3, 3: 1e-3}.get(int(image.header["xyzt_units"]) & 7, 1)
        return np.diag([units, units, units, 1]) @ image.affine, voxels
    if path.suffix in (".mhd", ".mha"):  # ITK overlooks keys in other capitals, and then makes up a spacing
        content = path.read_bytes()
        for key in KEYS:
            content = re.sub(rf"(?mi)^\s*{key}(?=\s*=)".encode(), key.encode(), content)
        path = path.with_name(f"same{path.suffix}")
        path.write_bytes(content)
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError:
        return None  # ITK refuses what is read here: a stranger's key, say
    corners = np.array([image.TransformContinuousIndexToPhysicalPoint(list(map(float, p))) for p in np.eye(4, 3, -1)])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = (corners[1:] - corners[0]).T, corners[0]
    return np.diag([-1, -1, 1, 1]) @ affine, sitk.GetArrayFromImage(image).T


def compare(path):
    """What is wrong with what was read of a file; '' if nothing is."""
    grid, stack = read_grid(path), read_stack(path, 0)
    told = stated(path)
    if told is None:
        return ""
    affine, voxels = told
    while voxels.ndim > 3 and voxels.shape[-1] == 1:
        voxels = voxels[..., 0]
    if not (stack.shape == grid.shape == voxels.shape and np.allclose(grid.affine, affine, rtol=1e-5, atol=1e-3)):
        return f"{grid.shape} {stack.shape} {voxels.shape} {grid.affine.tolist()} {affine.tolist()}"
    # of what is compressed the checksum tells that it is right; ITK reads on where it is cut, and fills up
    same = any(np.array_equal(stack.astype(np.float32), each.astype(np.float32)) for each in (voxels, VOXELS))
    return "" if same else f"other voxels: {stack.ravel()[:8]} {voxels.ravel()[:8]}"


def count_slices(folder):
    """The same of a series, one of whose files was mutated: a slice must not be left out."""
    shape = read_stack(folder, 2).shape
    return "" if len(shape) == 3 and shape[0] == SLICES else f"read as {shape}"


def _of_format(kind, folder):
    path = write_seed(folder, kind)
    content = path.read_bytes()
    return lambda rng: path.write_bytes(mutated(content, rng, HEADER.get(kind))), partial(compare, path)


def _of_series(compressor, folder):
    voxels = np.tile(VOXELS[..., :SLICES], (8, 8, 1) if compressor else 1)  # GDCM dies of writing very small JPEG 2000
    written = write_series(folder / "series", voxels, compressor=compressor)
    contents = [path.read_bytes() for path in written]

    def mutate(rng):
        which = int(rng.integers(SLICES))
        for k, content in enumerate(contents):
            (folder / "series" / f"{k:02}.dcm").write_bytes(mutated(content, rng) if k == which else content)

    return mutate, partial(count_slices, folder / "series")


KINDS = {kind: partial(_of_format, kind) for kind in FORMATS} | {
    " ".join(filter(None, ("DICOM", compressor))): partial(_of_series, compressor)
    for compressor in (None, "JPEG", "JPEG2000")
}


def campaign(count, seed):
    return each_kind(KINDS, count, seed)


if __name__ == "__main__":
    main(__doc__, campaign)
