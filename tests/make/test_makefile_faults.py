"""A makefile that is edited wrongly says so before anything is made; what a run is made of is read off its line."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tools.checkout import ROOT, copy_rules

LINE = "$(RD)/mine: private OPT = $(WEIGHTS) --method sfda"
END = "include make/rules.mk"
BEGIN = "include make/adaptation.mk"


def dry(makefile, *words, cwd=ROOT):
    words = ["make", "-n", f"CC={sys.executable}", "-f", str(makefile), *words]
    return subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=600)


def edited(folder, *changes, makefile="prostate.make"):
    text = (ROOT / makefile).read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / makefile).write_text(text)
    return folder / makefile


FAULTS = {
    "a name without a line": (
        (END, f"ABL += mien\n{END}"),
        r"mien has no line\. Write `\$\(RD\)/mien: private OPT = …`",
    ),
    "a line without a name": ((END, f"{LINE}\n{END}"), "this is the line of mine, which no list names"),
    "a line of an unnamed run below": ((END, f"{END}\n{LINE}\n"), "this is the line of mine, which no list names"),
    "a misspelt name in a list": (
        ("BAS     += selftrain ", "BAS     += selftrian "),
        "line of selftrain, which no list",
    ),
    "a misspelt variable": ((END, f"ABL += mine\n{LINE} $(ADAPTT)\n{END}"), r"line of mine needs \$\(ADAPTT\)"),
    "a misspelt macro": (
        (END, f"ABL += mine\n{LINE} $(call priors,dumbpredwtags)\n{END}"),
        r"the line of mine needs \$\(priors\), which nothing defines",
    ),
    "a fact that is missing": (("N_CLASS = 2", "N_CLAS = 2"), r"needs \$\(N_CLASS\), which nothing defines"),
    "a list that is changed too late": ((END, f"{END}\nABL += mine\n"), "ABL is changed below `include make/rules.mk`"),
    "data that are changed too late": ((END, f"{END}\nDATA := data/x\n"), "DATA is changed below"),
    "a line above the first include": ((BEGIN, f"{LINE}\n{BEGIN}"), "this line stands above the first include"),
    "a run with the name of a goal": ((END, f"ABL += plot\n{END}"), "no run can be called plot"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_an_error_that_points_at_its_line(fault, tmp_path):
    change, told = FAULTS[fault]
    makefile = edited(tmp_path, change)
    done = dry(makefile, "sfda")
    assert done.returncode == 2
    assert re.search(told, done.stderr), done.stderr
    assert len(done.stderr.splitlines()) == 1
    number = int(re.search(rf"{re.escape(str(makefile))}:(\d+): ", done.stderr)[1])
    word = re.search(
        r"mien|mine|selftrain|ADAPTT|priors|N_CLASS|ABL|DATA|plot|$", done.stderr.partition(f":{number}: ")[2]
    )
    assert word[0] in makefile.read_text().splitlines()[number - 1]


def test_lists_that_are_typed_leave_the_other_lines_alone():
    done = dry("prostate.make", "TRN=cesource sfda", "BAS=", "PRETRAIN=", "runs")
    assert done.returncode == 0, done.stderr
    assert re.findall(r"--workdir results/prostate/(\w+)_tmp", done.stdout) == ["cesource", "sfda"]


@pytest.mark.parametrize("where", [BEGIN, END])
def test_a_setting_counts_wherever_it_stands(where, tmp_path):
    """Above the first include or below the last one."""
    line = "ADAPT = --l_rate 7e-7\nBATCH = 3"
    change = (where, f"{line}\n{where}" if where == BEGIN else f"{where}\n{line}\n")
    command = dry(edited(tmp_path, change), "sfda").stdout.splitlines()[-1]
    assert "--l_rate 7e-7" in command
    assert "--batch_size 3" in command


@pytest.mark.parametrize("makefile", ["prostate.make", "wmh.make", "brats.make"])
def test_the_example_at_the_end_of_a_makefile_trains(makefile, tmp_path):
    text = (ROOT / makefile).read_text()
    example = text[text.index("# -- an experiment of your own") :]
    name = re.search(r"^# ABL \+= (\w+)$", example, re.M)[1]
    begin = example.index("# ABL")
    uncommented = example[:begin] + re.sub(r"^# ", "", example[begin:], flags=re.M)
    done = dry(edited(tmp_path, (example, uncommented), makefile=makefile), name)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    assert "_tmp --resume" in done.stdout.splitlines()[-1]
    assert f"/{name}_tmp" in done.stdout.splitlines()[-1]


# ---------------------------------------------------------------------------------------- what a run is made of

TOY = """
SET     := toy
VOLUMES :=
DATA    := data/source data/target
include make/adaptation.mk
ABL      = other
INF      =
N_CLASS  = 2
NU       = [0.1,0.9]
TT_DATA  = []
PLOTS    =
$(RD)/other: private OPT = $(WEIGHTS) --target_losses "[('KLPropInv', {}, $(call prior_from,my/sizes.csv,x), 's', 1)]"
include make/rules.mk
"""
TRAINED = """
import sys
from pathlib import Path
folder = Path(sys.argv[sys.argv.index("--workdir") + 1])
folder.mkdir()
for name in ("last.pkl", "best_3d.pkl"):
    (folder / name).write_text("weights")
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A toy experiment whose runs are all finished."""
    folder = tmp_path_factory.mktemp("toy")
    copy_rules(folder)
    (folder / "toy.make").write_text(TOY)
    (folder / "main.py").write_text(TRAINED)
    for name in ("data/source", "data/target", "sizes", "my"):
        (folder / name).mkdir(parents=True)
    for name in ("sizes/toy.csv", "my/sizes.csv"):
        (folder / name).touch()
    words = ["make", "-s", f"CC={sys.executable}", "-f", "toy.make", "runs", "other", "cesourceim"]
    subprocess.run(words[:-1], cwd=folder, check=True, capture_output=True)
    return folder


STARTED = ["SFDA_TrueSize", "noadap", "other", "sfda", "sfda_lr0"]
READERS = {
    "sizes/toy.csv": ["SFDA_TrueSize", "sfda", "sfda_lr0"],
    "my/sizes.csv": ["other"],
    "data/target": [*STARTED, "fs"],
    "data/source": ["cesource", *STARTED],  # those that start from its weights too
    "results/toy/cesource/best_3d.pkl": STARTED,
    "results/toy/cesource/last.pkl": [],
}


@pytest.mark.parametrize("changed", READERS)
def test_what_changed_makes_its_readers_anew_and_no_other(trained, changed):
    done = dry("toy.make", "-W", changed, "runs", "other", cwd=trained)
    assert done.returncode == 0, done.stderr
    again = sorted(re.findall(r"--workdir results/toy/(\w+)_tmp", done.stdout))
    if changed == "data/source":  # a run's weights are order-only: its readers follow when it is made
        again = sorted({*again, *STARTED})
    assert again == sorted(READERS[changed])


def test_nothing_changed_makes_nothing(trained):
    assert "main.py" not in dry("toy.make", "runs", "other", cwd=trained).stdout


def test_a_table_of_sizes_that_is_missing_is_named(trained):
    (trained / "my/sizes.csv").rename(trained / "my/moved.csv")
    try:
        done = dry("toy.make", "other", cwd=trained)
    finally:
        (trained / "my/moved.csv").rename(trained / "my/sizes.csv")
    assert done.returncode == 2
    assert "my/sizes.csv" in done.stderr


def test_a_prior_that_no_run_asks_for_is_not_missed_in_the_archive(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "toy")
    (folder / "sizes/toy.csv").unlink()
    (folder / "report.py").write_text("import sys\nopen(sys.argv[-1] + '.txt', 'w').write('a table')\n")
    words = ["make", f"CC={sys.executable}", "-f", "toy.make", "TRN=cesource noadap", "ABL=", "INF="]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert len(list((folder / "archives").glob("*.tar.gz"))) == 1


# ------------------------------------------------------------------------------------------------------- show


def shown(makefile, *words):
    volumes = ROOT / "data" / "prostate_volumes"
    was_there = volumes.exists()
    done = subprocess.run(
        ["make", "-f", makefile, "show", *words], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert volumes.exists() == was_there  # nothing is made
    return done


def test_show_says_each_flag_and_its_line():
    done = shown("prostate.make", "RUN=sfda", "EPC=7")
    assert done.returncode == 0, done.stderr
    first, *lines = done.stdout.splitlines()
    for file in ("results/prostate/cesource/best_3d.pkl", "sizes/prostate.csv", "data/prostate_target"):
        assert file in first
    places = {line.split()[0]: line.split()[-2:] for line in lines if line.startswith("  --")}
    assert places["--n_epoch"] == ["command", "line"]
    for flag, name in (("--n_class", "N_CLASS"), ("--grp_regex", "G_RGX"), ("--l_rate", "ADAPT"), ("--method", "OPT")):
        place, said = places[flag]
        file, number = place.split(":")
        assert said == name
        text = (ROOT / file).read_text().splitlines()[int(number) - 1]
        assert name in text, (flag, text)
    assert places["--n_class"][0].startswith("prostate.make:")
    assert places["--method"][0].startswith("make/adaptation.mk:")


def test_show_says_which_line_computes_a_value():
    done = shown("prostate.make", "RUN=sfda_at_3e-5", "RATES=3e-5")
    assert re.search(r"--l_rate +3e-5 +make/ablations.mk:\d+  OPT\n", done.stdout)
    assert re.search(r"--n_epoch +\d+ +make/adaptation.mk:\d+  PROBE\n", done.stdout)


def test_show_reads_a_makefile_whose_runs_share_no_flag():
    words = ["make/show.py", "results/x/mine", "", "prostate.make", "--", "--", "--l_rate", "1", "--", "--n_epoch=5"]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    told = [line.split() for line in done.stdout.splitlines()[1:]]
    assert told == [["--l_rate", "1"], ["--n_epoch", "5", "the", "command", "line"]]


def test_show_of_no_run_names_the_runs():
    done = shown("prostate.make")
    assert done.returncode == 2
    assert "show prints one run: RUN=sfda, or another of cesource noadap" in done.stderr


# ------------------------------------------------------------------------------------------------ what is shared


def said_lines(makefile):
    lines = (ROOT / makefile).read_text().splitlines()
    return [" ".join(line.split()) for line in lines if line.strip() and not line.lstrip().startswith("#")]


@pytest.mark.parametrize("makefiles", [("prostate.make", "whs.make", "ivd.make"), ("isles.make", "wmh.make")])
def test_makefiles_of_a_kind_hold_their_own_facts(makefiles):
    lines = {name: said_lines(name) for name in makefiles}
    others = {name: {line for other in makefiles if other != name for line in lines[other]} for name in makefiles}
    shared = sum(line in others[name] for name in makefiles for line in lines[name])
    assert shared < 0.25 * sum(map(len, lines.values()))


def test_short_names_are_goals():
    done = dry("ivd.make", "-B", "entropy")
    assert "--workdir results/ivd/entropy_tmp" in done.stdout
    assert Path("results/ivd/entropy").name in done.stdout
