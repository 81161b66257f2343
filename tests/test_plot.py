import shutil

import numpy as np
import pandas as pd
import pytest
from fake_runs import make_run, make_set
from PIL import Image

from plot import View, axis_codes, choose_slices, column_label, main, slice_dice, spread, upright, window
from run_files import open_run
from utils import UserError

RED = (176, 0, 32)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A real set of four patients with the runs noadap, sfda (oracle), fs; a phantom of one patient, four classes."""
    root = tmp_path_factory.mktemp("plot")
    data = make_set(root / "data/toy")
    make_run(root / "toy/noadap", data, quality=0.2, n_epoch=1, missed=("Case02",))
    make_run(root / "toy/sfda", data, quality=0.8, oracle=True)
    make_run(root / "toy/fs", data, quality=1.0)
    heart = make_set(root / "data/heart", n_patient=1, n_slice=4, n_class=4)
    names = ["background", "myocardium", "atrium", "ventricle"]
    make_run(root / "heart/sfda", heart, n_epoch=2, n_class=4, dataset={"phantom": "small"}, class_names=names)
    return root


@pytest.fixture
def runs(made, tmp_path):
    """Copies of the real set's runs, to be changed at will."""
    shutil.copytree(made / "toy", tmp_path / "toy")
    return tmp_path / "toy"


def draw(kind, out, *words):
    main([kind, *map(str, words), "--out", str(out)])
    with Image.open(out) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def named(root, *names):
    return [root / name for name in names]


def is_red(row):
    return bool((np.abs(row - RED) <= 1).all(1).mean() > 0.9)


def assert_drawn(picture):
    """Of a readable size, with ink on white, and some of it in colour."""
    height, width, _ = picture.shape
    assert 600 <= width <= 2000
    assert 250 <= height <= 2000
    assert 0.005 < (picture.sum(2) < 600).mean() < 0.95
    assert (np.ptp(picture, axis=2) > 60).sum() > 50


CASES = [
    ("curves", "runs", []),
    ("curves", "runs", ["--column", "val_hd95_mm_1"]),
    ("losses", "run", []),
    ("boxes", "runs", []),
    ("boxes", "runs", ["--score", "hd95", "--which", "best_3d"]),
    ("boxes", "runs", ["--score", "nsd", "--class", "1"]),
    ("sizes", "run", []),
    ("panel", "runs", ["--slices", "2"]),
    ("panel", "runs", ["--slices", "1", "--which", "best_3d"]),
]


@pytest.mark.parametrize(("kind", "flag", "more"), CASES)
def test_real_runs_are_drawn_without_banner(made, tmp_path, kind, flag, more):
    which = named(made / "toy", "noadap", "sfda", "fs") if flag == "runs" else [made / "toy/sfda"]
    picture = draw(kind, tmp_path / "deep/er.png", f"--{flag}", *which, *more)
    assert_drawn(picture)
    assert not is_red(picture[5])


