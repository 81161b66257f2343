import csv
import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from fake_runs import Killed, add_columns, killed_after, make_run, make_set

import report as program
from analysis.run import open_run
from analysis.tables.classes import short_names
from processes.errors import UserError
from report import main


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    data = make_set(root / "data/toy", n_patient=6, n_slice=2, size=(16, 16), n_class=3)
    for name, supervision in (("noadap", "none"), ("sfda", "image-level tags"), ("fs", "full")):
        n_epoch = 1 if name == "noadap" else 3
        make_run(root / "toy" / name, data, n_epoch=n_epoch, n_class=3, pictures=False, supervision=supervision)
    return root


@pytest.fixture
def runs(made, tmp_path):
    """Copies of the runs, to be changed at will."""
    shutil.copytree(made / "toy", tmp_path / "toy")
    return tmp_path / "toy"


def rescore(folder, scores, files=("last", "best_3d")):
    """Rewrites the patients' tables: {patient: {class: Dice, or the outcome that has none}}; HD95 is 10 (1 - Dice)."""
    rows = []
    for patient, classes in scores.items():
        for k, value in classes.items():
            hit = not isinstance(value, str)
            dice = value if hit else None if value == "true absence" else 0.0
            far = 10 * (1 - value) if hit else None
            row = {"patient": patient, "class": k, "outcome": "hit" if hit else value, "dice": dice, "hd95_mm": far}
            row |= {
                "assd_mm": far,
                "masd_mm": far,
                "nsd": dice,
                "volume_error": 0.0,
                "predicted": 1,
                "true": 1,
                "diagonal_mm": 50.0,
            }
            rows.append(row)
    for which in files:
        pd.DataFrame(rows).to_csv(folder / f"patients_{which}.csv", index=False)


def spoil_tolerance(folder, value):
    path = folder / "provenance.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"nsd_tolerance": value}))


def set_provenance(folder, old, new):
    path = folder / "provenance.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def report(runs, tmp_path, capsys, names=("noadap", "sfda", "fs"), extra=()):
    """The printed table, and the csv file by (run, block, class)."""
    main(["--runs", *(str(runs / name) for name in names), "--out", str(tmp_path / "out/report"), *extra])
    with (tmp_path / "out/report.csv").open() as file:
        lines = {(row["run"], row["chosen"], row["class"]): row for row in csv.DictReader(file)}
    return capsys.readouterr().out, lines


def simple(*values):
    return {f"P{i}": {1: value, 2: value} for i, value in enumerate(values)}


def test_mean_spread_and_gap_by_hand(runs, tmp_path, capsys):
    rescore(runs / "noadap", simple(0.1, 0.2, 0.3))
    rescore(runs / "sfda", simple(0.5, 0.7, 0.9))
    rescore(runs / "fs", simple(0.8, 0.9, 1.0))
    text, lines = report(runs, tmp_path, capsys)
    row = lines["sfda", "last", "mean"]
    assert float(row["dice_mean"]) == pytest.approx(0.7)
    assert float(row["dice_sd"]) == pytest.approx(0.2)
    assert float(row["hd95_mean"]) == pytest.approx(3.0)
    assert float(row["gap_closed"]) == pytest.approx(0.5 / 0.7)
    assert 0.5 <= float(row["dice_low"]) < 0.7 < float(row["dice_high"]) <= 0.9
    line = next(line for line in text.splitlines() if line.startswith("sfda"))
    assert "0.700 ± 0.200" in line
    assert "71 %" in line
    assert "3.00 ± 2.00" in line
    assert "image-level tags" in line
    assert "sfda P0 0.500" in text
    assert (lines["noadap", "last", "mean"]["gap_closed"], lines["fs", "last", "mean"]["gap_closed"]) == ("0.0", "1.0")


