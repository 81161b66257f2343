"""A finished run evaluated again: scores by hand from the files, and the look of the run honoured."""

import math
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CROSS_ENTROPY, all_here, train_source, write_prior, write_site
from PIL import Image
from scipy.ndimage import distance_transform_edt

import main as training
from analysis.evaluated import (
    CALIBRATION,
    evaluated_folder,
    is_evaluated,
    read_calibration,
    read_note,
    read_reliability,
    read_scan,
)
from files.run_names import CHOSEN
from nets.checkpoint_files import load_checkpoint, save_checkpoint
from processes.errors import UserError
from study import evaluate
from tests.tools.chaos import arguments as of_chaos

DIMWIT = ("--network", "Dimwit", "--augment", 0)
LEVEL, SLOPE = 0.5, 5.0
SPACING = (2.5, 1.0, 0.5)


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def soft_threshold(file, level=LEVEL):
    """Makes a Dimwit one in which the organ has the probability sigmoid(SLOPE (grey / 255 − level))."""
    state = load_checkpoint(file)
    net = {name: torch.zeros_like(value) for name, value in state["net"].items()}
    net["body.0.weight"][:, :, 1, 1] = 1
    for name in ("body.1.weight", "body.1.running_var"):
        net[name] += 1
    net["classifier.weight"][1] = SLOPE / len(net["body.0.weight"])
    net["classifier.bias"][1] = -SLOPE * level
    save_checkpoint(file, state | {"net": net})


def probability(image):
    return 1 / (1 + np.exp(-SLOPE * (image / 255 / math.sqrt(1 + 1e-5) - LEVEL)))


def trained(site, run, *more):
    training.main(of_chaos(site, run, *DIMWIT, "--n_epoch", 1, "--do_hd", 0, "--saveim", 0, *more))
    return run


def evaluated(run, *more):
    evaluate.main(["--run", str(run), "--device", "cpu", *map(str, more)])
    return evaluated_folder(run)


def scores(table, which, patient, region, k=1):
    found = table[
        (table.which == which) & (table.patient == patient) & (table.region == region) & (table["class"] == k)
    ]
    return found.iloc[0]


