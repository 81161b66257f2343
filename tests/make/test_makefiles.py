"""The makefiles as their users type them: dry runs without a warning, every line built, published lines pasted."""

import ast
import itertools
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prediction import bundle, stress
from processes.errors import UserError
from study import evaluate
from tests.tools.check_makefiles import check, dry_run, trainings
from tests.tools.checkout import ROOT, copy_files, copy_rules, tracked

ADAPTATION = ("spine.make", "prostate.make", "whs.make", "ivd.make", "sites.make")
BOUNDARY = ("acdc.make", "isles.make", "wmh.make")
CHOICES = (
    "sfda",
    "sfda_notags",
    "adaent",
    "tent",
    "ttas",
    "bnmix",
    "shot",
    "proto",
    "consist",
    "mean_teacher",
    "upl",
    "denoised",
    "selftrain",
)  # of prostate.make
MAKEFILES = (*ADAPTATION, *BOUNDARY, "gta5.make", "msd_prostate.make", "brats.make")
SMOKE = ("NET=Dimwit", "EPC=5", "DEBUG=--debug")

# ruff: noqa: E501, E101
# as published, with the folders and the csv that this repository makes
BOUNDARY_LINES = {
    "acdc": r"""
PASTED = [('img', png_transform, False), ('gt', gt_transform, True)]
$(RD)/ce: OPT = --losses="[('CrossEntropy', {'idc': [0, 1, 2, 3]}, 1)]" --folders="$(PASTED)+[('gt', gt_transform, True)]"
$(RD)/diceloss: OPT = --losses="[('DiceLoss', {'idc': [0, 1, 2, 3]}, 1)]" --folders="$(PASTED)+[('gt', gt_transform, True)]"
$(RD)/boundary: OPT = --losses="[('BoundaryLoss', {'idc': [0, 1, 2, 3]}, 1)]" --group --schedule --compute_3d_dice \
   --folders="$(PASTED)+[('gt', dist_map_transform, False)]"
""",
    **dict.fromkeys(
        ("isles", "wmh"),
        r"""
PASTED = [('in_npy', torch.tensor, False), ('gt_npy', gt_transform, True)]
GT_MAP = --folders="$(PASTED)+[('gt_npy', gt_transform, True), \
	('gt_npy', dist_map_transform, False)]"
$(RD)/gdl: OPT = --losses="[('GeneralizedDice', {'idc': [0, 1]}, None, None, None, 1)]" --in_memory --compute_haussdorf \
   --folders="$(PASTED)+[('gt_npy', gt_transform, True)]"
$(RD)/gdl_surface_w: OPT = --losses="[('GeneralizedDice', {'idc': [0, 1]}, None, None, None, 1), \
	('SurfaceLoss', {'idc': [1]}, None, None, None, 0.1)]" $(GT_MAP)
$(RD)/gdl_surface_add: OPT = --losses="[('GeneralizedDice', {'idc': [0, 1]}, None, None, None, 1), \
	('SurfaceLoss', {'idc': [1]}, None, None, None, 0.01)]" $(GT_MAP) \
	--scheduler=AddWeightLoss --scheduler_params="{'to_add': [0, 0.01]}"
$(RD)/gdl_surface_steal: OPT = --losses="[('GeneralizedDice', {'idc': [0, 1]}, None, None, None, 1), \
	('SurfaceLoss', {'idc': [1]}, None, None, None, 0.01)]" $(GT_MAP) \
	--scheduler=StealWeight --scheduler_params="{'to_steal': 0.01}"
""",
    ),
}
PUBLISHED = r"""
results/prostate/sfda: OPT = --target_losses="[('EntKLProp', {'lamb_se':1, 'lamb_consprior':1,'ivd':True,'weights_se':[0.1,0.9],'idc_c': [1],'curi':True,'power': 1},'PredictionBounds', \
      {'margin':0,'dir':'high','idc':[0,1],'predcol':'dumbpredwtags','power': 1, 'mode':'percentage','sep':',','sizefile':'sizes/prostate.csv'},'norm_soft_size',1)]" \
           --val_target_folders="$(TT_DATA)" --do_hd 90 --saveim False --entmap --l_rate 0.000001 --n_epoch 100 --lr_decay 0.9 --target_folders="$(TT_DATA)" --model_weights="$(M_WEIGHTS_ul)" \

results/prostate/cesource: OPT =  --target_losses="$(L_OR)" --target_dataset "data/prostate_source" \
	     --network UNet --model_weights="" --lr_decay 1 \

"""


@pytest.mark.parametrize("makefile", MAKEFILES)
@pytest.mark.parametrize("words", [(), ("SIZE=full",), SMOKE])
def test_every_command_line_builds_without_a_warning(makefile, words, capsys):
    commands, _ = dry_run(makefile, *words)
    told = subprocess.run(
        ["make", "-f", makefile, *words, "help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    named = " ".join(
        re.findall(r"^(?:main runs|ablations|baselines|inference|few labels|pre-training):(.*)$", told.stdout, re.M)
    )
    assert check(makefile, *words) == len(named.split()) == len(trainings(commands))


def test_what_is_typed_wins_over_a_run_s_line():
    calls = trainings(dry_run("prostate.make", *SMOKE)[0])
    for call in calls:
        assert [call[-5], *call[-3:]] == ["--network", "--n_epoch", "5", "--debug"]
        pretrained = "contrast" in " ".join(call)
        assert call[-4] == ("PooledUNet:nG=2" if pretrained else "Dimwit")  # which has an encoder


def test_cflags_and_cc_reach_the_command():
    assert f"{sys.executable} -O main.py" in dry_run("prostate.make", "CFLAGS=-O")[0]


def variables():
    """Every name that a makefile sets or reads, but for make's own."""
    texts = "\n".join(
        (ROOT / name).read_text() for name in (*MAKEFILES, *(f"make/{path.name}" for path in ROOT.glob("make/*.mk")))
    )
    names = {*re.findall(r"^(?:override )?(\w+) *[:?+]?=", texts, re.M), *re.findall(r"\$\((\w+)[):]", texts)}
    return sorted(name for name in names if not name.startswith("MAKE"))


@pytest.mark.parametrize("makefile", MAKEFILES)
def test_the_environment_changes_no_command(makefile, monkeypatch, tmp_path):
    plain = dry_run(makefile)
    assert {"LINEAGE", "PLOTS", "LOCAL", "CC", "CFLAGS", "SEED", "RD", "M_WEIGHTS_ul"} < set(variables())
    for name in variables():
        monkeypatch.setenv(name, f"foreign$(shell touch {tmp_path}/run); touch {tmp_path}/run")
    assert dry_run(makefile) == plain
    assert not (tmp_path / "run").exists()


def test_what_python_is_called_is_not_told_to_what_it_starts(tmp_path):
    toy(tmp_path, "import os, sys\nfrom pathlib import Path\n" + WROTE_CC)
    done = make(tmp_path, "-f", "toy.make", "CFLAGS=-O", "results/toy/cesource")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "results/toy/cesource/CC").read_text() == "None None"


