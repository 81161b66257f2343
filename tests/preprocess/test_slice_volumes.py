"""Volumes -> slices -> volumes, on toy volumes made here."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from datasets.distance_maps import signed_distance_maps
from datasets.set_tables import read_rows
from files.grey_levels import Normalisation, percentiles
from files.labels import LabelMap, map_labels, parse_label_map
from files.reading import read_grid, read_stack
from preprocess.new_set import whole_folder
from preprocess.priors.measuring import measure_slices
from preprocess.slice_volumes import read_spec, slice_set
from preprocess.slicing import case as slice_case
from preprocess.slicing.bias_field import correct_bias
from preprocess.slicing.frames import Frame, restore
from preprocess.slicing.spec import Blocks, SliceSpec
from preprocess.slicing.split import split_patients
from preprocess.slicing.tables import describe
from processes.errors import UserError

ROOT = Path(__file__).parents[2]
PLAIN = np.diag([0.5, 0.75, 3.0, 1.0])


def save(path, voxels, affine=PLAIN):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


def cohort(folder, n=3, shape=(6, 5, 4), affine=PLAIN, values=(0, 1)):
    """n patients Case00.., images 0..(voxels - 1) in stored order plus the patient's number, random labels."""
    rng = np.random.default_rng(0)
    for i in range(n):
        save(folder / f"Case{i:02}.nii.gz", (np.arange(np.prod(shape)).reshape(shape) + i).astype(np.int16), affine)
        label = rng.choice(np.array(values, np.int16), shape)
        label.flat[0] = max(values)
        save(folder / f"Case{i:02}_segmentation.nii.gz", label, affine)
    return folder


def spec_of(folder, dest, **changes):
    settings = {
        "images": {"IMG": f"{folder}/Case??.nii.gz"},
        "label": f"{folder}/Case??_segmentation.nii.gz",
        "patient": r"(Case\d+)",
        "normalisation": Normalisation("minmax"),
        "val_list": ("Case00",),
        "orient": None,  # what is expected here follows from the order of the voxels in the file
    }
    return SliceSpec(dest=dest, **(settings | changes))


def read(path):
    if path.suffix == ".npy":
        return np.load(path)
    if path.suffix == ".png":
        return np.asarray(Image.open(path))
    return np.asanyarray(nib.load(path).dataobj)


