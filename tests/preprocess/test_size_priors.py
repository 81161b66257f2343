"""Making, checking and scaling size priors, numbers worked by hand."""

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from datasets.size_table import read_size_table
from preprocess.priors.estimates import ball_diameter_mm
from preprocess.priors.mistagging import mistag
from preprocess.size_priors import compare, divergence, parse_args, scale_sizes
from processes.errors import UserError

ROOT = Path(__file__).parents[2]


def run(*argv: object) -> None:
    args = parse_args([str(word) for word in argv])
    args.run(args)


def column(path: Path, name: str) -> dict[str, list[float]]:
    return {stem: sizes.tolist() for stem, sizes in read_size_table(path, name).sizes.items()}


def label(shape: tuple[int, int], *sizes: int) -> np.ndarray:
    """`sizes` pixels of class 1, 2, … in a row, background elsewhere."""
    values = np.concatenate([np.full(n, k) for k, n in enumerate(sizes, 1)] or [np.zeros(0)])
    return np.resize(np.pad(values, (0, np.prod(shape) - len(values))), shape).astype(np.uint8)


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        Image.fromarray(pixels).save(path)
    elif path.suffix == ".npy":
        np.save(path, pixels)
    else:
        nib.save(nib.Nifti1Image(pixels[None].astype(np.float32), np.eye(4)), path)


@pytest.fixture
def target(tmp_path):
    """Four slices of 10 x 8 with 6, 0, 20 and 10 pixels of the organ, one of each file type."""
    root = tmp_path / "target"
    save(root / "train" / "GT" / "P0_0.png", label((10, 8), 6))
    save(root / "train" / "GT" / "P0_1.npy", label((10, 8)))
    save(root / "val" / "GT" / "P1_0.nii", label((10, 8), 20))
    save(root / "val" / "GT" / "P1_1.nii.gz", label((10, 8), 10))
    (root / "train" / "GT" / ".DS_Store").write_text("not a slice")
    return root


def write_manifest(root: Path, spacings: dict[str, tuple[float, float]]) -> None:
    rows = [f"{name},train,P,0,2,{w},{h},3.0" for name, (w, h) in spacings.items()]
    header = "slice,split,patient,index,axis,spacing_w,spacing_h,spacing_slice"
    (root / "manifest.csv").write_text("\n".join([header, *rows]) + "\n")


def spaced(target: Path) -> Path:
    """The target with pixels of 0.5 x 2 mm in its first patient, 1 x 2 mm in the second."""
    write_manifest(target, {"P0_0": (0.5, 2), "P0_1": (0.5, 2), "P1_0": (1, 2), "P1_1": (1, 2)})
    return target


def make(target: Path, *flags: object) -> Path:
    out = target.parent / "sizes" / "set.csv"
    run("make", "--data", target, "--out", out, "--n_class", 2, *flags)
    return out


# ------------------------------------------------------------------------------------------------ make


def test_constant(target):
    out = make(target, "--constant", 15)
    assert column(out, "dumbpredwtags") == {"P0_0": [65, 15], "P0_1": [80, 0], "P1_0": [65, 15], "P1_1": [65, 15]}
    assert column(out, "dumbprednotags") == {name: [65, 15] for name in ("P0_0", "P0_1", "P1_0", "P1_1")}
    assert column(out, "val_gt_size") == {"P0_0": [74, 6], "P0_1": [80, 0], "P1_0": [60, 20], "P1_1": [70, 10]}
    table = read_size_table(out, "dumbpredwtags", 2)
    assert (table.supervision, table.oracle) == ("image-level tags (read off GT)", False)
    assert table.comments["made from"] == str(target)
    assert table.comments["estimator dumbpredwtags"] == "constant 15 pixels, where the tag is on"
    assert read_size_table(out, "dumbprednotags").supervision == "none"
    assert read_size_table(out, "val_gt_size").oracle


def test_published_constants_at_their_size_and_at_another(tmp_path):
    for name, size in (("same", 256), ("half", 128)):
        save(tmp_path / name / "train" / "GT" / "A_0.png", label((size, size), 5))
        run("make", "--data", tmp_path / name, "--out", tmp_path / f"{name}.csv", "--n_class", 2, "--published", "ivd")
    assert column(tmp_path / "same.csv", "dumbpredwtags") == {"A_0": [65536 - 579, 579]}
    assert column(tmp_path / "half.csv", "dumbpredwtags") == {"A_0": [128**2 - 145, 145]}
    words = [read_size_table(tmp_path / f"{name}.csv", "dumbpredwtags").comments for name in ("same", "half")]
    assert ["same field of view" in each["estimator dumbpredwtags"] for each in words] == [False, True]
    with pytest.raises(UserError, match="4 with --n_class 5|one number above 0 for each class"):
        run("make", "--data", tmp_path / "same", "--out", tmp_path / "x.csv", "--n_class", 2, "--published", "whs")


