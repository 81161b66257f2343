import shutil

import numpy as np
import pandas as pd
import pytest
from fake_runs import add_columns, make_run, make_set
from PIL import Image

import score_masks
from analysis.masks import Masks
from analysis.plots.epochs import draw_term
from analysis.plots.labels import array_label, cases, column_label, is_share
from analysis.plots.patients import case_values, join_patients, spread
from analysis.plots.pictures import slice_score
from analysis.plots.threshold import step_terms
from analysis.plots.views import View, axis_codes, choose_slices, grey_or_colour, upright, window
from analysis.run import open_run
from plot import main
from processes.errors import UserError

RED = (176, 0, 32)
PALETTE = [[128, 64, 128], [244, 35, 232], [70, 130, 180]]


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
    streets = make_set(root / "data/streets", n_patient=3, n_slice=1, n_class=3, channels=3, truth_scale=2, ignore=255)
    facts = {"scores": "iou", "ignore": 255, "metric_axis": [0, 1, 2], "class_names": ["road", "side walk", "sky"]}
    make_run(root / "streets/adapt", streets, n_epoch=3, n_class=3, dataset={"palette": PALETTE}, **facts)
    add_columns(root / "heart/sfda", weight_CrossEntropy=[1, 0.9], weight_BoundaryLoss=[0.1, 0.2])
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
    ("histogram", "runs", []),
    ("histogram", "runs", ["--score", "hd95", "--class", "1", "--which", "best_3d"]),
    ("histogram", "runs", ["--array", "val_dice.npy"]),
    ("curves", "runs", ["--array", "val_dice.npy", "--classes", "1"]),
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


@pytest.mark.parametrize("kind", ["curves", "losses", "weights", "boxes", "histogram", "sizes", "panel"])
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


@pytest.mark.parametrize(("kind", "more"), [("curves", []), ("panel", ["--slices", "1"])])
def test_same_runs_same_bytes_in_every_format(made, tmp_path, kind, more):
    for suffix, start in (("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")):
        written = []
        for name in ("a", "b"):
            main([kind, "--runs", str(made / "toy/sfda"), "--out", str(tmp_path / f"{name}.{suffix}"), *more])
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
    assert_drawn(
        draw("panel", tmp_path / "panel.png", "--runs", runs / "sfda", "--data", made / "data/toy", "--slices", 2)
    )


def test_slices_come_from_the_best_to_the_worst_patient(made):
    run = open_run(made / "toy/sfda")
    slices = Masks(run).slices()
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
    assert len(choose_slices(Masks(run).slices(), run, "last", 6)) == 6
    heart = open_run(made / "heart/sfda")
    chosen = choose_slices(Masks(heart).slices(), heart, "last", 2)
    assert list(chosen.values()) == ["", ""]
    first, second = chosen
    assert first < 2 <= second


def test_slice_score_by_hand(made):
    """Dice of the classes 1..3 that are there; IoU of all classes where the run is scored so, 255 left out."""
    true = np.array([[1, 1, 0, 0], [2, 2, 0, 0]], np.uint8)
    predicted = np.array([[1, 0, 0, 0], [0, 0, 0, 3]], np.uint8)
    heart = open_run(made / "heart/sfda")
    assert slice_score(heart, predicted, true) == pytest.approx((2 / 3 + 0 + 0) / 3)
    assert slice_score(heart, true, true) == 1
    assert np.isnan(slice_score(heart, 0 * true, 0 * true))
    true[1] = 255
    assert slice_score(open_run(made / "streets/adapt"), predicted, true) == pytest.approx((2 / 3 + 1 / 2) / 2)


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
    assert column_label("val_miou", run) == "mIoU of all images"
    assert column_label("val_iou_2", run) == "IoU of all images, atrium"
    assert column_label("weight_BoundaryLoss", run) == "weight of BoundaryLoss"
    assert column_label("something_else", run) == "something_else"
    assert [array_label(f"{name}.npy", [run]) for name in ("val_3d_hd95", "val_3d_dice", "val_dice", "other")] == [
        "HD95 (mm)",
        "3D Dice",
        "2D Dice, validation",
        "other",
    ]
    assert [cases(source) for source in ("dice", "val_3d_hd95.npy", "val_dice.npy")] == [
        "patients",
        "patients",
        "slices",
    ]
    names = (
        "val_miou",
        "val_iou_3",
        "nsd",
        "val_3d_nsd.npy",
        "val_dice.npy",
        "val_dice_3d_sd",
        "hd95",
        "val_sizes.npy",
    )
    assert [is_share(name) for name in names] == [True] * 5 + [False] * 3