def tree(folder):
    """Relative path -> hash of every file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def assert_nothing_left(dest):
    assert not dest.exists()
    assert not list(dest.parent.glob(f".{dest.name}.*"))


# ---------------------------------------------------------------------------------------------- what is written


def test_layout_names_and_values(tmp_path):
    source = cohort(tmp_path / "volumes", n=2, shape=(4, 2, 3))
    slice_set(spec_of(source, tmp_path / "set"))
    expected = {"manifest.csv", "dataset.json"}
    for split, patient in (("val", "Case00"), ("train", "Case01")):
        expected |= {f"{split}/{folder}/{patient}_{i}.png" for folder in ("IMG", "GT") for i in range(3)}
    assert set(tree(tmp_path / "set")) == expected
    # voxel (w, h, i) of a (4, 2, 3) volume holds 6 w + 3 h + i, the largest is 23: 8 bits hold x / 23 * 255
    plane = read(tmp_path / "set/val/IMG/Case00_1.png")
    assert plane.dtype == np.uint8
    np.testing.assert_array_equal(plane, np.rint(np.array([[1, 4], [7, 10], [13, 16], [19, 22]]) / 23 * 255))
    label = read(tmp_path / "set/val/GT/Case00_1.png")
    truth = np.asanyarray(nib.load(source / "Case00_segmentation.nii.gz").dataobj)[:, :, 1]
    np.testing.assert_array_equal(label, truth)


@pytest.mark.parametrize("form", ["png", "nii", "nii.gz", "npy"])
def test_formats_hold_the_same_image(tmp_path, form):
    source = cohort(tmp_path / "volumes", n=2)
    slice_set(spec_of(source, tmp_path / "set", format=form, bits=16 if form == "png" else 8))
    image, label = (read(tmp_path / f"set/val/{folder}/Case00_2.{form}") for folder in ("IMG", "GT"))
    assert label.dtype == np.uint8
    assert image.dtype == (np.uint16 if form == "png" else np.float32)
    expected = np.arange(120).reshape(6, 5, 4)[:, :, 2] / 119
    np.testing.assert_allclose(image / (65535 if form == "png" else 1), expected, atol=1e-5)


def test_nifti_slice_lies_where_its_voxels_lay(tmp_path):
    affine = np.array([[0, 0.2, 2.9, 11], [-1.5, 0, 0.1, -7], [0, -1.4, 0.3, 5], [0, 0, 0, 1.0]])
    source = cohort(tmp_path / "volumes", n=2, shape=(6, 5, 4), affine=affine)
    slice_set(spec_of(source, tmp_path / "set", format="nii", axis=1, size=(4, 8)))
    got = nib.load(tmp_path / "set/val/IMG/Case00_3.nii").affine
    # pixel (1, 5) of a cut from (6, 4) to (4, 8): one voxel cropped, two padded -> voxel (2, 3, 3)
    np.testing.assert_allclose(got @ [1, 5, 0, 1], affine @ [2, 3, 3, 1], atol=1e-5)
    np.testing.assert_allclose(got[:3, 2], affine[:3, 1], atol=1e-6)


def test_several_images_and_no_label(tmp_path):
    for i in range(2):
        for name in ("wat", "inn"):
            save(tmp_path / f"volumes/{i:02}_{name}.nii", np.arange(60, dtype=np.float32).reshape(3, 4, 5) + i)
    images = {"Wat": f"{tmp_path}/volumes/*_wat.nii", "Inn": f"{tmp_path}/volumes/*_inn.nii"}
    spec = spec_of(tmp_path, tmp_path / "set", images=images, label=None, patient=r"(\d+)_", val_list=("01",))
    card = slice_set(spec)
    assert {path.parent.name for path in (tmp_path / "set").rglob("*.png")} == {"Wat", "Inn"}
    assert (card["n_class"], card["labels"], card["images"]) == (None, None, ["Wat", "Inn"])
    assert [source["role"] for source in card["sources"]] == ["Wat", "Inn", "Wat", "Inn"]


def test_manifest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cohort(Path("volumes"), n=2)
    slice_set(spec_of("volumes", Path("set"), axis=0, size=(3, 8)))
    rows = read_rows(Path("set"))
    assert [row["slice"] for row in rows] == [f"Case0{p}_{i}" for p in range(2) for i in range(6)]
    row = rows[7]
    expected = {"slice": "Case01_1", "split": "train", "patient": "Case01", "index": "1", "axis": "0"}
    expected |= {"width": "3", "height": "8", "offset_w": "1", "offset_h": "-2"}  # 5 -> 3 and 4 -> 8 round the centre
    expected |= {"spacing_w": "0.75", "spacing_h": "3.0", "spacing_slice": "0.5"}
    expected |= {"shape0": "6", "shape1": "5", "shape2": "4", "source": "volumes/Case01.nii.gz"}
    expected |= {"affine": "0.5 0.0 0.0 0.0 0.0 0.75 0.0 0.0 0.0 0.0 3.0 0.0 0.0 0.0 0.0 1.0"}
    expected |= {"stored": "", "sha256": hashlib.sha256(Path("volumes/Case01.nii.gz").read_bytes()).hexdigest()}
    assert row == expected | {"name": "Case01_1"}


def test_dataset_json(tmp_path):
    source = cohort(tmp_path / "volumes", n=3, values=(0, 7, 9))
    normalisation = Normalisation("percentile", "slice", (2.0, 98.0), clip=(0.0, 100.0))
    settings = {"site": "RUNMC", "modality": "MR", "phantom": "made up", "seed": 4, "label_map": "7:1,9:2"}
    card = slice_set(spec_of(source, tmp_path / "set", normalisation=normalisation, **settings))
    assert json.loads((tmp_path / "set/dataset.json").read_text()) == json.loads(json.dumps(card))
    assert {key: card[key] for key in ("name", "site", "modality", "phantom", "n_class", "axis", "format")} == {
        **{"name": "set", "site": "RUNMC", "modality": "MR", "phantom": "made up"},
        **{"n_class": 3, "axis": 2, "format": "png"},
    }
    assert card["label_map"] == {"7": 1, "9": 2}
    expected = {"kind": "percentile", "scope": "slice", "percentiles": (2, 98), "window": None, "clip": (0, 100)}
    assert card["normalisation"] == expected | {"no_clip": False}
    assert {card[key] for key in ("channel", "n4", "spacing")} == {None}
    assert card["split"] == {"train": ["Case01", "Case02"], "val": ["Case00"]}
    assert (card["split_unit"], card["size"], card["images"]) == ("patient", (6, 5), ["IMG"])
    assert card["counts"]["train"]["slices"] == 8
    truth = np.asanyarray(nib.load(source / "Case00_segmentation.nii.gz").dataobj)
    holds = [int((truth == value).any((0, 1)).sum()) for value in (0, 7, 9)]
    assert card["counts"]["val"] == {"patients": 1, "slices": 4, "slices_with_class": holds}
    assert f"val 4 slices of 1 patient ({holds[1]} with class 1, {holds[2]} with class 2)" in describe(card)


def test_same_bytes_whatever_the_jobs(tmp_path):
    source = cohort(tmp_path / "volumes", n=4)
    for jobs in (1, 2):
        slice_set(spec_of(source, tmp_path / str(jobs) / "set", format="nii.gz", jobs=jobs))
    assert tree(tmp_path / "1") == tree(tmp_path / "2")


# ----------------------------------------------------------------------------------------------------- channels


def modalities(folder, n=2, shape=(6, 5, 4), names=("b", "a")):
    """n patients 00.., channel c of patient i holds 0..(voxels - 1) times 10^c, plus i; a binary label."""
    voxels = np.arange(np.prod(shape), dtype=np.float64).reshape(shape)
    for i in range(n):
        for c, name in enumerate(names):
            save(folder / f"{i:02}_{name}.nii", voxels * 10**c + i)
        save(folder / f"{i:02}_lesion.nii", (voxels % 7 == 0).astype(np.uint8))
    images = {"in_npy": tuple(f"{folder}/*_{name}.nii" for name in names)}
    return {"images": images, "label": f"{folder}/*_lesion.nii", "patient": r"(\d+)_", "val_list": ("00",)}


@pytest.mark.parametrize("form", ["npy", "nii", "nii.gz"])
def test_images_of_one_name_become_channels(tmp_path, form):
    settings = modalities(tmp_path / "volumes") | {"format": form, "label_folder": "gt_npy"}
    spec = spec_of("", tmp_path / "set", **settings, normalisation=Normalisation("none"))
    card = slice_set(spec)
    image, label = (read(tmp_path / f"set/train/{folder}/01_2.{form}") for folder in ("in_npy", "gt_npy"))
    plane = np.arange(120).reshape(6, 5, 4)[:, :, 2]
    np.testing.assert_array_equal(image, np.stack([plane + 1, 10 * plane + 1]))
    assert (image.dtype, label.dtype, label.shape) == (np.float32, np.uint8, (6, 5))
    assert card["channels"] == {"in_npy": 2}
    assert [source["role"] for source in card["sources"]] == ["in_npy[0]", "in_npy[1]", "gt_npy"] * 2
    row = read_rows(tmp_path / "set")[0]
    assert [Path(path).name for path in row["source"].split(";")] == ["00_b.nii", "00_a.nii"]
    assert len(row["sha256"].split(";")) == 2
    volume, _ = restore({2: label}, read_rows(tmp_path / "set")[6:7])
    np.testing.assert_array_equal(volume[:, :, 2], label)


def test_each_channel_is_normalised_on_its_own(tmp_path):
    slice_set(spec_of("", tmp_path / "set", **modalities(tmp_path / "volumes"), format="npy", size=(8, 5)))
    image = np.load(tmp_path / "set/train/in_npy/01_3.npy")
    expected = np.pad(np.arange(120).reshape(6, 5, 4)[:, :, 3] / 119, ((1, 1), (0, 0)))
    np.testing.assert_allclose(image, [expected, expected], atol=1e-6)


def test_channels_lie_where_their_voxels_lay(tmp_path):
    slice_set(spec_of("", tmp_path / "set", **modalities(tmp_path / "volumes"), format="nii", axis=1))
    got = nib.load(tmp_path / "set/train/in_npy/01_3.nii").affine
    np.testing.assert_allclose(got @ [0, 2, 1, 1], PLAIN @ [2, 3, 1, 1], atol=1e-6)


def test_a_channel_that_is_missing_or_lies_elsewhere(tmp_path):
    settings = modalities(tmp_path / "volumes", n=3)
    (tmp_path / "volumes/00_a.nii").unlink()
    save(tmp_path / "volumes/01_b.nii", np.ones((6, 5, 3)))
    save(tmp_path / "volumes/02_a.nii", np.ones((6, 5, 4)))
    with pytest.raises(UserError) as error:
        slice_set(spec_of("", tmp_path / "set", **settings, format="npy"))
    error.match(r"without in_npy\[1\] volume \(no file of '[^']*_a.nii'\): 00;")
    error.match(r"grid of its in_npy\[0\] volume [^;]*01_a.nii \(shape[^;]*01_lesion.nii \(shape")
    error.match(r"no spread of grey levels: [^;]*02_a.nii")
    assert_nothing_left(tmp_path / "set")


# ------------------------------------------------------------------------------------------------- other sizes

TURNED = np.array([[0, 0.2, 2.9, 11], [-1.5, 0, 0.1, -7], [0, -1.4, 0.3, 5], [0, 0, 0, 1.0]])


@pytest.mark.parametrize(
    ("frame", "size"),
    [
        ({"resize": (24, 17)}, (24, 17)),
        ({"resize": (9, 10)}, (9, 10)),
        ({"resize": (19, 7)}, (19, 7)),
        ({"spacing": (1.0, 3.4)}, (24, 13)),  # 16 x 1.5 mm, and 15 x 2.92 mm to the nearest whole number
        ({"spacing": (1.0, 3.4), "size": (17, 8)}, (17, 8)),
        ({"spacing": (2.1, 1.3), "multiple": 6}, (12, 36)),
    ],
    ids=str,
)
@pytest.mark.parametrize("world", [0, 1, 2])
def test_resampled_slices_show_the_same_place(tmp_path, frame, size, world):
    """An image whose grey level is a coordinate in mm has in each pixel the coordinate of that pixel's centre."""
    voxels = np.stack(np.meshgrid(*map(np.arange, (16, 3, 15)), indexing="ij"), -1)
    for i in range(2):
        save(tmp_path / f"volumes/Case0{i}.nii", nib.affines.apply_affine(TURNED, voxels)[..., world], TURNED)
    images = {"IMG": f"{tmp_path}/volumes/*.nii"}
    settings = {"images": images, "label": None, "axis": 1, "format": "nii", **frame}
    slice_set(spec_of("", tmp_path / "set", **settings, normalisation=Normalisation("none")))
    image = nib.load(tmp_path / "set/val/IMG/Case00_2.nii")
    assert image.shape == size
    pixels = np.stack([*np.meshgrid(*map(np.arange, size), indexing="ij"), np.zeros(size)], -1)
    expected = nib.affines.apply_affine(image.affine, pixels)[..., world]
    inside = np.s_[2:-2, 2:-2]  # what lies nearer to the margin has no neighbour to be interpolated with
    np.testing.assert_allclose(image.get_fdata()[inside], expected[inside], atol=1e-4)
    row = read_rows(tmp_path / "set")[2]
    lengths = np.linalg.norm(image.affine[:3, :3], axis=0)
    np.testing.assert_allclose([float(row[f"spacing_{a}"]) for a in ("w", "h", "slice")], lengths, rtol=1e-6)
    assert (row["width"], row["height"]) == (str(size[0]), str(size[1]))


