"""The made-up cohorts: archive layouts, labels, geometry, equal bytes, and that real data is never overwritten."""

import gzip
import hashlib
import json
import sys
import zlib

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from preprocess.phantom.__main__ import MAKERS, main, make_cohort
from preprocess.phantom.archive import save
from preprocess.phantom.cohorts import COHORTS
from preprocess.phantom.render import Blob, Part, Tube, render, smooth_field
from processes.errors import UserError

CLASSES = {
    "prostate": {0, 1, 2},
    "whs": {0, 205, 420, 500, 550, 600, 820, 850},
    "ivd": {0, 1},
    "acdc": {0, 1, 2, 3},
    "isles": {0, 1},
    "wmh": {0, 1},
    "msd_prostate": {0, 1, 2},
    "brats": {0, 1, 2, 3},
    "sites": {0, 1, 2},
}
RARE = {"whs": {421}, "wmh": {2}}
CHECKSUMS = {  # of the first labels; published figures were drawn from these patients
    "ivd": 1992681501,
    "prostate": 2859669617,
    "whs": 3257848231,
    "acdc": 3466281290,
    "isles": 3276592166,
    "wmh": 2934290199,
    "msd_prostate": 3590635112,
    "brats": 1304380572,
    "sites": 978400076,
}
SITES = [(kind, number) for kind, sites in COHORTS.items() for number, site in enumerate(sites) if site.labels]
DECATHLON = {"msd_prostate": "Task05_Prostate", "brats": "Task01_BrainTumour"}


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory):
    """The small cohorts, made once: folder by kind."""
    home = tmp_path_factory.mktemp("phantom")
    for kind in COHORTS:
        make_cohort(kind, home / kind)
    return {kind: home / kind for kind in COHORTS}


def scans(folder, kind, number):
    """Of one site: [(images, labels)] in the order of the scans, a pair for each frame."""
    site = COHORTS[kind][number]
    names = [site.stack] if site.stack else site.images
    moments = [(site.number(n), frame) for n in range(site.grids["small"].scans) for frame in site.frames]
    return [
        ([nib.load(folder / name.format(*m)) for name in names], nib.load(folder / site.labels.format(*m)))
        for m in moments
    ]


def training(cohorts, kind):
    """Of a task of the decathlon: [((C,X,Y,Z) image, labels)]."""
    return [(np.moveaxis(voxels(image), -1, 0), voxels(labels)) for (image,), labels in scans(cohorts[kind], kind, 0)]


def voxels(image):
    return np.asarray(image.dataobj)


def digests(folder):
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.rglob("*.*")
        if p.is_file()
    }


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


def test_layout_acdc(cohorts):
    names = set(digests(cohorts["acdc"]))
    systole = {1: 12, 21: 10, 41: 9, 61: 11, 81: 13}
    want = {
        f"training/patient{n:03d}/{file}"
        for first, frame in systole.items()
        for n in range(first, first + 4)
        for file in ("Info.cfg", *(f"patient{n:03d}_frame{f:02d}{e}.nii.gz" for f in (1, frame) for e in ("", "_gt")))
    }
    assert names == want | {"phantom.json"}
    card = (cohorts["acdc"] / "training/patient043/Info.cfg").read_text()
    assert card == "ED: 1\nES: 9\nGroup: MINF\nNbFrame: 30\n"


def test_layout_isles(cohorts):
    names = set(digests(cohorts["isles"]))
    kinds = {"CT": 345, "CT_CBF": 346, "CT_CBV": 347, "CT_MTT": 348, "CT_Tmax": 349, "OT": 350}
    files = {(n, f"SMIR.Brain.XX.O.{kind}.{number}{n:03d}") for n in range(1, 41) for kind, number in kinds.items()}
    assert names == {f"TRAINING/case_{n}/{file}/{file}.nii" for n, file in files} | {"phantom.json"}


def test_layout_wmh(cohorts):
    names = set(digests(cohorts["wmh"]))
    want = {
        f"{scanner}/{n}/{file}.nii.gz"
        for scanner, first in (("Utrecht", 0), ("Singapore", 50), ("GE3T", 100))
        for n in range(first, first + 10)
        for file in ("pre/FLAIR", "pre/T1", "wmh")
    }
    assert names == want | {"phantom.json"}


