"""--match_source, from a run to what is predicted: who matches, by how much, and that all see the same images."""

import csv
import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import all_here, write_site
from PIL import Image
from test_expectation import ENTROPY, arguments

import choose as choosing
import main as program
import predict as predicting
from datasets.grey_matching import SHARE, levels_to_match, match_set
from datasets.grey_quantiles import grey_quantiles, sample_levels
from nets.checkpoint_files import load_checkpoint, save_checkpoint
from networks import build_network
from prediction import stress
from processes.errors import UserError
from tests.tiny_network import train_on_volumes, write_volumes
from tests.tools.chaos import _bits as bits


@pytest.fixture(scope="module", autouse=True)
def chosen_here():
    with all_here(program, choosing):
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A source, its network, and a target whose grey levels are a part of the source's."""
    root = tmp_path_factory.mktemp("world")
    write_site(root / "source", 200, 60, seed=1)
    write_site(root / "target", 200, 60, seed=2)
    for path in (root / "target").glob("*/IMG/*.png"):
        Image.fromarray((np.asarray(Image.open(path)) * 0.4 + 15).astype(np.uint8)).save(path)
    program.main(arguments(root / "source", root / "trained", "--n_epoch", 8, "--l_rate", 3e-2))
    return root


def run(world, folder, *more, method="noadap", weights="trained/last.pkl"):
    start = ("--method", method, "--model_weights", world / weights)
    program.main(arguments(world / "target", folder, *start, *more))
    return folder


def matched_images(world):
    """(8, 1, 24, 20) of the target's validation, each patient by its own curve."""
    source = levels_to_match(load_checkpoint(world / "trained/last.pkl"), 1.0)
    files = sorted((world / "target/val/IMG").glob("*.png"))
    images = np.stack([np.asarray(Image.open(path)) for path in files]).astype(np.float32)[:, None] / 255
    for rows in (slice(0, 4), slice(4, 8)):
        places, levels = source.curve(images[rows].reshape(1, -1))[0]
        images[rows] = np.interp(images[rows], places, levels)
    return torch.from_numpy(images)


def masks(folder):
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.glob("last_epoch/val/*.png"))])


def dice(folder):
    return pd.read_csv(folder / "patients_last.csv").dice.mean()


def test_the_network_sees_matched_images_and_finds_the_organ_again(world, tmp_path):
    plain, matched = (run(world, tmp_path / str(share), "--match_source", share, "--saveim", 1) for share in (0, 1))
    assert dice(plain) < 0.5
    assert dice(matched) > 0.9
    state = load_checkpoint(matched / "last.pkl")
    assert state["preprocessing"][SHARE] == 1
    assert SHARE not in load_checkpoint(plain / "last.pkl")["preprocessing"]
    net = build_network(state["network"], 1, 2)
    net.load_state_dict(state["net"])
    with torch.inference_mode():
        wanted = net.eval()(matched_images(world)).argmax(1).numpy()
    assert (masks(matched) > 0).mean() == pytest.approx(wanted.mean(), abs=1e-3)
    assert ((masks(matched) > 0) != wanted).mean() < 1e-3
    for row in csv.DictReader((matched / "patients_expected.csv").open()):
        assert float(row["grey_distance"]) < 2


def test_who_starts_from_a_network_matches_as_it_was_used(world, tmp_path):
    first = run(world, tmp_path / "first", "--match_source", 1)
    chain = run(world, tmp_path / "chain", weights=first / "last.pkl")
    assert dice(chain) == dice(first)
    assert load_checkpoint(chain / "last.pkl")["preprocessing"][SHARE] == 1
    undone = run(world, tmp_path / "undone", "--match_source", 0, weights=first / "last.pkl")
    assert dice(undone) < dice(first)


def test_it_is_a_start_for_an_adaptation_and_its_choice(world, tmp_path):
    adapted = run(
        world,
        tmp_path / "sfda",
        *("--match_source", 1, "--target_losses", ENTROPY, "--keep_every", 1, "--l_rate", 1e-4),
        method="sfda",
    )
    assert dice(adapted) > 0.9
    for name in ("last", "chosen", "candidates/epoch_0000"):
        assert load_checkpoint(adapted / f"{name}.pkl")["preprocessing"][SHARE] == 1


