"""Shifts that are made on purpose: as strong as they say, the same each time, and the anatomy where it was."""

import json
from unittest.mock import Mock

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter

from files.formats import nifti
from files.reading import read_stack
from preprocess.shift_volumes import main, read_channels
from preprocess.shifts.acquisitions import ACQUISITIONS, SEVERITIES, acquire
from processes.errors import UserError

SPACING = (1.0, 1.5, 2.0)


def distance(shape=(20, 28, 24)):
    """From the middle; the border nearest to it is at 1."""
    return np.sqrt((np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")) ** 2).sum(0))


def scan(shape=(20, 28, 24), dtype=np.int16):
    """A ball of tissue in air, with another tissue in it, and grain."""
    radius = distance(shape)
    grain = gaussian_filter(np.random.default_rng(0).normal(0, 60, shape), 0.7)
    levels = np.where(radius < 0.8, 600 + grain, 20) + 300 * (radius < 0.4)
    return levels.clip(0).astype(dtype)


def generator(seed=0):
    return np.random.default_rng(seed)


def difference(volume, name, severity, seed):
    shifted = acquire(volume, SPACING, name, severity, generator(seed)).astype(float)
    return np.abs(shifted - volume).mean()


@pytest.mark.parametrize("name", ACQUISITIONS)
def test_a_higher_severity_is_further_from_the_image(name):
    """On the average over patients: where one of them moves to is drawn."""
    volume = scan()
    apart = [np.mean([difference(volume, name, severity, seed) for seed in range(8)]) for severity in SEVERITIES]
    assert apart == sorted(apart)
    assert 0 < 1.3 * apart[0] < apart[-1]


@pytest.mark.parametrize("name", ACQUISITIONS)
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32])
def test_the_type_stays_and_nothing_wraps(name, dtype):
    volume = (scan() / 4).astype(dtype)
    shifted = acquire(volume, SPACING, name, 5, generator())
    assert shifted.dtype == volume.dtype
    assert shifted.shape == volume.shape
    assert np.isfinite(shifted).all()
    if dtype == np.uint8:  # what wraps around would jump from 0 to 255
        wide = acquire(volume.astype(np.float64), SPACING, name, 5, generator())
        assert np.abs(shifted - wide.clip(0, 255)).max() <= 0.5


@pytest.mark.parametrize("name", ACQUISITIONS)
def test_the_same_seed_gives_the_same_bytes_and_another_one_others(name):
    volume = scan()
    first = acquire(volume, SPACING, name, 3, generator())
    assert first.tobytes() == acquire(volume, SPACING, name, 3, generator()).tobytes()
    drawn = {acquire(volume, SPACING, name, 3, generator(seed)).tobytes() for seed in range(8)}
    assert (len(drawn) > 1) == (name not in ("inverted_contrast", "blur"))


@pytest.mark.parametrize("name", ACQUISITIONS)
def test_the_anatomy_stays_where_it_was(name):
    """A spot in even tissue is found where it was; of thick slices within one of them."""
    volume, place = np.full((21, 25, 23), 300.0), np.array([11, 9, 13])
    volume[tuple(slice(n - 1, n + 2) for n in place)] = 900
    volume[0] = 0
    for seed in range(6):
        levels = acquire(volume, SPACING, name, 4, generator(seed))
        even = gaussian_filter(levels, 4)  # what a field makes of the tissue
        seen = np.abs(gaussian_filter(levels, 1) / even - 1)[4:-4, 4:-4, 4:-4]
        found = np.array(np.unravel_index(int(np.argmax(seen)), seen.shape)) + 4
        assert np.abs(found - place).max() <= (2 if name == "resolution" else 1), (seed, found)


@pytest.mark.parametrize("name", ACQUISITIONS)
def test_a_single_slice_and_a_flat_volume_are_taken(name):
    assert acquire(scan()[10:11], (1, 1, 1), name, 5, generator()).shape == (1, 28, 24)
    flat = np.full((4, 5, 6), 7, np.int16)
    assert acquire(flat, SPACING, name, 5, generator()).tobytes() == flat.tobytes()


def test_inverted_contrast_turns_tissues_round_and_leaves_air_dark():
    volume, radius = scan(), distance()
    shifted = acquire(volume, SPACING, "inverted_contrast", 5, generator())
    inner, outer, air = (
        shifted[where].mean() for where in (radius < 0.35, (radius > 0.5) & (radius < 0.7), radius > 1)
    )
    assert outer > inner + 100
    assert air < inner