@pytest.mark.parametrize("makefile", MAKEFILES)
def test_launch_and_nproc_wrap_the_trainings_alone(makefile):
    words = ("LAUNCH=srun --gres=gpu:1", "NPROC=4", "CFLAGS=-O", "THREADS=3")
    commands, warnings = dry_run(makefile, *words)
    assert not warnings
    lines = [line for line in commands.splitlines() if re.search(r"srun|torch\.distributed|main\.py", line)]
    begin = "OMP_NUM_THREADS=3 PYTHON -m processes.lock renew RUN -- srun --gres=gpu:1 PYTHON -m torch.distributed.run "
    begin += "--standalone --no_python --nproc_per_node=4 PYTHON -O main.py --target_dataset "
    begin = re.escape(begin).replace("PYTHON", re.escape(sys.executable)).replace("RUN", r"results/\w+/[\w.]+")
    assert all(re.match(begin, line) for line in lines)
    assert len(lines) == len(trainings(commands)) == check(makefile, *words)


TEAM = """
import os, sys
from pathlib import Path
folder = Path(sys.argv[sys.argv.index("--workdir") + 1])
folder.mkdir(exist_ok=True)
told = [os.environ[name] for name in ("WORLD_SIZE", "OMP_NUM_THREADS", "LAUNCHED")]
(folder / os.environ["RANK"]).write_text(" ".join([*told, str(sys.flags.optimize)]))
"""


def test_every_process_of_a_training_is_launched_with_flags_and_threads(tmp_path):
    toy(tmp_path, TEAM, "PLOTS :=\n")
    words = ("NPROC=2", "CFLAGS=-O", "THREADS=1", "LAUNCH=env LAUNCHED=yes", "results/toy/cesource")
    done = make(tmp_path, "-f", "toy.make", *words)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "results" / "toy" / "cesource"
    assert {path.name: path.read_text() for path in run.iterdir()} == {"0": "2 1 yes 1", "1": "2 1 yes 1"}


WROTE_CC = """
folder = Path(sys.argv[sys.argv.index("--workdir") + 1])
folder.mkdir()
(folder / "CC").write_text(f"{os.environ.get('CC')} {os.environ.get('CFLAGS')}")
"""


def toy(folder, main, goals="PLOTS :=\nREPORT := results/toy/report.txt\n"):
    """A makefile of one run in a folder of its own, whose main.py is this text."""
    folder.mkdir(parents=True, exist_ok=True)
    copy_rules(folder)
    (folder / "main.py").write_text(main)
    (folder / "report.py").write_text("import sys\nopen(sys.argv[-1] + '.txt', 'w').write('a table')\n")
    (folder / "data").mkdir()
    (folder / "toy.make").write_text(
        "SET := toy\nVOLUMES :=\nDATA := data\ninclude make/begin.mk\nTRN = cesource\n"
        f"{goals}$(addprefix $(RD)/,$(TRN) $(ABL)): private OPT = --l_rate 1\ninclude make/rules.mk\n"
    )


WEIGHTS = """
import sys
from pathlib import Path
folder = Path(sys.argv[sys.argv.index("--workdir") + 1])
folder.mkdir()
(folder / "last.pkl").write_text("weights")
"""


@pytest.mark.parametrize("name", ["my project/p q", "x(y)&z [1] é", "it's $HOME"])
def test_the_archive_of_a_checkout_of_any_name_is_one_file(tmp_path, name):
    toy(tmp_path / name, WEIGHTS)
    done = make(tmp_path / name, "-f", "toy.make")
    assert done.returncode == 0, done.stderr
    (archive,) = (tmp_path / name / "archives").iterdir()
    words = re.fullmatch(r"[\w.]+-\d{6}-nogit-[\w.-]*\w-toy\.tar\.gz", archive.name)
    assert words, archive.name
    assert not list(tmp_path.rglob("*.part*"))
    assert "results/toy/cesource/last.pkl" in packed(archive)


def packed(archive):
    return subprocess.check_output(["tar", "tzf", archive], text=True).splitlines()


def test_no_archive_takes_the_place_of_another(tmp_path):
    """Another folder, another seed, the same runs made anew on the same day: four archives, the first as it was."""
    toy(tmp_path, WEIGHTS, "PLOTS :=\n")
    archives = {}
    for words in ((), ("RD=results/toy-1/",), ("SEED=1", "RD=results/toy"), ()):
        (tmp_path / "results/toy/cesource/last.pkl").exists() and (tmp_path / "results/toy/cesource/last.pkl").touch()
        done = make(tmp_path, "-f", "toy.make", *words)
        assert done.returncode == 0, done.stderr
        before, archives = archives, {path.name: path.stat() for path in (tmp_path / "archives").iterdir()}
        (new,) = archives.keys() - before
        folder = "toy-1" if "-1/" in str(words) else "toy"
        assert f"results/{folder}/cesource/last.pkl" in packed(tmp_path / "archives" / new)
        assert all(archives[name].st_ino == before[name].st_ino for name in before)
    assert not any(each.st_mode & 0o222 for each in archives.values())
    again = make(tmp_path, "-f", "toy.make")
    assert "Nothing to be done" in again.stdout
    assert len(list((tmp_path / "archives").iterdir())) == len(archives) == 4


