"""Sizes that a source network's own predictions tell: what is written, what is opened, and how it is checked."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_site

import main as program
from bounds import BOUNDS
from datasets.size_table import read_size_table
from nets.checkpoint_files import load_checkpoint, save_checkpoint
from preprocess.priors.cells import MOST, Cells
from preprocess.priors.checking import columns_in
from preprocess.priors.estimated_columns import columns_of, spread
from preprocess.priors.from_network import estimate_from_network, read_source
from preprocess.priors.label_shift import ClassShares, most_likely_shares
from preprocess.size_priors import parse_args
from processes.alone import run_alone
from processes.errors import UserError
from tests.tools.chaos import arguments
from tests.tools.opened import watched

NAN = np.full(2, np.nan)
VOLUMES = "[('IMG', nii_transform, False), ('GT', nii_gt_transform, False), ('GT', nii_gt_transform, False)]"


def run(*argv: object) -> None:
    args = parse_args([str(word) for word in argv])
    args.run(args)


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    """A source, a network that has learnt it, and a target a little darker, of other patients."""
    root = tmp_path_factory.mktemp("network_priors")
    write_site(root / "source", 200, 60, seed=1, patients=8)
    write_site(root / "target", 190, 65, seed=2)
    line = ("--network", "Dimwit", "--n_epoch", 12, "--l_rate", 3e-2, "--augment", 0)
    program.main(arguments(root / "source", root / "run", *line))
    return root


@pytest.fixture(scope="module")
def weights(sites):
    return sites / "run" / "last.pkl"


def making(sites, out, *more):
    where = ("--data", sites / "target", "--out", out, "--n_class", 2, "--device", "cpu")
    run("make", *where, "--network_weights", sites / "run" / "last.pkl", *more)
    return out


# ------------------------------------------------------------------------------------------------ cells


def test_cells_hold_every_pixel_and_their_mean():
    rng = np.random.default_rng(0)
    p = rng.dirichlet([8, 1, 0.3], 5000)
    cells = Cells()
    for patient, part in enumerate(np.split(p, 5)):
        cells.add(patient, part[:400])
        cells.add(patient, part[400:])
    table = cells.table()
    assert len(table.pixels) < 3000
    assert table.pixels.sum() == 5000
    assert (table.probabilities * table.pixels[:, None]).sum(0) == pytest.approx(p.sum(0))
    for patient, part in enumerate(np.split(p, 5)):
        own = table.patients == patient
        assert (table.probabilities[own] * table.pixels[own, None]).sum(0) == pytest.approx(part.sum(0))
    source = np.array([0.6, 0.3, 0.1])
    found = most_likely_shares(table.probabilities, source, table.pixels)
    assert found == pytest.approx(most_likely_shares(p, source), abs=1e-3)


def test_cells_grow_wider_where_there_are_too_many(monkeypatch):
    monkeypatch.setattr("preprocess.priors.cells.MOST", 50)
    p = np.random.default_rng(0).dirichlet(np.ones(4), 3000)
    cells = Cells()
    for part in np.split(p, 10):
        cells.add(0, part)
    table = cells.table()
    assert len(table.pixels) <= 50 < MOST
    assert (table.probabilities * table.pixels[:, None]).sum(0) == pytest.approx(p.sum(0))


# ------------------------------------------------------------------------------------------------ columns


def test_shares_on_slices_by_hand():
    """A tenth of 300 pixels is 30: 10 in each slice, or by area in the two that show the class."""
    area, shares = np.array([100, 100, 100]), np.array([0.9, 0.1])
    assert spread(shares, area, None).tolist() == [[10], [10], [10]]
    tags = np.array([[True], [False], [True]])
    assert spread(shares, area, tags).tolist() == [[15], [0], [15]]
    estimate = ClassShares(shares, np.array([0.02, 0.02]), np.array([0.86, 0.06]), np.array([0.94, 0.14]))
    columns = columns_of("em", estimate, area, tags)
    assert columns["em"].tolist() == [[85, 15], [100, 0], [85, 15]]
    assert columns["em_low"].tolist() == [[79, 9], [100, 0], [79, 9]]
    assert columns["em_high"].tolist() == [[91, 21], [100, 0], [91, 21]]


def test_a_class_without_a_share_keeps_a_pixel_and_the_background_too():
    few = columns_of("em", ClassShares(np.array([1.0, 0.0]), NAN, NAN, NAN), np.array([100]))
    assert few["em"].tolist() == [[99, 1]]
    assert list(few) == ["em"]  # of one patient nothing is known of the spread
    many = ClassShares(np.array([0.2, 0.6, 0.2]), NAN, NAN, NAN)
    tags = np.array([[True, True], [False, False], [False, False]])
    assert columns_of("em", many, np.array([100, 100, 100]), tags)["em"].tolist() == [
        [2, 74, 24],
        [100, 0, 0],
        [100, 0, 0],
    ]


# ------------------------------------------------------------------------------------------------ making


def test_what_is_written_is_near_the_truth_and_holds_its_interval(sites, tmp_path, capsys):
    out = making(sites, tmp_path / "net.csv")
    assert columns_in(out) == ["em", "mlls", "bbse"]
    run("make", "--data", sites / "target", "--out", tmp_path / "true.csv", "--n_class", 2, "--constant", 300)
    true = np.array(list(read_size_table(tmp_path / "true.csv", "val_gt_size").sizes.values()))
    share = true[:, 1].sum() / true.sum()
    for name in ("em", "mlls", "bbse"):
        tables = [read_size_table(out, name + end, 2) for end in ("", "_low", "_high")]
        sizes, low, high = (np.array(list(table.sizes.values())) for table in tables)
        assert (sizes.sum(1) == 480).all()
        assert (sizes == sizes[0]).all()
        assert sizes[0, 1] / 480 == pytest.approx(share, rel=0.25), name
        assert (low[:, 1] <= sizes[:, 1]).all()
        assert (sizes[:, 1] <= high[:, 1]).all()
        assert (low.sum(1) <= 480).all()
        assert (high.sum(1) >= 480).all()
        assert tables[0].supervision == tables[1].supervision == "source network"
        assert not tables[0].oracle
    assert "95 % interval over draws of patients" in capsys.readouterr().out
    first = out.read_bytes()
    out.unlink()
    assert making(sites, tmp_path / "net.csv").read_bytes() == first


def test_tags_say_where_the_pixels_go(sites, tmp_path):
    names = sorted(path.stem for path in sites.glob("target/*/IMG/*.png"))
    rows = [f"{name},{'0' if name.endswith('_0') else 'x'}" for name in names]
    (tmp_path / "tags.csv").write_text("\n".join(["val_ids,organ", *rows]) + "\n")
    out = making(sites, tmp_path / "net.csv", "--tags", tmp_path / "tags.csv")
    plain, tagged = (read_size_table(out, name, 2) for name in ("em", "em_wtags"))
    assert plain["Case00_0"][1] > 0 == tagged["Case00_0"][1]
    assert tagged["Case00_1"][1] == pytest.approx(plain["Case00_1"][1] * 4 / 3, abs=1)
    assert tagged.supervision == f"source network, image-level tags (from {tmp_path / 'tags.csv'})"
    bound = BOUNDS.build("IntervalBounds", 2, sizefile=str(out), predcol="em_wtags")
    bound.check(names)
    low, high = bound(None, "Case00_1")[1]
    assert 0 < low < tagged["Case00_1"][1] < high < 480
    assert bound(None, "Case00_0")[1].tolist() == [0, 0]


def test_no_label_is_opened(sites, tmp_path, quick_spawns):
    run_alone(watched, tmp_path / "opened", making, sites, tmp_path / "net.csv")
    opened = [Path(line) for line in (tmp_path / "opened").read_text().splitlines()]
    of_target = [path.relative_to(sites / "target").parts for path in opened if path.is_relative_to(sites / "target")]
    assert ("train", "IMG") in of_target
    assert not [parts for parts in of_target if "GT" in parts]
    assert not [path for path in opened if path.is_relative_to(sites / "source")]


def test_classes_that_no_network_predicts_still_have_estimates(tmp_path):
    """K = 3, a class that is rare: all columns are there, and sum to the slice."""
    write_site(tmp_path / "source", 200, 60, seed=1)
    line = ("--network", "Dimwit", "--n_epoch", 1, "--augment", 0, "--n_class", 3)
    losses = "[('CrossEntropy', {'idc': [0, 1, 2]}, None, None, None, 1)]"
    program.main(arguments(tmp_path / "source", tmp_path / "run", *line, "--target_losses", losses))
    out = tmp_path / "net.csv"
    flags = ("--n_class", 3, "--network_weights", tmp_path / "run" / "last.pkl")
    run("make", "--data", tmp_path / "source", "--out", out, *flags)
    for name in columns_in(out):
        sizes = np.array(list(read_size_table(out, name, 3).sizes.values()))
        assert (sizes.sum(1) == 480).all()
        assert (sizes[:, 0] >= 1).all()


def test_volumes_are_seen_in_windows(tmp_path):
    rng = np.random.default_rng(0)
    for case in range(4):
        truth = np.zeros((6, 12, 10), np.uint8)
        truth[1:5, 3:9, 2:8] = 1
        image = np.where(truth, 200, 60) + rng.normal(0, 8, truth.shape)
        for folder, array in (("IMG", image.clip(0, 255).astype(np.uint8)), ("GT", truth)):
            path = tmp_path / "set" / ("val" if case == 3 else "train") / folder / f"B_{case}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, array)
    (tmp_path / "set" / "dataset.json").write_text('{"name": "set", "volumetric": true}')
    line = ("--network", "UNet3D:width=2,depth=1", "--crop", 4, 8, 8, "--n_epoch", 8, "--l_rate", 3e-2, "--augment", 0)
    line += ("--target_folders", VOLUMES, "--grp_regex", r"(B_\d)", "--do_hd", 0)
    program.main(arguments(tmp_path / "set", tmp_path / "run", *line))
    out = tmp_path / "net.csv"
    flags = ("--n_class", 2, "--network_weights", tmp_path / "run" / "last.pkl")
    run("make", "--data", tmp_path / "set", "--out", out, *flags)
    table = read_size_table(out, "em", 2)
    assert sorted(table.sizes) == ["B_0", "B_1", "B_2", "B_3"]
    assert table["B_3"].sum() == 720


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--folder", "GT"), "looks at images alone and opens no label"),
        (("--folder", "NONE", "--unlabelled"), "there is no .*NONE"),
        (("--n_class", 3), "tells 2 classes apart, and --n_class is 3"),
        (("--grp_regex", "Scan"), "Scan"),
        (("--device", "abacus"), "--device abacus"),
    ],
)
def test_what_does_not_fit_is_refused(sites, tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        making(sites, tmp_path / "net.csv", *flags)
    assert not (tmp_path / "net.csv").exists()


def test_a_network_that_tells_nothing_of_its_source_is_refused(weights, tmp_path):
    state = load_checkpoint(weights)
    save_checkpoint(tmp_path / "bare.pkl", {name: value for name, value in state.items() if name != "bundle"})
    with pytest.raises(UserError, match="does not tell how often its source shows each class"):
        read_source(tmp_path / "bare.pkl")
    save_checkpoint(tmp_path / "odd.pkl", state | {"preprocessing": {"image": [3]}})
    with pytest.raises(UserError, match="does not tell how the network reads an image"):
        read_source(tmp_path / "odd.pkl")


def test_without_a_validation_of_the_source_em_alone_is_left(sites, weights, tmp_path):
    state = load_checkpoint(weights)
    numbers = {k: v for k, v in state["bundle"]["numbers"].items() if k not in ("confusion", "temperatures")}
    save_checkpoint(tmp_path / "x.pkl", state | {"bundle": state["bundle"] | {"numbers": numbers}})
    found = estimate_from_network(read_source(tmp_path / "x.pkl"), sites / "target", "IMG", device="cpu")
    assert list(found.shares) == ["em"]
    assert sorted(found.left_out) == ["bbse", "mlls"]


def test_it_leaves_torch_as_it_was(sites, weights):
    estimate_from_network(read_source(weights), sites / "target", "IMG", device="cpu")
    assert torch.is_grad_enabled()


# ------------------------------------------------------------------------------------------------ checking


@pytest.fixture
def told(tmp_path):
    """Two patients of two slices; sizes of both columns by hand."""
    prior, truth = tmp_path / "prior.csv", tmp_path / "truth.csv"
    prior.write_text(
        "val_ids,a,em,em_low,em_high\n"
        'P_0,"[80, 20]","[90, 10]","[84, 6]","[94, 16]"\nP_1,"[80, 20]","[90, 10]","[84, 6]","[94, 16]"\n'
        'Q_0,"[80, 20]","[90, 10]","[84, 6]","[94, 16]"\nQ_1,"[0, 0]","[90, 10]","[84, 6]","[94, 16]"\n'
    )
    truth.write_text('val_ids,val_gt_size\nP_0,"[90, 10]"\nP_1,"[70, 30]"\nQ_0,"[95, 5]"\nQ_1,"[100, 0]"\n')
    return prior, truth


def test_check_of_all_columns_by_hand(told, tmp_path, capsys):
    """a: 60 of 45; P 40 of 40, Q 20 of 5. em: 40 of 45, 24 to 64; P 20 of 40, Q 20 of 5."""
    prior, truth = told
    run("check", "--sizes", prior, "--truth_sizes", truth, "--out", tmp_path / "check.csv")
    rows = list(csv.reader((tmp_path / "check.csv").read_text().splitlines()))[1:]
    assert rows == [
        ["a", "1", "1.333", "2.500", "Q", "4.000", "", "", ""],
        ["em", "1", "0.889", "2.250", "Q", "4.000", "0.533", "1.422", "yes"],
    ]
    out = capsys.readouterr().out
    assert "against 'val_gt_size'" in out
    assert len(out.splitlines()) == 4
    with pytest.raises(UserError, match="never overwritten"):
        run("check", "--sizes", prior, "--truth_sizes", truth, "--out", tmp_path / "check.csv")


def test_an_interval_that_misses_the_truth_says_so(told, capsys):
    prior, truth = told
    truth.write_text(truth.read_text().replace("[70, 30]", "[30, 70]"))
    run("check", "--sizes", prior, "--truth_sizes", truth)
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines() if line.startswith("em")] == ["no"]


def test_check_refuses_what_has_no_truth(told):
    prior, truth = told
    with pytest.raises(UserError, match="no column 'val_gt_size'"):
        run("check", "--sizes", prior)
    with pytest.raises(UserError, match="does not match 4 slices"):
        run("check", "--sizes", prior, "--truth_sizes", truth, "--grp_regex", "Case")
    with pytest.raises(UserError, match="holds no column of a prior"):
        run("check", "--sizes", truth)


def test_ends_that_cross_are_refused(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text('val_ids,em,em_low,em_high\na,"[9, 1]","[8, 2]","[9, 1]"\n')
    with pytest.raises(UserError, match="'em_low' is above 'em_high' in 1 slices: a"):
        BOUNDS.build("IntervalBounds", 2, sizefile=str(path), predcol="em").check(["a"])