def test_the_lines_between_patients_are_drawn_in_one_order():
    """A set has another order in each process, and the picture would have other bytes."""
    drawn, patients = [], [f"Case{number}" for number in range(40)]

    class Axes:
        def plot(self, x, y, **how):
            drawn.append(int(y[0]))

    join_patients(Axes(), [dict(zip(patients, range(40), strict=True)), dict.fromkeys(patients, 0.0)])
    assert drawn == list(range(40))


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
        (["boxes", "--runs", "sfda", "--class", "7"], r"scored no class 7; its classes are \[1\]"),
        (["curves", "--runs", "sfda", "--classes", "1"], "classes of an --array"),
        (["curves", "--runs", "sfda", "--array", "val_dice.npy", "--classes", "1", "2"], "has no class 2"),
        (["curves", "--runs", "sfda", "--array", "val_gt_sizes.npy"], r"shape \(24, 2\); a mean over classes needs"),
        (["curves", "--runs", "sfda", "--array", "val_3d_hd95.npy"], "score_masks.py --run sfda --score hd95"),
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
        ["weights", "--runs", failed],
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
    for kind, flag, out in (("panel", "--runs", "a.png"), ("gif", "--run", "a.gif"), ("colour", "--run", "a")):
        with pytest.raises(UserError, match="--saveim 1"):
            main([kind, flag, str(runs / "sfda"), "--out", str(tmp_path / out)])
        assert not (tmp_path / out).exists()


def test_torn_or_foreign_files_are_named(made, runs, tmp_path):
    (runs / "sfda/val_sizes.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(UserError, match="val_sizes.npy cannot be read"):
        main(["sizes", "--run", str(runs / "sfda"), "--out", str(tmp_path / "sizes.png")])
    pictures = sorted((runs / "sfda/last_epoch/val").glob("*.png"))
    for path in pictures:
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError, match=r"Case0\d_0\d.png cannot be read"):
        main(["panel", "--runs", str(runs / "sfda"), "--out", str(tmp_path / "panel.png")])
    foreign = (np.zeros((5, 6), np.uint8), r"predicted \(5, 6\) pixels .* not the images of that run")
    for mask, match in (foreign, (np.full((32, 40), 7, np.uint8), "predicted class 7 on Case")):
        for path in pictures:
            Image.fromarray(mask).save(path)
        with pytest.raises(UserError, match=match):
            main(["panel", "--runs", str(runs / "sfda"), "--out", str(tmp_path / "panel.png")])


# ---------------------------------------------------------------------------- losses, weights, distributions


class Axes:
    """Stands for a chart, and remembers what was drawn."""

    def __init__(self):
        self.lines, self.spans, self.xaxis, self.limits = [], [], self, {}

    def plot(self, x, y, line, **style):
        self.lines.append((list(x), list(y), line, style["linewidth"]))

    def axhspan(self, low, high, **style):
        self.spans.append((low, high))

    def set(self, **words):
        self.limits |= words

    def set_major_locator(self, locator):
        pass


@pytest.fixture
def adversarial(runs):
    """A run with a boundary loss, its lower bound, and a discriminator; shown values have no validation."""
    add_columns(
        runs / "sfda",
        tra_loss_BoundaryLoss=[0.1, -1, -2, -3, -3.5],
        val_loss_BoundaryLoss=[0.3, np.nan, -1, np.nan, -2],
        tra_loss_BoundaryLoss_lowest=[-4.0] * 5,
        tra_loss_d1_accuracy=[0.9, 0.8, 0.7, 0.6, 0.6],
    )
    return open_run(runs / "sfda")


def test_a_lower_bound_is_a_thin_line_beside_its_loss(adversarial, tmp_path):
    chart = Axes()
    draw_term(chart, adversarial, "BoundaryLoss")
    assert [line[2:] for line in chart.lines] == [("-", 1.8), ("--", 1.8), ("-", 0.8)]
    assert chart.lines[2][:2] == ([1, 2, 3, 4, 5], [-4.0] * 5)
    assert chart.lines[1][:2] == ([1, 3, 5], [0.3, -1, -2])  # validated every other epoch
    assert not chart.spans
    assert "ylim" not in chart.limits  # a boundary loss may be negative
    five_panels = draw("losses", tmp_path / "losses.png", "--run", adversarial.folder)  # tot, entropy, kl and these two
    assert_drawn(five_panels)