SLOW = """#!/bin/sh
touch packing
until [ -e go ]; do sleep 0.1; done
exec gzip
"""


def test_two_makes_at_once_make_one_archive(tmp_path, monkeypatch):
    """The second starts while the first packs, which goes on once that one waits, or packs too."""
    toy(tmp_path, WEIGHTS, "PLOTS :=\n")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/pigz").write_text(SLOW)
    (tmp_path / "bin/pigz").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin{os.pathsep}{os.environ['PATH']}")
    words = ["make", f"CC={sys.executable}", "-f", "toy.make"]
    first = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.DEVNULL)
    while not (tmp_path / "packing").exists():
        time.sleep(0.1)
    (tmp_path / "packing").unlink()
    second = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    while not (tmp_path / "packing").exists() and "waiting for it" not in second.stdout.readline():
        time.sleep(0.1)
    (tmp_path / "go").touch()
    second.communicate()
    assert (first.wait(), second.returncode) == (0, 0)
    assert len(list((tmp_path / "archives").iterdir())) == 1


def test_whatever_is_finished_is_in_the_archive_whatever_its_name(tmp_path):
    runs = ["iter000", "ent_map", "-x", "y_tmp", "z" * 200]
    goals = f"TRN := {' '.join(runs)}\nABL := other\nPLOTS := results/iterations/data-report/a\n"
    made = "(folder / 'iter000/val').mkdir(parents=True)\n(folder / 'iter of mine').mkdir()\n"
    made += "(folder / 'candidates').mkdir()\n"
    made += "[(folder / 'candidates' / name).touch() for name in ('epoch_0005.pkl', 'epoch_mine.txt')]\n"
    toy(tmp_path, WEIGHTS + made, goals)
    (tmp_path / "results/iterations/data-report").mkdir(parents=True)
    (tmp_path / "results/iterations/data-report/a").touch()
    (tmp_path / "results/iterations/my notes").touch()
    (tmp_path / "results/iterations/other_tmp").mkdir()
    done = make(tmp_path, "-f", "toy.make", "RD=results/iterations")
    assert done.returncode == 0, done.stderr
    (archive,) = (tmp_path / "archives").iterdir()
    names = packed(archive)
    inside = [f"{run}/{name}" for run in runs for name in ("last.pkl", "iter of mine/", "candidates/epoch_mine.txt")]
    wanted = [*inside, "data-report/a", "my notes", "report.txt"]
    assert {*(f"results/iterations/{name}" for name in wanted), "toy.make", "make/rules.mk"} < set(names)
    results = [name.split("/")[2 : -1 if name.endswith("/") else None] for name in names if name.startswith("results")]
    assert results == sorted(results)  # in any file system
    left_out = ("other_tmp", "iter000/val", "epoch_0005.pkl")
    assert not [name for name in names if any(each in name for each in left_out)]


def test_the_archive_of_long_names_has_a_name_that_fits(tmp_path):
    checkout = tmp_path / ("-" + "c" * 200)
    toy(checkout, WEIGHTS, "PLOTS :=\n")
    folders = ["r" * 200, "r" * 199 + "s", "é"]
    for folder in folders:
        done = make(checkout, "-f", "toy.make", f"RD=results/{folder}")
        assert done.returncode == 0, done.stderr
    assert len(list((checkout / "archives").iterdir())) == len(folders)


REFUSED = [("-t", "make -t makes empty files"), ("SEED=1 2", "SEED is a whole number"), ("TRN=a&b", "Names of runs")]
FOLDERS = ("results/a b", "results/a'b", "results/$$HOME", "results/a&b", "results/a(b", "results/a[1]", "-x", "")


@pytest.mark.parametrize(("word", "told"), [*REFUSED, *((f"RD={folder}", "RD names one folder") for folder in FOLDERS)])
def test_make_refuses_what_would_leave_rubbish(tmp_path, word, told):
    toy(tmp_path, WEIGHTS)
    before = sorted(tmp_path.rglob("*"))
    done = make(tmp_path, "-f", "toy.make", word)
    assert done.returncode == 2
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


CHAIN = "TRN := cesource sfda fs\nresults/toy/sfda results/toy/fs: results/toy/cesource/last.pkl\n"


def test_b_of_a_run_makes_that_run_alone_anew(tmp_path):
    """Not the network that it starts from, and nothing of what hangs on that becomes stale."""
    toy(tmp_path, WEIGHTS, "PLOTS :=\n" + CHAIN)
    assert make(tmp_path, "-f", "toy.make", "runs").returncode == 0
    made = {run: (tmp_path / "results/toy" / run).stat().st_ino for run in ("cesource", "sfda", "fs")}
    again = make(tmp_path, "-f", "toy.make", "results/toy/sfda", "-B")
    assert again.returncode == 0, again.stderr
    now = {run: (tmp_path / "results/toy" / run).stat().st_ino for run in made}
    assert [run for run in made if made[run] != now[run]] == ["sfda"]
    assert "main.py" not in make(tmp_path, "-f", "toy.make", "runs", "-n").stdout
    all_anew = make(tmp_path, "-f", "toy.make", "runs", "-n", "-B").stdout
    assert all_anew.count("main.py") == 3


ASKED = [("SEED=1", "seed 0"), ("NET=ENet", "network UNet:nG=8"), ("EPC=9", "n_epoch 20"), ("DEBUG=--debug", "debug 0")]


def test_a_finished_run_of_other_arguments_is_told(tmp_path):
    text = "seed: 0\\nnetwork: UNet:nG=8\\nn_epoch: 20\\ndebug: 0\\n"
    toy(tmp_path, WEIGHTS + f"(folder / 'params.txt').write_text('{text}')\n")
    assert "Finished with" not in make(tmp_path, "-f", "toy.make", "runs").stdout
    for word, was in ASKED:
        told = make(tmp_path, "-f", "toy.make", "results/toy/cesource", word).stdout.splitlines()
        assert f"results/toy/cesource ({was})" in told[0]
        assert "up to date" in told[1]
    for words in ((), ("SEED=0", "NET=UNet:nG=8", "EPC=20"), ("SEED=1", "help"), ("SEED=1", "-B", "-n")):
        assert "Finished with" not in make(tmp_path, "-f", "toy.make", "results/toy/cesource", *words).stdout