def test_classes_are_averaged_per_patient_and_shown_apart(runs, tmp_path, capsys):
    rescore(runs / "sfda", {"P0": {1: 0.4, 2: 0.8}, "P1": {1: 0.6, 2: 1.0}})
    text, lines = report(runs, tmp_path, capsys, names=["sfda"])
    assert [float(lines["sfda", "last", k]["dice_mean"]) for k in ("mean", "1", "2")] == pytest.approx([0.7, 0.5, 0.9])
    assert float(lines["sfda", "last", "mean"]["dice_sd"]) == pytest.approx(0.1 * 2**0.5)
    assert "Dice, class 1" in text
    assert "gap closed" not in text


def test_metric_axis_chooses_the_classes(runs, tmp_path, capsys):
    rescore(runs / "sfda", {"P0": {1: 0.4, 2: 0.8}, "P1": {1: 0.6, 2: 1.0}})
    params = runs / "sfda/params.txt"
    params.write_text(params.read_text().replace("metric_axis: [1, 2]", "metric_axis: [2]"))
    _, lines = report(runs, tmp_path, capsys, names=["sfda"])
    assert float(lines["sfda", "last", "mean"]["dice_mean"]) == pytest.approx(0.9)


def test_misses_count_as_zero_dice_and_without_distance(runs, tmp_path, capsys):
    scores = {"P0": {1: 0.8, 2: 0.8}, "P1": {1: "miss", 2: "false structure"}, "P2": {1: "true absence", 2: 0.6}}
    rescore(runs / "sfda", scores)
    text, lines = report(runs, tmp_path, capsys, names=["sfda"])
    row = lines["sfda", "last", "mean"]
    assert float(row["dice_mean"]) == pytest.approx((0.8 + 0 + 0.6) / 3)
    assert (row["misses"], row["false_structures"], row["dice_n"], row["hd95_n"]) == ("1", "1", "3", "2")
    assert float(row["hd95_mean"]) == pytest.approx((2 + 4) / 2)
    assert float(row["hd95_penalised_mean"]) == pytest.approx((2 + 50 + 4) / 3)
    assert lines["sfda", "last", "1"]["dice_n"] == "2"
    assert "3.00 ± 1.41 (n = 2)" in text
    assert "HD95 penalised" in text


def test_what_an_old_run_calls_assd_stands_under_masd_and_is_marked(runs, tmp_path, capsys):
    new = report(runs, tmp_path, capsys)[1]["noadap", "last", "mean"]
    for which in ("last", "best_3d"):
        path = runs / f"noadap/patients_{which}.csv"
        table = pd.read_csv(path)
        table.drop(columns="assd_mm").rename(columns={"masd_mm": "assd_mm"}).to_csv(path, index=False)
    text, lines = report(runs, tmp_path, capsys)
    old = lines["noadap", "last", "mean"]
    assert (old["masd_mean"], old["assd_mean"]) == (new["masd_mean"], "")
    assert float(new["masd_mean"]) != float(new["assd_mean"])
    assert "old ASSD" in next(line for line in text.splitlines() if line.startswith("noadap"))
    assert "old ASSD: the run is of the time" in text
    assert "old ASSD" not in next(line for line in text.splitlines() if line.startswith("sfda"))


def test_an_old_log_has_its_distances_under_their_names_of_today(runs):
    add_columns(runs / "sfda", val_assd_mm_1=1.0)
    assert open_run(runs / "sfda").metrics["val_masd_mm_1"].tolist() == [1.0] * 3
    add_columns(runs / "fs", val_assd_mm_1=1.0, val_masd_mm_1=2.0)
    assert open_run(runs / "fs").metrics[["val_assd_mm_1", "val_masd_mm_1"]].to_numpy().tolist() == [[1.0, 2.0]] * 3


def test_last_and_best_epoch_are_separate_blocks(runs, tmp_path, capsys):
    rescore(runs / "sfda", simple(0.5, 0.5), files=["last"])
    rescore(runs / "sfda", simple(0.6, 0.6), files=["best_3d"])
    (runs / "sfda/3dbestepoch.txt").write_text("1, 0.600000\n")
    text, lines = report(runs, tmp_path, capsys, names=["sfda"])
    last, best = text.split("Best epoch (chosen with target labels")
    assert "3/3    0.500" in last
    assert "2/3    0.600" in best
    assert [lines["sfda", which, "mean"]["epoch"] for which in ("last", "best_3d")] == ["2", "1"]