def test_several_classes(tmp_path):
    root = tmp_path / "target"
    save(root / "train" / "GT" / "A_0.png", label((10, 10), 5, 0, 9))
    run("make", "--data", root, "--out", tmp_path / "s.csv", "--n_class", 4, "--constant", 10, 20, 30)
    assert column(tmp_path / "s.csv", "dumbpredwtags") == {"A_0": [60, 10, 0, 30]}
    assert column(tmp_path / "s.csv", "dumbprednotags") == {"A_0": [40, 10, 20, 30]}
    assert column(tmp_path / "s.csv", "val_gt_size") == {"A_0": [86, 5, 0, 9]}


def test_mm2_follow_the_spacing(target):
    out = make(spaced(target), "--constant_mm2", 12)  # 12 mm2 / 1 mm2, 12 mm2 / 2 mm2
    assert column(out, "dumbprednotags") == {"P0_0": [68, 12], "P0_1": [68, 12], "P1_0": [74, 6], "P1_1": [74, 6]}


def test_mm3_over_a_given_extent(target):
    out = make(spaced(target), "--constant_mm3", 120, "--extent_mm", 10)  # 12 mm2 a slice
    assert column(out, "dumbprednotags")["P0_0"] == [68, 12]
    assert column(out, "dumbprednotags")["P1_0"] == [74, 6]


def test_mm3_of_a_ball(target):
    volume = np.pi * 6**3 / 6  # diameter 6 mm: mean cross-section 36 pi / 6 = 18.85 mm2
    assert ball_diameter_mm(np.array([volume])) == pytest.approx([6])
    out = make(spaced(target), "--constant_mm3", volume)
    assert column(out, "dumbprednotags")["P0_0"] == [61, 19]
    assert "the diameter of a ball" in read_size_table(out, "dumbprednotags").comments["estimator dumbprednotags"]


@pytest.fixture
def source(tmp_path):
    """Training slices of 5 x 8 with 4, 0 and 8 pixels of the organ, so 6 where it is seen; validation has 30."""
    root = tmp_path / "source"
    for name, size in {"S0_0": 4, "S0_1": 0, "S1_0": 8}.items():
        save(root / "train" / "GT" / f"{name}.png", label((5, 8), size))
    save(root / "val" / "GT" / "S2_0.png", label((5, 8), 30))
    return root


def test_source_mean_as_share(target, source):
    out = make(target, "--source_mean", source)  # 6 of 40 pixels are 12 of 80
    assert column(out, "dumbpredwtags") == {"P0_0": [68, 12], "P0_1": [80, 0], "P1_0": [68, 12], "P1_1": [68, 12]}
    assert read_size_table(out, "dumbpredwtags").supervision == "source labels, image-level tags (read off GT)"
    assert read_size_table(out, "dumbprednotags").supervision == "source labels"
    assert "0.15 of the slice" in read_size_table(out, "dumbprednotags").comments["estimator dumbprednotags"]


def test_source_mean_in_mm2(target, source):
    write_manifest(source, dict.fromkeys(["S0_0", "S0_1", "S1_0"], (2, 2)))  # 6 pixels of 4 mm2 are 24 mm2
    out = make(spaced(target), "--source_mean", source)
    assert column(out, "dumbprednotags") == {"P0_0": [56, 24], "P0_1": [56, 24], "P1_0": [68, 12], "P1_1": [68, 12]}