@pytest.mark.parametrize("kind", ["curves", "losses", "boxes", "sizes", "panel"])
def test_phantom_stands_on_every_plot(made, tmp_path, kind):
    flag = "--run" if kind in ("losses", "sizes") else "--runs"
    picture = draw(kind, tmp_path / "plot.png", flag, made / "heart/sfda")
    assert_drawn(picture)
    assert is_red(picture[5])
    assert not is_red(picture[picture.shape[0] // 2])


def test_one_phantom_among_real_runs_is_enough(made, tmp_path):
    assert is_red(draw("curves", tmp_path / "plot.png", "--runs", made / "toy/fs", made / "heart/sfda")[5])


@pytest.mark.parametrize(("run", "frames", "phantom"), [("toy/sfda", 5, False), ("heart/sfda", 2, True)])
def test_film_has_a_frame_an_epoch_and_moves(made, tmp_path, run, frames, phantom):
    main(["gif", "--run", str(made / run), "--out", str(tmp_path / "film.gif"), "--slices", "2"])
    with Image.open(tmp_path / "film.gif") as film:
        assert film.n_frames == frames
        assert film.info["loop"] == 0
        pictures = []
        for number in range(frames):
            film.seek(number)
            pictures.append(np.asarray(film.convert("RGB")).astype(int))
    assert_drawn(pictures[-1])
    assert is_red(pictures[0][5]) == phantom
    assert (np.abs(pictures[0] - pictures[-1]).max(2) > 100).sum() > 20


@pytest.mark.parametrize("kind", ["curves", "panel"])
def test_same_runs_same_bytes_in_png_and_pdf(made, tmp_path, kind):
    for suffix, start in (("png", b"\x89PNG"), ("pdf", b"%PDF")):
        written = []
        for name in ("a", "b"):
            main([kind, "--runs", str(made / "toy/sfda"), "--out", str(tmp_path / f"{name}.{suffix}")])
            written.append((tmp_path / f"{name}.{suffix}").read_bytes())
        assert written[0] == written[1]
        assert written[0].startswith(start)


def test_a_run_of_one_epoch_is_a_level_across(made, tmp_path):
    """The first run's colour is found in one row of pixels from the left to the right of the axes, with gaps."""
    picture = draw("curves", tmp_path / "plot.png", "--runs", *named(made / "toy", "noadap", "fs"))
    blue = (np.abs(picture - (0, 114, 178)) < 12).all(2)
    row = blue[blue.sum(1).argmax()]
    columns = np.flatnonzero(row)
    assert columns[-1] - columns[0] > 0.6 * picture.shape[1]
    assert 0.3 < row[columns[0] : columns[-1]].mean() < 0.9


def test_sizes_and_boxes_need_no_data(made, runs, tmp_path):
    """Everything but panel and film is drawn from the run folder alone."""
    provenance = runs / "sfda/provenance.json"
    provenance.write_text(provenance.read_text().replace(str(made / "data"), "/nowhere"))
    for kind in ("curves", "losses", "boxes", "sizes"):
        flag = "--run" if kind in ("losses", "sizes") else "--runs"
        assert_drawn(draw(kind, tmp_path / f"{kind}.png", flag, runs / "sfda"))
    with pytest.raises(UserError, match=r"/nowhere/toy/val is\s+not there.*--data"):
        main(["panel", "--runs", str(runs / "sfda"), "--out", str(tmp_path / "panel.png")])
    assert not (tmp_path / "panel.png").exists()
    assert_drawn(draw("panel", tmp_path / "panel.png", "--runs", runs / "sfda", "--data", made / "data/toy"))


def test_slices_come_from_the_best_to_the_worst_patient(made):
    run = open_run(made / "toy/sfda")
    slices = run.slices()
    table = pd.read_csv(made / "toy/sfda/patients_last.csv").set_index("patient")["dice"]
    chosen = choose_slices(slices, run, "last", 3)
    assert list(chosen.values()) == ["best of 4", "", "worst of 4"]
    patients = [slices.patients[row] for row in chosen]
    assert (patients[0], patients[-1]) == (table.idxmax(), table.idxmin())
    area = (slices.labels(range(len(slices))) > 0).sum((1, 2))
    for row, patient in zip(chosen, patients, strict=True):
        assert area[row] == max(a for a, p in zip(area, slices.patients, strict=True) if p == patient)


def test_few_patients_give_slices_of_different_places(made):
    run = open_run(made / "toy/sfda")
    assert len(choose_slices(run.slices(), run, "last", 6)) == 6
    heart = open_run(made / "heart/sfda")
    chosen = choose_slices(heart.slices(), heart, "last", 2)
    assert list(chosen.values()) == ["", ""]
    first, second = chosen
    assert first < 2 <= second


def test_slice_dice_by_hand():
    true = np.array([[1, 1, 0, 0], [2, 2, 0, 0]])
    predicted = np.array([[1, 0, 0, 0], [0, 0, 0, 3]])
    assert slice_dice(predicted, true, [1]) == pytest.approx(2 / 3)
    assert slice_dice(predicted, true, [1, 2, 3]) == pytest.approx((2 / 3 + 0 + 0) / 3)
    assert np.isnan(slice_dice(predicted, true, [4]))


@pytest.mark.parametrize(
    ("codes", "swap", "flip"),
    [
        ("", False, (False, False)),
        ("PI", True, (False, False)),  # the vertebrae: inferior down, posterior right
        ("RA", True, (True, True)),  # an axial RAS volume: anterior up, right on the left
        ("PL", False, (False, False)),
        ("RS", True, (True, True)),
        ("SA", False, (True, True)),
        ("IL", False, (False, False)),
    ],
)
def test_slices_are_shown_upright(codes, swap, flip):
    assert upright(codes) == (swap, flip)


def test_view_turns_and_crops():
    """W points right, H anterior: the right anterior corner of the body is shown at the top left."""
    array = np.zeros((4, 6), int)
    array[3, 5] = 1
    view = View((slice(1, 4), slice(2, 6)), *upright("RA"), 1.0)
    shown = view(array)
    assert shown.shape == (4, 3)
    assert np.argwhere(shown).tolist() == [[0, 0]]


def test_axis_codes_come_from_the_manifest(tmp_path):
    assert axis_codes(tmp_path, "a_00") == ""
    affine = "0 0 -2 0  -1 0 0 0  0 -1 0 0  0 0 0 1"  # first axis to P, second to I, third to L
    rows = [{"slice": "a_00", "axis": 2, "affine": affine}, {"slice": "a_01", "axis": 0, "affine": affine}]
    pd.DataFrame(rows).to_csv(tmp_path / "manifest.csv", index=False)
    assert (axis_codes(tmp_path, "a_00"), axis_codes(tmp_path, "a_01"), axis_codes(tmp_path, "b")) == ("PI", "IL", "")


def test_window_keeps_everything_seen_and_half_of_each_axis():
    mask = np.zeros((100, 40), int)
    mask[60:70, 20] = 1
    rows, columns = window([mask, np.zeros_like(mask)])
    assert (rows.start, rows.stop) == (40, 90)
    assert (columns.start, columns.stop) == (10, 31)
    assert window([np.zeros((8, 8))]) == (slice(0, 8), slice(0, 8))


def test_columns_are_put_in_words(made):
    run = open_run(made / "heart/sfda")
    assert column_label("val_hd95_mm_2", run) == "HD95 (mm), atrium"
    assert column_label("val_dice_3d_1", run) == "3D Dice, myocardium"
    assert column_label("tra_loss_tot", run) == "total loss, training"
    assert column_label("something_else", run) == "something_else"


def test_points_of_a_box_stay_inside_it():
    assert spread(1).tolist() == [0]
    assert np.abs(spread(50)).max() <= 0.25
    assert len(np.unique(spread(50))) == 50


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (
            ["curves", "--runs", "sfda", "--column", "val_dise_3d"],
            "no column 'val_dise_3d'. Did you mean 'val_dice_3d'",
        ),
        (["boxes", "--runs", "sfda", "--class", "7"], "scored no class 7"),
        (["boxes", "--runs", "sfda", "gone"], "gone is not there"),
        (["sizes", "--run", "."], "provenance.json is missing"),
    ],
)
def test_mistakes_are_named(made, tmp_path, monkeypatch, words, match):
    monkeypatch.chdir(made / "toy")
    with pytest.raises(UserError, match=match):
        main([*words, "--out", str(tmp_path / "plot.png")])
    assert list(tmp_path.iterdir()) == []


