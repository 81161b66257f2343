"""No label reaches the images that an adaptation learns from: over every flag of the tools that make them.

Each is made of the same images with labels as they are, wiped, at random, with headers that are a little off, and
absent. Either the images, the manifest and the card are the same bytes, or the card calls it a use of labels, which
every reader then names.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

import main as program
import predict
import report
from datasets.size_table import read_size_table
from preprocess import data_report, new_dataset, size_priors, slice_volumes, volume_set
from preprocess.layouts.layout import LAYOUTS
from preprocess.survey.sets import survey_set
from processes.errors import UserError
from tests.engine.test_label_guard import LOSS, VARIANTS, folders, is_tried

SHAPE, AFFINE = (9, 10, 4), np.diag([-1.5, -1.0, 3.0, 1.0])
ASIDE = "with headers a little off"
NEAR = AFFINE @ np.diag([1.002, 1, 1, 1]) + np.outer([0.05, 0, 0, 0], [0, 0, 0, 1])  # within --tolerance
IMAGES = "--image IMG=VOLUMES/img/*.nii.gz"
FOUR = "--image IMG=VOLUMES/four/*.nii.gz"  # 4D
SLICING = [
    f"{IMAGES} --val 1",
    f"{IMAGES} --val_list Case1 --label_folder TRUTH --axis 0 --format nii --size 8 8 --normalise zscore --scope slice "
    "--seed 3 --n_class 2 --site x --modality y --phantom z --jobs 1 --label_map 0:0,1:1 --others 0 --tolerance 0.2",
    f"{IMAGES} --val 1 --test 1 --distance_maps DIST --n_class 2 --plane coronal --multiple 8 --bits 16 --clip 0 900",
    f"{IMAGES} --val_list Case1 --test_list Case2 --place_labels --orient LPS --spacing 2 2 --format npy --no_clip "
    "--percentiles 2 98 --group (Case.)",
    f"{FOUR} --val 1 --channel 1 --resize 8 8 --normalise window --window 0 900 --format nii.gz",
    f"{IMAGES} --val 1 --normalise minmax --plane sagittal",
    f"{IMAGES} --val 1 --normalise none --plane axial --format npy --label_map 1:1 --class_names nothing,organ",
    f"{IMAGES} --split_by_blocks 2 2 --label_map 1:1 --ignore 2",
    f"{IMAGES} --val 1 --centre labels --size 6 6",
]
IMAGES_3D = "--image VOLUMES/img/*.nii.gz"
STACKING = [
    f"{IMAGES_3D} --train 2",
    f"{IMAGES_3D} --train 2 --val 1 --seed 1 --orient RAS --axes 2 1 0 --label_map 0:0,1:1 --others 0 --normalise none "
    "--site x --modality y --phantom z --jobs 1 --tolerance 0.2",
    f"{IMAGES_3D} --train 2 --scale_of SOURCE",
    "--image VOLUMES/four/*.nii.gz --train 2 --channels 1 --unlabelled VOLUMES/more/*.nii.gz",
    f"{IMAGES_3D} --train 2 --normalise foreground",
]
TOOLS = {"slices": (slice_volumes, slice_volumes.slice_set), "volumes": (volume_set, volume_set.make_volume_set)}
TOLD = ["slices", *SLICING], ["volumes", *STACKING]
MAKING = [(tool, words) for tool, *runs in TOLD for words in runs]
NAMED = [(tool, words) for tool, words in MAKING if "--centre labels" in words or "foreground" in words]
ABOUT_LABELS = (
    "--label_map",
    "--ignore",
    "--others",
    "--place_labels",
    "--distance_maps",
    "--centre labels",
    "foreground",
)
# of a card: what it tells of the labels themselves
CENSUS = ("n_class", "label_map", "other_labels", "labels", "distance_maps", "counts", "foreground_cut_away")
CENSUS += ("placed_labels", "sources")
SIZES = [
    "--constant 20",
    "--constant_mm2 40 --tags TAGS",
    "--constant_mm3 400 --extent_mm 10",
    "--published prostate",
    "--source_mean SOURCE_SLICES --source_folder GT --folder GT",
    r"--network_weights NETWORK --tags TAGS --grp_regex (Case\d) --device cpu",
]
LOOKING = [
    "",
    "--plane axial",
    "--val 1 --plane coronal --tolerance 0.2 --modality x --organ_mm2 30 --jobs 1",
    "--organ_mm3 300 --tags TAGS --group ([A-Z][a-z]+.) --plane sagittal",
    "--val_list Case1 --label_map 1:1 --class_names nothing,organ --spacing 2 2 --size 8 8",
]
EXEMPT = {  # flag, or flag and value -> why no run tries it
    "--help": "prints and ends",
    "--debug": "shows tracebacks",
    "--n4": "takes each image by itself, seconds a volume",
    "--n4_shrink": "takes each image by itself, seconds a volume",
    "--published ivd": "other constants",
    "--published ivd_sagittal": "other constants",
    "--published whs": "other constants",
}


def save(path: Path, voxels: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), path)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory) -> Path:
    """img/, four/ (two channels), more/ (others, without labels), and labels by variant."""
    root, rng = tmp_path_factory.mktemp("volumes"), np.random.default_rng(0)
    for case in range(4):
        truth = np.zeros(SHAPE, np.uint8)
        low = rng.integers(1, 4, 2)
        truth[low[0] : low[0] + 4, low[1] : low[1] + 4, 1:3] = 1
        image = (np.where(truth, 600, 200) + rng.normal(0, 40, SHAPE)).astype(np.int16)
        save(root / f"img/Case{case}_i.nii.gz", image)
        save(root / f"four/Case{case}_i.nii.gz", np.stack([image, 900 - image], 3))
        save(root / f"more/More{case}_i.nii.gz", np.stack([image, 800 - image], 3))
        labels = {"as they are": truth, "wiped": truth * 0, "at random": rng.integers(0, 2, SHAPE).astype(np.uint8)}
        for variant, label in labels.items():
            save(root / variant.replace(" ", "_") / f"Case{case}_l.nii.gz", label)
        save(root / ASIDE.replace(" ", "_") / f"Case{case}_l.nii.gz", truth, NEAR)
    (root / "tags.csv").write_text(
        "".join(["val_ids,organ\n", *(f"Case{case}_{n},x\n" for case in range(4) for n in range(4))])
    )
    return root


@pytest.fixture(scope="module")
def source(volumes, tmp_path_factory) -> Path:
    """A set of volumes, scaled by its labels, of other patients; slices/ beside it."""
    root = tmp_path_factory.mktemp("source")
    for case in range(3):
        image = nib.load(volumes / f"img/Case{case}_i.nii.gz").get_fdata()
        save(root / f"img/Old{case}_i.nii.gz", (image + 50).astype(np.int16))
        save(
            root / f"gt/Old{case}_l.nii.gz",
            nib.load(volumes / f"as_they_are/Case{case}_l.nii.gz").get_fdata().astype(np.uint8),
        )
    shared = ["--patient", r"(Old\d)", "--label", f"{root}/gt/*.nii.gz"]
    stack = ["--dest", f"{root}/old", "--image", f"{root}/img/*.nii.gz", "--train", "2", "--normalise", "foreground"]
    volume_set.make_volume_set(volume_set.read_spec(["--jobs", "1", *stack, *shared]))
    cut = ["--dest", f"{root}/slices", "--image", f"IMG={root}/img/*.nii.gz", "--val", "1", "--n_class", "2"]
    slice_volumes.slice_set(slice_volumes.read_spec(["--jobs", "1", *cut, *shared]))
    return root


def labels_of(volumes: Path, variant: str, flag: str = "--label") -> list[str]:
    return [] if variant == "absent" else [flag, f"{volumes}/{variant.replace(' ', '_')}/*.nii.gz"]


def make(tool: str, words: str, dest: Path, volumes: Path, source: Path | None, variant: str) -> dict[str, Any]:
    """The card of the set."""
    module, build = TOOLS[tool]
    argv = words.replace("VOLUMES", str(volumes)).replace("SOURCE", f"{source}/old").split()
    return build(module.read_spec(["--jobs", "1", "--dest", str(dest), "--patient", r"((?:Case|More)\d)", *argv,
                                   *labels_of(volumes, variant)]))  # fmt: skip


def images_and_card(dest: Path) -> dict[str, Any]:
    """What a network may see of a set, and all that is told of it but the census of its labels."""
    card = json.loads((dest / "dataset.json").read_text())
    files = [path for path in dest.glob("*/*/*") if path.parent.name in card["images"]]
    found: dict[str, Any] = {str(path.relative_to(dest)): path.read_bytes() for path in files}
    kept = {name: value for name, value in card.items() if name not in CENSUS}
    return found | {"manifest": (dest / "manifest.csv").read_bytes(), "card": kept}


@pytest.mark.parametrize(("tool", "words"), MAKING)
def test_images_are_the_same_whatever_the_labels_say_or_the_card_says_so(volumes, source, tmp_path, tool, words):
    whole = tmp_path / "as" / "set"
    whole.parent.mkdir()
    card = make(tool, words, whole, volumes, source, "as they are")
    expected = images_and_card(whole)
    assert bool(card["uses_labels"]) == ((tool, words) in NAMED)
    for variant in (*VARIANTS[1:], ASIDE) if not card["uses_labels"] else (ASIDE,):
        dest = tmp_path / variant / "set"
        dest.parent.mkdir()
        try:
            make(tool, words, dest, volumes, source, variant)
        except UserError:
            assert variant == "absent"
            assert any(flag in words for flag in ABOUT_LABELS)
            continue
        found = images_and_card(dest)
        assert [name for name in expected if expected[name] != found.get(name)] == [], variant


@pytest.mark.parametrize(("tool", "words"), NAMED)
def test_a_use_of_labels_moves_images_and_every_reader_names_it(volumes, tmp_path, capsys, tool, words):
    dest, run, out = tmp_path / "set", tmp_path / "run", tmp_path / "out"
    how = make(tool, words, dest, volumes, None, "as they are")["uses_labels"]
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / "set"
    make(tool, words, other, volumes, None, "at random")
    assert images_and_card(dest) != images_and_card(other)
    axes, network = (2, "Dimwit:nG=2") if tool == "slices" else (3, "UNet3D:width=2,depth=1")
    capsys.readouterr()
    argv = ["--target_dataset", str(dest), "--workdir", str(run), "--network", network, "--n_epoch", "1", "--cpu"]
    argv += ["--target_folders", folders(1, axes, True), "--target_losses", f"[{LOSS}]", "--n_class", "2"]
    argv += ["--grp_regex", r"(Case\d)_?(\d*)", *(["--crop", "8", "8", "4"] if axes == 3 else [])]
    program.main(argv)
    assert capsys.readouterr().out.startswith(f"Labels shaped the images of set: {how}.")
    provenance = json.loads((run / "provenance.json").read_text())
    assert provenance["uses_labels"] == {"set": how}
    report.main(["--runs", str(run), "--out", str(out)])
    for suffix in ("txt", "md", "tex", "csv"):
        text = out.with_suffix(f".{suffix}").read_text().replace("\n  ", " ")
        assert "labels in preprocessing" in text
        assert how in text
    assert how in data_report.report([survey_set(dest)], None, tmp_path / "data-report")


# ------------------------------------------------------------------------------------- sizes


@pytest.fixture(scope="module")
def targets(volumes, tmp_path_factory) -> dict[str, Path]:
    """Variant -> a set of slices with such labels."""
    root = tmp_path_factory.mktemp("targets")
    for variant in VARIANTS:
        words = f"{IMAGES} --val 1 --n_class 2"
        make("slices", words, root / variant, volumes, None, variant)
    return {variant: root / variant for variant in VARIANTS}


@pytest.fixture(scope="module")
def network(source, tmp_path_factory) -> Path:
    """A network that has learnt the source's slices."""
    run = tmp_path_factory.mktemp("network") / "run"
    argv = ["--target_dataset", f"{source}/slices", "--target_folders", folders(1, 2, True), "--workdir", str(run)]
    argv += ["--target_losses", f"[{LOSS}]", "--network", "Dimwit:nG=3", "--n_class", "2", "--n_epoch", "2", "--cpu"]
    program.main([*argv, "--grp_regex", r"(Old\d)_(\d+)", "--l_rate", "3e-2"])
    return run / "last.pkl"