def test_shrinking_smooths_images_and_picks_labels():
    stripes = np.tile(np.float32([0, 1]), (16, 8))
    np.testing.assert_allclose(Frame((16, 16), (16, 4), (16, 4)).take(stripes)[:, 1:-1], 0.5, atol=1e-3)
    label = np.kron([[0, 1], [2, 3]], np.ones((3, 5))).astype(np.uint8)
    assert Frame(label.shape, (2, 2), (2, 2)).take(label).tolist() == [[0, 1], [2, 3]]
    assert set(np.unique(Frame(label.shape, (4, 7), (4, 7)).take(label))) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("frame", "size"),
    [({"resize": (13, 11)}, (13, 11)), ({"spacing": (0.9, 1.1), "size": (40, 40)}, (40, 40))],
    ids=str,
)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_resampled_labels_come_back(tmp_path, axis, frame, size):
    source = cohort(tmp_path / "volumes", n=1, shape=(9, 11, 7), affine=TURNED, values=(0, 1, 2))
    split = {"val_list": (), "split_by_blocks": Blocks(2, 2)}
    card = slice_set(spec_of(source, tmp_path / "set", axis=axis, **frame, **split))
    assert (card["size"], card["resized"], card["foreground_cut_away"]) == (size, True, {})
    rows = read_rows(tmp_path / "set")
    slices = {int(row["index"]): read(tmp_path / f"set/{row['split']}/GT/{row['slice']}.png") for row in rows}
    volume, affine = restore(slices, rows)
    original = nib.load(source / "Case00_segmentation.nii.gz")
    np.testing.assert_array_equal(volume, original.dataobj)
    np.testing.assert_array_equal(affine, original.affine)


def test_volumes_of_any_spacing_come_to_one(tmp_path):
    """A box of 6 x 8 mm is a box of as many pixels of 1 mm, whatever it was stored in; a smaller cut says so."""
    for i, (mm, shape) in enumerate([((0.5, 0.5), (40, 48)), ((2.0, 1.0), (8, 20))]):
        w, h = (step * (np.arange(n) + 0.5) for n, step in zip(shape, mm, strict=True))
        label = np.outer((w > 4) & (w < 10), (h > 4) & (h < 12))[..., None].repeat(2, 2)
        save(tmp_path / f"volumes/Case0{i}_segmentation.nii.gz", label.astype(np.uint8), np.diag([*mm, 3, 1]))
        save(tmp_path / f"volumes/Case0{i}.nii.gz", label.astype(np.int16), np.diag([*mm, 3, 1]))
    spacing = {"spacing": (1.0, 1.0)}
    card = slice_set(spec_of(tmp_path / "volumes", tmp_path / "set", **spacing, size=(24, 24)))
    assert [read(path).sum() for path in (tmp_path / "set").rglob("GT/*")] == [48] * 4
    assert (card["spacing"], card["size"], card["foreground_cut_away"]) == ((1.0, 1.0), (24, 24), {})
    assert {row["spacing_w"] for row in read_rows(tmp_path / "set")} == {"1.0"}
    card = slice_set(spec_of(tmp_path / "volumes", tmp_path / "cut", **spacing, size=(4, 24)))
    assert card["foreground_cut_away"] == {"Case00": 2 * 8 * 4, "Case01": 2 * 8 * 2}  # 8..12 and 6..10 mm are kept
    with pytest.raises(UserError, match=r"another size than the usual \(20, 24\) \(give --size .*: Case01 \(16, 20\)"):
        slice_set(spec_of(tmp_path / "volumes", tmp_path / "open", **spacing))


# ----------------------------------------------------------------------------------------------- distance maps


@pytest.mark.parametrize("frame", [{}, {"size": (8, 4)}, {"resize": (12, 10)}], ids=str)
def test_distance_maps_are_those_of_the_volume(tmp_path, frame):
    source = cohort(tmp_path / "volumes", n=2)
    blob = np.zeros((6, 5, 4), np.uint8)
    blob[2:4, 1:4, 1:3] = 1
    save(source / "Case00_segmentation.nii.gz", blob)
    settings = {"format": "npy", "distance_maps": "3d_distmap", "n_class": 3, **frame}
    card = slice_set(spec_of(source, tmp_path / "set", **settings))
    assert (card["n_class"], card["distance_maps"]) == (3, "3d_distmap")
    labels, maps = (
        np.stack([np.load(tmp_path / f"set/val/{name}/Case00_{i}.npy") for i in range(4)], -3)
        for name in ("GT", "3d_distmap")
    )
    spacing = (3.0, 0.25, 0.375) if "resize" in frame else (3.0, 0.5, 0.75)
    np.testing.assert_array_equal(maps, signed_distance_maps(labels, 3, spacing))
    assert (maps.dtype, maps.shape) == (np.float32, (3, 4, *labels.shape[1:]))
    assert maps[1, 0].min() >= 2  # the blob begins one slice, 3 mm, further
    assert not maps[2].any()


def test_the_number_of_classes_for_distance_maps(tmp_path):
    source = cohort(tmp_path / "volumes", n=2, values=(0, 1, 2))
    settings = {"distance_maps": "maps", "label_map": "1:1,2:0"}
    slice_set(spec_of(source, tmp_path / "set", **settings))
    assert np.load(tmp_path / "set/train/maps/Case01_0.npy").shape == (2, 6, 5)
    with pytest.raises(UserError, match=r"2 faults: has classes outside 0..1 .raise --n_class 2.*Case00.*up to 2"):
        slice_set(spec_of(source, tmp_path / "few", n_class=2))
    assert_nothing_left(tmp_path / "few")


