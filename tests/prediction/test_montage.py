"""Pictures of masks, and the page of them: the right way up, the doubtful first, any name in them."""

import html
import re
from html.parser import HTMLParser

import nibabel as nib
import numpy as np
import pytest
from nasty import NASTY
from PIL import Image

from prediction import montage
from prediction.montage import Look, Shown, choose_slices, draw_montage, write_montages
from processes.quoting import visible
from tests.prediction.test_predict import run, trained  # noqa: F401  a fixture

LOOK = Look({0: 0, 1: 5, 2: 9}, ["background", "a", "b"])


def write(folder, name, voxels, affine):
    nib.save(nib.Nifti1Image(voxels, affine), folder / f"{name}.nii.gz")
    return folder / f"{name}.nii.gz"


def row(patient, dice="", low="", k=1, note=""):
    return (patient, "f", str(k), "5", "7", "1500", dice, low, "", note)


@pytest.mark.parametrize(
    ("spacing", "axis", "corner"),
    [((1, 1, 3), 2, "right front"), ((1, 4, 1), 1, "right head"), ((5, 1, 1), 0, "front head"), ((1, 1, 1), 2, "")],
)
@pytest.mark.parametrize("codes", ["RAS", "LPS", "SAR"])
def test_a_slice_lies_as_radiologists_look_at_it(tmp_path, spacing, axis, corner, codes):
    """`corner`: what is bright, in words of the patient; it must lie in the upper left of each slice."""
    wanted = nib.orientations.axcodes2ornt(codes)
    image = np.zeros((6, 8, 10), np.int16)
    image[3:, 4:, 5:] = 100  # right, front, head, of axes that run there
    if corner == "right front":
        image[3:, 4:] = 100
    elif corner == "right head":
        image[3:, :, 5:] = 100
    elif corner == "front head":
        image[:, 4:, 5:] = 100
    stored = nib.Nifti1Image(image, np.diag([*spacing, 1])).as_reoriented(
        nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), wanted)
    )
    nib.save(stored, tmp_path / "v.nii.gz")
    classes = (np.asarray(stored.dataobj) > 0) * 5
    mask = write(tmp_path, "m", classes.astype(np.uint8), stored.affine)
    grid, turned, labels = montage._read(Shown("p", tmp_path / "v.nii.gz", mask), LOOK)
    assert montage._axis(grid) == axis
    assert set(np.unique(labels)) == {0, 1}
    plane = montage._upright(turned.take(turned.shape[axis] - 1, axis), axis)  # the last to the left, back or head
    if not corner:
        return
    rows, columns = plane.shape
    bright = np.zeros_like(plane)
    bright[: rows // 2, : columns // 2] = 100
    np.testing.assert_array_equal(plane, bright)


def test_slices_run_from_the_first_to_the_last_that_shows_a_class():
    classes = np.zeros((4, 5, 30), np.uint8)
    assert choose_slices(classes, 2) == [0, 4, 8, 12, 17, 21, 25, 29]
    classes[1, 1, [7, 20]] = 1
    assert choose_slices(classes, 2) == [7, 9, 11, 13, 14, 16, 18, 20]
    classes[..., 9:] = 0
    assert choose_slices(classes, 2) == [7]
    assert choose_slices(classes[..., :3], 0) == [0, 1, 2, 3]


def colours_in(path):
    with Image.open(path) as picture:
        return {tuple(colour) for colour in np.asarray(picture.convert("RGB")).reshape(-1, 3).tolist()}


def test_each_class_has_its_contour_and_its_name(tmp_path):
    rng = np.random.default_rng(0)
    image, classes = rng.normal(100, 9, (40, 40, 3)).astype(np.int16), np.zeros((40, 40, 3), np.uint8)
    classes[5:20, 5:20], classes[22:38, 22:38] = 5, 9
    shown = Shown("p", *(write(tmp_path, name, each, np.eye(4)) for name, each in (("v", image), ("m", classes))))
    yellow, blue = (0xF0, 0xE4, 0x42), (0x56, 0xB4, 0xE9)
    draw_montage(shown, [], LOOK, tmp_path / "both.png")
    assert {yellow, blue} <= colours_in(tmp_path / "both.png")
    classes[classes == 9] = 0
    write(tmp_path, "m", classes, np.eye(4))
    with Image.open(tmp_path / "both.png") as picture:
        width, height = picture.size
    draw_montage(shown, [], LOOK, tmp_path / "one.png")
    with Image.open(tmp_path / "one.png") as picture:
        images = np.asarray(picture.convert("RGB"))[: int(height * 0.8)]  # above the legend, which has both
        assert picture.size == (width, height)
    found = {tuple(colour) for colour in images.reshape(-1, 3).tolist()}
    assert yellow in found
    assert blue not in found


class Words(HTMLParser):
    """The elements and the words of a page."""

    def __init__(self):
        super().__init__()
        self.tags, self.words, self.sources = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_shows_the_doubtful_first_and_holds_all_it_needs(tmp_path):
    names = ["sure", "doubtful", "unknown", "between"]
    rows = [row("sure", "0.95", "0.9"), row("doubtful", "0.2", "0.0", note="far <from> all"), row("unknown")]
    rows += [row("between", "0.5", "0.1"), row("between", "0.9", "0.3", k=2), row("never drawn", "0.1", "0.0")]
    image = write(tmp_path, "v", np.zeros((6, 6, 2), np.int16), np.eye(4))
    mask = write(tmp_path, "m", np.zeros((6, 6, 2), np.uint8), np.eye(4))
    cases = [Shown(name, image, mask) for name in names]
    assert write_montages(tmp_path, cases, [], LOOK, rows) == []
    text = (tmp_path / "montage/index.html").read_text()
    assert re.findall("<h2>(\\w+)", text) == ["doubtful", "between", "sure", "unknown"]
    assert "doubtful, expected Dice 0.20 (from 0.00)" in text
    assert "between, expected Dice 0.70 (from 0.20)" in text
    page = Words()
    page.feed(text)
    assert len(page.sources) == 4
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.sources)
    assert "far <from> all" in page.words


