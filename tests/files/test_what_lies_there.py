"""A folder is read as it lies there: each file once, in its own numbers, or refused in a sentence that names it."""

import gzip
import io
import json
import re
import struct
import tracemalloc
import zlib

import nibabel as nib
import numpy as np
import pytest
from conftest import FOLDERS, write_site
from PIL import Image

from datasets.files import check_patients, load_slice
from datasets.set_tables import read_card, read_rows, spacing_of_names, spacing_of_patients
from datasets.size_table import read_size_table
from datasets.slices import open_slices
from datasets.transforms import FolderSpec, parse_folders
from datasets.volumes import open_volumes
from files.decoding import read_slice
from files.listing import look_into, stem
from preprocess.priors.measuring import find_slices, measure_slices
from preprocess.survey.problems import find_problems
from preprocess.survey.sets import survey_set
from preprocess.tags import read_images, read_tags
from processes.errors import UserError

REGEX = r"(Case\d+)_(\d+)"
GREY = np.arange(64, dtype=np.uint8).reshape(8, 8) * 3
PNG, NII, GT = FolderSpec("IMG", "png_transform"), FolderSpec("IMG", "nii_transform"), FolderSpec("GT", "gt_transform")


@pytest.fixture
def site(tmp_path):
    return write_site(tmp_path / "site", 200, 60, seed=3, patients=4)


def open_split(root, split="train", folders=FOLDERS, regex=REGEX):
    return open_slices(root, split, parse_folders(folders, 1), 2, regex)


# -- listing -------------------------------------------------------------------------------------------------


def test_suffixes_in_capitals_are_read_everywhere(site):
    for folder in ("IMG", "GT"):
        (site / "val" / folder / "Case03_1.png").rename(site / "val" / folder / "Case03_1.PNG")
    assert "Case03_1" in open_split(site, "val").names
    assert len(find_slices(site, "GT", ("val",))) == 8
    assert measure_slices(site, "GT", 2).names.count("Case03_1") == 1
    survey = survey_set(site)
    assert len(survey.of("val")) == 8
    assert find_problems([survey], None) == []


def test_a_patient_in_two_splits_is_seen_in_capitals_too(site):
    (site / "train/IMG/Case03_0.PNG").write_bytes((site / "val/IMG/Case03_0.png").read_bytes())
    with pytest.raises(UserError, match="Case03 .train and val."):
        check_patients(site, "IMG", REGEX)


def test_capitals_of_zipped_names():
    assert [stem(name) for name in ("A_1.NII.GZ", "A_1.Nii", "A_1.nii.gz", "A_1.NPY")] == ["A_1"] * 4


WHOLE, APART = "Caf\u00e9_1", "Cafe\u0301_1"  # one name: with é as one character (NFC), and as two (NFD)


def test_a_name_is_one_in_whatever_spelling_of_its_accents(site, tmp_path):
    for folder, name in (("IMG", WHOLE), ("GT", APART)):
        (site / f"train/{folder}/Case00_1.png").rename(site / f"train/{folder}/{name}.png")
    regex = r"(.+)_(\d+)"
    names = [path.stem for path in (site / "train/IMG").iterdir()]
    rows = [f"{APART if name == WHOLE else name},3,1,1" for name in names]
    (site / "manifest.csv").write_text("\n".join([HEAD, *rows]), encoding="utf-8")
    slices = open_split(site, regex=regex)
    assert WHOLE in slices.names
    assert "Caf\u00e9" in slices.spacing
    assert not any("no label" in what for what, _ in survey_set(site).faults)
    (tmp_path / "sizes.csv").write_text(f'val_ids,prior\n{APART},"[9, 1]"\n', encoding="utf-8")
    assert read_size_table(tmp_path / "sizes.csv", "prior")[WHOLE].tolist() == [9, 1]
    (tmp_path / "tags.csv").write_text(f"val_ids,disc\n{WHOLE},x\n", encoding="utf-8")
    assert read_tags(tmp_path / "tags.csv", [APART], 2).tolist() == [[True]]


