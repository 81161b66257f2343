"""Volumes that stay on the disk: paired, checked once, cropped alike on every run, and never all in memory."""

import errno
import json
import os
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from bounds import BOUNDS
from datasets import volume_files
from datasets.augmentation import Augmentation
from datasets.files import check_patients, parse_volume
from datasets.sampling import FixedSteps, Shuffled
from datasets.slices import join, lay_bounds
from datasets.transforms import FolderSpec
from datasets.volume_files import read_volume
from datasets.volumes import CropStream, WholeStream, open_volumes
from files.decoding import read_slice
from files.formats import nifti
from processes.errors import UserError
from processes.team import Team

CPU = torch.device("cpu")
IMAGE, TRUTH, LOSS = (
    FolderSpec("IMG", "nii_transform"),
    FolderSpec("GT", "nii_gt_transform"),
    FolderSpec("GT", "gt_transform"),
)
FOLDERS = [IMAGE, TRUTH, LOSS]
SIZES = [(9, 8, 7), (6, 10, 5), (12, 9, 8)]
AFFINE = np.array([[0, 0.5, 0, 3], [-2, 0, 0, 1], [0, 0, 1.5, -4], [0, 0, 0, 1.0]])


def volume(case, size, channels=2):
    """Every voxel of the image tells its case, channel and place; label 1 in a corner block."""
    place = np.arange(np.prod(size)).reshape(size)
    image = np.stack([place + 1000 * c + 4000 * case for c in range(channels)]).astype(np.int16)
    label = np.zeros(size, np.uint8)
    label[:3, :2, :2] = 1
    return image, label


def store(root, split="train", suffix="npy", sizes=SIZES, channels=2, first=0):
    """Cases BRATS_000, …; their times lie in the past, so that a change is seen."""
    for case, size in enumerate(sizes, first):
        for folder, voxels in zip(("IMG", "GT"), volume(case, size, channels), strict=True):
            put(root / split / folder / f"BRATS_{case:03}.{suffix}", voxels)
    return root


def put(path, voxels):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, voxels)
    else:
        nib.save(nib.Nifti1Image(np.moveaxis(voxels, 0, -1) if voxels.ndim == 4 else voxels, AFFINE), path)
    os.utime(path, (1e9, 1e9))


def opened(root, crop=(4, 4, 4), folders=FOLDERS, split="train", n_class=2, regex=r"BRATS_\d+", **more):
    return open_volumes(root, split, folders, n_class, regex, crop, **more)


# -- opening -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["npy", "nii", "nii.gz"])
def test_every_format_gives_the_same_volumes(tmp_path, suffix):
    volumes = opened(store(tmp_path, suffix=suffix))
    assert volumes.names == volumes.patients == ["BRATS_000", "BRATS_001", "BRATS_002"]
    assert volumes.shape == (2, 4, 4, 4)
    assert volumes.sizes == SIZES
    for row, size in enumerate(SIZES):
        image, label = volume(row, size)
        assert np.array_equal(volumes.image(row), image)
        assert np.array_equal(volumes.truth(row), label)
        assert volumes.truth(row).dtype == np.uint8


def test_one_channel_needs_no_axis(tmp_path):
    store(tmp_path, channels=1)
    for path in tmp_path.glob("train/IMG/*.npy"):
        put(path, np.asfortranarray(np.load(path)[0].astype(">f8")))
    volumes = opened(tmp_path)
    assert volumes.shape == (1, 4, 4, 4)
    assert np.array_equal(volumes.image(1), volume(1, SIZES[1], 1)[0])


def test_a_nifti_tells_spacing_and_place_and_the_manifest_knows_better(tmp_path):
    store(tmp_path, suffix="nii.gz")
    volumes = opened(tmp_path)
    assert volumes.spacing == dict.fromkeys(volumes.names, (2.0, 0.5, 1.5))
    assert np.allclose(volumes.headers["BRATS_001"].get_best_affine(), AFFINE)
    rows = [f"{name},3,1,2,{' '.join(map(str, np.diag([3.0, 1, 2, 1]).ravel()))}\n" for name in volumes.names]
    (tmp_path / "manifest.csv").write_text("name,spacing_slice,spacing_w,spacing_h,affine\n" + "".join(rows))
    volumes = opened(tmp_path)
    assert volumes.spacing["BRATS_001"] == (3, 1, 2)
    assert np.array_equal(volumes.headers["BRATS_002"].get_best_affine(), np.diag([3, 1, 2, 1]))
    bare = opened(store(tmp_path / "bare"))
    assert (bare.spacing, bare.headers) == (None, None)


