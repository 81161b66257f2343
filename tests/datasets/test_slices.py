"""Reading, pairing, grouping, batching; every fault of a data set is named, all offenders at once."""

import json
import re
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import FOLDERS, write_prior, write_site
from PIL import Image

from bounds import BOUNDS
from datasets.augmentation import Augmentation
from datasets.files import check_patients, load_slice, parse_name
from datasets.slices import join, lay_bounds, open_slices
from datasets.streams import Stream
from datasets.transforms import TRANSFORMS, FolderSpec, parse_folders
from processes.errors import UserError
from utils import read_literal

REGEX = r"(Case\d+)_(\d+)"
CPU = torch.device("cpu")


@pytest.fixture
def site(tmp_path):
    return write_site(tmp_path / "site", 200, 60, seed=3, patients=4)


def open_train(root, folders=FOLDERS, n_class=2, regex=REGEX, **more):
    return open_slices(root, "train", parse_folders(folders, 1), n_class, regex, **more)


# -- names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("regex", "name", "patient", "index"),
    [
        (r"Case\d+_\d+", "Case00_12", "Case00", 12),
        (r"(Case\d+)_(\d+)", "Case00_12", "Case00", 12),
        (r"([a-z-]+)_(\d+_\d+)", "bad-honnef_000001_000019", "bad-honnef", 1000019),
        (r"(Case\d+)_\d+", "Case00_12", "Case00", 12),
        (r"Case\d+", "Case00_12", "Case00", 12),
        (r"Subj_\d+", "Subj_3_7", "Subj_3", 7),
        (r"Subj_\d+_\d+", "Subj_3_7", "Subj_3", 7),
        (r"slice\d+_1", "ctslice812_1", "slice812", 1),
        (r"(patient\d+_\d+)_\d+", "patient001_02_5", "patient001_02", 5),
        (r"\w+", "ct", "ct", 0),
        (r"[0-9a-f]+", "02903040e19d", "02903040e19d", 19),
    ],
)
def test_patient_and_slice_come_from_the_name(regex, name, patient, index):
    parsed = parse_name(name, regex)
    assert (parsed.patient, parsed.index) == (patient, index)


def test_slices_are_in_the_order_of_patient_and_number(tmp_path):
    for index in (10, 9, 2):
        for folder in ("IMG", "GT"):
            path = tmp_path / "train" / folder / f"Case01_{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8), index % 2, np.uint8)).save(path)
    assert open_train(tmp_path).names == ["Case01_2", "Case01_9", "Case01_10"]


# -- reading ---------------------------------------------------------------------------------------------------


def test_images_and_labels_are_what_the_files_hold(site):
    slices = open_train(site)
    row = slices.names.index("Case00_2")
    raw = np.asarray(Image.open(site / "train/IMG/Case00_2.png"))
    mask = np.asarray(Image.open(site / "train/GT/Case00_2.png"))
    batch, truth = Stream(slices, 1, CPU).batch(torch.tensor([row]))
    assert torch.equal(batch.image[0, 0], torch.from_numpy(raw.copy()).float() / 255)
    assert torch.equal(batch.targets[0][0], torch.from_numpy(mask.copy()).long())
    assert torch.equal(truth[0], batch.targets[0][0])


@pytest.mark.parametrize("suffix", ["nii", "nii.gz", "npy"])
def test_every_format_gives_the_same_set(site, tmp_path, suffix):
    for folder in ("IMG", "GT"):
        for path in list((site / "train" / folder).iterdir()):
            array = np.asarray(Image.open(path))
            array = array.astype(np.float32) / 255 if folder == "IMG" else array
            target = path.with_name(f"{path.stem}.{suffix}")
            if suffix == "npy":
                np.save(target, array)
            else:
                nib.save(nib.Nifti1Image(array[None], np.eye(4)), target)  # stored with a leading singleton axis
            path.unlink()
    folders = "[('IMG', nii_transform, False), ('GT', nii_gt_transform, False)]"
    slices, png = open_train(site, folders), open_train(write_site(tmp_path / "again", 200, 60, seed=3, patients=4))
    assert slices.names == png.names
    assert np.array_equal(slices.labels(range(8)), png.labels(range(8)))
    assert np.allclose(slices.image(3), png.image(3))


