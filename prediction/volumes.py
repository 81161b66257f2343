"""Which volumes are to be predicted: files found by patterns, one pattern a channel, and whose they are."""

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from files.faults import VolumeFault, describe_faults
from files.formats import FORMATS, format_of, open_volume
from files.pairing import Case, compile_pattern, find_files, pair
from files.reading import read_grid, sha256
from prediction.forms import PLAIN, Form
from prediction.outputs import MAPS
from processes.errors import UserError
from utils import listing

NAMED = re.compile(r"([\w-]+)=(.+)", re.DOTALL)


def find_cases(volumes: Sequence[str], patient: str | None, channels: int | None, form: Form = PLAIN) -> list[Case]:
    """The patients by name, the files of each in the order of the patterns, each written GLOB or NAME=GLOB.

    channels: how many images a patient has; None where a file may hold several
    Raises UserError for another number of patterns, and one that lists every file that is nobody's, twice, or missing.
    """
    if channels is not None and len(volumes) != channels:
        raise UserError(
            f"The network takes images of {channels} channels, each a volume of its own: give --volumes {channels} "
            f"times, in the order of the set it was trained on; got {len(volumes)}."
        )
    if len(volumes) > 1 and patient is None and form.patient == PLAIN.patient:
        raise UserError(
            "With several --volumes, --patient REGEX must tell which files are of one patient: its groups are the "
            "patient's id in the file's name, as in '(case[0-9]+)'."
        )
    roles = patterns(volumes)
    cases, faults = pair(roles, compile_pattern("--patient", patient or form.patient))
    if faults:
        raise UserError(f"Nothing was predicted: {describe_faults(faults)}")
    return [Case(case.patient, {role: case.paths[role] for role in roles}) for case in cases]


def refuse_as_output(cases: Sequence[Case], folder: Path, form: Form = PLAIN) -> None:
    """Raises UserError where a patient's mask, or its maps, would take the place of a volume, or of another."""
    form.check(case.patient for case in cases)
    volumes = {path.resolve(): path for case in cases for path in case.paths.values()}
    maps = [folder / kind / f"{case.patient}{suffix}" for case in cases for kind, suffix in MAPS.items()]
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
        named = None if find_files(text) else NAMED.fullmatch(text)  # folders may have a = in their names
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


def joined_paths(case: Case) -> str:
    """The files of a patient, as the table of sizes shows them."""
    return ";".join(path.as_posix() for path in case.paths.values())