def test_a_discriminator_s_accuracy_stands_in_its_range(adversarial):
    chart = Axes()
    draw_term(chart, adversarial, "d1_accuracy")
    assert chart.spans == [(0.5, 0.8)]
    assert chart.limits["ylim"] == (0, 1)
    assert chart.limits["title"] == "d1_accuracy"


def test_weights_of_several_runs_stand_side_by_side(runs, tmp_path):
    for name in ("sfda", "fs"):
        add_columns(runs / name, weight_CrossEntropy=np.linspace(1, 0.1, 5), weight_BoundaryLoss=np.linspace(0, 1, 5))
    one = draw("weights", tmp_path / "one.png", "--runs", runs / "sfda")
    two = draw("weights", tmp_path / "two.png", "--runs", runs / "sfda", runs / "fs")
    assert_drawn(two)
    assert two.shape[1] > 1.3 * one.shape[1]
    assert draw("weights", tmp_path / "a.png", "--runs", runs / "noadap", runs / "sfda").shape[1] == one.shape[1]


def learn_threshold(folder, steps=40, **prior):
    """Adds to a made-up run of five epochs what pseudo labels log; the threshold goes from 0 to 0.5."""
    rng, terms = np.random.default_rng(0), {"threshold": np.linspace(0, 0.5, 5 * steps), **prior}
    add_columns(folder, **{f"tra_loss_{name}": 0.5 for name in terms})
    values = rng.normal(size=(5, steps, 3 + len(terms)))
    for number, term in enumerate(terms.values(), 3):
        values[:, :, number] = np.reshape(np.broadcast_to(term, 5 * steps), (5, steps))
    np.save(folder / "tra_loss.npy", values.astype(np.float32))


def test_a_threshold_is_drawn_step_by_step_beside_its_prior(runs, tmp_path):
    learn_threshold(runs / "sfda", prior_mu=0.7, prior_sd=0.15)
    learn_threshold(runs / "fs")  # as --threshold fixed logs it
    terms = step_terms(open_run(runs / "sfda"))
    assert terms["threshold"][[0, -1]].tolist() == [0, 0.5]
    assert set(terms["prior_mu"]) == {np.float32(0.7)}
    one = draw("threshold", tmp_path / "one.png", "--runs", runs / "sfda")
    assert_drawn(one)
    assert_drawn(draw("threshold", tmp_path / "all.png", "--runs", *named(runs, "fs", "sfda", "noadap")))
    assert draw("threshold", tmp_path / "none.png", "--runs", runs / "noadap").min() < 160
    np.save(runs / "sfda/tra_loss.npy", np.zeros((5, 4, 3)))
    with pytest.raises(UserError, match=r"shape \(5, 4, 3\), and the log of the run 6 training terms"):
        main(["threshold", "--runs", str(runs / "sfda"), "--out", str(tmp_path / "plot.png")])


def test_distributions_by_hand(made):
    run = open_run(made / "toy/sfda")
    table = pd.read_csv(made / "toy/sfda/patients_last.csv")
    assert sorted(case_values(run, "hd95", "last", None)) == pytest.approx(sorted(table["hd95_mm"].dropna()))
    slices = np.load(made / "toy/sfda/val_dice.npy")[-1, :, 1]
    assert case_values(run, "val_dice.npy", "last", 1) == pytest.approx(slices[np.isfinite(slices)])


def test_curve_of_an_array_is_the_mean_of_patients(made, runs, tmp_path):
    """NaN where an epoch was not saved: the curve goes on where the next was."""
    shutil.rmtree(runs / "sfda/iter001")
    score_masks.main(["--run", str(runs / "sfda"), "--score", "hd95"])
    means = open_run(runs / "sfda").class_means("val_3d_hd95.npy", [1])
    assert means.shape == (5, 4)
    assert np.isnan(means[1]).all()
    assert_drawn(draw("curves", tmp_path / "plot.png", "--runs", runs / "sfda", "--array", "val_3d_hd95.npy"))


