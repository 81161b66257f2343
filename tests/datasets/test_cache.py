"""A folder's slices as one array: nothing lost, nothing stale, decoded once, however many there are."""

import importlib.util
import json
import os
import platform
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FOLDERS, write_site
from PIL import Image

from datasets import cache as slice_cache
from datasets.cache import Plane, open_plane
from datasets.code_identity import code_hash, source_hash
from datasets.distance_maps import signed_distance_maps
from datasets.files import narrowest
from datasets.slices import join, open_slices, place
from datasets.streams import Stream
from datasets.transforms import TRANSFORMS, FolderSpec, parse_folders
from files.listing import look
from processes.errors import UserError

REGEX = r"(Case\d+)_(\d+)"
CPU = torch.device("cpu")
IMAGE, NPY = FolderSpec("IMG", "png_transform"), FolderSpec("IMG", "npy_transform")


def write(root, arrays, suffix="npy"):
    """Files of one folder; their times lie in the past, so that a change is seen."""
    folder = root / "train" / "IMG"
    folder.mkdir(parents=True, exist_ok=True)
    for number, array in enumerate(arrays):
        path = folder / f"Case00_{number}.{suffix}"
        np.save(path, array) if suffix == "npy" else Image.fromarray(array).save(path)
        os.utime(path, (1e9, 1e9))
    return [file for _, file in sorted(look(folder).files.items())]


def opened(files, spec=NPY, **more):
    plane, _ = open_plane(files, spec, 2, is_image=True, **more)
    return plane.decode(plane.gather(torch.arange(len(plane))))


# -- nothing lost --------------------------------------------------------------------------------------------


GREY = np.arange(64, dtype=np.float32).reshape(8, 8)
KINDS = {
    "whole, small": (GREY, "uint8"),
    "whole, negative": (GREY * 100 - 1000, "int16"),
    "halves": (GREY / 64, "float16"),
    "thirds": (GREY / 3, "float32"),
    "large": (GREY * 1e6, "float32"),
    "beyond half precision": (GREY + 70000.5, "float32"),
}


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("name", KINDS)
def test_the_smallest_type_that_loses_nothing(tmp_path, name, keep):
    image, stored = KINDS[name]
    files = write(tmp_path, [image, image[::-1]])
    plane, _ = open_plane(files, NPY, 2, is_image=True, keep=keep)
    assert plane.dtype == getattr(torch, stored)
    assert np.array_equal(opened(files)[1, 0], image[::-1])


@pytest.mark.parametrize(("first", "second"), [(0, 1), (1, 2), (0, 2), (1, 0), (2, 1), (2, 3)])
def test_a_slice_that_needs_more_widens_the_whole(tmp_path, first, second, monkeypatch):
    """Also where slices were written before it was met."""
    monkeypatch.setattr(slice_cache, "CHUNK", 1)
    images = [list(KINDS.values())[i][0] for i in (first, second)]
    assert np.array_equal(opened(write(tmp_path, images))[:, 0], np.stack(images))


@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_pngs_are_divided_by_their_depth(tmp_path, depth):
    image = np.full((8, 8), np.iinfo(depth).max, depth)
    image[0, 0] = 7
    found = opened(write(tmp_path, [image], "png"), IMAGE)
    assert torch.equal(found[0, 0], torch.from_numpy(image.astype(np.float32)) / float(np.iinfo(depth).max))


def test_mixed_depths_are_refused(tmp_path):
    files = write(tmp_path, [np.zeros((8, 8), np.uint8), np.full((8, 8), 300, np.uint16)], "png")
    with pytest.raises(UserError, match="Case00_1.png has 16 bits a pixel, not 8"):
        opened(files, IMAGE)


def test_narrowest_counts_both_ends():
    assert narrowest(np.array([0, 255])) == np.uint8
    assert narrowest(np.array([-1, 255])) == np.int16
    assert narrowest(np.array([0, 40000], np.uint16)) == np.int32
    assert narrowest(np.array([0.0, 255.0])) == np.uint8
    assert narrowest(np.array([0.1], np.float32)) == np.float32


def test_distance_maps_are_made_once_and_kept(tmp_path, monkeypatch):
    site = write_site(tmp_path / "site", 200, 60, seed=3, patients=4)
    folders = parse_folders(
        "[('IMG', png_transform, False), ('GT', gt_transform, False), ('GT', dist_map_transform, False)]", 1
    )
    slices = open_slices(site, "train", folders, 2, REGEX)
    batch, truth = Stream(slices, 4, CPU).batch(torch.arange(4))
    expected = [signed_distance_maps(label.numpy().astype(np.uint8), 2) for label in truth]
    assert np.array_equal(batch.targets[0], np.stack(expected))
    age(site)
    monkeypatch.setattr(slice_cache, "load_slice", None)
    assert len(open_slices(site, "train", folders, 2, REGEX)) == len(slices)


