"""No program writes over what it reads, or into a folder that is somebody else's."""

import json
import shutil

import pytest
from conftest import CROSS_ENTROPY, FOLDERS
from fake_runs import make_run, make_set

import main as program
import plot
import report
import score_masks
from analysis.run import open_run
from preprocess import data_report, new_dataset
from preprocess.new_set import refuse_existing, refuse_overwriting
from processes.errors import UserError
from processes.ownership import MADE, RUN, made_by_run, note_made, strangers


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("own")
    data = make_set(root / "data/toy", n_patient=2, n_slice=2, size=(16, 16))
    make_run(root / "toy/sfda", data, n_epoch=2)
    return root


@pytest.fixture
def run(made, tmp_path):
    return shutil.copytree(made / "toy/sfda", tmp_path / "sfda")


def contents(*folders):
    return {path: path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}


OUTPUTS = {
    "report": (report.main, "--runs", ["patients_last", "params", "IMG_target_metrics"]),
    "plot losses": (plot.main, "--run", ["last_epoch/val/Case00_0.png", "iter000/val/new.png", "ent_map/new.png"]),
    "plot gif": (plot.main, "--run", ["last_epoch/val/new.gif"]),
    "plot colour": (plot.main, "--run", ["last_epoch/val", "best_epoch_3d/val", "ent_map", "."]),
    "score": (score_masks.main, "--run", ["val_dice.npy", "patients_last.npy", "last_epoch/val/x.npy"]),
}


@pytest.mark.parametrize("is_noted", [True, False])
@pytest.mark.parametrize(("name", "out"), [(name, out) for name, (*_, outs) in OUTPUTS.items() for out in outs])
def test_what_a_run_wrote_is_not_written_over(run, name, out, is_noted):
    if is_noted:
        note_made(run, {path.name for path in run.iterdir()})
    words = [*name.split()[1:], OUTPUTS[name][1], str(run), "--out", str(run / out)]
    words += ["--score", "dice"] if name == "score" else []
    before = contents(run)
    with pytest.raises(UserError, match="Move it away|name another"):
        OUTPUTS[name][0](words)
    assert contents(run) == before


@pytest.mark.parametrize("out", ["val/IMG/Case00_0.png", "val/GT/new.png"])
def test_no_picture_falls_among_the_slices(made, run, out):
    before = contents(made)
    with pytest.raises(UserError, match="name another"):
        plot.main(["panel", "--runs", str(run), "--out", str(made / "data/toy" / out)])
    assert contents(made) == before


def test_what_was_made_of_a_run_is_made_again_beside_it(run, tmp_path):
    note_made(run, {path.name for path in run.iterdir()})
    for _ in range(2):
        score_masks.main(["--run", str(run), "--score", "dice"])
        plot.main(["losses", "--run", str(run), "--out", str(run / "losses.png")])
        plot.main(["colour", "--run", str(run), "--out", str(tmp_path / "colour")])
        report.main(["--runs", str(run), "--out", str(run / "report")])
    assert {"val_3d_dice.npy", "val_3d_dice.csv"} <= made_by_run(run)
    assert strangers(run) == ["losses.png", "report.csv", "report.md", "report.tex", "report.txt"]


def test_a_link_to_an_input_is_that_input(run, tmp_path):
    (tmp_path / "link.csv").symlink_to(run / "patients_last.csv")
    with pytest.raises(UserError, match="name another"):
        report.main(["--runs", str(run), "--out", str(tmp_path / "link"), "--formats", "csv"])
    assert open_run(run).patients("last")


def test_a_data_report_goes_into_a_folder_of_its_own(made, tmp_path, monkeypatch):
    before = contents(made / "data")
    for out, fault in (("mine", "mine is there, and data_report did not"), ("set", "set is there"), ("new", None)) * 2:
        place = made / "data/toy" if out == "set" else tmp_path / out
        if out == "mine":
            place.mkdir(exist_ok=True)
            (place / "slices.csv").write_text("mine")
        monkeypatch.setattr("sys.argv", ["data_report", "--data", str(made / "data/toy"), "--out", str(place)])
        if fault:
            with pytest.raises(UserError, match=fault.replace("set", "toy")):
                data_report.main()
        else:
            data_report.main()
    assert (tmp_path / "mine/slices.csv").read_text() == "mine"
    assert contents(made / "data") == before


def test_notes_of_somebody_else_are_no_report_of_a_new_data_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results/mine").mkdir(parents=True)
    (tmp_path / "results/mine/volumes.txt").write_text("which volumes I left out, and why")
    words = ["--name", "mine", "--source", "a*", "--source_label", "b*", "--target", "c*", "--patient", "(.)"]
    with pytest.raises(UserError, match=r"results/mine/volumes.txt is there already"):
        new_dataset.new_dataset(new_dataset.parse_args(words))
    assert (tmp_path / "results/mine/volumes.txt").read_text() == "which volumes I left out, and why"


def test_a_link_to_nothing_is_there_too(tmp_path):
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "gone")
    for refuse in (lambda: refuse_existing(link, "--dest"), lambda: refuse_overwriting(link)):
        with pytest.raises(UserError, match="link is there"):
            refuse()


# -- the folder of a run ----------------------------------------------------------------------------------------------


def arguments(site, run, *more):
    words = ["--target_dataset", site, "--workdir", run, "--target_folders", FOLDERS, "--target_losses", CROSS_ENTROPY]
    words += ["--n_class", 2, "--grp_regex", r"(Case\d+)_(\d+)", "--network", "Dimwit", "--n_epoch", 1, "--cpu"]
    return list(map(str, [*words, "--resume", *more]))


def test_a_run_goes_into_a_folder_of_its_own(sites, tmp_path):
    run, site = tmp_path / "run", shutil.copytree(sites[1], tmp_path / "site", ignore=lambda *_: {".cache"})
    run.mkdir()
    (run / "params.txt").write_text("mine")
    times = run.stat().st_mtime_ns
    for folder in (run, site, site / "val"):
        before = contents(site, run)
        with pytest.raises(UserError, match=f"{folder} is there, and main.py did not begin it"):
            program.main(arguments(site, folder))
        assert contents(site, run) == before
    assert run.stat().st_mtime_ns == times
    (run / "params.txt").unlink()
    (run / ".hidden").touch()  # as of a file system
    program.main(arguments(site, run))
    wrote = {"params.txt", "provenance.json", "last.pkl", "best_3d.pkl", "patients_last.csv", "last_epoch"}
    assert wrote - {"last_epoch"} <= made_by_run(run)
    assert strangers(run) == []
    (run / "NOTES.txt").write_text("mine")
    program.main(arguments(site, run))
    assert strangers(run) == ["NOTES.txt"]
    for mark in (MADE, f".of-{RUN}"):
        (run / mark).unlink()
    program.main(arguments(site, run))  # a run of before
    json.loads((run / "provenance.json").read_text())