def test_no_gap_across_different_patients_or_upside_down(runs, tmp_path, capsys):
    rescore(runs / "noadap", simple(0.5, 0.5))
    rescore(runs / "fs", simple(0.4, 0.4))
    rescore(runs / "sfda", {"Q": {1: 0.5, 2: 0.5}})
    text, lines = report(runs, tmp_path, capsys)
    assert {row["gap_closed"] for row in lines.values()} == {""}
    assert "Not every run was evaluated on the same patients" in text


def test_paired_test_by_hand(runs, tmp_path, capsys):
    """Six differences of one sign: the exact two-sided p is 2 / 2^6; Holm doubles it for two runs."""
    rescore(runs / "sfda", simple(0.50, 0.52, 0.54, 0.56, 0.58, 0.60))
    rescore(runs / "noadap", simple(0.10, 0.13, 0.16, 0.19, 0.22, 0.25))
    rescore(runs / "fs", simple(0.80, 0.83, 0.86, 0.89, 0.92, 0.95))
    text, lines = report(runs, tmp_path, capsys)
    assert float(lines["noadap", "last", "mean"]["p"]) == pytest.approx(2 * 2 / 64)
    assert float(lines["fs", "last", "mean"]["p"]) == pytest.approx(2 * 2 / 64)
    assert lines["sfda", "last", "mean"]["p"] == ""
    assert "noadap 6:0, p = 0.062; fs 0:6, p = 0.062" in " ".join(text.split())


def test_no_paired_test_with_five_patients(runs, tmp_path, capsys):
    for name in ("noadap", "sfda", "fs"):
        rescore(runs / name, simple(0.1, 0.2, 0.3, 0.4, 0.5))
    text, lines = report(runs, tmp_path, capsys)
    assert {row["p"] for row in lines.values()} == {""}
    assert "Wilcoxon" not in text


def test_one_patient_says_so(runs, tmp_path, capsys):
    rescore(runs / "sfda", simple(0.5))
    set_provenance(runs / "sfda", '"split_unit": "patient"', '"split_unit": "slice blocks"')
    text, lines = report(runs, tmp_path, capsys, names=["sfda"])
    assert "One patient: no spread" in text
    assert "Slices of one patient in both splits" in text
    assert "±" not in text.split("Last epoch")[1].split("Best epoch")[0]
    assert (lines["sfda", "last", "mean"]["dice_sd"], lines["sfda", "last", "mean"]["dice_low"]) == ("", "")


def test_marks_in_every_format(runs, tmp_path, capsys):
    set_provenance(runs / "sfda", '"phantom": null', '"phantom": "small"')
    set_provenance(runs / "sfda", '"oracle": false', '"oracle": true')
    set_provenance(runs / "fs", '"debug": false', '"debug": true')
    params = runs / "fs/params.txt"
    params.write_text(params.read_text().replace("l_rate: 0.001", "l_rate: 0.0"))
    text, lines = report(runs, tmp_path, capsys)
    assert text == (tmp_path / "out/report.txt").read_text()
    for suffix in ("txt", "md", "tex"):
        written = (tmp_path / f"out/report.{suffix}").read_text()
        assert "PHANTOM: made-up images in sfda" in written
        assert "ORACLE, PHANTOM" in written
        assert "DEBUG, lr 0" in written
    assert [lines["sfda", "last", "mean"][key] for key in ("phantom", "oracle", "debug")] == ["1", "1", "0"]
    assert [lines["fs", "last", "mean"][key] for key in ("phantom", "oracle", "debug")] == ["0", "0", "1"]