def volume(site, patient, folder):
    return np.stack(
        [np.asarray(Image.open(file)) for file in sorted((site / f"val/{folder}").glob(f"{patient}_*.png"))]
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of a site that states its spacing, whose probabilities are known."""
    root = tmp_path_factory.mktemp("evaluate")
    site = write_site(root / "site", 170, 90, 1)
    table = pd.DataFrame({"slice": [path.stem for path in site.glob("*/GT/*")]})
    table[["spacing_slice", "spacing_w", "spacing_h"]] = SPACING
    table.to_csv(site / "manifest.csv", index=False)
    soft_threshold(trained(site, root / "run") / "last.pkl")
    return root / "run"


@pytest.fixture(scope="module")
def made(run):
    before = content(run)
    folder = evaluated(run)
    assert content(run) == before  # a run folder is what main.py made
    return folder


# -- the numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("region", ["image", "band"])
def test_scores_are_what_one_computes_from_the_files(run, made, region):
    site, table, every = run.parent / "site", read_calibration(made), []
    for patient in ("Case04", "Case05", "all"):
        p, y = np.concatenate(every, 1) if patient == "all" else pixels_of(site, patient, region)
        every.append(np.stack([p, y]))
        found = scores(table, "last", patient, region)
        assert found.n == len(p)
        assert found.brier == pytest.approx(np.mean((p - y) ** 2), rel=1e-3)
        assert found.nll == pytest.approx(-np.mean(np.log(np.where(y, p, 1 - p))), rel=1e-3)
        assert found.uncertainty == pytest.approx(y.mean() * (1 - y.mean()), rel=1e-4)
        assert found.brier == pytest.approx(found.reliability - found.resolution + found.uncertainty, abs=1e-5)
        bins = np.minimum((p * 15).astype(int), 14)
        gaps = {b: abs(p[bins == b].mean() - y[bins == b].mean()) for b in np.unique(bins)}
        assert found.cw_ece == pytest.approx(sum((bins == b).mean() * gap for b, gap in gaps.items()), abs=1e-3)
        assert found.ace == pytest.approx(np.mean(list(gaps.values())), abs=2e-2)  # of a bin with few pixels
    curve = read_reliability(made)
    curve = curve[(curve.which == "last") & (curve.region == region)]
    assert curve.n.tolist() == pytest.approx(np.bincount(bins, minlength=15), abs=3)


def pixels_of(site, patient, region):
    """Probability and truth of a patient's pixels, out of the files."""
    p = probability(volume(site, patient, "IMG"))
    y = volume(site, patient, "GT") == 1
    near = distance_transform_edt(~(y | (p > 0.5)), sampling=SPACING) <= 5
    return (p[near], y[near]) if region == "band" else (p.ravel(), y.ravel())


def test_the_band_leaves_out_background(made):
    table = read_calibration(made)
    image, band = (scores(table, "last", "all", region) for region in ("image", "band"))
    assert 0 < band.n < image.n == 2 * 4 * 24 * 20
    assert band.uncertainty > image.uncertainty
    assert read_note(made)["unit"] == "mm"


def test_the_temperature_needs_no_label_and_makes_them_truer(run, made, tmp_path, capsys):
    table = read_calibration(made)
    plain, tempered = (scores(table, which, "all", "band") for which in ("last", "last, tempered"))
    assert (plain.temperature, plain.n) == (1, tempered.n)
    fitted = read_note(made)["fitted"]["last"]
    assert tempered.temperature == pytest.approx(fitted["temperature"], rel=1e-5)
    assert fitted["pixels"] > 0
    assert fitted["agreement"] > 0.95  # a mixture of a bright and a dark pixel is nearer to the first
    assert tempered.temperature < 1  # a network that is less sure than it may be
    assert tempered.cw_ece < plain.cw_ece
    assert tempered.nll < plain.nll
    site = shutil.copytree(run.parent / "site", tmp_path / "site")
    shutil.rmtree(site / "train/GT")
    evaluated(run, "--data", site, "--out", tmp_path / "out")
    assert (tmp_path / "out" / CALIBRATION).read_bytes() == (made / CALIBRATION).read_bytes()
    shutil.rmtree(site / "train")
    evaluated(run, "--data", site, "--out", tmp_path / "less")
    assert set(read_calibration(tmp_path / "less").which) == {"last"}
    assert "has no training images, so no temperature is fitted" in capsys.readouterr().out


def test_a_network_that_sees_background_alone_has_no_temperature(run, tmp_path):
    blind = shutil.copytree(run, tmp_path / "run")
    soft_threshold(blind / "last.pkl", level=3)
    table = read_calibration(evaluated(blind))
    assert set(table.which) == {"last"}
    assert scores(table, "last", "all", "band").n > 0  # round the truth


# -- scans ------------------------------------------------------------------------------------------------------------


def test_a_scan_is_the_patient_cut_round_the_foreground(run, made):
    site = run.parent / "site"
    for patient in ("Case04", "Case05"):
        scan, truth, image = read_scan(made, patient), volume(site, patient, "GT"), volume(site, patient, "IMG")
        box = tuple(slice(at, at + n) for at, n in zip(scan.corner, scan.truth.shape, strict=True))
        assert (truth[box] == scan.truth).all()
        assert scan.truth.sum() == truth.sum()
        assert tuple(scan.size) == truth.shape
        assert tuple(scan.spacing) == SPACING
        assert (scan.mask == (image[box] > 127)).all()
        assert np.corrcoef(scan.image.ravel(), image[box].ravel())[0, 1] > 0.99
        p = np.stack([1 - probability(image[box]), probability(image[box])])
        np.testing.assert_allclose(scan.entropy, -255 * (p * np.log2(p)).sum(0), atol=1)
        assert scan.which == "last"


def test_a_torn_scan_and_a_torn_table_say_so(made, tmp_path):
    folder = shutil.copytree(made, tmp_path / "evaluated" / "run")
    path = folder / "scans/Case04.npz"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"Case04\.npz cannot be read .*python -m study\.evaluate --run"):
        read_scan(folder, "Case04")
    (folder / CALIBRATION).write_text("which,patient\nlast,all\n")
    with pytest.raises(UserError, match=r"calibration\.csv cannot be read"):
        read_calibration(folder)
    (folder / CALIBRATION).unlink()
    with pytest.raises(UserError, match=r"calibration\.csv is missing: evaluate the run"):
        read_calibration(folder)