# ------------------------------------------------------------------------------------------ pictures in colour


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_any_number_of_channels_has_a_panel(tmp_path, channels):
    """Three are colour; of any other number the first is shown, in grey."""
    data = make_set(tmp_path / "data", n_patient=1, n_slice=2, channels=channels)
    run = open_run(make_run(tmp_path / "set/run", data, n_epoch=2))
    shown = grey_or_colour(Masks(run).slices(), 1)
    assert shown.shape == (3 if channels == 3 else 1, 32, 40)
    assert (shown.min(), shown.max()) == (0, 1)
    if channels == 3:
        assert shown[0].mean() < shown[2].mean()  # red is the first, blue the brightest
    assert_drawn(draw("panel", tmp_path / "panel.png", "--runs", run.folder))


def count(picture, colour):
    return int((np.abs(picture - colour) <= 2).all(2).sum())


def test_a_palette_colours_truth_and_predictions(made, tmp_path):
    """Of images half as large as their truth; what is to be ignored is black."""
    run = open_run(made / "streets/adapt")
    slices = Masks(run).slices()
    assert slices.shape == (3, 32, 40)
    assert grey_or_colour(slices, 0).shape == (3, 64, 80)
    picture = draw("panel", tmp_path / "panel.png", "--runs", run.folder, "--slices", "1")
    assert all(count(picture, colour) > 1000 for colour in PALETTE)
    assert count(draw("panel", tmp_path / "toy.png", "--runs", made / "toy/sfda", "--slices", "1"), PALETTE[0]) == 0
    main(["gif", "--run", str(run.folder), "--out", str(tmp_path / "film.gif"), "--slices", "2"])
    with Image.open(tmp_path / "film.gif") as film:
        assert film.n_frames == 3
        assert count(np.asarray(film.convert("RGB")).astype(int), PALETTE[2]) > 500


@pytest.mark.parametrize(
    ("run", "which", "folder", "colours"),
    [
        ("streets/adapt", "last", "last_epoch", PALETTE),
        ("heart/sfda", "best_3d", "best_epoch_3d", [[0, 0, 0], [240, 228, 66], [86, 180, 233], [255, 138, 61]]),
    ],
)
def test_masks_are_written_in_colour(made, tmp_path, run, which, folder, colours):
    """In the palette of the set, else in the colours of the outlines."""
    main(["colour", "--run", str(made / run), "--which", which, "--out", str(tmp_path / "out")])
    masks = sorted((made / run / folder / "val").glob("*.png"))
    assert [path.name for path in masks] == sorted(path.name for path in (tmp_path / "out").glob("[!.]*"))
    for path in masks:
        mask, written = np.asarray(Image.open(path)), np.asarray(Image.open(tmp_path / "out" / path.name))
        assert (written == np.array(colours)[mask]).all()


def test_masks_are_never_overwritten_by_their_colours(made):
    run = made / "heart/sfda"
    with pytest.raises(UserError, match="holds the masks themselves"):
        main(["colour", "--run", str(run), "--out", str(run / "last_epoch/val")])


@pytest.mark.parametrize("palette", [[[0, 0, 0]], [[0, 0, 300]] * 3, [[0, 0]] * 3, "red", [["a", 0, 0]] * 3])
def test_a_broken_palette_is_named(made, tmp_path, palette):
    data = made / "data/streets"
    run = make_run(tmp_path / "set/run", data, n_epoch=1, n_class=3, ignore=255, dataset={"palette": palette})
    with pytest.raises(UserError, match="palette of .*dataset.json.* should be 3 triples"):
        main(["panel", "--runs", str(run), "--out", str(tmp_path / "panel.png")])


def test_limits_of_a_score_between_0_and_1(made, tmp_path):
    """The curve of an mIoU of 0.5 runs through the middle, whatever its range."""
    run = made / "streets/adapt"
    add_columns(run, val_miou=[0.49, 0.5, 0.5])
    picture = draw("curves", tmp_path / "plot.png", "--runs", run, "--column", "val_miou")
    blue = (np.abs(picture - (0, 114, 178)) < 12).all(2)[:, : picture.shape[1] // 2]
    assert np.flatnonzero(blue.any(1)).mean() / len(picture) == pytest.approx(0.47, abs=0.05)