def test_runs_that_failed_altogether_still_have_plots(made, tmp_path):
    """A chart without a value says so, as the other plots of such a run may be wanted."""
    failed = make_run(
        tmp_path / "failed", made / "data/toy", n_epoch=1, missed=("Case00", "Case01", "Case02", "Case03")
    )
    for words in (
        ["boxes", "--runs", failed, "--score", "hd95"],
        ["losses", "--run", failed],
        ["sizes", "--run", failed],
    ):
        assert draw(words[0], tmp_path / f"{words[0]}.png", *words[1:]).min() < 160
    picture = draw("curves", tmp_path / "curves.png", "--runs", failed, "--column", "val_hd95_mm_1")
    assert (np.abs(picture[200:400, 200:800] - 118).max(2) < 30).sum() > 50  # grey words in the middle


@pytest.mark.parametrize(("kind", "name"), [("curves", "plot.jpg"), ("gif", "film.png")])
def test_only_known_formats(made, tmp_path, kind, name):
    flag = "--run" if kind == "gif" else "--runs"
    with pytest.raises(UserError, match="change --out"):
        main([kind, flag, str(made / "toy/sfda"), "--out", str(tmp_path / name)])


def test_missing_pictures_tell_the_flag(runs, tmp_path):
    shutil.rmtree(runs / "sfda/last_epoch")
    for folder in (runs / "sfda").glob("iter*"):
        shutil.rmtree(folder)
    for words in (["panel", "--runs"], ["gif", "--run"]):
        with pytest.raises(UserError, match="--saveim"):
            main([*words, str(runs / "sfda"), "--out", str(tmp_path / f"picture.{'gif' if 'gif' in words else 'png'}")])


def test_torn_or_foreign_files_are_named(made, runs, tmp_path):
    (runs / "sfda/val_sizes.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(UserError, match="val_sizes.npy cannot be read"):
        main(["sizes", "--run", str(runs / "sfda"), "--out", str(tmp_path / "sizes.png")])
    pictures = sorted((runs / "sfda/last_epoch/val").glob("*.png"))
    for path in pictures:
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError, match=r"Case0\d_0\d.png cannot be read"):
        main(["panel", "--runs", str(runs / "sfda"), "--out", str(tmp_path / "panel.png")])
    for path in pictures:
        Image.fromarray(np.zeros((5, 6), np.uint8)).save(path)
    with pytest.raises(UserError, match=r"predicted \(5, 6\) pixels .* not the images of that run"):
        main(["panel", "--runs", str(runs / "sfda"), "--out", str(tmp_path / "panel.png")])