def test_a_label_that_lies_aside_of_its_image_is_refused(tmp_path, capsys):
    store(tmp_path, suffix="nii")
    path = tmp_path / "train/GT/BRATS_001.nii"
    label, mirror = nib.load(path), np.diag([-1.0, 1, 1, 1])
    nib.save(nib.Nifti1Image(np.asanyarray(label.dataobj), AFFINE @ mirror), path)
    with pytest.raises(UserError, match=r"1 faulty volume: .*BRATS_001 does not lie on the grid of its image \(.* mm"):
        opened(tmp_path)
    silent = nib.Nifti1Image(np.asanyarray(label.dataobj), None)  # tells no place: it goes by its voxels
    nib.save(silent, path)
    assert opened(tmp_path).names
    assert "several orders" not in capsys.readouterr().err


def test_volumes_stored_in_several_orders_are_told(tmp_path, capsys):
    store(tmp_path, suffix="nii")
    for folder in ("IMG", "GT"):
        path = tmp_path / f"train/{folder}/BRATS_001.nii"
        voxels = np.asanyarray(nib.load(path).dataobj)
        nib.save(nib.Nifti1Image(voxels, AFFINE @ np.diag([-1.0, 1, 1, 1])), path)
    opened(tmp_path)
    assert "several orders of voxels, 2 in PRS; ARS: BRATS_001, and are read as" in capsys.readouterr().err


def test_the_card_scales_images(tmp_path):
    store(tmp_path)
    plain = opened(tmp_path)
    (tmp_path / "dataset.json").write_text(json.dumps({"scale": {"mean": 100, "sd": 8}}))
    scaled = opened(tmp_path)
    assert np.allclose(scaled.image(2), (plain.image(2) - 100) / 8)
    assert scaled.digest != plain.digest
    batch, _ = WholeStream(scaled, CPU).batch(torch.tensor([2]))
    assert np.array_equal(batch.image[0], scaled.image(2))
    (tmp_path / "dataset.json").write_text(json.dumps({"scale": {"mean": 1, "sd": 0}}))
    with pytest.raises(UserError, match="second above 0"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("regex", "patients"),
    [(r"BRATS_\d+", ["BRATS_000", "BRATS_001"]), (r"_(\d+)", ["000", "001"])],
)
def test_the_first_group_is_the_patient(tmp_path, regex, patients):
    assert opened(store(tmp_path, sizes=SIZES[:2]), regex=regex).patients == patients


def test_two_volumes_of_a_patient_are_told_apart_or_refused(tmp_path):
    with pytest.raises(UserError, match="several volumes of BRATS"):
        opened(store(tmp_path, sizes=SIZES[:2]), regex=r"(BRATS)_\d+")


def test_patients_in_two_splits_are_found_by_the_same_rule(tmp_path):
    store(store(tmp_path), "val", first=3)
    check_patients(tmp_path, "IMG", r"BRATS_\d+", parse_volume)
    store(tmp_path, "val", sizes=SIZES[:1])
    with pytest.raises(UserError, match=r"1 patient in two splits: BRATS_000 \(train and val\)"):
        check_patients(tmp_path, "IMG", r"BRATS_\d+", parse_volume)


def test_images_alone_and_a_few_for_a_look(tmp_path):
    store(tmp_path)
    volumes = opened(tmp_path, folders=[IMAGE], limit=2)
    assert volumes.names == ["BRATS_000", "BRATS_002"]
    (batch, truth), *_ = CropStream(volumes, 2, CPU).epoch(0)
    assert (batch.targets, batch.bounds, truth) == ([], [], None)