def test_a_choice_among_runs_shows_each_its_own_images(world, tmp_path):
    """The source network is a candidate on the images as they are, and beside it on matched ones."""
    more = ("--target_losses", ENTROPY, "--l_rate", 0, "--bn_stats", "freeze")
    plain, matched = (
        run(world, tmp_path / "sfda", *more, method="sfda"),
        run(world, tmp_path / "srcmatch", "--match_source", 1),
    )
    choosing.main(["--runs", str(plain), str(matched), "--out", str(tmp_path / "out"), "--device", "cpu"])
    table = pd.read_csv(tmp_path / "out/selection.csv").set_index("candidate")
    assert list(table.index) == ["source", "refresh", "sfda", "srcmatch"]
    assert table.cmr_ei["source"] == pytest.approx(table.cmr_ei["sfda"], abs=1e-6)
    assert table.cmr_ei["srcmatch"] != pytest.approx(table.cmr_ei["sfda"], abs=1e-3)
    chosen = load_checkpoint(tmp_path / "out/chosen.pkl")
    assert chosen["preprocessing"].get(SHARE, 0) == (table.chosen["srcmatch"] == 1)
    choosing.main(["--runs", str(matched), "--out", str(tmp_path / "alone"), "--device", "cpu"])
    (line,) = pd.read_csv(tmp_path / "alone/selection.csv").query("candidate == 'source'").to_dict("records")
    assert line["cmr_ei"] == pytest.approx(table.cmr_ei["srcmatch"], abs=1e-6)


def test_a_network_as_it_is_brings_nothing_beside_itself_and_its_refresh(world, tmp_path):
    plain = run(world, tmp_path / "noadap")
    choosing.main(["--runs", str(plain), "--out", str(tmp_path / "out"), "--device", "cpu"])
    assert pd.read_csv(tmp_path / "out/selection.csv").candidate.tolist() == ["source", "refresh"]


def test_shifted_images_are_matched_anew(world, tmp_path, monkeypatch):
    weights, seen = run(world, tmp_path / "run", "--match_source", 1) / "last.pkl", []
    evaluate = stress.evaluate
    monkeypatch.setattr(
        stress, "evaluate", lambda method, val, **more: seen.append(val.slices) or evaluate(method, val)
    )
    argv = ["--weights", weights, "--out", tmp_path / "out", "--shifts", "gamma", "--severities", 1, "--device", "cpu"]
    stress.main(list(map(str, argv)))
    source = levels_to_match(load_checkpoint(weights), None).levels
    plain, shifted = seen
    assert not np.allclose(match_set(plain, None).image(1), match_set(shifted, None).image(1), atol=0.01)
    for slices in seen:
        body = grey_quantiles(sample_levels(slices, range(4)))[1]
        assert np.abs(body - source[:, 1:]).mean() < 0.02


def test_predict_sees_what_the_run_saw(tmp_path):
    """Volumes of another contrast than those of the training, each matched by its own levels."""
    trained = train_on_volumes(tmp_path / "bright")
    dark = write_volumes(tmp_path / "dark" / "volumes")
    for path in dark.glob("p?.nii.gz"):
        image = nib.load(path)
        nib.save(nib.Nifti1Image((np.asarray(image.dataobj) ** 2 / 40).astype(np.int16), image.affine), path)
    weights = trained / "last.pkl"
    state = load_checkpoint(weights)
    state["preprocessing"][SHARE] = 1.0
    save_checkpoint(tmp_path / "matched.pkl", state)
    for name, file in (("plain", weights), ("matched", tmp_path / "matched.pkl")):
        argv = ["--weights", file, "--volumes", dark / "p?.nii.gz", "--out", tmp_path / name, "--probabilities"]
        predicting.main(list(map(str, [*argv, "--device", "cpu"])))
    levels = levels_to_match(state, None)
    source = predicting.load_model(tmp_path / "matched.pkl", "cpu")
    assert np.array_equal(source.levels.levels, levels.levels)
    prepared = predicting.preparation(source.recipe, tmp_path).read(
        predicting.find_cases([str(dark / "p?.nii.gz")], None, source.recipe.channels).cases[0]
    )
    image = prepared.decode(torch.from_numpy(prepared.stored)).numpy()
    places, theirs = levels.curve(image.swapaxes(0, 1).reshape(1, -1))[0]
    with torch.inference_mode():
        wanted = source.net(torch.from_numpy(np.interp(image, places, theirs).astype(np.float32))).softmax(1)[:, 1]
    found = nib.load(tmp_path / "matched/probabilities/p0.nii.gz").get_fdata()[..., 1]
    seen = prepared.put_back(np.ones(wanted.shape, np.uint8)) > 0
    assert np.allclose(found[seen], prepared.put_back(wanted.numpy())[seen], atol=1e-3)
    plain = nib.load(tmp_path / "plain/probabilities/p0.nii.gz").get_fdata()[..., 1]
    assert not np.allclose(found, plain, atol=5e-3)