@pytest.mark.parametrize("words", SIZES)
def test_a_prior_is_the_same_whatever_the_labels_say_or_its_column_says_so(
    volumes, source, network, targets, tmp_path, words
):
    tables: dict[str, dict[str, Any]] = {}
    for variant, data in targets.items():
        out = tmp_path / f"{variant}.csv"
        text = words.replace("SOURCE_SLICES", f"{source}/slices").replace("NETWORK", str(network))
        argv = text.replace("TAGS", f"{volumes}/tags.csv").split()
        blind = ["--unlabelled", "--folder", "IMG"] if variant == "absent" else []
        size_priors.make(size_priors.parse_args(["make", "--data", str(data), "--out", str(out), "--n_class", "2",
                                                 *argv, *blind]))  # fmt: skip
        header = next(line for line in out.read_text().splitlines() if not line.startswith("#"))
        tables[variant] = {column: read_size_table(out, column, 2) for column in header.split(",")[1:]}
    expected = tables["as they are"]
    assert ("em_wtags" if "NETWORK" in words else "dumbprednotags") in expected
    for column, table in expected.items():
        if column == "val_gt_size" or (column == "dumbpredwtags" and "--tags" not in words):
            assert "oracle" in table.supervision or "image-level tags" in table.supervision
            continue
        for variant in VARIANTS[1:]:
            other = tables[variant][column]
            same = {name: other.sizes[name].tolist() for name in table.sizes}
            assert {name: sizes.tolist() for name, sizes in table.sizes.items()} == same
            assert other.supervision == table.supervision


