"""A folder of DICOM files: what is torn is told and never left out, and no length in a file is taken at its word."""

import signal
import struct
import subprocess
import sys

import numpy as np
import pytest

from files.faults import VolumeFault
from files.formats import dicom_decoder
from files.formats.dicom_file import examine
from files.reading import read_grid, read_stack
from tests.tools import fuzz_volumes
from tests.tools.checkout import ROOT

COUNT, STEP = 8, 3.0


def write_series(folder, places=None, ending="dcm", series="1.2.3.4"):
    """Slices of 6 x 7 pixels, all of the value of their number; `places`: of each along the axis, in mm."""
    count = COUNT if places is None else len(places)
    voxels = np.broadcast_to(np.arange(1, count + 1, dtype=np.int16), (7, 6, count))
    for path in fuzz_volumes.write_series(folder, voxels, STEP, places, series):
        if ending != "dcm":
            path.rename(folder / f"IM{path.stem}{ending}")
    return sorted(folder.iterdir())


def cut(path, by):
    path.write_bytes(path.read_bytes()[:by])


@pytest.mark.parametrize("by", [-1, 0, 100, 350])
@pytest.mark.parametrize("torn", [[0], [COUNT - 1], [4], [5, 6, 7], list(range(1, COUNT, 2))])
def test_a_torn_slice_is_a_fault_wherever_it_lies(tmp_path, torn, by):
    files = write_series(tmp_path)
    for k in torn:
        cut(files[k], by)
    with pytest.raises(VolumeFault, match="are torn, or no slices") as error:
        read_grid(tmp_path)
    assert all(f"{k:02}.dcm" in error.value.fault[1] for k in torn)


@pytest.mark.parametrize("ending", ["", ".1", ".IMA"])
def test_a_torn_slice_is_known_by_its_name_too(tmp_path, ending):
    files = write_series(tmp_path, ending=ending)
    assert read_grid(tmp_path).shape == (7, 6, COUNT)
    cut(files[-1], 0)
    with pytest.raises(VolumeFault, match="it is no DICOM file"):
        read_grid(tmp_path)


def elements(*values, mark=True):
    """A file of explicit elements: (group, element, kind, value)."""
    out = b""
    for group, element, kind, value in values:
        out += struct.pack("<HH2sH", group, element, kind, len(value)) + value
    return (bytes(128) + b"DICM") * mark + out


def test_other_objects_beside_a_series_are_left_alone(tmp_path):
    """A directory of the disk, contours in a series of their own, a licence."""
    write_series(tmp_path)
    (tmp_path / "DICOMDIR").write_bytes(elements((4, 0x1130, b"CS", b"DISK")))
    (tmp_path / "RS.dcm").write_bytes(elements((0x20, 0xE, b"UI", b"9.9.9\0"), (0x3006, 2, b"SH", b"RT")))
    (tmp_path / "LICENSE").write_text("do as you like")
    (tmp_path / "._00.dcm").write_bytes(b"a shadow")
    assert read_grid(tmp_path).shape == (7, 6, COUNT)
    np.testing.assert_array_equal(read_stack(tmp_path, 2)[:, 0, 0], np.arange(COUNT) + 1)


def test_a_file_of_the_series_without_its_image_is_told(tmp_path):
    files = write_series(tmp_path)
    content = files[3].read_bytes()
    files[3].write_bytes(content[: content.index(b"\xe0\x7f\x10\x00")])
    with pytest.raises(VolumeFault, match=r"03.dcm: it holds no image"):
        read_grid(tmp_path)


@pytest.mark.parametrize(
    "places",
    [
        np.round(np.arange(40) * 0.625, 1),
        3.0 * np.arange(20) + 0.05 * np.array([0, 1] * 10),
        np.round(np.arange(30) * 0.7142857 - 11.3, 1),
        np.arange(9) * 1.25,
    ],
)
def test_places_rounded_to_a_tenth_of_a_mm_are_even(tmp_path, places):
    write_series(tmp_path, places)
    grid = read_grid(tmp_path)
    assert grid.shape[2] == len(places)
    assert grid.spacing()[2] == pytest.approx((places[-1] - places[0]) / (len(places) - 1))


@pytest.mark.parametrize("step", [0.25, 0.625, 3.0])
@pytest.mark.parametrize("lacking", [1, 2, 10, 18])
def test_a_slice_that_lacks_is_told_all_the_same(tmp_path, step, lacking):
    write_series(tmp_path, np.round(np.delete(np.arange(20), lacking) * step, 1))
    with pytest.raises(VolumeFault, match="lacks slices"):
        read_grid(tmp_path)


# -- lengths that lead beyond the end -------------------------------------------------------------------------------