def test_published_crop_keeps_384():
    assert TRANSFORMS["nii_transform2"](np.zeros((385, 400))).shape == (384, 384)
    assert TRANSFORMS["nii_gt_transform2"](np.zeros((64, 64))).shape == (64, 64)


def replace_images(site, make, suffix="npy"):
    """Every image as `make` of its grey levels gives it."""
    for path in list(site.glob("train/IMG/*.png")):
        array = make(np.asarray(Image.open(path)))
        target = path.with_suffix(f".{suffix}")
        np.save(target, array) if suffix == "npy" else nib.save(nib.Nifti1Image(array, np.eye(4)), target)
        path.unlink()


@pytest.mark.parametrize("suffix", ["npy", "nii"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 9])
def test_images_have_as_many_channels_as_their_files(site, channels, suffix):
    replace_images(site, lambda grey: np.stack([grey + 300.0 * c for c in range(channels)]), suffix)
    slices = open_train(site, FOLDERS.replace("png_transform", "tensor_transform"))
    assert slices.shape == (channels, 24, 20)
    assert np.array_equal(slices.image(3)[-1], slices.image(3)[0] + 300 * (channels - 1))


def test_a_png_in_colour_has_three_channels(site):
    for path in site.glob("train/IMG/*.png"):
        write(path, np.full((24, 20, 3), (0, 51, 255)))
    assert np.allclose(open_train(site).image(0)[:, 0, 0], [0, 0.2, 1])


def test_channels_at_the_end_are_named_with_the_fix(site):
    replace_images(site, lambda grey: np.stack([grey, grey], axis=-1))
    with pytest.raises(UserError, match=r"\(24, 20, 2\), with its channels last.*moveaxis"):
        open_train(site, FOLDERS.replace("png_transform", "torch.tensor"))


READY = FOLDERS.replace("('GT', gt_transform, False)]", "('3d_distmap', raw_npy_transform, False)]")


def write_maps(site, make):
    folder = site / "train" / "3d_distmap"
    folder.mkdir()
    for path in site.glob("train/GT/*.png"):
        np.save(folder / f"{path.stem}.npy", make(np.asarray(Image.open(path))))


