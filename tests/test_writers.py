"""Whoever writes names into a file is listed here, and writes names of any letters; what reads the file finds them.

A writer is a function that opens a file for text, or draws words. One that is in no list below fails a test.
"""

import ast
import cProfile
import csv
import html
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import CROSS_ENTROPY, FOLDERS, disc_slice
from nasty import NASTY
from PIL import Image

import main as program
import plot
import report as reporting
from analysis.evaluated import CALIBRATION, EVERYONE, evaluated_folder, read_calibration, read_scan
from analysis.run import open_run
from analysis.tables.table import Report, as_csv, as_latex, as_markdown, as_text
from datasets.set_tables import read_rows
from datasets.size_table import read_size_table, write_size_table
from files.listing import UNLISTED
from prediction.inference import Predicting
from prediction.outputs import Outputs
from preprocess import data_report, tags
from preprocess.new_set import write_card
from preprocess.slice_volumes import read_spec, slice_set
from processes.errors import UserError
from processes.quoting import FORMULA, INVISIBLE, from_cell, visible
from study import evaluate

ROOT = Path(__file__).parents[1]
FILES = [text for text in NASTY if "/" not in text and "\0" not in text]  # what a file can be called
SLICES = [text for text in FILES if not UNLISTED.search(text)]  # what a slice can be called
SIZED = [text for text in SLICES if not re.search(r"""[,;\[\]"'\t#]""", text)]  # what a table of sizes can hold

# ------------------------------------------------------------------------------------------------------- readers


def words_of_json(value):
    match value:
        case dict():
            return {word for pair in value.items() for each in pair for word in words_of_json(each)}
        case list():
            return {word for each in value for word in words_of_json(each)}
    return {value} if isinstance(value, str) else set()


def read_csv(text):
    rows = list(csv.reader(io.StringIO(text, newline="")))
    assert len({len(row) for row in rows}) == 1
    for cell in (cell for row in rows for cell in row):
        assert not FORMULA.match(cell) or cell.startswith("'") or float(cell) is not None, cell
    return {from_cell(cell) for row in rows for cell in row}


def in_csv(text):
    """What no text file can hold is told by its number."""
    return visible(text) if set(text) & set("\0\udce9") else text


def read_text(text):
    assert not INVISIBLE.search(text.replace("\n", ""))
    return text