def with_lines(folder, makefile, lines, change=("", "")):
    """The path of a copy with these lines at its end, outside the repository: other tests look at what lies there."""
    path = folder / makefile
    path.write_text((ROOT / makefile).read_text().replace(*change) + lines)
    return str(path)


def test_published_lines_pasted_build(tmp_path, capsys):
    pasted = with_lines(tmp_path, "prostate.make", PUBLISHED)
    check(pasted, "SIZE=full")
    calls = trainings(dry_run(pasted, "SIZE=full")[0])
    (sfda,) = [call for call in calls if "results/prostate/sfda_tmp" in call]
    assert "0.000001" in sfda
    assert "plot.py selection" not in dry_run(pasted, "SIZE=full")[0]  # it keeps no network to choose from
    assert "--method" not in sfda[sfda.index("--resume") :]  # the published line names no method


@pytest.mark.parametrize("name", BOUNDARY_LINES)
def test_published_lines_of_the_boundary_loss_pasted_build(name, tmp_path, capsys):
    pasted = with_lines(tmp_path, f"{name}.make", BOUNDARY_LINES[name])
    check(pasted, "SIZE=full")
    calls = trainings(dry_run(pasted, "SIZE=full")[0])
    seen = [" ".join(call) for call in calls]
    transform = "png_transform" if name == "acdc" else "torch.tensor"
    pasted_runs = BOUNDARY_LINES[name].count("OPT =")
    assert sum(f"{transform}, False" in call and "--losses=" in call for call in seen) == pasted_runs


@pytest.mark.parametrize("name", BOUNDARY)
def test_parity_trains_on_published_maps_with_the_published_rule(name):
    plain, parity = (dry_run(name, "SIZE=full", *words)[0] for words in ((), ("PARITY=1",)))
    assert "--schedule " in parity
    assert "dist_map_legacy" in parity
    assert "'HausdorffDTLoss', {'inner': True," in parity
    assert f"--network {'PublishedENet' if name == 'acdc.make' else 'UNet:nG=64'} " in parity
    assert all(
        "--betas 0.9 0.99 " in line for line in plain.splitlines() if "main.py" in line and "PooledUNet" not in line
    )
    assert "--schedule " not in plain
    few = [line for line in plain.splitlines() if "PooledUNet" in line]  # as published with or without PARITY
    assert not [line for line in plain.splitlines() if line not in few and ("legacy" in line or "inner" in line)]


def test_parity_of_pseudo_labels_draws_the_threshold_as_published():
    plain, parity = (dry_run("brats.make", *words)[0] for words in ((), ("PARITY=1",)))
    published = "--threshold_moves network --threshold_draw published"
    of_learnt = [line for line in parity.splitlines() if "--threshold learnt" in line]
    assert of_learnt
    assert all(published in line for line in of_learnt)
    trained = [line for line in parity.splitlines() if "main.py" in line]
    assert all("--skip_empty 0.005" in line for line in trained)
    assert published not in plain
    assert "--skip_empty" not in plain


@pytest.mark.parametrize("name", ["prostate.make", "acdc.make", "gta5.make", "brats.make"])
def test_parity_computes_in_float32_on_any_device(name):
    plain, parity = (dry_run(name, *words)[0].splitlines() for words in ((), ("PARITY=1",)))
    assert not [line for line in plain if "--precision" in line]
    assert all("main.py --precision fp32 --" in line for line in parity if "main.py" in line)


@pytest.mark.parametrize("name", ADAPTATION)
def test_the_choice_is_drawn_where_networks_are_kept_to_choose_from(name):
    where = "RD=results/none_is_there"  # a choice that was made in this checkout is drawn in any case
    drawn = "plot.py selection --run results/none_is_there/sfda --out results/none_is_there/selection.png"
    assert drawn in dry_run(name, where)[0]
    assert drawn not in dry_run(name, where, "KEEP=")[0]
    assert drawn not in dry_run(name, where, "PARITY=1")[0]


@pytest.mark.parametrize("name", ADAPTATION)
def test_what_was_expected_of_sfda_is_drawn(name):
    assert f"plot.py risk --run results/{name[:-5]}/sfda --out results/{name[:-5]}/risk.png" in dry_run(name)[0]


@pytest.mark.parametrize("files", [["last.pkl"], ["last.pkl", "selection.csv"]])
def test_a_run_of_before_there_was_a_choice_is_not_asked_for_its_picture(tmp_path, files):
    for name in files:
        (tmp_path / "sfda").mkdir(exist_ok=True)
        (tmp_path / "sfda" / name).touch()
    commands, _ = dry_run("prostate.make", f"RD={tmp_path}")
    assert ("plot.py selection" in commands) == ("selection.csv" in files)


WITHOUT_LABELS = [
    *(run for run in CHOICES if run != "bnmix"),
    "entropy",
    "klprop",
    "sfda_mean",
    "sfda_margin",
    "sfda_reestimate",
    "sfda_em",
    "sfda_anchor",
    "sfda_wavg",
    "sar",
    "eata",
    "deyo",
    "cotta",
    "rotta",
    "cpr",
    "cda",
    "bnrefresh",
    "sfda_onsource",
    "selftrain_vi",
]


@pytest.mark.parametrize(("makefile", "folder"), [("prostate", "IMG"), ("ivd", "Inn")])
def test_a_network_estimates_sizes_from_the_target_s_images_alone(makefile, folder):
    """Source and target of the discs are two folders of one set."""
    commands, _ = dry_run(f"{makefile}.make", "sfda_em")
    (line,) = [line for line in commands.replace("\\\n", " ").splitlines() if "--network_weights" in line]
    words = shlex.split(line)
    weights = "last" if makefile == "ivd" else "best_3d"
    assert words[words.index("--network_weights") + 1] == f"results/{makefile}/cesource/{weights}.pkl"
    assert words[words.index("--folder") + 1] == folder
    assert "--unlabelled" in words
    assert words[words.index("--out") + 1] == f"results/{makefile}/network_sizes.csv"


