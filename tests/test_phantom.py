"""The made-up cohorts: archive layouts, labels, geometry, equal bytes, and that real data is never overwritten."""

import gzip
import hashlib
import json
import sys

import nibabel as nib
import numpy as np
import pytest

from preprocess.phantom.__main__ import main, make_cohort
from preprocess.phantom.anatomy import COHORTS
from preprocess.phantom.archive import save
from preprocess.phantom.render import Blob, Part, Tube, render, smooth_field
from utils import UserError

CLASSES = {"prostate": {0, 1, 2}, "whs": {0, 205, 420, 500, 550, 600, 820, 850}, "ivd": {0, 1}}
SCANS = {"prostate": 16, "whs": 10, "ivd": 16}
SITES = [(kind, number) for kind, sites in COHORTS.items() for number in range(len(sites))]


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory):
    """The three small cohorts, made once: folder by kind."""
    home = tmp_path_factory.mktemp("phantom")
    for kind in COHORTS:
        make_cohort(kind, home / kind)
    return {kind: home / kind for kind in COHORTS}


def scans(folder, kind, number):
    """Of one site: [(first image, labels)] in the order of the scans."""
    site = COHORTS[kind][number]
    ids = range(site.first, site.first + SCANS[kind])
    return [
        (nib.load(folder / next(iter(site.images)).format(n)), nib.load(folder / site.labels.format(n))) for n in ids
    ]


def voxels(image):
    return np.asarray(image.dataobj)


def digests(folder):
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*.*")}


def test_layout_prostate(cohorts):
    names = set(digests(cohorts["prostate"]))
    want = {f"RUNMC/Case{n:02d}{end}.nii.gz" for n in range(16) for end in ("", "_segmentation")}
    want |= {f"BMC/Case{n:02d}{end}.nii.gz" for n in range(16) for end in ("", "_Segmentation")}
    assert names == want | {"phantom.json"}


def test_layout_whs(cohorts):
    names = set(digests(cohorts["whs"]))
    want = {
        f"{m}_train/{m}_train_{n}_{what}.nii.gz"
        for m in ("mr", "ct")
        for n in range(1001, 1011)
        for what in ("image", "label")
    }
    assert names == want | {"phantom.json"}


def test_layout_ivd(cohorts):
    names = set(digests(cohorts["ivd"]))
    want = {f"{n:02d}_{what}.nii" for n in range(16) for what in ("fat", "inn", "opp", "wat", "Labels")}
    assert names == want | {"phantom.json"}


@pytest.mark.parametrize("kind", COHORTS)
def test_card(cohorts, kind):
    assert json.loads((cohorts[kind] / "phantom.json").read_text()) == {"phantom": "small", "kind": kind, "seed": 0}


@pytest.mark.parametrize(("kind", "number"), SITES)
def test_every_patient_has_every_class_and_slices_without(cohorts, kind, number):
    for image, labels in scans(cohorts[kind], kind, number):
        label = voxels(labels)
        assert set(np.unique(label)) - {421} == CLASSES[kind]
        held = np.isin(label, (1, 2, 205, 420, 500, 820)).any((0, 1))
        assert not held.all()
        if kind != "ivd":  # discs go on beyond the field of view; what lies between them is without
            assert not held[0]
            assert not held[-1]
        assert image.get_data_dtype() == labels.get_data_dtype() == np.int16


@pytest.mark.parametrize(("kind", "number"), SITES)
def test_geometry(cohorts, kind, number):
    site = COHORTS[kind][number]
    grid = site.grids["small"]
    for image, labels in scans(cohorts[kind], kind, number):
        np.testing.assert_array_equal(image.affine, labels.affine)
        assert image.shape == labels.shape
        assert all(low <= n <= high for n, low, high in zip(image.shape, *grid.shape, strict=True))
        np.testing.assert_allclose(image.header.get_zooms(), grid.spacing[0], rtol=1e-5)
        assert "".join(nib.aff2axcodes(image.affine)) == site.stored
        assert image.header.get_xyzt_units()[0] == "mm"
        np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=0.01)


def test_stray_label_is_in_one_mr_scan(cohorts):
    stray = [421 in voxels(labels) for _, labels in scans(cohorts["whs"], "whs", 0)]
    assert stray.count(True) == 1
    assert not any(421 in voxels(labels) for _, labels in scans(cohorts["whs"], "whs", 1))


def test_ct_is_in_hounsfield_units(cohorts):
    for image, labels in scans(cohorts["whs"], "whs", 1):
        scan, label = voxels(image), voxels(labels)
        assert 300 < np.median(scan[label == 500]) < 500
        assert 50 < np.median(scan[label == 205]) < 150
        assert scan.min() >= -1000


def test_dixon_images_are_sums_of_water_and_fat(cohorts):
    water, fat, inn, opp = (
        voxels(nib.load(cohorts["ivd"] / f"03_{name}.nii")).astype(float) for name in ("wat", "fat", "inn", "opp")
    )
    bright = (water > 300) & (fat > 100)
    assert abs(np.median((inn - water - fat)[bright])) < 25
    assert abs(np.median((opp - abs(water - fat))[bright])) < 25


@pytest.mark.parametrize(("kind", "number"), SITES)
def test_patients_differ(cohorts, kind, number):
    step = COHORTS[kind][number].visits
    masks = [voxels(labels) > 0 for _, labels in scans(cohorts[kind], kind, number)][::step]
    assert len({mask.tobytes() for mask in masks}) == len(masks)
    sizes = np.asarray([mask.sum() for mask in masks])
    assert sizes.std() > 0.05 * sizes.mean()