@pytest.mark.parametrize("at", ["Rows", "sequence", "pixels"])
def test_a_length_beyond_the_end_is_told_before_it_is_asked_for(tmp_path, at):
    files = write_series(tmp_path)
    content = files[2].read_bytes()
    if at == "Rows":  # implicit: two bytes of tag's group, two of its element, four of length
        place = content.index(b"\x28\x00\x10\x00")
        content = content[: place + 4] + struct.pack("<I", 0x7FFFFFF0) + content[place + 8 :]
    elif at == "sequence":
        item = struct.pack("<HHI", 0xFFFE, 0xE000, 0x7FFFFFF0)
        where = content.index(b"\x20\x00\x0d\x00")
        content = content[:where] + struct.pack("<HHI", 0x08, 0x1140, len(item)) + item + content[where:]
    else:
        place = content.index(b"\xe0\x7f\x10\x00")
        content = content[: place + 4] + struct.pack("<I", 0xFFFFFFF0) + content[place + 8 :]
    files[2].write_bytes(content)
    with pytest.raises(VolumeFault, match=r"02.dcm: (element|an item).* states \d{10} bytes"):
        read_grid(tmp_path)


def test_more_pixels_than_are_stored_are_refused(tmp_path):
    (only,) = write_series(tmp_path, [0])
    content = only.read_bytes()
    for tag in (b"\x28\x00\x10\x00", b"\x28\x00\x11\x00"):
        place = content.index(tag) + 8
        content = content[:place] + struct.pack("<H", 60000) + content[place + 2 :]
    only.write_bytes(content)
    with pytest.raises(VolumeFault, match="promises more voxels"):
        read_grid(tmp_path)


def explicit(syntax, sequence):
    """A file that states the kind of each value; `sequence`: the bytes of one."""
    start = elements((2, 0x10, b"UI", syntax), (0x20, 0xE, b"UI", b"1.2.3\0"))
    return start + sequence + struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OW", 0, 2) + b"\1\0"


NESTED = struct.pack("<HH2sH", 8, 0x1155, b"UI", 4) + b"1.2\0"
END = struct.pack("<HHIHHI", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
OPEN = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
SEQUENCES = {
    "of known length": struct.pack("<HH2sHIHHI", 8, 0x1140, b"SQ", 0, 20, 0xFFFE, 0xE000, 12) + NESTED,
    "closed by a mark": struct.pack("<HH2sHI", 8, 0x1140, b"SQ", 0, 0xFFFFFFFF) + OPEN + NESTED + END,
    "of an unknown kind": struct.pack("<HH2sHI", 9, 0x1140, b"UN", 0, 0xFFFFFFFF)
    + OPEN
    + struct.pack("<HHI", 8, 0x1155, 4)
    + b"1.2\0"
    + END,
    "empty": struct.pack("<HH2sHI", 8, 0x1140, b"SQ", 0, 0),
}


@pytest.mark.parametrize("kind", SEQUENCES)
def test_sequences_are_walked(tmp_path, kind):
    path = tmp_path / "a.dcm"
    path.write_bytes(explicit(b"1.2.840.10008.1.2.1\0", SEQUENCES[kind]))
    found = examine(path)
    assert (found.series, found.pixels, found.native) == ("1.2.3", 2, True)
    path.write_bytes(path.read_bytes() + bytes(6))  # padding
    assert examine(path).pixels == 2


def test_compressed_pixels_lie_in_fragments(tmp_path):
    path = tmp_path / "a.dcm"
    start = elements((2, 0x10, b"UI", b"1.2.840.10008.1.2.5\0"), (0x20, 0xE, b"UI", b"1.2.3\0"))
    start += struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OB", 0, 0xFFFFFFFF) + struct.pack("<HHI", 0xFFFE, 0xE000, 0)
    fragment = struct.pack("<HHI", 0xFFFE, 0xE000, 68) + struct.pack("<I", 1) + bytes(60) + b"abcd"
    path.write_bytes(start + fragment + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0))
    assert examine(path).pixels > 0
    assert not examine(path).native
    path.write_bytes(start + fragment[:-1])
    with pytest.raises(ValueError, match="67 are left"):
        examine(path)


def test_a_file_cut_between_two_elements_is_torn_too(tmp_path):
    """What is left is sound DICOM, of no series and without an image: it was taken for a directory, and left out."""
    files = write_series(tmp_path, [0, 3, 6])
    content = files[1].read_bytes()
    cuts = [at for at in range(140, len(content)) if _is_sound(files[1], content[:at])]
    assert len(cuts) > 10
    for at in cuts[::4]:
        files[1].write_bytes(content[:at])
        with pytest.raises(VolumeFault, match=r"01\.dcm: it holds no image"):
            read_grid(tmp_path)


def _is_sound(path, content):
    path.write_bytes(content)
    try:
        return examine(path) is not None
    except ValueError:
        return False


def test_a_kind_of_value_that_is_none_is_told(tmp_path):
    """What reads it as a long one takes the bytes behind it for a length."""
    files = write_series(tmp_path, [0, 3])
    content = files[0].read_bytes()
    files[0].write_bytes(content.replace(b"\x02\x00\x16\x00AE", b"\x02\x00\x16\x00OE"))
    with pytest.raises(VolumeFault, match="00.dcm: element 0002,0016 does not say what kind"):
        read_grid(tmp_path)