def test_ready_made_maps_reach_their_loss(site):
    write_maps(site, lambda mask: np.stack([mask / 3, -1000.5 * mask]))
    slices = open_train(site, READY)
    batch, truth = Stream(slices, 3, CPU).batch(torch.tensor([1, 2, 4]))
    assert torch.equal(batch.targets[0], torch.stack([(truth / 3.0), -1000.5 * truth], dim=1))
    assert batch.targets[0].dtype == torch.float32
    bound = BOUNDS.build("TagBounds", 2, values={0: [1, 1], 1: [2, 2]})
    assert lay_bounds(slices, [bound]).bounds[0].shape == (8, 2, 2)  # from the metrics' ground truth
    flipped = Stream(slices, 8, CPU, augmentation=Augmentation(flip=True, rotate=0)).batch(torch.arange(8))
    assert torch.equal(flipped[0].targets[0][:, 0], flipped[1] / 3.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda mask: np.stack([mask] * 3),
            r"Case00_0.npy has shape \(3, 24, 20\); ready-made maps are \(K, W, H\).*K = 2",
        ),
        (lambda mask: mask, r"Case00_0.npy has shape \(24, 20\); ready-made maps"),
        (lambda mask: np.stack([mask] * 2, -1), r"Case00_0.npy has shape \(24, 20, 2\); ready-made maps"),
        (lambda mask: np.stack([mask / 0.0] * 2), "Case00_0.npy has 960 pixels of NaN"),
        (lambda mask: np.ones((2, 9 + mask.max(), 9)), r"Case00_1.npy has shape \(2, 10, 9\), not \(2, 9, 9\)"),
        (lambda mask: np.ones((2, 9, 9)), r"slices of 3d_distmap have shape \(9, 9\), those of IMG \(24, 20\)"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value", "ignore:divide by zero")
def test_ready_made_maps_that_do_not_fit_are_named(site, make, message):
    write_maps(site, make)
    with pytest.raises(UserError, match=message):
        open_train(site, READY)


def test_maps_in_mm_need_a_manifest(site):
    folders = FOLDERS.replace("('GT', gt_transform, False)]", "('GT', dist_map_mm_transform, False)]")
    with pytest.raises(UserError, match=r"dist_map_mm_transform measures GT in mm.*no manifest.csv"):
        open_train(site, folders)
    (site / "manifest.csv").write_text(
        "slice,spacing_w,spacing_h,spacing_slice\n"
        + "".join(f"{path.stem},0,1,1\n" for path in site.glob("*/IMG/*.png"))
    )
    with pytest.raises(UserError, match=r"no row with a spacing above 0 for 8 of 8 slices.*Case00_0 \(1, 0, 1\)"):
        open_train(site, folders)


# -- pixels without a class, ground truth of another size ---------------------------------------------------------


def add_void(site):
    for path in site.glob("train/GT/*.png"):
        mask = np.array(Image.open(path))
        mask[:2] = 255
        write(path, mask)


def test_the_label_to_ignore_stays_as_it_is(site):
    add_void(site)
    slices = open_train(site, ignore=255)
    batch, truth = Stream(slices, 4, CPU).batch(torch.arange(4))
    assert truth.unique().tolist() == [0, 1, 255]
    assert torch.equal(batch.targets[0], truth)
    assert slices.truth(0)[0, 0] == 255
    away = Augmentation(flip=False, rotate=0, shift=1e4)
    assert (Stream(slices, 4, CPU, augmentation=away).batch(torch.arange(4))[1] == 255).all()  # beyond the border
    with pytest.raises(UserError, match=r"8 faulty files.*labels 255.*255:1.*--ignore 255"):
        open_train(site)


def test_distances_to_pixels_without_a_class_are_not_known(site):
    add_void(site)
    with pytest.raises(UserError, match=r"labels 255, outside 0\.\.1"):
        open_train(site, FOLDERS.replace("gt_transform, False)]", "dist_map_transform, False)]"), ignore=255)


@pytest.mark.parametrize("ignore", [-1, 1, 256])
def test_the_label_to_ignore_is_no_class(site, ignore):
    with pytest.raises(UserError, match=r"expected a label that is no class, 2\.\.255"):
        open_train(site, ignore=ignore)


def test_ground_truth_of_another_size_is_for_evaluation(site):
    for path in site.glob("train/GT/*.png"):
        write(path, np.array(Image.open(path)).repeat(2, 0).repeat(2, 1))
    with pytest.raises(UserError, match=r"slices of GT have shape \(48, 40\), those of IMG \(24, 20\)"):
        open_train(site)
    slices = open_train(site, any_truth_size=True)
    for batch, truth in Stream(slices, 3, CPU, shuffle=False).epoch(0):
        assert batch.image.shape[1:] == (1, 24, 20)
        assert np.array_equal(truth, slices.labels(batch.rows.tolist()))
    shutil.copytree(site / "train/IMG", site / "train/Other")
    with pytest.raises(UserError, match=r"Other.*\(24, 20\), those of GT \(48, 40\)"):
        open_train(
            site,
            FOLDERS.replace("('GT', gt_transform, False)]", "('Other', gt_transform, False)]"),
            any_truth_size=True,
            n_class=256,
        )


def test_debug_keeps_ten_slices_spread_over_the_set(tmp_path):
    site = write_site(tmp_path / "site", 200, 60, seed=3, patients=8)
    assert len(open_train(site, limit=10)) == 10
    assert len(set(open_train(site, limit=10).patients)) > 3


def test_spacing_comes_from_the_manifest(site):
    assert open_train(site).spacing is None
    names = [path.stem for path in site.glob("*/IMG/*.png")]
    rows = "\n".join(f"{name},0.5,0.75,3" for name in names)
    (site / "manifest.csv").write_text("slice,spacing_w,spacing_h,spacing_slice\n" + rows + "\n")
    assert open_train(site).spacing == {"Case00": (3.0, 0.5, 0.75), "Case01": (3.0, 0.5, 0.75)}


def test_the_digest_follows_the_content(site):
    before = open_train(site).digest
    assert open_train(site).digest == before
    Image.fromarray(np.zeros((24, 20), np.uint8)).save(site / "train/IMG/Case00_2.png")
    assert open_train(site).digest != before


# -- faults ----------------------------------------------------------------------------------------------------


def write(path, array):
    Image.fromarray(np.asarray(array, np.uint8)).save(path)


FAULTS = {
    "missing folder": (lambda s: shutil.rmtree(s / "train/GT"), "GT is missing.*there is IMG"),
    "missing partner": (lambda s: (s / "train/GT/Case00_1.png").unlink(), "no partner.*GT/Case00_1"),
    "missing set": (lambda s: shutil.rmtree(s), "does not exist"),
    "empty split": (lambda s: [p.unlink() for p in s.glob("train/*/*")], "the split is empty"),
    "other shape": (
        lambda s: write(s / "train/IMG/Case00_1.png", np.zeros((9, 9))),
        r"Case00_1.png has shape \(9, 9\)",
    ),
    "mask 0/255": (lambda s: write(s / "train/GT/Case00_1.png", np.full((24, 20), 255)), "labels 255.*255:1"),
    "label 7": (lambda s: write(s / "train/GT/Case00_1.png", np.full((24, 20), 7)), r"labels 7, outside 0\.\.1"),
    "truncated": (
        lambda s: (s / "train/IMG/Case00_1.png").write_bytes((s / "train/IMG/Case00_1.png").read_bytes()[:90]),
        "Case00_1.png cannot be read",
    ),
    "no image": (lambda s: (s / "train/IMG/Case00_1.png").write_text("hello"), "Case00_1.png cannot be read"),
    "coloured mask": (lambda s: write(s / "train/GT/Case00_1.png", np.zeros((24, 20, 3))), "one grey level a pixel"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_named(site, name):
    damage, message = FAULTS[name]
    damage(site)
    with pytest.raises(UserError, match=message):
        open_train(site)


def test_all_offenders_are_listed(site):
    for name in ("Case00_1", "Case01_3"):
        write(site / f"train/GT/{name}.png", np.full((24, 20), 9))
    with pytest.raises(UserError, match=r"2 faulty files(.|\n)*Case00_1(.|\n)*Case01_3"):
        open_train(site)


def test_nan_is_named(site):
    for path in list((site / "train/IMG").iterdir()):
        array = np.asarray(Image.open(path)).astype(np.float32)
        if path.stem == "Case01_0":
            array[3, 3] = np.nan
        np.save(path.with_suffix(".npy"), array)
        path.unlink()
    with pytest.raises(UserError, match="Case01_0.npy has 1 pixel of NaN"):
        open_train(site, "[('IMG', npy_transform, False), ('GT', gt_transform, False)]")


def test_expression_that_matches_nothing(site):
    with pytest.raises(UserError, match="does not match 8 of the 8 slice names"):
        open_train(site, regex=r"(Patient\d+)")


def test_expression_that_is_none(site):
    with pytest.raises(UserError, match="not a regular expression"):
        open_train(site, regex="(Case")


def test_a_patient_in_two_splits(site):
    for folder in ("IMG", "GT"):
        shutil.copy(site / f"train/{folder}/Case00_1.png", site / f"val/{folder}/Case00_9.png")
    with pytest.raises(UserError, match=r"Case00 \(train and val\)"):
        check_patients(site, "IMG", REGEX)
    (site / "dataset.json").write_text(json.dumps({"split_unit": "slice blocks"}))
    check_patients(site, "IMG", REGEX)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[('IMG', png_transfrom, False), ('GT', gt_transform, False)]", "Did you mean 'png_transform'"),
        ("[]", "starts with the image and the ground truth"),
        ("[('IMG', png_transform), ('GT', gt_transform)]", "Cannot read the folder"),
        ("[('IMG', png_transform, False)] + [f('GT')]", "nothing in it is run"),
        ("[('IMG', torch.tensr, False), ('GT', gt_transform, False)]", "Did you mean 'torch.tensor'"),
        ("[('IMG', png_transform, False), ('GT', dist_map_transform, False)]", "first two folders.*no distance maps"),
        (FOLDERS.replace("]", ", ('A', gt_transform, False)]"), "4 folders for 1 losses"),
        ("[('GT', png_transform, False), ('GT', gt_transform, False)]", "both read from GT, so that the network"),
        (
            "[('IMG', gt_transform, False), ('GT', gt_transform, False)]",
            "is for ground truth, and IMG is read as images",
        ),
        ("[('IMG', gtpng_transform, False)]", "is for ground truth, and IMG is read as images: name png_transform"),
        (
            "[('IMG', png_transform, False), ('GT', png_transform, False)]",
            "is for images, and GT is read as ground truth",
        ),
        (FOLDERS.replace("]", ", ('GT', npy_transform, False)]"), "'npy_transform' is for images, and GT"),
    ],
)
def test_a_bad_folder_line_is_refused(text, message):
    with pytest.raises(UserError, match=message):
        parse_folders(text, 1)


def test_sums_of_folder_lists_are_read():
    specs = parse_folders("[('IMG', png_transform, False)]+[('GT', gt_transform, False)]*1".replace("*1", ""), 2)
    assert [spec.folder for spec in specs] == ["IMG", "GT", "GT", "GT"]


def test_names_joined_by_dots_stand_for_themselves():
    assert read_literal("[(a.b.c, plain), {key: torch.tensor}]") == [("a.b.c", "plain"), {"key": "torch.tensor"}]


@pytest.mark.parametrize(
    "text",
    ["torch.tensor()", "f().x", "'a'.join", "[1].x", "a[0].b", "x.__class__", "_x.y", "x._y.z", "__builtins__"],
)
def test_what_is_more_than_a_name_is_refused(text):
    with pytest.raises(UserError, match="nothing in it is run"):
        read_literal(text)


# -- bounds and batches ----------------------------------------------------------------------------------------


def prior_bound(path):
    return BOUNDS.build("PredictionBounds", 2, sizefile=str(path), predcol="dumbpredwtags", margin=0, dir="high")


def test_bounds_lie_in_the_order_of_the_slices(site, tmp_path):
    slices = lay_bounds(open_train(site), [prior_bound(write_prior(tmp_path / "p.csv", site))])
    empty = slices.names.index("Case00_0")
    assert slices.bounds[0][empty, :, 0].tolist() == [480, 0]
    assert slices.bounds[0][empty + 1, :, 0].tolist() == [400, 80]


def test_an_all_zero_prior_leaves_the_slice_out(site, tmp_path):
    prior = write_prior(tmp_path / "p.csv", site)
    prior.write_text(prior.read_text().replace('Case00_0.png,"[480.0, 0]"', 'Case00_0.png,"[0, 0]"'))
    slices = open_train(site)
    assert len(lay_bounds(slices, [prior_bound(prior)])) == len(slices) - 1
    validation = lay_bounds(slices, [prior_bound(prior)], required=False)
    assert len(validation) == len(slices)
    assert validation.bounds == [None]


def test_a_prior_that_outgrows_its_slice_is_told(site, tmp_path, capsys):
    prior = write_prior(tmp_path / "p.csv", site)
    lay_bounds(open_train(site), [prior_bound(prior)])
    assert capsys.readouterr().err == ""
    prior.write_text(prior.read_text().replace("[400.0, 80.0]", "[0, 99999999]", 2))
    lay_bounds(open_train(site), [prior_bound(prior)])
    assert re.search(
        r"p.csv, column 'dumbpredwtags': the sizes in 2 of 8 slices do not .*Case00_1: 99999999, not 480,",
        capsys.readouterr().err,
    )


def test_sizes_that_are_all_zero_are_no_ratios(site):
    """A margin as wide as the size; sizes alone may be 0, and a validation goes without the loss."""
    slices, bound = open_train(site), BOUNDS.build("PreciseBounds", 2, margin=1)
    assert not lay_bounds(slices, [bound]).bounds[0][:, :, 0].any()
    bound.take_as_ratios()
    with pytest.raises(UserError, match="PreciseBounds gives every class the size 0 in 8 of 8 slices.*Case00_0, "):
        lay_bounds(slices, [bound])
    assert lay_bounds(slices, [bound], required=False).bounds == [None]


@pytest.mark.parametrize("required", [True, False])
def test_sizes_that_are_no_numbers_are_refused(site, required, monkeypatch):
    """A loss of them is NaN at its first step."""
    bound = BOUNDS.build("PreciseBounds", 2)
    monkeypatch.setattr(type(bound), "__call__", lambda self, label, name: np.array([[1.0, 2.0], [3.0, np.inf]]))
    with pytest.raises(UserError, match="PreciseBounds gives sizes that are no finite numbers.*a smaller margin"):
        lay_bounds(open_train(site), [bound], required=required)


def test_a_slice_without_prior_is_fatal_in_training_and_tolerated_in_validation(site, tmp_path):
    prior = write_prior(tmp_path / "p.csv", site)
    prior.write_text("\n".join(line for line in prior.read_text().splitlines() if "Case01_1" not in line))
    with pytest.raises(UserError, match="Case01_1"):
        lay_bounds(open_train(site), [prior_bound(prior)])
    assert lay_bounds(open_train(site), [prior_bound(prior)], required=False).bounds == [None]


def test_an_epoch_sees_every_slice_once_in_an_order_of_its_own(site):
    stream = Stream(open_train(site), 3, CPU)
    orders = [torch.cat([batch.rows for batch, _ in stream.epoch(epoch)]).tolist() for epoch in (0, 0, 1)]
    assert sorted(orders[0]) == list(range(8))
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    assert len(stream) == 3


def test_a_blind_stream_carries_no_ground_truth(site):
    stream = Stream(open_train(site), 3, CPU, with_targets=False)
    assert all(batch.targets == [None] for batch, _ in stream.epoch(0))


def test_join_keeps_every_slice(site):
    train, val = (open_slices(site, split, parse_folders(FOLDERS, 1), 2, REGEX) for split in ("train", "val"))
    both = join([train, val])
    assert both.names == train.names + val.names
    assert np.array_equal(both.labels(range(len(train), len(both))), val.labels(range(len(val))))


def test_zscored_slices_are_brought_to_0_to_1(tmp_path):
    image = np.array([[-4.0, 0.25], [4.5, 0.0]], np.float32)
    assert TRANSFORMS["nii_zscore_transform"](image).tolist() == [[0, 0.5], [1, pytest.approx(4 / 8.5)]]
    assert np.array_equal(TRANSFORMS["nii_transform"](image), image)
    for name, values in (("0.npy", image), ("1.npy", image * 2)):
        np.save(tmp_path / name, values)
    spec = FolderSpec("IMG", "nii_zscore_transform")
    assert load_slice(tmp_path / "0.npy", spec, 2, is_image=True)[1] == ""
    array, fault = load_slice(tmp_path / "1.npy", spec, 2, is_image=True)
    assert array is None
    assert "1.npy holds grey levels from -8 to 9; nii_zscore_transform is for" in fault


def test_a_slice_of_bytes_is_divided_by_255_under_its_published_name(tmp_path):
    np.save(tmp_path / "0.npy", np.array([[0, 51], [204, 255]], np.uint8))
    stored, _ = load_slice(tmp_path / "0.npy", FolderSpec("IMG", "imnpy_transform"), 2, is_image=True)
    assert stored.dtype == np.uint8  # divided when it is batched
    assert np.array_equal(stored, TRANSFORMS["png_transform"](stored))
