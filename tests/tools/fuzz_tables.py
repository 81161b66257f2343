"""Mutates what stands beside images as text: it must be used with values that can be, left aside, or refused.

python -m tests.tools.fuzz_tables --mutations 10000
"""

import json
from functools import partial

import numpy as np

from analysis.run import open_run
from bounds import BOUNDS
from datasets.files import check_class_count, check_patients
from datasets.set_tables import read_card, read_rows, spacing_of_patients
from datasets.volumes import _read_headers, _read_scale
from files.pairing import read_patients
from prediction.inference import Predicting
from prediction.outputs import Outputs
from prediction.volumes import find_cases
from preprocess.new_dataset import read_phantom
from preprocess.slicing.spec import SliceSpec
from preprocess.tags import read_tags
from tests.fake_runs import add_selection, make_run, make_set
from tests.tools.fuzzing import each_kind, main, mutated_json, mutated_text

NAMES = [f"Case{patient:02}_{number}" for patient in range(3) for number in range(3)]
PATIENTS = [name[:6] for name in NAMES]
AFFINE = "0.5 0 0 0 0 0.75 0 0 0 0 3 0 0 0 0 1"

MANIFEST = "\n".join(
    ["slice,patient,index,source,spacing_slice,spacing_w,spacing_h,affine"]
    + [f"{name},{name[:6]},{name[-1]},a.nii,3.0,0.5,0.75,{AFFINE}" for name in NAMES]
)
SIZES = "\n".join(
    ["# made from: data/x", "val_ids,predsize,true"] + [f'{name}.png,"[470.5, 9.5]","[480, 0]"' for name in NAMES]
)
TAGS = "\n".join(["val_ids,organ"] + [f"{name},{'x' if n % 2 else '0'}" for n, name in enumerate(NAMES)])
CARD = {
    **{"name": "site", "modality": "MR", "phantom": None, "n_class": 2, "class_names": ["background", "organ"]},
    **{"split_unit": "patient", "images": ["IMG"], "labels": "GT", "label_map": {"1": 1}, "other_labels": "error"},
    "normalisation": {
        **{"kind": "percentile", "scope": "volume", "percentiles": [1.0, 99.0]},
        **{"window": None, "clip": None, "no_clip": False},
    },
    **{"n4": {"shrink": 4}, "channel": None, "axis": 2, "orient": "LPS", "format": "png", "bits": 8},
    **{"size": [24, 20], "resized": False, "spacing": None, "centre": "middle", "multiple": None},
    "cut": {"size": [24, 20], "resize": None, "spacing": None},
    **{"scale": {"mean": 380.5, "sd": 210.0}, "sources": {"Case00": "a.nii"}, "counts": {"train": {"slices": 9}}},
}


def look_at_manifest(root):
    """Spacings above 0 alone, or none; matrices that are some."""
    spacing = spacing_of_patients(root, NAMES, PATIENTS)
    rows = read_rows(root)
    _read_headers(root)
    if spacing is not None and not all(0 < mm < np.inf for lengths in spacing.values() for mm in lengths):
        return f"a spacing of {spacing}"
    return "" if all(isinstance(cell, str) for row in rows for cell in row.values()) else f"rows of {rows[:2]}"


def look_at_card(root):
    card = read_card(root)
    check_class_count([root], 2)
    check_patients(root, "IMG", r"(Case\d+)_(\d+)")
    scale = _read_scale(root)
    if scale and not (np.isfinite(scale["mean"]) and 0 < scale["divisor"] < np.inf):
        return f"a scale of {scale}"
    SliceSpec.from_card(card, dest=root / "dest", images={"IMG": "a/*.nii"}, patient="(.)", val=1)
    return ""


def look_at_sizes(path):
    bound = BOUNDS["PredictionBounds"](2, margin=0.1, predcol="predsize", sizefile=str(path))
    bound.check(NAMES)
    limits = np.stack([bound(None, name) for name in NAMES])
    return "" if np.isfinite(limits).all() and (limits >= 0).all() else f"bounds of {limits.ravel()[:8]}"