@pytest.mark.parametrize(
    ("kind", "scan", "numbers", "tests", "channels"),
    [
        (
            "msd_prostate",
            "prostate_{:02d}.nii.gz",
            [0, 1, 2, 4, 6, 7, 10, 13, 14, 16, 17, 18, 20, 21, 24, 25, 28, 29],
            [3, 5, 8, 9],
            {"0": "T2", "1": "ADC"},
        ),
        (
            "brats",
            "BRATS_{:03d}.nii.gz",
            range(1, 25),
            range(485, 501),
            {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"},
        ),
    ],
)
def test_layout_decathlon(cohorts, kind, scan, numbers, tests, channels):
    task = cohorts[kind] / DECATHLON[kind]
    card = json.loads((task / "dataset.json").read_text())
    listed = {name.removeprefix("./") for pair in card["training"] for name in pair.values()}
    listed |= {name.removeprefix("./") for name in card["test"]}
    want = {f"{part}/{scan.format(n)}" for part in ("imagesTr", "labelsTr") for n in numbers}
    assert listed == want | {f"imagesTs/{scan.format(n)}" for n in tests}
    assert set(digests(task)) == listed | {"dataset.json"}
    assert all(pair["image"].replace("images", "labels") == pair["label"] for pair in card["training"])
    assert (card["numTraining"], card["numTest"]) == (len(numbers), len(tests))
    assert card["modality"] == channels
    assert set(map(int, card["labels"])) == CLASSES[kind]
    assert "PHANTOM" in card["description"]
    for name in card["test"]:
        image = nib.load(task / name)
        assert image.shape[3:] == (len(channels),)
        assert voxels(image).any()


@pytest.mark.parametrize("kind", COHORTS)
def test_card(cohorts, kind):
    assert json.loads((cohorts[kind] / "phantom.json").read_text()) == {"phantom": "small", "kind": kind, "seed": 0}


@pytest.mark.parametrize(("kind", "number"), SITES)
def test_every_patient_has_every_class(cohorts, kind, number):
    for images, labels in scans(cohorts[kind], kind, number):
        assert set(np.unique(voxels(labels))) - RARE.get(kind, set()) == CLASSES[kind]
        assert labels.get_data_dtype() == np.int16
        stored = [image.dtype for image in COHORTS[kind][number].images.values()]
        assert [image.get_data_dtype() for image in images] == stored[: len(images)]


@pytest.mark.parametrize(("kind", "number"), SITES)
def test_slices_without(cohorts, kind, number):
    held = [
        np.isin(voxels(labels), (1, 2, 205, 420, 500, 820)).any((0, 1))
        for _, labels in scans(cohorts[kind], kind, number)
    ]
    if kind in ("prostate", "whs", "msd_prostate", "sites"):
        assert not any(h[0] or h[-1] for h in held)
    elif kind == "ivd":  # discs go on beyond the field of view; what lies between them is without
        assert not any(h.all() for h in held)
    elif kind == "brats":
        assert 0.3 < 1 - np.concatenate(held).mean() < 0.7
    else:  # in some patients the organ or the lesion is longer than the field of view
        assert 0.05 < 1 - np.concatenate(held).mean() < 0.3


@pytest.mark.parametrize(("kind", "number"), SITES)
def test_geometry(cohorts, kind, number):
    site = COHORTS[kind][number]
    grid = site.grids["small"]
    for images, labels in scans(cohorts[kind], kind, number):
        for other in (*images[1:], labels):
            np.testing.assert_array_equal(images[0].affine, other.affine)
            assert images[0].shape[:3] == other.shape
        image = images[0]
        assert all(low <= n <= high for n, low, high in zip(labels.shape, *grid.shape, strict=True))
        np.testing.assert_allclose(labels.header.get_zooms(), grid.spacing[0], rtol=1e-5)
        assert "".join(nib.aff2axcodes(image.affine)) == site.stored
        assert image.header.get_xyzt_units()[0] == "mm"
        np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=0.01)


def test_stray_label_is_in_one_mr_scan(cohorts):
    stray = [421 in voxels(labels) for _, labels in scans(cohorts["whs"], "whs", 0)]
    assert stray.count(True) == 1
    assert not any(421 in voxels(labels) for _, labels in scans(cohorts["whs"], "whs", 1))


def test_ct_is_in_hounsfield_units(cohorts):
    for (image,), labels in scans(cohorts["whs"], "whs", 1):
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
    step = COHORTS[kind][number].visits * len(COHORTS[kind][number].frames)
    masks = [voxels(labels) > 0 for _, labels in scans(cohorts[kind], kind, number)][::step]
    assert len({mask.tobytes() for mask in masks}) == len(masks)
    sizes = np.asarray([mask.sum() for mask in masks])
    assert sizes.std() > 0.05 * sizes.mean()


def test_sites_share_no_volume(cohorts):
    for kind in ("prostate", "whs", "acdc", "wmh", "sites"):
        numbers = range(len(COHORTS[kind]))
        images = [voxels(images[0]).tobytes() for number in numbers for images, _ in scans(cohorts[kind], kind, number)]
        assert len(set(images)) == len(images)


