"""The house: what lies at the top, which floor each package stands on, and what a file may import."""

import ast
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from tests.tools.checkout import ROOT, tracked

FLOORS = [  # bottom up: a package or a file of the top level imports those below it alone
    {"metrics", "processes"},
    {"utils"},
    {"files", "nets"},
    {"datasets", "networks"},
    {"analysis", "bounds", "dataloader", "losses"},
    {"methods", "plot", "preprocess", "report"},
    {"engine", "score_masks", "selection"},
    {"choose", "main", "prediction", "study"},
    {"lineage", "predict"},
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FIXED = {
    "main.py",
    "losses.py",
    "networks.py",
    "dataloader.py",
    "bounds.py",
    "utils.py",
    "preprocess",
    "sizes",
    "tests",
}
FIXED |= {"prostate.make", "whs.make", "ivd.make", "requirements.txt"}


PRODUCT = [name for name in tracked("*.py") if name.split("/")[0] not in ("tests", "make")]
MODULES = {name[:-3].replace("/", ".").removesuffix(".__init__"): ROOT / name for name in PRODUCT}
TREES = {module: ast.parse(path.read_text(encoding="utf-8")) for module, path in MODULES.items()}


def imports(module):
    """The modules of ours that a module imports, wherever in it, and the names that it takes from them."""
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                if whole in MODULES:
                    yield whole, None
                elif node.module in MODULES:
                    yield node.module, alias.name


def test_the_top_level_can_be_taken_in():
    entries = {name.split("/")[0] for name in tracked()}
    assert len(entries) <= 48, sorted(entries)
    assert entries >= FIXED


def test_every_room_stands_on_a_floor():
    assert {module.split(".")[0] for module in MODULES} == set(FLOOR_OF)
    assert len(FLOORS) <= 9


@pytest.mark.parametrize("module", MODULES)
def test_no_arrow_runs_up(module):
    room = module.split(".")[0]
    up = {other for other, _ in imports(module) if other.split(".")[0] != room}
    assert not {other for other in up if FLOOR_OF[other.split(".")[0]] >= FLOOR_OF[room]}


def test_a_name_is_imported_from_the_file_that_defines_it():
    defined = {
        module: {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        | {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        for module, tree in TREES.items()
    }
    second_doors = [
        f"{module}: {name} of {other}"
        for module in MODULES
        for other, name in imports(module)
        if name is not None and name not in defined[other]
    ]
    assert not second_doors


def test_every_package_has_a_front_door():
    packages = {path.parent for path in map(Path, PRODUCT) if path.parent != Path()}
    for package in packages:
        told = ast.get_docstring(TREES[str(package).replace("/", ".")])
        assert told, package
        assert len(told) > 50, package


LONGER = {"losses.py": 610, "metrics.py": 490}  # one class or function after another, each to be read alone


@pytest.mark.parametrize("name", PRODUCT)
def test_a_file_can_be_read_in_one_go(name):
    most = LONGER.get(name, 200 if name.startswith("methods/") else 450)
    assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= most


def test_what_the_loop_asks_of_a_method_is_little():
    (base,) = [node for node in TREES["methods.base"].body if getattr(node, "name", "") == "Method"]
    assert len([node for node in base.body if isinstance(node, ast.FunctionDef)]) < 16


# who reads a command line: the training program in two places, and the small programs each their own
READ_FLAGS = {"choose.py", "engine/arguments.py", "main.py", "plot.py", "predict.py", "report.py", "score_masks.py"}
READ_FLAGS |= {"prediction/bundle.py", "prediction/stress.py", "study/evaluate.py", "study/__main__.py"}
READ_FLAGS |= {"prediction/adopt.py"}


@pytest.mark.parametrize("name", PRODUCT)
def test_no_room_is_handed_every_flag(name):
    """Everything else is told what it needs: a dataclass next to its reader, filled by `settings_of`."""
    reads = name in READ_FLAGS or name.split("/")[0] == "preprocess"
    assert reads or "Namespace" not in (ROOT / name).read_text(encoding="utf-8")


def test_no_file_imports_itself_in_a_circle():
    """Within a package too."""
    arrows = {module: {other for other, _ in imports(module)} - {module} for module in MODULES}
    for module, path in MODULES.items():  # a package's front door may import what is in it
        if path.name == "__init__.py":
            arrows[module] = set()
    state = defaultdict(int)

    def visit(module, way):
        assert state[module] != 1, " -> ".join((*way, module))
        if state[module] == 0:
            state[module] = 1
            for other in arrows[module]:
                visit(other, (*way, module))
            state[module] = 2

    for module in MODULES:
        visit(module, ())


def starts_without(package, *modules):
    text = f"import sys, {', '.join(modules)}; sys.exit({package!r} in sys.modules)"
    return subprocess.run([sys.executable, "-c", text], cwd=ROOT, timeout=600).returncode == 0


def test_programs_that_cut_slices_do_not_wait_for_torch():
    names = (
        "slice_volumes",
        "volume_set",
        "picture_set",
        "size_priors",
        "tags",
        "unpack",
        "new_dataset",
        "data_report",
        "phantom.__main__",
    )
    archives = [module for module in MODULES if module.startswith("preprocess.archives.")]
    assert starts_without("torch", *(f"preprocess.{name}" for name in names), *archives)


def test_the_lock_runs_on_a_bare_python(tmp_path):
    """Without what is installed, as before the virtual environment is there."""
    words = [sys.executable, "-I", "-S", "-c"]
    text = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import processes.lock; sys.exit(processes.lock.main())"
    done = subprocess.run([*words, text, "once", str(tmp_path / "made"), "--", "touch", str(tmp_path / "made")])
    assert done.returncode == 0
    assert (tmp_path / "made").exists()