def test_unlabelled_target(tmp_path):
    root = tmp_path / "target"
    save(root / "train" / "IMG" / "A_0.png", np.full((6, 5), 200, np.uint8))
    save(root / "train" / "IMG" / "A_1.png", np.full((6, 5, 3), 200, np.uint8))
    flags = ("make", "--data", root, "--folder", "IMG", "--unlabelled", "--n_class", 3, "--constant", 4, 7)
    run(*flags, "--out", tmp_path / "none.csv")
    assert column(tmp_path / "none.csv", "dumbprednotags") == {"A_0": [19, 4, 7], "A_1": [19, 4, 7]}
    for absent in ("dumbpredwtags", "val_gt_size"):
        with pytest.raises(UserError, match=f"no column '{absent}'"):
            read_size_table(tmp_path / "none.csv", absent)

    (tmp_path / "tags.csv").write_text("val_ids;tags\nA_0.png;[1,0,1]\nA_1.png;[1,0,0]\n")
    run(*flags, "--out", tmp_path / "tagged.csv", "--tags", tmp_path / "tags.csv")
    assert column(tmp_path / "tagged.csv", "dumbpredwtags") == {"A_0": [23, 0, 7], "A_1": [30, 0, 0]}
    (tmp_path / "tags.csv").write_text("val_ids;tags\nA_0.png;[1,0,1]\n")
    with pytest.raises(UserError, match="no row for 1 of 2 slices: A_1"):
        run(*flags, "--out", tmp_path / "other.csv", "--tags", tmp_path / "tags.csv")


def test_phantom_is_called_so(target):
    (target / "dataset.json").write_text(json.dumps({"phantom": True}))
    assert read_size_table(make(target, "--constant", 15), "dumbpredwtags").comments["made from"].endswith("(phantom)")


def test_same_bytes_again(target):
    out = make(target, "--constant", 15)
    first = out.read_bytes()
    out.unlink()
    assert make(target, "--constant", 15).read_bytes() == first


def test_a_class_count_that_contradicts_the_set_s_card(target):
    (target / "dataset.json").write_text('{"n_class": 3}')
    with pytest.raises(UserError, match="--n_class is 2, .*says 3"):
        make(target, "--constant", 15)


def test_existing_csv_is_never_overwritten(target):
    out = target.parent / "sizes" / "set.csv"
    out.parent.mkdir()
    out.write_text("mine")
    with pytest.raises(UserError, match=r"set.csv is there and is never overwritten"):
        make(target, "--constant", 15)
    assert out.read_text() == "mine"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--constant", 15, 16], "--constant expects one number above 0 .*, 1 with --n_class 2; got 15 16"),
        (["--constant", 0], "--constant expects one number above 0"),
        (["--constant", 80], r"leave no background in 4 of 4 slices: P0_0, P0_1"),
        (["--constant_mm2", 15], r"there is no .*manifest.csv.*--constant"),
        (["--constant", 15, "--extent_mm", 3], "it goes with --constant_mm3"),
        (["--constant", 15, "--folder", "Labels"], "Every split needs its Labels folder; there is no .*--unlabelled"),
        (["--source_mean", "nowhere"], "There is no slice"),
    ],
)
def test_wrong_flags(target, flags, message):
    with pytest.raises(UserError, match=message):
        make(target, *flags)
    assert not (target.parent / "sizes").exists()


def test_faulty_labels_are_listed(target):
    save(target / "train" / "GT" / "P0_2.png", label((10, 8), 6) * 255)
    save(target / "train" / "GT" / "P0_3.npy", np.full((10, 8), 0.5))
    save(target / "train" / "GT" / "P0_4.png", np.zeros((10, 8, 3), np.uint8))
    (target / "train" / "GT" / "P0_5.png").write_bytes(b"\x89PNG cut")
    with pytest.raises(UserError, match="4 faulty files") as caught:
        make(target, "--constant", 15)
    for words in ("labels 255, outside 0..1", "labels 0.5", "(3, 10, 8)", "P0_5.png cannot be read"):
        assert words in str(caught.value)


def test_slice_in_two_splits(target):
    save(target / "val" / "GT" / "P0_0.npy", label((10, 8)))
    with pytest.raises(UserError, match=r"1 slice there twice.*P0_0.png and .*P0_0.npy"):
        make(target, "--constant", 15)


def test_split_without_labels(target):
    (target / "test" / "IMG").mkdir(parents=True)
    with pytest.raises(UserError, match=r"there is no .*test/GT"):
        make(target, "--constant", 15)


def test_manifest_faults(target):
    write_manifest(target, {"P0_0": (1, 1), "P0_1": (0, 1), "P1_0": (1, 1)})
    with pytest.raises(UserError, match=r"above 0 for 2 of 4 slices.*P0_1 \(0, 1\), P1_1 \(no row\)"):
        make(target, "--constant", 15)
    (target / "manifest.csv").write_text("slice,spacing\nP0_0,1\n")  # of somebody else
    with pytest.raises(UserError, match="need the pixel spacing"):
        make(target, "--constant_mm2", 15)


def test_source_without_the_class(target, source):
    for path in (source / "train" / "GT").iterdir():
        save(path, label((5, 8)))
    with pytest.raises(UserError, match="no training label shows class 1"):
        make(target, "--source_mean", source)


