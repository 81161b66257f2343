"""choose.py: one network for a target among those of several runs; which runs it takes, and that no label moves it."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CROSS_ENTROPY, all_here, write_prior, write_site
from PIL import Image

import choose as program
import main as training
from files.run_names import CHOSEN, candidate_name
from nets.checkpoint_files import load_checkpoint
from processes.alone import run_alone
from processes.errors import UserError
from selection import choosing
from tests.tools.chaos import _bits as bits
from tests.tools.chaos import arguments as of_chaos
from tests.tools.opened import watched

pytestmark = pytest.mark.usefixtures("quick_spawns")

NETWORK = ("--network", "Dimwit")
IMAGES = "[('IMG', png_transform, False)]"
ENTROPY = "[('SelfEntropy', {}, 1)]"
KEPT = ("--keep_every", 1)


@pytest.fixture(scope="module", autouse=True)
def chosen_here():
    with all_here(training, program):
        yield


def sized(prior, column):
    told = {"sizefile": str(prior), "predcol": column, "margin": 0, "dir": "high"}
    return f"[('EntKLProp', {{}}, 'PredictionBounds', {told}, 'norm_soft_size', 1)]"


class Runs:
    """A source, a target, and adaptations to it, each made when it is asked for."""

    def __init__(self, root):
        self.root = root
        self.target, self.source = (write_site(root / name, *grey, seed) for name, grey, seed in SITES)
        self.prior = write_prior(root / "prior.csv", self.target)
        training.main(of_chaos(self.source, root / "cesource", *NETWORK, "--n_epoch", 8, "--l_rate", 3e-2))
        self.weights = root / "cesource" / "last.pkl"

    def train(self, name, *more, site=None):
        run = self.root / name
        if not run.exists():
            start = ("--model_weights", self.weights, "--method", "sfda", "--target_losses", ENTROPY)
            epochs = ("--n_epoch", 3, "--augment", 0)
            training.main(of_chaos(site or self.target, run, *NETWORK, *start, *epochs, *more))
        return run

    def __call__(self, name):
        return self.train(name, *self.flags(name))

    def flags(self, name):
        return [sized(self.prior, flag[1:]) if str(flag).startswith("@") else flag for flag in LINES[name]]


SITES = (("target", (150, 90), 2), ("cesource_site", (200, 60), 1))
LINES = {
    "sfda": (*KEPT, "--target_losses", "@dumbpredwtags"),
    "tent": (*KEPT, "--trainable", "bn", "--l_rate", 0.1),
    "selftrain": ("--method", "self_training", "--target_losses", CROSS_ENTROPY),
    "unmoved": (*KEPT, "--l_rate", 0, "--bn_stats", "freeze"),
    "SFDA_TrueSize": ("--target_losses", "@val_gt_size"),
    "fs": ("--method", "supervised", "--model_weights", "", "--target_losses", CROSS_ENTROPY),
    "noadap": ("--method", "noadap"),
    "debug": ("--debug",),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("runs"))


def choose(out, *runs, more=()):
    program.main(["--runs", *map(str, runs), "--out", str(out), "--device", "cpu", *more])
    return pd.read_csv(out / "selection.csv", keep_default_na=False)


def test_the_candidates_are_the_source_its_refresh_and_what_each_run_brings(runs, tmp_path, capsys):
    brought = [runs(name) for name in ("sfda", "tent", "selftrain")]
    capsys.readouterr()
    table = choose(tmp_path / "out", *brought)
    said = capsys.readouterr().out
    kept = [run for run in brought if not starts_anew(run)]
    assert kept
    assert table["candidate"].tolist() == ["source", "refresh", *(run.name for run in kept)]
    assert table["epoch"].tolist() == [0, 0, *(network_of(run)[1] for run in kept)]
    assert f"{brought[2]} kept no epochs to choose from (--keep_every): it brings its last network." in said
    reason = (tmp_path / "out" / "selection.txt").read_text()
    assert said.endswith(reason)
    chosen = load_checkpoint(tmp_path / "out" / CHOSEN)
    (name,) = table["candidate"][table["chosen"] == 1]
    assert chosen["choice"] == {"candidate": name, "epoch": chosen["epoch"] + 1, "why": reason.strip()}
    if name not in ("source", "refresh"):
        assert bits(chosen["net"]) == bits(load_checkpoint(network_of(runs(name))[0])["net"])
    assert not {"method", "best", "alarms"} & chosen.keys()
    assert "bundle" in chosen


def starts_anew(run):
    file = run / CHOSEN
    return file.exists() and load_checkpoint(file)["choice"]["candidate"] in ("source", "refresh")


def network_of(run):
    """The file that a run brings, and the epochs that its network has behind it."""
    if (run / CHOSEN).exists():
        return run / CHOSEN, load_checkpoint(run / CHOSEN)["choice"]["epoch"]
    return run / "last.pkl", 3


def test_what_was_chosen_is_scored_by_a_run_of_it(runs, tmp_path):
    choose(tmp_path / "out", runs("sfda"), runs("tent"))
    run = runs.train(tmp_path / "chosen", "--method", "noadap", "--model_weights", tmp_path / "out" / CHOSEN)
    assert pd.read_csv(run / "patients_last.csv")["dice"].notna().any()
    assert "bundle" in load_checkpoint(run / "last.pkl")


def test_the_choice_of_a_single_run_is_its_own(runs, tmp_path, capsys):
    run = runs("sfda")
    capsys.readouterr()
    choose(tmp_path / "out", run)
    for name in (CHOSEN, "selection.csv", "selection.txt"):
        assert (tmp_path / "out" / name).read_bytes() == (run / name).read_bytes()
    assert capsys.readouterr().out == (run / "selection.txt").read_text()


def test_a_single_run_that_chose_nothing_is_compared_with_its_start(runs, tmp_path):
    table = choose(tmp_path / "out", runs("selftrain"))
    assert table["candidate"].tolist() == ["source", "refresh", "selftrain"]


def test_runs_of_one_name_are_told_apart(runs, tmp_path):
    one, two = (shutil.copytree(runs("selftrain"), tmp_path / name / "selftrain") for name in "ab")
    three = shutil.copytree(runs("selftrain"), tmp_path / "source")
    four = shutil.copytree(runs("selftrain"), tmp_path / "=1+1\n,\u202e")
    table = choose(tmp_path / "out", one, two, three, four)
    assert table["candidate"].tolist() == ["source", "refresh", *map(str, (one, two, three)), "'=1+1\\n,\\u202e"]
    assert (tmp_path / "out" / "selection.txt").read_text().count("\n") == 1


def test_a_run_that_kept_its_start_is_no_candidate_twice(runs, tmp_path, capsys):
    run = runs("unmoved")
    assert starts_anew(run)
    table = choose(tmp_path / "out", run, runs("selftrain"))
    assert table["candidate"].tolist() == ["source", "refresh", "selftrain"]
    assert f"{run} is an adaptation that chose its " in capsys.readouterr().out


# -- several source networks -----------------------------------------------------------------------------------------


def another_source(runs, site, folder):
    """A network that learnt in another way, and a run of it on the target as it is."""
    training.main(of_chaos(site, folder / "ce", *NETWORK, "--n_epoch", 4, "--l_rate", 3e-2, "--augment"))
    weights = folder / "ce" / "last.pkl"
    return runs.train(folder / "noadap_other", "--method", "noadap", "--model_weights", weights)


def test_source_networks_that_learnt_in_another_way_are_candidates(runs, tmp_path, capsys):
    other = another_source(runs, runs.source, tmp_path)
    adapted = runs.train(tmp_path / "tent_other", *LINES["unmoved"], "--model_weights", tmp_path / "ce" / "last.pkl")
    table = choose(tmp_path / "out", runs("noadap"), runs("selftrain"), other, adapted)
    assert table["candidate"].tolist() == ["source", "refresh", "selftrain", "noadap_other", "tent_other"]
    assert f"{runs('noadap')} is the source network as it is, which is a candidate anyway." in capsys.readouterr().out
    scores = table.set_index("candidate")
    kept = load_checkpoint(adapted / CHOSEN)["choice"]["candidate"]
    if kept == "source":
        assert scores.cmr_ei["noadap_other"] == pytest.approx(scores.cmr_ei["tent_other"], abs=1e-6)
    assert scores.cmr_ei["noadap_other"] != pytest.approx(scores.cmr_ei["source"], abs=1e-6)
    alone = choose(tmp_path / "alone", other)
    assert alone["candidate"].tolist() == ["source", "refresh"]
    assert alone["cmr_ei"][0] == pytest.approx(scores.cmr_ei["noadap_other"], abs=1e-6)


def test_the_network_of_another_source_is_handed_on(runs, tmp_path, monkeypatch):
    other = another_source(runs, runs.source, tmp_path)
    decide = choosing.decide

    def last(seen, candidates, **more):
        return replace(decide(seen, candidates, **more), place=len(candidates) - 1)

    monkeypatch.setattr(choosing, "decide", last)
    monkeypatch.setattr(program, "run_alone", lambda function, *words: function(*words))
    choose(tmp_path / "out", runs("tent"), other)
    chosen, own = load_checkpoint(tmp_path / "out" / CHOSEN), load_checkpoint(other / "last.pkl")
    assert chosen["choice"]["candidate"] == "noadap_other"
    assert bits(chosen["net"]) == bits(own["net"])
    assert bits(chosen["bundle"]) == bits(own["bundle"])


def start_at(taken, runs, tmp_path, monkeypatch):
    """The checkpoint of a start where this candidate is taken, and those candidates."""
    other, decide, names = another_source(runs, runs.source, tmp_path), choosing.decide, []

    def as_told(seen, candidates, is_start):
        assert is_start
        names.extend(each.name for each in candidates)
        return replace(decide(seen, candidates, is_start=True), place=names.index(taken), reason="Told so.")

    with monkeypatch.context() as patch:
        patch.setattr(choosing, "decide", as_told)
        patch.setattr(program, "run_alone", lambda function, *words: function(*words))
        choose(tmp_path / "out", runs("noadap"), other, more=("--start",))
    run = runs.train(tmp_path / "sfda", *LINES["unmoved"], "--model_weights", tmp_path / "out" / CHOSEN)
    assert (run / CHOSEN).is_file()
    return load_checkpoint(tmp_path / "out" / CHOSEN), names


@pytest.mark.parametrize("taken", ["refresh", "noadap_other"])
def test_a_start_is_a_source_network(runs, tmp_path, monkeypatch, taken):
    """Also where its refresh is taken, which an adaptation makes itself."""
    start, names = start_at(taken, runs, tmp_path, monkeypatch)
    assert names == ["source", "refresh", "noadap_other", "noadap_other, refresh"]
    weights = runs.weights if taken == "refresh" else tmp_path / "ce" / "last.pkl"
    assert bits(start["net"]) == bits(load_checkpoint(weights)["net"])
    words = "Told so. Adaptations begin at the source network itself, and make its refresh a candidate."
    assert start["choice"]["why"] == (words if taken == "refresh" else "Told so.")


def test_a_start_is_the_refresh_of_another_source_network(runs, tmp_path, monkeypatch):
    start, _ = start_at("noadap_other, refresh", runs, tmp_path, monkeypatch)
    source = load_checkpoint(tmp_path / "ce" / "last.pkl")
    differ = {name for name, value in start["net"].items() if not torch.equal(value, source["net"][name])}
    assert {name.rsplit(".", 1)[1] for name in differ} == {"running_mean", "running_var", "num_batches_tracked"}
    assert start["choice"]["candidate"] == "noadap_other, refresh"
    assert bits(start["bundle"]) == bits(source["bundle"])


def test_a_source_network_that_knows_the_targets_labels_or_is_gone_is_refused(runs, tmp_path):
    other = another_source(runs, runs.target, tmp_path)
    with pytest.raises(UserError, match=r"starts from \S+/ce/last.pkl, which learnt from labels of \S+/target,"):
        choose(tmp_path / "out", runs("tent"), other)
    (tmp_path / "ce" / "last.pkl").unlink()
    with pytest.raises(UserError, match=r"ce/last.pkl, from which \S+noadap_other started, is gone, so nobody can"):
        choose(tmp_path / "out", runs("tent"), other)
    assert not (tmp_path / "out").exists()


# -- what is refused -----------------------------------------------------------------------------------------------

REFUSED = {
    "SFDA_TrueSize": r"SFDA_TrueSize was told the truth about its target \(PredictionBounds: .*Leave it out",
    "fs": r"fs \(--method supervised\) adapts no whole network without labels",
    "debug": r"not of one kind of network on the same images: --debug: 0, and 1\.",
    "other network": r"its network: Dimwit, and Dimwit:nG=3\.",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_looked_at_labels_or_is_of_another_kind_is_refused(runs, tmp_path, name):
    if name == "other network":
        other = ("--network", "Dimwit:nG=3")
        training.main(of_chaos(runs.source, tmp_path / "ce", *other, "--n_epoch", 1))
        run = runs.train(tmp_path / "run", *other, "--model_weights", tmp_path / "ce" / "last.pkl")
    else:
        run = runs(name)
    with pytest.raises(UserError, match=REFUSED[name]):
        choose(tmp_path / "out", runs("sfda"), run)
    assert not (tmp_path / "out").exists()


def test_other_images_are_refused(runs, tmp_path):
    site = shutil.copytree(runs.target, tmp_path / "site")
    run = runs.train(tmp_path / "run", site=site)
    with pytest.raises(UserError, match=r"--target_dataset: \S+/target, and \S+/site\."):
        choose(tmp_path / "out", runs("sfda"), run)


def test_a_run_that_is_not_finished_is_refused(runs, tmp_path):
    run = shutil.copytree(runs("sfda"), tmp_path / "run")
    (run / CHOSEN).unlink()
    with pytest.raises(UserError, match="run is not finished"):
        choose(tmp_path / "out", run)
    with pytest.raises(UserError, match=r"holds no chosen.pkl and no last.pkl"):
        choose(tmp_path / "out", tmp_path)


def test_the_flags_in_a_checkpoint_are_read_and_not_believed(runs, tmp_path):
    run = shutil.copytree(runs("selftrain"), tmp_path / "run")
    state = load_checkpoint(run / "last.pkl")
    for name, value, said in (("n_class", "two", "invalid int value"), ("unheard", 1, "unrecognized arguments")):
        training.torch.save(state | {"identity": state["identity"] | {name: value}}, run / "last.pkl")
        with pytest.raises(UserError, match=rf"last.pkl tells of a run that cannot be read: .*{said}"):
            choose(tmp_path / "out", run)


def test_folders_of_others_and_choices_that_are_there_are_left(runs, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(UserError, match="choose.py did not begin it"):
        choose(tmp_path / "mine", runs("sfda"))
    with pytest.raises(UserError, match="choose.py did not begin it"):
        choose(runs("tent"), runs("sfda"))
    choose(tmp_path / "out", runs("sfda"))
    before = (tmp_path / "out" / CHOSEN).read_bytes()
    with pytest.raises(UserError, match="holds a choice already; give --overwrite"):
        choose(tmp_path / "out", runs("selftrain"))
    assert (tmp_path / "out" / CHOSEN).read_bytes() == before
    table = choose(tmp_path / "out", runs("selftrain"), more=("--overwrite",))
    assert "selftrain" in table["candidate"].tolist()


# -- where the source network is -----------------------------------------------------------------------------------


def test_the_source_network_is_that_of_a_copy_or_of_the_line(runs, tmp_path, monkeypatch):
    run, other = runs("tent"), shutil.copytree(runs("tent"), tmp_path / "tent")
    (other / candidate_name(0)).unlink()
    tables = [choose(tmp_path / each.parent.name, each, runs("selftrain")) for each in (run, other)]
    assert tables[0].equals(tables[1])
    moved = shutil.move(runs.weights, tmp_path / "moved.pkl")
    try:
        with pytest.raises(UserError, match=r"cesource/last.pkl, from which \S+ started, is gone"):
            choose(tmp_path / "out", other, runs("selftrain"))
        shutil.copy(runs("selftrain") / "last.pkl", runs.weights)
        with pytest.raises(UserError, match="is another one now"):
            choose(tmp_path / "out", other, runs("selftrain"))
    finally:
        shutil.move(moved, runs.weights)


# -- labels --------------------------------------------------------------------------------------------------------


def test_its_process_opens_no_ground_truth(runs, tmp_path, monkeypatch):
    for cache in runs.target.glob("*/.cache"):
        shutil.rmtree(cache)
    monkeypatch.setattr(program, "run_alone", lambda *words: run_alone(watched, tmp_path / "opened", *words))
    choose(tmp_path / "out", runs("tent"), runs("selftrain"))
    opened = [Path(line) for line in (tmp_path / "opened").read_text().splitlines()]
    of_site = [path.relative_to(runs.target).parts for path in opened if path.is_relative_to(runs.target)]
    assert ("train", "IMG") in of_site
    assert {parts[0] for parts in of_site} <= {"train", "dataset.json", "manifest.csv"}
    assert not [parts for parts in of_site if "GT" in parts]


@pytest.mark.parametrize("variant", ["wiped", "at random", "absent"])
def test_no_label_of_the_target_moves_it(runs, tmp_path, variant):
    site = shutil.copytree(runs.target, tmp_path / "target")
    rng = np.random.default_rng(0)
    for label in site.glob("*/GT/*.png"):
        if variant == "absent":
            label.unlink()
        else:
            noise = rng.random((24, 20)) < (0.5 if variant == "at random" else 0)
            Image.fromarray(noise.astype(np.uint8)).save(label)
    folders = ("--target_folders", IMAGES) if variant == "absent" else ()
    others = []
    for name in ("sfda", "tent"):
        others.append(runs.train(tmp_path / name, *runs.flags(name), *folders, site=site))
    choose(tmp_path / "labelled", runs("sfda"), runs("tent"))
    choose(tmp_path / "other", *others)
    for name in ("selection.csv", "selection.txt"):
        assert (tmp_path / "labelled" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()
    states = [load_checkpoint(tmp_path / name / CHOSEN) for name in ("labelled", "other")]
    for name in ("net", "choice", "epoch", "network"):
        assert bits(states[0][name]) == bits(states[1][name])
