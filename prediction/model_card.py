"""The model card of a bundle: what a reader must know before using the network, in Markdown, with the head of a card on
model hubs."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from analysis.run import Run
from nets.network_folder import MANIFEST, WEIGHTS
from prediction.monai_bundle import FILES as OF_MONAI
from prediction.monai_bundle import INSTALL
from processes.quoting import for_markdown
from utils import counted, listing

SCORES = ("dice", "hd95", "assd")
UNLICENSED = "not stated"
LOAD = f"""from safetensors.torch import load_file   # or safetensors.numpy, without torch
weights = load_file("{WEIGHTS}")          # name -> tensor; {MANIFEST} tells of what network"""
MONAI = f"""{INSTALL}
python -m monai.bundle run --bundle_root FOLDER --config_file FOLDER/configs/inference.json \\
    --meta_file FOLDER/configs/metadata.json --dataset_dir VOLUMES --output_dir MASKS"""


def model_card(manifest: Mapping[str, Any], files: Mapping[str, str]) -> str:
    """The text of README.md. files: name of each further file -> what it is, or why there is none"""
    parts = (_head, _what, _made, _choice, _scores, _use, _limits)
    return "\n".join(line for part in parts for line in (*part(manifest), "")) + "\n".join(_files(files)) + "\n"


def _head(told: Mapping[str, Any]) -> Iterator[str]:
    licence = told["licence"] or UNLICENSED
    yield from ("---", f"license: {'other' if told['licence'] is None else json.dumps(licence)}")
    yield from ("library_name: pytorch", "tags: [image-segmentation, medical, domain-adaptation]", "---")


def _what(told: Mapping[str, Any]) -> Iterator[str]:
    card = told["preprocessing"].get("card", {})
    set_, modality, site = (for_markdown(str(card.get(name) or "not stated")) for name in ("name", "modality", "site"))
    image = "volumes" if told["preprocessing"].get("crop") else "slices"
    yield f"# {for_markdown(told['name'])}"
    yield ""
    yield (
        f"A network ({for_markdown(told['network'])}) that segments {image} of {told['in_channels']} "
        f"channel{'s' * (told['in_channels'] > 1)} into {told['n_class']} classes: "
        f"{', '.join(f'{k} {for_markdown(name)}' for k, name in enumerate(told['labels']))}."
    )
    yield ""
    yield f"- images: {set_}; modality {modality}; site {site}"
    if card.get("phantom"):
        yield "- **The images are a PHANTOM, made up by a program. The network is of no use on a patient.**"
    if told["debugging"]:
        yield "- **A step of its training was a debug run, of ten slices a set. The network is of no use.**"
    yield f"- licence: {for_markdown(told['licence'] or UNLICENSED)}"


def _made(told: Mapping[str, Any]) -> Iterator[str]:
    yield "## How it was trained"
    yield ""
    for step in reversed(told["history"]):
        start = f"from `{_code(step['started_from'])}`" if step["started_from"] else "from random weights"
        data = " and ".join(str(step[name]) for name in ("source_dataset", "target_dataset") if step.get(name))
        yield (
            f"1. {for_markdown(step.get('method') or 'not stated')} on {for_markdown(data or 'not stated')}, "
            f"{start}, {counted(step.get('n_epoch') or 0, 'epoch')} at rate {step.get('l_rate')}: "
            f"`{_code(step.get('target_losses'))}`"
        )
    if not told["history_is_whole"]:
        yield ""
        yield "The files of what it started from are gone, or were changed: earlier steps are not known."
    provenance = told["provenance"]
    versions = ", ".join(f"{name} {version}" for name, version in (provenance.get("versions") or {}).items())
    dirty = " with uncommitted changes" if provenance.get("uncommitted") else ""
    yield ""
    yield f"Commit `{provenance.get('commit')}`{dirty}; {versions or 'versions not noted'}."
    if prior := told["prior"]:
        sizes = prior["mean_pixels"]
        mean = (
            f"; on average {listing(f'{size:g}' for size in sizes)} pixels by class, background first" if sizes else ""
        )
        yield f"It was told how large the classes are{mean}."


