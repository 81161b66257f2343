"""The entry "bundle" of a checkpoint: written and read again, held against what it should be, absent in older ones."""

import copy
from dataclasses import fields

import numpy as np
import pytest
import torch

from nets.bundle import LONGEST, QUANTITIES, STATISTICS, SUMMARY, Bundle, make_bundle, read_bundle, summarise
from nets.checkpoint_files import load_checkpoint
from processes.errors import UserError

SIZES = {"C": 2, "K": 3, "F": 2, "*": 5}
OVER = {"training": "9 slices", "validation": "4 slices"}


def values():
    found = {}
    for name, about in QUANTITIES.items():
        shape = [SIZES.get(size, size) for size in about.dims]
        found[name] = np.sort(np.random.default_rng(0).random(shape), axis=-1)
    return found


def state(**changes):
    return {"net": {"a": torch.ones(1)}, "n_class": 3, "in_channels": 2, "bundle": bundle().state()} | changes


def bundle(without=()):
    kept = {name: each for name, each in values().items() if name not in without}
    return make_bundle(kept, OVER, dict.fromkeys(without, "nobody asked"), 7)


def saved(path, content):
    torch.save(content, path / "last.pkl")
    return load_checkpoint(path / "last.pkl")


def test_every_quantity_is_a_field():
    assert [each.name for each in fields(Bundle)] == ["manifest", *QUANTITIES]


def test_a_bundle_is_read_as_it_was_written(tmp_path):
    first = bundle(without=("prototypes",))
    first.sdc[0, 1] = np.nan
    second = read_bundle(saved(tmp_path, state(bundle=first.state())))
    for name in QUANTITIES:
        ours, theirs = getattr(first, name), getattr(second, name)
        assert (ours is theirs is None) or np.array_equal(ours, theirs, equal_nan=True)
    assert second.prototypes is None
    assert second.manifest == first.manifest
    assert second.manifest["prototypes"]["left_out"] == "nobody asked"


def test_the_manifest_names_every_number():
    told = bundle().manifest
    assert set(told) == {*QUANTITIES, "batch_norm"}
    for name, each in values().items():
        assert told[name]["numbers"] == each.size
        assert told[name]["over"] == OVER[QUANTITIES[name].of]
        assert told[name]["what"]
        assert told[name]["unit"]
        assert "left_out" not in told[name]
    assert told["batch_norm"]["numbers"] == 7
    assert told["volume_mm3"]["what"].startswith("mean, sd, median, q05, q25, q75, q95, count of each foreground class")


def test_what_is_not_there_must_have_a_reason():
    with pytest.raises(KeyError, match="dice"):
        make_bundle({name: each for name, each in values().items() if name != "dice"}, OVER, {}, 0)


def test_a_checkpoint_of_before_has_none(tmp_path):
    older = state()
    del older["bundle"]
    assert read_bundle(saved(tmp_path, older)) is None


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        ((), [], "expected a format, a manifest and numbers"),
        (("format",), 2, "its format is 2, and 1 is the one that is known"),
        (("manifest",), [], "have no names"),
        (("numbers",), None, "have no names"),
        (("manifest", "dice"), {"what": "it"}, "does not tell what dice is"),
        (("manifest", "dice", "over"), 3, "something else than words of dice"),
        (("manifest", "dice", "over"), "a" * (LONGEST + 1), "something else than words of dice"),
        (("manifest", "patients"), {}, "names what is none of its quantities"),
        (("numbers", "patients"), [1.0], "are of what is none of its quantities"),
        (("numbers", "dice"), [[0.5] * SUMMARY], "dice is no list of 2 x 8 finite numbers"),
        (("numbers", "dice", 0), [0.5] * (SUMMARY + 1), "dice is no list of 2 x 8 finite numbers"),
        (("numbers", "dice", 0, 0), float("nan"), "dice is no list of 2 x 8 finite numbers"),
        (("numbers", "dice", 0, 0), 10**400, "dice is no list of 2 x 8 finite numbers"),
        (("numbers", "dice", 0, 0), "0.5", "dice is no list of 2 x 8 finite numbers"),
        (("numbers", "dice", 0, 0), torch.ones(()), "dice is no list of 2 x 8 finite numbers"),
        (("numbers", "prototypes", 1), [1.0], "prototypes is no list of 3 x 5 finite numbers"),
        (("numbers", "prototypes"), [[1.0] * 5000] * 3, "prototypes is no list of 3 x 4096 finite numbers"),
        (("numbers", "temperatures", 0), 0.0, "a temperature is not above 0"),
        (("numbers", "grey_quantiles", 0, 9), 2.0, "grey_quantiles falls"),
    ],
)  # fmt: skip
def test_what_is_no_bundle_is_refused(tmp_path, place, value, said):
    entry = {"bundle": copy.deepcopy(bundle().state())}
    *way, last = "bundle", *place
    inner = entry
    for key in way:
        inner = inner[key]
    inner[last] = value
    with pytest.raises(UserError, match=f"'bundle': .*{said}"):
        saved(tmp_path, state(**entry))
    with pytest.raises(UserError, match=said):
        read_bundle(state(**entry))


@pytest.mark.parametrize("n_class", [None, 0, 2**20, 4])
def test_a_bundle_of_another_number_of_classes_is_refused(tmp_path, n_class):
    with pytest.raises(UserError, match="bundle"):
        saved(tmp_path, state() | {"n_class": n_class})


def test_a_number_without_a_name_in_the_manifest_is_refused(tmp_path):
    entry = bundle().state()
    del entry["manifest"]["dice"]
    with pytest.raises(UserError, match="its manifest does not name dice"):
        saved(tmp_path, state(bundle=entry))


def test_statistics_are_called_by_name():
    found = bundle(without=("spread",))
    assert np.array_equal(found.statistic("volume_mm3", "median"), found.volume_mm3[:, 2])
    assert found.statistic("centroid", "q95").shape == (2, 3)
    assert found.statistic("spread", "mean") is None
    with pytest.raises(KeyError, match="temperatures has no mean"):
        found.statistic("temperatures", "mean")


def test_statistics_by_hand():
    found = dict(zip(STATISTICS, summarise(np.array([[1.0], [np.nan], [2.0], [6.0]]))[0], strict=True))
    assert found == pytest.approx(
        {"mean": 3, "sd": 7**0.5, "median": 2, "q05": 1.1, "q25": 1.5, "q75": 4, "q95": 5.6, "count": 3}
    )
    assert summarise(np.full((2, 3, 1), np.nan)).shape == (3, 1, 8)
    assert summarise(np.full((2, 1), np.nan))[0].tolist()[-1] == 0
    assert np.isnan(summarise(np.full((2, 1), np.nan))[0, :-1]).all()