def test_two_spellings_of_one_name_are_twins(site):
    for name in (WHOLE, APART):
        (site / f"train/IMG/{name}.png").write_bytes((site / "train/IMG/Case00_1.png").read_bytes())
    with pytest.raises(UserError, match="accent in two spellings"):
        open_split(site, regex=r"(.+)_(\d+)")


TWINS = {
    "png beside npy": ("Case00_1.npy", lambda path: np.save(path, GREY)),
    "capitals": ("Case00_1.PNG", lambda path: Image.fromarray(GREY).save(path, "png")),
    "nii.gz": ("Case00_1.nii.gz", lambda path: nib.save(nib.Nifti1Image(GREY, np.eye(4)), path)),
}


@pytest.mark.parametrize("kind", TWINS)
def test_twins_are_refused_and_all_of_them_are_listed(site, kind):
    name, write = TWINS[kind]
    for folder in ("IMG", "GT"):
        write(site / "train" / folder / name)
    for read in (lambda: open_split(site), lambda: find_slices(site, "GT", ("train",))):
        with pytest.raises(UserError, match=f"there twice.*GT: (Case00_1.png and {name}|{name} and Case00_1.png)"):
            read()
    with pytest.raises(UserError, match=f"GT: .*{name}.*IMG: .*{name}"):
        open_split(site)
    with pytest.raises(UserError, match="there twice"):
        look_into([site / "train/IMG"])
    assert any("a slice twice" in what for what, _ in find_problems([survey_set(site)], None))


def test_volumes_that_are_there_twice_are_refused(tmp_path):
    for folder in ("IMG", "GT"):
        (tmp_path / "train" / folder).mkdir(parents=True)
        np.save(tmp_path / "train" / folder / "a.npy", np.zeros((4, 4, 4), np.uint8))
        nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)), tmp_path / "train" / folder / "a.NII")
    folders = [FolderSpec("IMG", "nii_transform"), FolderSpec("GT", "nii_gt_transform")]
    with pytest.raises(UserError, match="GT: a.NII and a.npy.*IMG: a.NII and a.npy"):
        open_volumes(tmp_path, "train", folders, 2, r".+", (4, 4, 4))


def test_images_of_other_kinds_are_named_once(site, capsys):
    for number in range(6):
        (site / f"train/IMG/Case00_{number}.jpg").write_bytes(b"")
    (site / "train/IMG/._hidden.tif").write_bytes(b"")
    (site / "train/IMG/notes.txt").write_text("no image")
    for _ in range(2):
        open_split(site)
    told = capsys.readouterr().err
    assert told.count("6 image files that are not read (Case00_0.jpg") == 1
    assert "hidden" not in told
    assert "notes" not in told
    assert any("not read" in what for what, _ in find_problems([survey_set(site)], None))


def test_a_folder_of_other_images_alone_says_so(tmp_path):
    for folder in ("IMG", "GT"):
        (tmp_path / "train" / folder).mkdir(parents=True)
        (tmp_path / "train" / folder / "Case00_1.tif").write_bytes(b"")
    with pytest.raises(UserError, match="nothing to read.*IMG holds an image file that is not read .Case00_1.tif."):
        open_split(tmp_path)
    with pytest.raises(UserError, match="no slice.*not read .Case00_1.tif."):
        find_slices(tmp_path, "IMG", ("train",))


# -- patient and number --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("regex", "found"), [(r"(Case\d+)(_\d+)", "'_0'"), (r"(Case\d+)(?:_s(\d+))?", "nothing")])
def test_a_second_group_without_a_number_is_told_in_words(site, regex, found):
    with pytest.raises(
        UserError, match=rf"second group.*8 of the 8 names.*reads no number: Case00_0 \({found}\), Case00_1"
    ):
        open_split(site, regex=regex)
    check_patients(site, "IMG", regex)  # before it; says nothing of numbers
    assert any("second group" in what for what, _ in find_problems([survey_set(site, regex=regex)], None))