def read_markdown(text):
    """The cells and lines as they are shown; no element, no table broken."""
    read_text(text)
    assert "<" not in text
    found = []
    for line in text.splitlines():
        cells = re.split(r"(?<!\\)\|", line)[1:-1] if line.startswith("|") else [line]
        found += [html.unescape(re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", cell.strip())) for cell in cells]
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert tables
    assert all(len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1 for lines in tables)
    return set(found)


TYPESET = [r"\begingroup", r"\footnotesize", r"\noindent", r"\textbf", r"\par", r"\medskip", r"\begin", r"\end"]
TYPESET += [r"\toprule", r"\midrule", r"\bottomrule", r"\multicolumn", r"\emph", r"\item", r"\endgroup", r"\\"]
TYPESET += [r"\textbackslash", r"\textasciitilde", r"\textasciicircum", r"\textbar", r"\pm"]
TYPESET += [f"\\{letter}" for letter in "&%$#_{}"]


def read_latex(text):
    """What is typeset, whose control sequences are all the table's own."""
    read_text(text)
    body = re.sub(r"^%.*\n", "", text)
    assert "%" not in re.sub(r"\\.", "", body, flags=re.DOTALL)
    found = re.findall(r"\\(?:[A-Za-z]+|.|\n)", body)
    assert set(found) <= set(TYPESET), set(found) - set(TYPESET)
    assert not re.search(r"(\\\\|\\item)\s*[\[*]", body)
    assert not re.search(r"[~^#]", re.sub(r"\\.", "", body))
    plain = {r"\textbackslash{}": "\\", r"\textasciitilde{}": "~", r"\textasciicircum{}": "^", r"\textbar{}": "|"}
    plain |= {f"\\{letter}": letter for letter in "&%$#_{}"} | {"$<$": "<", "$>$": ">", r"$\pm$": "±", "{}": ""}
    return re.sub("|".join(map(re.escape, plain)), lambda match: plain[match[0]], body)


class Page(HTMLParser):
    """The elements of a page, and what its script is."""

    def __init__(self):
        super().__init__()
        self.tags, self.script, self.title = [], "", ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        if self.tags and self.tags[-1] in ("script", "title"):
            setattr(self, self.tags[-1], getattr(self, self.tags[-1]) + data)


def read_page(text):
    page = Page()
    page.feed(text)
    assert page.tags.count("script") == 1
    assert text.count("<!--") == 0
    assert page.script.rstrip().endswith("build(); draw();")
    told = re.search(r"^const data = (.*);$", page.script, re.M)[1]
    assert not set("<>&") & set(told)  # whatever state the reader of a script is in
    return words_of_json(json.loads(told)) | {page.title.strip().removeprefix("Tags: ")}


def read_picture(content):
    Image.open(io.BytesIO(content)).load()
    return set()


READERS = {".csv": read_csv, ".txt": read_text, ".md": read_markdown, ".tex": read_latex, ".html": read_page}
READERS |= {".json": lambda text: words_of_json(json.loads(text))}


def read(path):
    if path.suffix in (".png", ".gif"):
        return read_picture(path.read_bytes())
    return READERS[path.suffix](path.read_bytes().decode("utf-8"))


# ------------------------------------------------------------------------------------------------------- writers

WRITERS = {}  # "module.py: function" -> the function that makes it write


def writes(*names):
    def enter(make):
        WRITERS.update(dict.fromkeys(names, make))
        return make

    return enter


def tables(place):
    """The four formats of a table with a column and a row for each name."""
    rows = [[text, *reversed(NASTY)] for text in NASTY]
    lines = [{"run": text, "set": other, "dice": -1.5} for text, other in zip(NASTY, reversed(NASTY), strict=True)]
    told = Report("\n".join(NASTY), NASTY, ["run", *NASTY], [(NASTY[1], rows)], NASTY, lines)
    for suffix, write in (("txt", as_text), ("csv", as_csv), ("md", as_markdown), ("tex", as_latex)):
        (place / f"report.{suffix}").write_text(write(told), encoding="utf-8", newline="")
    return {place / f"report.{suffix}": NASTY for suffix in ("txt", "csv", "md", "tex")}


@writes("preprocess/tags.py: page", "preprocess/tags.py: template")
def pages(place):
    names = [f"{text}_0" for text in SIZED]
    folder = place / "__DATA__<!--<script>/val/IMG"
    folder.mkdir(parents=True)
    for name in names:
        Image.fromarray(np.zeros((2, 3), np.uint8)).save(folder / f"{name}.png")
    for kind, out in (("page", place / "tags.html"), ("template", place / "tags.csv")):
        words = [kind, "--data", str(folder.parents[1]), "--out", str(out), "--classes", *NASTY[:5], "<!--<script>"]
        args = tags.parse_args(words)
        args.run(args)
    filled = (place / "tags.csv").read_text(encoding="utf-8").replace("_0,", "_0,0")
    (place / "filled").write_text(filled, encoding="utf-8")
    assert not tags.read_tags(place / "filled", names, 7).any()
    return {
        place / "tags.html": [*names, *NASTY[:5], "<!--<script>", visible(folder.parents[1].name)],
        place / "tags.csv": [*names, *NASTY[:5]],
    }


@writes("datasets/size_table.py: write_size_table")
def sizes(place):
    write_size_table(place / "sizes", {"column": {name: [1, 2] for name in SIZED}}, {"made from": "\n".join(NASTY)})
    assert set(read_size_table(place / "sizes", "column").sizes) == set(SIZED)
    lines = (place / "sizes").read_text(encoding="utf-8").split("\n", 1)
    assert lines[0].startswith("# made from")
    (place / "sizes.csv").write_text(lines[1], encoding="utf-8")
    return {place / "sizes.csv": SIZED}


@writes("prediction/outputs.py: Outputs._write_table", "prediction/outputs.py: Outputs.begin")
def predictions(place):
    outputs = Outputs(place, {0: 0, 1: 1}, Predicting())
    outputs.begin({"weights": "a\nb"}, {name: [name] for name in FILES}, overwrite=False)
    for name in FILES:
        nib.Nifti1Image(np.ones((2, 2, 2), np.uint8), np.eye(4)).to_filename(outputs.paths(name)["classes"])
    outputs.write_sizes({name: f"new/{name}" for name in FILES}, {})
    return {place / "volumes.csv": [*FILES, *(f"new/{name}" for name in FILES)], place / "predict.json": FILES}


@writes("preprocess/new_set.py: write_json")
def cards(place):
    write_card(place, {"name": NASTY, "splits": dict.fromkeys(NASTY, NASTY)})
    return {place / "dataset.json": NASTY}


@writes("preprocess/slicing/tables.py: write_tables")
def slicing(place):
    names = [*[text for text in FILES if not set(text) & set("[*?~") and text[0] != "."][::3], "\udce9"]
    rng = np.random.default_rng(0)
    for number, name in enumerate(names):
        image, label = disc_slice(rng, True, 200, 60)
        for kind, array in (("t2", image), ("mask", label)):
            path = place / f"{name[:100]}@{'-_'[number % 2]}{number}@{kind}.nii"
            nib.Nifti1Image(np.stack([array] * 2, -1), np.eye(4)).to_filename(path)
    words = ["--dest", str(place / "set"), "--patient", "(?s).*@(.+)@", "--n_class", "2", "--val", "2"]
    words += ["--image", f"IMG={place}/*t2.nii", "--label", f"{place}/*mask.nii", "--modality", NASTY[8]]
    slice_set(read_spec(words))
    patients = [f"{'-_'[number % 2]}{number}" for number in range(len(names))]
    rows = read_rows(place / "set")
    assert {row["name"] for row in rows} == {f"{patient}_{n}" for patient in patients for n in range(2)}
    sources = sorted({row["source"] for row in rows})
    told = [f"{name[:100]}@{patient}@t2.nii" for name, patient in zip(names, patients, strict=True)]
    assert sources == sorted(map(in_csv, told))
    return {place / "set/manifest.csv": patients, place / "set/dataset.json": [*patients, *told, NASTY[8]]}


@writes(
    *(f"engine/run_folder.py: RunFolder.{name}" for name in ("begin", "write_text", "write_table")),
    *(
        "processes/ownership.py: note_made",
        "report.py: main",
        "engine/run_folder.py: CsvLog.__init__",
        "analysis/plots/canvas.py: save",
    ),
    *("analysis/plots/pictures.py: draw_frame", "preprocess/data_report.py: report"),
)
def training(place):
    """A run on slices of such names, in a folder of such a name, and all that is drawn and told of it."""
    patients = [text for text in SLICES if text[0] != "."][::4]
    root, rng = place / "$x_{$ |<b>", np.random.default_rng(0)
    for number, patient in enumerate(patients):
        for folder, array in zip(("IMG", "GT"), disc_slice(rng, True, 200, 60), strict=True):
            path = root / ("train" if number < 2 else "val") / folder / f"{patient}_0.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
    write_card(root, {"name": "x\n\\input{y}", "split_unit": "patient", "class_names": ["_", "a | b\n# $x_{$ \udce9"]})
    run = place / "_=1+1 $\\frac{$"
    words = ["--target_dataset", root, "--workdir", run, "--target_folders", FOLDERS, "--target_losses", CROSS_ENTROPY]
    words += ["--grp_regex", r"(?s)(.+)_(\d+)", "--n_class", 2, "--network", "Dimwit", "--n_epoch", 1, "--saveim", 1]
    program.main(list(map(str, [*words, "--cpu", "--entmap"])))
    found, seen = open_run(run), [f"{name}_0" for name in sorted(patients[2:])]
    assert sorted(found.names) == sorted(seen)
    assert {row["patient"] for row in found.patients("last")} == set(patients[2:])
    reporting.main(["--runs", str(run), "--out", str(place / "report")])
    flags = ["--runs", str(run), "--out"]
    for kind in ("curves", "boxes", "panel"):
        plot.main([kind, *flags, str(place / f"{kind}.png")])
    for kind, suffix in (("sizes", "png"), ("gif", "gif")):
        plot.main([kind, "--run", str(run), "--out", str(place / f"{kind}.{suffix}")])
    evaluate.main(["--run", str(run), "--device", "cpu"])
    evaluation = evaluated_folder(run)
    assert set(read_calibration(evaluation)["patient"]) == {EVERYONE, *patients[2:]}
    assert all(read_scan(evaluation, patient).size.all() for patient in patients[2:])
    surveys = [data_report.survey_set(root, (), "", r"(?s)(.+)_(\d+)")]
    data_report.report(surveys, None, place / "data")
    pictures = [path for path in place.glob("**/*") if path.suffix in (".png", ".gif") and root not in path.parents]
    assert len([path for path in pictures if run not in path.parents]) == 8
    return {
        run / "patients_last.csv": patients[2:],
        evaluation / CALIBRATION: patients[2:],
        run / "provenance.json": ["x\n\\input{y}"],
        place / "report.csv": [run.name, "x\n\\input{y}"],
        place / "report.md": [visible(run.name)],
        place / "report.tex": [run.name],
        place / "data/slices.csv": [root.name],
        place / "data/report.txt": [],
        place / "data/numbers.json": [root.name],
        **dict.fromkeys(pictures, ()),
    }


# --------------------------------------------------------------------------------------------------------- tests

# Writers of nothing that came as data, or of what a test of their own looks at.
OTHERS = {
    "preprocess/new_dataset.py: write": "tests/preprocess/test_new_dataset.py hands every word on to make",
    "preprocess/volume_set.py: _write_manifest": "rows of csv_text, as slice_tables has them",
    "preprocess/picture_set.py: _write_manifest": "rows of csv_text, as slice_tables has them",
    "prediction/prepared_set.py: _write_manifest": "likewise",
    "preprocess/phantom/__main__.py: make_cohort": "its own words",
    "preprocess/phantom/archive.py: write_scan": "its own words",
    "preprocess/phantom/decathlon.py: write_contents": "its own words",
    "preprocess/unpack.py: unpack": "json of names and digests",
    "preprocess/size_priors.py: check_all": "rows of csv_text: columns of a csv, numbers",
    "prediction/label_tables.py: write_text": "tests/prediction/test_label_tables.py calls classes oddly",
    "prediction/label_tables.py: write_label_tables": "likewise",
    "prediction/forms.py: _bids_notes": "likewise, the table; all else is of its own words",
    "prediction/forms.py: _nnunet_notes": "json",
    "prediction/stress.py: begin_table": "json of names and digests",
    "prediction/stress.py: run_test": "rows of csv_text, as patients_last.csv has them",
    "engine/run_folder.py: CsvLog.append": "numbers",
    "score_masks.py: main": "numbers",
    "selection/choosing.py: save": "tests/test_choose.py names runs oddly; all else is of its own words",
    "datasets/cache.py: _make": "json of names, shapes and digests",
    "datasets/volume_files.py: VolumeFolder.open": "json of names, shapes and digests",
    "processes/quoting.py: csv_text": "the csv of all others",
    "nets/network_folder.py: write_network_folder": "json, which comes back as it was or is refused",
    "prediction/bundle.py: write_bundle": "a card whose words for_markdown writes, as in the tables",
    "prediction/montage.py: write_page": "tests/prediction/test_montage.py names patients and classes oddly",
    "prediction/monai_bundle.py: write_monai_bundle": "json of its own words and of class names",
    "study/asking.py: write_asked": "json of names",
    "study/plan.py: write_plan": "json of names",
    "study/evaluate.py: write": "rows of csv_text, and json; written here all the same",
    "study/report.py: write_report": "json of names and digests",
    "study/report.py: write_texts": "tables, as those of report.py",
    "study/page/page.py: write_page": "tests/study/test_page.py names rows and patients oddly",
}
PACKAGES = ("processes", "files", "datasets", "nets", "methods", "engine", "analysis", "preprocess", "prediction")
PACKAGES += ("selection", "study")
MODULES = [*ROOT.glob("*.py"), *(path for package in PACKAGES for path in ROOT.glob(f"{package}/**/*.py"))]


def opens_text(call):
    """Whether a call opens a file for text, or makes one of words."""
    if not isinstance(call, ast.Call):
        return False
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    modes = [
        arg.value for arg in [*call.args, *(word.value for word in call.keywords)] if isinstance(arg, ast.Constant)
    ]
    is_text = any(isinstance(mode, str) and re.fullmatch("[wax]t?[+]?", mode) for mode in modes)
    called = ast.unparse(call.func)
    return (
        name in ("write_text", "to_csv", "savefig", "to_html", "to_markdown", "to_latex", "FigureCanvasAgg")
        or (name in ("open", "atomic_write", "fdopen") and is_text)
        or called in ("csv.writer", "csv.DictWriter")
    )


def writers_in(path):
    found = set()

    def walk(node, names):
        for child in ast.iter_child_nodes(node):
            if opens_text(child) and not re.match(r"self\.(folder\.)?write_", ast.unparse(child.func)):
                found.add(f"{path.relative_to(ROOT)}: {'.'.join(names)}")
            inner = isinstance(child, ast.FunctionDef | ast.ClassDef)
            walk(child, [*names, child.name] if inner else names)

    walk(ast.parse(path.read_text(encoding="utf-8")), [])
    return found


def test_every_writer_is_listed():
    found = set().union(*map(writers_in, MODULES))
    assert found - WRITERS.keys() - OTHERS.keys() == set(), "writers that no test hands names of any letters to"
    assert (WRITERS.keys() | OTHERS.keys()) - found == set(), "no writers any more"


def test_a_writer_that_is_new_is_found(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "new.py").write_text(
        "class A:\n    def f(self):\n        with atomic_write(p, 'w') as g: g.write('x')\n"
    )
    assert writers_in(tmp_path / "new.py") == {"new.py: A.f"}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("make", [tables, *dict.fromkeys(WRITERS.values())], ids=lambda make: make.__name__)
def test_names_of_any_letters_are_written_as_names_and_found_again(make, place):
    profile = cProfile.Profile()
    files = profile.runcall(make, place)
    codes = [each.code for each in profile.getstats() if not isinstance(each.code, str)]
    ran = {f"{code.co_filename.removeprefix(f'{ROOT}/')}: {code.co_qualname}" for code in codes}
    assert {name for name in WRITERS if WRITERS[name] is make} - ran == set()
    for path, words in files.items():
        found = read(path)
        shown = map({".csv": in_csv, ".json": str, ".html": str}.get(path.suffix, visible), words)
        assert [word for word in shown if word not in found] == [], path
    assert not [path for path in place.glob("**/PWNED*") if path.name != "PWNED"]


@pytest.mark.parametrize("name", ["a\nb", "a\rb", "\udce9"])
def test_a_slice_whose_name_no_list_can_hold_is_told(tmp_path, name):
    folder = tmp_path / "set/val/IMG"
    folder.mkdir(parents=True)
    Image.fromarray(np.zeros((2, 3), np.uint8)).save(folder / f"{name}_0.png")
    args = tags.parse_args(["page", "--data", str(tmp_path / "set"), "--out", str(tmp_path / "t"), "--classes", "a"])
    with pytest.raises(UserError, match="1 slices have names with a line break.*rename them"):
        args.run(args)