# -------------------------------------------------------------------------------------------------- grey levels


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        (Normalisation("minmax"), [0, 0.25, 0.5, 0.75, 1]),
        (Normalisation("minmax", clip=(20.0, 40.0)), [0, 0, 0.5, 1, 1]),
        (Normalisation("minmax", clip=(20.5, 39.5)), [0, 0, 0.5, 1, 1]),
        (Normalisation("percentile", percentiles=(25.0, 75.0)), [0, 0, 0.5, 1, 1]),
        (Normalisation("percentile", percentiles=(12.5, 100.0)), [0, 5 / 35, 15 / 35, 25 / 35, 1]),
        (Normalisation("percentile", percentiles=(25.0, 75.0), no_clip=True), [-0.5, 0, 0.5, 1, 1.5]),
        (Normalisation("window", window=(0.0, 40.0)), [0.25, 0.5, 0.75, 1, 1]),
        (Normalisation("window", window=(0.0, 40.0), no_clip=True), [0.25, 0.5, 0.75, 1, 1.25]),
        (Normalisation("zscore"), [-(2**0.5), -(0.5**0.5), 0, 0.5**0.5, 2**0.5]),  # variance 200
        (Normalisation("none"), [10, 20, 30, 40, 50]),
    ],
)
@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float32])
def test_normalisation_by_hand(how, expected, kind):
    stack = how.clipped(np.array([10, 20, 30, 40, 50], kind).reshape(1, 5, 1))
    np.testing.assert_allclose(how.apply(stack, how.fit(stack)).ravel(), expected, atol=1e-6)


def test_clip_beyond_the_range_of_the_integers():
    stack = np.array([[[0, 200]]], np.uint8)
    np.testing.assert_array_equal(Normalisation("minmax", clip=(-1000.0, 1000.0)).clipped(stack), stack)


def test_a_card_may_hold_whole_numbers():
    card = {"kind": "minmax", "scope": "volume", "percentiles": [1, 99], "window": None, "clip": [20, 40], "no_clip": 0}
    stack = np.array([[[10, 30, 50]]], np.int16)
    np.testing.assert_array_equal(Normalisation.from_card(card).clipped(stack), [[[20, 30, 40]]])


def test_counted_percentiles_are_numpys():
    rng = np.random.default_rng(1)
    for size in (1, 2, 7, 1000):
        stack = rng.integers(-300, 300, (1, size, 1)).astype(np.int16)
        wanted = [0, 1, 12.34, 50, 99, 100]
        np.testing.assert_allclose(percentiles(stack, wanted), np.percentile(stack, wanted))


def test_scope_slice_scales_each_slice_and_leaves_a_flat_one_zero(tmp_path):
    for i in range(2):
        voxels = np.zeros((2, 2, 3), np.int16)
        voxels[..., 1], voxels[..., 2] = [[0, 10], [5, 10]], [[0, 100], [50, 20]]
        save(tmp_path / f"volumes/Case0{i}.nii.gz", voxels)
    spec = spec_of(tmp_path / "volumes", tmp_path / "set", label=None, format="npy")
    slice_set(SliceSpec(**{**vars(spec), "normalisation": Normalisation("minmax", "slice")}))
    planes = [np.load(tmp_path / f"set/val/IMG/Case00_{i}.npy") for i in range(3)]
    np.testing.assert_allclose(planes, [[[0, 0], [0, 0]], [[0, 1], [0.5, 1]], [[0, 1], [0.5, 0.2]]], atol=1e-6)


def test_padding_takes_the_lowest_value(tmp_path):
    source = cohort(tmp_path / "volumes", n=2)
    slice_set(spec_of(source, tmp_path / "set", format="npy", normalisation=Normalisation("zscore"), multiple=8))
    plane = np.load(tmp_path / "set/val/IMG/Case00_1.npy")
    sd = np.arange(120).std()
    assert plane.shape == (8, 8)
    np.testing.assert_allclose(plane[0], np.full(8, -59.5 / sd), rtol=1e-5)
    np.testing.assert_allclose(plane[1, 2], (1 - 59.5) / sd, rtol=1e-5)  # 6 -> 8 pads 1 before, 5 -> 8 pads 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("median",), "--normalise is one of minmax"),
        (("window",), "--window LOW HIGH and --normalise window go together"),
        (("minmax", "volume", (1, 99), (0.0, 1.0)), "--window LOW HIGH and --normalise window go together"),
        (("percentile", "volume", (99, 1)), "--percentiles takes a lower and a higher number, got 99 and 1"),
        (("percentile", "volume", (-1, 99)), "between 0 and 100"),
        (("minmax", "volume", (1, 99), None, None, True), "--no_clip goes with .*; minmax does not clip"),
        (("minmax", "volume", (1, 99), None, (5.0, 5.0)), "--clip takes a lower and a higher number, got 5 and 5"),
    ],
)
def test_normalisation_settings_that_make_no_sense(arguments, message):
    with pytest.raises(UserError, match=message):
        Normalisation(*arguments)


# ------------------------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("255:1", {255: 1}),
        ("1-2:1", {1: 1, 2: 1}),
        ("500:3, 421:2,420:2,205:1", {500: 3, 421: 2, 420: 2, 205: 1}),
        ("-3--1:1", {-3: 1, -2: 1, -1: 1}),
        ("4:0,5:1", {4: 0, 5: 1}),
    ],
)
def test_label_map(text, expected):
    assert parse_label_map(text) == LabelMap(expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("255=1", "cannot read '255=1'; write LABEL:CLASS"),
        ("1:1,", "cannot read ''"),
        ("5-1:1", "run backwards"),
        ("1:1,1-3:2", "gives label 1 two classes, 1 and 2"),
        ("1:1,2:3", "leaves out class 2"),
        ("1:256", "classes are 0..255, got 0 to 256"),
    ],
)
def test_label_map_that_makes_no_sense(text, message):
    with pytest.raises(UserError, match=message):
        parse_label_map(text)


@pytest.mark.parametrize("dtype", ["u1", "i1", "<i2", ">i2", "<u2", "<i4", "<f4"])
def test_labels_of_any_type_and_order_in_memory_have_their_class(dtype):
    lowest = 0 if "u" in dtype else -3
    stack = np.random.default_rng(0).integers(lowest, 9, (3, 5, 4)).astype(dtype)
    mapping = LabelMap({label: label % 3 for label in range(-3, 9)})
    by_columns = stack.transpose(0, 2, 1).copy().transpose(0, 2, 1)
    for laid in (stack, by_columns, np.asfortranarray(stack), stack[:, ::-1, ::-1], stack[:, ::2]):
        assert map_labels(laid, mapping)[0].tolist() == np.vectorize(mapping.class_of)(laid.astype(int)).tolist()


def test_map_labels_by_hand():
    stack = np.array([[[-2, 0], [41, 50]], [[60, 100], [41, 0]]], np.int8)
    classes, unknown = map_labels(stack, LabelMap({41: 1, 50: 1, 60: 2}))
    assert classes.tolist() == [[[0, 0], [1, 1]], [[2, 0], [1, 0]]]
    assert (classes.dtype, unknown) == (np.uint8, [-2, 100])
    assert map_labels(stack, LabelMap({41: 1}, others=0))[0].tolist() == [[[0, 0], [1, 0]], [[0, 0], [1, 0]]]
    assert map_labels(stack, parse_label_map("0:0", others=1))[0].tolist() == [[[1, 0], [1, 1]], [[1, 1], [1, 0]]]
    assert map_labels(stack, LabelMap({41: 1}, others=0))[1] == []
    assert map_labels(stack, None)[1] == [-2]


def test_labels_stored_as_floats_or_of_one_value():
    assert map_labels(np.array([[[0.0, 2.0]]]), LabelMap({2: 1}))[0].tolist() == [[[0, 1]]]
    assert map_labels(np.full((1, 1, 2), 7, np.int16), LabelMap({7: 1}))[0].tolist() == [[[1, 1]]]
    with pytest.raises(ValueError, match="fractions"):
        map_labels(np.array([[[0.0, 0.5]]]), None)


