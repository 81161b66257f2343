"""Files of others: one sentence with the file's name and the cure, whatever their reader raises."""

import codecs
import errno
import json

import pytest

from files.foreign import Refused, read_json, read_text, reading
from prediction.inference import Predicting
from prediction.outputs import Outputs
from processes.errors import UserError


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("of\n two lines"), r"a\.x cannot be read \(ValueError: of two lines\); take another\.$"),
        (MemoryError(), r"a\.x cannot be read \(MemoryError\); take another\.$"),
        (OSError("a reader's own"), r"a\.x cannot be read \(OSError: a reader's own\); take another\.$"),
        (PermissionError(errno.EACCES, "Permission denied"), r"a\.x cannot be read \(Permission denied\)$"),
        (Refused("holds nothing"), r"a\.x holds nothing$"),
        (UserError("as it is"), "^as it is$"),
    ],
)
def test_what_goes_wrong_names_the_file_and_the_cure(tmp_path, error, words):
    with pytest.raises(UserError, match=words), reading(tmp_path / "a.x", "take another"):
        raise error


def test_a_stop_is_no_fault_of_the_file(tmp_path):
    with pytest.raises(KeyboardInterrupt), reading(tmp_path / "a.x", "take another"):
        raise KeyboardInterrupt


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
def test_text_is_read_in_whatever_encoding(tmp_path, encoding):
    (tmp_path / "a.txt").write_bytes("Hôpital".encode(encoding))
    assert read_text(tmp_path / "a.txt") == "Hôpital"
    (tmp_path / "a.txt").write_bytes(codecs.BOM_UTF16_LE + b"a\0b")  # torn
    assert read_text(tmp_path / "a.txt").startswith("a")


@pytest.mark.parametrize(
    ("content", "words"), [("{", "is not JSON"), ("[1]", "holds a list"), ("[" * 9000, "is not JSON")]
)
def test_what_is_no_object_of_json_is_told(tmp_path, content, words):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=rf"a\.json .*{words}.*; make it again\.$"):
        read_json(tmp_path / "a.json", "make it again")


@pytest.mark.parametrize("content", ["{", "[]", '{"volumes": [1]}', "\xff"])
def test_a_broken_note_of_predictions_is_refused_or_written_anew(tmp_path, content):
    note, outputs = tmp_path / "predict.json", Outputs(tmp_path, {0: 0, 1: 1}, Predicting())
    note.write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=r"predict\.json .*--out.*--overwrite"):
        outputs.begin({"weights": "x"}, {"Case00": {"a": "b"}}, overwrite=False)
    assert note.read_text(encoding="latin-1") == content
    outputs.begin({"weights": "x"}, {"Case00": {"a": "b"}}, overwrite=True)
    assert json.loads(note.read_text())["volumes"] == {"Case00": {"a": "b"}}
