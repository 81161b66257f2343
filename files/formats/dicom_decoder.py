"""Compressed DICOM, decoded in a process of its own: GDCM's codecs may crash over a damaged file, or never end.

A program: the words are the limits, seconds of the processor and bytes of memory; a line of json on the standard input
names the files of a volume in their order; the voxels come out as an array (D, H, W) of .npy. It ends with the one that
started it.
"""

import contextlib
import ctypes
import json
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import SimpleITK as sitk

SECONDS, VOXELS_A_SECOND = 15, 10**6  # of the processor a decoder gets: a fixed time, and more for each voxel
PATIENCE = 10  # times as long by the clock: a busy machine has little of its processor to give
MEMORY, BYTES_A_VOXEL = 2**30, 32  # likewise of memory: ITK holds the file, what is unpacked, and its own copies


def decode(files: Sequence[str], voxels: int) -> np.ndarray:
    """The voxels (D, H, W) of one file of many slices, or of the slices in this order.

    voxels: how many there are by the headers, which limits time and memory
    Raises ValueError with what the decoder said, or how it ended.
    """
    limits = [str(SECONDS + voxels // VOXELS_A_SECOND), str(MEMORY + BYTES_A_VOXEL * voxels)]
    program = [sys.executable, "-P", __file__, *limits]
    done = subprocess.run(program, input=json.dumps(files).encode(), capture_output=True)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        ended = f"its decoder was ended by {signal.Signals(-done.returncode).name}" if done.returncode < 0 else ""
        raise ValueError(ended or "".join(said))
    return np.load(BytesIO(done.stdout), allow_pickle=False)


def read(files: Sequence[str]) -> np.ndarray:
    """The voxels (D, H, W) of one file, or of a series. Raises RuntimeError as SimpleITK does."""
    reader = sitk.ImageFileReader() if len(files) == 1 else sitk.ImageSeriesReader()
    reader.SetFileName(files[0]) if len(files) == 1 else reader.SetFileNames(files)
    return sitk.GetArrayFromImage(reader.Execute())


def main(seconds: float, memory: int, patience: float = PATIENCE) -> None:
    with contextlib.suppress(OSError, AttributeError):  # on Linux: killed when its starter is
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").is_file() else 0
    with contextlib.suppress(ValueError, OSError):  # a limit that is lower already stays
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + memory,) * 2)
    # The processor's time is that of all threads, from here on. What is over ends the process: SIGPROF, SIGALRM.
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, patience * seconds)
    sitk.ProcessObject_SetGlobalWarningDisplay(False)
    np.save(sys.stdout.buffer, read(json.load(sys.stdin)))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