def test_unlisted_labels_are_listed_or_dropped(tmp_path):
    source = cohort(tmp_path / "volumes", n=3, values=(0, 1, 60, 100))
    with pytest.raises(UserError, match=r"labels without a class .*Case00_seg.* \(60, 100\), .*Case02_seg") as error:
        slice_set(spec_of(source, tmp_path / "set", label_map="1:1"))
    assert "3 faults: " in str(error.value)
    assert_nothing_left(tmp_path / "set")
    card = slice_set(spec_of(source, tmp_path / "set", label_map="1:1", others=0))
    assert card["n_class"] == 2
    assert {int(value) for path in (tmp_path / "set").rglob("GT/*") for value in np.unique(read(path))} == {0, 1}


def test_a_mask_of_0_and_255_is_refused_with_the_fix(tmp_path):
    source = cohort(tmp_path / "volumes", values=(0, 255))
    with pytest.raises(UserError, match="without a gap but 0, 255 .perhaps --label_map 255:1.*Case00.*Case02"):
        slice_set(spec_of(source, tmp_path / "set"))
    assert_nothing_left(tmp_path / "set")
    assert slice_set(spec_of(source, tmp_path / "set", label_map="255:1"))["n_class"] == 2


def test_crop_that_cuts_labels_away_is_told(tmp_path):
    source = cohort(tmp_path / "volumes", n=2)
    save(source / "Case00_segmentation.nii.gz", np.ones((6, 5, 4), np.uint8))
    card = slice_set(spec_of(source, tmp_path / "set", size=(6, 3)))
    assert card["foreground_cut_away"]["Case00"] == 6 * 2 * 4
    assert "voxels of a class outside, in Case00 48" in describe(card)


# ------------------------------------------------------------------------------------------ finding and pairing


def test_capitals_do_not_matter_and_hidden_files_do(tmp_path):
    source = cohort(tmp_path / "volumes", n=2)
    (source / "Case01_segmentation.nii.gz").rename(source / "Case01_Segmentation.nii.gz")
    (source / "._Case01.nii.gz").write_bytes(b"\0\5\x16\7")
    spec = spec_of(source, tmp_path / "set", images={"IMG": f"{source}/*case??.nii.gz"})
    assert slice_set(spec)["counts"]["train"]["slices"] == 4


def test_patient_out_of_the_path_and_of_several_groups(tmp_path):
    for site, number in (("Utrecht", 1), ("GE3T", 1)):
        save(tmp_path / f"raw/{site}/{number}/pre/FLAIR.nii.gz", np.arange(60, dtype=np.int16).reshape(3, 4, 5))
    images = {"IMG": f"{tmp_path}/raw/*/*/pre/FLAIR.nii.gz"}
    spec = spec_of(tmp_path, tmp_path / "set", images=images, label=None, patient=r"/(Utrecht|GE3T)/(\d+)/pre/")
    card = slice_set(SliceSpec(**{**vars(spec), "val_list": ("GE3T1",)}))
    assert card["split"] == {"train": ["Utrecht1"], "val": ["GE3T1"]}


def test_all_faults_come_in_one_error(tmp_path):
    source = cohort(tmp_path / "volumes", n=8)
    (source / "Case00_segmentation.nii.gz").unlink()
    (source / "Case01.nii.gz").unlink()
    save(source / "Case02.nii.gz", np.ones((6, 5, 3), np.int16))
    shifted = PLAIN.copy()
    shifted[0, 3] = 0.4
    save(source / "Case03_segmentation.nii.gz", np.zeros((6, 5, 4), np.uint8), shifted)
    broken = np.ones((6, 5, 4), np.float32)
    broken[0, 0, :2] = np.nan, np.inf
    save(source / "Case04.nii.gz", broken)
    save(source / "Case05.nii.gz", np.ones((6, 5, 4, 2), np.int16))
    (source / "Case06.nii.gz").write_bytes((source / "Case06.nii.gz").read_bytes()[:60])
    (source / "Case07.nii.gz").write_bytes(b"not a volume")
    save(source / "Case07_segmentation.nii.gz", np.full((6, 5, 4), 0.5, np.float32))
    with pytest.raises(UserError) as error:
        slice_set(spec_of(source, tmp_path / "set"))
    for part in (
        rf"without GT volume \(no file of '{source}/Case\?\?_segmentation.nii.gz'\): Case00",
        r"without IMG volume [^;]*: Case01",
        r"grid of its IMG volume [^;]*Case02_segmentation.nii.gz \(shape \(6, 5, 4\), not \(6, 5, 3\)\), ",
        r"grid of its IMG volume [^;]*Case03_segmentation.nii.gz \(0.4 mm",
        r"NaN or infinite: [^;]*Case04.nii.gz \(2 of 120\)",
        r"is not 3D [^;]*; or save[^;]*Case05.nii.gz \(6 x 5 x 4 x 2\)",
        r"cannot be read: [^;]*Case06.nii.gz \([^;]*Case07.nii.gz \(",
        r"no whole-number labels: [^;]*Case07_segmentation.nii.gz \(fractions, as",
    ):
        error.match(part)
    assert "\n" not in str(error.value)
    assert_nothing_left(tmp_path / "set")


@pytest.mark.parametrize("damage", ["cut short", "a byte changed"])
def test_voxels_that_cannot_be_read_behind_a_good_header(tmp_path, damage):
    source = tmp_path / "volumes"
    noise = np.random.default_rng(2).integers(0, 2**15, (20, 20, 20)).astype(np.int16)
    for i in range(2):
        whole = bytearray(save(source / f"Case0{i}.nii.gz", noise).read_bytes())
    whole[-1000] ^= 255
    (source / "Case01.nii.gz").write_bytes(whole if damage == "a byte changed" else whole[:-1000])
    with pytest.raises(UserError, match=r"1 fault: cannot be read: [^;]*Case01.nii.gz \("):
        slice_set(spec_of(source, tmp_path / "set", label=None))
    assert_nothing_left(tmp_path / "set")


def test_a_trailing_axis_of_one_is_no_series(tmp_path):
    path = save(tmp_path / "a.nii", np.arange(24, dtype=np.int16).reshape(2, 3, 4, 1))
    assert read_grid(path).shape == (2, 3, 4)
    assert read_stack(path, 2).shape == (4, 2, 3)


def test_one_channel_of_a_series(tmp_path):
    voxels = np.arange(240, dtype=np.float32).reshape(6, 5, 4, 2)
    for i in range(2):
        save(tmp_path / f"prostate_0{i}.nii.gz", voxels)
        save(tmp_path / f"labels/prostate_0{i}.nii.gz", (voxels[..., 0] > 100).astype(np.uint8))
    images, labels = {"IMG": f"{tmp_path}/prostate_??.nii.gz"}, f"{tmp_path}/labels/prostate_??.nii.gz"
    settings = {"images": images, "label": labels, "patient": r"_(\d+)", "val_list": ("00",), "format": "npy"}
    settings["normalisation"] = Normalisation("none")
    assert slice_set(spec_of("", tmp_path / "set", **settings, channel=1))["channel"] == 1
    np.testing.assert_array_equal(np.load(tmp_path / "set/val/IMG/00_3.npy"), voxels[:, :, 3, 1])
    with pytest.raises(UserError, match=r"is not 3D .*--channel N.*prostate_00.nii.gz \(6 x 5 x 4 x 2\)"):
        slice_set(spec_of("", tmp_path / "all", **settings))
    with pytest.raises(UserError, match=r"has no channel 2.*prostate_00.nii.gz has 2"):
        slice_set(spec_of("", tmp_path / "third", **settings, channel=2))


