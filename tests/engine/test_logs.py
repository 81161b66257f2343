"""What --log writes, read back with the programs' own readers: each epoch of the csv once, whatever stopped the run."""

import io
import os
import re
import shutil
import socket
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import train_source, write_prior, write_site
from PIL import Image

import main as program
from engine.logs import base
from engine.logs.base import LOGS, About, Log
from engine.logs.keeping import Logs
from engine.logs.mlflow import MLflow
from engine.recorder import is_due
from engine.shown_slices import NUMBER, Shown, rows_shown
from files.run_names import shown_name
from processes.errors import UserError
from processes.lock import finished, move
from tests.engine.test_label_guard import SCORE_COLUMNS
from tests.tools.chaos import EPOCHS, arguments
from tests.tools.checkout import ROOT
from utils import read_literal

CSV = "IMG_target_metrics.csv"
EVERY = 2  # epochs of a picture


class Killed(BaseException):
    """The process is gone."""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return write_site(tmp_path_factory.mktemp("logs") / "site", 150, 90, seed=2)


# ------------------------------------------------------------------------------------------------------- readers


def read_tensorboard(folder):
    """Scalars {column: [(epoch, value, time)]}, images {epoch: pixels}, words: as TensorBoard would show them."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    events.Reload()
    scalars = {tag: [(e.step, e.value, e.wall_time) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    shown = events.Images("val") if events.Tags()["images"] else []
    words = [events.Tensors(f"{tag}/text_summary")[0].tensor_proto.string_val[0].decode() for tag in ("flags", "run")]
    told = {name: value for name, _, value in (line.strip().partition(": ") for line in "".join(words).splitlines())}
    return SimpleNamespace(
        scalars=scalars, images={e.step: pixels(io.BytesIO(e.encoded_image_string)) for e in shown}, words=told
    )


def read_mlflow(folder):
    """The same out of a store of MLflow, and the run as it stands there."""
    tracking = pytest.importorskip("mlflow.tracking")
    client = tracking.MlflowClient(tracking_uri=f"sqlite:///{folder.resolve()}/mlflow.db")
    experiments = [each for each in client.search_experiments() if each.name != "Default"]
    (run,) = client.search_runs([each.experiment_id for each in experiments])
    histories = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    scalars = {name: [(e.step, e.value, e.timestamp / 1000) for e in every] for name, every in histories.items()}
    for name, value in run.data.metrics.items():  # what its table of runs shows
        assert value == max(scalars[name])[1]
    found = [each.path for each in client.list_artifacts(run.info.run_id, "images") if each.path.endswith(".png")]
    images = {
        int(re.search(r"step\W(\d+)", path)[1]): client.download_artifacts(run.info.run_id, path) for path in found
    }
    assert len(images) == len(found)
    return SimpleNamespace(
        scalars=scalars,
        images={step: pixels(path) for step, path in images.items()},
        words=run.data.params | run.data.tags,
        run=run,
        experiments=experiments,
    )


def pixels(file):
    return np.asarray(Image.open(file).convert("RGB"))


READ = {"tensorboard": read_tensorboard, "mlflow": read_mlflow}


def log(run):
    return pd.read_csv(run / CSV)


# ------------------------------------------------------------------------------------------ a run with many stops


@pytest.fixture(scope="module", params=READ)
def told(request, site):
    """A run that was killed twice, and ended and moved into place the third time, with what its log was meanwhile."""
    name, attempts = request.param, []
    if missing := [each for each in LOGS[name].packages if base.find_spec(each) is None]:
        pytest.skip(f"{', '.join(missing)} is not installed, which tests/requirements.txt names")
    run = site.parent / f"{name}_tmp"
    argv = arguments(site, run, "--network", "Dimwit", "--l_rate", 0.1, "--log", name, "--log_images", EVERY)
    add = Logs.add

    def before(self, done):
        if done == 2:
            raise Killed
        add(self, done)

    def after(self, done):
        add(self, done)
        if done == 3:
            raise Killed

    def ask(*where, **_):
        attempts.append(where)
        raise OSError("there is no network")

    held = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", ask)
        patch.setattr(socket.socket, "connect", ask)
        for killing in (before, after):
            patch.setattr(Logs, "add", killing)
            with pytest.raises(Killed):
                program.main(argv)
            patch.setattr(Logs, "add", add)
            held.append(READ[name](run / name))
        last = run / "last.pkl"
        last.write_bytes(last.read_bytes()[:1000])  # the run goes back to the checkpoint before
        program.main(argv)
    move(run, finished(run))
    return SimpleNamespace(name=name, run=finished(run), argv=argv, held=held, attempts=attempts)


def test_it_was_behind_the_csv_and_ahead_of_it(told):
    assert [len(each.scalars["seconds"]) for each in told.held] == [1, 3]


def test_each_epoch_of_the_csv_is_in_it_once(told):
    table, found = log(told.run), READ[told.name](told.run / told.name)
    assert len(table) == EPOCHS
    assert set(found.scalars) == set(table.dropna(axis=1, how="all"))
    assert {"tra_loss_tot", "val_dice_3d", "val_hd95_vox_1", "lr"} <= set(found.scalars)
    for column, cells in found.scalars.items():
        filled = table[column].dropna()
        assert [step for step, _, _ in cells] == filled.index.tolist()
        np.testing.assert_allclose([value for _, value, _ in cells], filled, rtol=1e-6)
    times = [time for _, _, time in found.scalars["epoch"]]
    np.testing.assert_allclose(np.diff(times), table["seconds"][1:], atol=60)
    assert times == sorted(times)


def test_its_pictures_are_those_of_the_run(told):
    found = READ[told.name](told.run / told.name)
    assert sorted(found.images) == [epoch for epoch in range(EPOCHS) if is_due(epoch, EVERY, EPOCHS)] == [2, 3]
    for epoch, picture in found.images.items():
        assert (picture == pixels(told.run / shown_name(epoch))).all()
        assert picture.std() > 0


def test_it_names_the_run_its_flags_and_its_code(told):
    words = READ[told.name](told.run / told.name).words
    provenance = program.Path(told.run / "provenance.json").read_text()
    assert words["set"] == "site"
    assert words["seed"] == "0"
    assert words["commit"] in provenance
    assert words["folder"] == str(told.run)
    assert words["l_rate"] == "0.1"
    assert read_literal(words["target_losses"]) == read_literal(told.argv[told.argv.index("--target_losses") + 1])


def test_no_network_is_asked(told):
    assert told.attempts == []


GOES_ON = """
import socket, sys, threading
from pathlib import Path
def ask(*where, **_):
    print("asked", where)
    raise OSError