def test_sets_are_joined_and_thinned(tmp_path):
    store(store(tmp_path, suffix="nii"), "val", "nii", first=3)
    both = join([opened(tmp_path), opened(tmp_path, split="val")]).keep([4, 0])
    assert (both.names, both.sizes) == (["BRATS_004", "BRATS_000"], [SIZES[1], SIZES[0]])
    assert set(both.headers) == set(both.names)
    assert [label.shape for label in both.labels([1, 0])] == [SIZES[0], SIZES[1]]
    assert np.array_equal(both.image(0), volume(4, SIZES[1])[0])


# -- faults --------------------------------------------------------------------------------------------------


def spoil(root, what):
    """One fault in each case that `what` names."""
    for case, (folder, change) in what.items():
        path = root / f"train/{folder}/BRATS_{case:03}.npy"
        put(path, change(np.load(path)))


def test_all_offenders_are_listed_at_once(tmp_path):
    store(tmp_path, sizes=[(9, 9, 9)] * 9)
    with_nan = lambda x: np.where(x == x.flat[0], np.nan, x)  # noqa: E731
    spoil(
        tmp_path,
        {
            0: ("IMG", with_nan),
            1: ("GT", lambda x: x * 255),
            2: ("GT", lambda x: x[1:]),
            3: ("IMG", lambda x: x[:1]),
            4: ("IMG", lambda x: np.moveaxis(x, 0, -1)),
            5: ("GT", lambda x: x + 0.5),
            6: ("GT", lambda x: np.stack([x, x])),
        },
    )
    (tmp_path / "train/IMG/BRATS_007.npy").write_bytes(b"none")
    for _ in range(2):  # nothing that was noted hides a fault
        with pytest.raises(UserError) as error:
            opened(tmp_path)
        for words in (
            "8 faulty volumes",
            "IMG/BRATS_000.npy has 1 pixel of NaN",
            "GT/BRATS_001.npy holds the labels 255",
            "GT/BRATS_002 has size (8, 9, 9), its image (9, 9, 9)",
            "IMG/BRATS_003 has 1 channel, most have 2",
            "IMG/BRATS_004.npy has shape (9, 9, 9, 2), with its channels last",
            "GT/BRATS_005.npy holds the labels 0.5, 1.5",
            "GT/BRATS_006.npy has shape (2, 9, 9, 9); ground truth is one grey level a pixel, (D, W, H)",
            "IMG/BRATS_007.npy cannot be read",
        ):
            assert words in str(error.value)


def test_labels_that_were_sound_are_no_longer_with_fewer_classes(tmp_path):
    spoil(store(tmp_path), {1: ("GT", lambda x: x * 2)})
    assert opened(tmp_path, n_class=3).names
    with pytest.raises(UserError, match=r"1 faulty.*BRATS_001.npy holds the labels 2, outside 0\.\.1"):
        opened(tmp_path)
    assert opened(tmp_path, ignore=2).truth(1).max() == 2


def test_a_damaged_archive_is_refused(tmp_path):
    store(tmp_path, suffix="nii.gz")
    path = tmp_path / "train/IMG/BRATS_001.nii.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match="1 faulty volume: .*BRATS_001.nii.gz cannot be read"):
        opened(tmp_path)


@pytest.mark.parametrize("transform", ["png_transform", "dist_map_transform", "nii_transform2"])
def test_transforms_of_slices_are_refused(tmp_path, transform):
    with pytest.raises(UserError, match=f"{transform}: of slices alone"):
        opened(store(tmp_path), folders=[IMAGE, TRUTH, FolderSpec("GT", transform)])


def test_partners_are_found_by_name(tmp_path):
    (store(tmp_path) / "train/GT/BRATS_001.npy").unlink()
    with pytest.raises(UserError, match="no partner.*GT/BRATS_001"):
        opened(tmp_path)
    with pytest.raises(UserError, match="does not match 3 of the 3"):
        opened(tmp_path, folders=[IMAGE], regex="Case")


# -- what is noted -------------------------------------------------------------------------------------------