@pytest.mark.parametrize("where", ["provenance", "card of a run of before"])
def test_labels_that_shaped_the_images_are_named_in_every_format(runs, tmp_path, capsys, where):
    how = "slices are cut round all that is labelled"
    told = f'"uses_labels": {{"site": "{how}"}}, ' if where == "provenance" else ""
    card = "" if told else f', "uses_labels": "{how}"'
    set_provenance(runs / "sfda", '"csv"', f'{told}"csv"')
    set_provenance(runs / "sfda", '"phantom": null', f'"phantom": null{card}')
    text, lines = report(runs, tmp_path, capsys)
    assert "image-level tags, labels in preprocessing" in text
    name = "site" if told else open_run(runs / "sfda").set_name
    for suffix in ("txt", "md", "tex"):
        written = (tmp_path / f"out/report.{suffix}").read_text()
        assert f"Labels in preprocessing, {name}: {how}." in written.replace("\n  ", " ").replace("\\_", "_")
    assert lines["sfda", "last", "mean"]["uses_labels"] == f"{name}: {how}"
    assert lines["fs", "last", "mean"]["uses_labels"] == ""


def test_clean_runs_carry_no_warning(runs, tmp_path, capsys):
    text, _ = report(runs, tmp_path, capsys)
    assert "***" not in text
    assert not any(word in text for word in ("PHANTOM", "DEBUG", "ORACLE", "lr 0"))
    assert "HD95 is the larger of the two directed 95th percentiles" in text
    assert "NSD (2 mm)" in text


def test_same_runs_same_bytes_and_only_the_wanted_formats(runs, tmp_path, capsys):
    report(runs, tmp_path, capsys)
    first = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert sorted(first) == ["report.csv", "report.md", "report.tex", "report.txt"]
    moved = tmp_path / "elsewhere/results"
    shutil.copytree(runs, moved)
    shutil.rmtree(tmp_path / "out")
    report(moved, tmp_path, capsys, extra=["--formats", "csv", "md"])
    again = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert again == {name: first[name] for name in ("report.csv", "report.md")}