def _choice(told: Mapping[str, Any]) -> Iterator[str]:
    yield "## Choice, and labels of the target"
    yield ""
    choice, supervision = told.get("choice"), told["supervision"]
    yield for_markdown(choice["why"]) if choice and "why" in choice else "No choice among networks was made."
    yield ""
    labelled = told.get("labelled") or ()
    if labelled:
        who = f"{counted(len(labelled), 'patient')} of the target"
        yield f"**Labels of {who} chose the network**: {for_markdown(listing(labelled))}."
    else:
        yield "No label of the target chose the network."
    if supervision:
        yield f"Supervision of the last training: {for_markdown(supervision)}."


def _scores(told: Mapping[str, Any]) -> Iterator[str]:
    yield "## Scores"
    yield ""
    if not told["scores"]:
        yield "None: the images that it was evaluated on have no labels here, or are no volumes."
        return
    unit = told["scores"]["unit"]
    of = for_markdown(told["scores"]["set"])
    yield f"Validation images of {of}; mean over patients. They are no independent test."
    yield ""
    yield f"| class | patients | Dice | HD95 ({unit}) | ASSD ({unit}) |"
    yield "|---|---|---|---|---|"
    for row in told["scores"]["classes"]:
        cells = ["" if row[name] is None else f"{row[name]:.3f}" for name in SCORES]
        yield f"| {for_markdown(told['labels'][row['class']])} | {row['patients']} | {' | '.join(cells)} |"


def _use(told: Mapping[str, Any]) -> Iterator[str]:
    yield "## Use"
    yield ""
    yield "With the program that made it, the masks are those of the checkpoint, voxel by voxel:"
    yield from ("", "```", "python predict.py --bundle FOLDER --volumes 'new/*.nii.gz' --out predictions", "```", "")
    yield "The weights alone:"
    yield from ("", "```python", *LOAD.splitlines(), "```", "")
    yield f'How an image is made of a volume is in `{MANIFEST}`, "preprocessing".'
    if told["files"].keys() >= {*OF_MONAI}:
        several = told["preprocessing"].get("crop") is None and told["in_channels"] > 1
        where = "a folder for each patient, a file for each channel, in the order of names" if several else "one a file"
        yield from (
            "",
            f"MONAI alone, on the NIfTI volumes of a folder ({where}). Its configs are code: read them first.",
        )
        yield from ("", "```", *MONAI.splitlines(), "```")


def _limits(told: Mapping[str, Any]) -> Iterator[str]:
    yield "## Limits"
    yield ""
    yield "- Research software. It is no medical device, and nobody tested it for a decision about a patient."
    yield "- It is for images like those above. Another site, scanner or sequence can make it fail without a sign."
    share = told["preprocessing"].get("match_source")
    if share:
        yield f"- Grey levels of each patient are first brought to those of the source, by a share of {share:g}."
    if told["source"] is None:
        yield "- It tells nothing of how good its masks are: its checkpoint has no source bundle."
    yield ""


def _files(files: Mapping[str, str]) -> Iterable[str]:
    yield "## Files"
    yield ""
    yield from (f"- `{name}`: {for_markdown(what)}" for name, what in files.items())


def _code(text: object) -> str:
    """Words inside of backticks, on one line."""
    return " ".join(str(text).replace("`", "'").split())


def mean_scores(run: Run, which: str, n_class: int) -> dict[str, Any] | None:
    """Mean scores of each class over the patients, in plain types; None where the run has none patient by patient."""
    if not run.scored or run.by_iou:
        return None
    rows, classes = run.patients(which), []
    for k in range(1, n_class):
        of_class = [row for row in rows if row["class"] == k]
        means = {name: _mean([row[name] for row in of_class if name in row]) for name in SCORES}
        classes += [{"class": k, "patients": len(of_class), **means}] if of_class else []
    return {"set": run.set_name, "unit": run.unit, "classes": classes}


def _mean(values: Sequence[float]) -> float | None:
    """Over the patients who have the score; None where nobody has."""
    known = np.array([value for value in values if not np.isnan(value)])
    return round(float(known.mean()), 4) if len(known) else None
