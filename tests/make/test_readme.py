"""Every command of README and docs: make is run dry in a checkout, python is parsed, one's own data is tried."""

import argparse
import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from preprocess.archives.layout import slice_archive
from preprocess.slice_volumes import read_spec
from tests.make.test_makefiles import ROOT, checkout  # noqa: F401  a fixture

PAGES = {page: (ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "sizes/README.md")}
PAGES |= {f"docs/{path.name}": path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("docs/*.md"))}
README, DATA = PAGES["README.md"], PAGES["docs/data.md"]
COMMAND = re.compile(r"(?:for s in [\d ]+; do )?((?:make|python) .*?|make)(?:; done)?")


def commands(text):
    """Of the blocks, and in the line; `s` is a seed, and what is left out by … is known."""
    blocks = re.findall(r"^```\n(.*?)^```$", text, re.S | re.M)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M))
    lines = [line.replace("… --count", "python -m tests.tools.torture --count") for line in lines]
    found = [COMMAND.fullmatch(line.strip()) for line in lines]
    return [match[1].replace("$s", "1") for match in found if match and "…" not in match[1] and "<" not in match[1]]


ALL = list(dict.fromkeys(command for text in PAGES.values() for command in commands(text)))
EXAMPLE = [line for line in ALL if "sfda_half" in line]  # the run that docs/makefiles.md adds to a makefile
NEW_DATASET = [line for line in commands(README) if "new_dataset" in line or "mine.make" in line]
PREDICT = [
    line for line in commands(DATA) if "predict.py --weights" in line and "nnunet" not in line
]  # which is not here
OWN_DATA = [line for line in commands(DATA) if re.search(r"slice_volumes|size_priors make|G_RGX", line)]


@pytest.fixture(autouse=True)
def _use_the_fixture(checkout):  # noqa: F811
    """All of these run in the copy."""


def test_commands_are_found():
    assert len(ALL) > 80
    assert len(OWN_DATA) == 4
    assert len(NEW_DATASET) == 3