@pytest.mark.parametrize("writes", [1, 2, 3])
def test_the_file_that_make_looks_at_is_written_last(runs, tmp_path, monkeypatch, writes):
    """A kill between two files leaves report.txt as it was: older than its runs, so that all four are made anew."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "report.txt").write_text("of an older set of runs")
    monkeypatch.setattr(program, "atomic_write", killed_after(writes, program.atomic_write))
    with pytest.raises(Killed):
        main(["--runs", str(runs / "sfda"), "--out", str(out / "report")])
    assert len(list(out.iterdir())) == 1 + writes
    assert (out / "report.txt").read_text() == "of an older set of runs"


def test_latex_and_markdown_are_well_formed(runs, tmp_path, capsys):
    set_provenance(runs / "sfda", "image-level tags", "tags & sizes_50%")
    report(runs, tmp_path, capsys)
    tex = (tmp_path / "out/report.tex").read_text()
    assert r"tags \& sizes\_50\%" in tex
    pieces = [piece.split(r"\end{tabular}")[0] for piece in tex.split(r"\begin{tabular}{")[1:]]
    heads = []
    for piece in pieces:
        rows = [line for line in piece.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
        assert {row.replace(r"\&", "").count("&") for row in rows} == {len(piece.split("}")[0]) - 1}
        assert len(rows) == 7
        assert max(map(len, rows)) < 120
        heads.append(rows[0].removesuffix(r" \\").split(" & "))
    header = (tmp_path / "out/report.md").read_text().split("\n| ")[1].split("\n")[0].removesuffix(" |")
    assert {head[0] for head in heads} == {"run"}
    assert ["run", *(name for head in heads for name in head[1:])] == header.replace("%", r"\%").split(" | ")
    assert tex.count(r"\begingroup") == tex.count(r"\endgroup") == 1
    assert tex.index(r"\footnotesize") > tex.index(r"\begingroup")
    table = [line for line in (tmp_path / "out/report.md").read_text().splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    assert len(table) == 10


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda run: shutil.rmtree(run), "sfda is not there"),
        (lambda run: (run / "provenance.json").unlink(), "provenance.json is missing"),
        (lambda run: (run / "provenance.json").write_text("{"), "provenance.json is not JSON"),
        (lambda run: (run / "provenance.json").write_text("[]"), "provenance.json should hold one object"),
        (lambda run: (run / "patients_last.csv").unlink(), "patients_last.csv is missing"),
        (lambda run: (run / "patients_last.csv").write_text("patient,class\n"), "has no row"),
        (lambda run: (run / "patients_last.csv").write_text("patient,class\nA,1\n"), "lacks the columns outcome"),
        (lambda run: (run / "IMG_target_metrics.csv").write_text("epoch\n"), "has no epoch"),
        (lambda run: (run / "IMG_target_metrics.csv").write_text("epoch\nx\n"), "target_metrics.csv cannot be read"),
        (lambda run: (run / "IMG_target_metrics.csv").write_text(""), "target_metrics.csv cannot be read"),
        (lambda run: (run / "3dbestepoch.txt").write_text("none\n"), "holds no number"),
        (lambda run: (run / "params.txt").unlink(), "params.txt is missing"),
        (lambda run: set_provenance(run, '"n_class": 3', '"n_class": 3000000000'), "masks hold 256 at most"),
        (lambda run: set_provenance(run, '"n_epoch": ', '"n_epoch": 9999999'), "of which a run has 100000 at most"),
        (lambda run: spoil_tolerance(run, float("nan")), "nsd_tolerance is nan, and no distance"),
        (lambda run: spoil_tolerance(run, -1), "nsd_tolerance is -1, and no distance"),
    ],
)
def test_broken_runs_are_named(runs, tmp_path, spoil, match):
    spoil(runs / "sfda")
    with pytest.raises(UserError, match=match):
        main(["--runs", str(runs / "noadap"), str(runs / "sfda"), "--out", str(tmp_path / "out/report")])
    assert not (tmp_path / "out").exists()


def test_all_missing_runs_are_listed_and_twins_refused(runs):
    with pytest.raises(UserError, match=r"one is not there.*two is not there"):
        main(["--runs", str(runs / "one"), str(runs / "two")])
    with pytest.raises(UserError, match="given twice: sfda"):
        main(["--runs", str(runs / "sfda"), str(runs / "sfda")])


def test_the_reference_is_sfda_else_the_first_run_and_the_note_says_so(runs, tmp_path, capsys):
    """Tables of baselines have neither of the runs that gap and test are about by default."""
    for number, name in enumerate(("noadap", "sfda", "fs")):
        rescore(runs / name, simple(*(0.1 * number + 0.01 * i for i in range(7))))
    for folder, name in (("noadap", "gdl"), ("fs", "gdl_surface"), ("sfda", "hausdorff")):
        (runs / folder).rename(runs / name)
    names = ["gdl", "gdl_surface", "hausdorff"]
    text, lines = report(runs, tmp_path, capsys, names)
    assert "Patients on whom gdl is better:worse" in text
    assert "gdl is the first of the runs; --reference" in " ".join(text.split())
    assert {row["gap_closed"] for row in lines.values()} == {""}
    assert lines["gdl", "last", "mean"]["p"] == ""
    text, lines = report(runs, tmp_path, capsys, names, ["--reference", "hausdorff", "--upper", "gdl_surface"])
    assert "Patients on whom hausdorff is better:worse" in text
    assert "the first of the runs" not in text
    text, _ = report(runs, tmp_path, capsys, names, ["--reference", "gone"])
    assert "better:worse" not in text


@pytest.mark.parametrize("flag", ["--lower", "--upper", "--reference"])
def test_a_run_to_compare_with_that_is_none_of_these_is_told(runs, tmp_path, capsys, flag):
    main(["--runs", str(runs / "noadap"), str(runs / "sfda"), flag, "nodap"])
    said = capsys.readouterr().err
    assert f"{flag} nodap is none of the runs, so nothing is compared with it. Did you mean 'noadap'?" in said
    main(["--runs", str(runs / "noadap"), str(runs / "sfda"), flag, "sfda"])
    assert "none of the runs" not in capsys.readouterr().err


def test_background_in_the_metric_axis_adds_no_column(runs, tmp_path, capsys):
    text, lines = report(runs, tmp_path, capsys, ["sfda"])
    params = runs / "sfda/params.txt"
    params.write_text(params.read_text().replace("metric_axis: [1, 2]", "metric_axis: [0, 1, 2]"))
    assert report(runs, tmp_path, capsys, ["sfda"]) == (text, lines)


def test_iou_stands_beside_dice_where_it_is_asked_for(runs, tmp_path, capsys):
    """Dice 0.5 is IoU 1/3: of each patient and class, not of the mean Dice."""
    rescore(runs / "sfda", {"P0": {1: 0.5, 2: 1.0}, "P1": {1: "miss", 2: "true absence"}})
    text, lines = report(runs, tmp_path, capsys, ["sfda"], ["--iou"])
    assert float(lines["sfda", "last", "mean"]["iou_mean"]) == pytest.approx(1 / 3)
    assert [lines["sfda", "last", "1"][key] for key in ("iou_mean", "iou_n")] == [str(1 / 6), "2"]
    assert re.search("sfda .* 0.375 ± 0.530 +0.333 ± 0.471", text)
    assert "IoU: Dice / (2 - Dice)" in text
    text, lines = report(runs, tmp_path, capsys, ["sfda"])
    assert "IoU" not in text
    assert "iou_mean" not in lines["sfda", "last", "mean"]


# -------------------------------------------------------------------------------------------------- harm


def start_from(folder, weights, method="sfda"):
    set_provenance(folder, '"method": "sfda"', f'"method": "{method}"')
    with (folder / "params.txt").open("a") as file:
        file.write(f"model_weights: {weights}\n")


def marked(text, name):
    """The rows of a run, last and best epoch, whose marks say that it is worse than another run."""
    rows = [line for line in text.splitlines() if re.match(rf"{name} ", line)]
    return [re.search(r"worse than \w+", row)[0] if "worse than" in row else "" for row in rows]


def test_a_run_that_is_worse_than_no_adaptation_is_marked_in_every_format(runs, tmp_path, capsys):
    rescore(runs / "noadap", simple(0.5, 0.6))
    rescore(runs / "sfda", simple(0.4, 0.5), files=["last"])
    rescore(runs / "sfda", simple(0.6, 0.7), files=["best_3d"])
    rescore(runs / "fs", simple(0.8, 0.9))
    text, lines = report(runs, tmp_path, capsys)
    assert marked(text, "sfda") == ["worse than noadap", ""]
    assert marked(text, "fs") == marked(text, "noadap") == ["", ""]
    assert "Worse than noadap: the mean Dice is lower" in text
    assert (lines["sfda", "last", "mean"]["worse_than"], lines["sfda", "best_3d", "mean"]["worse_than"]) == (
        "noadap",
        "",
    )
    for suffix in ("txt", "md", "tex"):
        assert "Worse than noadap" in (tmp_path / f"out/report.{suffix}").read_text()


@pytest.mark.parametrize(("lost", "mark"), [(0.0009, ""), (0.0011, "worse than noadap")])
def test_rounding_is_no_harm(runs, tmp_path, capsys, lost, mark):
    rescore(runs / "noadap", simple(0.5, 0.6))
    rescore(runs / "sfda", simple(0.5 - lost, 0.6 - lost))
    text, _ = report(runs, tmp_path, capsys, ["noadap", "sfda"])
    assert marked(text, "sfda") == [mark, mark]


def test_what_a_source_network_pays_at_home_stands_beside_it(runs, tmp_path, capsys):
    """Not beside the others, nor of one that was scored on other images."""
    for name, values in (("cesource", (0.8, 0.9)), ("cesource_gin", (0.78, 0.88)), ("cesource_other", (0.1,))):
        shutil.copytree(runs / "fs", runs / name)
        rescore(runs / name, simple(*values))
    text, _ = report(runs, tmp_path, capsys, ["cesource", "cesource_gin", "cesource_other", "noadap"])
    at = next(line for line in text.splitlines() if "against cesource" in line).index("against cesource")
    cells = {
        line.split()[0]: line[at:].split()[0] for line in text.splitlines() if re.match(r"(cesource|noadap)", line)
    }
    assert cells == {"cesource": "–", "cesource_gin": "-0.020", "cesource_other": "–", "noadap": "–"}
    assert "Against cesource: how much lower (-) or higher" in text
    assert "against cesource" not in report(runs, tmp_path, capsys, ["cesource", "noadap"])[0]


def test_harm_is_looked_for_among_the_same_patients_of_the_same_set(runs, tmp_path, capsys):
    rescore(runs / "noadap", simple(0.5, 0.6))
    rescore(runs / "sfda", simple(0.1))
    rescore(runs / "fs", simple(0.1, 0.2))
    set_provenance(runs / "fs", '"name": "toy"', '"name": "another"')
    text, _ = report(runs, tmp_path, capsys)
    assert "worse than" not in text


def test_a_run_is_compared_with_its_own_start(runs, tmp_path, capsys):
    """Not with another network's: the one that was as good as the other at first did no harm."""
    for name, values in (("noadap_other", (0.2, 0.2)), ("sfda_other", (0.3, 0.3)), ("worse_other", (0.1, 0.1))):
        shutil.copytree(runs / "sfda", runs / name)
        rescore(runs / name, simple(*values))
        start_from(runs / name, "other/last.pkl", "noadap" if name.startswith("noadap") else "sfda")
    rescore(runs / "noadap", simple(0.5, 0.6))
    start_from(runs / "noadap", "cesource/last.pkl", "noadap")
    text, _ = report(runs, tmp_path, capsys, ["noadap", "noadap_other", "sfda_other", "worse_other"])
    assert marked(text, "sfda_other") == ["", ""]
    assert marked(text, "worse_other") == ["worse than noadap_other"] * 2
    assert marked(text, "noadap_other") == ["worse than noadap"] * 2  # it has no start of its own in the table


