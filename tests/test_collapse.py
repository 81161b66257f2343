"""The alarm of a class that vanishes or floods: by hand, and in adaptations that do and do not collapse."""

import re

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import write_prior, write_site
from PIL import Image

import main as program
import training
from collapse import CollapseAlarm, prior_share
from methods.supervised import Supervised
from run_folder import load_checkpoint
from tests.chaos import ASKED, arguments, ask_to_stop, before_call, differences
from utils import UserError

# -- by hand ------------------------------------------------------------------------------------------------------


def steps(*shares, pixels=10_000):
    """Counts (steps, 2) of two classes, given the second one's share of the pixels in each step."""
    return np.array([[pixels * (1 - share), pixels * share] for share in shares])


def listened(prior, *epochs):
    """What is said after the last of these epochs; nothing was said before."""
    alarm = CollapseAlarm(None if prior is None else np.array([1 - prior, prior]))
    *before, last = [alarm.listen(steps(*epoch)) for epoch in epochs]
    assert not any(before)
    return last


def test_a_class_that_vanishes_is_said_with_its_shares():
    background, organ = listened(0.15, [0.2] * 4, [0.2, 0.2, 0.0, 0.0])
    assert organ == "class 1 vanishes: 0 % of the pixels, at the start 20 %, its prior is 15 %"
    assert background == "class 0 floods: 100 % of the pixels, at the start 80 %, its prior is 85 %"


def test_a_class_that_floods_takes_the_background_s_place():
    background, organ = listened(0.15, [0.2] * 4, [0.9, 0.9, 0.99, 0.99])
    assert organ == "class 1 floods: 99 % of the pixels, at the start 20 %, its prior is 15 %"
    assert background.startswith("class 0 vanishes: 1 %")


def test_a_small_organ_under_a_flooding_background_is_far_off_in_odds():
    """The background gains 1.9 points alone, from 98 % to 99.9 %."""
    assert len(listened(0.02, [0.02] * 2, [0.001] * 2)) == 2


@pytest.mark.parametrize(("share", "number"), [(0.0243, 2), (0.0245, 0), (0.714, 0), (0.715, 2)])
def test_far_is_ten_times_the_odds(share, number):
    """From 1/4: a tenth is 1/40, a share of 1/41 = 0.0244, and ten times is 10/4, a share of 10/14 = 0.7143."""
    assert len(listened(None, [0.2] * 4, [share] * 4)) == number


def test_without_a_prior_the_start_decides():
    assert listened(None, [0.2] * 4, [0.0] * 4)[1] == "class 1 vanishes: 0 % of the pixels, at the start 20 %"
    assert listened(None, [0.2] * 4, [0.05] * 4) == []


def test_far_from_the_start_but_on_its_prior_is_what_adaptation_is_for():
    assert listened(0.2, [0.0] * 4, [0.2] * 4) == []
    assert listened(0.2, [0.99] * 4, [0.2] * 4) == []


def test_far_from_the_prior_but_as_at_the_start_is_no_collapse():
    assert listened(0.2, [0.001] * 4, [0.001] * 4) == []


def test_from_nothing_past_its_prior_is_a_flood():
    assert listened(0.02, [0.0] * 4, [0.5] * 4)[1].startswith("class 1 floods: 50 %")


def test_one_class_of_three():
    alarm = CollapseAlarm(np.array([0.8, 0.1, 0.1]))
    assert alarm.listen(np.array([[80, 10, 10]] * 4)) == []
    assert [words[:16] for words in alarm.listen(np.array([[85, 15, 0]] * 4))] == ["class 2 vanishes"]


def test_the_start_is_the_first_quarter_and_what_follows_the_second_half():
    assert "0 % of the pixels, at the start 30 %" in listened(None, [0.2, 0.4, 0.9, 0.9, 0.0, 0.0, 0.0, 0.0])[1]
    assert listened(None, [0.2, 0.0, 0.0, 0.0, 0.2, 0.2, 0.2, 0.2]) == []
    assert listened(None, [0.2]) == []  # an epoch of one step is its own start


def test_what_the_alarm_knows_survives_a_checkpoint(tmp_path):
    alarm, again = CollapseAlarm(None), CollapseAlarm(None)
    alarm.listen(steps(0.2))
    torch.save(alarm.state_dict(), tmp_path / "alarm.pkl")
    again.load_state_dict(torch.load(tmp_path / "alarm.pkl", weights_only=True))
    assert again.listen(steps(0.0)) == alarm.listen(steps(0.0)) != []


def test_prior_share_is_the_mean_ratio_over_the_slices():
    sizes = np.array([[300.0, 100.0], [200.0, 0.0]])
    bounds = np.stack([sizes, sizes + 5], axis=2)
    assert np.allclose(prior_share([None, bounds], [True, True]), [0.875, 0.125])


def test_prior_share_of_losses_that_compare_no_ratios():
    bounds = np.ones((2, 2, 2))
    assert prior_share([bounds, None], [False, True]) is None


# -- end to end ---------------------------------------------------------------------------------------------------

STEPS = 4  # of an epoch
ENTROPY = "[('SelfEntropy', {}, None, None, None, 1)]"


@pytest.fixture(scope="module")
def adapt(tmp_path_factory):
    """Command lines of adaptations of a source model to a target of another contrast."""
    root = tmp_path_factory.mktemp("collapse")
    source = write_site(root / "source", 200, 60, seed=1)
    target = write_site(root / "target", 150, 90, seed=2)
    write_prior(root / "prior.csv", target)
    program.main(arguments(source, root / "cesource", "--n_epoch", 12, "--augment", 0))

    def line(run, losses, *more):
        start = ("--method", "sfda", "--model_weights", root / "cesource" / "last.pkl", "--target_losses", losses)
        return arguments(target, run, *start, "--augment", 0, *more)

    line.prior = root / "prior.csv"
    return line