def test_the_bias_field_goes_before_the_grey_levels_are_cut(tmp_path):
    drift = np.exp(np.linspace(-0.7, 0.7, 16))[:, None, None]
    voxels = np.where(np.indices((16, 12, 4)).sum(0) % 3, 100, 200) * drift
    for i in range(2):
        save(tmp_path / f"volumes/Case0{i}.nii.gz", voxels.astype(np.int16))
    settings = {"label": None, "format": "npy", "normalisation": Normalisation("none", clip=(0.0, 240.0))}
    card = slice_set(spec_of(tmp_path / "volumes", tmp_path / "set", **settings, n4=True, n4_shrink=2))
    assert card["n4"] == {"convergence": 1e-3, "iterations": (50, 50, 50, 50), "shrink": 2}
    stack = np.stack([np.load(tmp_path / f"set/val/IMG/Case00_{i}.npy") for i in range(4)])
    corrected = correct_bias(np.moveaxis(voxels, 2, 0).astype(np.int16), 2)
    assert corrected.max() > 240
    np.testing.assert_array_equal(stack, corrected.clip(0, 240))
    save(tmp_path / "volumes/Case01.nii.gz", np.full((16, 12, 4), 7, np.int16))
    with pytest.raises(UserError, match="no spread of grey levels: .*Case01"):
        slice_set(spec_of(tmp_path / "volumes", tmp_path / "flat", label=None, n4=True))


def test_rounded_matrices_pass_and_the_tolerance_can_be_raised(tmp_path):
    source = cohort(tmp_path / "volumes", n=2)
    rounded = PLAIN.copy()
    rounded[1, 1] += 0.02  # 4 steps along that axis: 0.08 mm
    save(source / "Case00.nii.gz", np.arange(120, dtype=np.int16).reshape(6, 5, 4), rounded)
    slice_set(spec_of(source, tmp_path / "set"))
    with pytest.raises(UserError, match=r"Case00_segmentation.nii.gz \(0.08 mm apart, 0.05 allowed\)"):
        slice_set(spec_of(source, tmp_path / "strict", tolerance=0.05))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": {"IMG": "{source}/nothing*"}}, "no file matches: IMG '.*nothing"),
        ({"images": {"IMG": "{source}/Case*.nii.gz"}}, "two files for IMG of one patient.*Case00_segmentation"),
        ({"patient": "Case"}, "--patient 'Case' has no group"),
        ({"patient": "(Case"}, r"--patient '\(Case' is no regular expression"),
        (
            {"patient": "(Fall[0-9]+)"},
            r"must find an id .* in the file's name \(in the whole path if there is a / in it\), .*Case00.nii.gz",
        ),
        ({"patient": "/Fall/(Case[0-9]+)"}, r"must find an id .* in the path, .*Case00.nii.gz"),
        ({"patient": r"(Case\d\d\.nii.*)|(Case\d\d)_"}, "without GT volume"),
        ({"group": "Fall(.)"}, "--group 'Fall(.)' does not match the image file of Case00, Case01, Case02"),
        ({"val_list": ("Case00", "Case09")}, "--val_list names patients that are not there: Case09. There are Case00"),
        ({"label_map": "1:2"}, "leaves out class 1"),
        ({"tolerance": float("nan")}, "--tolerance is mm, from 0 up, got nan"),
        ({"tolerance": -1.0}, "--tolerance is mm, from 0 up, got -1"),
        ({"size": (8, 40000)}, "numbers from 1 upwards, to 32767"),
        ({"spacing": (1e-6, 1.0)}, r"--spacing 1e-06, 1.0 makes planes of \d+ x \d pixels"),
    ],
)
def test_nothing_comes_of_wrong_settings(tmp_path, changes, message):
    source = cohort(tmp_path / "volumes")
    if "images" in changes:
        changes = {"images": {name: glob.format(source=source) for name, glob in changes["images"].items()}}
    with pytest.raises(UserError, match=message.replace("(.)", r"\(.\)")):
        slice_set(spec_of(source, tmp_path / "set", **changes))
    assert_nothing_left(tmp_path / "set")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"axis": 3}, "--axis is 0, 1 or 2, got 3"),
        ({"format": "jpg"}, "--format is one of png"),
        ({"bits": 16, "format": "npy"}, "--bits is 8, or 16 with --format png"),
        ({"images": {"GT": "x"}}, "folders of their own, GT is named twice"),
        ({"label_folder": "IMG"}, "folders of their own, IMG is named twice"),
        ({"images": {"../x": "x"}}, "named with letters, digits, _ and -, got ../x, GT"),
        ({"label_folder": ""}, "named with letters"),
        ({"images": {"in": ("x", "y")}}, "png holds one channel a slice and in has several: take --format npy or nii"),
        ({"distance_maps": "3d_distmap", "label": None, "n_class": 2}, "give --label"),
        ({"distance_maps": "3d_distmap"}, "give --n_class K or --label_map"),
        ({"distance_maps": "GT", "n_class": 2}, "folders of their own, GT is named twice"),
        ({"n_class": 0}, "--n_class is 1 to 256, got 0"),
        ({"normalisation": Normalisation("zscore")}, "z-scores leave that range"),
        ({"others": 1}, "--others goes with --label_map"),
        ({"size": (0, 4)}, "numbers from 1 upwards"),
        ({"multiple": 0}, "numbers from 1 upwards"),
        ({"resize": (4, 0)}, "numbers from 1 upwards"),
        ({"normalisation": Normalisation(no_clip=True)}, "leave that range, as --no_clip does"),
        ({"resize": (4, 4), "spacing": (1.0, 1.0)}, "--resize W H excludes --size, --multiple and --spacing"),
        ({"spacing": (1.0, float("nan"))}, "--spacing W H are mm, above 0"),
        ({"channel": -1}, "--channel counts from 0, got -1"),
        ({"n4": True, "n4_shrink": 0}, "--n4_shrink is at least 1, got 0"),
        ({"n4_shrink": 2}, "--n4_shrink goes with --n4"),
        ({"resize": (4, 4), "size": (4, 4)}, "--resize W H excludes --size, --multiple and --spacing"),
        ({"resize": (4, 4), "multiple": 8}, "--resize W H excludes --size, --multiple and --spacing"),
        ({"val": 1}, "--val N and --val_list exclude"),
        ({"test": 1, "test_list": ("Case01",)}, "--test N and --test_list exclude"),
        ({"val_list": ()}, "say who validates"),
        ({"split_by_blocks": Blocks(2, 2)}, "takes no other split"),
        ({"split_by_blocks": Blocks(2, 1), "val_list": ()}, "each 2nd or more"),
        ({"ignore": 2}, "--ignore goes with --label and --label_map"),
        ({"ignore": 1, "label_map": "1:1"}, "--ignore 1 is a label that --label_map gives a class"),
        ({"class_names": ("a", "b", "c"), "label_map": "1:1"}, "the names of all classes.*: 2, got 3"),
        ({"jobs": 0}, "--jobs is at least 1"),
    ],
)
def test_settings_that_contradict_each_other(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        spec_of("volumes", tmp_path / "set", **changes)


def test_slices_of_different_sizes_are_refused(tmp_path):
    source = cohort(tmp_path / "volumes")
    cohort(tmp_path / "more", n=1, shape=(7, 5, 4))
    for path in (tmp_path / "more").iterdir():
        path.replace(source / path.name.replace("00", "03"))
    with pytest.raises(UserError, match=r"another size than the usual \(6, 5\) \(give --size .*: Case03 \(7, 5\)"):
        slice_set(spec_of(source, tmp_path / "set"))
    assert slice_set(spec_of(source, tmp_path / "set", size=(8, 8)))["size"] == (8, 8)


def test_flat_volume_and_values_that_png_cannot_hold(tmp_path):
    source = cohort(tmp_path / "volumes", n=2)
    save(source / "Case01.nii.gz", np.full((6, 5, 4), 3, np.int16))
    with pytest.raises(UserError, match="minmax, it has no spread of grey levels: .*Case01"):
        slice_set(spec_of(source, tmp_path / "set"))
    with pytest.raises(UserError, match=r"outside 0..1, which png cannot hold .*Case00.nii.gz \(0 to 119\)"):
        slice_set(spec_of(source, tmp_path / "set", normalisation=Normalisation("none")))
    assert_nothing_left(tmp_path / "set")


# ------------------------------------------------------------------------------------------------- whole or not


def test_a_set_that_is_there_is_not_touched(tmp_path):
    source = cohort(tmp_path / "volumes", n=2)
    (tmp_path / "set").mkdir()
    with pytest.raises(UserError, match="set is there already; remove it"):
        slice_set(spec_of(source, tmp_path / "set"))
    assert list((tmp_path / "set").iterdir()) == []


def test_what_a_killed_run_left_is_replaced(tmp_path):
    source = cohort(tmp_path / "volumes", n=2)
    mine = [tmp_path / f"{name}/val/IMG/Case07_0.png" for name in ("set_tmp", "set_old", ".set.new-mine")]
    for path in (*mine, left := tmp_path / ".set.new-0123abcd/val/IMG/Case07_0.png"):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"half")
    with pytest.raises(UserError, match="Nothing was written"):
        slice_set(spec_of(source, tmp_path / "set", label_map="7:1"))
    assert not left.exists()
    slice_set(spec_of(source, tmp_path / "set"))
    assert not list((tmp_path / "set").rglob("Case07*"))
    assert [path.read_bytes() for path in mine] == [b"half"] * 3
    assert {path.name for path in tmp_path.iterdir()} == {"volumes", "set", "set_tmp", "set_old", ".set.new-mine"}