# -- the look of the run ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """A site, and a run on it that matches grey levels, mixes batch norms, decodes for Dice, and chose an epoch."""
    site = write_site(tmp_path_factory.mktemp("looks") / "site", 150, 90, 2)
    source, prior = train_source(site), write_prior(site.parent / "prior.csv", site)
    told = {"sizefile": str(prior), "predcol": "dumbpredwtags", "margin": 0, "dir": "high"}
    losses = f"[('EntKLProp', {{}}, 'PredictionBounds', {told}, 'norm_soft_size', 1)]"
    start = ("--method", "sfda", "--target_losses", losses, "--model_weights", source, "--n_epoch", 2)
    look = ("--match_source", 0.7, "--bn_mix", "--decode", "dice")
    with all_here(training):
        training.main(of_chaos(site, site.parent / "sfda", *DIMWIT, *start, *look, "--keep_every", 1, "--entmap"))
    return site.parent / "sfda"


def test_masks_and_entropy_are_those_of_the_run(adapted):
    """Those of its chosen network, and by the look that this had."""
    folder = evaluated(adapted)
    tables = {which: pd.read_csv(adapted / f"patients_{which}.csv") for which in ("last", "chosen")}
    for patient in ("Case04", "Case05"):
        scan = read_scan(folder, patient)
        assert scan.which == "chosen"
        masks = [np.asarray(Image.open(path)) for path in sorted((adapted / "chosen/val").glob(f"{patient}_*.png"))]
        (row,) = tables["chosen"][tables["chosen"].patient == patient].to_dict("records")
        assert scan.mask.sum() == np.stack(masks).sum() == row["predicted"] > 0
    table = read_calibration(folder)
    assert set(table.which) == {"last", "last, tempered", "chosen", "chosen, tempered"}


def test_the_last_network_has_its_own_look(adapted, tmp_path):
    """The chosen one taken away, the scans are of the last, whose entropy the run drew."""
    alone = shutil.copytree(adapted, tmp_path / "sfda")
    for path in (alone / CHOSEN, alone / "selection.csv", alone / "selection.txt"):
        path.unlink()
    folder = evaluated(alone)
    for patient in ("Case04", "Case05"):
        scan = read_scan(folder, patient)
        drawn = np.stack([np.asarray(Image.open(p)) for p in sorted((alone / "ent_map").rglob(f"{patient}_*.png"))])
        box = tuple(slice(at, at + n) for at, n in zip(scan.corner, scan.mask.shape, strict=True))
        assert np.abs(scan.entropy.astype(int) - drawn[box]).max() <= 1
        assert scan.which == "last"
    state = load_checkpoint(alone / "last.pkl")
    assert "bn_mix=True" in state["network"]
    plain = state | {"preprocessing": state["preprocessing"] | {"match_source": 0.0}}
    save_checkpoint(alone / "last.pkl", plain)
    before = (folder / CALIBRATION).read_bytes()
    assert (evaluated(alone) / CALIBRATION).read_bytes() != before  # grey levels as they are are another look


def test_a_chosen_network_that_is_the_last_one_is_shown_once(adapted, tmp_path, monkeypatch):
    same, passes, real = shutil.copytree(adapted, tmp_path / "sfda"), [], evaluate.cases_of
    shutil.copy(same / "last.pkl", same / CHOSEN)

    def counted(*args):
        passes.append(1)
        return real(*args)

    monkeypatch.setattr(evaluate, "cases_of", counted)
    folder = evaluated(same)
    assert len(passes) == 1
    table = read_calibration(folder)
    last, chosen = (
        table[table.which == which].drop(columns="which") for which in ("last, tempered", "chosen, tempered")
    )
    assert last.reset_index(drop=True).equals(chosen.reset_index(drop=True))
    assert len(last) == 3 * 2
    assert read_scan(folder, "Case04").which == "chosen"