MAPS = "[('IMG', png_transform, False), ('GT', gt_transform, False), ('GT', {}, False)]"


def write_spacing(site, w, h):
    rows = "\n".join(f"{path.stem},{w},{h},3" for path in site.glob("*/IMG/*.png"))
    (site / "manifest.csv").write_text("slice,spacing_w,spacing_h,spacing_slice\n" + rows + "\n")


@pytest.mark.parametrize(
    ("transform", "options"),
    [
        ("dist_map_transform", {}),
        ("dist_map_mm_transform", {"spacing": (0.5, 0.75)}),
        ("dist_map_max_transform", {"normalise": True}),
        ("dist_map_legacy_transform", {"legacy": True}),
        ("dist_map_legacy_mm_transform", {"legacy": True, "spacing": (0.5, 0.75)}),
    ],
)
def test_each_distance_map_is_what_its_name_says(tmp_path, transform, options):
    site = write_site(tmp_path / "site", 200, 60, seed=3, patients=4)
    write_spacing(site, 0.5, 0.75)
    slices = open_slices(site, "train", parse_folders(MAPS.format(transform), 1), 2, REGEX)
    batch, truth = Stream(slices, 8, CPU).batch(torch.arange(8))
    expected = [signed_distance_maps(label.numpy(), 2, **options) for label in truth]
    assert np.array_equal(batch.targets[0], np.stack(expected))


# -- nothing stale -------------------------------------------------------------------------------------------


def age(root):
    """Every file's time into the past: what is new could change unseen, and is read again."""
    for path in root.rglob("*.*"):
        if path.is_file():
            os.utime(path, (1e9, 1e9))


@pytest.fixture
def decoded(monkeypatch):
    """Names of the files that were decoded."""
    seen, load = [], slice_cache.load_slice
    monkeypatch.setattr(slice_cache, "load_slice", lambda path, *args: (seen.append(path.name), load(path, *args))[1])
    return seen


def test_what_was_decoded_is_not_decoded_again(tmp_path, decoded):
    files = write(tmp_path, [GREY, GREY + 1])
    first = opened(files)
    assert len(decoded) == 2
    assert torch.equal(opened(files), first)
    assert len(decoded) == 2


def test_a_change_is_seen(tmp_path, decoded):
    """Also that of files put in the place of others of the same size and time, as copies and archives do."""
    opened(write(tmp_path, [GREY, GREY]))
    changed = opened(write(tmp_path, [GREY, GREY + 1]))
    assert torch.equal(changed[1, 0], torch.from_numpy(GREY + 1))
    path = Path(write(tmp_path, [GREY, GREY + 2])[1].path)
    os.utime(path, (1e9, 1e9 + 5))
    files = [file for _, file in sorted(look(path.parent).files.items())]
    assert torch.equal(opened(files)[1, 0], torch.from_numpy(GREY + 2))
    assert len(list((tmp_path / "train/.cache").glob("*.npy"))) == 1  # the old content is gone


def test_files_that_keep_their_times_are_told_apart_by_what_nobody_can_set(tmp_path, monkeypatch):
    monkeypatch.setattr(slice_cache, "SETTLED", 0)  # their state alone is what tells
    files = write(tmp_path, [GREY])
    opened(files)
    other = write(tmp_path / "other", [GREY + 1])
    os.replace(other[0].path, files[0].path)  # noqa: PTH105
    again = list(look(tmp_path / "train/IMG").files.values())
    assert (again[0].size, again[0].modified) == (files[0].size, files[0].modified)
    assert torch.equal(opened(again)[0, 0], torch.from_numpy(GREY + 1))


HELPER = "def scaled(x, by=SCALE): return x * by"
TRANSFORM = "def own_transform(raw): return scaled(raw).astype('float32') + OFFSET"
CHANGES = {
    "its body": ({}, TRANSFORM.replace("+ OFFSET", "- OFFSET"), HELPER),
    "a constant": ({"OFFSET": 2.0}, TRANSFORM, HELPER),
    "a default of what it calls": ({"SCALE": 3}, TRANSFORM, HELPER),
    "the body of what it calls": ({}, TRANSFORM, HELPER.replace("x * by", "x / by")),
}


