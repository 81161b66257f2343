"""A label map as DICOM keeps one: a segmentation object (SEG) of the series that was predicted, for archives.

Written by the package highdicom, which is asked for only when one is to be written. Frame of reference, study and
patient are those of the series, and each frame refers to the slice that it lies on. The same labels of the same series
by the same network have the same identity (SOPInstanceUID), so an archive holds them once.

Source: DICOM PS3.3, C.8.20 (segmentation), and PS3.5, B.2 (identifiers out of a UUID).
"""

import hashlib
import io
import uuid
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from files.faults import VolumeFault
from files.foreign import in_words
from files.formats import dicom, format_of, open_volume
from files.pairing import Case
from files.reading import read_grid
from prediction.label_tables import colour_of
from processes.errors import UserError
from processes.quoting import visible
from utils import atomic_write, listing

DICOM_SEGMENTS = ".dcm"
LONGEST = 64  # letters of a name in DICOM
SERIES_NUMBER = 1000  # added to that of the series
WHAT = ("123037004", "SCT", "Anatomical Structure")
HOW = ("123109", "DCM", "Artificial Intelligence")


@dataclass(frozen=True)
class Maker:
    """Who made a segmentation: the name of the network, and the SHA-256 of its weights."""

    network: str = "network"
    version: str = "0"


NOBODY = Maker()


def need_highdicom() -> tuple[ModuleType, ModuleType]:
    """The packages highdicom and pydicom. Raises UserError where they lack."""
    try:
        import highdicom
        import pydicom
    except ImportError as error:
        raise UserError(
            f"--segments dicom needs the package highdicom, which the environment does not have ({error}): pip install "
            "highdicom. Predicting works without it."
        ) from error
    return highdicom, pydicom


def refuse_other_formats(cases: Sequence[Case]) -> None:
    """Raises UserError for cases that did not come as DICOM: what a segmentation refers to is not known."""
    if others := [case.patient for case in cases if format_of(_first(case)) is not dicom]:
        raise UserError(
            "--segments dicom refers to the DICOM series that was predicted, and the volumes of these are files of "
            f"another format: {listing(others)}. Leave it out, or give --segments nrrd."
        )


def _first(case: Case) -> Path:
    return next(iter(case.paths.values()))


def write_dicom_segments(path: Path, classes: np.ndarray, series: Path, names: Sequence[str], maker: Maker) -> None:
    """Writes class numbers (X, Y, Z), on the grid of the series, as a SEG of one segment a class from 1.

    names: of the classes, the background first

    Raises VolumeFault for a series that lacks what a SEG has to tell, or whose slices are one file.
    """
    highdicom, pydicom = need_highdicom()
    files = open_volume(series).files
    if len(files) != classes.shape[2]:
        what = "has all its slices in one file, to which --segments dicom cannot refer (give --segments nrrd)"
        raise VolumeFault(what, str(series))
    slices = [pydicom.dcmread(file, stop_before_pixels=True) for file in files]
    step = float(read_grid(series).spacing()[2])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of values in the series that are not as the standard has them
            made = _segmentation(highdicom, slices, step, classes, names, maker)
    except (AttributeError, ValueError, TypeError, KeyError, IndexError) as error:
        what = "lacks what a DICOM segmentation has to tell of its series (give --segments nrrd)"
        raise VolumeFault(what, f"{series} ({in_words(error)})") from error
    whole = io.BytesIO()
    made.save_as(whole)
    with atomic_write(path) as file:
        file.write(whole.getbuffer())


def _segmentation(
    highdicom: ModuleType, slices: Sequence[Any], step: float, classes: np.ndarray, names: Sequence[str], maker: Maker
) -> Any:
    """The SEG of these slices (datasets of pydicom), in the order of the last axis, which lie `step` mm apart."""
    first = slices[0]
    for each in slices:  # which may leave the thickness out
        each.SliceThickness = each.get("SliceThickness") or step
    measures = highdicom.PixelMeasuresSequence(first.PixelSpacing, first.SliceThickness, step)
    concept, seg = highdicom.sr.CodedConcept, highdicom.seg
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=_short(maker.network), family=concept(*HOW), version=_short(maker.version)
    )
    segments = [
        seg.SegmentDescription(
            segment_number=k,
            segment_label=_short(name),
            segmented_property_category=concept(*WHAT),
            segmented_property_type=concept(f"CLASS{k}", "99PREDICT", _short(name)),
            algorithm_type=seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            display_color=highdicom.color.CIELabColor.from_rgb(*colour_of(k)),
        )
        for k, name in enumerate(names[1:], start=1)
    ]
    told = [*(each.SOPInstanceUID for each in slices), *names, maker.network, maker.version]
    return seg.Segmentation(
        source_images=slices,
        pixel_array=np.ascontiguousarray(classes.T),
        segmentation_type=seg.SegmentationTypeValues.BINARY,
        segment_descriptions=segments,
        series_instance_uid=_uid("series", first.SeriesInstanceUID, maker.network, maker.version),
        series_number=SERIES_NUMBER + int(first.get("SeriesNumber") or 0),
        sop_instance_uid=_uid("instance", *told, hashlib.sha256(classes.tobytes()).hexdigest()),
        instance_number=1,
        pixel_measures=measures,
        manufacturer="predict.py",
        manufacturer_model_name=_short(maker.network),
        software_versions=_short(maker.version),
        device_serial_number="0",
        content_label="PREDICTED",
        series_description="Predicted segmentation",
    )


def _uid(*words: str) -> str:
    """An identifier that these words alone decide."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, chr(0).join(map(str, words))).int}"


def _short(name: str) -> str:
    r"""What a value of DICOM can hold of a name: 64 letters, no line break, and no \ , which parts values."""
    return (visible(name).replace("\\", "/").strip() or "no name")[:LONGEST]
