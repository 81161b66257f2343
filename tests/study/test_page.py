import base64
import gzip
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from fake_study import add_evaluation, make_study
from nasty import NASTY

from analysis.evaluated import evaluated_folder, read_reliability
from analysis.tables.table import Report
from processes.errors import UserError
from study.asking import write_asked
from study.page.album import Album, packed
from study.page.curves import curves
from study.page.page import page_of, write_page
from study.page.patients import Scores, typical
from study.page.reliability import pooled
from study.page.results import results, table_of, verdict
from study.page.sensitivity import sensitivity
from study.page.template import as_script, fill, letters
from study.page.viewer import viewer
from study.reading import NETWORKS, open_study

PATIENTS = ["Case00", "Case01", "Case02", "Case03"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = make_study(tmp_path_factory.mktemp("pages") / "toy/study", seeds=(0, 1), patients=4)
    for row, quality in (("noadap", 0.3), ("sfda", 0.8)):
        add_evaluation(folder / "seed0" / row, PATIENTS, quality)
    return folder


@pytest.fixture(scope="module")
def page(made):
    return page_of(open_study(made), {})


class Reader(HTMLParser):
    """What a browser would make of a page: its elements with their attributes, and the words of each section."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.words, self.scripts, self.section, self.inside = [], {}, {}, "head", ""
        self.feed(str(text))

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.inside = dict(attributes).get("data-chart", tag)
        if tag == "section":
            self.section = dict(attributes)["id"]

    def handle_data(self, words):
        if self.inside.endswith("-chart") or self.inside.startswith("forest"):
            self.scripts[self.inside] = self.scripts.get(self.inside, "") + words
        elif self.inside not in ("script", "style"):
            self.words[self.section] = self.words.get(self.section, "") + words


def test_a_page_is_one_file_that_asks_for_nothing(page):
    elements = Reader(page).elements
    for tag, attributes in elements:
        assert "src" not in attributes, tag
        assert attributes.get("href", "#").startswith(("#", "data:")), attributes
        assert not [name for name in attributes if name.startswith("on")], attributes
    policy = next(each["content"] for _, each in elements if each.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "http" not in policy


def test_every_section_has_its_heading_and_something_to_show(page):
    reader = Reader(page)
    sections = [each["id"] for tag, each in reader.elements if tag == "section"]
    assert {"curves", "patients", "reliability", "viewer", "choice", "provenance"} <= set(sections)
    charts = [each["data-chart"] for tag, each in reader.elements if tag == "script" and "data-chart" in each]
    assert {"curves-chart", "patients-chart", "reliability-chart"} <= set(charts)
    assert len(charts) == len(set(charts))


def test_a_study_of_nothing_is_a_page_with_a_line_for_each_section(tmp_path):
    folder = make_study(tmp_path / "toy/study", ("sfda",), (3,), patients=1)
    shutil.rmtree(folder / "seed3/sfda")
    write_page(open_study(folder), {}, tmp_path / "report.html")
    reader = Reader((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "sfda, seed 3: not there" in reader.words["head"]
    missing = [each for _, each in reader.elements if each.get("class") == "missing"]
    assert len(missing) == 1 + len([tag for tag, _ in reader.elements if tag == "section"])  # and where no script runs


def test_what_is_wrong_with_a_study_stands_in_its_head(made, tmp_path):
    folder = shutil.copytree(made, tmp_path / "study")
    shutil.rmtree(folder / "seed1/bn")
    for which in NETWORKS:
        table = folder / f"seed0/fs/patients_{which}.csv"
        if table.is_file():
            table.write_text("".join(table.read_text().splitlines(keepends=True)[:-1]))
    words = Reader(page_of(open_study(folder), {})).words["head"]
    assert "2 of the runs that were asked for are not in these figures" in re.sub(r"\s+", " ", words)
    assert "bn, seed 1: not there" in words
    assert "fs, seed 0: left out, as it was not scored on Case03, as the other runs were" in words


def test_one_patient_and_one_seed_make_a_page(tmp_path):
    folder = make_study(tmp_path / "toy/study", seeds=(0,), patients=1)
    add_evaluation(folder / "seed0/sfda", PATIENTS[:1], 0.5)
    reader = Reader(page_of(open_study(folder), {}))
    assert "scored on 1 patient." in reader.words["head"]
    assert not [each for _, each in reader.elements if each.get("class") == "faults"]


@pytest.mark.parametrize("word", NASTY)
def test_a_name_is_never_code(word):
    html = fill("missing.html", words=word)
    reader = Reader(html)
    assert [tag for tag, _ in reader.elements] == ["p"]
    html.encode()
    script = as_script({word: word})
    assert json.loads(script) == {word: word}
    assert not set("<>&") & set(script)
    assert not {"<", ">"} & set(letters(word))


def test_names_of_rows_and_patients_are_words_in_the_whole_page(tmp_path):
    rows = ("noadap", "<img src=x onerror=alert(1)>", "%{x} $x$ {{ 1 }}")
    folder = make_study(tmp_path / "toy/study", rows, (0,), patients=2)
    for path in folder.glob("seed0/*/patients_*.csv"):
        path.write_text(path.read_text().replace("Case01", "</script><b>"))
    reader = Reader(page_of(open_study(folder), {}))
    assert "img" not in [tag for tag, _ in reader.elements]
    assert rows[1] in reader.words["choice"]
    assert rows[2] in reader.words["choice"]
    assert "</script><b>" in reader.words["patients"]


def test_worst_median_and_best_are_patients_of_their_own():
    dice = np.array([[0.5], [0.9], [np.nan], [0.1], [0.7]])
    scores = Scores(list("abcde"), ["row"], dice, [])
    assert typical(scores, "row") == {"worst": 3, "median": 0, "best": 1}
    assert typical(Scores(["a"], ["row"], np.array([[0.5]]), []), "row") == {"only": 0}
    assert typical(Scores(["a"], ["row"], np.array([[np.nan]]), []), "row") == {}


def test_bins_are_pooled_by_their_pixels(made):
    table = read_reliability(evaluated_folder(made / "seed0/sfda")).assign(name="after")
    table = table[(table["which"] == "chosen") & (table["region"] == "band")]
    other = table.assign(frequency=1.0, n=3 * table["n"])
    both = pooled(pd.concat([table, other]), "after", "band")
    assert np.allclose(both["frequency"], (table["frequency"].to_numpy() + 3) / 4)
    assert np.allclose(both["confidence"], table["confidence"])
    assert (both["n"].to_numpy() == 4 * table["n"]).all()


def line_of(mean, low, high, p):
    ends = {"difference_mean": mean, "difference_low": low, "difference_high": high}
    return ends | {"row": "a", "reference": "b", "images": "toy", "p_holm": p}


def test_a_verdict_is_that_of_the_tests():
    lines = {
        "better": line_of(0.1, 0.05, 0.15, 0.05),
        "worse": line_of(-0.1, -0.15, -0.05, 0.01),
        "undecided": line_of(0.1, 0.05, 0.15, 0.051),
    }
    assert {word: verdict(line) for word, line in lines.items()} == {word: word for word in lines}
    assert verdict(line_of(0.1, np.nan, np.nan, np.nan)) == "undecided"


def test_a_table_is_shown_as_it_stands_and_sorted_by_its_numbers():
    rows = [
        ["<i>", "0.853 (0.812 to 0.894)", "-0.021 (-0.030 to +0.010)", "odd", "8 of 9"],
        ["b", "–", "+1.5", "", "–"],
    ]
    notes = ["a < b"]
    report = Report(
        "title", ["few", "known"], ["row", "Dice", "difference", "marks", "harmed"], [("toy", rows)], notes, []
    )
    html = table_of(report, "b", ["known"])
    reader = Reader(html)
    cells = [attributes for tag, attributes in reader.elements if tag == "td"]
    orders = [float(each["data-order"]) for each in cells]
    assert orders[:3] == [0.853, -0.021, 8]
    assert orders[3] < -1e6
    assert orders[4] == 1.5
    assert [each.get("class") for tag, each in reader.elements if tag == "tr"] == [None, None, "reference"]
    words = reader.words["head"]
    for shown in ("<i>", "0.812–0.894", "-0.030 to +0.010", "a < b", "toy"):
        assert shown in words
    assert "marks" not in words
    assert '<th scope="row">&lt;i&gt;<small>odd</small></th>' in html
    assert "few" in words
    assert "known" not in words


def test_the_forest_has_a_mark_a_row_and_reaches_every_interval(made):
    study = open_study(made)
    line = line_of(0.1, -0.2, 0.4, 0.2) | {"row": "sfda", "reference": "noadap"}
    report = Report("", [], ["row"], [("", [["sfda"]])], [], [line])
    reader = Reader(results(study, {"headline": report, "comparisons": report}))
    figure = json.loads(reader.scripts["forest-1"])
    low, high = figure["layout"]["xaxis"]["range"]
    assert low < -0.2 < 0.4 < high
    seeds, interval = figure["data"]
    apart = (study.scores("sfda", "dice") - study.scores("noadap", "dice")).mean()
    assert np.allclose(seeds["x"], apart, atol=1e-4)
    assert interval["x"] == [0.1]
    assert np.allclose([interval["error_x"]["arrayminus"], interval["error_x"]["array"]], 0.3)
    assert figure["layout"]["annotations"][0]["text"] == "+0.100 (-0.200 to +0.400)   p 0.2"
    with pytest.raises(UserError, match="headline.csv was not made"):
        results(study, {})


def test_chosen_and_best_epochs_are_marked(made):
    figure = json.loads(Reader(curves(open_study(made))).scripts["curves-chart"])
    run = open_study(made).runs["sfda", 0]
    marks = {trace["marker"]["symbol"]: trace for trace in figure["data"] if trace["mode"] == "markers"}
    rings = [trace for trace in figure["data"] if trace.get("marker", {}).get("symbol") == "circle-open"]
    assert len(rings) == 3  # bn, sfda and fs; noadap has one epoch
    assert marks["circle-open"]["x"][0] == run.epoch("best_3d") + 1
    chosen = next(t for t in figure["data"] if t["mode"] == "markers" and t["marker"]["symbol"] == "circle" and t["x"])
    assert chosen["x"][0] == run.epoch("chosen") + 1
    assert np.isclose(chosen["y"][0], open_study(made).runs["bn", 0].metrics["val_dice_3d"][chosen["x"][0] - 1])


SENSITIVITY = (
    "row,parameter,value,seed,score\nsfda,l_rate,0.1,0,0.7\nsfda,l_rate,0.001,0,0.5\nsfda,l_rate,0.001,1,0.6\n"
)


def test_a_setting_is_drawn_by_its_means(made, tmp_path):
    folder = shutil.copytree(made, tmp_path / "study")
    with pytest.raises(UserError, match=r"sensitivity\.csv is not there"):
        sensitivity(open_study(folder))
    (folder / "sensitivity.csv").write_text(SENSITIVITY)
    figure = json.loads(Reader(sensitivity(open_study(folder))).scripts["sensitivity-chart"])
    _, means = figure["data"]
    assert means["x"] == [0.001, 0.1]
    assert np.allclose(means["y"], [0.55, 0.7])
    assert figure["layout"]["xaxis"]["type"] == "log"
    head, *lines = SENSITIVITY.splitlines()
    lines = [f"{line},{ends}" for line, ends in zip(lines, ("0.6,0.8", "0.4,0.7", "0.4,0.7"), strict=True)]
    (folder / "sensitivity.csv").write_text("\n".join([f"{head},low,high", *lines]))
    figure = json.loads(Reader(sensitivity(open_study(folder))).scripts["sensitivity-chart"])
    _, band, means = figure["data"]
    assert band["x"] == [0.001, 0.1, 0.1, 0.001]
    assert np.allclose(band["y"], [0.7, 0.8, 0.6, 0.4])
    (folder / "sensitivity.csv").write_text("row,value\nsfda,1\n")
    with pytest.raises(UserError, match="expected the columns row, parameter, value, seed, score"):
        sensitivity(open_study(folder))


def unpacked(text, shape):
    return np.frombuffer(gzip.decompress(base64.b64decode(text)), np.uint8).reshape(shape)


def test_a_row_of_other_images_of_the_same_patients_is_not_shown(made, tmp_path):
    folder = shutil.copytree(made, tmp_path / "study")
    before = str(viewer(open_study(folder)))
    for seed in (0, 1):
        run = shutil.copytree(folder / f"seed{seed}/sfda", folder / f"seed{seed}/other")
        facts = json.loads((run / "provenance.json").read_text())
        facts["dataset"] |= {"path": "data/source", "name": "source"}
        (run / "provenance.json").write_text(json.dumps(facts))
    scans = shutil.copytree(folder / "seed0/evaluated/sfda", folder / "seed0/evaluated/other") / "scans"
    for path in scans.iterdir():
        held = dict(np.load(path))
        np.savez_compressed(path, **held | {"size": held["size"] * 2})
    asked = open_study(folder).asked
    write_asked(folder, replace(asked, rows=("other", *asked.rows)))
    assert str(viewer(open_study(folder))) == before


def test_volumes_come_back_as_they_were_and_the_budget_is_kept(made):
    study = open_study(made)
    runs = {row: study.runs[row, 0] for row in ("noadap", "sfda")}
    album = Album(runs, "noadap")
    assert album.add("sfda", PATIENTS[:2])
    data = album.as_data()
    for name in PATIENTS[:2]:
        scan = np.load(made / f"seed0/evaluated/sfda/scans/{name}.npz")
        shape = data["patients"][name]["shape"]
        assert np.array_equal(unpacked(data["patients"][name]["truth"], shape), scan["truth"])
        assert np.array_equal(unpacked(data["made"]["sfda"][name]["mask"], shape), scan["mask"])
        assert np.abs(unpacked(data["made"]["sfda"][name]["entropy"], shape) - scan["entropy"].astype(int)).max() < 16
        assert data["made"]["noadap"][name] != data["made"]["sfda"][name]
    poor = Album(runs, "noadap", budget=1)
    assert poor.add("sfda", PATIENTS[:1])
    assert not poor.add("sfda", PATIENTS[1:])
    assert list(poor.as_data()["patients"]) == PATIENTS[:1]
    assert packed(np.zeros(9, np.uint8)) == packed(np.zeros(9, np.uint8))
