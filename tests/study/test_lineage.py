"""The lineage of a cell: each link is told, and what changed since a run noted it."""

import hashlib
import json
import shutil

import pytest
from fake_runs import add_selection, make_run, make_set

from processes.errors import UserError
from study.asking import Asked, write_asked
from study.lineage import hash_now, main
from tests.analysis.test_report import rescore

DICE = {0: (0.5, 0.3), 1: (0.9, 0.7)}  # seed -> of P0 and P1; their mean is 0.6
LINKS = ["input", "slices", "split", "prior", "line", "code", "network", "cell", "start"]
LOSS = (
    "[('EntKLProp', {'lamb_se': 1}, 'PredictionBounds', {'predcol': 'tags', 'sizefile': 'sizes.csv'}, 'soft_size', 1)]"
)


def sha(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with volumes, a set cut from them, a table of sizes, and a study of one row and two seeds."""
    root = tmp_path_factory.mktemp("lineage")
    data = make_set(root / "data/toy", n_patient=2, n_slice=2, size=(16, 16))
    volumes = [root / f"volumes/P{number}.nii" for number in range(2)]
    volumes[0].parent.mkdir()
    for number, path in enumerate(volumes):
        path.write_bytes(bytes([number]))
    (root / "sizes.csv").write_text("val_ids,tags\n")
    sources = [{"path": f"volumes/{path.name}", "sha256": sha(path)} for path in volumes]
    card = {"name": "toy", "split_unit": "patient", "sources": sources, "split_rule": {"val": "2 drawn", "seed": 3}}
    (data / "dataset.json").write_text(json.dumps(card))
    noted = {"val": "a" * 64, "target": "b" * 64, "code of gt_transform": "c" * 64, "bounds of target": "d" * 64}
    command = ["python", "main.py", "--l_rate", "1", "--target_losses", LOSS, "--l_rate", "0.5", "--resume"]
    told = {"commit": "e" * 40, "diff": "+ a line\n- another", "code": "f" * 64, "versions": {"torch": "2.13.0"}}
    told |= {"dataset": {"path": "data/toy", "phantom": None} | card, "training_volumes": ["P8", "P9"]}
    whole = make_run(root / "whole", data, n_epoch=1, pictures=False, command=command, inputs=noted, **told)
    with (whole / "params.txt").open("a") as file:
        file.write(f"target_losses: {LOSS}\n")
    for seed, (first, second) in DICE.items():
        source = shutil.copytree(whole, root / f"study/seed{seed}/cesource")
        (source / "last.pkl").write_text(f"weights of {seed}")
        run = shutil.copytree(whole, root / f"study/seed{seed}/sfda")
        (run / "last.pkl").write_text(f"adapted {seed}")
        with (run / "params.txt").open("a") as file:
            file.write(f"seed: {seed}\nmodel_weights: study/seed{seed}/cesource/last.pkl\n")
        facts = json.loads((run / "provenance.json").read_text())
        facts["inputs"]["model_weights"] = sha(source / "last.pkl")
        (run / "provenance.json").write_text(json.dumps(facts))
        rescore(run, {"P0": {1: first}, "P1": {1: second}})
    write_asked(root / "study", Asked("toy", ("sfda",), (0, 1)))
    return root


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    """A copy of it, in which the program is started."""
    monkeypatch.chdir(shutil.copytree(made, tmp_path / "here"))
    hash_now.cache_clear()
    return tmp_path / "here"


def told(capsys, cell="sfda,dice", study="study"):
    main([str(study), "--cell", cell])
    return capsys.readouterr().out


def test_every_link_is_told_of_each_seed_and_of_its_source(place, capsys):
    said = told(capsys)
    assert said.startswith(
        "sfda, dice of the network 'chosen': 0.6, the mean over 2 patients and 2 seeds; 95 % interval "
    )
    first, *others = said.split("\nsfda, seed ")[1:]
    names = [line[2:11].strip() for line in first.splitlines() if line[:2] == "  " and line[2:3] != " "]
    assert names == [*LINKS, *LINKS[:6]]
    assert len(others) == 1
    assert said.count("the same now") == 2 * (2 + 2 + 1)  # volumes and set, of the run and of its source; the start
    for words in (
        "2 files in volumes",
        "data/toy: val aaaaaaaaaaaaaaaa, target bbbbbbbbbbbbbbbb",
        "turned by gt_transform cccccccccccccccc",
        "trained on 2 patients: P8, P9",
        "scored on 2 patients: P0, P1",
        "by the set: val 2 drawn, seed 3",
        f"sizes.csv, column tags: {sha(place / 'sizes.csv')[:16]} now",
        "bounds of target, as the run laid them: dddddddddddddddd",
        f'--target_losses "{LOSS}"',
        f"commit {'e' * 40}, and 2 lines of changes to it in provenance.json",
        "modules ffffffffffffffff, torch 2.13.0",
        f"last.pkl, last epoch: {sha(place / 'study/seed0/sfda/last.pkl')[:16]}",
        f"patients_last.csv: {sha(place / 'study/seed0/sfda/patients_last.csv')[:16]}",
        "P0 0.5, P1 0.3; mean 0.4",
        f"study/seed0/cesource/last.pkl: {sha(place / 'study/seed0/cesource/last.pkl')[:16]}",
        "study/seed0/cesource/last.pkl, which sfda starts from:",
    ):
        assert words in first, words
    assert "--l_rate 0.5" in first
    assert "--l_rate 1" not in first
    assert "AND" not in said


CHANGES = {
    "a volume": ("volumes/P1.nii", "volumes/P1.nii: CHANGED since", 4),
    "the set": ("data/toy/dataset.json", "its dataset.json: CHANGED since", 4),
    "the source network": ("study/seed1/cesource/last.pkl", "CHANGED since", 1),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_changed_since_is_told(place, capsys, what):
    name, words, times = CHANGES[what]
    path = place / name
    path.write_bytes(path.read_bytes().replace(b"toy", b"yot") if path.suffix == ".json" else b"another")
    said = told(capsys)
    assert said.count(words) == said.count("CHANGED") == times


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("volumes", "volumes/P0.nii, volumes/P1.nii: not there any more"),
        ("data", "not there any more"),
        ("sizes.csv", "sizes.csv, column tags: not there any more"),
        ("study/seed0/cesource", "study/seed0/cesource/last.pkl: "),
    ],
)
def test_what_is_gone_is_told(place, capsys, name, words):
    path = place / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    said = told(capsys)
    assert words in said
    assert "not there any more" in said
    assert ": 0.6, the mean" in said


def test_the_table_is_held_against_the_runs(place, capsys):
    assert "headline.csv is not there" in told(capsys)
    table = place / "study/headline.csv"
    line = "row,network,score,class,mean\nsfda,{which},dice,mean,{mean}\n"
    for which, mean, words in (
        ("chosen", "0.6000000001", "says the same."),
        ("chosen", "0.61", "says 0.61: the runs are others since; make the study again."),
        ("last", "0.6", "has no such cell."),
    ):
        table.write_text(line.format(which=which, mean=mean))
        assert words in told(capsys)


def test_a_patient_who_lacks_a_value_in_a_seed_counts_in_none_as_in_the_table(place, capsys):
    rescore(place / "study/seed0/sfda", {"P0": {1: "miss"}, "P1": {1: 0.3}})
    said = told(capsys, "sfda,hd95")
    assert ": 5, the mean over 1 patient and 2 seeds (1 left out, who have no value in some seed)\n" in said
    assert "P0 none, P1 7; mean 7" in said


def test_the_network_that_is_asked_for_is_told(place, capsys):
    run = add_selection(place / "study/seed0/sfda", "source", last=0)
    (run / "chosen.pkl").write_text("the source")
    rescore(run, {"P0": {1: 0.1}, "P1": {1: 0.1}}, ["chosen"])
    assert f"chosen.pkl, source: {sha(run / 'chosen.pkl')[:16]}" in told(capsys)
    assert f"last.pkl: {sha(run / 'last.pkl')[:16]}" in told(capsys, "sfda,dice,last")
    assert "'chosen': 0.45," in told(capsys)
    assert "'last': 0.6," in told(capsys, "sfda,dice,last")


def test_who_was_trained_on_and_scored_is_told(place, capsys):
    path = place / "study/seed1/sfda/provenance.json"
    path.write_text(path.read_text().replace('"P9"', '"P1"'))
    assert told(capsys).count("trained on AND scored: P1") == 1


def test_a_study_that_was_moved_finds_its_source_networks(place, capsys):
    (place / "study").rename(place / "other")
    assert "CHANGED" not in told(capsys, study="other")
    assert "other/seed1/cesource/last.pkl, which sfda starts from:" in told(capsys, study="other")


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("sfda", "--cell is a row and a score"),
        ("sfda,dice,last,1", "--cell is a row and a score"),
        ("sfdb,dice", "has no row 'sfdb'. Did you mean 'sfda'"),
        ("sfda,dize", "knows no 'dize'. Did you mean 'dice'"),
        ("sfda,dice,lost", "knows no 'lost'"),
    ],
)
def test_a_cell_that_is_none_is_told(place, cell, words):
    with pytest.raises(UserError, match=words):
        main(["study", "--cell", cell])


def test_a_row_without_runs_is_told(place):
    for run in place.glob("study/seed*/sfda"):
        shutil.rmtree(run)
    with pytest.raises(UserError, match="has no finished run of sfda: sfda, seed 0: not there"):
        main(["study", "--cell", "sfda,dice"])