# ------------------------------------------------------------------------------------------------ check


def test_divergence_by_hand():
    half, quarter = np.array([[0.5, 0.5]]), np.array([[0.25, 0.75]])
    expected = 0.5 * np.log(2) + 0.5 * np.log(2 / 3)
    assert divergence(half, quarter) == pytest.approx(expected, abs=1e-9)
    assert divergence(half, half) == 0
    absent = np.array([[1.0, 0.0]])
    assert divergence(half, absent) == pytest.approx(np.log(0.5) + 0.5 * -np.log(1e-10), abs=1e-9)


@pytest.fixture
def csv(tmp_path):
    path = tmp_path / "set.csv"
    path.write_text(
        "# made from: data/x\nval_ids;prior;val_gt_size\n"
        "a;[60,40];[80,20]\nb;[60,40];[100,0]\nc;[100,0];[90,10]\nd;[0,0];[50,50]\ne;[70,30];[60,39]\n"
    )
    return path


def test_compare(csv):
    found = compare(read_size_table(csv, "prior"), read_size_table(csv, "val_gt_size"))
    assert found.n_slice == 4
    assert found.ratio == pytest.approx([290 / 330, 70 / 69])  # of class 1 in a, c, e: 40 + 0 + 30 over 20 + 10 + 39
    assert found.n_positive.tolist() == [4, 3]
    assert found.n_missed.tolist() == [0, 1]
    assert found.n_false.tolist() == [0, 1]


def test_a_prior_against_itself(csv):
    truth = read_size_table(csv, "val_gt_size")
    found = compare(truth, truth)
    assert (found.kl_prior_truth, found.kl_truth_prior, found.n_slice) == (0, 0, 5)
    assert found.ratio.tolist() == [1, 1]


def test_check_prints(csv, capsys):
    run("check", "--sizes", csv, "--column", "prior")
    out = capsys.readouterr().out
    assert "left out by the prior (all-zero lists): 1 slice" in out
    assert "50.00%       1      1" in out
    assert "the lists of 'prior' sum to 100 pixels\n" in out
    assert "sum to 100 pixels, but 1 do not: e (99)" in out


def test_check_of_a_prior_that_leaves_all_out(csv):
    csv.write_text("val_ids;prior;val_gt_size\na;[0,0];[1,2]\n")
    with pytest.raises(UserError, match="is all zero"):
        run("check", "--sizes", csv, "--column", "prior")


# ------------------------------------------------------------------------------------------------ scale


@pytest.mark.parametrize(
    ("sizes", "factor", "expected"),
    [
        ([90, 8, 2], 0.5, [95, 4, 1]),
        ([90, 8, 2], 2, [80, 16, 4]),
        ([50, 40, 10], 4, [0, 80, 20]),  # 160 and 40 of 100 pixels
        ([100, 0, 0], 2, [100, 0, 0]),
        ([99, 0, 1], 0.25, [99, 0, 1]),  # a tag stays on
        ([0, 0, 0], 2, [0, 0, 0]),
        ([47905, 4431, 5000], 1, [47905, 4431, 5000]),
    ],
)
def test_scale_sizes(sizes, factor, expected):
    assert scale_sizes(np.array([sizes], dtype=float), factor).tolist() == [expected]


def test_scale_writes_a_new_file(csv):
    before = csv.read_bytes()
    run("scale", "--sizes", csv, "--column", "prior", "--factors", 0.5, 1.5)
    out = csv.with_name("set_scaled.csv")
    assert csv.read_bytes() == before
    assert column(out, "prior") == column(csv, "prior")
    assert column(out, "prior_x0.5") == {"a": [80, 20], "b": [80, 20], "c": [100, 0], "d": [0, 0], "e": [85, 15]}
    assert column(out, "prior_x1.5")["a"] == [40, 60]
    table = read_size_table(out, "prior_x1.5")
    assert table.supervision == read_size_table(csv, "prior").supervision
    assert table.comments["made from"] == "data/x"
    with pytest.raises(UserError, match="never overwritten"):
        run("scale", "--sizes", csv, "--column", "prior")
    with pytest.raises(UserError, match="--factors expects different numbers above 0"):
        run("scale", "--sizes", csv, "--column", "prior", "--out", out.with_name("x.csv"), "--factors", 0, 2)


def test_scaled_truth_stays_oracle(csv):
    run("scale", "--sizes", csv, "--column", "val_gt_size", "--out", csv.with_name("x.csv"), "--factors", 2)
    assert read_size_table(csv.with_name("x.csv"), "val_gt_size_x2").oracle