# ------------------------------------------------------------------------------------- new data sets


@pytest.mark.parametrize("words", LOOKING)
def test_a_proposal_is_the_same_whatever_the_labels_say(volumes, source, tmp_path, monkeypatch, words):
    proposals = {}
    for variant in VARIANTS:
        place = tmp_path / variant
        place.mkdir()
        monkeypatch.chdir(place)
        argv = ["--name", "new", "--source", f"{source}/img/*.nii.gz", "--source_label", f"{source}/gt/*.nii.gz"]
        argv += ["--target", f"{volumes}/img/*.nii.gz", "--patient", r"([A-Z][a-z]+\d)"]
        argv += [*words.replace("TAGS", f"{volumes}/tags.csv").split(), *labels_of(volumes, variant, "--target_label")]
        new_dataset.new_dataset(new_dataset.parse_args(argv))
        lines = Path("new.make").read_text().splitlines()
        lines = [line.replace(variant.replace(" ", "_"), "LABELS") for line in lines if not line.startswith("#")]
        proposals[variant] = lines
    labelled = [proposals[variant] for variant in VARIANTS[:3]]
    assert labelled[0] == labelled[1] == labelled[2]
    cut = ("SLICE ", "BATCH ", "ADAPT ", "G_RGX ")
    for beginning in cut:
        found = [[line for line in proposals[v] if line.startswith(beginning)] for v in ("as they are", "absent")]
        assert found[0] == found[1]
    assert any("--plane" in line for line in proposals["absent"] if line.startswith("SLICE "))