def look_at_tags(path):
    return "" if read_tags(path, NAMES, 2).shape == (len(NAMES), 1) else "another number of tags"


def look_at_predictions(folder):
    Outputs(folder, {0: 0, 1: 1}, Predicting()).begin(
        {"weights": "x", "tool": "1"}, {"Case00": {"a": "b"}}, overwrite=False
    )
    return ""


def look_at_run(folder):
    """All that a report asks of a run folder."""
    run = open_run(folder)
    asked = [run.metrics, run.params, run.n_epoch, run.epoch("last"), run.epoch("best_3d"), run.metric_axis, run.ignore]
    asked += [run.patients("last"), run.patients("best_3d"), run.class_name(1), run.palette, run.nsd_tolerance]
    asked += [run.is_alarming("last"), run.start, run.unit, run.by_iou, run.epoch("chosen"), run.patients("chosen")]
    return ""


def look_at_volumes(path):
    find_cases([str(path)], None, None)
    return ""


def _mutated(name, text, rng):
    """Of JSON mostly the values: its marks are seldom broken in a way that is seen late."""
    is_json = name.endswith(".json") and rng.random() < 0.8
    return mutated_json(json.loads(text), rng) if is_json else mutated_text(text, rng)


def _of_text(name, text, look, folder):
    """A file of this name in the folder, and what reads it (or its folder)."""
    (folder / "train" / "IMG").mkdir(parents=True)
    (folder / "train" / "IMG" / "Case00_0.png").touch()

    def mutate(rng):
        for path in folder.glob("*.*"):
            path.unlink()
        (folder / name).write_bytes(_mutated(name, text, rng))

    return mutate, look


def _of_run(folder):
    run = add_selection(make_run(folder / "run", make_set(folder / "set"), pictures=False), "epoch 3")
    texts = {path: path.read_text() for path in sorted(run.iterdir()) if path.suffix in (".csv", ".txt", ".json")}

    def mutate(rng):
        for path, text in texts.items():
            path.write_text(text)
        which = list(texts)[int(rng.integers(len(texts)))]
        which.write_bytes(_mutated(which.name, texts[which], rng))

    return mutate, partial(look_at_run, run)


def _at(look, name=""):
    return lambda folder: partial(look, folder / name)


TEXTS = {
    "manifest.csv": (MANIFEST, _at(look_at_manifest)),
    "dataset.json": (json.dumps(CARD, indent=1), _at(look_at_card)),
    "sizes.csv": (SIZES, _at(look_at_sizes, "sizes.csv")),
    "tags.csv": (TAGS, _at(look_at_tags, "tags.csv")),
    "val.txt": ("\n".join(PATIENTS), lambda folder: lambda: str(read_patients(str(folder / "val.txt")) and "")),
    "cohort.csv": ("patient,T2\na,train/IMG\nb,c/1.2.3\n", _at(look_at_volumes, "cohort.csv")),
    "cohort.txt": ("# T2\nvolumes/Case00.nii\ntrain/IMG\n", _at(look_at_volumes, "cohort.txt")),
    "phantom.json": ('{"phantom": "small",\n "seed": 0}', lambda f: lambda: read_phantom(f / "phantom.json") and ""),
    "predict.json": (
        json.dumps({"weights": "x", "tool": "1", "volumes": {"Case00": {"a": "b"}}}, indent=1),
        _at(look_at_predictions),
    ),
}
KINDS = {
    name: (lambda folder, name=name, text=text, at=at: _of_text(name, text, at(folder), folder))
    for name, (text, at) in TEXTS.items()
} | {"run folder": _of_run}


def campaign(count, seed):
    return each_kind(KINDS, count, seed)


if __name__ == "__main__":
    main(__doc__, campaign)