def test_runs_on_two_sets_are_no_cause_for_a_banner(runs, tmp_path, capsys):
    """The source network is evaluated on the source; only what differs within a set is warned of."""
    rescore(runs / "sfda", simple(0.1, 0.2))
    rescore(runs / "noadap", simple(0.1, 0.2))
    rescore(runs / "fs", {"Q0": {1: 0.9, 2: 0.9}, "Q1": {1: 0.9, 2: 0.9}})
    set_provenance(runs / "fs", '"name": "toy"', '"name": "source"')
    text, _ = report(runs, tmp_path, capsys)
    assert "***" not in text
    assert "on source" in text
    rescore(runs / "noadap", simple(0.1))
    text, _ = report(runs, tmp_path, capsys)
    assert "Not every run was evaluated on the same patients" in text


def test_a_network_that_predicts_one_class_is_marked(runs, tmp_path, capsys):
    sizes = np.load(runs / "sfda/val_sizes.npy")
    sizes[-1] = [256, 0, 0]
    np.save(runs / "sfda/val_sizes.npy", sizes)
    (runs / "sfda/3dbestepoch.txt").write_text("0, 0.5\n")
    text, _ = report(runs, tmp_path, capsys)
    rows = [line for line in text.splitlines() if line.startswith("sfda ")]
    assert ["one class" in row for row in rows] == [True, False]
    assert "One class: the network gives every pixel of the validation images the same one (class 0)." in text
    np.save(runs / "sfda/val_gt_sizes.npy", sizes[-1])
    assert "one class" not in report(runs, tmp_path, capsys)[0].lower()


