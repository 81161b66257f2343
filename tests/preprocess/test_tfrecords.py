"""TFRecords without TensorFlow: framed and encoded here by hand, read, damaged, refused; and sliced into a set."""

import contextlib
import struct

import google_crc32c
import nibabel as nib
import numpy as np
import pytest

import main as program
from analysis.run import open_run
from datasets.set_tables import read_card
from preprocess.archives.pnp_tfrecords import make_set, read_slice
from preprocess.archives.tfrecords import read_example, read_records
from processes.errors import UserError


def varint(number):
    number %= 2**64
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def message(number, content):
    return varint(number << 3 | 2) + varint(len(content)) + content


def feature(values, packed=True):
    if isinstance(values[0], bytes):
        return message(1, b"".join(message(1, value) for value in values))
    if isinstance(values[0], float):
        return message(2, message(1, struct.pack(f"<{len(values)}f", *values)))
    if packed:
        return message(3, message(1, b"".join(map(varint, values))))
    return message(3, b"".join(varint(8) + varint(value) for value in values))


def example(features, **how):
    entries = [message(1, name.encode()) + message(2, feature(values, **how)) for name, values in features.items()]
    return message(1, b"".join(message(1, entry) for entry in entries))


def masked(content):
    crc = google_crc32c.value(content)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def record(content):
    head = struct.pack("<Q", len(content))
    return head + masked(head) + content + masked(content)


def heart(seed=0, **changes):
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(16, 16, 3)).astype("<f4")
    label = rng.integers(0, 5, (16, 16, 1)).astype("<f4")
    sizes = {f"{kind}size_dim{axis}": [n] for kind, a in (("d", image), ("l", label)) for axis, n in enumerate(a.shape)}
    features = sizes | {"data_vol": [image.tobytes()], "label_vol": [label.tobytes()]} | changes
    return record(example({k: v for k, v in features.items() if v is not None})), image, label


def test_the_checksum_of_a_known_frame():
    """Of 'TFRecord' the CRC-32C of "123456789" is in every description of it."""
    assert google_crc32c.value(b"123456789") == 0xE3069283


@pytest.mark.parametrize("packed", [True, False])
def test_features(packed):
    given = {"a": [b"x", b""], "b": [1.5, -2.0], "c": [0, 1, -1, 2**63 - 1, -(2**63), 300]}
    assert read_example(example(given, packed=packed)) == given


def test_records(tmp_path):
    path = tmp_path / "a.tfrecords"
    path.write_bytes(record(b"one") + record(b"") + record(b"three"))
    assert list(read_records(path)) == [b"one", b"", b"three"]


def test_every_damage_is_told(tmp_path):
    path = tmp_path / "a.tfrecords"
    whole, *_ = heart()
    rng = np.random.default_rng(0)
    for at in [*range(0, 14), *rng.integers(0, len(whole), 60)]:
        broken = bytearray(whole)
        broken[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="checksum|ends within"):
            list(read_records(path))
        path.write_bytes(whole[:at])
        if at:
            with pytest.raises(ValueError, match="ends within|checksum"):
                list(read_records(path))


def test_mutated_messages_are_read_or_refused():
    content = example({"a": [b"x" * 9], "b": [1.5], "c": [1, 300]})
    rng = np.random.default_rng(0)
    for _ in range(2000):
        broken = bytearray(content)
        broken[rng.integers(len(broken))] = int(rng.integers(256))
        with contextlib.suppress(ValueError):  # of which a name that is no UTF-8 is one
            read_example(bytes(broken))


def test_a_set(tmp_path):
    truth = {}
    for number in range(6):
        content, image, label = heart(number)
        path = tmp_path / f"{'val' if number > 3 else ''}ctslice{number}.tfrecords"
        path.write_bytes(content)
        truth[path] = image, label
    splits = {"train": sorted(tmp_path.glob("ct*")), "val": sorted(tmp_path.glob("val*"))}
    assert make_set(splits, tmp_path / "ct") == {"train": 4, "val": 2}
    for path, (image, label) in truth.items():
        where = tmp_path / "ct" / ("val" if path.name.startswith("val") else "train")
        found = np.asarray(nib.load(where / "IMG" / f"{path.stem}_1.nii").dataobj)
        np.testing.assert_allclose(found, np.clip((image[..., 1] + 4) / 8.5, 0, 1), rtol=1e-6)
        np.testing.assert_array_equal(nib.load(where / "GT" / f"{path.stem}_1.nii").dataobj, label[..., 0])
    assert read_card(tmp_path / "ct")["split_unit"] == "slice"
    folders = "[('IMG', nii_transform, False), ('GT', nii_gt_transform, False), ('GT', nii_gt_transform, False)]"
    words = ["--target_dataset", tmp_path / "ct", "--target_folders", folders, "--n_class", 5, "--n_epoch", 1, "--cpu"]
    words += ["--grp_regex", r"(slice\d+)_(\d+)", "--network", "Dimwit", "--workdir", tmp_path / "run"]
    words += ["--target_losses", "[('CrossEntropy', {}, 1)]"]
    program.main(list(map(str, words)))
    assert len(open_run(tmp_path / "run").patients("last")) == 2 * 4


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"label_vol": None}, "lacks label_vol"),
        ({"dsize_dim2": [4]}, "does not hold"),
        ({"dsize_dim2": [1], "dsize_dim1": [48]}, "its image is"),
        ({"label_vol": [np.full((16, 16, 1), 7, "<f4").tobytes()]}, r"not 0\.\.4"),
        ({"label_vol": [np.full((16, 16, 1), 0.5, "<f4").tobytes()]}, r"not 0\.\.4"),
        ({"data_vol": [np.full((16, 16, 3), np.nan, "<f4").tobytes()]}, "not finite"),
    ],
)
def test_what_is_no_slice(tmp_path, changes, says):
    path = tmp_path / "a.tfrecords"
    path.write_bytes(heart(**changes)[0])
    with pytest.raises(ValueError, match=says):
        read_slice(path)
    with pytest.raises(UserError, match="1 fault: cannot be read"):
        make_set({"train": [path]}, tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_nothing_and_names_that_stand_twice(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.tfrecords").write_bytes(heart()[0])
    with pytest.raises(UserError, match="no file matches: --val; name of several files: x"):
        make_set({"train": sorted(tmp_path.glob("*/x.*")), "val": []}, tmp_path / "set")