def test_an_optional_patient_and_a_broken_expression(site):
    with pytest.raises(UserError, match="does not match 8 of the 8"):
        open_split(site, regex=r"(Patient\d+)?_(\d+)")
    for read in (lambda: open_split(site, regex="("), lambda: check_patients(site, "IMG", "(")):
        with pytest.raises(UserError, match="not a regular expression"):
            read()


# -- transforms and what they were made for ------------------------------------------------------------------


def load(tmp_path, array, spec=NII, is_image=True, name="a.npy", n_class=2):
    np.save(tmp_path / name, array)
    return load_slice(tmp_path / name, spec, n_class, is_image)


@pytest.mark.parametrize("kind", [np.int16, np.int32, np.int64, np.uint32, np.float32, np.float64, np.float16])
def test_png_transform_refuses_all_but_grey_levels_of_pictures(tmp_path, kind):
    _, fault = load(tmp_path, GREY.astype(kind), PNG)
    assert "a.npy holds" in fault
    assert "nii_transform" in fault


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, ">u2"])
def test_png_transform_takes_the_depths_of_pictures(tmp_path, kind):
    array, fault = load(tmp_path, GREY.astype(kind), PNG)
    assert not fault
    assert np.array_equal(array, GREY)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.array([[3e9, 3e9 + 50]]).astype(np.int64), "whole numbers"),
        (np.array([[2.0**24 + 1, 0]]), "whole numbers"),
        (np.array([[1e39, 0.5]]), "beyond what 32 bits hold"),
        (GREY + 1j, "complex values"),
        (GREY.astype("U3"), "text"),
        (GREY.astype("M8[s]"), "dates or times"),
        (np.zeros((8, 8), [("r", "u1"), ("g", "u1")]), "records"),
        (np.array([[{}]]), "python objects|cannot be read"),
        (np.zeros((0, 8)), "without a pixel"),
        (np.array(5.0), "has shape"),
    ],
)
def test_npy_files_of_no_image_are_refused(tmp_path, array, words):
    _, fault = load(tmp_path, array)
    assert re.search(words, fault)


def test_signed_and_float_images_are_read_as_they_are(tmp_path):
    for array in (GREY.astype(np.int16) - 1000, GREY / 7, GREY.astype(np.float16) / 8, np.int32(2**24) - GREY):
        found, fault = load(tmp_path, array)
        assert not fault
        assert np.array_equal(found, array.astype(np.float32))


def save_png(path, array, mode=None, **options):
    Image.fromarray(array, mode).save(path, **options)
    return path