@pytest.mark.parametrize("syntax", [b"1.2.840.10008.1.2.5\0", b"1.2.840.10008.1.2.4.50", b"1.2.840.10008.1.2.4.90"])
def test_compressed_pixels_that_promise_too_much_are_refused_unread(tmp_path, syntax):
    """65,535 x 65,535 pixels (RLE, JPEG, JPEG 2000) in 64 bytes: no decoder is asked for them."""
    numbers = {0x02: 1, 0x10: 65535, 0x11: 65535, 0x100: 16, 0x101: 16, 0x102: 15, 0x103: 0}
    head = elements(
        (2, 0x10, b"UI", syntax),
        (8, 0x16, b"UI", b"1.2.840.10008.5.1.4.1.1.4\0"),
        (0x20, 0xE, b"UI", b"1.2.3\0"),
        (0x28, 4, b"CS", b"MONOCHROME2 "),
        *((0x28, element, b"US", struct.pack("<H", value)) for element, value in sorted(numbers.items())),
    )
    pixels = struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OB", 0, 0xFFFFFFFF) + struct.pack("<HHI", 0xFFFE, 0xE000, 0)
    pixels += struct.pack("<HHIQ", 0xFFFE, 0xE000, 64, 1) + bytes(56) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    (tmp_path / "a.dcm").write_bytes(head + pixels)
    with pytest.raises(VolumeFault, match="promises more voxels|cannot be read"):
        read_stack(tmp_path, 2)


@pytest.mark.parametrize("compressor", ["JPEG", "JPEG2000"])
def test_compressed_slices_are_the_same_voxels(tmp_path, compressor):
    voxels = np.arange(32 * 40 * 3, dtype=np.int16).reshape(32, 40, 3)
    fuzz_volumes.write_series(tmp_path, voxels, compressor=compressor)
    found = read_stack(tmp_path, 2)
    assert found.dtype == np.int16
    if compressor == "JPEG":
        np.testing.assert_array_equal(np.moveaxis(found, 0, -1), voxels)
    np.testing.assert_allclose(np.moveaxis(found, 0, -1), voxels, atol=40)  # of 3,840


@pytest.mark.parametrize(
    ("decoder", "words"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "its decoder was ended by SIGSEGV"),
        ("import signal; signal.raise_signal(signal.SIGALRM)", "its decoder was ended by SIGALRM"),
        ("raise RuntimeError('no such codec')", "RuntimeError: no such codec"),
        ("print('no array')", "cannot be read"),
    ],
)
def test_a_decoder_that_dies_is_a_fault_of_the_series(tmp_path, monkeypatch, decoder, words):
    """GDCM's codecs crash over some damaged files: the program that reads them must not."""
    fuzz_volumes.write_series(tmp_path / "series", np.ones((32, 40, 3), np.int16), compressor="JPEG")
    (tmp_path / "decoder.py").write_text(decoder)
    monkeypatch.setattr(dicom_decoder, "__file__", str(tmp_path / "decoder.py"))
    with pytest.raises(VolumeFault) as error:
        read_stack(tmp_path / "series", 2)
    assert words in " ".join(error.value.fault)
    assert str(tmp_path / "series") in error.value.fault[1]


@pytest.mark.parametrize(
    ("read", "limits", "code", "words"),
    [
        ("lambda files: all(True for _ in iter(int, 1))", "0.05, 2**30, 1000", -signal.SIGPROF, b""),
        ("lambda files: os.read(os.pipe()[0], 1)", "50, 2**30, 1 / 1000", -signal.SIGALRM, b""),
        ("lambda files: bytes(2**31)", "50, 2**30", 1, b"MemoryError"),
    ],
)
def test_a_decoder_has_its_own_time_and_memory(read, limits, code, words):
    """Not those of the program that asks it; of a time by the clock only what waits runs out."""
    program = f"import os; from files.formats import dicom_decoder as own; own.read = {read}; own.main({limits})"
    done = subprocess.run([sys.executable, "-c", program], input=b"[]", capture_output=True, cwd=ROOT)
    assert done.returncode == code
    assert words in done.stderr


@pytest.mark.parametrize("segments", [0, 16])
def test_a_frame_of_no_segments_is_torn(tmp_path, segments):
    """As zeros in the place of a frame say: what decodes it divides by their number, and the process ends."""
    start = elements((2, 0x10, b"UI", b"1.2.840.10008.1.2.5\0"), (0x20, 0xE, b"UI", b"1.2.3\0"))
    start += struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OB", 0, 0xFFFFFFFF) + struct.pack("<HHI", 0xFFFE, 0xE000, 0)
    frame = struct.pack("<HHII", 0xFFFE, 0xE000, 64, segments) + bytes(60)
    (tmp_path / "a.dcm").write_bytes(start + frame + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0))
    with pytest.raises(VolumeFault, match=f"a frame in it has {segments} segments"):
        read_grid(tmp_path)