# ------------------------------------------------------------------------------------- nothing is left out


class Caught(Exception):
    """The parser that a tool was about to read its command line with."""


def parser_of(parse: Callable[[list[str]], Any]) -> argparse.ArgumentParser:
    def catch(self: argparse.ArgumentParser, *_: Any) -> None:
        raise Caught(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", catch)
        with pytest.raises(Caught) as caught:
            parse([])
    return caught.value.args[0]


def left_out(parser: argparse.ArgumentParser, runs: list[str], always: str) -> list[str]:
    """The flags, and values of those with a choice, that no run tries."""
    words = " | ".join([always, *runs]).split()
    left = []
    for action in parser._actions:
        name = max(action.option_strings, key=len, default=action.dest)
        of_choice = action.choices and action.nargs is None
        typed = [f"{name} {v}" for v in action.choices if v != action.default] if of_choice else [name]
        left += [each for each in typed if not is_tried(each, action, words) and each not in EXEMPT]
    return left


def test_every_flag_of_the_tools_is_tried():
    """A new flag belongs into SLICING, STACKING, SIZES or LOOKING, or into EXEMPT with a reason."""
    made = "--dest --patient --label"
    assert left_out(parser_of(slice_volumes.read_spec), SLICING, made) == []
    assert left_out(parser_of(volume_set.read_spec), STACKING, made) == []
    commands = parser_of(size_priors.parse_args)._actions[-1].choices
    assert left_out(commands["make"], SIZES, "--data --out --n_class --unlabelled") == []
    looked = "--name --source --source_label --target --target_label --patient"
    passed_on, to_pictures = ["--channel"], ["--tile"]  # to slicers, where they are tried (test_picture_set.py)
    # which files there are, by their names and notes alone: tests/preprocess/test_layouts.py
    found = [f"--{site}{name}" for name in LAYOUTS for site in ("", "target_")]
    found += ["--no_target_label", "--fold", "--contrast", "--masks"]
    assert left_out(parser_of(new_dataset.parse_args), LOOKING, looked) == [*passed_on, *found, *to_pictures]


def test_no_flag_of_predict_names_ground_truth():
    """--adapt learns from --volumes; the sizes it is told are a person's, or a csv's, which says what it knew."""
    read = {"--weights", "--bundle", "--volumes", "--like", "--sizes"}
    written = {"--out", "--export"}
    actions = parser_of(predict.get_args)._actions
    files = {max(a.option_strings, key=len) for a in actions if a.type is Path or "GLOB" in str(a.metavar)}
    assert files == read | written
