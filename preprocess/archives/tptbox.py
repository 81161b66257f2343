"""The embedded real images: vertebrae in CT and in MR, two small volumes out of a pinned Python package.

    python -m preprocess.archives.tptbox --dest_ct data/spine_ct --dest_mr data/spine_mr --downloads data/downloads

Fetches the wheel of tptbox (Apache-2.0) without its dependencies, checks it, reads it as a zip and imports nothing of
it. One patient a modality, so the split is by blocks of neighbouring slices: it shows a method at work and proves no
accuracy.
"""

import processes.ctrl_c  # noqa: F401  first: from here on Ctrl-C is one line

import argparse
import glob
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from files.grey_levels import Normalisation
from files.reading import sha256
from preprocess.slice_volumes import slice_set
from preprocess.slicing.spec import Blocks, SliceSpec
from preprocess.slicing.tables import describe
from processes.errors import UserError
from utils import ProgramParser, atomic_write, listing, run_program

PACKAGE = "tptbox==1.1.0"
WHEEL = "tptbox-1.1.0-py3-none-any.whl"
SHA256 = "975a68f4117ab81fcc2d819d6127f301b1cc50210e08e73df1b9a818ee3be984"
MEMBERS = {  # modality -> image and label
    "CT": (
        "TPTBox/tests/sample_ct/sub-ct_label-22_ct.nii.gz",
        "TPTBox/tests/sample_ct/sub-ct_seg-subreg_label-22_msk.nii.gz",
    ),
    "MR": (
        "TPTBox/tests/sample_mri/sub-mri_label-6_T2w.nii.gz",
        "TPTBox/tests/sample_mri/sub-mri_seg-subreg_label-6_msk.nii.gz",
    ),
}
VERTEBRA = "41-50:1"
STORED, SAGITTAL = "PIR", 2  # where the voxel axes run: to posterior, inferior, right; and the one to cut along
HOUNSFIELD = (-200.0, 1000.0)
BLOCKS = Blocks(size=3, every=3)  # 4.5 mm a block; every third one validates
INSTEAD = "`make -f prostate.make` needs no download: it runs on made-up volumes"


def fetch_wheel(downloads: Path) -> Path:
    """The checked wheel in the downloads folder; from the package index if it is not there yet.

    Raises UserError if pip cannot get it, or gets something else.
    """
    wheel = downloads / WHEEL
    if wheel.is_file() and sha256(wheel) == SHA256:
        return wheel
    downloads.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=downloads) as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--retries=1"]
        command += ["--timeout=20", "--disable-pip-version-check", "--quiet", "--dest", folder, PACKAGE]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        fetched = Path(folder) / WHEEL
        if result.returncode or not fetched.is_file():
            said = " ".join((result.stderr or result.stdout).split())[-600:]
            raise UserError(
                f"The demo's images are in the Python package {PACKAGE}, which pip could not fetch. It said: {said} — "
                f"Connect to a package index, or put {WHEEL} into {downloads}. {INSTEAD}."
            )
        found = sha256(fetched)
        if found != SHA256:
            raise UserError(
                f"The package index gave a {WHEEL} that is not the one this demo was made with (SHA-256 {found}, "
                f"expected {SHA256}); it was thrown away. {INSTEAD}."
            )
        fetched.replace(wheel)
    return wheel


def extract(wheel: Path, downloads: Path, modality: str) -> list[Path]:
    """Image and label of a modality, unpacked into the downloads folder under their own names."""
    paths = [downloads / Path(member).name for member in MEMBERS[modality]]
    with zipfile.ZipFile(wheel) as archive:
        for member, path in zip(MEMBERS[modality], paths, strict=True):
            with atomic_write(path) as file:
                file.write(archive.read(member))
    return paths


def spine_spec(dest: Path, modality: str, image: Path, label: Path) -> SliceSpec:
    """Sagittal slices of one volume: grey levels from the 1st to the 99th percentile, vertebra against the rest."""
    return SliceSpec(
        dest=dest,
        images={"IMG": glob.escape(str(image))},
        label=glob.escape(str(label)),
        patient=r"sub-(ct|mr)i?_.*label-(\d+)",  # ct22 and mr6
        orient=STORED,
        axis=SAGITTAL,
        normalisation=Normalisation("percentile", clip=HOUNSFIELD if modality == "CT" else None),
        multiple=8,
        label_map=VERTEBRA,
        others=0,
        split_by_blocks=BLOCKS,
        modality=modality,
        site=f"{PACKAGE}, sample",
    )


def parse_args() -> argparse.Namespace:
    """The command line; `dests` holds modality -> folder of the sets to make. Exits like argparse."""
    parser = ProgramParser("python -m preprocess.archives.tptbox", description=__doc__)
    parser.add_argument("--dest_ct", type=Path, help="folder of the CT slices; must not exist")
    parser.add_argument("--dest_mr", type=Path, help="folder of the MR slices; must not exist")
    parser.add_argument("modality", nargs="?", choices=("ct", "mr"), help="the one set to make, in the folder --dest")
    parser.add_argument("--dest", type=Path, help="folder of the slices of `modality`")
    parser.add_argument("--downloads", type=Path, required=True, help="folder for the wheel and the volumes")
    parser.add_argument("--jobs", type=int, default=1, help="taken for the makefiles' sake: a set is one volume")
    args = parser.parse_args()
    dests = {"CT": args.dest_ct, "MR": args.dest_mr}
    if bool(args.modality) != bool(args.dest):
        parser.error("--dest and the modality (ct or mr) go together")
    if args.modality:
        dests[args.modality.upper()] = args.dest
    args.dests = {modality: dest for modality, dest in dests.items() if dest}
    if not args.dests:
        parser.error("nothing to make: give --dest_ct, --dest_mr, or --dest and a modality")
    return args


def main() -> None:
    args = parse_args()
    there = [dest for dest in args.dests.values() if dest.exists()]
    if there:
        raise UserError(f"{listing(there)}: there already; remove what is to be made again.")
    wheel = fetch_wheel(args.downloads)
    for modality, dest in args.dests.items():
        image, label = extract(wheel, args.downloads, modality)
        print(describe(slice_set(spine_spec(dest, modality, image, label))))
    print("One patient a modality, neighbouring slices in both splits: this shows a method and proves no accuracy.")


if __name__ == "__main__":
    run_program(main)