def test_what_is_drawn_is_drawn_once_and_again_when_its_mask_is_new(tmp_path):
    image = write(tmp_path, "v", np.zeros((6, 6, 2), np.int16), np.eye(4))
    mask = write(tmp_path, "m", np.zeros((6, 6, 2), np.uint8), np.eye(4))
    small = write(tmp_path, "s", np.zeros((5, 6, 2), np.uint8), np.eye(4))
    cases, rows = [Shown("a", image, mask), Shown("b", image, small)], [row("a"), row("b"), row("c")]
    ((what, which),) = write_montages(tmp_path, cases, [], LOOK, rows)
    assert what == "has another size than its volume"
    assert which.startswith(str(small))
    path = tmp_path / "montage/a.png"
    path.write_bytes(content := path.read_bytes() + b"kept")
    write_montages(tmp_path, cases[:1], [], LOOK, rows)
    assert path.read_bytes() == content
    write_montages(tmp_path, cases[:1], ["a"], LOOK, rows)
    assert path.read_bytes() == content[:-4]  # the same picture byte by byte


def test_any_name_is_words_in_picture_and_page(tmp_path):
    image = write(tmp_path, "v", np.zeros((6, 6, 2), np.int16), np.eye(4))
    mask = write(tmp_path, "m", np.zeros((6, 6, 2), np.uint8), np.eye(4))
    (tmp_path / "montage").mkdir()
    odd = [*NASTY, "<script>alert(1)</script>", '"><img src=x onerror=y>']
    for name in odd:
        look = Look({0: 0, 1: 1}, ["no", name], phantom=True)
        draw_montage(Shown(name, image, mask), [], look, tmp_path / "montage/a.png")
        rows = [row("a", "0.5", "0.1", note=name)]
        montage.write_page(
            tmp_path / "montage", {name: tmp_path / "montage/a.png"}, {name: montage.by_column(rows)["a"]}, look
        )
        text = (tmp_path / "montage/index.html").read_text(encoding="utf-8")
        page = Words()
        page.feed(text)
        assert not {"script", "iframe", "object"} & set(page.tags)
        assert page.tags.count("img") == 1
        assert "PHANTOM" in text
        assert html.escape(visible(name)) in text


def test_predicted_with_a_montage(trained, tmp_path, capsys):  # noqa: F811
    folder, weights = trained
    words = ("--volumes", f"{folder}/p[0-2]_i0.nii.gz", "--out", tmp_path / "out")
    run(weights, "--volumes", f"{folder}/p0_i0.nii.gz", *words[2:])
    assert not (tmp_path / "out/montage").exists()
    run(weights, *words, "--montage")
    assert f"Look them over: {tmp_path}/out/montage/index.html" in capsys.readouterr().out
    made = tmp_path / "out/montage"
    assert sorted(path.name for path in made.iterdir()) == ["index.html", "p0.png", "p1.png", "p2.png"]
    assert len(re.findall("<h2>p[012], expected Dice", (made / "index.html").read_text())) == 3
    before = {path.name: path.stat().st_mtime_ns for path in made.glob("*.png")}
    run(weights, "--volumes", f"{folder}/p4_i0.nii.gz", *words[2:], "--montage")
    assert {path.name: path.stat().st_mtime_ns for path in made.glob("p[012].png")} == before
    assert len(re.findall("<h2>", (made / "index.html").read_text())) == 4  # those of other calls too
    run(weights, "--volumes", f"{folder}/p4_i0.nii.gz", *words[2:], "--montage", "--overwrite")
    with Image.open(made / "p4.png") as picture:
        assert min(picture.size) > 300