# ------------------------------------------------------------------------------------------- scored by IoU


def test_harm_in_iou(streets, tmp_path, capsys):
    write_classes(streets / "adapt", "last", 19)
    text, lines = report(streets, tmp_path, capsys, ["source", "adapt"], ["--lower", "source"])
    assert marked(text, "adapt") == ["worse than source", ""]
    assert lines["adapt", "last", "mean"]["worse_than"] == "source"
    assert "Worse than source: the mean IoU is lower" in text


@pytest.fixture
def streets(made, tmp_path):
    """Two runs of three classes, the third of which is nowhere."""
    facts = {"scores": "iou", "metric_axis": [0, 1, 2], "class_names": ["road", "traffic light", "train"]}
    for name, light in (("source", 20), ("adapt", 60)):
        run = make_run(tmp_path / "streets" / name, made / "data/toy", n_epoch=2, n_class=3, pictures=False, **facts)
        for which, seen in (("last", light), ("best_3d", light + 5)):
            write_classes(run, which, seen)
    return tmp_path / "streets"


def write_classes(run, which, light):
    text = f"class,name,iou,intersection,union\n0,road,0.9,90,100\n1,traffic light,{light / 100},{light},100\n"
    (run / f"classes_{which}.csv").write_text(text + "2,train,,0,0\n")