def own_transform(constants=(), transform=TRANSFORM, helper=HELPER):
    """A transform of a user's module, as it is when the module is loaded."""
    module = {"SCALE": 2, "OFFSET": 1.0, "__name__": "users_module"} | dict(constants)
    exec(helper + "\n" + transform, module)  # noqa: S102
    return module["own_transform"]


@pytest.mark.parametrize("change", CHANGES)
def test_another_code_of_a_transform_is_another_array(tmp_path, monkeypatch, change, decoded):
    files, spec = write(tmp_path, [GREY]), FolderSpec("IMG", "own_transform")
    monkeypatch.setitem(TRANSFORMS._entries, "own_transform", own_transform())
    assert torch.equal(opened(files, spec)[0, 0], torch.from_numpy(GREY * 2 + 1))
    monkeypatch.setitem(TRANSFORMS._entries, "own_transform", own_transform())  # loaded again, the same
    opened(files, spec)
    assert len(decoded) == 1
    changed = own_transform(*CHANGES[change])
    monkeypatch.setitem(TRANSFORMS._entries, "own_transform", changed)
    assert torch.equal(opened(files, spec)[0, 0], torch.from_numpy(changed(GREY)))
    assert source_hash([changed]) != source_hash([own_transform()])


def test_another_version_of_a_library_is_another_array(tmp_path, monkeypatch, decoded):
    files = write(tmp_path, [GREY])
    opened(files)
    monkeypatch.setattr(np, "__version__", "0.1")
    monkeypatch.setattr(slice_cache, "_code", slice_cache._code.__wrapped__)  # as in another process
    opened(files)
    assert len(decoded) == 2


def test_words_and_comments_are_no_code(tmp_path):
    def load(name, text):
        path = tmp_path / f"{name}.py"
        path.write_text(text)
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.turn

    plain = load("plain", "def turn(raw):\n    if raw is None:\n        raise ValueError('a')\n    return raw * 2\n")
    words = "def turn(raw):\n    'Twice.'\n\n    if raw is None:  # never\n        raise ValueError('b')\n"
    told = load("told", words + "    return raw * 2\n")
    other = load("other", "def turn(raw):\n    if raw is None:\n        raise ValueError('a')\n    return raw * 3\n")
    assert source_hash([plain]) == source_hash([told]) != source_hash([other])
    assert len({code_hash([each]) for each in (plain, other)}) == 2


def test_a_new_file_is_not_trusted_by_its_time(tmp_path):
    """Two writes within one tick of the clock leave the same listing."""
    files = write(tmp_path, [GREY, GREY])
    now = time.time()
    for content in (GREY, GREY + 1):
        write(tmp_path, [GREY, content])
        os.utime(files[1].path, (now, now))
        fresh = [file for _, file in sorted(look(Path(files[0].path).parent).files.items())]
        found = opened(fresh)
    assert torch.equal(found[1, 0], torch.from_numpy(GREY + 1))


def test_touched_files_are_the_same_content(tmp_path):
    _, before = open_plane(write(tmp_path, [GREY]), NPY, 2, is_image=True)
    os.utime(tmp_path / "train/IMG/Case00_0.npy", (2e9, 1e9))
    files = list(look(tmp_path / "train" / "IMG").files.values())
    _, after = open_plane(files, NPY, 2, is_image=True)
    assert before == after


def test_another_transform_is_another_array(tmp_path):
    image = np.full((400, 390), 7, np.float32)
    files = write(tmp_path, [image])
    assert opened(files).shape[-2:] == (400, 390)
    assert opened(files, FolderSpec("IMG", "nii_transform2")).shape[-2:] == (384, 384)


def test_maps_in_mm_follow_the_spacing_and_no_other_array_does(tmp_path, decoded):
    site = write_site(tmp_path / "site", 200, 60, seed=3, patients=4)
    folders = parse_folders(MAPS.format("dist_map_mm_transform"), 1)

    def opened_with(w, h):
        write_spacing(site, w, h)
        age(site)
        slices = open_slices(site, "train", folders, 2, REGEX)
        return slices.planes[folders[2]].gather(torch.arange(8)), slices.digest

    fine, first = opened_with(0.5, 0.5)
    count = len(decoded)
    again, same = opened_with(0.5, 0.5)
    assert torch.equal(fine, again)
    assert first == same
    assert len(decoded) == count
    coarse, other = opened_with(2, 2)
    assert torch.allclose(coarse, 4 * fine)
    assert other != first
    assert len(decoded) == count + 8


