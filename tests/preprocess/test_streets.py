"""Street scenes: the published layouts become sets of pictures, and made-up ones in those layouts."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from datasets.files import check_patients
from datasets.set_tables import read_card
from datasets.slices import open_slices
from datasets.transforms import parse_folders
from preprocess.archives import streets
from preprocess.archives.streets import IGNORE, PALETTE, StreetSpec, colourise, convert_set, find_pictures, read_spec
from preprocess.phantom import streets as phantom
from processes.errors import UserError

CLASS_OF = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13}
CLASS_OF |= {27: 14, 28: 15, 31: 16, 32: 17, 33: 18}
FRAMES = {"train": ("aachen_000001_000019", "ulm_000000_000019"), "val": ("bad-homburg_000002_000019",)}
FOLDERS = parse_folders("[('IMG', png_transform, False), ('GT', gt_transform, False)]", 0)


def save(path, array, palette=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(array)
    if palette:
        picture.putpalette(palette)
    picture.save(path)


def halves(width, height):
    """Red cars (26) on the left of a grey road (7)."""
    image, labels = np.full((height, width, 3), 100, np.uint8), np.full((height, width), 7, np.uint8)
    image[:, : width // 2], labels[:, : width // 2] = (255, 0, 0), 26
    return image, labels


@pytest.fixture
def gta5(tmp_path):
    """Pictures 00001 to 00006 of 20 x 12; the labels of the last are half as large; all are green to the eye."""
    for number in range(1, 7):
        (image, labels), step = halves(20, 12), 1 + number // 6
        image[0, 0] = number
        save(tmp_path / f"GTA5/images/{number:05d}.png", image)
        save(tmp_path / f"GTA5/labels/{number:05d}.png", labels[::step, ::step], [0, 255, 0] * 256)
    return tmp_path


@pytest.fixture
def cityscapes(tmp_path):
    """Three pictures of 32 x 16 in three cities."""
    for split, names in FRAMES.items():
        for name in names:
            city, (image, labels) = name.split("_")[0], halves(32, 16)
            save(tmp_path / f"leftImg8bit/{split}/{city}/{name}_leftImg8bit.png", image)
            save(tmp_path / f"gtFine/{split}/{city}/{name}_gtFine_labelIds.png", labels)
    return tmp_path


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """The small phantom."""
    folder = tmp_path_factory.mktemp("streets")
    assert phantom.make_streets(folder, "small", 0, 1) == 112
    return folder


def spec_of(root, kind="gta5", **changes):
    settings = {"size": (10, 6), **({"val": 2} if kind == "gta5" and "val_list" not in changes else {})}
    return StreetSpec(kind, root, root / "set", **(settings | changes))


def pixels(path):
    return np.asarray(Image.open(path))


def tree(folder):
    """Relative path -> hash of every file."""
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*.*")}


def names_in(folder):
    return sorted(path.stem for path in folder.iterdir())


def refuse(spec, message):
    """The set is refused with this message, and nothing of it is left."""
    with pytest.raises(UserError, match=message):
        convert_set(spec)
    assert not spec.dest.exists()
    assert not list(spec.dest.parent.glob(".set.*"))


# ---------------------------------------------------------------------------------------------------- what is written


def test_label_ids_become_class_numbers(gta5):
    ids = np.arange(35, dtype=np.uint8).reshape(5, 7)
    save(gta5 / "GTA5/labels/00003.png", ids, list(range(256)) * 3)
    convert_set(spec_of(gta5, size=(7, 5), val_list=("00003",)))
    expected = np.array([CLASS_OF.get(label, 255) for label in range(35)]).reshape(5, 7)
    np.testing.assert_array_equal(pixels(gta5 / "set/val/GT/00003.png"), expected)


def test_gta5_images_are_bicubic_and_labels_nearest_at_one_size(gta5):
    convert_set(spec_of(gta5, val_list=("00006",)))
    assert names_in(gta5 / "set/train/IMG") == names_in(gta5 / "set/train/GT") == [f"0000{n}" for n in range(1, 6)]
    original = Image.open(gta5 / "GTA5/images/00006.png")
    np.testing.assert_array_equal(pixels(gta5 / "set/val/IMG/00006.png"), original.resize((10, 6), Image.BICUBIC))
    truth = pixels(gta5 / "set/val/GT/00006.png")
    np.testing.assert_array_equal(truth, np.repeat([[13] * 5 + [0] * 5], 6, axis=0))
    assert truth.dtype == np.uint8


def test_truth_size_is_that_of_validation_alone(cityscapes):
    card = convert_set(spec_of(cityscapes, "cityscapes", size=(16, 8), truth_size=(32, 16)))
    shapes = {p.parts[-3:-1]: pixels(p).shape[:2] for p in (cityscapes / "set").rglob("*.png")}
    small = dict.fromkeys([("train", "IMG"), ("train", "GT"), ("val", "IMG")], (8, 16))
    assert shapes == small | {("val", "GT"): (16, 32)}
    assert card["truth_size"] == {"train": (16, 8), "val": (32, 16)}


def test_the_loader_reads_images_and_truth_in_one_orientation(cityscapes):
    convert_set(spec_of(cityscapes, "cityscapes", size=(16, 8), truth_size=(32, 16)))
    regex = r"([a-z-]+)_(\d+_\d+)"
    slices = open_slices(cityscapes / "set", "train", FOLDERS, 19, regex, ignore=IGNORE)
    assert (slices.patients, slices.shape) == (["aachen", "ulm"], (3, 8, 16))
    np.testing.assert_array_equal(slices.image(0)[0] > 0.7, slices.truth(0) == 13)
    slices = open_slices(cityscapes / "set", "val", FOLDERS, 19, regex, ignore=IGNORE, any_truth_size=True)
    assert (slices.patients, slices.truth(0).shape) == (["bad-homburg"], (16, 32))
    check_patients(cityscapes / "set", "IMG", regex)


def test_card(gta5):
    card = convert_set(spec_of(gta5, val_list=("00001", "00002"), phantom="small"))
    assert read_card(gta5 / "set") == json.loads(json.dumps(card))
    assert (card["name"], card["modality"], card["phantom"], card["ignore"]) == ("set", "photographs", "small", 255)
    assert len(card["class_names"]) == len(set(map(tuple, card["palette"]))) == card["n_class"] == 19
    assert {int(label): number for label, number in card["label_map"].items()} == CLASS_OF
    assert (card["class_names"][13], card["palette"][13]) == ("car", (0, 0, 142))
    assert card["counts"]["train"] == {"images": 4, "images_with_class": [4 * (c in (0, 13)) for c in range(19)]}
    assert card["counts"]["val"]["images"] == 2
    (gta5 / "set").rename(gta5 / "before")
    save(gta5 / "GTA5/images/00004.png", halves(20, 12)[0])
    again = convert_set(spec_of(gta5, val_list=("00001", "00002"), phantom="small"))
    assert [key for key in card if card[key] != again[key]] == ["sources"]


def test_colourise():
    colours = colourise(np.array([[0, 18], [255, 19]], np.uint8), PALETTE)
    np.testing.assert_array_equal(colours, [[(128, 64, 128), (119, 11, 32)], [(0, 0, 0), (0, 0, 0)]])


# ---------------------------------------------------------------------------------------------------------- the split


def test_drawn_pictures_depend_on_the_seed_and_their_names_alone(gta5):
    def drawn(**changes):
        return {p.name for p in find_pictures(spec_of(gta5, **changes)) if p.split == "val"}

    draws = {frozenset(drawn(seed=seed)) for seed in range(8)}
    assert len(draws) > 1
    assert all(len(draw) == 2 for draw in draws)
    one = drawn(val=1)
    assert one < drawn(val=3)
    others = tuple(f"0000{n}" for n in range(1, 7) if f"0000{n}" not in drawn(val=3) - one)
    assert drawn(val=1, train_list=others) == one


def test_lists_name_pictures_with_or_without_folder_and_ending(cityscapes):
    (cityscapes / "train.txt").write_text("aachen/aachen_000001_000019_leftImg8bit.png\n\n")
    (cityscapes / "both.txt").write_text("ulm_000000_000019\ngtFine/x/aachen_000001_000019_gtFine_labelIds.png more\n")
    for file, expected in (("train.txt", FRAMES["train"][:1]), ("both.txt", FRAMES["train"])):
        flags = f"--kind cityscapes --root {cityscapes} --dest x --size 8 4 --train_list {cityscapes / file}"
        found = find_pictures(read_spec(flags.split()))
        assert tuple(p.name for p in found if p.split == "train") == expected
        assert tuple(p.name for p in found if p.split == "val") == FRAMES["val"]


def test_what_validates_is_not_trained_on(gta5):
    found = find_pictures(spec_of(gta5, train_list=("00001", "00002"), val_list=("00002", "00005")))
    assert [(p.split, p.name) for p in found] == [("train", "00001"), ("val", "00002"), ("val", "00005")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train_list": ("00009", "00001"), "val_list": ("x", "y")},
            "not in .*: --train_list: 00009; --val_list: x, y",
        ),
        ({"val": 6}, "All 6 pictures of .* validate; none is left to train on"),
    ],
)
def test_splits_that_cannot_be(gta5, changes, message):
    refuse(spec_of(gta5, **changes), message)


# ------------------------------------------------------------------------------------------------------- what is wrong


def test_every_picture_without_a_partner_is_listed(gta5):
    (gta5 / "GTA5/images/00002.png").unlink()
    for number in (4, 5):
        (gta5 / f"GTA5/labels/0000{number}.png").unlink()
    (gta5 / "GTA5/labels/._00004.png").write_bytes(b"a shadow")
    refuse(spec_of(gta5), "3 faults: has no labels: .*00004.png, .*00005.png; labels without an image: .*00002.png.$")


def test_every_file_at_fault_is_listed(gta5):
    save(gta5 / "GTA5/labels/00001.png", np.full((4, 4), 35, np.uint8))
    save(gta5 / "GTA5/labels/00002.png", np.zeros((4, 4, 3), np.uint8))
    (gta5 / "GTA5/labels/00003.png").write_bytes(b"")
    whole = (gta5 / "GTA5/images/00004.png").read_bytes()
    (gta5 / "GTA5/images/00004.png").write_bytes(whole[: len(whole) // 2])
    message = "4 faults: holds label ids above 34 .*00001.png; is no picture of label ids.*00002.png; "
    message += "cannot be read .*labels/00003.png .*, .*images/00004.png"
    refuse(spec_of(gta5, val_list=("00005",)), message)


def test_a_missing_archive_names_the_files_it_looked_for(cityscapes):
    refuse(spec_of(cityscapes), "2 faults: no file matches: .*GTA5/images/.*, .*GTA5/labels/")
    for path in (cityscapes / "gtFine/val").rglob("*.png"):
        path.unlink()
    refuse(spec_of(cityscapes, "cityscapes"), "1 fault: no file matches: .*gtFine/val/.*_labelIds.png")


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("gta5", {"val": 0}, "either --val N or --val_list"),
        ("gta5", {"val": 1, "val_list": ("00001",)}, "either --val N or --val_list"),
        ("gta5", {"val": -1}, "--val is a number of pictures"),
        ("cityscapes", {"val": 3}, "--val N is not for cityscapes"),
        ("cityscapes", {"size": (8, 0)}, "sizes are numbers from 1"),
        ("cityscapes", {"truth_size": (-8, 4)}, "sizes are numbers from 1"),
        ("gta5", {"jobs": 0}, "--jobs is at least 1"),
    ],
)
def test_settings_that_contradict_each_other(tmp_path, kind, changes, message):
    with pytest.raises(UserError, match=message):
        spec_of(tmp_path, kind, **changes)


@pytest.mark.parametrize("text", [None, "\n \n"])
def test_a_list_that_names_nothing(tmp_path, capsys, text):
    if text:
        (tmp_path / "list").write_text(text)
    with pytest.raises(SystemExit):
        read_spec(["--kind", "gta5", "--val_list", str(tmp_path / "list")])
    assert ("names no picture" if text else "there is no file") in capsys.readouterr().err


def test_a_set_that_is_there_is_not_touched_and_a_half_one_is_replaced(gta5):
    (gta5 / "set").mkdir()
    with pytest.raises(UserError, match="set is there already"):
        convert_set(spec_of(gta5))
    (gta5 / "set").rmdir()
    left = gta5 / ".set.new-0123abcd/train/IMG"
    left.mkdir(parents=True)
    (left / "99999.png").write_bytes(b"half")
    convert_set(spec_of(gta5))
    assert "99999" not in names_in(gta5 / "set/train/IMG")
    assert not left.exists()


def test_a_write_that_fails_leaves_nothing(gta5, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(streets, "_save", full)
    with pytest.raises(OSError, match="No space"):
        convert_set(spec_of(gta5))
    assert sorted(path.name for path in gta5.iterdir()) == ["GTA5"]


# --------------------------------------------------------------------------------------------------------- the phantom


def test_phantom_layout(cohort):
    want = {f"GTA5/{folder}/{n:05d}.png" for folder in ("images", "labels") for n in range(1, 61)}
    counts = {"train/aachen": 14, "train/bremen": 13, "train/ulm": 13, "val/frankfurt": 6, "val/lindau": 6}
    for place, count in counts.items():
        for n in range(1, count + 1):
            name = f"{place}/{place.split('/')[1]}_{n:06d}_000019"
            want |= {f"leftImg8bit/{name}_leftImg8bit.png", f"gtFine/{name}_gtFine_labelIds.png"}
    assert set(tree(cohort)) == want
    forms = {name: (picture.mode, picture.size) for name in want for picture in [Image.open(cohort / name)]}
    assert {form for name, form in forms.items() if "GTA5/images" in name} == {("RGB", (256, 144))}
    assert {form for name, form in forms.items() if "GTA5/labels" in name} == {("P", (256, 144)), ("P", (128, 72))}
    assert {form for name, form in forms.items() if "leftImg8bit" in name} == {("RGB", (256, 128))}
    assert {form for name, form in forms.items() if "gtFine" in name} == {("L", (256, 128))}


@pytest.mark.parametrize("pattern", ["GTA5/labels/*", "gtFine/train/*/*", "gtFine/val/*/*"])
def test_phantom_shows_every_class_and_what_has_none(cohort, pattern):
    labels = [pixels(path) for path in cohort.glob(pattern)]
    seen = set().union(*(np.unique(each).tolist() for each in labels))
    assert seen == {*CLASS_OF, 1, 10, *([3] if "gtFine" in pattern else [])}
    share = np.mean([np.isin(each, list(CLASS_OF)).mean() for each in labels])
    assert 0.85 < share < 0.99
    assert len({each.tobytes() for each in labels}) == len(labels)


def test_phantom_labels_show_the_outlines_of_the_picture(cohort):
    for number in (1, 30, 60):
        labels = pixels(cohort / f"GTA5/labels/{number:05d}.png")
        red, green, blue = pixels(cohort / f"GTA5/images/{number:05d}.png").astype(int).transpose(2, 0, 1)
        assert (blue > red)[labels == 23].mean() > 0.8  # sky
        assert (green > blue)[labels == 21].mean() > 0.8  # vegetation
        assert (abs(red - blue) < 40)[labels == 7].mean() > 0.8  # road


def test_phantom_sites_look_different(cohort):
    def saturation(pattern):
        return np.mean([np.ptp(pixels(path), axis=-1).mean() for path in sorted(cohort.glob(pattern))[:12]])

    assert saturation("GTA5/images/*") > 1.5 * saturation("leftImg8bit/*/*/*")


def test_phantom_has_the_same_bytes_whatever_the_jobs(cohort, tmp_path, monkeypatch):
    few = ({"": 7}, {"val/lindau": 2})
    sites = [replace(site, pictures=some) for site, some in zip(phantom.SITES, few, strict=True)]
    monkeypatch.setattr(phantom, "SITES", tuple(sites))
    assert phantom.make_streets(tmp_path, "small", 0, 2) == 9
    made, whole = tree(tmp_path), tree(cohort)
    assert len(made) == 18
    assert made.items() <= whole.items()


def test_phantom_of_another_seed_shows_other_streets(cohort, tmp_path):
    for folder in ("images", "labels"):
        (tmp_path / "GTA5" / folder).mkdir(parents=True)
    phantom.write_picture((0, "", 1), tmp_path, "small", 1)
    assert (pixels(tmp_path / "GTA5/labels/00001.png") != pixels(cohort / "GTA5/labels/00001.png")).mean() > 0.1


def test_phantom_shows_the_same_street_in_both_sizes():
    small, full = (
        np.asarray(phantom.street(phantom.CITIES, size, np.random.default_rng(5)).labels) for size in ("small", "full")
    )
    assert full.shape == (1024, 2048)
    assert (small == full[4::8, 4::8]).mean() > 0.95


def test_phantom_to_sets_with_two_jobs(cohort, tmp_path):
    settings = {"size": (128, 72), "val": 8, "phantom": "small"}
    sets = [StreetSpec("gta5", cohort, tmp_path / str(jobs) / "set", jobs=jobs, **settings) for jobs in (1, 2)]
    for spec in sets:
        convert_set(spec)
    assert tree(sets[0].dest) == tree(sets[1].dest)
    slices = open_slices(sets[0].dest, "train", FOLDERS, 19, r"(\d+)", ignore=IGNORE)
    assert (len(slices), slices.shape, slices.ignore) == (52, (3, 72, 128), 255)
    check_patients(sets[0].dest, "IMG", r"(\d+)")