def collapsing(adapt, run, what):
    """Entropy alone, with the source's statistics; from the third epoch on one step is enough for a single class."""
    rates = ("--l_rate", 1e-4, "--lr_decay", 3000, "--lr_decay_epoch", 2)
    return adapt(run, ENTROPY, "--bn_stats", "freeze", "--on_collapse", what, *rates)


def log(run):
    return pd.read_csv(run / "IMG_target_metrics.csv")


def test_a_healthy_adaptation_raises_no_alarm(adapt, tmp_path, capsys):
    bounds = {"sizefile": str(adapt.prior), "predcol": "dumbpredwtags", "margin": 0, "dir": "high"}
    losses = f"[('EntKLProp', {{}}, 'PredictionBounds', {bounds}, 'soft_size', 1)]"
    program.main(adapt(tmp_path / "run", losses, "--n_epoch", 6))
    assert "Collapse" not in capsys.readouterr().err
    assert log(tmp_path / "run").val_dice_3d.iloc[-1] > 0.8


def test_warn_says_so_and_goes_on(adapt, tmp_path, capsys):
    program.main([*collapsing(adapt, tmp_path / "run", "warn"), "--n_epoch", "3"])
    said = capsys.readouterr().err
    assert re.search("Collapse in epoch 2: class 0 (floods: .* class 1 vanishes|vanishes: .* class 1 floods): ", said)
    assert log(tmp_path / "run").epoch.tolist() == [0, 1, 2]
    assert log(tmp_path / "run").val_dice_3d.iloc[-1] < 0.3  # that of an organ nowhere, or everywhere


def test_stop_keeps_the_checkpoint_of_the_epoch_before(adapt, tmp_path):
    with pytest.raises(
        UserError, match="Collapse in epoch 2: .*--on_collapse stop: the checkpoint of the epoch before"
    ):
        program.main(collapsing(adapt, tmp_path / "run", "stop"))
    assert load_checkpoint(tmp_path / "run" / "last.pkl")["epoch"] == 1
    assert log(tmp_path / "run").epoch.tolist() == [0, 1]


@pytest.fixture(scope="module")
def rolled_back(adapt, tmp_path_factory):
    run = tmp_path_factory.mktemp("rolled_back") / "whole"
    program.main(collapsing(adapt, run, "rollback"))
    return run


def test_rollback_restores_the_weights(adapt, tmp_path, monkeypatch):
    argv = collapsing(adapt, tmp_path / "run", "rollback")
    with monkeypatch.context() as patch:
        patch.setattr(Supervised, "step", before_call(3 * STEPS + 1, Supervised.step, ask_to_stop))
        with pytest.raises(SystemExit):
            program.main(argv)
    after, before = (load_checkpoint(tmp_path / "run" / name) for name in ("last.pkl", "previous.pkl"))
    assert (after["epoch"], before["epoch"]) == (2, 1)
    assert all(torch.equal(after["net"][name], before["net"][name]) for name in before["net"])


def test_rollback_slows_down(rolled_back):
    """The log has the rate that an epoch was trained with, also of one that was rolled back."""
    assert np.allclose(log(rolled_back).lr, [1e-4, 1e-4, 0.3, 0.03], rtol=1e-6)
    assert log(rolled_back).val_dice_3d[2] == log(rolled_back).val_dice_3d[1]


STOPS = {
    "before the collapse": (Supervised, "step", 2 * STEPS + 2),
    "while the network rolled back is evaluated": (training, "evaluate", 3),
    "after it": (Supervised, "step", 3 * STEPS + 2),
}


@pytest.mark.parametrize("when", STOPS)
def test_a_rolled_back_run_that_is_stopped_ends_the_same(adapt, rolled_back, tmp_path, when, monkeypatch):
    place, name, number = STOPS[when]
    argv = collapsing(adapt, tmp_path / "run", "rollback")
    with monkeypatch.context() as patch:
        patch.setattr(place, name, before_call(number, getattr(place, name), ask_to_stop))
        with pytest.raises(SystemExit) as end:
            program.main(argv)
    assert end.value.code == ASKED
    program.main(argv)
    assert differences(rolled_back, tmp_path / "run") == []


def test_validation_is_watched_too(adapt, tmp_path, capsys):
    """With the batch's own statistics training keeps an organ, while validation finds nothing else."""
    rates = ("--l_rate", 1e-4, "--lr_decay", 2000, "--lr_decay_epoch", 2, "--n_epoch", 3)
    program.main(adapt(tmp_path / "run", ENTROPY, *rates))
    said = capsys.readouterr().err
    assert re.search(r"Collapse in epoch 2: class \d (floods|vanishes): .*\(validation\)\.", said)
    assert "(training)" not in said


def test_the_alarm_hears_the_pixels_that_the_truth_ignores(adapt, tmp_path):
    """What an adaptation listens to, and so what --on_collapse does, is the same whatever the ground truth says."""
    heard = []
    for name, ignored in (("known", ()), ("ignored", (255,))):
        target = write_site(tmp_path / name, 150, 90, seed=2)
        for path in target.glob("*/GT/*.png") if ignored else ():
            mask = np.asarray(Image.open(path)).copy()
            mask[:12] = ignored[0]
            Image.fromarray(mask).save(path)
        argv = adapt(tmp_path / f"run_{name}", ENTROPY, "--n_epoch", 1, "--ignore", 255)
        argv[argv.index("--target_dataset") + 1] = str(target)
        program.main(argv)
        heard.append(load_checkpoint(tmp_path / f"run_{name}" / "last.pkl")["alarms"])
    assert heard[0] == heard[1]