def test_of_two_who_make_one_set_the_second_is_refused(tmp_path):
    source, dest = cohort(tmp_path / "volumes", n=2), tmp_path / "set"
    with whole_folder(dest) as made:
        made.mkdir()
        with pytest.raises(UserError, match=f"set is being worked on by process {os.getpid()} "):
            slice_set(spec_of(source, dest))
        assert made.is_dir()
    assert list(dest.iterdir()) == []
    with pytest.raises(UserError, match="set is there already"), whole_folder(dest):
        pass


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch, error):
    source = cohort(tmp_path / "volumes", n=2)
    plain, calls = slice_case.save_png, []

    def fail_at_the_seventh(*args):
        calls.append(args)
        if len(calls) == 7:
            raise error
        plain(*args)

    monkeypatch.setattr(slice_case, "save_png", fail_at_the_seventh)
    with pytest.raises(type(error)):
        slice_set(spec_of(source, tmp_path / "set"))
    assert_nothing_left(tmp_path / "set")


# ---------------------------------------------------------------------------------------------------- the split


def groups_of(n, size=1):
    return {f"p{i:02}": f"g{i // size}" for i in range(n)}


def test_drawn_split_depends_on_the_seed_alone():
    splits = [
        split_patients(groups_of(12), spec_of("v", Path("s"), val_list=(), val=4, test=2, seed=s)) for s in (0, 0, 1)
    ]
    assert splits[0] == splits[1] != splits[2]
    assert sorted(splits[0].values()) == ["test"] * 2 + ["train"] * 6 + ["val"] * 4


def test_test_patients_stay_when_val_grows_and_when_patients_come_in_another_order():
    few = split_patients(groups_of(12), spec_of("v", Path("s"), val_list=(), val=1, test=3))
    backwards = dict(reversed(groups_of(12).items()))
    many = split_patients(backwards, spec_of("v", Path("s"), val_list=(), val=5, test=3))
    assert {p for p, s in few.items() if s == "test"} == {p for p, s in many.items() if s == "test"}


def test_groups_stay_together():
    for seed in range(5):
        spec = spec_of("v", Path("s"), val_list=(), val=4, seed=seed)
        home = split_patients(groups_of(12, size=2), spec)
        assert list(home.values()).count("val") == 4
        assert all(home[f"p{i:02}"] == home[f"p{i + 1:02}"] for i in range(0, 12, 2))


@pytest.mark.parametrize(
    ("groups", "changes", "message"),
    [
        (groups_of(6, 2), {"val_list": ("p00",)}, "tear these groups apart: g0. List all"),
        (
            groups_of(6, 2),
            {"val_list": (), "val": 3},
            "--val 3: cannot take that many patients out of groups of 2, 2, 2",
        ),
        (groups_of(3), {"val_list": (), "val": 4}, "--val 4: cannot take"),
        (groups_of(3), {"val_list": (), "val": 3}, "none is left to train on"),
        (groups_of(3), {"val_list": ("p00",), "test_list": ("p00", "p01")}, "share p00"),
        (groups_of(3), {"val_list": ("p00",), "test_list": ("q",)}, "--test_list names patients that are not there: q"),
    ],
)
def test_splits_that_cannot_be(groups, changes, message):
    with pytest.raises(UserError, match=message):
        split_patients(groups, spec_of("v", Path("s"), **changes))


def test_group_pattern_and_lists_in_files(tmp_path):
    for name in ("a_1", "a_2", "b_1", "b_2"):
        save(tmp_path / f"volumes/{name}.nii", np.arange(60, dtype=np.int16).reshape(3, 4, 5))
    settings = {"images": {"IMG": f"{tmp_path}/volumes/*.nii"}, "label": None, "patient": r"(.*)\.nii", "group": "^(.)"}
    card = slice_set(spec_of("", tmp_path / "drawn", **settings, val_list=(), val=2))
    assert len({name[0] for name in card["split"]["val"]}) == 1
    (tmp_path / "val.txt").write_text("b_1\nb_2\n")
    arguments = f"--dest x --image IMG=y --patient (z) --val_list {tmp_path}/val.txt"
    assert read_spec(arguments.split()).val_list == ("b_1", "b_2")


def test_blocks_of_one_patients_slices(tmp_path):
    source = cohort(tmp_path / "volumes", n=1, shape=(6, 5, 9))
    card = slice_set(spec_of(source, tmp_path / "set", val_list=(), split_by_blocks=Blocks(size=2, every=2)))
    numbers = {
        split: sorted(int(p.stem[7:]) for p in (tmp_path / f"set/{split}/GT").iterdir()) for split in ("train", "val")
    }
    assert numbers == {"train": [0, 1, 4, 5, 8], "val": [2, 3, 6, 7]}
    assert (card["split_unit"], card["split"]) == ("slice blocks", "alternating blocks of one patient's slices")