def test_program_says_one_paragraph(tmp_path):
    words = ["-m", "preprocess.size_priors", "check", "--sizes", str(tmp_path / "no.csv"), "--column", "prior"]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "There is no size csv" in done.stderr


def test_sizes_of_volumes_are_in_voxels(tmp_path):
    root = tmp_path / "volumes"
    for case, size in enumerate((30, 0, 50)):
        save(root / ("val" if case == 2 else "train") / "GT" / f"B_{case}.npy", label((4, 6, 8), size))
    (root / "dataset.json").write_text(json.dumps({"volumetric": True}))
    rows = "".join(f"B_{case},2,1.5,1\n" for case in range(3))
    (root / "manifest.csv").write_text("name,spacing_slice,spacing_w,spacing_h\n" + rows)
    out = tmp_path / "sizes.csv"
    run("make", "--data", root, "--out", out, "--n_class", 2, "--constant_mm3", 120)
    assert column(out, "dumbpredwtags") == {"B_0": [152, 40], "B_1": [192, 0], "B_2": [152, 40]}
    assert column(out, "val_gt_size") == {"B_0": [162, 30], "B_1": [192, 0], "B_2": [142, 50]}
    with pytest.raises(UserError, match="set of volumes"):
        run("make", "--data", root, "--out", tmp_path / "x.csv", "--n_class", 2, "--constant_mm2", 120)


# ------------------------------------------------------------------------------------------------ spoil


@pytest.mark.parametrize(("share", "turned"), [(0, 0), (0.25, 1), (0.5, 2), (1, 4)])
def test_so_many_tags_are_turned(share, turned):
    """Two of five slices show the organ, one is left out."""
    tagged = np.array([[90, 10], [90, 10], [100, 0], [100, 0], [0, 0]], float)
    untagged = np.array([[90, 10]] * 5, float)
    found = mistag(tagged, untagged, share, draw=3)
    assert (found != tagged).any(1).sum() == turned
    assert found.sum(1).tolist() == [100, 100, 100, 100, 0]
    assert set(found[:, 1].tolist()) <= {0, 10}
    if share == 1:
        assert found[:, 1].tolist() == [0, 0, 10, 10, 0]


def test_tags_are_of_classes_and_a_smaller_share_is_part_of_a_larger():
    rng = np.random.default_rng(0)
    sizes = np.concatenate([np.zeros((40, 1)), 20 + np.zeros((40, 2))], axis=1)
    tagged = sizes * (rng.random((40, 3)) < 0.5)
    for table in (sizes, tagged):
        table[:, 0] = 100 - table[:, 1:].sum(1)
    turned = [mistag(tagged, sizes, share, draw=1)[:, 1:] != tagged[:, 1:] for share in (0.1, 0.3)]
    assert [each.sum() for each in turned] == [8, 24]
    assert (turned[1] >= turned[0]).all()
    assert (turned[0] != (mistag(tagged, sizes, 0.1, draw=2)[:, 1:] != tagged[:, 1:])).any()


def test_classes_that_outgrow_a_slice_share_it():
    found = mistag(np.array([[40.0, 60, 0]]), np.array([[0.0, 60, 60]]), 0.5, draw=0)
    assert found.tolist() in ([[0, 50, 50]], [[100, 0, 0]])


def test_spoil_writes_a_new_file(target, tmp_path):
    sizes, out = make(target, "--constant", 15), tmp_path / "wrong.csv"
    run("spoil", "--sizes", sizes, "--percent", 25, 100, "--out", out)
    before, all_wrong = column(sizes, "dumbpredwtags"), column(out, "dumbpredwtags_wrong100")
    assert {name: values[1] for name, values in all_wrong.items()} == {
        name: 0 if values[1] else 15 for name, values in before.items()
    }
    quarter = column(out, "dumbpredwtags_wrong25")
    assert sum(quarter[name] != values for name, values in before.items()) == 1
    table = read_size_table(out, "dumbpredwtags_wrong25")
    assert table.comments["estimator dumbpredwtags_wrong25"].endswith("25 % of the tags wrong, draw 0")
    assert not table.oracle
    with pytest.raises(UserError, match="never overwritten"):
        run("spoil", "--sizes", sizes, "--out", out)
    with pytest.raises(UserError, match="--percent expects different numbers from 0 to 100"):
        run("spoil", "--sizes", sizes, "--percent", 101, "--out", tmp_path / "x.csv")
