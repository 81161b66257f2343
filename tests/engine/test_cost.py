import json
import math
import sys
from types import SimpleNamespace

import pytest
import torch
from fake_runs import make_run, make_set

import main as program
from analysis.cost import cost_of
from analysis.run import open_run
from engine.cost import Meter, add_cost, peak_memory, read_energy
from tests.tools.chaos import arguments

HERE = {"seconds": 3.0, "energy_joules": 50.0, "memory_mib": 900.0, "gpu_memory_mib": None}


def test_starts_add_up_and_the_highest_peak_stands():
    before = {"seconds": 1.5, "energy_joules": 8.0, "memory_mib": 1000.0, "gpu_memory_mib": 70.0, "starts": 2}
    assert add_cost(before, HERE) == {
        "seconds": 4.5,
        "energy_joules": 58.0,
        "memory_mib": 1000.0,
        "gpu_memory_mib": 70.0,
    }


def test_a_sum_with_an_unknown_part_is_unknown():
    assert add_cost({"seconds": 1.0, "energy_joules": None}, HERE)["energy_joules"] is None
    assert add_cost({"seconds": 1.0}, HERE)["energy_joules"] is None


def test_a_run_says_what_it_cost_and_goes_on_counting(sites, tmp_path):
    """Six patients, of whom four train: 16 slices in batches of 4 make 4 steps an epoch."""
    run = tmp_path / "run"
    words = arguments(sites[0], run, "--network", "Dimwit", "--n_epoch", 2, "--batch_size", 4)
    program.main(words)
    first = json.loads((run / "cost.json").read_text())
    assert (first["updates"], first["starts"]) == (8, 1)
    assert (first["gpu_memory_mib"], first["energy_joules"]) == (None, None)
    assert 0 < first["memory_mib"] <= peak_memory()
    assert 0 < open_run(run).metrics["seconds"].sum() < first["seconds"]
    program.main(words)  # every epoch is done: it is scored again
    again = json.loads((run / "cost.json").read_text())
    assert (again["updates"], again["starts"]) == (8, 2)
    assert again["seconds"] > first["seconds"]
    cost = cost_of(open_run(run))
    assert cost["seconds"] == again["seconds"]
    assert cost["updates"] == 8
    assert math.isnan(cost["energy_joules"])


def test_a_broken_file_of_cost_is_begun_anew(sites, tmp_path):
    run = tmp_path / "run"
    words = arguments(sites[0], run, "--network", "Dimwit", "--n_epoch", 1)
    for spoilt in ('{"seconds": "many"}', "torn"):
        program.main(words)
        (run / "cost.json").write_text(spoilt)
    program.main(words)
    assert json.loads((run / "cost.json").read_text())["starts"] == 1


def test_a_run_of_before_tells_the_seconds_of_its_epochs(tmp_path):
    data = make_set(tmp_path / "toy", n_patient=1, n_slice=1, size=(16, 16))
    run = open_run(make_run(tmp_path / "run", data, n_epoch=3, pictures=False))
    cost = cost_of(run)
    assert cost.pop("seconds") == 4.5
    assert all(map(math.isnan, cost.values()))


class Refused(Exception):
    pass


@pytest.fixture
def cards(monkeypatch):
    """Two GPUs, as nvidia-ml-py shows them, that took 5 and 7 kJ; a call of it can be refused."""
    taken = {"GPU-a": 5_000_000, "GPU-b": 7_000_000}
    nvml = SimpleNamespace(NVMLError=Refused, nvmlInit=lambda: None, nvmlDeviceGetHandleByUUID=lambda uuid: uuid)
    nvml.nvmlDeviceGetTotalEnergyConsumption = taken.__getitem__
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    of_device = {"cuda": "a", "cuda:0": "a", "cuda:1": "b"}
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda name: SimpleNamespace(uuid=of_device[name]))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 3 * 2**20)
    return SimpleNamespace(taken=taken, nvml=nvml)


def test_energy_is_what_the_devices_of_the_training_took_meanwhile(cards):
    one, team = Meter("cuda"), Meter("cuda:0", world=2)
    cards.taken.update({"GPU-a": 5_500_000, "GPU-b": 9_000_000})
    assert one.read()["energy_joules"] == 500
    assert team.read()["energy_joules"] == 2500
    assert one.read()["gpu_memory_mib"] == 3


def test_a_card_that_does_not_tell_is_no_fault(cards, monkeypatch):
    def refuse(_):
        raise Refused("Not Supported")

    cards.nvml.nvmlDeviceGetTotalEnergyConsumption = refuse
    assert read_energy(["cuda"]) is None
    assert Meter("cuda").read()["energy_joules"] is None
    monkeypatch.setitem(sys.modules, "pynvml", None)  # not installed
    assert read_energy(["cuda"]) is None