def test_a_volume_is_decoded_once_and_again_when_it_changes(tmp_path, monkeypatch):
    store(tmp_path, suffix="nii.gz")
    read, seen = volume_files.read_volume, []
    monkeypatch.setattr(volume_files, "read_volume", lambda path: seen.append(path.name) or read(path))
    first = opened(tmp_path)
    assert len(seen) == 6
    assert opened(tmp_path).digest == first.digest
    assert len(seen) == 6
    path = tmp_path / "train/IMG/BRATS_001.nii.gz"
    image, _ = volume(7, SIZES[1])
    put(path, image)
    os.utime(path, (2e9 - 1e9, 1e9 + 5))
    again = opened(tmp_path)
    assert seen[6:] == ["BRATS_001.nii.gz"]
    assert again.digest != first.digest
    assert np.array_equal(again.image(1), image)
    assert len(list(tmp_path.glob("train/.cache/IMG-*.npy"))) == 3


@pytest.mark.parametrize("what", ["decompress", "_files_of", "mm_of"])
def test_the_notes_know_the_code_that_reads_niftis(monkeypatch, what):
    describe = volume_files._code.__wrapped__
    before = describe()
    assert describe() == before
    kept = getattr(nifti, what)
    monkeypatch.setattr(nifti, what, lambda *args: kept(*args))
    assert describe() != before


def test_a_file_too_young_to_be_trusted_is_looked_at_again(tmp_path):
    store(tmp_path)
    path, digests = tmp_path / "train/IMG/BRATS_000.npy", []
    for image in (np.zeros((2, *SIZES[0])), np.ones((2, *SIZES[0]))):
        np.save(path, image)
        os.utime(path, (4e9, 4e9))
        digests.append(opened(tmp_path).digest)
    assert digests[0] != digests[1]


def test_decoded_in_the_smallest_type_that_loses_nothing(tmp_path):
    store(tmp_path, suffix="nii", sizes=SIZES[:1])
    rng = np.random.default_rng(0)
    for value, kind in ((rng.integers(0, 200, (2, *SIZES[0])), "uint8"), (rng.normal(size=(2, *SIZES[0])), "float32")):
        image = value.astype(np.float32)
        put(tmp_path / "train/IMG/BRATS_000.nii", image)
        os.utime(tmp_path / "train/IMG/BRATS_000.nii", (1e9, 1e9 + len(kind)))
        volumes = opened(tmp_path)
        assert volumes.planes[IMAGE].volumes[0].map().dtype == kind
        assert np.array_equal(volumes.image(0), image)


def test_a_place_that_cannot_be_written_does_for_npy(tmp_path, monkeypatch, capsys):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    store(tmp_path / "npy")
    store(tmp_path / "nii", suffix="nii")
    monkeypatch.setattr(volume_files, "locked", refuse)
    assert opened(tmp_path / "npy").sizes == SIZES
    assert "Read-only" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"6 faulty.*has to be decoded.*take .npy"):
        opened(tmp_path / "nii")


# -- crops ---------------------------------------------------------------------------------------------------


def stream_of(volumes, batch_size=2, **more):
    return CropStream(volumes, batch_size, CPU, 5, **more)