socket.getaddrinfo = socket.socket.connect = ask
from engine.logs.base import About
from engine.logs.mlflow import MLflow
log = MLflow(Path(sys.argv[1]), About("run", "site", {}, {}))
print("holds", log.begin(int(sys.argv[2])))
log.client.create_experiment("other")  # which MLflow reports
for thread in threading.enumerate():
    if thread is not threading.current_thread():
        thread.join(1)
"""


def test_mlflow_reports_no_use_where_it_would(told, tmp_path):
    """Under pytest and in a CI it never does, so this is a process that knows of neither."""
    if told.name != "mlflow":
        pytest.skip("TensorBoard reports nothing")
    folder = shutil.copytree(told.run / "mlflow", tmp_path / "mlflow")
    command = [sys.executable, "-c", GOES_ON, str(folder), str(EPOCHS)]
    usual = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(command, cwd=ROOT, env=usual, capture_output=True, text=True)
    assert done.stdout == f"holds {EPOCHS}\n", done.stderr


def test_a_run_of_mlflow_stays_the_same_one_and_says_that_it_is_whole(told):
    if told.name != "mlflow":
        pytest.skip("TensorBoard knows a run by its folder")
    found = read_mlflow(told.run / "mlflow")
    assert {each.run.info.run_id for each in told.held} == {found.run.info.run_id}
    assert [each.run.info.status for each in told.held] == ["RUNNING"] * 2
    assert found.run.info.status == "FINISHED"
    assert found.run.info.run_name == "mlflow"  # as the folder is called
    assert found.run.info.artifact_uri.startswith(str(told.run / "mlflow"))
    assert [each.name for each in found.experiments] == ["site"]


def test_a_store_that_is_torn_is_made_again(tmp_path, monkeypatch, capsys):
    begun = []
    monkeypatch.setattr(MLflow, "_start", lambda self: begun.append(self.folder.exists()))
    (tmp_path / "mlflow").mkdir()
    (tmp_path / "mlflow" / "mlflow.db").write_bytes(b"SQLite format 3\0" + b"\xff" * 5000)
    assert MLflow(tmp_path / "mlflow", About("run", "site", {}, {})).begin(3) == 0
    assert begun == [False]
    assert "mlflow.db cannot be gone on with" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a%20b", "a?b"])
def test_a_path_that_mlflow_takes_for_an_address_is_told(tmp_path, name):
    run = tmp_path / name
    with pytest.raises(UserError, match=r"--log mlflow cannot write to .* \(MLflow opens no database whose path holds"):
        Logs(["mlflow"], run, run / CSV, About("run", "site", {}, {})).begin(0)
    assert [*tmp_path.iterdir()] == []


# ------------------------------------------------------------------------------------------- what keeps them


class Kept(Log):
    """A log in the memory, which fails where it is told to."""

    packages, install = (), ""
    held, fails, ended = {}, set(), []

    def begin(self, done):
        if "begin" in self.fails:
            raise OSError("nothing can be opened")
        self.held.pop(done, None)
        return len(self.held)

    def add(self, entry):
        if entry.epoch in self.fails:
            raise OSError("the disk is full")
        assert entry.epoch not in self.held
        self.held[entry.epoch] = entry

    def end(self, place):
        self.ended.append(place)


@pytest.fixture
def kept(monkeypatch):
    monkeypatch.setitem(LOGS._entries, "kept", Kept)
    for name, empty in (("held", {}), ("fails", set()), ("ended", [])):
        monkeypatch.setattr(Kept, name, empty)
    return Kept


SMALL = ("--network", "Dimwit", "--log_images", 0)


def test_a_log_that_fails_stops_no_run(site, tmp_path, kept, monkeypatch, capsys):
    kept.fails.add(1)
    add = Logs.add

    def mended(self, done):
        kept.fails -= {1} if done == 4 else set()
        add(self, done)

    monkeypatch.setattr(Logs, "add", mended)
    program.main(arguments(site, tmp_path / "run", *SMALL, "--log", "kept"))
    said = capsys.readouterr().err
    assert said.count("--log kept cannot write to") == 1
    assert "the disk is full). The run goes on" in said
    assert [*kept.held] == [*range(EPOCHS)]
    assert kept.ended == [tmp_path / "run" / "kept"]


def test_a_log_that_is_asked_for_later_is_told_everything(site, tmp_path, kept):
    argv = arguments(site, tmp_path / "run_tmp", *SMALL)
    program.main(argv)
    before = (tmp_path / "run_tmp" / CSV).read_bytes()
    program.main([*argv, "--log", "kept"])
    assert (tmp_path / "run_tmp" / CSV).read_bytes() == before
    table = log(tmp_path / "run_tmp")
    assert [entry.values for entry in kept.held.values()] == [row.dropna().to_dict() for _, row in table.iterrows()]
    assert kept.ended == [tmp_path / "run" / "kept"]
    assert not (tmp_path / "run_tmp" / "shown").exists()


def test_one_that_cannot_be_opened_is_told_before_the_first_epoch(site, tmp_path, kept):
    kept.fails.add("begin")
    with pytest.raises(UserError, match=r"--log kept cannot write to .*nothing can be opened.*leave kept out of --log"):
        program.main(arguments(site, tmp_path / "run", *SMALL, "--log", "kept"))
    assert not (tmp_path / "run" / "last.pkl").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("tensorbord", r"There is no log 'tensorbord'. Did you mean 'tensorboard'\?"),
        ("mlflow,mlflow", "--log names mlflow twice"),
        ("TensorBoard", r"--log tensorboard needs tensorboard, .*: pip install tensorboard==[\d.]+, or leave"),
        ("mlflow", r"--log mlflow needs mlflow, sqlalchemy, alembic, .*: pip install mlflow==[\d.]+, or leave"),
    ],
)
def test_what_cannot_be_logged_is_told_in_a_line(site, tmp_path, words, said, monkeypatch):
    monkeypatch.setattr(base, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=said) as told:
        program.main(arguments(site, tmp_path / "run", "--log", words))
    assert "\n" not in str(told.value)
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------- what labels may do


def test_labels_reach_no_number_of_an_adaptation_but_scores(site, tmp_path, kept):
    """The run is made with labels and without: a log is told the same numbers, and pictures are drawn all the same."""
    source, prior = train_source(site), write_prior(tmp_path / "prior.csv", site)
    bounds = {"sizefile": str(prior), "predcol": "dumbpredwtags", "margin": 0, "dir": "high"}
    words = ["--method", "sfda", "--model_weights", source, "--n_epoch", 2, "--network", "Dimwit", "--do_hd", 0]
    words += ["--target_losses", f"[('EntKLProp', {{}}, 'PredictionBounds', {bounds}, 'soft_size', 1)]"]
    words += ["--log", "kept", "--log_images", 1, "--augmentation", "{'rotate': 0}"]
    program.main(arguments(site, tmp_path / "with", *words))
    first = dict(kept.held)
    kept.held.clear()
    blind = shutil.copytree(site, tmp_path / "site")
    for labels in blind.glob("*/GT"):
        shutil.rmtree(labels)
    program.main(arguments(blind, tmp_path / "without", *words, "--target_folders", "[('IMG', png_transform, False)]"))
    for epoch in range(2):
        told, other = first[epoch].values, kept.held[epoch].values
        same = {name for name in told if name in other and not re.fullmatch(SCORE_COLUMNS, name)}
        assert {"tra_loss_tot", "val_size_mean", "alarms"} <= same
        assert {name: told[name] for name in same} == {name: other[name] for name in same}
        assert kept.held[epoch].picture == tmp_path / "without" / shown_name(epoch)


# ------------------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize(
    ("patients", "rows"),
    [
        ("AAABBBCCCDDD", [1, 4, 7, 10]),  # the middle slice of each
        ("AABBCCCCCDEEFF", [3, 9, 11, 13]),  # of B, D, E and F
        ("AAAAAAAA", [1, 3, 5, 7]),
        ("AAB", [0, 1, 2]),
    ],
)
def test_slices_are_shown_by_their_order_alone(patients, rows):
    assert len(rows_shown(patients)) == min(NUMBER, len(patients))
    assert rows_shown(patients) == rows


class Images:
    """Slices (1, 16, 20), or volumes of five of them, with a square as ground truth or without any."""

    def __init__(self, root, axes, square):
        self.axes, self.square, self.has_truth = axes, square, square is not None
        self.root, self.names, self.patients, self.spacing = (
            root,
            ["a_0", "b_0"],
            ["a", "b"],
            {"a": (3, 1, 1), "b": (3, 1, 2)},
        )

    def image(self, row):
        size = (1, 16, 20) if self.axes == 2 else (1, 5, 16, 20)
        return np.random.default_rng(row).random(size, np.float32)

    def labels(self, rows):
        assert self.has_truth, "nothing is known"
        label = np.zeros((16, 20), np.uint8)
        label[self.square : self.square + 6, 4:12] = 1
        return [label if self.axes == 2 else np.stack([np.zeros_like(label)] * 2 + [label] * 3) for _ in rows]


def drawn(folder, axes, square, predicted, **card):
    """The picture of predictions that are a square, too."""
    images = Images(folder, axes, square)
    (folder / "params.txt").write_text("metric_axis: [1]\nignore: None\n")
    provenance = {"dataset": {"path": "set", "phantom": None} | card, "n_class": 2, "scored": images.has_truth}
    masks = Images(folder, axes, predicted).labels([0, 1])
    Shown(folder, provenance, images).draw(3, masks)
    return pixels(folder / "shown/epoch_0003.png")


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("card", [{}, {"palette": [[0, 0, 0], [0, 200, 0]]}], ids=["outlines", "colours"])
def test_a_picture_shows_the_prediction_and_the_truth_where_there_is_one(tmp_path, axes, card):
    usual = drawn(tmp_path, axes, 3, 6, **card)
    assert (drawn(tmp_path, axes, 3, 6, **card) == usual).all()
    assert (drawn(tmp_path, axes, 5, 6, **card) != usual).any()
    assert (drawn(tmp_path, axes, 3, 8, **card) != usual).any()
    blind = drawn(tmp_path, axes, None, 6, **card)
    assert (drawn(tmp_path, axes, None, 8, **card) != blind).any()
    green = (usual == [0, 200, 0]).all(-1).sum(), (blind == [0, 200, 0]).all(-1).sum()
    assert green == (0, 0) if not card else green[0] > 1.5 * green[1] > 0  # the truth below is as large


def test_a_picture_of_made_up_images_says_so(tmp_path):
    (red,) = {(176, 0, 32)}
    assert (drawn(tmp_path, 2, 3, 6, phantom="small") == red).all(-1).mean() > 0.03
    assert not (drawn(tmp_path, 2, 3, 6) == red).all(-1).any()