def test_pictures_of_every_kind_become_grey_levels(tmp_path):
    colour = np.stack([GREY, GREY // 2, 255 - GREY], -1)
    palette = Image.fromarray(np.stack([GREY] * 3, -1)).quantize(64)
    coloured = Image.fromarray(colour).quantize(64)
    alpha = np.full_like(GREY, 255)
    kinds = {
        "grey": (Image.fromarray(GREY), GREY),
        "1 bit": (Image.fromarray(GREY > 90), GREY > 90),
        "16 bit": (Image.fromarray(GREY.astype(np.uint16) * 300), GREY.astype(np.uint16) * 300),
        "colour": (Image.fromarray(colour), np.moveaxis(colour, -1, 0)),
        "grey palette": (palette, np.asarray(palette.convert("L"))),
        "palette": (coloured, np.moveaxis(np.asarray(coloured.convert("RGB")), -1, 0)),
        "grey, opaque": (Image.fromarray(np.stack([GREY, alpha], -1)), GREY),
        "colour, opaque": (Image.fromarray(np.dstack([colour, alpha])), np.moveaxis(colour, -1, 0)),
    }
    for name, (picture, expected) in kinds.items():
        picture.save(tmp_path / "a.png")
        assert np.array_equal(read_slice(tmp_path / "a.png"), expected), name
    assert np.abs(np.asarray(palette.convert("L")).astype(int) - GREY).max() < 4


@pytest.mark.filterwarnings("error")
def test_a_palette_with_an_opacity_for_each_colour_is_read_where_all_that_is_used_are_opaque(tmp_path):
    picture = Image.fromarray(GREY // 6).convert("P")  # colours 0 to 31, grey
    picture.putpalette([level for colour in range(256) for level in [colour] * 3])
    picture.save(tmp_path / "a.png", transparency=bytes([255] * 40 + [0] * 100))
    assert np.array_equal(load_slice(tmp_path / "a.png", PNG, 2, True)[0], GREY // 6)
    picture.save(tmp_path / "a.png", transparency=bytes([255] * 20 + [0] * 100))
    assert "is transparent in" in load_slice(tmp_path / "a.png", PNG, 2, True)[1]


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparent_pictures_are_refused(tmp_path, mode):
    picture = Image.fromarray(GREY).convert(mode)
    picture.putpixel((1, 2), (9, 0) if mode == "LA" else (9, 9, 9, 0))
    picture.save(tmp_path / "a.png")
    assert "transparent in 1 of its pixels" in load_slice(tmp_path / "a.png", PNG, 2, True)[1]


def test_colours_of_16_bits_are_refused(tmp_path):
    rows = b"".join(b"\0" + bytes(range(48)) for _ in range(8))
    (tmp_path / "a.png").write_bytes(png_bytes(8, 8, 16, 2, zlib.compress(rows)))
    assert "channels of 16 bits" in load_slice(tmp_path / "a.png", PNG, 2, True)[1]


def png_bytes(width, height, depth, kind, data):
    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


# -- labels --------------------------------------------------------------------------------------------------


def test_labels_of_pictures_are_their_stored_numbers(tmp_path):
    label = np.arange(16, dtype=np.uint8).reshape(4, 4) % 4
    palette = Image.fromarray(label, "P")
    palette.putpalette([200, 10, 10, 0, 0, 0, 30, 30, 30, 9, 9, 9])
    palette.save(tmp_path / "p.png", transparency=0)
    few = png_bytes(4, 4, 2, 0, zlib.compress(b"".join(b"\0" + bytes([0b00011011]) for _ in range(4))))
    (tmp_path / "two_bits.png").write_bytes(few)
    for name, expected in (("p.png", label), ("two_bits.png", np.tile([0, 1, 2, 3], (4, 1)))):
        found, fault = load_slice(tmp_path / name, GT, 4, False)
        assert not fault
        assert np.array_equal(found, expected)


def test_labels_that_are_whole_but_for_rounding_are_these_numbers(tmp_path):
    label = np.array([[0, 1 - 7e-10], [2.0009, 1.9995]])
    found, fault = load(tmp_path, label, GT, False, n_class=3)
    assert not fault
    assert (found.dtype, found.tolist()) == (np.uint8, [[0, 1], [2, 2]])
    for odd in (2.0235, 0.73):
        assert f"holds the labels {odd}" in load(tmp_path, np.array([[0, odd]]), GT, False, n_class=3)[1]
    for split in ("train", "val"):
        (tmp_path / split / "GT").mkdir(parents=True)
        np.save(tmp_path / split / "GT" / f"{split}_1.npy", label)
    assert measure_slices(tmp_path, "GT", 3).counts.tolist() == [[1, 1, 2]] * 2


def test_volumes_of_labels_that_are_almost_whole(tmp_path):
    label = np.zeros((4, 4, 4))
    label[1] = 2 - 7e-10
    for folder, array in (("IMG", label), ("GT", label)):
        (tmp_path / "train" / folder).mkdir(parents=True)
        np.save(tmp_path / "train" / folder / "a.npy", array)
    folders = [FolderSpec("IMG", "nii_transform"), FolderSpec("GT", "nii_gt_transform")]
    found = open_volumes(tmp_path, "train", folders, 3, r".+", (4, 4, 4)).labels([0])[0]
    assert np.array_equal(found, np.rint(label))


@pytest.mark.parametrize("label", [258, 256, -1])
def test_labels_beyond_a_byte_are_refused(tmp_path, label):
    assert f"labels {label}" in load(tmp_path, np.full((4, 4), label, np.int16), GT, False, n_class=256)[1]
    with pytest.raises(UserError, match="n_class 300.*256 classes"):
        open_slices(tmp_path, "train", [NII, GT], 300, REGEX)


# -- broken files --------------------------------------------------------------------------------------------


def nifti(array=None):
    return nib.Nifti1Image(GREY.astype(np.float32) if array is None else array, np.eye(4)).to_bytes()


def damaged(content, at, by):
    return content[:at] + by + content[at + len(by) :]


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def huge_npy():
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (10**6, 10**6)})
    return file.getvalue() + bytes(64)


ZIPPED = gzip.compress(nifti(np.random.default_rng(0).random((8, 8), np.float32)))
COLOURS = nib.Nifti1Image(np.zeros((8, 8, 1), [("R", "u1"), ("G", "u1"), ("B", "u1")]), np.eye(4)).to_bytes()
HUGE = damaged(nifti(), 42, struct.pack("<hh", 32767, 32767))
BROKEN = {
    "empty.nii": b"",
    "empty.nii.gz": b"",
    "empty.npy": b"",
    "empty.png": b"",
    "cut.nii": nifti()[:300],
    "short.nii": nifti()[:-1],
    "cut.nii.gz": ZIPPED[:-20],
    "checksum.nii.gz": ZIPPED[:-8] + b"\0" * 8,
    "magic.nii": damaged(nifti(), 344, b"\0" * 4),
    "type.nii": damaged(nifti(), 70, b"\x11\x11"),
    "colours.nii": COLOURS,
    "huge.nii": HUGE,
    "huge.nii.gz": gzip.compress(HUGE),
    "deflate.nii.gz": damaged(ZIPPED, 60, bytes(255 - byte for byte in ZIPPED[60:90])),
    "behind.nii.gz": gzip.compress(nifti() + bytes(10**6)),
    "header.npy": damaged(npy(GREY), 20, b"("),
    "huge.npy": huge_npy(),
    "cut.npy": npy(GREY)[:-1],
    "bomb.png": png_bytes(30000, 30000, 8, 0, zlib.compress(b"\0")),
    "large.png": png_bytes(20000, 20000, 1, 0, zlib.compress(bytes(20000 * 2501))),
    "words.png": b"no picture",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_slice_is_a_sentence_with_its_name(tmp_path, name):
    (tmp_path / name).write_bytes(BROKEN[name])
    array, fault = load_slice(tmp_path / name, NII, 2, True)
    assert array is None
    assert str(tmp_path / name) in fault
    assert "BytesIO" not in fault


def test_every_reader_lists_every_broken_file(site):
    for number, name in enumerate(("deflate.nii.gz", "type.nii", "header.npy")):
        place = site / "train/IMG" / f"Case0{number % 2}_{number}"
        place.with_suffix(".png").unlink()
        place.with_name(f"{place.name}.{name.split('.', 1)[1]}").write_bytes(BROKEN[name])
    named = ".*".join(("Case00_0.nii.gz", "Case00_2.npy", "Case01_1.nii"))
    with pytest.raises(UserError, match=f"3 faulty files.*{named}"):
        open_split(site, folders=FOLDERS.replace("png_transform", "nii_transform"))
    with pytest.raises(UserError, match="3 faulty files"):
        measure_slices(site, "IMG", None)
    assert len(read_images(find_slices(site, "IMG", ("train",)))[1]) == 3
    problems = [which for what, which in find_problems([survey_set(site)], None) if "cannot be read" in what]
    assert len(problems) == 3


def test_links_to_nothing_are_listed_by_every_reader(site, capsys):
    for number in (1, 2):
        place = site / f"train/IMG/Case00_{number}.png"
        place.unlink()
        place.symlink_to(site / "gone.png" if number == 1 else place)
    with pytest.raises(
        UserError, match=r"Case00_1.png cannot be read \(No such.*\); it is a link to .*gone.png; .*Case00_2.png"
    ):
        open_split(site)
    with pytest.raises(UserError, match="2 faulty files"):
        measure_slices(site, "IMG", None)
    assert "cannot be used" not in capsys.readouterr().err
    problems = [which for what, which in find_problems([survey_set(site)], None) if "cannot be read" in what]
    assert len(problems) == 2


def test_one_file_of_other_channels_is_told_as_that(site):
    path = site / "train/IMG/Case00_1.png"
    Image.open(path).convert("RGB").save(path)
    with pytest.raises(UserError, match=r"1 faulty file: .*Case00_1.png has 3 channels, not 1; write all with one"):
        open_split(site)


def test_a_header_that_promises_too_much_costs_no_memory(tmp_path):
    for name in ("huge.nii", "huge.nii.gz", "huge.npy", "bomb.png", "behind.nii.gz"):
        (tmp_path / name).write_bytes(BROKEN[name])
        tracemalloc.start()
        load_slice(tmp_path / name, NII, 2, True)
        assert tracemalloc.get_traced_memory()[1] < 4e6, name
        tracemalloc.stop()


def test_both_versions_and_byte_orders_of_nifti_are_read(tmp_path):
    image = GREY.astype(np.int16) - 100
    for kind in (nib.Nifti1Image, nib.Nifti2Image):
        for order in "<>":
            stored = kind(image.astype(f"{order}i2"), np.eye(4), kind.header_class(endianness=order))
            for suffix in ("nii", "nii.gz", "NII.GZ"):
                content = stored.to_bytes()
                path = tmp_path / f"a.{suffix}"
                path.write_bytes(gzip.compress(content) if suffix.lower().endswith("gz") else content)
                assert np.array_equal(read_slice(path), image)


# -- tables --------------------------------------------------------------------------------------------------


NNUNET = {
    "channel_names": {"0": "T2"},
    "labels": {"background": 0, "gland": 1},
    "numTraining": 8,
    "file_ending": ".nii.gz",
}
DECATHLON = {
    **{"name": "Prostate", "modality": {"0": "T2"}, "labels": {"0": "background", "1": "gland"}, "images": [{"a": 1}]},
    **{"numTraining": 2, "training": [{"image": "a", "label": "b"}]},
}


SCANNED = {"name": "QA", "phantom": "ACR"}  # an object of that name, in a scanner
OTHERS = [
    NNUNET,
    NNUNET | {"phantom": True},
    SCANNED,
    {"name": "QA", "scale": 0.5},
    DECATHLON,
    ["a", "list"],
    "text",
    5,
]


@pytest.mark.parametrize("card", OTHERS)
def test_a_card_of_another_program_is_as_none(site, card, capsys):
    own = (site / "dataset.json").read_text()
    before = survey_set(site)
    for text in (json.dumps(card), "\ufeff" + json.dumps(card)):
        (site / "dataset.json").write_text(text, encoding="utf-8")
        assert read_card(site) == {}
        after = survey_set(site)
        assert (after.labels, after.images, after.n_class) == (before.labels, before.images, before.n_class)
        assert np.array_equal(after.class_counts(), before.class_counts())
        check_patients(site, "IMG", REGEX)
    assert capsys.readouterr().err.count("of another program") == 1
    (site / "dataset.json").write_text("\ufeff" + own, encoding="utf-8")
    assert read_card(site) == json.loads(own)
    (site / "dataset.json").write_bytes('{"split_unit": "patient", "site": "Köln"}'.encode("latin-1"))
    assert read_card(site)["site"] == "Köln"


def test_a_card_of_ours_that_is_broken_is_told(site):
    for text, words in (("{", "is not JSON"), ('{"split_unit": "patient", "labels": {"a": 1}}', "labels is .*folder")):
        (site / "dataset.json").write_text(text)
        with pytest.raises(UserError, match=words):
            read_card(site)


HEAD = "slice,spacing_slice,spacing_w,spacing_h"
ROWS = ["Case00_0,3,0.5,0.75", "Case00_1,3,0.5,0.75"]
KNOWN = {"Case00_0": (3, 0.5, 0.75), "Case00_1": (3, 0.5, 0.75)}
MANIFESTS = {
    "as the slicer writes it": ("\n".join([HEAD, *ROWS]), KNOWN),
    "with suffixes": ("\n".join([HEAD, *(row.replace(",3", ".png,3") for row in ROWS)]), KNOWN),
    "a row twice": ("\n".join([HEAD, *ROWS, ROWS[0]]), KNOWN),
    "semicolons, decimal commas": ("\r\n".join([HEAD, *ROWS]).replace(",", ";").replace(".", ","), KNOWN),
    "capitals": ("\n".join([HEAD.upper(), *ROWS]), KNOWN),
    "Excel says its separator": ("\r\n".join(["sep=;", *(row.replace(",", ";") for row in [HEAD, *ROWS])]), KNOWN),
    "blanks": ("\n".join([HEAD, *ROWS]).replace(",", " , "), KNOWN),
    "other columns": ("file,patient\nCase00_0.png,Case00\n", None),
    "empty": ("", None),
    "no depth": ("slice,spacing_w,spacing_h\nCase00_0,1,1\nCase00_1,1,1", None),
    "units": ("\n".join([HEAD, *ROWS]).replace("0.5", "0.5mm"), "2 of 2 slices.*Case00_0 .3, 0.5mm, 0.75."),
    "a row less": ("\n".join([HEAD, ROWS[0]]), "1 of 2 slices.*Case00_1 .no row."),
    "rows that contradict": ("\n".join([HEAD, *ROWS, "Case00_0,4,0.5,0.75"]), "contradict each other: Case00_0"),
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("kind", MANIFESTS)
def test_a_manifest_is_read_left_aside_or_refused_in_words(tmp_path, kind, encoding):
    text, expected = MANIFESTS[kind]
    (tmp_path / "manifest.csv").write_bytes(text.encode(encoding) if text else b"")
    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected):
            spacing_of_names(tmp_path, list(KNOWN))
    else:
        assert spacing_of_names(tmp_path, list(KNOWN)) == expected


@pytest.mark.parametrize(
    "content", [b"\0\0\0", b"\xff\xfe", b"slice,spacing_w\n\xe4\n", b'"slice","spacing_w\n', b"a\nb"]
)
def test_no_bytes_of_a_manifest_are_a_traceback(site, content):
    (site / "manifest.csv").write_bytes(content)
    assert isinstance(read_rows(site), list)
    survey_set(site)
    open_split(site)


def test_several_spacings_of_one_patient_are_told(tmp_path, capsys):
    rows = [f"Case0_{number},{3 + (number == 2)},1,1\n" for number in range(3)]
    (tmp_path / "manifest.csv").write_text("slice,spacing_slice,spacing_w,spacing_h\n" + "".join(rows))
    names = [f"Case0_{number}" for number in range(3)]
    assert spacing_of_patients(tmp_path, names, ["Case0"] * 3) == {"Case0": (3, 1, 1)}
    assert "several spacings for slices of one patient (Case0)" in capsys.readouterr().err
    spacing_of_patients(tmp_path, names, ["Case0", "Case0", "Case1"])
    assert capsys.readouterr().err == ""