@pytest.mark.parametrize(
    "command", [line for line in ALL if line.startswith("make") and line not in NEW_DATASET + EXAMPLE]
)
def test_make_command(checkout, command):  # noqa: F811
    words = [word for word in shlex.split(command)[1:] if not word.startswith("CC=")]
    done = subprocess.run(["make", "-n", *words], cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr.replace("jobserver", "")


def test_the_experiment_of_the_lesson(checkout):  # noqa: F811
    """Its two lines, put where the page says, are a run."""
    (block,) = re.findall(r"^```make\n(ABL .*?)^```$", PAGES["docs/makefiles.md"], re.S | re.M)
    text, last = (checkout / "prostate.make").read_text(), "include make/rules.mk\n"
    (checkout / "half.make").write_text(text.replace(last, block + last))
    assert len(EXAMPLE) == 2
    for command in EXAMPLE:
        words = shlex.split(command.replace("prostate.make", "half.make"))
        done = subprocess.run([*words, "-n"], cwd=checkout, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "lamb_consprior" in done.stdout


def write_patient(folder: Path, number: int, inside: float) -> None:
    rng = np.random.default_rng(number)
    mask = np.zeros((24, 20, 6), np.uint8)
    mask[6:16, 5:14, 1:5] = 255
    image = np.where(mask, inside, 100) + rng.normal(0, 10, mask.shape)
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, array in (("t2", image.astype(np.float32)), ("mask", mask)):
        nib.save(nib.Nifti1Image(array, np.diag([1.5, 1.5, 3, 1])), folder / f"case{number:02d}_{suffix}.nii.gz")


def write_sites(checkout):  # noqa: F811
    for number in range(8):
        write_patient(checkout / "old", number, 300)
        write_patient(checkout / "new", number + 20, 200)


def test_one_s_own_data_in_four_commands(checkout, python):  # noqa: F811
    write_sites(checkout)
    for command in OWN_DATA:
        words = shlex.split(command)
        words = [python, *words[1:]] if words[0] == "python" else [*words, f"CC={python}"]
        if words[0] == "make":
            words += ["NET=Dimwit", "EPC=1", "DEBUG=--debug", "runs"]
        elif "preprocess.slice_volumes" in words:
            words += ["--size", "32", "32"]  # more than these volumes have; the page's 256 take most of a minute
        done = subprocess.run(words, cwd=checkout, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    log = (checkout / "results/prostate/sfda/provenance.json").read_text()
    assert '"phantom": null' in log
    for command in PREDICT:
        run(checkout, python, command, ["--n_epoch", "1"] if "--adapt" in command else [])
    for folder in ("predictions", "predictions_adapted"):
        masks = sorted((checkout / folder).glob("*.nii.gz"))
        assert len(masks) == 8
        assert nib.load(masks[0]).shape == (24, 20, 6)


def test_a_makefile_of_one_s_own(checkout, python):  # noqa: F811
    """The data of the test before; nothing is trained."""
    write_sites(checkout)
    first, *others = NEW_DATASET
    run(checkout, python, first)
    for command in others:
        done = subprocess.run([*shlex.split(command), "-n"], cwd=checkout, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "warning" not in done.stderr.replace("jobserver", "")
    assert len(others) == 2


def run(checkout, python, command, more=()):  # noqa: F811
    words = [python, *shlex.split(command)[1:], *more]
    done = subprocess.run(words, cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_one_s_own_volumes_in_one_command(checkout, python):  # noqa: F811
    for number in range(8):
        write_patient(checkout / "old", number, 300)
        write_patient(checkout / "new", number + 20, 200)
    (command,) = [line for line in commands(DATA) if "volume_set" in line]
    run(checkout, python, command)
    counts = {
        split: len(list((checkout / "data/mine" / split / "IMG").iterdir())) for split in ("train", "val", "unlabelled")
    }
    assert counts == {"train": 6, "val": 2, "unlabelled": 8}
    assert np.load(checkout / "data/mine/train/GT/case00.npy").shape == (6, 20, 24)


class Parsed(BaseException):
    """The words are all known; nothing is done with them."""


@pytest.mark.parametrize("command", [line for line in ALL if line.startswith("python")])
def test_python_command_is_understood(checkout, command, monkeypatch):  # noqa: F811
    parse, depth, left = argparse.ArgumentParser.parse_known_args, [], []

    def outermost(self, *args, **more):
        depth.append(1)
        told = parse(self, *args, **more)
        depth.pop()
        if not depth:
            left.extend(told[1])
            raise Parsed
        return told

    _, program, *words = shlex.split(command)
    name = words.pop(0) if program == "-m" else Path(program).stem
    if name == "pytest":
        path, _, word = words
        assert re.search(rf"def test_\w*{word}", (ROOT / path).read_text())
        return
    module = importlib.import_module(name)
    module = importlib.import_module(f"{name}.__main__") if hasattr(module, "__path__") else module
    monkeypatch.chdir(checkout)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", outermost)
    monkeypatch.setattr(sys, "argv", [name, *words])
    start = getattr(module, "main", lambda: slice_archive(module))
    given = (module.__doc__, module.campaign) if name.startswith("tests.tools.fuzz_") else ()
    with pytest.raises(Parsed):
        start(*given)
    monkeypatch.undo()
    if left:
        read_spec(["--image", "IMG=a", "--label", "b", "--patient", "(c)", *left])


@pytest.mark.parametrize("page", PAGES)
def test_what_is_linked_exists(page):
    for link in re.findall(r"\]\(([^)]+)\)", PAGES[page]):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        linked = (ROOT / page).parent / path if path else ROOT / page
        assert linked.is_file(), link
        titles = re.findall(r"^#+ (.+)$", linked.read_text(), re.M) if anchor else []
        slugs = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
        assert not anchor or anchor in slugs, link


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_is_named_exists(page):
    others = {"mine.make", "main_sfda.py"}  # one that a command makes, and one of the published code
    for path in set(re.findall(r"`((?:\w+/)*\w+\.(?:py|mk|make))`", PAGES[page])) - others:
        assert (ROOT / path).is_file(), path


def test_every_file_of_the_top_level_has_its_place():
    house = README.partition("## Where is what")[2].partition("\n## ")[0]
    named = set(re.findall(r"`([\w.]+/?)`", house))
    files = {path.name for kind in ("*.py", "*.make") for path in ROOT.glob(kind)}
    packages = {f"{path.parent.name}/" for path in ROOT.glob("[a-z]*/__init__.py")}
    assert files | packages <= named


def test_every_page_is_linked():
    assert {f"docs/{path.name}" for path in ROOT.glob("docs/*.md")} <= set(re.findall(r"\]\(([^)#]+)", README))
    assert len(README.splitlines()) <= 190


def test_every_floor_is_on_its_page():
    from test_house import FLOORS

    rows = re.findall(r"^\| \d+ \| ([^|]+) \|", PAGES["docs/design.md"], re.M)
    assert [set(re.findall(r"`(\w+)`", row)) for row in rows] == FLOORS


def test_every_file_of_rules_is_explained():
    page = PAGES["docs/makefiles.md"]
    assert {path.name for path in ROOT.glob("make/*.mk")} <= set(re.findall(r"`(?:make/)?(\w+\.mk)`", page))
