"""Which volumes are to be predicted, and whose they are."""

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from files.faults import Fault, VolumeFault, describe_faults
from files.formats import FORMATS, format_of, open_volume
from files.pairing import Case, compile_pattern, find_files
from files.reading import read_grid, sha256
from prediction.forms import PLAIN, Form
from prediction.outputs import MAPS
from prediction.sources import cases_in, cases_of, is_table, lacking, nothing_found, read_channel, read_table
from processes.errors import UserError
from utils import listing

NAMED = re.compile(r"([\w-]+)=(.+)", re.DOTALL)


class Found(NamedTuple):
    """The cases that have all their volumes, and what is wrong with the volumes of others."""

    cases: list[Case]
    lost: list[Fault]


def find_cases(
    volumes: Sequence[str], patient: str | None, channels: int | None, form: Form = PLAIN, series: Sequence[str] = ()
) -> Found:
    """The patients by name, the files of each in the order of the channels.

    volumes: a path or a glob for each channel, perhaps behind NAME=; or one csv (see sources)
    channels: how many images a patient has; None where a file may hold several
    series: which of several DICOM series of a study; one for all channels, or one for each
    Raises UserError for another number of channels, and one that lists every file that is nobody's, or there twice.
    """
    table = read_table(Path(volumes[0])) if is_table(volumes) else None
    if table is None and len(volumes) == 1 < len(series):
        volumes = [*volumes] * len(series)
    names = table.columns if table else volumes
    _check_number(names, channels, table is not None)
    if len(series) not in (0, 1, len(names)):
        raise UserError(f"--series is given once, or for each of the {len(names)} channels; got {len(series)}.")
    wanted = [*series] * len(names) if len(series) == 1 else [*series] or [None] * len(names)
    if table:
        roles = dict.fromkeys(table.columns, str(table.path))
        cases, lost = cases_in(table, wanted)
    else:
        roles = patterns(volumes)
        cases, lost = _matching(roles, dict(zip(roles, wanted, strict=True)), patient, form)
    told = {which for _, which in lost}
    lost += [fault for fault in lacking(cases, roles) if fault[1] not in told]
    whole = [case for case in cases if len(case.paths) == len(roles)]
    if not whole:
        raise UserError(f"Nothing was predicted: {describe_faults(lost) if lost else 'no volume is named.'}")
    return Found([Case(case.patient, {role: case.paths[role] for role in roles}) for case in whole], lost)


def _matching(
    roles: Mapping[str, str], wanted: Mapping[str, str | None], patient: str | None, form: Form
) -> tuple[list[Case], list[Fault]]:
    """The cases of what is typed, those who lack a channel too, and what is wrong with single ones. Raises UserError.

    roles, wanted: name of the channel -> what is typed, and which of several series
    """
    channels = {role: read_channel(text) for role, text in roles.items()}
    by_file = any(channel.named for channel in channels.values())
    if len(roles) > 1 and patient is None and form.patient == PLAIN.patient and by_file:
        raise UserError(
            "With several --volumes, --patient REGEX must tell which files are of one patient: its groups are the "
            "patient's id in the file's name, as in '(case[0-9]+)'."
        )
    expression = compile_pattern("--patient", patient or form.patient)
    cases, faults, lost = cases_of(channels, wanted, expression, patient is not None)
    if faults := nothing_found(roles, channels) + faults:
        raise UserError(f"Nothing was predicted: {describe_faults(faults)}")
    return cases, lost


def _check_number(names: Sequence[str], channels: int | None, is_table: bool) -> None:
    """Raises UserError where a patient has another number of images than the network takes."""
    if channels is None or len(names) == channels:
        return
    if is_table:
        raise UserError(
            f"The network takes images of {channels} channels, each a volume of its own: beside 'patient' the csv has "
            f"a column for each of them, in the order of the set it was trained on; got {listing(names)}."
        )
    raise UserError(
        f"The network takes images of {channels} channels, each a volume of its own: give --volumes {channels} "
        f"times, in the order of the set it was trained on; got {len(names)}."
    )


def refuse_as_output(cases: Sequence[Case], folder: Path, form: Form = PLAIN) -> None:
    """Raises UserError where a patient's mask, or its maps, would take the place of a volume, or of another."""
    form.check(case.patient for case in cases)
    volumes = {path.resolve(): path for case in cases for path in case.paths.values()}
    maps = [folder / kind / f"{case.patient}{suffix}" for case in cases for kind, suffix in MAPS.values()]
    masks = [*maps, *(folder / form.place(case.patient) for case in cases)]
    if overwritten := [str(volumes[mask.resolve()]) for mask in masks if mask.resolve() in volumes]:
        raise UserError(
            f"--out {folder} is where volumes lie, and what is predicted would overwrite them: {listing(overwritten)}. "
            "Name another folder."
        )


def patterns(volumes: Sequence[str]) -> dict[str, str]:
    """Name of the channel -> its glob."""
    roles: dict[str, str] = {}
    for number, text in enumerate(volumes):
        is_path = os.path.exists(text) or find_files(text)  # noqa: PTH110  false, not an error, for a long pattern
        named = None if is_path else NAMED.fullmatch(text)  # folders may have a = in their names
        name = named[1] if named else f"--volumes[{number}]" if len(volumes) > 1 else "--volumes"
        if name in roles:
            raise UserError(f"--volumes names '{name}' twice; each channel has a name of its own, or none.")
        roles[name] = named[2] if named else text
    return roles


def digest(path: Path) -> str | None:
    """SHA-256 of a volume; None if it cannot be read, which is told when it is to be predicted."""
    try:
        return sha256(path)
    except (OSError, VolumeFault):
        return None


def voxel_volumes(cases: Sequence[Case]) -> dict[str, float]:
    """Patient -> mm³ of a voxel, of those whose masks do not tell it: ITK overlooks the unit of their volumes.

    One that cannot be read is left out; it has no mask.
    """
    volumes_mm3: dict[str, float] = {}
    for case in cases:
        path = next(iter(case.paths.values()))
        if format_of(path) in FORMATS.values():
            with suppress(VolumeFault):
                volume = open_volume(path)
                if set(volume.units) != {1}:
                    volumes_mm3[case.patient] = read_grid(path, channel=0).voxel_volume()
    return volumes_mm3
