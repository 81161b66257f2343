"""Folders of 2D pictures become a set of slices and a makefile: what is read, proposed, refused, and that it runs."""

import csv
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import disc_slice
from PIL import Image

from files.decoding import read_slice
from files.faults import VolumeFault
from files.pictures import read_picture
from preprocess import new_dataset as program
from preprocess.picture_set import PictureSpec, make_picture_set, read_spec
from preprocess.survey.patients import find_pictures
from processes.errors import UserError
from tests.tools.check_makefiles import check
from tests.tools.checkout import working_folder

NUCLEI = Path(__file__).parents[3] / "shared/data/nuclei_dsb2018"


def write_pictures(folder, names, seed=0, suffix="png", colour=False, value=255):
    """Pictures of 20 columns and 24 rows with a disc, and their masks, below images and masks."""
    rng = np.random.default_rng(seed)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for name in names:
        image, label = disc_slice(rng, True, 200, 60)
        pixels = np.asarray(image).astype(np.uint8)
        pixels = np.stack([pixels, pixels // 2, pixels // 4], -1) if colour else pixels
        Image.fromarray(pixels).save(folder / "images" / f"{name}.{suffix}")
        Image.fromarray((np.asarray(label) * value).astype(np.uint8)).save(folder / "masks" / f"{name}.png")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder with what a makefile needs, and two sites of pictures: grey PNG, and JPEG in colours."""
    monkeypatch.chdir(working_folder(tmp_path))
    write_pictures(tmp_path / "old", [f"img{n}" for n in range(5)], seed=1)
    write_pictures(tmp_path / "new", [f"scan-{n}" for n in range(5)], seed=2, suffix="jpg", colour=True)
    return tmp_path


def run(*more, labelled=True, target="new/images/*.jpg"):
    flags = ["--name", "mine", "--source", "old/images/*.png", "--source_label", "old/masks/*.png"]
    flags += ["--target", target, *more]
    flags += ["--target_label", "new/masks/*.png"] if labelled else []
    program.new_dataset(program.parse_args(flags))
    return Path("mine.make").read_text()


def spec_of(*more, image="old/images/*.png", label="old/masks/*.png"):
    words = ["--dest", "data/made", "--image", image, "--patient", r"^(.+)\.", "--jobs", "1", "--val", "1"]
    words += ["--label", label, "--n_class", "2", "--label_map", "255:1"] if label else []
    return read_spec([*words, *(more or ("--size", "32", "16"))])


# ------------------------------------------------------------------------------------------------ from end to end


def test_pictures_run_from_folders_to_an_adapted_network(place, python, capsys):
    text = run()
    told = capsys.readouterr().out
    assert "--label_map 0:0,255:1: a 0/255 mask" in told
    assert "--size 32 32: all pictures of 20x24 pixels are scaled to fit" in told
    assert "one picture is one patient at the target, as new/images/scan-0.jpg is of scan-0" in told
    assert "pictures that hold it" in told
    assert "CUT     = -m preprocess.picture_set\n" in text
    assert "ALSO    = sizes\n" in text
    assert "iou" not in text
    assert check(str(place / "mine.make")) > 6
    words = ["make", "-f", "mine.make", f"CC={python}", "NET=Dimwit", "EPC=1", "DEBUG=--debug"]
    done = subprocess.run([*words, "results/mine/chosen"], cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    for run_name in ("sfda", "chosen"):
        assert (place / "results/mine" / run_name / "last.pkl").is_file()
    with (place / "results/mine/sfda/patients_last.csv").open() as file:
        scored = {row["patient"] for row in csv.DictReader(file)}
    card = json.loads((place / "data/mine_target/dataset.json").read_text())
    assert scored >= set(card["split"]["val"])
    assert (card["size"], card["label_map"], card["n_class"]) == ([32, 32], {"0": 0, "255": 1}, 2)
    assert not (place / "data/mine_target/manifest.csv").exists()


def test_a_blind_target_is_read_without_its_masks(place):
    text = run(labelled=False)
    assert "TT_DATA = [('IMG', png_transform, False)]" in text
    assert "new/masks" not in text
    assert check(str(place / "mine.make")) == 13


# ---------------------------------------------------------------------------------------------------- what is cut


def test_slices_hold_the_pixels_of_their_picture(place):
    card = make_picture_set(spec_of("--size", "20", "24", "--normalise", "minmax"))
    assert sorted(card["split"]) == ["train", "val"]
    for split, names in card["split"].items():
        for name in names:
            image = np.asarray(Image.open(f"old/images/{name}.png")).astype(float)
            stretched = np.rint((image - image.min()) / (image.max() - image.min()) * 255)
            assert np.abs(read_slice(Path(f"data/made/{split}/IMG/{name}_0.png")) - stretched).max() <= 1
            mask = np.asarray(Image.open(f"old/masks/{name}.png"))
            assert np.array_equal(read_slice(Path(f"data/made/{split}/GT/{name}_0.png")), mask == 255)


def test_a_picture_of_another_size_is_scaled_to_fit_and_padded(place):
    make_picture_set(spec_of("--size", "80", "48"))  # 20 columns and 24 rows become 40 and 48
    slices = sorted(Path("data/made").glob("*/GT/img*_0.png"))
    assert len(slices) == 5
    for path in slices:
        made = read_slice(path)
        mask = np.asarray(Image.open(f"old/masks/{path.name.removesuffix('_0.png')}.png")) == 255
        assert made.shape == (48, 80)
        assert np.array_equal(made[:, 20:60], mask.repeat(2, 0).repeat(2, 1))
        assert not made[:, :20].any()
        assert not made[:, 60:].any()


def test_a_picture_that_nearly_fills_the_size_keeps_its_pixels(place):
    spec = PictureSpec(Path("x"), {"IMG": ""}, "", val=1, size=(26, 32))
    assert spec.frame(spec.grid_of((24, 20))).scaled == (24, 20)
    assert spec.frame(spec.grid_of((52, 20))).scaled == (26, 10)


def test_tiles_put_together_are_the_picture(place):
    make_picture_set(spec_of("--tile", "8", "16", "--spacing", "0.5", "0.25"))
    with Path("data/made/manifest.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["patient"] == "img3"]
    assert len(rows) == 6  # 3 x 2
    assert {(row["spacing_w"], row["spacing_h"]) for row in rows} == {("0.25", "0.5")}  # of rows, of columns
    assert {row["source"] for row in rows} == {"old/images/img3.png"}
    assert len({row["split"] for row in rows}) == 1
    whole = np.zeros((32, 24), np.uint8)
    for row in rows:
        at = int(row["offset_w"]) + 4, int(row["offset_h"]) + 2
        tile = read_slice(Path(f"data/made/{row['split']}/GT/{row['slice']}.png"))
        assert tile.shape == (16, 8)
        whole[at[0] : at[0] + 16, at[1] : at[1] + 8] += tile
    assert np.array_equal(whole[4:28, 2:22], np.asarray(Image.open("old/masks/img3.png")) == 255)


@pytest.mark.parametrize(
    "more", [("--size", "32", "16"), ("--tile", "8", "8"), ("--size", "32", "16", "--spacing", "2", "2")]
)
def test_images_are_the_same_whatever_their_labels_say(place, more):
    seen = []
    for state in ("as they are", "wiped", "absent"):
        if state == "wiped":
            for path in (place / "old/masks").iterdir():
                Image.fromarray(np.zeros_like(np.asarray(Image.open(path)))).save(path)
        made = place / "data" / state
        make_picture_set(replace(spec_of(*more, label="old/masks/*.png" if state != "absent" else ""), dest=made))
        seen.append({path.relative_to(made): path.read_bytes() for path in made.glob("*/IMG/*")})
    assert len(seen[0]) >= 5
    assert seen[0] == seen[1] == seen[2]


def test_pictures_of_a_patient_stay_in_one_split(place, capsys):
    for site in ("old", "new"):
        for path in [*place.glob(f"{site}/images/*"), *place.glob(f"{site}/masks/*")]:
            path.unlink()
    names = [f"P{person}_{view}" for person in range(4) for view in ("left", "right")]
    write_pictures(place / "old", names)
    write_pictures(place / "new", names, suffix="jpg")
    text = run("--patient", r"(P\d)")
    assert "8 pictures of 4 patients at the source" in capsys.readouterr().out
    assert r"--group '(P\d)'" in text
    assert "--site source --val 2" in text
    card = make_picture_set(spec_of("--group", r"(P\d)", "--val", "2", "--size", "20", "24"))
    assert len({name[:2] for name in card["split"]["val"]}) == 1


def test_a_pixel_size_gives_areas_in_mm2(place):
    text = run("--spacing", "0.5", "0.5", "--organ_mm2", "20")
    assert "--spacing 0.5 0.5" in text
    assert "--constant_mm2 20" in text
    assert "ALSO    = transfer\n" in text  # the scale is known


# ----------------------------------------------------------------------------------------------- which file is read


@pytest.mark.parametrize("suffix", ["png", "tif", "tiff", "bmp"])
def test_grey_pictures_are_read_as_they_are(tmp_path, suffix):
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3) * 50
    Image.fromarray(pixels).save(tmp_path / f"a.{suffix}")
    assert np.array_equal(read_picture(tmp_path / f"a.{suffix}"), pixels)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_are_kept(tmp_path, suffix):
    pixels = np.array([[0, 300], [40000, 65535]], np.uint16)
    Image.fromarray(pixels).save(tmp_path / f"a.{suffix}")
    assert np.array_equal(read_picture(tmp_path / f"a.{suffix}"), pixels)


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_colours_become_their_brightness(tmp_path, suffix):
    colours = np.array([[[200, 100, 50], [0, 0, 255]]] * 2, np.uint8)
    Image.fromarray(colours).save(tmp_path / f"a.{suffix}")
    assert np.allclose(read_picture(tmp_path / f"a.{suffix}"), [[124.2, 29.07]] * 2)


def test_a_palette_is_numbers_in_a_mask_and_colours_in_an_image(tmp_path):
    picture = Image.fromarray(np.array([[0, 1, 2]] * 2, np.uint8)).convert("P")
    picture.putpalette([0, 0, 0, 200, 100, 50, 0, 0, 255])
    for suffix in ("png", "bmp", "tif"):
        picture.save(tmp_path / f"a.{suffix}")
        assert read_picture(tmp_path / f"a.{suffix}", is_label=True).tolist() == [[0, 1, 2]] * 2
        assert np.allclose(read_picture(tmp_path / f"a.{suffix}"), [[0, 124.2, 29.07]] * 2)


def test_opacity_goes_where_it_is_full_and_is_refused_elsewhere(tmp_path):
    grey = np.full((2, 2, 4), 90, np.uint8)
    grey[..., 3] = 255
    for suffix in ("png", "tif"):
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(grey).save(path)
        assert (read_picture(path, is_label=True) == 90).all()
        clear = grey.copy()
        clear[0, 0, 3] = 3
        Image.fromarray(clear).save(path)
        with pytest.raises(VolumeFault, match="is transparent in 1 of its pixels"):
            read_picture(path)


def spoil_pages(path):
    first, second = (Image.new("L", (4, 4), level) for level in (1, 2))
    first.save(path, save_all=True, append_images=[second])


def spoil_turn(path):
    picture = Image.new("L", (4, 6))
    exif = picture.getexif()
    exif[274] = 6
    picture.save(path, exif=exif)


@pytest.mark.parametrize(
    ("name", "spoil", "words"),
    [
        ("a.tif", spoil_pages, "holds 2 pages"),
        ("a.jpg", spoil_turn, "is turned by its viewers .EXIF orientation 6"),
        ("a.jpg", lambda path: Image.new("L", (4, 4)).save(path, format="PNG"), "cannot be read"),
        ("a.jpg", lambda path: path.write_bytes(b"\xff\xd8\xff"), "cannot be read"),
        ("a.jpg", lambda path: Image.new("CMYK", (4, 4)).save(path), "of the kind CMYK"),
        ("a.tif", lambda path: Image.fromarray(np.full((2, 2), np.nan, np.float32)).save(path), "NaN"),
        ("a.png", lambda path: path.write_text("no picture"), "cannot be read"),
    ],
)
def test_a_file_that_is_no_plain_picture_is_named_with_its_reason(tmp_path, name, spoil, words):
    spoil(tmp_path / name)
    with pytest.raises(VolumeFault, match=rf"{name} .*{words}"):
        read_picture(tmp_path / name)


# ------------------------------------------------------------------------------------------------- what is refused


def spoil_size(place):
    Image.new("L", (10, 12), 255).save(place / "old/masks/img1.png")


def spoil_jpeg(place):
    mask = np.asarray(Image.open(place / "old/masks/img1.png"))
    noisy = np.clip(mask.astype(int) + np.arange(mask.size).reshape(mask.shape) % 12, 0, 255)
    Image.fromarray(noisy.astype(np.uint8)).save(place / "old/masks/img1.png")


def spoil_colour(place):
    Image.fromarray(np.full((24, 20, 3), [255, 0, 0], np.uint8)).save(place / "old/masks/img1.png")


def spoil_partner(place):
    (place / "old/masks/img1.png").unlink()


def spoil_twin(place):
    for part in ("images", "masks"):
        (place / f"old/{part}/img9.png").write_bytes((place / f"old/{part}/img1.png").read_bytes())


def spoil_grey(place):
    Image.new("L", (20, 24), 7).save(place / "old/images/img1.png")


def spoil_image(place):
    (place / "old/images/img1.png").write_text("text")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_size, r"another size than its image .*old/masks/img1.png \(10 x 12, its image 20 x 24\)"),
        (spoil_jpeg, r"grey levels in between, as JPEG .*--label_map 0-127:0,128-255:1.*old/masks/img1.png"),
        (spoil_colour, r"old/masks/img1.png is a mask in several colours"),
        (spoil_partner, r"pictures without GT \(no file of 'old/masks/\*.png'\): img1"),
        (spoil_twin, r"the same file under several names .*: old/images/img1.png and old/images/img9.png"),
        (spoil_grey, r"is a single grey level throughout \(leave it out\): old/images/img1.png"),
        (spoil_image, r"old/images/img1.png cannot be read"),
    ],
)
def test_pictures_at_fault_are_named_in_one_paragraph_and_nothing_is_written(place, spoil, words):
    spoil(place)
    with pytest.raises(UserError, match=words) as error:
        run()
    assert "\n" not in str(error.value)
    assert not Path("mine.make").exists()
    with pytest.raises(UserError, match="has labels without a class" if spoil is spoil_jpeg else words):
        make_picture_set(spec_of())
    assert not Path("data/made").exists()


def test_a_threshold_that_is_typed_takes_a_blurred_mask(place):
    mask = np.asarray(Image.open("old/masks/img1.png"))
    spoil_jpeg(place)
    run("--label_map", "0-127:0,128-255:1")
    make_picture_set(spec_of("--label_map", "0-127:0,128-255:1", "--size", "20", "24"))
    (path,) = Path("data/made").glob("*/GT/img1_0.png")
    assert np.array_equal(read_slice(path), mask == 255)


def test_two_files_of_one_name_and_files_that_are_no_pictures_are_named(place):
    Image.new("L", (20, 24)).save(place / "new/images/scan-1.png")
    with pytest.raises(UserError, match=r"two files for IMG .*: new/images/scan-1.jpg and new/images/scan-1.png"):
        run(labelled=False, target="new/images/*")
    (place / "new/images/scan-1.png").rename(place / "new/images/notes.txt")
    with pytest.raises(UserError, match=r"new/images/notes.txt is no picture; those are .jpg"):
        run(labelled=False, target="new/images/*")
    assert not Path("mine.make").exists()


def test_a_few_bright_pixels_need_other_percentiles(place):
    pixels = np.zeros((24, 20), np.uint8)
    pixels[3, 4] = 9
    Image.fromarray(pixels).save(place / "old/images/img1.png")
    with pytest.raises(UserError, match=r"too few bright pixels .*--normalise minmax.*: old/images/img1.png"):
        make_picture_set(spec_of())
    make_picture_set(spec_of("--size", "20", "24", "--normalise", "minmax"))
    (path,) = Path("data/made").glob("*/IMG/img1_0.png")
    assert read_slice(path).sum() == 255


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--plane", "axial"), "--plane is for volumes"),
        (("--organ_mm2", "5"), "--organ_mm2 needs --spacing"),
        (("--organ_mm3", "5"), "--organ_mm3 is for volumes"),
        (("--size", "8", "8", "--tile", "8", "8"), "give one of them"),
        (("--channel", "1"), "--channel is for 4D volumes"),
        (("--patient", r"(nobody)"), r"must find an id .* but does not in: old/images/img0.png"),
    ],
)
def test_what_cannot_be_with_pictures_is_told(place, flags, words):
    with pytest.raises(UserError, match=words):
        run(*flags)
    assert not Path("mine.make").exists()


def test_pictures_and_volumes_are_not_mixed(place):
    (place / "vol").mkdir()
    for name in ("case1", "case2"):
        (place / f"vol/{name}.nii").touch()
    with pytest.raises(UserError, match="The source is pictures and the target is volumes"):
        run(labelled=False, target="vol/*.nii")


@pytest.mark.parametrize(
    ("image", "mask", "found"),
    [
        ("ISIC_001.jpg", "ISIC_001_segmentation.png", "ISIC_001"),
        ("a 1.jpg", "a 1.png", None),
        ("img_x7.png", "mask_x7.png", "x7"),
        ("21_training.tif", "21_manual1.png", "21"),
    ],
)
def test_a_mask_is_found_by_the_name_of_its_picture(tmp_path, image, mask, found):
    for folder, name in (("i", image), ("m", mask)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).touch()
    _, person, (told,) = find_pictures({"IMG": f"{tmp_path}/i/*", "GT": f"{tmp_path}/m/*"}, None, "source")
    assert person is None
    if found:
        assert told.endswith(f"is of {found}; else --patient")


# ---------------------------------------------------------------------------------------------------- real pictures


@pytest.mark.skipif(not NUCLEI.is_dir(), reason="the nuclei pictures lie beside the checkout, and are not here")
def test_real_nuclei_grey_and_stained(tmp_path, monkeypatch):
    monkeypatch.chdir(working_folder(tmp_path))
    sites = {site: NUCLEI / site / "val" for site in ("fluo_a", "histology")}
    flags = ["--name", "mine", "--source", f"{sites['fluo_a']}/IMG/*.png"]
    flags += ["--source_label", f"{sites['fluo_a']}/GT/*.png", "--target", f"{sites['histology']}/IMG/*.png"]
    program.new_dataset(program.parse_args([*flags, "--target_label", f"{sites['histology']}/GT/*.png"]))
    text = Path("mine.make").read_text()
    assert "--size 320 256" in text
    image, label = (f"{sites['histology']}/{folder}/*.png" for folder in ("IMG", "GT"))
    words = ["--dest", "data/made", "--image", image, "--label", label, "--n_class", "2", "--size", "320", "256"]
    card = make_picture_set(read_spec([*words, "--patient", r"^(.+)\.", "--val", "3", "--jobs", "1"]))
    paths = sorted(Path("data/made").glob("*/GT/*.png"))
    assert len(paths) == 15
    assert card["counts"]["val"]["slices_with_class"][1] == 3
    for path in paths:
        made, own = read_slice(path), read_slice(sites["histology"] / "GT" / path.name.replace("_0.png", ".png"), False)
        assert made.shape == (256, 320)
        assert np.array_equal(made, own)