@pytest.mark.parametrize("words", [(), ("SIZE=full",), SMOKE, ("KEEP=--keep_every 2",), ("PARITY=1",)])
def test_adaptations_without_labels_keep_networks_and_one_is_chosen_among_their_choices(words):
    commands, _ = dry_run("prostate.make", *words)
    every = {"KEEP=--keep_every 2": "2", "PARITY=1": None}.get("".join(words), "5")
    for call in trainings(commands):
        run = Path(call[call.index("--workdir") + 1]).name.removesuffix("_tmp")
        kept = call[call.index("--keep_every") + 1] if "--keep_every" in call else None
        assert kept == (every if run in WITHOUT_LABELS else None), run
    (line,) = [line for line in commands.splitlines() if "choose.py" in line]
    runs = " ".join(f"results/prostate/{run}" for run in CHOICES)
    assert line.endswith(f"choose.py --runs {runs} --out results/prostate/choice --overwrite")
    (chosen,) = [call for call in trainings(commands) if "results/prostate/chosen_tmp" in call]
    assert chosen[chosen.index("--model_weights") + 1] == "results/prostate/choice/chosen.pkl"


def test_adaptations_start_at_the_best_of_several_source_networks():
    """Each is shown in the grey levels that it is at home in; what is compared with noadap goes on starting at cesource."""
    for more, share in (((), "auto"), (("MATCH=0",), "0"), (("PARITY=1",), None)):
        commands, _ = dry_run("prostate.make", "ALSO=slaug saliency", *more)
        calls = {
            Path(call[call.index("--workdir") + 1]).name.removesuffix("_tmp"): call for call in trainings(commands)
        }
        starts = {
            name: call[call.index("--model_weights") + 1] for name, call in calls.items() if "--model_weights" in call
        }
        for way in ("slaug", "saliency"):
            call = calls[f"srcmatch_{way}"]
            assert starts[f"srcmatch_{way}"].startswith(f"results/prostate/cesource_{way}/")
            assert (call[call.index("--match_source") + 1] if "--match_source" in call else None) == share
        for run in ("sfda", "tent", "SFDA_TrueSize", "mean_teacher"):
            assert starts[run] == "results/prostate/start/chosen.pkl"
        for run in ("noadap", "srcmatch", "noadap_dice"):
            assert starts[run].startswith("results/prostate/cesource/")
        (line,) = [line for line in commands.splitlines() if "choose.py --start" in line]
        runs = " ".join(f"results/prostate/srcmatch{way}" for way in ("", "_slaug", "_saliency"))
        assert line.endswith(f"--runs {runs} --out results/prostate/start --overwrite")
    assert "choose.py --start" not in dry_run("prostate.make")[0]
    with pytest.raises(UserError, match="ALSO names ways to train a source network, and 'slogue' is none"):
        dry_run("prostate.make", "ALSO=slogue")


def test_a_rate_that_nobody_guessed_is_the_choice_among_short_runs_at_several():
    commands, _ = dry_run("prostate.make", "RATES=2e-5 2e-3", "SIZE=small")
    lines = {}
    for call in trainings(commands):
        name = Path(call[call.index("--workdir") + 1]).name.removesuffix("_tmp")
        lines[name] = {word: call[place + 1] for place, word in enumerate(call[:-1]) if word.startswith("--")}
    usual = lines["sfda"]
    for rate in ("2e-5", "2e-3"):
        found = lines[f"sfda_at_{rate}"]
        differ = {name for name in usual.keys() & found.keys() if usual[name] != found[name]}
        assert differ == {"--workdir", "--l_rate", "--n_epoch"}
        assert (found["--l_rate"], found["--n_epoch"], found["--keep_every"]) == (rate, "10", "5")
    (line,) = [line for line in commands.splitlines() if "choose.py" in line]
    assert "results/prostate/sfda_at_2e-5 results/prostate/sfda_at_2e-3" in line
    assert "sfda_at_" not in dry_run("prostate.make")[0]


def test_the_demo_goes_both_ways():
    """From MR to CT it has runs and priors of its own."""
    for words, name, source, target in (((), "spine", "ct", "mr"), (("ORDER=mr ct",), "spine_mr_ct", "mr", "ct")):
        commands, _ = dry_run("spine.make", *words)
        sets = {}
        for call in trainings(commands):
            folder = Path(call[call.index("--workdir") + 1])
            assert folder.parent == Path("results", name)
            at = len(call) - 1 - call[::-1].index("--target_dataset")  # the last one counts
            sets[folder.name.removesuffix("_tmp")] = call[at + 1]
        assert [sets[run] for run in ("cesource_transfer", "noadap", "sfda", "fs")] == [
            f"data/spine_{site}" for site in (source, target, target, target)
        ]
        assert f"--data data/spine_{target} --out sizes/{name}.csv" in commands
    with pytest.raises(UserError, match="ORDER is 'ct mr' or 'mr ct', not 'mr'"):
        dry_run("spine.make", "ORDER=mr")


def test_other_logs_are_asked_for_of_every_training():
    calls = trainings(dry_run("prostate.make", "LOG=tensorboard,mlflow")[0])
    assert calls
    assert all(call[call.index("--log") + 1] == "tensorboard,mlflow" for call in calls)
    assert "--log" not in dry_run("prostate.make")[0]


@pytest.mark.parametrize("words", [("SELECT=2",), ("SELECT=2", "KEEP=")])
def test_patients_who_choose_are_asked_for_where_networks_are_kept(words):
    commands, _ = dry_run("prostate.make", *words)
    for call in trainings(commands):
        assert ("--select_with" in call) == ("--keep_every" in call)
        assert "--select_with" not in call or call[call.index("--select_with") + 1] == "2"
    assert "select_with" in commands
    (line,) = [line for line in commands.splitlines() if "choose.py" in line]
    assert line.endswith("--overwrite --select_with '2'")
    assert "--select_with" not in dry_run("prostate.make", "SELECT=")[0]


