"""What the README promises of adding something: one class or function in one file of a copy, and it can be used."""

import subprocess

import pytest
from conftest import FOLDERS, write_site
from fake_runs import make_run, make_set

from tests.tools.checkout import ROOT, copy_files, tracked

ADDED = {
    "losses.py": """

@LOSSES.register()
class AbsoluteDifference(Loss):
    "Mean absolute difference between probabilities and truth."

    needs_target = True

    def forward(self, logits: Tensor, target: Tensor, bounds: None) -> Tensor:
        return (logits.softmax(1) - one_hot(target, logits.shape[1])).abs().mean()
""",
    "bounds.py": """

@BOUNDS.register()
class HalfBounds(Bounds):
    "Every class fills half of the slice at most."

    def __init__(self, n_class: int, *, pixels: int) -> None:
        super().__init__(n_class)
        self.pixels = pixels

    def __call__(self, label: np.ndarray | None, name: str) -> np.ndarray:
        return np.array([[0.0, self.pixels / 2]] * self.n_class)
""",
    "networks.py": """

@NETWORKS.register()
class OneConvolution(Network):
    "The smallest network there is."

    def __init__(self, in_channels: int, n_class: int) -> None:
        super().__init__(in_channels, n_class)
        self.only = nn.Conv2d(in_channels, n_class, 1)

    def forward(self, image: Tensor, size: Sequence[int] | None = None) -> Tensor:
        return self.only(image)
""",
    "methods/careful.py": '''"""Supervised learning that takes care."""

from methods.base import METHODS
from methods.supervised import Supervised


@METHODS.register()
class Careful(Supervised):
    """Learns as Supervised does."""
''',
    "analysis/plots/names.py": '''"""A picture of names."""

from analysis.plots.canvas import make_canvas, save
from analysis.plots.kinds import kind, of_a_score


@kind("names", "what the runs are called", of_a_score)
def names(runs, out):
    figure, body = make_canvas(runs, ", ".join(run.name for run in runs), 4, 3)
    save(figure, out)
''',
    "datasets/transforms.py": """

@TRANSFORMS.register()
def inverted_transform(raw: np.ndarray) -> np.ndarray:
    "An image with its grey levels turned round."
    return 1 - png_transform(raw)
""",
}
LOSSES = "[('AbsoluteDifference', {}, 1), ('NaivePenalty', {}, 'HalfBounds', {'pixels': 480}, 'soft_size', 1)]"


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The programs in a folder of their own, with something added to six of their files."""
    programs = [name for name in tracked("*.py") if name.split("/")[0] != "tests"]
    folder = copy_files(programs, tmp_path_factory.mktemp("copy"))
    for name, text in ADDED.items():
        with (folder / name).open("a") as file:
            file.write(text)
    write_site(folder / "site", inside=150, outside=90, seed=2)
    return folder


def run(python, copy, *words):
    return subprocess.run([python, *map(str, words)], cwd=copy, capture_output=True, text=True, timeout=300)


def test_a_loss_bound_network_method_and_transform_are_one_edit_each(copy, python):
    words = ["--target_dataset", "site", "--workdir", "run", "--grp_regex", r"(Case\d+)_(\d+)", "--n_class", "2"]
    words += ["--target_folders", FOLDERS.replace("png_transform", "inverted_transform", 1), "--cpu", "--n_epoch", "1"]
    words += ["--network", "OneConvolution", "--method", "careful", "--target_losses", LOSSES]
    done = run(python, copy, "main.py", *words)
    assert done.returncode == 0, done.stderr
    log = next((copy / "run").glob("*_target_metrics.csv")).read_text().splitlines()[0]
    assert "tra_loss_AbsoluteDifference" in log
    assert (copy / "run" / "last.pkl").is_file()


def test_a_misspelt_name_of_what_was_added_is_told(copy, python):
    words = [
        "--target_dataset",
        "site",
        "--workdir",
        "x",
        "--grp_regex",
        "x",
        "--n_class",
        "2",
        "--target_folders",
        "x",
    ]
    done = run(python, copy, "main.py", *words, "--target_losses", LOSSES, "--method", "carefull", "--check")
    assert done.returncode == 2
    assert "Did you mean 'careful'?" in done.stderr


def test_finished_runs_stay_readable_when_a_score_is_added(copy, python, tmp_path):
    """Two lines of metrics.py; a run of before has no value of it."""
    data = make_set(tmp_path / "data/toy")
    runs = [make_run(tmp_path / f"results/{name}", data, pictures=False) for name in ("noadap", "sfda")]
    metrics = (ROOT / "metrics.py").read_text()
    for old, new in (('"nsd", "vol', '"nsd", "sensitivity", "vol'), ('"nsd": nsd(', '"sensitivity": 1.0, "nsd": nsd(')):
        assert old in metrics
        metrics = metrics.replace(old, new, 1)
    (copy / "metrics.py").write_text(metrics)
    out = tmp_path / "report"
    done = run(python, copy, "report.py", "--runs", *runs, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "sensitivity" in out.with_suffix(".csv").read_text().splitlines()[0]


def test_a_plot_is_a_file(copy, python, tmp_path):
    data = make_set(tmp_path / "data/toy")
    run_folder = make_run(tmp_path / "results/noadap", data, pictures=False)
    words = ["--runs", run_folder, "--score", "nsd", "--out", tmp_path / "names.png"]
    done = run(python, copy, "plot.py", "names", *words)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "names.png").stat().st_size > 500
    assert "what the runs are called" in run(python, copy, "plot.py", "--help").stdout
