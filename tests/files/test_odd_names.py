"""Letters that Unicode takes for the end of a line, in the names of patients: no table breaks on them."""

import shutil

import pytest
from conftest import CROSS_ENTROPY, FOLDERS

import main as program
import plot
import report
from analysis.run import open_run
from datasets.size_table import read_size_table
from preprocess import tags
from preprocess.size_priors import parse_args as size_arguments

NAMES = ("Case\x0b5\x85", "Case\u20284")


@pytest.fixture(scope="module")
def site(sites, tmp_path_factory):
    """The target, whose patients of val have such letters in their names."""
    root = shutil.copytree(sites[1], tmp_path_factory.mktemp("odd") / "target")
    for path in [*root.glob("val/*/Case*.png")]:
        path.rename(path.with_name(path.name.replace("Case04", NAMES[1]).replace("Case05", NAMES[0])))
    return root


@pytest.fixture(scope="module")
def run(site):
    words = ["--target_dataset", site, "--workdir", site.parent / "run", "--target_losses", CROSS_ENTROPY, "--cpu"]
    words += ["--target_folders", FOLDERS, "--grp_regex", r"(Case.+)_(\d+)", "--n_class", 2, "--network", "Dimwit"]
    program.main([*map(str, words), "--n_epoch", "1", "--batch_size", "8"])
    return open_run(site.parent / "run")


def test_scores_report_and_plot_know_the_patients(run, tmp_path, capsys):
    assert [row["patient"] for row in run.patients("last")] == list(NAMES)
    report.main(["--runs", str(run.folder), "--out", str(tmp_path / "report")])
    plot.main(["boxes", "--runs", str(run.folder), "--score", "dice", "--out", str(tmp_path / "boxes.png")])
    assert run.names == sorted(f"{name}_{index}" for name in NAMES for index in range(4))


def test_tags_and_sizes_know_the_slices(site, run, tmp_path):
    images = shutil.copytree(site / "val/IMG", tmp_path / "images/val/IMG").parents[1]
    args = tags.parse_args(["template", "--data", str(images), "--classes", "disc", "--out", str(tmp_path / "t.csv")])
    args.run(args)
    filled = (tmp_path / "t.csv").read_text(encoding="utf-8").replace("_1,", "_1,x")
    (tmp_path / "t.csv").write_text(filled, encoding="utf-8", newline="")
    assert tags.read_tags(tmp_path / "t.csv", run.names, 2)[:, 0].tolist() == [False, True, False, False] * 2
    words = ["make", "--data", str(site), "--out", str(tmp_path / "s.csv"), "--n_class", "2", "--constant", "80"]
    args = size_arguments(words)
    args.run(args)
    assert set(run.names) < set(read_size_table(tmp_path / "s.csv", "val_gt_size", 2).sizes)