def test_noise_is_rician():
    """Where there is no signal, its mean is sd √(π/2)."""
    volume = np.zeros((40, 40, 40))
    volume[:2] = 1000
    shifted = acquire(volume, SPACING, "noise", 3, generator())
    assert shifted[5:].mean() == pytest.approx(0.1 * 1000 * np.sqrt(np.pi / 2), rel=0.02)


def test_a_name_or_a_severity_that_is_none_is_told():
    with pytest.raises(UserError, match="There is no acquisition 'gama'. Did you mean 'gamma'"):
        acquire(scan(), SPACING, "gama", 1, generator())
    with pytest.raises(UserError, match=r"A severity is 1 \(mild\) to 5 \(bad\); got 6"):
        acquire(scan(), SPACING, "gamma", 6, generator())


# -- the program ------------------------------------------------------------------------------------------------------


@pytest.fixture
def old(tmp_path):
    """Two volumes that lie obliquely, and one of two channels."""
    turn = np.array([[0.8, 0.6, 0], [-0.6, 0.8, 0], [0, 0, 1]])
    affine = nib.affines.from_matvec(turn @ np.diag([-1, 1.5, 2]), [5, 6, 7])
    (tmp_path / "old").mkdir()
    for name, volume in (("a", scan()), ("b", scan()[::-1]), ("c", np.stack([scan(), 2 * scan()], -1))):
        nib.Nifti1Image(volume, affine).to_filename(tmp_path / "old" / f"{name}_t2.nii.gz")
    return tmp_path / "old"


def shifted(old, dest, *more, acquisition="bias_field"):
    words = ["--image", f"{old}/*_t2.nii.gz", "--patient", "(.)_t2", "--dest", str(old.parent / dest)]
    main([*words, "--acquisition", acquisition, *map(str, more)])
    return old.parent / dest


def test_volumes_lie_where_they_lay(old):
    new = shifted(old, "new", "--severity", 4)
    assert sorted(path.name for path in new.iterdir()) == ["a.nii.gz", "b.nii.gz", "c.nii.gz", "shifts.json"]
    for name in "abc":
        before, after = old / f"{name}_t2.nii.gz", new / f"{name}.nii.gz"
        assert nib.load(after).shape == nib.load(before).shape
        assert nib.load(after).get_data_dtype() == np.int16
        np.testing.assert_array_equal(nib.load(after).affine, nib.load(before).affine)
        images = [sitk.ReadImage(str(path)) for path in (before, after)]
        assert len({(image.GetOrigin(), image.GetDirection(), image.GetSpacing()) for image in images}) == 1
        assert (nib.load(after).get_fdata() != nib.load(before).get_fdata()).any()
    note = json.loads((new / "shifts.json").read_text())
    assert (note["acquisition"], note["severity"], note["seed"]) == ("bias_field", 4, 0)


def test_a_volume_is_the_same_whichever_others_are_there(old):
    with_others = (shifted(old, "new", "--jobs", 2) / "b.nii.gz").read_bytes()
    for name in "ac":
        (old / f"{name}_t2.nii.gz").unlink()
    assert (shifted(old, "alone") / "b.nii.gz").read_bytes() == with_others
    assert (shifted(old, "other", "--seed", 1) / "b.nii.gz").read_bytes() != with_others


def test_both_channels_see_one_field(old):
    """The second is twice the first, and stays so."""
    voxels = nib.load(shifted(old, "new") / "c.nii.gz").get_fdata()
    assert np.abs(voxels[..., 1] - 2 * voxels[..., 0]).max() <= 2


def test_a_file_of_channels_is_unpacked_once(old, monkeypatch):
    """As 4D scans are large."""
    path, unpacked = old / "c_t2.nii.gz", Mock(wraps=nifti.decompress)
    monkeypatch.setattr(nifti, "decompress", unpacked)
    channels = read_channels(path)
    assert unpacked.call_count == 1
    for number, channel in enumerate(channels):
        np.testing.assert_array_equal(channel, read_stack(path, 0, channel=number))
    assert len(channels) == 2


def test_nothing_is_written_where_a_volume_is_faulty_or_a_folder_is_there(old):
    (old / "d_t2.nii.gz").write_bytes(b"no volume")
    with pytest.raises(UserError, match=r"Nothing was written to .*/new, 1 fault: cannot be read: .*d_t2\.nii\.gz"):
        shifted(old, "new")
    assert not (old.parent / "new").exists()
    (old / "d_t2.nii.gz").unlink()
    shifted(old, "new")
    with pytest.raises(UserError, match="is there already; remove it, or give another --dest"):
        shifted(old, "new")
