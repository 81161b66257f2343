import csv
import json
import shutil
import tracemalloc
from contextlib import nullcontext

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from fake_runs import Killed, killed_after, make_run, make_set, save_png, write_spacing
from PIL import Image

import score_masks
from analysis.masks import Masks, read_mask
from analysis.run import open_run
from metrics import SCORES
from preprocess.slice_volumes import slice_set
from preprocess.slicing.spec import Blocks, SliceSpec
from processes.errors import UserError
from score_masks import main


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Three patients of three classes with a spacing, and a run that missed one of them."""
    root = tmp_path_factory.mktemp("masks")
    data = make_set(root / "data/toy", n_patient=3, n_slice=4, n_class=3)
    make_run(root / "toy/ce", data, n_epoch=4, n_class=3, missed=("Case01",))
    return root


@pytest.fixture
def run(made, tmp_path):
    """A copy of the run, to be changed at will."""
    return shutil.copytree(made / "toy/ce", tmp_path / "toy/ce")


def score(run, name, *words):
    """The array, and the csv by (epoch, class)."""
    main(["--run", str(run), "--score", name, *map(str, words)])
    with (run / f"val_3d_{name}.csv").open() as file:
        lines = {(int(row["epoch"]), row["class"]): row for row in csv.DictReader(file)}
    return np.load(run / f"val_3d_{name}.npy"), lines


@pytest.mark.parametrize("name", SCORES)
def test_the_last_epoch_s_scores_are_those_of_the_run(run, name):
    array, lines = score(run, name)
    assert (array.shape, array.dtype) == ((4, 3, 3), np.float32)
    table = pd.read_csv(run / "patients_last.csv")
    own = table.rename(columns={f"{name}_mm": name}).pivot(index="patient", columns="class", values=name)
    np.testing.assert_allclose(array[-1, :, 1:], own, rtol=1e-6)
    assert np.isnan(array[:, :, 0]).all()
    for k in (1, 2):
        row = lines[3, str(k)]
        assert float(row["mean"]) == pytest.approx(np.nanmean(array[-1, :, k]), rel=1e-5)
        assert (int(row["n"]), row["misses"]) == (np.isfinite(array[-1, :, k]).sum(), "1")
    assert float(lines[3, "mean"]["mean"]) == pytest.approx(
        pd.DataFrame(array[-1, :, 1:]).mean(axis=1).mean(), rel=1e-5
    )
    assert lines[3, "mean"]["misses"] == "2"


def test_distances_are_in_mm(tmp_path):
    """A square that lies two pixels of 0.5 mm beside the true one."""
    data = make_set(tmp_path / "data", n_patient=1, n_slice=1)
    write_spacing(data, (5, 0.5, 2))
    run = make_run(tmp_path / "run", data, n_epoch=1)
    square = np.zeros((32, 40))
    square[10:20, 10:20] = 1
    save_png(data / "val/GT/Case00_00.png", square)
    save_png(run / "iter000/val/Case00_00.png", np.roll(square, 2, axis=0))
    array, _ = score(run, "hd95")
    assert array[0, 0, 1] == 1.0


def test_the_array_that_make_looks_at_is_written_last(run, monkeypatch):
    monkeypatch.setattr(score_masks, "atomic_write", killed_after(1, score_masks.atomic_write))
    with pytest.raises(Killed):
        main(["--run", str(run), "--score", "dice"])
    assert [path.name for path in run.glob("val_3d_dice.*")] == ["val_3d_dice.csv"]


def test_epochs_without_masks_stay_empty(run):
    for epoch in (1, 2):
        shutil.rmtree(run / f"iter{epoch:03d}")
    array, lines = score(run, "dice")
    assert np.isfinite(array[[0, 3], :, 1:]).all()
    assert np.isnan(array[[1, 2]]).all()
    assert {epoch for epoch, _ in lines} == {0, 3}


def test_the_mean_is_over_the_classes_of_the_metric_axis(run):
    params = run / "params.txt"
    params.write_text(params.read_text().replace("metric_axis: [1, 2]", "metric_axis: [2]"))
    _, lines = score(run, "dice")
    assert lines[3, "mean"]["mean"] == lines[3, "2"]["mean"] != lines[3, "1"]["mean"]


def test_ignored_pixels_count_nowhere(tmp_path):
    """The prediction is right but for the rows of the truth that are to be ignored."""
    data = make_set(tmp_path / "data", n_patient=2, n_slice=3, ignore=255)
    run = make_run(tmp_path / "run", data, quality=1.0, n_epoch=1, ignore=255)
    for path in (run / "iter000/val").iterdir():
        mask = np.array(Image.open(path))
        mask[:2] = 1
        save_png(path, mask)
    assert score(run, "dice")[0][0, :, 1].tolist() == [1, 1]
    assert score(run, "hd95")[0][0, :, 1].tolist() == [0, 0]


def test_threads_and_places_change_nothing(made, run, tmp_path):
    first, _ = score(run, "assd")
    shutil.copytree(made / "data/toy", tmp_path / "moved")
    second, _ = score(run, "assd", "--jobs", 2, "--data", tmp_path / "moved")
    main(["--run", str(run), "--score", "assd", "--out", str(tmp_path / "deep/er.npy")])
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, np.load(tmp_path / "deep/er.npy"))
    assert (tmp_path / "deep/er.csv").read_text() == (run / "val_3d_assd.csv").read_text()


def test_an_array_of_the_old_assd_is_refused(run):
    new, lines = score(run, "assd")
    assert lines[0, "1"]["score"] == "assd"
    np.testing.assert_array_equal(open_run(run).array("val_3d_assd.npy"), new)
    path = run / "val_3d_assd.csv"
    path.write_text(path.read_text().replace("score,", "").replace("assd,", ""))
    with pytest.raises(UserError, match="which is called MASD now; remove it"):
        open_run(run).array("val_3d_assd.npy")
    score(run, "masd")
    assert open_run(run).array("val_3d_masd.npy").shape == new.shape


LONGER = (slice(33, 37), (2**31 - 1).to_bytes(4, "big"))  # pixels that go on for 2 GiB; those that are there are whole
SHORTER = (slice(8, 12), (12).to_bytes(4, "big"))  # a header of 12 bytes
LARGER = (slice(16, 24), 2 * (30000).to_bytes(4, "big"))  # 30,000 x 30,000 pixels


@pytest.mark.parametrize(
    ("change", "said"), [(LONGER, ""), (SHORTER, "cannot be read"), (LARGER, "promises 30000 x 30000")]
)
def test_a_mask_takes_no_memory_for_what_it_claims_and_does_not_hold(run, change, said):
    mask = run / "iter002/val/Case01_02.png"
    content, whole = bytearray(mask.read_bytes()), read_mask(mask)
    content[change[0]] = change[1]
    mask.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=rf"Case01_02.png {said}") if said else nullcontext():
            np.testing.assert_array_equal(read_mask(mask), whole)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_mistakes_are_named_and_leave_what_was_there(made, run, tmp_path):
    score(run, "dice")
    before = (run / "val_3d_dice.npy").read_bytes()
    broken = run / "iter002/val/Case01_02.png"
    broken.write_bytes(broken.read_bytes()[:50])
    with pytest.raises(UserError, match=r"iter002/val/Case01_02.png cannot be read"):
        score(run, "dice")
    broken.unlink()
    with pytest.raises(UserError, match=r"iter002/val/Case01_02.png is missing.*--saveim 1"):
        score(run, "dice")
    assert (run / "val_3d_dice.npy").read_bytes() == before
    with pytest.raises(UserError, match=r"scores.npz.*change --out"):
        score(run, "dice", "--out", tmp_path / "scores.npz")
    for folder in run.glob("iter*"):
        shutil.rmtree(folder)
    with pytest.raises(UserError, match="holds no iter000/val; run it again with --saveim 1"):
        score(run, "hd95")
    assert not list(run.glob("val_3d_hd95*"))
    shutil.copytree(made / "data/toy", tmp_path / "plain")
    (tmp_path / "plain/manifest.csv").unlink()
    shutil.copytree(made / "toy/ce/iter003", run / "iter003")
    with pytest.raises(UserError, match="in mm, and .*plain has them in vox"):
        score(run, "hd95", "--data", tmp_path / "plain")
    streets = make_run(tmp_path / "streets", made / "data/toy", n_epoch=1, n_class=3, scores="iou")
    with pytest.raises(UserError, match="on pictures, by IoU"):
        score(streets, "hd95")


# ------------------------------------------------------------------------------------------------ native grid

BOX = np.s_[4:9, 4:12, :]  # 5 x 8 voxels: halved, its last column along W is lost, as the nearest pixel is the further


def sliced_run(root, split, box=BOX, **frame):
    """A run whose masks are the ground truth of slices out of two volumes of 16 x 20 x 3 voxels, labelled 7."""
    voxels = np.zeros((16, 20, 3), np.uint8)
    voxels[box] = 7
    for i in range(2):
        for name, content in (("", np.arange(960, dtype=np.int16).reshape(voxels.shape)), ("_gt", voxels)):
            path = root / f"volumes/Case0{i}{name}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(content, np.diag([-0.5, -0.75, 3, 1])), path)  # LPS, as it is cut
    files = {"images": {"IMG": f"{root}/volumes/Case0?.nii.gz"}, "label": f"{root}/volumes/*_gt.nii.gz"}
    slice_set(SliceSpec(root / "data", patient=r"(Case\d+)", label_map="7:1", **files, **split, **frame))
    return make_run(root / "run", root / "data", quality=1.0, n_epoch=1)


VAL = {"val_list": ("Case00",)}


@pytest.mark.parametrize(
    ("frame", "dice", "hd95"),
    [
        ({}, 1, 0),
        ({"multiple": 32}, 1, 0),
        ({"spacing": (0.25, 0.5), "size": (40, 40)}, 1, 0),
        ({"spacing": (1.0, 1.5)}, 2 * 4 / (4 + 5), 0.5),
        ({"resize": (8, 10)}, 2 * 4 / (4 + 5), 0.5),
        ({"size": (16, 8)}, 2 * 6 / (6 + 8), 1.5),  # keeps 6..14 of 4..12 along H
    ],
    ids=str,
)
def test_masks_are_scored_on_the_grid_of_the_label_volume(tmp_path, frame, dice, hd95):
    run = sliced_run(tmp_path, VAL, **frame)
    assert score(run, "dice")[0].ravel()[1] == 1
    main(["--run", str(run), "--score", "hd95", "--native"])
    main(["--run", str(run), "--score", "dice", "--native"])
    assert np.load(run / "val_3d_native_dice.npy").shape == (1, 1, 2)
    assert np.load(run / "val_3d_native_dice.npy")[0, 0, 1] == pytest.approx(dice)
    assert np.load(run / "val_3d_native_hd95.npy")[0, 0, 1] == pytest.approx(hd95)
    assert f"dice,0,1,{dice:.6g},,1,0,0\n" in (run / "val_3d_native_dice.csv").read_text()


def test_only_the_slices_that_were_evaluated_count(tmp_path):
    """One slice of three, without resampling: the native score is the plain one."""
    run = sliced_run(tmp_path, {"split_by_blocks": Blocks(1, 2)})
    shutil.rmtree(run)
    run = make_run(tmp_path / "run", tmp_path / "data", quality=0.5, n_epoch=2)
    for name in ("dice", "assd"):
        plain, _ = score(run, name)
        main(["--run", str(run), "--score", name, "--native"])
        np.testing.assert_array_equal(np.load(run / f"val_3d_native_{name}.npy"), plain)


def test_a_set_that_changed_since_the_run_is_told_or_refused(made, run, tmp_path, capsys):
    data = shutil.copytree(made / "data/toy", tmp_path / "data")
    score(run, "dice", "--data", data)
    assert "not what it was" not in capsys.readouterr().err
    path = next((data / "val/GT").glob("*01_02.*"))
    save_png(path, np.array(Image.open(path)) * 0)
    score(run, "dice", "--data", data)
    assert f"ground truth of 1 of 12 slices in {data} is not what it was" in capsys.readouterr().err
    for each in data.glob(f"val/*/{path.name}"):
        each.unlink()
    with pytest.raises(UserError, match=f"lacks 1 of the 12 slices.*: {path.stem}"):
        score(run, "dice", "--data", data)


def test_ground_truth_of_the_same_sizes_in_another_place_is_told(made, run, tmp_path, capsys):
    data = shutil.copytree(made / "data/toy", tmp_path / "data")
    card = json.loads((run / "provenance.json").read_text())
    card["inputs"] = {"val": Masks(open_run(run)).slices(data).digest}
    (run / "provenance.json").write_text(json.dumps(card))
    score(run, "dice", "--data", data)
    assert "not those" not in capsys.readouterr().err
    path = next((data / "val/GT").glob("*01_02.*"))
    save_png(path, np.array(Image.open(path))[::-1])
    score(run, "dice", "--data", data)
    assert f"files in {data} are not those that {run} was evaluated on" in capsys.readouterr().err


def test_label_volumes_that_are_not_to_be_had(tmp_path, run):
    with pytest.raises(UserError, match="do not tell: slice it with python -m preprocess.slice_volumes"):
        main(["--run", str(run), "--score", "dice", "--native"])
    run = sliced_run(tmp_path, VAL)
    with pytest.raises(UserError, match="score_masks.py --run .* --score nsd --native"):
        open_run(run).array("val_3d_native_nsd.npy")
    path = tmp_path / "volumes/Case00_gt.nii.gz"
    shutil.copy(tmp_path / "volumes/Case00.nii.gz", path)
    for _ in range(2):
        with pytest.raises(UserError, match=r"these are gone, or not .*Case00_gt.nii.gz, seen from"):
            main(["--run", str(run), "--score", "dice", "--native"])
        path.unlink(missing_ok=True)


def test_sizes_of_another_number_of_slices_are_refused(run):
    sizes = np.load(run / "val_gt_sizes.npy")
    np.save(run / "val_gt_sizes.npy", sizes[:-1])
    with pytest.raises(UserError, match=r"shape \(11, 3\), not that of the 12 slices in val_names.txt and 3 classes"):
        main(["--run", str(run), "--score", "dice"])


def test_a_run_that_tells_no_tolerance_has_every_score_but_the_nsd(run, tmp_path):
    path = run / "provenance.json"
    told = json.loads(path.read_text())
    del told["nsd_tolerance"]
    path.write_text(json.dumps(told))
    main(["--run", str(run), "--score", "dice", "--out", str(tmp_path / "dice.npy")])
    assert (tmp_path / "dice.npy").is_file()
    with pytest.raises(UserError, match="does not tell nsd_tolerance"):
        main(["--run", str(run), "--score", "nsd", "--out", str(tmp_path / "nsd.npy")])