def test_labels_are_checked_against_the_classes_of_today(tmp_path):
    site = write_site(tmp_path / "site", 200, 60, seed=3, patients=4)
    mask = site / "train/GT/Case00_1.png"
    Image.fromarray(np.full((24, 20), 2, np.uint8)).save(mask)
    age(site)
    folders = parse_folders(FOLDERS, 1)
    open_slices(site, "train", folders, 3, REGEX)
    with pytest.raises(UserError, match=r"Case00_1.png holds the labels 2, outside 0\.\.1"):
        open_slices(site, "train", folders, 2, REGEX)
    open_slices(site, "train", folders, 2, REGEX, ignore=2)


def test_the_set_s_own_time_stamp_stays(tmp_path):
    """Make rebuilds the runs of a data set whose folder changed; a cache is no change."""
    site = write_site(tmp_path / "site", 200, 60, seed=3, patients=4)
    os.utime(site, (1e9, 1e9))
    open_slices(site, "train", parse_folders(FOLDERS, 1), 2, REGEX)
    assert site.stat().st_mtime == 1e9


def replace_in(path, content):
    """Other bytes in the place of a file's, under the same times."""
    seen = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))


DAMAGE = {
    "no note": lambda note, array: note.write_text("{"),
    "a note that is a list": lambda note, array: note.write_text("[]"),
    "no array": lambda note, array: array.unlink(),
    "an array that is empty": lambda note, array: array.write_bytes(b""),
    "an array that is cut": lambda note, array: array.write_bytes(array.read_bytes()[:-8]),
    "other bytes in the array": lambda note, array: replace_in(array, array.read_bytes()[:-4] + b"\0\1\2\3"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_made_again(tmp_path, damage, monkeypatch, decoded):
    monkeypatch.setattr(slice_cache, "SETTLED", 0)
    files = write(tmp_path, [GREY])
    opened(files)
    cache = tmp_path / "train" / ".cache"
    DAMAGE[damage](next(cache.glob("*.json")), next(cache.glob("*.npy")))
    for _ in range(2):
        assert np.array_equal(opened(files)[0, 0], GREY)
    assert len(decoded) == 2  # once more, and not again
    assert json.loads(next(cache.glob("*.json")).read_text())["settled"]


def test_a_copied_cache_is_compared_whole_and_kept(tmp_path, monkeypatch, decoded):
    monkeypatch.setattr(slice_cache, "SETTLED", 0)
    files = write(tmp_path, [GREY, GREY + 0.5])
    opened(files)
    array = next((tmp_path / "train/.cache").glob("*.npy"))
    os.utime(array, (2e9, 2e9))
    assert opened(files).shape[0] == 2
    assert len(decoded) == 2


def test_where_nothing_can_be_written_slices_are_held_in_memory(tmp_path, capsys, monkeypatch):
    files = write(tmp_path, [GREY])
    (tmp_path / "train" / ".cache").write_text("a file where the folder should be")
    assert np.array_equal(opened(files)[0, 0], GREY)
    assert "held in memory" in capsys.readouterr().err


def test_processes_that_open_at_once_decode_once(tmp_path, decoded):
    files = write(tmp_path, [GREY + i for i in range(20)])
    found = []
    threads = [threading.Thread(target=lambda: found.append(opened(files))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(each, found[0]) for each in found)
    assert len(decoded) == 20


# -- wherever they lie ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["stream", "ram", "auto"])
def test_batches_are_the_same_wherever_the_slices_lie(tmp_path, where):
    site = write_site(tmp_path / "site", 200, 60, seed=3, patients=4)
    train, val = (open_slices(site, split, parse_folders(FOLDERS, 1), 2, REGEX) for split in ("train", "val"))
    slices = join([train, val]).keep([0, 13, 5, 2, 11, 7])
    placed = place({"target": slices}, where, CPU)["target"]
    assert (placed.planes[placed.folders[0]].on_disk) == (where == "stream")
    for (first, truth), (second, same) in zip(
        Stream(slices, 4, CPU).epoch(3), Stream(placed, 4, CPU).epoch(3), strict=True
    ):
        assert torch.equal(first.image, second.image)
        assert torch.equal(truth, same)
        assert torch.equal(first.targets[0], second.targets[0])
        assert torch.equal(first.rows, second.rows)
        assert np.array_equal(truth[0], slices.truth(int(first.rows[0])))


def test_an_epoch_can_begin_in_its_middle(tmp_path):
    site = write_site(tmp_path / "site", 200, 60, seed=3, patients=4)
    stream = Stream(open_slices(site, "train", parse_folders(FOLDERS, 1), 2, REGEX), 3, CPU)
    whole, rest = list(stream.epoch(1)), list(stream.epoch(1, 1))
    assert len(rest) == len(whole) - 1
    assert all(torch.equal(a.image, b.image) for (a, _), (b, _) in zip(whole[1:], rest, strict=True))


def test_parts_of_other_types_join_without_loss():
    whole = Plane([torch.tensor([[300]], dtype=torch.int16)], 1) + Plane(
        [torch.tensor([[0.5]], dtype=torch.float16)], 1
    )
    assert whole.gather(torch.tensor([1, 0])).flatten().tolist() == [0.5, 300.0]
    assert (whole + Plane([torch.tensor([[2049]], dtype=torch.int16)], 1)).gather(torch.tensor([2])).item() == 2049


# The allocator gives back at once what is freed: what it keeps otherwise depends on how the threads happened to run.
PEAK = """
import ctypes
import sys
from pathlib import Path
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # of glibc's malloc.h
for option, value in ((M_TRIM_THRESHOLD, 1 << 16), (M_MMAP_THRESHOLD, 1 << 16), (M_ARENA_MAX, 1)):
    assert ctypes.CDLL(None).mallopt(option, value)
sys.path.insert(0, {here!r})
import torch
from engine.cost import peak_memory
from datasets.slices import open_slices
from datasets.streams import Stream
from datasets.transforms import parse_folders
slices = open_slices(Path(sys.argv[1]), "train", parse_folders({folders!r}, 1), 2, {regex!r})
for batch, truth in Stream(slices, 8, torch.device("cpu")).epoch(0):
    pass
print(peak_memory())  # ru_maxrss would go on from what the process held that this one is a fork of
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="needs /proc for a process's own peak, and glibc's mallopt"
)
def test_memory_is_flat_in_the_number_of_slices(tmp_path, python):
    """With 235 MB more of slices the peak hardly moves: of who makes the cache, and of who streams.

    The slices are large and few, since what is asked about is their bytes.
    """
    image, mask = np.random.default_rng(0).integers(0, 255, (512, 512), np.uint8), np.zeros((512, 512), np.uint8)
    folders = "[('IMG', npy_transform, False), ('GT', npy_gt_transform, False)]"
    program = tmp_path / "peak.py"
    program.write_text(PEAK.format(here=str(Path.cwd()), folders=folders, regex=REGEX))
    peaks = {}
    for count in (128, 576):
        root = tmp_path / str(count)
        for folder, array in (("IMG", image), ("GT", mask)):
            (root / "train" / folder).mkdir(parents=True)
            first = root / "train" / folder / "Case000_0.npy"
            np.save(first, array)
            for number in range(1, count):
                first.with_name(f"Case{number // 16:03d}_{number % 16}.npy").hardlink_to(first)
        for task in ("make the cache and stream", "stream"):
            done = subprocess.run([python, program, root], capture_output=True, text=True, check=True)
            peaks[task, count] = float(done.stdout)
        assert len(list((root / "train/.cache").glob("*.npy"))) == 2
    for task in ("make the cache and stream", "stream"):  # MiB, of which the slices are 224 more
        assert peaks[task, 576] - peaks[task, 128] < 40, peaks


# -- what others do to the cache while it is in use ----------------------------------------------------------


@pytest.fixture
def streamed(tmp_path):
    site = write_site(tmp_path / "site", 200, 60, seed=3, patients=4)
    return open_slices(site, "train", parse_folders(FOLDERS, 1), 2, REGEX)


def cached_images(slices):
    return next((slices.root / slices.split / ".cache").glob("IMG-*.npy"))


def images(slices):
    return torch.cat([batch.image for batch, _ in Stream(slices, 3, CPU, shuffle=False).epoch(0)])


IN_PLACE = {
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: os.truncate(path, 0),
    "written over": lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\7"),
}


@pytest.mark.parametrize("how", IN_PLACE)
def test_a_cache_that_is_changed_while_it_streams_is_told_of(streamed, how):
    images(streamed)
    path = cached_images(streamed)
    IN_PLACE[how](path)
    with pytest.raises(UserError, match=r"IMG-.*npy was cut or written to while it was in use.*--resume"):
        images(streamed)
    again = open_slices(streamed.root, "train", parse_folders(FOLDERS, 1), 2, REGEX)
    assert len(images(again)) == len(again)


def test_a_cache_that_is_touched_or_removed_while_it_streams_goes_on(streamed):
    before, path = images(streamed), cached_images(streamed)
    os.utime(path)
    assert torch.equal(images(streamed), before)
    path.unlink()
    assert torch.equal(images(streamed), before)