def test_a_label_to_ignore_is_255_in_the_slices_and_counts_nowhere(tmp_path):
    source = cohort(tmp_path / "volumes", n=2, values=(0, 1, 2, 7))
    words = f"--dest {tmp_path}/set --image IMG={source}/Case??.nii.gz --label {source}/Case??_segmentation.nii.gz"
    words += r" --patient (Case\d+) --orient stored --val 1 --label_map 1:1,2:2 --ignore 7 --format npy"
    spec = read_spec([*words.split(), "--class_names", "background,left part,right part"])
    card = slice_set(spec)
    for case in ("Case00", "Case01"):
        truth = np.asanyarray(nib.load(source / f"{case}_segmentation.nii.gz").dataobj)
        slices = [read(next((tmp_path / "set").glob(f"*/GT/{case}_{n}.npy"))) for n in range(4)]
        np.testing.assert_array_equal(np.stack(slices, -1), np.where(truth == 7, 255, truth))
    assert (card["n_class"], card["ignore"], card["label_map"]) == (3, 255, {"1": 1, "2": 2})
    assert card["class_names"] == ["background", "left part", "right part"]
    assert all(len(split["slices_with_class"]) == 3 for split in card["counts"].values())
    again = SliceSpec.from_card(card, dest=tmp_path, images={"IMG": ""}, patient="(.)", label="x", val=1)
    assert again.mapping() == spec.mapping()
    sizes = measure_slices(tmp_path / "set", "GT", 3).counts
    assert sizes.shape == (8, 3)
    assert 0 < sizes.sum() < 8 * 30  # what is ignored is in no class


# ------------------------------------------------------------------------------------------------- the way back

OBLIQUE = np.array([[0.1, -0.3, 2.7, 12.5], [-1.4, 0.2, 0.3, -80], [0.2, -1.3, -0.4, 33.25], [0, 0, 0, 1]])
FLIPPED = np.array([[-0.6, 0, 0, 90], [0, 0, -3.3, 45], [0, 0.6, 0, -12], [0, 0, 0, 1.0]])


@pytest.mark.parametrize("affine", [PLAIN, OBLIQUE, FLIPPED], ids=["plain", "oblique", "flipped"])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(
    "frame", [{}, {"multiple": 8}, {"size": (20, 18)}, {"size": (5, 18)}, {"size": (3, 4)}], ids=str
)
def test_round_trip(tmp_path, axis, frame, affine):
    source = cohort(tmp_path / "volumes", n=1, shape=(9, 11, 7), affine=affine, values=(0, 1, 2))
    slice_set(spec_of(source, tmp_path / "set", axis=axis, val_list=(), split_by_blocks=Blocks(2, 2), **frame))
    rows = read_rows(tmp_path / "set")
    slices = {int(row["index"]): read(tmp_path / f"set/{row['split']}/GT/{row['slice']}.png") for row in rows}
    volume, back = restore(slices, rows)
    original = nib.load(source / "Case00_segmentation.nii.gz")
    truth = np.asanyarray(original.dataobj).copy()
    if min(frame.get("size", (99, 99))) < 7:  # what was cropped comes back as background
        kept = np.zeros_like(truth)
        where = [slice(None)] * 3
        for a, n in zip([a for a in range(3) if a != axis], frame["size"], strict=True):
            start = max((truth.shape[a] - n) // 2, 0)
            where[a] = slice(start, start + n)
        kept[tuple(where)] = truth[tuple(where)]
        truth = kept
    np.testing.assert_array_equal(volume, truth)
    np.testing.assert_array_equal(back, original.affine)


def test_restore_takes_a_part_and_refuses_a_muddle(tmp_path):
    source = cohort(tmp_path / "volumes", n=2)
    slice_set(spec_of(source, tmp_path / "set"))
    rows = [row for row in read_rows(tmp_path / "set") if row["patient"] == "Case00"]
    ones = np.ones((6, 5), np.uint8)
    volume, _ = restore({2: ones}, rows[2:3])
    assert volume.sum(axis=(0, 1)).tolist() == [0, 0, 30, 0]
    with pytest.raises(UserError, match="do not pair up one to one; slices at fault: 1, 3"):
        restore({0: ones, 3: ones}, rows[:2])
    with pytest.raises(UserError, match=r"Case00_0 was cut to \(6, 5\), but \(5, 6\) came"):
        restore({0: ones.T}, rows[:1])
    with pytest.raises(UserError, match="one patient's volume, got .*Case00.nii.gz, .*Case01.nii.gz"):
        restore({}, read_rows(tmp_path / "set"))


# ------------------------------------------------------------------------------------------------- command line


def test_flags_become_settings():
    arguments = (
        "--dest d --image Wat=a*b --image Inn=c=d --label l --patient (p) --axis 1 --format npy --normalise window"
    )
    arguments += " --window -100 200 --scope slice --clip -500 500 --size 4 6 --label_map 1-2:1 --others 0 --val 4"
    arguments += " --test_list a,b --seed 3 --group (g) --site S --modality MR --jobs 2 --phantom text --tolerance 0.5"
    expected = SliceSpec(
        dest=Path("d"),
        images={"Wat": "a*b", "Inn": "c=d"},
        patient="(p)",
        label="l",
        axis=1,
        format="npy",
        normalisation=Normalisation("window", "slice", (1.0, 99.0), (-100.0, 200.0), (-500.0, 500.0)),
        size=(4, 6),
        label_map="1-2:1",
        others=0,
        val=4,
        test_list=("a", "b"),
        seed=3,
        group="(g)",
        tolerance=0.5,
        site="S",
        modality="MR",
        phantom="text",
        jobs=2,
    )
    assert read_spec(arguments.split()) == expected
    arguments = "--dest d --image A=b --image B=e --image A=c --label l --label_folder gt --distance_maps maps"
    arguments += " --resize 8 9 --n_class 4 --patient (p) --val 1 --format nii --jobs 1 --no_clip"
    assert read_spec(arguments.split()) == SliceSpec(
        dest=Path("d"),
        images={"A": ("b", "c"), "B": "e"},
        patient="(p)",
        label="l",
        label_folder="gt",
        distance_maps="maps",
        resize=(8, 9),
        normalisation=Normalisation(no_clip=True),
        n_class=4,
        format="nii",
        val=1,
    )
    arguments = "--dest d --image A=b --patient (p) --val 1 --jobs 1 --spacing 1.5 0.75 --n4 --n4_shrink 4 --channel 0"
    flags = {"spacing": (1.5, 0.75), "n4": True, "n4_shrink": 4, "channel": 0}
    assert read_spec(arguments.split()) == SliceSpec(Path("d"), {"A": "b"}, "(p)", val=1, **flags)


def test_program_says_one_paragraph_and_exits_with_2(tmp_path):
    source = cohort(tmp_path / "volumes", n=2)
    command = [sys.executable, "-m", "preprocess.slice_volumes", "--dest", tmp_path / "set", "--patient", r"(Case\d+)"]
    command += ["--image", f"IMG={source}/Case??.nii.gz", "--label", f"{source}/*_segmentation.nii.gz", "--val", "1"]
    settings = {"cwd": ROOT, "env": os.environ | {"OMP_NUM_THREADS": "1"}, "capture_output": True, "text": True}
    good = subprocess.run([*command, "--jobs", "1"], **settings, check=False)
    bad = subprocess.run([*command, "--jobs", "1"], **settings, check=False)
    assert (good.returncode, good.stderr) == (0, "")
    assert good.stdout.startswith("set: train 4 slices of 1 patient")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert "is there already" in bad.stderr
    assert bad.stderr.count("\n") == 1