def test_discs_come_in_pairs_of_one_subject(cohorts):
    masks = [voxels(labels) > 0 for _, labels in scans(cohorts["ivd"], "ivd", 0)]

    def dice(one, two):
        return 2 * (one & two).sum() / (one.sum() + two.sum())

    within = [dice(masks[2 * k], masks[2 * k + 1]) for k in range(8)]
    between = [dice(masks[2 * k], masks[(2 * k + 3) % 16]) for k in range(8)]
    assert np.mean(within) > 1.5 * np.mean(between)  # a visit moves the body by a few mm, no more
    assert all(not np.array_equal(masks[2 * k], masks[2 * k + 1]) for k in range(8))


@pytest.mark.parametrize("number", range(5))
def test_left_ventricle_contracts(cohorts, number):
    moments = [voxels(labels) for _, labels in scans(cohorts["acdc"], "acdc", number)]
    grids = [images[0].affine for images, _ in scans(cohorts["acdc"], "acdc", number)]
    for k in range(0, 8, 2):
        np.testing.assert_array_equal(grids[k], grids[k + 1])
        (cavity, muscle), (squeezed, thick) = ([(m == label).sum() for label in (3, 2)] for m in moments[k : k + 2])
        assert squeezed < 0.9 * cavity
        assert thick == pytest.approx(muscle, rel=0.2)  # as much muscle around less blood


def test_groups_of_patients_differ(cohorts):
    ratio = []
    for number in range(5):
        diastole = [voxels(labels) for _, labels in scans(cohorts["acdc"], "acdc", number)][::2]
        ratio.append(np.mean([(label == 3).sum() / (label == 2).sum() for label in diastole]))
    assert np.argmin(ratio) == 1  # a thick wall
    assert np.argmax(ratio) == 0  # a wide cavity


def test_infarct_is_dark_and_late_and_lies_in_a_larger_late_region(cohorts):
    cores = []
    for images, labels in scans(cohorts["isles"], "isles", 0):
        (_, flow, volume, transit, late), core = map(voxels, images), voxels(labels) == 1
        tissue = (late > 0) & (flow > 0) & ~core
        assert np.median(flow[core]) < 0.6 * np.median(flow[tissue])
        assert np.median(volume[core]) < 0.9 * np.median(volume[tissue])
        assert np.median(transit[core]) > 1.5 * np.median(transit[tissue])
        assert (late > 4).sum() > 1.5 * core.sum()
        assert (flow == 0).mean() > 0.4
        cores.append(core.mean())
    assert min(cores) < 0.001 < 0.005 < np.mean(cores) < 0.02


def test_hyperintensities_are_bright_in_flair_and_few(cohorts):
    greys = []
    for number in range(3):
        for (flair, _), labels in scans(cohorts["wmh"], "wmh", number):
            scan, spots = voxels(flair), voxels(labels) == 1
            around = binary_dilation(spots, iterations=3) & ~spots
            assert np.median(scan[spots]) > 1.2 * np.median(scan[around])
            assert spots.mean() < 0.02
        greys.append(np.median(scan[spots]))
    assert max(greys) > 1.3 * min(greys)


def test_zones_differ_in_both_channels_and_more_in_some_patients(cohorts):
    ratios = np.asarray(
        [
            [np.median(channel[labels == 1]) / np.median(channel[labels == 2]) for channel in image]
            for image, labels in training(cohorts, "msd_prostate")
        ]
    )
    assert (np.median(ratios, 0) > 1.1).all()  # the peripheral zone is the brighter one
    assert (ratios.std(0) > 0.1).all()


def test_peripheral_zone_lies_behind_the_transition_zone(cohorts):
    for _, labels in training(cohorts, "msd_prostate"):
        behind, front = (np.nonzero(labels == zone)[1].mean() for zone in (1, 2))
        assert behind < front  # the axis runs forward


def test_scanners_differ(cohorts):
    for kind in DECATHLON:
        means = np.asarray([image[:, labels > 0].mean(1) for image, labels in training(cohorts, kind)])
        assert (means.std(0) > 0.1 * means.mean(0)).all()


def test_skull_is_stripped(cohorts):
    for image, labels in training(cohorts, "brats"):
        outside = (image == 0).all(0)
        assert 0.5 < outside.mean() < 0.75
        assert ((image == 0).any(0) & ~outside).mean() < 1e-4  # the same brain in every channel
        assert not labels[outside].any()