def test_iou_by_hand(streets, tmp_path, capsys):
    text, lines = report(streets, tmp_path, capsys, ["source", "adapt"], ["--lower", "source", "--upper", "adapt"])
    last, best = text.split("Best epoch (chosen with target labels")
    assert re.search(r"run +supervision +epoch +mIoU +gap closed +road +light +train", last)
    assert re.search(r"adapt +none +2/2 +75.0 +100 % +90.0 +60.0 +–", last)
    assert re.search(r"source +none +2/2 +55.0 +0 % +90.0 +20.0 +–", last)
    assert re.search(r"adapt +none +2/2 +77.5 +100 % +90.0 +65.0 +–", best)
    assert not re.search("HD95|NSD|Dice", text)
    assert float(lines["adapt", "last", "mean"]["iou"]) == pytest.approx(0.75)
    assert (lines["adapt", "last", "1"]["iou"], lines["adapt", "last", "2"]["iou"]) == ("0.6", "")
    assert lines["adapt", "best_3d", "1"]["intersection"] == "65"
    for suffix in ("md", "tex"):
        assert "75.0" in (tmp_path / f"out/report.{suffix}").read_text()


def test_iou_of_the_metric_axis_alone(streets, tmp_path, capsys):
    params = streets / "adapt/params.txt"
    params.write_text(params.read_text().replace("metric_axis: [0, 1, 2]", "metric_axis: [1]"))
    text, lines = report(streets, tmp_path, capsys, ["adapt"])
    assert float(lines["adapt", "last", "mean"]["iou"]) == pytest.approx(0.6)
    assert "road" not in text


def test_iou_and_dice_are_two_reports(runs, streets):
    with pytest.raises(UserError, match="adapt of the 2 runs were scored by IoU"):
        main(["--runs", str(streets / "adapt"), str(runs / "fs")])


def test_iou_on_other_images_is_warned_of(streets, tmp_path, capsys):
    names = streets / "adapt/val_names.txt"
    names.write_text(names.read_text().split("\n", 1)[1])
    text, _ = report(streets, tmp_path, capsys, ["source", "adapt"], ["--lower", "source", "--upper", "adapt"])
    assert "Not every run was evaluated on the same images" in text
    assert "gap closed" not in text


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda path: path.unlink(), "classes_last.csv is missing"),
        (lambda path: path.write_text("class,name,iou\n0,road,0.5\n"), "lacks the columns intersection, union"),
        (lambda path: path.write_text(path.read_text().replace("90,", "many,")), "classes_last.csv cannot be read"),
    ],
)
def test_broken_tables_of_classes_are_named(streets, spoil, match):
    spoil(streets / "adapt/classes_last.csv")
    with pytest.raises(UserError, match=match):
        main(["--runs", str(streets / "adapt")])


def test_short_names_stay_different():
    assert short_names({0: "road", 1: "traffic light"}) == {0: "road", 1: "light"}
    assert short_names({1: "left lung", 2: "right lung"}) == {1: "left lung", 2: "right lung"}
    assert short_names({0: "0", 1: "1"}) == {0: "class 0", 1: "class 1"}