def test_what_tells_no_levels_and_another_start_are_refused(world, tmp_path):
    state = load_checkpoint(world / "trained/last.pkl")
    save_checkpoint(tmp_path / "old.pkl", {name: entry for name, entry in state.items() if name != "bundle"})
    with pytest.raises(UserError, match="has no source bundle"):
        run(world, tmp_path / "run", "--match_source", 1, weights=tmp_path / "old.pkl")
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="--match_source brings grey levels to those that a whole network"):
        program.main(arguments(world / "target", tmp_path / "run", "--match_source", 1))
    with pytest.raises(UserError, match="--match_source is a share"):
        run(world, tmp_path / "run", "--match_source", 2)


def test_a_run_that_goes_on_is_the_same(world, tmp_path):
    whole = run(world, tmp_path / "whole", "--match_source", 0.5)
    again = run(world, tmp_path / "whole", "--match_source", 0.5, "--resume")
    assert bits(load_checkpoint(again / "last.pkl")["net"]) == bits(load_checkpoint(whole / "last.pkl")["net"])
    told = json.loads((whole / "provenance.json").read_text())
    assert told["method"] == "noadap"
    with pytest.raises(UserError, match="match_source: 0.5 -> 1"):
        run(world, tmp_path / "whole", "--match_source", 1, "--resume")


@pytest.fixture(scope="module")
def turned(world):
    """The target with bright and dark exchanged."""
    write_site(world / "turned", 200, 60, seed=2)
    for path in (world / "turned").glob("*/IMG/*.png"):
        Image.fromarray((200 - np.asarray(Image.open(path)) * 0.7).clip(0, 255).astype(np.uint8)).save(path)
    return "turned"


def test_the_look_is_found_without_labels(world, turned, tmp_path, capsys):
    """In which the source network is at home; on its own site nothing changes."""
    for site, share in (("turned", -1), ("source", 0)):
        told = run(world, tmp_path / site, "--match_source", "auto", "--target_dataset", world / site)
        assert "Grey levels, decided without labels: " in capsys.readouterr().out
        assert load_checkpoint(told / "last.pkl")["preprocessing"].get(SHARE, 0) == share
    assert dice(tmp_path / "turned") > 0.8
    as_is = run(world, tmp_path / "as_is", "--match_source", 0, "--target_dataset", world / "source")
    assert (as_is / "patients_last.csv").read_bytes() == (tmp_path / "source/patients_last.csv").read_bytes()


def test_a_run_that_goes_on_keeps_its_look(world, turned, tmp_path, monkeypatch):
    flags = ("--match_source", "auto", "--target_dataset", world / turned, "--target_losses", ENTROPY, "--resume")
    adapted = run(world, tmp_path / "sfda", *flags, method="sfda")
    before = bits(load_checkpoint(adapted / "last.pkl"))
    monkeypatch.setattr(program, "look", lambda *_: pytest.fail("looked again"))
    run(world, adapted, *flags, method="sfda")
    assert bits(load_checkpoint(adapted / "last.pkl")) == before


def test_the_look_of_a_run_is_found_where_its_last_checkpoint_is_torn(tmp_path):
    """And a run of before there was a look to be found goes on without one."""
    assert program.begun_with(tmp_path) is None
    for name, identity in (("paused", {}), ("previous", {SHARE: -1.0})):
        torch.save({"net": {}, "identity": identity}, tmp_path / f"{name}.pkl")
        assert program.begun_with(tmp_path) == identity
    (tmp_path / "last.pkl").write_bytes((tmp_path / "paused.pkl").read_bytes()[:200])
    assert program.begun_with(tmp_path) == {SHARE: -1.0}


def test_a_network_that_tells_no_levels_sees_images_as_they_are(world, tmp_path, capsys):
    state = load_checkpoint(world / "trained/last.pkl")
    save_checkpoint(tmp_path / "old.pkl", {name: value for name, value in state.items() if name != "bundle"})
    told = run(world, tmp_path / "run", "--match_source", "auto", weights=tmp_path / "old.pkl")
    assert "does not tell" in capsys.readouterr().out
    assert SHARE not in load_checkpoint(told / "last.pkl")["preprocessing"]