# -- other runs -------------------------------------------------------------------------------------------------------


def test_three_classes_pixels_to_ignore_and_no_spacing(tmp_path, capsys):
    site = write_site(tmp_path / "site", 200, 60, 1)
    for file in site.glob("*/GT/*.png"):
        mask = np.array(Image.open(file))
        mask[12:] *= 2
        mask[:3] = 255
        Image.fromarray(mask).save(file)
    losses = CROSS_ENTROPY.replace("[0, 1]", "[0, 1, 2]").replace("[1, 1]", "[1, 1, 1]")
    run = trained(site, tmp_path / "run", "--n_class", 3, "--target_losses", losses, "--ignore", 255)
    table = read_calibration(evaluated(run))
    assert set(table["class"]) == {1, 2}
    assert scores(table, "last", "all", "image", 2).n == 2 * 4 * 21 * 20
    assert "the band is 5 pixels wide, not 5 mm" in capsys.readouterr().out
    assert read_note(evaluated_folder(run))["unit"] == "pixels"
    assert read_scan(evaluated_folder(run), "Case04").truth.max() == 2


def test_slices_that_do_not_say_where_they_lie_have_no_band(tmp_path):
    site = write_site(tmp_path / "site", 200, 60, 1)
    for file in site.glob("*/*/Case04_3.png"):
        file.rename(file.with_name("Case04_900.png"))
    table = read_calibration(evaluated(trained(site, tmp_path / "run")))
    lost, there, every = (scores(table, "last", patient, "band") for patient in ("Case04", "Case05", "all"))
    assert (lost.n, math.isnan(lost.nll)) == (0, True)
    assert every.n == there.n > 0
    assert scores(table, "last", "Case04", "image").n == 4 * 24 * 20


def test_a_gap_between_slices_stays_a_gap(run, tmp_path):
    site = shutil.copytree(run.parent / "site", tmp_path / "site")
    for file in site.glob("*/*/Case0?_2.png"):
        file.unlink()
    gapped = trained(site, tmp_path / "run")
    scan = read_scan(evaluated(gapped), "Case04")
    assert tuple(scan.size) == (4, 24, 20)
    assert not scan.truth[2 - scan.corner[0]].any()


def test_pictures_have_their_bands_one_by_one_and_no_scan(tmp_path, capsys):
    site = write_site(tmp_path / "site", 200, 60, 1)
    run = trained(site, tmp_path / "run", "--scores", "iou")
    soft_threshold(run / "last.pkl")
    folder = evaluated(run)
    found = scores(read_calibration(folder), "last", "Case04", "band")
    masks = [np.asarray(Image.open(site / f"val/GT/Case04_{n}.png")) == 1 for n in range(4)]
    near = [distance_transform_edt(~mask) <= 5 if mask.any() else mask for mask in masks]
    assert found.n == pytest.approx(np.sum(near), rel=0.02)  # what is predicted differs in few pixels
    assert not (folder / "scans").exists()
    assert "there are no scans" in capsys.readouterr().out