def several(volumes, batch_size, crops):
    steps = -(-len(volumes) // batch_size) * crops
    return FixedSteps(Shuffled(len(volumes), batch_size), batch_size, steps)


class Dim:
    """Stands in for an augmentation: images times a random factor each, labels turned round."""

    mixes = False

    def draw(self, count, shape, generator, n_class):
        assert shape == (2, 4, 4, 4)
        self.factor = torch.rand(count, 1, 1, 1, 1, generator=generator)
        return self

    def image(self, image, part, label):
        return image * self.factor[part]

    def label(self, label, beyond):
        return label.flip(-1)


def flat(stream, epoch=0, start=0):
    return [(batch.image, batch.rows, truth) for batch, truth in stream.epoch(epoch, start)]


def same(one, other):
    return all(
        torch.equal(a, b) for step, step_ in zip(one, other, strict=True) for a, b in zip(step, step_, strict=True)
    )


def test_a_crop_is_a_part_of_its_volume_and_of_its_labels(tmp_path):
    volumes = opened(store(tmp_path))
    for batch, truth in stream_of(volumes, sampler=several(volumes, 2, crops=4)).epoch(0):
        assert batch.image.shape[1:] == (2, 4, 4, 4)
        for image, label, target, row in zip(batch.image, truth, batch.targets[0], batch.rows, strict=True):
            whole = volumes.image(row)
            start = np.unravel_index(int(image[0, 0, 0, 0]) - int(whole.flat[0]), whole.shape[1:])
            inside = tuple(slice(at, at + 4) for at in start)
            assert np.array_equal(image, whole[(slice(None), *inside)])
            assert np.array_equal(label, volumes.truth(row)[inside])
            assert torch.equal(target, label)


def test_every_place_is_as_likely(tmp_path):
    volumes = opened(store(tmp_path, sizes=[(6, 5, 4)] * 2), crop=(4, 5, 4))
    found = flat(stream_of(volumes, sampler=several(volumes, 2, crops=60)))
    starts = [int(first) % 4000 // 20 for image, _, _ in found for first in image[:, 0, 0, 0, 0]]
    counts = np.bincount(starts)
    assert len(counts) == 3
    assert (counts > 25).all()


def test_everything_follows_from_seed_epoch_and_step(tmp_path):
    volumes = opened(store(tmp_path))
    sampler = several(volumes, 2, crops=3)
    stream = stream_of(volumes, sampler=sampler, augmentation=Dim())
    steps = flat(stream, epoch=2)
    assert len(stream) == len(steps) == 6
    assert same(steps, flat(stream_of(volumes, sampler=sampler, augmentation=Dim(), workers=1), epoch=2))
    assert same(steps[3:], flat(stream, epoch=2, start=3))
    assert not same(steps, flat(stream, epoch=1))
    batch, truth = stream.batch(steps[1][1], epoch=2, step=1)
    assert same([steps[1]], [(batch.image, batch.rows, truth)])


MIXED = Augmentation(rotate=0, contrast=0, gamma=0, fourier=1, label_curves=1)


@pytest.mark.parametrize("augmentation", [None, MIXED], ids=["as they are", "mixed with each other"])
def test_processes_share_the_images_and_hold_all_the_truth(tmp_path, augmentation):
    volumes, more = opened(store(tmp_path)), {"augmentation": augmentation, "n_class": 2}
    whole = flat(stream_of(volumes, 3, **more))
    parts = [flat(stream_of(volumes, 3, team=Team(rank, 2), **more)) for rank in range(2)]
    for step, first, second in zip(whole, *parts, strict=True):
        assert torch.equal(torch.cat([first[0], second[0]]), step[0])
        assert torch.equal(first[2], step[2])


def test_a_method_that_may_not_look_gets_no_targets(tmp_path):
    (batch, truth), *_ = stream_of(opened(store(tmp_path)), with_targets=False).epoch(0)
    assert batch.targets == [None]
    assert truth is not None


@pytest.mark.parametrize("ignore", [None, 255])
def test_beyond_a_volume_lies_its_border_and_no_organ(tmp_path, ignore):
    volumes = opened(store(tmp_path, sizes=[(3, 8, 2)]), crop=(5, 4, 6), ignore=ignore)
    (batch, truth), *_ = stream_of(volumes).epoch(0)
    image, label = batch.image[0], truth[0]
    assert torch.equal(image[:, 3:], image[:, 2:3].expand(-1, 2, -1, -1))
    assert torch.equal(image[..., 2:], image[..., 1:2].expand(-1, -1, -1, 4))
    beyond = ignore or 0
    assert (label[3:] == beyond).all()
    assert (label[:, :, 2:] == beyond).all()
    assert label[:3, :, :2].max() < 2


def test_maps_are_cut_with_their_image(tmp_path):
    volumes = store(tmp_path, sizes=[(6, 6, 6)])
    maps = np.random.default_rng(0).normal(size=(2, 6, 6, 6)).astype(np.float32)
    put(tmp_path / "train/DIST/BRATS_000.npy", maps)
    folders = [IMAGE, TRUTH, FolderSpec("DIST", "raw_npy_transform")]
    (batch, _), *_ = stream_of(opened(volumes, folders=folders)).epoch(0)
    start = np.unravel_index(int(batch.image[0, 0, 0, 0, 0]), (6, 6, 6))
    assert np.array_equal(batch.targets[0][0], maps[(slice(None), *(slice(at, at + 4) for at in start))])
    put(tmp_path / "train/DIST/BRATS_000.npy", maps[:1])
    os.utime(tmp_path / "train/DIST/BRATS_000.npy", (1e9, 1e9 + 9))
    with pytest.raises(UserError, match=r"maps are \(K, D, W, H\), one a class, K = 2"):
        opened(volumes, folders=folders)


def test_augmentation_is_drawn_for_the_crops(tmp_path):
    volumes = opened(store(tmp_path))
    (image, _, truth), *_ = flat(stream_of(volumes, 3))
    (dimmed, _, turned), *_ = flat(stream_of(volumes, 3, augmentation=Dim()))
    factor = dimmed / image
    assert torch.allclose(factor, factor[:, :1, :1, :1, :1].expand_as(factor))
    assert factor[0, 0, 0, 0, 0] != factor[1, 0, 0, 0, 0]
    assert torch.equal(turned, truth.flip(-1))


# -- sizes ---------------------------------------------------------------------------------------------------


def test_what_a_crop_adds_is_background_in_the_bounds(tmp_path):
    volumes = opened(store(tmp_path), crop=(12, 10, 9))
    laid = lay_bounds(volumes, [BOUNDS.build("PreciseBounds", 2, margin=0.5)])
    for batch, truth in stream_of(laid).epoch(0):
        sizes = torch.stack([torch.bincount(label.ravel(), minlength=2) for label in truth])
        assert torch.equal(batch.bounds[0].mean(-1), sizes.double())
    (batch, truth), *_ = WholeStream(laid, CPU).epoch(0)
    assert batch.bounds[0][0].mean(-1).tolist() == torch.bincount(truth.ravel()).tolist()


def test_a_crop_that_holds_a_part_has_no_size_to_compare(tmp_path):
    laid = lay_bounds(opened(store(tmp_path), crop=(9, 9, 9)), [BOUNDS.build("PreciseBounds", 2)])
    with pytest.raises(UserError, match=r"2 of them: BRATS_001 \(6, 10, 5\), BRATS_002"):
        stream_of(laid)
    assert len(list(WholeStream(laid, CPU).epoch(0))) == 3


# -- whole volumes, and memory -------------------------------------------------------------------------------


def test_evaluation_goes_through_whole_volumes_in_order(tmp_path):
    volumes = opened(store(tmp_path))
    stream = WholeStream(volumes, CPU)
    assert len(stream) == 3
    for row, (batch, truth) in enumerate(stream.epoch(0)):
        assert batch.rows.tolist() == [row]
        assert np.array_equal(batch.image[0], volumes.image(row))
        assert np.array_equal(truth[0], volumes.truth(row))
        assert torch.equal(batch.targets[0], truth)


def test_volumes_are_mapped_and_let_go(tmp_path):
    size = (40, 40, 40)
    volumes = opened(store(tmp_path, sizes=[size] * 12))
    assert isinstance(volumes.planes[IMAGE].volumes[0].map(), np.memmap)
    tracemalloc.start()
    for _ in stream_of(volumes).epoch(0):
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * np.prod(size)
    if (maps := Path("/proc/self/maps")).exists():
        assert str(tmp_path) not in maps.read_text()


def test_threads_read_headers_one_at_a_time(tmp_path, monkeypatch):
    """Python before 3.11.8 loses count of how deep it is in a literal, of which a .npy's header is one."""
    np.save(tmp_path / "v.npy", np.arange(16.0).reshape(4, 4))
    load, inside, most = np.load, [], []

    def watched(*args, **how):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.005)  # lets the other threads come
        found = load(*args, **how)
        inside.pop()
        return found

    def read(_):
        volume, _ = read_volume(tmp_path / "v.npy")
        return np.shape(volume), read_slice(tmp_path / "v.npy").shape

    monkeypatch.setattr(np, "load", watched)
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(read, range(8))) == {((4, 4), (4, 4))}
    assert (len(most), max(most)) == (16, 1)


@pytest.mark.parametrize("harm", [lambda path: os.truncate(path, 200), Path.unlink])
def test_a_volume_that_is_cut_or_gone_while_it_is_in_use_is_told_of(tmp_path, harm):
    volumes = opened(store(tmp_path))
    harm(volumes.planes[IMAGE].volumes[0].path)
    with pytest.raises(UserError, match=r"npy was removed, cut or written to while it was in use"):
        list(WholeStream(volumes, CPU).epoch(0))
