"""Many cases one after another: one that fails is told and stops no other."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch

import predict
from prediction import one_by_one
from prediction.preparation import SlicePreparation
from processes.errors import UserError
from tests.prediction.test_predict import run, trained  # noqa: F401  a fixture


def masks(folder):
    return sorted(path.name for path in folder.glob("p*.nii.gz"))


def patients(folder):
    with (folder / "volumes.csv").open() as file:
        return {row["patient"]: row for row in csv.DictReader(file)}


@pytest.fixture
def four(trained, tmp_path):  # noqa: F811
    """Weights, and the flags that predict four volumes of which the second is torn."""
    folder, weights = trained
    for number in range(4):
        (tmp_path / f"p{number}.nii.gz").write_bytes((folder / f"p{number}_i0.nii.gz").read_bytes())
    torn = tmp_path / "p1.nii.gz"
    torn.write_bytes(torn.read_bytes()[:-20])
    return weights, ["--volumes", f"{tmp_path}/p?.nii.gz", "--out", tmp_path / "out"]


@pytest.mark.parametrize("jobs", [1, 3, 9])
def test_what_fails_is_told_at_once_and_at_the_end(four, tmp_path, capsys, jobs):
    weights, words = four
    told = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predict.Outputs, "write_sizes", lambda *_: told.append(capsys.readouterr().err) or "")
        with pytest.raises(UserError, match=r"1 of 4 volumes were not predicted: cannot be read: .*p1\.nii\.gz"):
            run(weights, *words, "--jobs", jobs)
    assert "Not predicted: cannot be read" in told[0]
    assert masks(tmp_path / "out") == ["p0.nii.gz", "p2.nii.gz", "p3.nii.gz"]
    found = patients(tmp_path / "out")  # though nothing came to the end
    assert [*found] == ["p0", "p2", "p3"]
    assert all(int(row["voxels"]) > 0 and float(row["mm3"]) > 0 and row["expected"] for row in found.values())
    assert found["p2"]["file"].endswith("p2.nii.gz")


def test_typed_again_only_what_lacks_is_done(four, trained, tmp_path, capsys):  # noqa: F811
    weights, words = four
    with pytest.raises(UserError):
        run(weights, *words)
    before = patients(tmp_path / "out")
    (tmp_path / "p1.nii.gz").write_bytes((trained[0] / "p1_i0.nii.gz").read_bytes())
    run(weights, *words)
    assert "1 predicted, 3 were there" in capsys.readouterr().out
    after = patients(tmp_path / "out")
    assert after.pop("p1")["expected"]
    assert after == before


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "memory of the device (a lower --batch_size than 8, or"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "a lower --batch_size"),
        (MemoryError(), "does not fit into the memory"),
    ],
)
def test_too_little_memory_for_one_stops_no_other(trained, tmp_path, monkeypatch, error, words):  # noqa: F811
    folder, weights = trained

    def predict_but_one(model, prepared, predicting):
        if prepared.grid.directions() == "SAR":  # of p2
            raise error
        return real(model, prepared, predicting)

    real = one_by_one.predict
    monkeypatch.setattr(one_by_one, "predict", predict_but_one)
    with pytest.raises(UserError) as told:
        run(weights, "--volumes", f"{folder}/p[0-3]_i0.nii.gz", "--out", tmp_path / "out")
    assert words in str(told.value)
    assert str(told.value).endswith(": p2.")
    assert masks(tmp_path / "out") == ["p0.nii.gz", "p1.nii.gz", "p3.nii.gz"]


def test_a_fault_of_the_program_is_none_of_a_case(trained, tmp_path, monkeypatch):  # noqa: F811
    def broken(*_):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(one_by_one, "predict", broken)
    with pytest.raises(RuntimeError, match="mat1"):
        run(trained[1], "--volumes", f"{trained[0]}/p1_i0.nii.gz", "--out", tmp_path / "out")


def test_a_volume_of_other_channels_is_told(trained, tmp_path, monkeypatch):  # noqa: F811
    folder, weights = trained
    read = SlicePreparation.read

    def doubled(self, case):
        prepared = read(self, case)
        return replace(prepared, stored=np.repeat(prepared.stored, 1 + (case.patient == "p0"), axis=1))

    monkeypatch.setattr(SlicePreparation, "read", doubled)
    with pytest.raises(UserError, match="another number of channels than the 1 that the network takes: p0 has 2"):
        run(weights, "--volumes", f"{folder}/p[01]_i0.nii.gz", "--out", tmp_path / "out")
    assert masks(tmp_path / "out") == ["p1.nii.gz"]


def test_at_least_one_is_read_ahead(trained, tmp_path):  # noqa: F811
    with pytest.raises(UserError, match="--jobs is at least 1; got 0"):
        run(trained[1], "--volumes", f"{trained[0]}/p1_i0.nii.gz", "--out", tmp_path / "out", "--jobs", 0)
