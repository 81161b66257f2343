"""Classes that lie on two sides of each other, nested ones, and what is said of a flip."""

import numpy as np
import pytest
from PIL import Image

import main as program
from datasets.augmentation import Augmentation
from datasets.class_places import centres, told_by_place
from tests.conftest import FOLDERS


def halves(rng, apart=True, size=(24, 20)):
    """Two discs of class 1 and 2 side by side along H, at random along W; or anywhere."""
    label = np.zeros(size, np.uint8)
    for k, left in ((1, 2), (2, 12)):
        w, h = rng.integers(2, 18), (left if apart else 0) + rng.integers(0, 4 if apart else 14)
        label[w : w + 5, h : h + 5] = k
    return label


def many(count=30, seed=0, **how):
    rng = np.random.default_rng(seed)
    return [halves(rng, **how) for _ in range(count)]


def test_centres():
    label = np.zeros((4, 10), np.uint8)
    label[0, 2:4] = 1
    label[2:, 9] = 255
    np.testing.assert_allclose(centres(label, 3)[1:], [[0.125, 0.3], [np.nan, np.nan]])
    volume = np.zeros((2, 4, 10), np.int64)
    volume[1, 3, 9] = 2
    np.testing.assert_allclose(centres(volume, 3)[2], [0.75, 0.875, 0.95])


def test_sides_are_found_along_their_axis():
    assert told_by_place(many(), 3) == {-1: (1, 2, 1.0)}
    assert told_by_place([label[:, ::-1] for label in many()], 3) == {-1: (2, 1, 1.0)}
    assert told_by_place([label.T for label in many()], 3) == {-2: (1, 2, 1.0)}
    assert told_by_place([np.stack([label] * 3, 1) for label in many()], 3) == {-1: (1, 2, 1.0)}


def test_sides_are_found_where_no_slice_shows_both():
    labels = many()
    alone = [np.where(label == 1 + number % 2, label, 0) for number, label in enumerate(labels)]
    assert told_by_place(alone, 3) == {-1: (1, 2, 1.0)}


@pytest.mark.parametrize(
    "labels",
    [
        many(apart=False, count=60),
        many(count=7),  # too few to tell
        [np.minimum(label, 1) for label in many()],
        [],
    ],
)
def test_classes_without_sides_are_none(labels):
    assert told_by_place(labels, 3) == {}


def test_what_turns_round():
    assert Augmentation().reverses(2) == []
    assert Augmentation(flip=True).reverses(3) == [-3, -2, -1]
    assert Augmentation(flip=True, one_of=True).reverses(3) == [-1]
    assert Augmentation(rotate=180).reverses(3) == Augmentation(turn=45).reverses(2) == [-2, -1]


@pytest.fixture
def site(tmp_path):
    rng = np.random.default_rng(1)
    for patient in range(10):
        for index in range(2):
            label = halves(rng)
            for folder, array in (("IMG", 100 * label), ("GT", label)):
                path = tmp_path / "site" / ("val" if patient > 7 else "train") / folder / f"Case{patient}_{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array.astype(np.uint8)).save(path)
    return tmp_path / "site"


@pytest.mark.parametrize(
    ("augmentation", "more", "told"),
    [
        ("{'flip': True}", (), True),
        ("{'turn': 90}", (), True),
        ("{}", (), False),
        ("{'flip': True}", ("--augment", "0"), False),
        ("{'flip': True}", ("--n_class", "4"), True),
    ],
)
def test_a_run_says_what_a_flip_makes_of_the_sides(site, tmp_path, capsys, augmentation, more, told):
    program.main(
        [
            *("--target_dataset", str(site), "--workdir", str(tmp_path / "run"), "--target_folders", FOLDERS),
            *("--grp_regex", r"(Case\d+)_(\d+)", "--n_class", "3", "--network", "Dimwit", "--n_epoch", "1", "--cpu"),
            *("--target_losses", "[('CrossEntropy', {}, 1)]", "--augment", "--augmentation", augmentation, *more),
        ]
    )
    said = "class 1 lies before class 2 along H in 100 % of the labels" in capsys.readouterr().err
    assert said == told


def test_labels_that_no_step_may_see_are_not_looked_at(site, tmp_path, capsys):
    line = [
        *("--target_dataset", str(site), "--target_folders", FOLDERS, "--grp_regex", r"(Case\d+)_(\d+)", "--cpu"),
        *("--n_class", "3", "--network", "Dimwit", "--n_epoch", "1", "--l_rate", "0"),
    ]
    program.main([*line, "--workdir", str(tmp_path / "source"), "--target_losses", "[('CrossEntropy', {}, 1)]"])
    adapt = ("--method", "sfda", "--model_weights", str(tmp_path / "source" / "last.pkl"))
    flips = ("--target_losses", "[('SelfEntropy', {}, 1)]", "--augment", "--augmentation", "{'flip': True}")
    program.main([*line, "--workdir", str(tmp_path / "run"), *adapt, *flips])
    assert "lies before" not in capsys.readouterr().err