def test_sites_share_no_volume(cohorts):
    for kind in ("prostate", "whs"):
        images = {voxels(image).tobytes() for number in (0, 1) for image, _ in scans(cohorts[kind], kind, number)}
        assert len(images) == 2 * SCANS[kind]


def test_discs_come_in_pairs_of_one_subject(cohorts):
    masks = [voxels(labels) > 0 for _, labels in scans(cohorts["ivd"], "ivd", 0)]

    def dice(one, two):
        return 2 * (one & two).sum() / (one.sum() + two.sum())

    within = [dice(masks[2 * k], masks[2 * k + 1]) for k in range(8)]
    between = [dice(masks[2 * k], masks[(2 * k + 3) % 16]) for k in range(8)]
    assert np.mean(within) > 1.5 * np.mean(between)  # a visit moves the body by a few mm, no more
    assert all(not np.array_equal(masks[2 * k], masks[2 * k + 1]) for k in range(8))


@pytest.mark.parametrize("jobs", [1, 2])
def test_same_bytes_again(cohorts, tmp_path, jobs):
    make_cohort("prostate", tmp_path / "again", jobs=jobs)
    assert digests(tmp_path / "again") == digests(cohorts["prostate"])


def test_another_seed_gives_other_patients():
    site = COHORTS["prostate"][1]
    one, two = (render(site, "small", (seed, 1, 1), 0)[1] for seed in (0, 1))
    assert one.shape != two.shape or (one != two).any()


def test_full_size_is_as_published():
    for kind, shape, count in (("prostate", (384, 384), 30), ("whs", (256, 256), 20), ("ivd", (36, 256, 256), 16)):
        for site in COHORTS[kind]:
            grid = site.grids["full"]
            assert grid.scans == count
            assert all(corner[: len(shape)] == shape for corner in grid.shape)


def test_small_and_full_show_the_same_anatomy():
    site = COHORTS["prostate"][1]
    volumes = []
    for size in ("small", "full"):
        _, labels, affine = render(site, size, (0, 1, 1), 2)
        volumes.append((labels > 0).sum() * abs(np.linalg.det(affine)) / 1000)
    assert volumes[0] == pytest.approx(volumes[1], rel=0.05)


def test_refuses_a_folder_that_is_not_a_phantom(tmp_path):
    real = tmp_path / "volumes"
    real.mkdir()
    (real / "Case00.nii.gz").write_bytes(b"a patient")
    with pytest.raises(UserError, match=r"none \(it has no phantom.json\)"):
        make_cohort("prostate", real)
    assert (real / "Case00.nii.gz").read_bytes() == b"a patient"
    assert not (tmp_path / "volumes_tmp").exists()


def test_replaces_a_phantom_and_what_a_kill_left(cohorts, tmp_path):
    dest, stale = tmp_path / "volumes", tmp_path / "volumes_tmp"
    for folder in (dest, stale):
        folder.mkdir()
        (folder / "old").write_text("")
    (dest / "phantom.json").write_text("{}")
    make_cohort("prostate", dest)
    assert digests(dest) == digests(cohorts["prostate"])
    assert not (dest / "old").exists()
    assert not stale.exists()


@pytest.mark.parametrize("arguments", [["liver", "--dest", "x"], ["ivd"], ["ivd", "--dest", "x", "--seed", "-1"]])
def test_bad_command_line_exits_with_2(monkeypatch, capsys, arguments):
    monkeypatch.setattr(sys, "argv", ["phantom", *arguments])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert "error" in capsys.readouterr().err


def test_says_phantom(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["phantom", "prostate", "--dest", str(tmp_path / "p"), "--jobs", "1"])
    main()
    assert "PHANTOM" in capsys.readouterr().out


def test_gzip_holds_no_time_and_no_name(tmp_path):
    save(tmp_path / "a.nii.gz", np.zeros((2, 3, 4), np.int16), np.eye(4))
    packed = (tmp_path / "a.nii.gz").read_bytes()
    assert packed[3] == 0  # no flag: neither file name nor comment
    assert packed[4:8] == b"\0\0\0\0"
    assert len(gzip.decompress(packed)) == 352 + 2 * 24


def test_level_is_the_depth_below_the_surface():
    points = np.asarray([[0.0, 6, 10, 13], [0, 0, 0, 0], [0, 8, 0, 0]]).reshape(3, 4, 1, 1)
    np.testing.assert_allclose(Blob((0, 0, 0), (10, 10, 10)).level(points).ravel(), [10, 0, 0, -3], atol=1e-12)
    pipe = Tube(((0, 0, 0), (10, 0, 0)), 2)
    np.testing.assert_allclose(pipe.level(points).ravel(), [2, -6, 2, -1], atol=1e-12)


def test_turn_moves_the_long_axis():
    tip = np.asarray([0.0, 0, 29]).reshape(3, 1, 1, 1)
    upright, turned = (Blob((0, 0, 0), (10, 10, 30), turn) for turn in ((0, 0, 0), (90, 0, 0)))
    assert upright.level(tip) > 0 > turned.level(tip)
    assert turned.level(np.moveaxis(tip, 0, 0)[[0, 2, 1]]) > 0  # now along y


def test_smooth_field_is_the_same_function_on_every_grid():
    coarse, fine = (np.arange(0, 100, step) for step in (4.0, 2.0))
    one, two = (smooth_field(np.random.default_rng(3), [axis] * 3, 30.0) for axis in (coarse, fine))
    np.testing.assert_allclose(one, two[::2, ::2, ::2], atol=1e-12)


def test_every_tissue_that_is_painted_has_an_intensity():
    for sites in COHORTS.values():
        for site in sites:
            parts = [part for seed in range(20) for part in site.anatomy(np.random.default_rng(seed))]
            assert all(isinstance(part, Part) for part in parts)
            assert {part.tissue for part in parts} == set(site.means)