def test_channels_show_a_glioma(cohorts):
    brighter = []
    for (flair, before, after, t2), labels in training(cohorts, "brats"):
        brain = (flair > 0) & (labels == 0)
        assert np.median(flair[labels == 1]) > 1.15 * np.median(flair[brain])
        assert np.median(t2[labels > 0]) > 1.1 * np.median(t2[brain])
        lit = [np.median(after[where]) / np.median(before[where]) for where in (labels == 3, brain)]
        assert lit[0] > 1.2 * lit[1]
        brighter.append((flair[brain] > np.median(flair[labels == 1])).sum() / (labels == 1).sum())
    assert np.median(brighter) > 0.05  # brightness alone is not enough


def test_other_pathology_is_in_a_few_scans(cohorts):
    other = [2 in voxels(labels) for number in range(3) for _, labels in scans(cohorts["wmh"], "wmh", number)]
    assert 3 <= sum(other) <= 10


@pytest.mark.parametrize(("kind", "jobs"), [("prostate", 1), ("acdc", 2), ("msd_prostate", 2)])
def test_same_bytes_again(cohorts, tmp_path, kind, jobs):
    make_cohort(kind, tmp_path / "again", jobs=jobs)
    assert digests(tmp_path / "again") == digests(cohorts[kind])


def test_a_new_cohort_changes_no_other(cohorts):
    first = {kind: voxels(scans(cohorts[kind], kind, 0)[0][1]) for kind in COHORTS}
    assert {kind: zlib.crc32(labels.tobytes()) for kind, labels in first.items()} == CHECKSUMS


def test_another_seed_gives_other_patients():
    site = COHORTS["prostate"][1]
    one, two = (render(site, "small", (seed, 1, 1), 0)[0][site.labels.format(0)] for seed in (0, 1))
    assert one.shape != two.shape or (one != two).any()


def test_full_size_is_as_published():
    published = {
        "prostate": [((384, 384), 30)] * 2,
        "whs": [((256, 256), 20)] * 2,
        "ivd": [((36, 256, 256), 16)],
        "acdc": [((), 20)] * 5,
        "isles": [((256, 256), 94)],
        "wmh": [((240, 240, 48), 20), ((232, 256, 48), 20), ((132, 256, 83), 20)],
        "msd_prostate": [((320, 320, 20), 32), ((320, 320, 20), 16)],
        "brats": [((240, 240, 155), 24), ((240, 240, 155), 16)],  # fewer patients
        "sites": [((384, 384), count) for count in (30, 30, 19, 13, 12, 12)],
    }
    for kind, sites in COHORTS.items():
        for site, (shape, count) in zip(sites, published[kind], strict=True):
            grid = site.grids["full"]
            assert grid.scans == count
            assert all(corner[: len(shape)] == shape for corner in grid.shape)


@pytest.mark.parametrize("kind", COHORTS)
def test_small_is_small(kind):
    for site in COHORTS[kind]:
        assert max(site.grids["small"].shape[1]) == (40 if kind == "brats" else 64)


def test_small_and_full_show_the_same_anatomy():
    site = COHORTS["prostate"][1]
    volumes = []
    for size in ("small", "full"):
        files, affine = render(site, size, (0, 1, 1), 2)
        volumes.append((files[site.labels.format(2)] > 0).sum() * abs(np.linalg.det(affine)) / 1000)
    assert volumes[0] == pytest.approx(volumes[1], rel=0.05)


@pytest.mark.parametrize("card", [True, False])
def test_refuses_a_folder_that_is_there(tmp_path, card):
    real = tmp_path / "volumes"
    real.mkdir()
    if card:
        (real / "phantom.json").write_text("{}")
    (real / "Case00.nii.gz").write_bytes(b"a patient")
    with pytest.raises(UserError, match="volumes is there already"):
        make_cohort("prostate", real)
    assert (real / "Case00.nii.gz").read_bytes() == b"a patient"
    assert [path.name for path in tmp_path.iterdir()] == ["volumes"]


def test_street_scenes_are_made_too(monkeypatch, tmp_path):
    def make(folder, size, seed, jobs):
        (folder / "picture").write_text(f"{size} {seed} {jobs}")
        return 1

    monkeypatch.setitem(MAKERS, "gta5", make)
    assert make_cohort("gta5", tmp_path / "streets", "full", 3, 2) == 1
    assert (tmp_path / "streets/picture").read_text() == "full 3 2"
    assert json.loads((tmp_path / "streets/phantom.json").read_text()) == {"phantom": "full", "kind": "gta5", "seed": 3}


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
            rngs = [np.random.default_rng(seed) for seed in range(20)]
            parts = [part for rng in rngs for anatomy in site.frames.values() for part in anatomy(rng)]
            assert all(isinstance(part, Part) for part in parts)
            assert {part.tissue for part in parts} == set(site.means)