def test_a_finished_run_that_chose_otherwise_is_told(tmp_path):
    for run, keeps in (("sfda", 5), ("noadap", 0)):
        (tmp_path / run).mkdir()
        (tmp_path / run / "params.txt").write_text(f"keep_every: {keeps}\nselect_with: 0\n")
        (tmp_path / run / "last.pkl").touch()
    command = ["make", "-n", "-f", "prostate.make", f"RD={tmp_path}", "all"]
    for words, told in ((["SELECT=2"], True), (["SELECT="], False), ([], False)):
        said = subprocess.run([*command, *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert (f"kept: {tmp_path}/sfda (select_with 0). Name" in said) == told
        assert ("Finished with" in said) == told


STARTED = {"sfda", "self_training", "mean_teacher", "online", "cotta", "rotta", "upl", "denoised", "cpr", "--bn_mix"}
STARTED |= {"prototype_alignment", "consistency"}


def test_adaptations_start_from_the_look_that_is_asked_for():
    for words, share in (((), "auto"), (("MATCH=0.5",), "0.5"), (("MATCH=",), None), (("PARITY=1",), None)):
        for call in trainings(dry_run("prostate.make", *words)[0]):
            run = Path(call[call.index("--workdir") + 1]).name.removesuffix("_tmp")
            told = [call[at + 1] for at, word in enumerate(call) if word == "--match_source"]
            assert told == (
                ["auto"] if run == "srcmatch" else [share] if share and STARTED.intersection(call) else []
            ), run


def test_the_runs_to_choose_among_are_those_that_are_listed_or_named():
    typed = ("TRN=cesource sfda", "ABL=tent chosen", "BAS=", "PRETRAIN=")
    assert "--runs results/prostate/sfda results/prostate/tent --out" in dry_run("prostate.make", *typed)[0]
    named = dry_run("prostate.make", "CHOICES=entropy cda")[0]
    assert "--runs results/prostate/entropy results/prostate/cda --out" in named


@pytest.mark.parametrize("name", BOUNDARY)
def test_pictures_and_metrics_over_time_are_targets_of_their_own(name):
    run = f"results/{name[:-5]}"
    for goal in ("val_dice", "val_3d_dsc", "val_3d_hd95", "tra_loss", "val_3d_dsc_boxplot", "val_3d_dsc_hist"):
        command = ["make", "-n", "-B", "-f", name, f"{run}/{goal}.png"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        assert f"--out {run}/{goal}.png" in done.stdout
    assert "score_masks.py" not in done.stdout
    another = ["make", "-n", "-B", "-f", name, f"{run}/val_3d_nsd.png"]
    done = subprocess.run(another, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "score_masks.py" in done.stdout


def test_a_folder_of_pictures_is_moved_into_place_when_it_is_whole():
    assert "colour --run results/gta5/adapt --out results/gta5/adapt_colour_tmp" in dry_run("gta5.make")[0]


def test_a_new_experiment_is_a_name_and_a_line(tmp_path):
    lines = (
        "ABL += mine\n$(RD)/mine: private OPT = $(WEIGHTS) --method sfda --target_losses \"[('SelfEntropy', {}, 3)]\"\n"
    )
    extended = with_lines(tmp_path, "ivd.make", "", ("include make/rules.mk", f"{lines}include make/rules.mk"))
    calls = trainings(dry_run(extended)[0])
    (mine,) = [call for call in calls if "results/ivd/mine_tmp" in call]
    assert "[('SelfEntropy', {}, 3)]" in mine
    assert "results/ivd/cesource/last.pkl" in mine


STARTS = [
    ("prostate.make", [], "best_3d.pkl"),
    ("prostate.make", ["FROM=last"], "last.pkl"),
    ("gta5.make", ["PARITY=1"], "last.pkl"),
    ("gta5.make", ["PARITY="], "best_3d.pkl"),
    ("gta5.make", ["PARITY=1", "FROM=best"], "best_3d.pkl"),
    ("ivd.make", [], "last.pkl"),  # its source and its target are scored with the same labels
    ("ivd.make", ["FROM=best"], "best_3d.pkl"),
]


@pytest.mark.parametrize(("makefile", "words", "expected"), STARTS)
def test_adaptation_starts_from_the_best_network_of_the_source(makefile, words, expected, monkeypatch):
    monkeypatch.setenv("FROM", "the environment of a mailer")
    calls = trainings(dry_run(makefile, *words)[0])
    found = [call[call.index("--model_weights") + 1] for call in calls if "--model_weights" in call]
    others = ("local", "global", "choice/", "sfda/")
    started = [Path(path) for path in found if path and not any(name in path for name in others)]
    assert {path.name for path in started} == {expected}
    assert all("cesource" in path.parent.name for path in started)


LOOKS = ("gin", "slaug", "bigaug", "transfer", "sizes")


@pytest.mark.parametrize("makefile", ADAPTATION)
def test_each_way_to_see_the_source_is_trained_and_looked_at_on_the_target(makefile):
    runs = Path("results") / makefile.removesuffix(".make")
    calls = trainings(dry_run(makefile, *(f"{kind}_{name}" for name in LOOKS for kind in ("cesource", "noadap")))[0])
    told = {call[call.index("--workdir") + 1]: call for call in calls}
    plain = trainings(dry_run(makefile, "cesource")[0])[0]
    for name in LOOKS:
        source, alone = (told[f"{runs}/{kind}_{name}_tmp"] for kind in ("cesource", "noadap"))
        ranges = ast.literal_eval(source[source.index("--augmentation") + 1])
        assert ranges.pop("preset") == name
        assert ranges == (ast.literal_eval(plain[plain.index("--augmentation") + 1]) if "--augment" in plain else {})
        assert source[: source.index("--workdir")] == plain[: plain.index("--workdir")]
        assert alone[alone.index("--model_weights") + 1].startswith(f"{runs}/cesource_{name}/")


def test_every_run_that_starts_from_the_source_network_can_start_from_another():
    commands, _ = dry_run("prostate.make", "SOURCE_RUN=cesource_slaug")
    starts = {call[call.index("--workdir") + 1]: call for call in trainings(commands) if "--model_weights" in call}
    assert "results/prostate/cesource_slaug/best_3d.pkl" in starts["results/prostate/sfda_tmp"]
    assert "results/prostate/cesource_slaug/best_3d.pkl" in starts["results/prostate/noadap_tmp"]
    assert "results/prostate/cesource_gin/best_3d.pkl" in starts["results/prostate/noadap_gin_tmp"]
    assert not [call for call in starts.values() if "results/prostate/cesource/best_3d.pkl" in call]
    words = ["make", "-n", "-f", "prostate.make", "sfda", "SOURCE_RUN=cesource_slag"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "SOURCE_RUN is the name of a run to start from, as cesource_slaug; it is 'cesource_slag'" in done.stderr


def stress_line(makefile, *words):
    done = subprocess.run(
        ["make", "-n", "-f", makefile, "CC=python", "stress", *words], cwd=ROOT, capture_output=True, text=True
    )
    assert "warning" not in done.stderr
    if done.returncode:
        return done.stderr
    (line,) = re.findall(r"-m prediction\.stress.*", done.stdout.replace("\\\n", " "))
    return shlex.split(line)[2:]


def test_an_evaluation_is_of_finished_runs_and_lies_beside_them():
    words = ["make", "-n", "-f", "prostate.make", "CC=python", "RD=results/none", "RUN=noadap sfda"]
    for goal in ("evaluate", "results/none/reliability.png"):
        done = subprocess.run([*words, goal], cwd=ROOT, capture_output=True, text=True)
        said = done.stdout.replace("\\\n", " ")
        runs = [evaluate.get_args(shlex.split(line)).run for line in re.findall(r"-m study\.evaluate (.*)", said)]
        assert runs == [Path("results/none/noadap"), Path("results/none/sfda")]
        trained = said.index("--workdir results/none/sfda_tmp")
        assert trained < said.index("-m study.evaluate --run results/none/sfda")
    assert "plot.py reliability --runs results/none/noadap results/none/sfda" in done.stdout
    done = subprocess.run([*words[:-1], "evaluate", "RUN=nodap"], cwd=ROOT, capture_output=True, text=True)
    assert "evaluate is of runs, and 'nodap' is none" in done.stderr


@pytest.mark.parametrize(
    ("makefile", "words", "run", "labels", "licence"),
    [
        ("prostate.make", (), "chosen", ["prostate"], None),
        ("whs.make", ("RUN=sfda",), "sfda", ["myocardium", "left_atrium", "left_ventricle", "aorta"], None),
        ("whs.make", ("RUN=random_1_0",), "random_1_0", None, None),
        ("acdc.make", ("LICENCE=CC BY",), "boundary", ["right_ventricle", "myocardium", "left_ventricle"], "CC BY"),
    ],
)
def test_a_bundle_is_of_the_chosen_network_or_of_another_run(makefile, words, run, labels, licence):
    said = ["make", "-n", "-f", makefile, "CC=python", "RD=results/none", "bundle", *words]
    done = subprocess.run(said, cwd=ROOT, capture_output=True, text=True, check=True).stdout.replace("\\\n", " ")
    (line,) = re.findall(r"-m prediction\.bundle (.*)", done)
    args = bundle.get_args(shlex.split(line))
    assert (args.run, args.out) == (Path(f"results/none/{run}"), Path(f"results/none/bundle/{run}"))
    assert (args.labels, args.licence) == (labels, licence)
    assert f"--workdir results/none/{run}_tmp" in done


@pytest.mark.parametrize("word", ["RUN=sdfa", "LICENCE=`id`", "LABELS=a;b"])
def test_a_bundle_of_what_cannot_be_is_refused(word):
    done = subprocess.run(["make", "-n", "-f", "ivd.make", "bundle", word], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "bundle.mk" in done.stderr


@pytest.mark.parametrize("makefile", MAKEFILES)
def test_a_stress_test_is_of_the_first_run_on_its_own_images(makefile):
    """The source network is the one that the others start from."""
    line = stress_line(makefile)
    args = stress.get_args(line)
    results = Path("results") / makefile.removesuffix(".make")
    name = args.weights.name if args.weights.suffix != ".pkl" else args.weights.parent.name
    assert args.out == results / "stress" / name
    assert args.overwrite
    if makefile in (*ADAPTATION, "gta5.make"):
        start = (
            () if makefile == "ivd.make" else ("best_3d.pkl",)
        )  # where both sites are of the same patients: the last
        source = "cesource_transfer" if makefile == "spine.make" else "cesource"
        assert args.weights == results.joinpath(source, *start)
        trained = next(call for call in trainings(dry_run(makefile)[0]) if f"{results}/{source}_tmp" in call)
        said = dict(itertools.pairwise(trained))
        assert args.target_dataset == said["--target_dataset"]
        assert args.grp_regex in (None, said["--grp_regex"])
        assert args.target_folders in (None, said["--target_folders"])
    else:
        assert args.target_dataset is None


@pytest.mark.parametrize("makefile", [*ADAPTATION, "gta5.make"])
def test_a_stress_test_of_another_run_on_the_target(makefile):
    run = "adapt" if makefile == "gta5.make" else "sfda"
    args = stress.get_args(stress_line(makefile, f"RUN={run}", "ON=target", "SHIFTS=gamma noise", "SEVERITIES=1 3"))
    results = Path("results") / makefile.removesuffix(".make")
    assert (args.weights, args.out) == (results / run, results / "stress" / f"{run}_ontarget")
    assert (args.shifts, args.severities) == (["gamma", "noise"], [1, 3])
    said = next(call for call in trainings(dry_run(makefile)[0]) if f"{results / run}_tmp" in call)
    for name in ("target_dataset", "target_folders"):
        assert getattr(args, name) == said[said.index(f"--{name}") + 1]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("RUN=sdfa",), "stress tries out the network of a run: RUN=cesource, or another of"),
        (("ON=both",), "ON is source or target, not 'both'"),
        (("SHIFTS=a;b",), "SHIFTS and SEVERITIES are words"),
    ],
)
def test_a_stress_test_of_what_is_not_there_is_refused(words, told):
    assert told in stress_line("prostate.make", *words)


def test_one_set_leaves_nothing_to_choose():
    assert "ON chooses between the source and the target" in stress_line("acdc.make", "ON=target")


def test_another_start_than_best_or_last_is_refused():
    words = ["make", "-n", "-f", "prostate.make", "FROM=worst"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "FROM is best or last, not 'worst'" in done.stderr


def test_an_undeclared_run_is_an_error():
    done = subprocess.run(
        ["make", "-n", "-f", "ivd.make", "results/ivd/sdfa"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "No rule to make target" in done.stderr


def test_help_names_goals_and_runs():
    done = subprocess.run(["make", "-f", "whs.make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    for word in ("ablations", "report", "SFDA_TrueSize", "bnrefresh", "cesourceim"):
        assert word in done.stdout


SLURM = re.findall(r"^(?:make|sbatch .*run\.sbatch) .*$", (ROOT / "make" / "slurm" / "README.md").read_text(), re.M)


@pytest.mark.parametrize("command", SLURM)
def test_the_commands_for_a_cluster_name_goals_that_exist(command):
    words = shlex.split(command.removeprefix("make ").split("run.sbatch ")[-1])
    words = words if "-f" in words else ["-f", *words]
    done = subprocess.run(["make", "-n", "-B", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "main.py" in done.stdout


def test_the_batch_script_parses():
    subprocess.run(["bash", "-n", ROOT / "make" / "slurm" / "run.sbatch"], check=True)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the repository's files, in which make may make things."""
    return copy_files(tracked(), tmp_path_factory.mktemp("checkout"))


def make(checkout, *words):
    return subprocess.run(
        ["make", f"CC={sys.executable}", "JOBS=1", *words], cwd=checkout, capture_output=True, text=True
    )


def test_smoke_of_the_whole_chain(checkout, python):
    """From no volume to the archive with the smallest network; twice makes nothing; a change makes what hangs on it."""
    words = ("-f", "ivd.make", *SMOKE, "EPC=1", f"CC={python}")
    first = make(checkout, *words)
    assert first.returncode == 0, first.stderr
    assert "PHANTOM" in first.stdout
    run = checkout / "results" / "ivd"
    for name in ("report.txt", "report.tex", "val_dice_3d.png", "boxes.png", "panel.png", "sizes.png", "sfda.gif"):
        assert (run / name).stat().st_size > 500, name
    assert "DEBUG" in (run / "report.txt").read_text()
    assert "PHANTOM" in (run / "report.txt").read_text()
    (archive,) = (checkout / "archives").glob("*-ivd.tar.gz")
    assert not archive.stat().st_mode & 0o222
    assert {"results/ivd/sfda/last.pkl", "results/ivd/report.txt", "sizes/ivd.csv"} <= set(packed(archive))
    assert not list(run.glob("*_tmp"))

    again = make(checkout, *words)
    assert "main.py" not in again.stdout
    assert "Nothing to be done" in again.stdout

    (run / "cesource" / "note.txt").write_text("a file dropped into a run")
    assert "main.py" not in make(checkout, *words).stdout
    (run / "cesource" / "last.pkl").touch()
    retrained = make(checkout, "-n", *words).stdout
    assert "results/ivd/sfda_tmp" in retrained
    assert "results/ivd/fs_tmp" not in retrained


def test_smoke_of_the_choice_among_runs(checkout, python):
    """After the chain above: two adaptations, the choice between what they chose, and that network in a run of its own."""
    words = ("-f", "ivd.make", *SMOKE, "EPC=1", f"CC={python}", "CHOICES=sfda tent", "chosen")
    first = make(checkout, *words)
    assert first.returncode == 0, first.stderr
    run = checkout / "results" / "ivd"
    assert "Chosen without labels" in first.stdout
    assert {path.name for path in (run / "choice").iterdir() if path.name[0] != "."} == {
        "chosen.pkl",
        "selection.csv",
        "selection.txt",
    }
    assert (run / "chosen" / "patients_last.csv").is_file()
    assert "Nothing to be done" in make(checkout, *words).stdout


@pytest.mark.parametrize(
    "goal", ["isles/val_3d_hd95.png", "gta5/adapt_colour", "msd_prostate/few_labels.png", "brats/threshold.png"]
)
def test_smoke_of_the_other_kinds(checkout, python, goal):
    """From no archive to one of the pictures, through slicing, training and what is made of the saved masks."""
    makefile = f"{goal.split('/')[0]}.make"
    fewer = {"isles.make": ["TRN=gdl_surface_steal"], "msd_prostate.make": ["LABELLED=2", "N4="]}.get(makefile, [])
    done = make(checkout, "-f", makefile, *SMOKE, "EPC=1", f"CC={python}", *fewer, f"results/{goal}")
    assert done.returncode == 0, done.stderr
    assert "PHANTOM" in done.stdout
    assert (checkout / "results" / goal).exists()


def test_a_failing_run_leaves_the_old_one(checkout, python):
    """A prior that lost its rows: one paragraph, exit code, and the run of before still there."""
    prior = checkout / "sizes" / "ivd.csv"
    whole = prior.read_text()
    before = (checkout / "results/ivd/sfda/last.pkl").read_bytes()
    prior.write_text("\n".join(whole.splitlines()[:9]) + "\n")
    failed = make(checkout, "-f", "ivd.make", *SMOKE, "EPC=1", f"CC={python}", "DEBUG=", "results/ivd/sfda")
    prior.write_text(whole)
    assert failed.returncode
    assert "Traceback" not in failed.stderr
    assert "sizes/ivd.csv" in failed.stderr
    assert (checkout / "results/ivd/sfda/last.pkl").read_bytes() == before
