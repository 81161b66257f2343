"""Volumes as another scanner would show them: a stress test of any network, or a target site that is made on purpose.

    python -m preprocess.shift_volumes --image 'old/*_t2.nii.gz' --dest shifted --acquisition bias_field --severity 3

Writes DEST/<name>.nii.gz for every volume, on the volume's own grid, in its own type, and DEST/shifts.json, what was
done. Labels stay right as they are. The same seed gives the same bytes, and a volume looks the same whichever others
are beside it; from one severity to the next the strength alone changes. DEST appears when it is whole, or not at all.
"""

import processes.ctrl_c  # noqa: F401  first: from here on Ctrl-C is one line

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from files.faults import Fault, VolumeFault
from files.formats import open_volume
from files.nifti_headers import write_nifti
from files.pairing import Case, compile_pattern, pair
from files.reading import _stacked, read_grid, read_header
from files.volume_names import FILE_NAME
from preprocess.new_set import refuse, refuse_existing, whole_folder, write_json
from preprocess.shifts.acquisitions import ACQUISITIONS, SEVERITIES, Shift
from processes.pool import in_processes
from utils import ProgramParser, counted, run_program, settings_of

IMAGE = "image"


def shift_volumes(pattern: str, patient: str, dest: Path, shift: Shift, jobs: int) -> list[str]:
    """Writes the shifted volumes of a glob to the folder `dest`; returns their names.

    Raises UserError that lists every volume that cannot be read, or two of one name.
    """
    refuse_existing(dest, "--dest")
    cases, faults = pair({IMAGE: pattern}, compile_pattern("--patient", patient))
    refuse(faults, dest)
    with whole_folder(dest) as folder:
        folder.mkdir(parents=True)
        work = partial(_shift_one, shift=shift, folder=folder)
        found = in_processes(work, cases, jobs)
        faults = [fault for fault in tqdm(found, "volumes", len(cases), disable=None, unit="volume") if fault]
        refuse(faults, dest)
        note = asdict(shift) | {"volumes": {case.patient: str(case.paths[IMAGE]) for case in cases}}
        write_json(folder / "shifts.json", note)
    return [case.patient for case in cases]


def _shift_one(case: Case, shift: Shift, folder: Path) -> Fault | None:
    path = case.paths[IMAGE]
    try:
        channels = read_channels(path)
        shifted = shift.apply(channels, read_grid(path, 0).spacing(), case.patient)
        voxels = shifted[0] if len(shifted) == 1 else np.stack(shifted, -1)
        write_nifti(folder / f"{case.patient}.nii.gz", voxels, read_header(path))
    except VolumeFault as error:
        return error.fault
    return None


def read_channels(path: Path) -> list[np.ndarray]:
    """Each channel (X, Y, Z) of an image in order, as `read_stack` reads it along axis 0; the file is unpacked once.

    Raises VolumeFault as `read_stack` does.
    """
    voxels = open_volume(path).voxels()
    channels = voxels.reshape(*voxels.shape[:3], -1)
    # private there, and not beside it: a cache of volumes is known by the text of that file, which therefore stays
    return [_stacked(channels[..., number], 0, False, path) for number in range(channels.shape[-1])]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = ProgramParser("python -m preprocess.shift_volumes", description=__doc__)
    add = parser.add_argument
    add("--image", required=True, metavar="GLOB", help="the volumes; DICOM series are folders, with a / at the end")
    add("--patient", default=FILE_NAME, metavar="REGEX", help="its groups, joined, name a volume (default: its file)")
    add("--dest", type=Path, required=True, help="folder that is made")
    add("--acquisition", required=True, choices=ACQUISITIONS, help="what the other scanner does")
    add("--severity", type=int, default=3, choices=SEVERITIES, help="mild to bad (default %(default)s)")
    add("--seed", type=int, default=0)
    add("--jobs", type=int, default=1, help="processes (default %(default)s)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    names = shift_volumes(args.image, args.patient, args.dest, settings_of(Shift, vars(args)), args.jobs)
    print(f"{args.dest}: {counted(len(names), 'volume')}, {args.acquisition} at severity {args.severity}.")


if __name__ == "__main__":
    run_program(main)