def test_volumes(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(4):
        truth = np.zeros((9, 12, 10), np.uint8)
        truth[2:7, 3:9, 2:8] = 1
        image = 300.0 * truth + rng.normal(100, 20, truth.shape)
        for folder, array in (("IMG", image.astype(np.float32)), ("GT", truth)):
            place = tmp_path / "site" / ("val" if number > 1 else "train") / folder
            place.mkdir(parents=True, exist_ok=True)
            np.save(place / f"Case{number:02d}.npy", array)
    folders = "[('IMG', nii_transform, False), ('GT', nii_gt_transform, False), ('GT', nii_gt_transform, False)]"
    more = ("--network", "UNet3D:width=2,depth=1", "--crop", 8, 9, 8, "--steps", 2, "--target_folders", folders)
    run = trained(tmp_path / "site", tmp_path / "run", "--grp_regex", r"(Case\d+)", *more)
    table = read_calibration(evaluated(run))
    assert set(table.patient) == {"all", "Case02", "Case03"}
    assert scores(table, "last", "Case02", "image").n == 9 * 12 * 10
    (row,) = pd.read_csv(run / "patients_last.csv").query("patient == 'Case02'").to_dict("records")
    scan = read_scan(evaluated_folder(run), "Case02")
    assert (scan.mask.sum(), scan.truth.sum()) == (row["predicted"], row["true"])


# -- what is refused, and what is kept --------------------------------------------------------------------------------


def test_a_run_without_ground_truth_is_refused(run, tmp_path):
    words = ("--method", "noadap", "--model_weights", run / "last.pkl", "--target_losses", "[]")
    images = "[('IMG', png_transform, False)]"
    blind = trained(run.parent / "site", tmp_path / "run", "--target_folders", images, *words[:4])
    with pytest.raises(UserError, match="evaluated without ground truth"):
        evaluated(blind)
    assert not evaluated_folder(blind).exists()


def test_other_images_than_the_run_s_are_refused_and_another_truth_is_told(run, tmp_path, capsys):
    site = shutil.copytree(run.parent / "site", tmp_path / "site")
    for file in site.glob("val/GT/Case04_1.png"):
        Image.fromarray(np.asarray(Image.open(file))[::-1] ^ 1).save(file)
    evaluated(run, "--data", site, "--out", tmp_path / "out")
    assert "The ground truth of 1 of 8 slices" in capsys.readouterr().out
    for file in site.glob("val/*/Case04_1.png"):
        file.unlink()
    with pytest.raises(UserError, match=r"holds other images than .* was evaluated on .*Case04_1"):
        evaluated(run, "--data", site, "--out", tmp_path / "out")


def test_a_patient_who_is_called_all_is_refused(tmp_path):
    site = write_site(tmp_path / "site", 200, 60, 1)
    for file in site.glob("*/*/Case04_*.png"):
        file.rename(file.with_name(file.name.replace("Case04", "all")))
    run = trained(site, tmp_path / "run", "--grp_regex", r"(Case\d+|all)_(\d+)")
    with pytest.raises(UserError, match="A patient of .* is called 'all'"):
        evaluated(run)


def test_an_unfinished_run_and_a_foreign_folder_are_refused(run, tmp_path):
    torn = shutil.copytree(run, tmp_path / "run")
    (torn / "last.pkl").unlink()
    with pytest.raises(UserError, match=r"last\.pkl is not there"):
        evaluated(torn)
    with pytest.raises(UserError, match=r"study\.evaluate did not begin it"):
        evaluated(run, "--out", run.parent / "site")


def test_a_checkpoint_that_tells_of_no_run_is_refused(run, tmp_path):
    torn = shutil.copytree(run, tmp_path / "run")
    state = load_checkpoint(torn / "last.pkl")
    for flag, value, words in (("target_folders", "7", "lists the image"), ("n_class", 1, "n_class is 1")):
        save_checkpoint(torn / "last.pkl", state | {"identity": state["identity"] | {flag: value}})
        with pytest.raises(UserError, match=rf"last\.pkl tells of a run that cannot be read: .*{words}"):
            evaluated(torn)


def test_it_is_made_once_and_anew_where_the_network_is_another(run, made, tmp_path, capsys):
    own = shutil.copytree(run, tmp_path / "run")
    folder = evaluated(own)
    first = content(folder)
    evaluated(own)
    assert "is kept" in capsys.readouterr().out
    assert content(folder) == first
    soft_threshold(own / "last.pkl", level=0.4)
    evaluated(own)
    assert content(folder)["calibration.csv"] != first["calibration.csv"]
    soft_threshold(own / "last.pkl")
    evaluated(own)
    assert {name: text for name, text in content(folder).items() if name != "evaluated.json"} == {
        name: text for name, text in first.items() if name != "evaluated.json"
    }


def test_what_is_stopped_is_not_taken_for_whole(run, tmp_path, monkeypatch):
    own = shutil.copytree(run, tmp_path / "run")
    evaluated(own)
    soft_threshold(own / "last.pkl", level=0.4)

    def stopped(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "write_scan", stopped)
        with pytest.raises(KeyboardInterrupt):
            evaluated(own)
    assert not is_evaluated(own)
    evaluated(own)
    assert is_evaluated(own)
