"""What the name of a volume's file says: its name without the ending, and the header that lies next to its voxels."""

import re
from pathlib import Path

# Volumes of several files: the ending of the header -> what the files may end in that belong to it, voxels first.
PAIRS = {
    ".hdr": (".img", ".mat"),
    ".hdr.gz": (".img.gz",),
    ".head": (".brik", ".brik.gz"),
    ".par": (".rec",),
    ".mhd": (".raw", ".zraw", ".raw.gz"),
    ".nhdr": (".raw", ".raw.gz"),
}
OF_PAIRS = {ending for header, voxels in PAIRS.items() for ending in (header, *voxels)}
ENDINGS = {*OF_PAIRS, ".nii", ".nii.gz", ".mha", ".nrrd", ".mgh", ".mgh.gz", ".mgz", ".mnc", ".dcm"}
# Its group is the name of a volume's file without the ending, in capital or in small letters: Case00 of Case00.NII.GZ.
FILE_NAME = rf"(?i)^(.+?)(?:{'|'.join(map(re.escape, sorted(ENDINGS)))})?$"

HEADERS = {ending for ending in ENDINGS - {".dcm"} if not any(ending in voxels for voxels in PAIRS.values())}


def is_volume(path: Path) -> bool:
    """Whether a file of this name is a volume, or the header of one; a segmentation of 3D Slicer is none."""
    name = path.name.lower()
    return name.endswith(tuple(HEADERS)) and not name.endswith((".seg.nrrd", ".seg.nhdr"))


def is_mixed(path: Path) -> bool:
    """Whether the ending of a volume's file is neither in small nor in capital letters, as in `.Nii`."""
    ending = path.name.removeprefix(re.match(FILE_NAME, path.name, re.DOTALL)[1])
    return any(part not in (part.lower(), part.upper()) for part in ending.split("."))


def is_of_pair(path: Path) -> bool:
    """Whether a file of this name belongs to a volume of several files."""
    return path.name.lower().endswith(tuple(OF_PAIRS))


def header_of(path: Path) -> Path:
    """The header that a file of voxels belongs to and lies next to; of any other file, the file itself."""
    for header, endings in PAIRS.items():
        for ending in endings:
            if path.name.lower().endswith(ending):
                stem = path.name[: -len(ending)]
                beside = (path.with_name(stem + each) for each in (header, header.upper()))
                if found := next((file for file in beside if file.is_file()), None):
                    return found
    return path
