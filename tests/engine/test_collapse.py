"""The alarms of a run: by hand, and in adaptations that do and do not do harm."""

import re

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import write_prior, write_site
from PIL import Image

import main as program
import report
from engine import loop as training
from engine.collapse import CollapseAlarm, OneClass, SourceMaps, estranged, kappa, prior_share
from methods.supervised import Supervised
from nets.checkpoint_files import load_checkpoint
from processes.errors import UserError
from tests.tools.chaos import ASKED, arguments, ask_to_stop, before_call, differences

# -- by hand ------------------------------------------------------------------------------------------------------


def steps(*shares, pixels=10_000):
    """Counts (steps, 2) of two classes, given the second one's share of the pixels in each step."""
    return np.array([[pixels * (1 - share), pixels * share] for share in shares])


def listened(prior, source, *shares):
    """What is said of an epoch with these shares of the organ, step by step."""
    alarm = CollapseAlarm(None if prior is None else np.array([1 - prior, prior]))
    alarm.begin(steps(source)[0])
    return alarm.alarms(steps(*shares))


def test_a_class_that_vanishes_is_said_with_its_shares():
    background, organ = listened(0.15, 0.2, 0.2, 0.2, 0.0, 0.0)
    assert organ == "class 1 vanishes: 0 % of the pixels, 20 % with the source network, its prior is 15 %"
    assert background == "class 0 floods: 100 % of the pixels, 80 % with the source network, its prior is 85 %"


def test_a_class_that_floods_takes_the_background_s_place():
    background, organ = listened(0.15, 0.2, 0.9, 0.9, 0.99, 0.99)
    assert organ == "class 1 floods: 99 % of the pixels, 20 % with the source network, its prior is 15 %"
    assert background.startswith("class 0 vanishes: 1 %")


def test_a_small_organ_under_a_flooding_background_is_far_off_in_odds():
    """The background gains 1.9 points alone, from 98 % to 99.9 %."""
    assert len(listened(0.02, 0.02, 0.001, 0.001)) == 2


FAR = [(None, 0.0243, 2), (None, 0.0245, 0), (None, 0.714, 0), (None, 0.715, 2)]
FAR += [(0.2, 0.0475, 2), (0.2, 0.0477, 0), (0.2, 0.5555, 0), (0.2, 0.5557, 2)]


@pytest.mark.parametrize(("prior", "share", "number"), FAR)
def test_far_is_ten_times_the_odds_of_the_source_network_or_five_times_those_of_both(prior, share, number):
    """From 1/4: a tenth is 1/40, a share of 1/41 = 0.0244, ten times is 10/4, a share of 10/14 = 0.7143; a fifth is
    1/20, a share of 1/21 = 0.0476, and five times is 5/4, a share of 5/9 = 0.5556.
    """
    assert len(listened(prior, 0.2, share)) == number


def test_without_a_prior_the_source_network_decides():
    assert listened(None, 0.2, 0.0)[1] == "class 1 vanishes: 0 % of the pixels, 20 % with the source network"
    assert listened(None, 0.2, 0.05) == []


def test_far_from_the_source_network_but_on_its_prior_is_what_adaptation_is_for():
    assert listened(0.2, 0.0, 0.2) == []
    assert listened(0.2, 0.99, 0.2) == []


def test_far_from_the_prior_but_as_the_source_network_is_no_collapse():
    assert listened(0.2, 0.001, 0.001) == []


def test_from_nothing_past_its_prior_is_a_flood():
    assert listened(0.02, 0.0, 0.5)[1].startswith("class 1 floods: 50 %")


def test_one_class_of_three():
    alarm = CollapseAlarm(np.array([0.8, 0.1, 0.1]))
    alarm.begin(np.array([80, 10, 10]))
    assert alarm.alarms(np.array([[80, 10, 10]] * 4)) == []
    assert [words[:16] for words in alarm.alarms(np.array([[85, 15, 0]] * 4))] == ["class 2 vanishes"]


def doubted(prior, source):
    alarm = CollapseAlarm(None if prior is None else np.array(prior))
    alarm.begin(np.array(source))
    return alarm.doubt()


def test_a_prior_and_a_source_network_far_apart_are_told_with_both_shares():
    told = doubted([0.7, 0.3, 0], [88, 12, 0])
    assert "class 1 30 % of the pixels by the prior, 12 % by the source network. One of them is wrong" in told
    assert "class 2" not in told
    assert "class 2 4 % of the pixels by the prior, 0 % by the source network" in doubted(
        [0.84, 0.12, 0.04], [90, 10, 0]
    )


@pytest.mark.parametrize(
    ("prior", "source"),
    [
        ([0.8, 0.2], [90, 10]),  # twice, and no more
        ([0.9, 0.1], [80, 20]),
        ([0.5, 0.5], [99, 1]),  # uniform: no statement on the images
        (None, [99, 1]),
    ],
)
def test_what_is_not_doubted(prior, source):
    assert doubted(prior, source) == ""


def test_what_an_epoch_led_to_is_its_second_half():
    assert "0 % of the pixels" in listened(None, 0.3, 0.2, 0.4, 0.9, 0.9, 0.0, 0.0, 0.0, 0.0)[1]
    assert listened(None, 0.2, 0.0, 0.0, 0.0, 0.0, 0.2, 0.2, 0.2, 0.2) == []


def test_prior_share_is_the_mean_ratio_over_the_slices():
    sizes = np.array([[300.0, 100.0], [200.0, 0.0]])
    bounds = np.stack([0.9 * sizes, 1.1 * sizes], axis=2)
    assert np.allclose(prior_share([None, bounds], [True, True]), [0.875, 0.125])


def test_prior_share_of_losses_that_compare_no_ratios():
    bounds = np.ones((2, 2, 2))
    assert prior_share([bounds, None], [False, True]) is None


@pytest.mark.parametrize(
    ("pairs", "value"),
    [
        ([[20, 5], [10, 15]], 0.4),  # observed 0.7, by chance 0.5 * 0.6 + 0.5 * 0.4
        ([[8, 0], [0, 2]], 1.0),
        ([[0, 8], [2, 0]], (0 - 0.32) / 0.68),
        ([[64, 16], [16, 4]], 0.0),
        ([[10, 0], [0, 0]], 1.0),
        ([[0, 10], [0, 0]], 0.0),
    ],
)
def test_kappa_by_hand(pairs, value):
    assert kappa(np.array(pairs)) == pytest.approx(value, abs=1e-12)


def test_little_agreement_is_said_and_an_unknown_one_is_not():
    assert "kappa 0.19" in estranged(0.19)[0]
    assert estranged(0.2) == estranged(float("nan")) == []


@pytest.mark.parametrize("shape", [(3, 10, 12), (2, 1000, 700), (2, 80, 90, 100)])
def test_maps_are_compared_pixel_by_pixel_and_thinned_where_they_are_large(shape):
    generator = torch.Generator().manual_seed(0)
    source, now = (torch.randint(0, 3, shape, generator=generator) for _ in range(2))
    maps = SourceMaps(3)
    for number, labels in enumerate(source.split(2)):
        maps.keep(number, labels)
    assert maps.take() is None
    for number, labels in enumerate(now.split(2)):
        maps.compare(number, labels)
    pairs = maps.take()
    step = {3: 1, 4: 2}[len(shape)] if shape != (2, 1000, 700) else 2
    kept = (slice(None), *[slice(None, None, step)] * (len(shape) - 1))
    expected = [[((source[kept] == a) & (now[kept] == b)).sum().item() for b in range(3)] for a in range(3)]
    assert pairs.tolist() == expected
    assert pairs.sum() <= len(source) * 2**18
    assert maps.take() is None


# -- one class alone ----------------------------------------------------------------------------------------------


def told(shown, n_epoch):
    """The epochs, from 0, after which something is said; shown: the number of classes predicted in each."""
    watch = OneClass(n_epoch)
    said = [watch.warning(np.array([9, *([1] if number > 1 else [0])]), epoch) for epoch, number in enumerate(shown)]
    return [epoch for epoch, words in enumerate(said) if words]


def test_one_class_is_told_once_when_it_lasts():
    assert told([1] * 20, 20) == [4]
    assert told([1] * 60, 60) == [14]  # a quarter of a long run
    assert told([1, 1, 1, 1, 2, 1, 1, 1, 2, 2], 10) == []
    assert told([2, 2, 2, 1], 4) == [3]  # at the end it is told however long it has lasted


def test_one_class_says_which_and_for_how_long():
    watch = OneClass(20)
    assert [watch.warning(np.array([0, 9]), epoch) for epoch in range(4)] == [""] * 4
    assert watch.warning(np.array([0, 9]), 4).startswith("For 5 epochs the network has given every pixel of the")
    again = OneClass(20)
    again.load_state_dict(watch.state_dict())
    assert again.warning(np.array([0, 9]), 5) == ""


# -- end to end ---------------------------------------------------------------------------------------------------

STEPS = 4  # of an epoch
SMALLEST = ("--network", "Dimwit")
ENTROPY = "[('SelfEntropy', {}, None, None, None, 1)]"


@pytest.fixture(scope="module")
def adapt(tmp_path_factory):
    """Command lines of adaptations of a source model to a target of another contrast."""
    root = tmp_path_factory.mktemp("collapse")
    source = write_site(root / "source", 200, 60, seed=1)
    target = write_site(root / "target", 150, 90, seed=2)
    write_prior(root / "prior.csv", target)
    program.main(arguments(source, root / "cesource", *SMALLEST, "--n_epoch", 8, "--augment", 0, "--l_rate", 3e-2))

    def line(run, losses, *more):
        start = ("--method", "sfda", "--model_weights", root / "cesource" / "last.pkl", "--target_losses", losses)
        return arguments(target, run, *start, *SMALLEST, "--augment", 0, *more)

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
    assert capsys.readouterr().err == ""
    assert log(tmp_path / "run").val_dice_3d.iloc[-1] > 0.8
    assert log(tmp_path / "run").alarms.tolist() == [0] * 6
    assert log(tmp_path / "run").val_source_agreement.between(0.2, 1).all()


def test_a_prior_that_the_source_network_does_not_see_is_doubted_before_the_first_step(adapt, tmp_path, capsys):
    bounds = {"values": [240, 250]}
    losses = f"[('EntKLProp', {{}}, 'ConstantBounds', {bounds}, 'soft_size', 1)]"
    program.main(adapt(tmp_path / "run", losses, "--n_epoch", 1, "--l_rate", 0))
    said = capsys.readouterr().err
    assert re.search(r"class 1 51 % of the pixels by the prior, 1\d\.\d % by the source network", said)
    program.main(adapt(tmp_path / "run", losses, "--n_epoch", 1, "--l_rate", 0))  # every epoch is done
    assert "by the prior" not in capsys.readouterr().err


def test_warn_says_so_and_goes_on(adapt, tmp_path, capsys):
    program.main([*collapsing(adapt, tmp_path / "run", "warn"), "--n_epoch", "3"])
    said = capsys.readouterr().err
    assert re.search("Alarm in epoch 3: class 0 (floods: .* class 1 vanishes|vanishes: .* class 1 floods): ", said)
    assert "agree with the source network's little more than by chance (kappa 0.00; " in said
    assert "The alarm rang in 1 of 3 epochs, the last among them." in said
    assert re.search(r"This adaptation did harm: Dice 3D 0\.\d+ at the end, 0\.9\d+ with the network that it", said)
    assert log(tmp_path / "run").epoch.tolist() == [0, 1, 2]
    assert log(tmp_path / "run").val_dice_3d.iloc[-1] < 0.3  # that of an organ nowhere, or everywhere
    assert log(tmp_path / "run").alarms.tolist() == [0, 0, 1]
    assert log(tmp_path / "run").val_source_agreement.iloc[0] > 0.2 > log(tmp_path / "run").val_source_agreement.iloc[2]


def test_stop_keeps_the_checkpoint_of_the_epoch_before(adapt, tmp_path):
    with pytest.raises(UserError, match="Alarm in epoch 3: .*--on_collapse stop: the checkpoint of the epoch before"):
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
    assert log(rolled_back).alarms[2] == 0  # the network of that row is the one before, at which no alarm rang


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
    assert re.search(r"Alarm in epoch 3: class \d (floods|vanishes): .*\(validation\)\.", said)
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


def test_an_alarm_that_goes_on_is_told_once_and_marked_in_the_report(adapt, tmp_path, capsys):
    """A rate that is too high in the first epoch, and next to nothing in the two that follow."""
    run, rates = tmp_path / "run", ("--l_rate", 0.3, "--lr_decay", 1e-9, "--lr_decay_epoch", 1)
    argv = [*adapt(run, ENTROPY, "--bn_stats", "freeze", *rates), "--n_epoch", "3"]
    program.main(argv)
    said = capsys.readouterr().err
    assert said.count("Alarm in epoch") == 1
    assert "Alarm in epoch 1: " in said
    assert "The alarm rang in 3 of 3 epochs" in said
    assert "For 3 epochs the network has given every pixel of the validation images class" in said
    report.main(["--runs", str(run)])
    text = capsys.readouterr().out
    assert re.search(r"^run +none .* 3/3 .*alarm, one class$", text, re.M)
    assert "Alarm: told without labels" in text
    program.main(argv)  # every epoch is done: the end is told again
    assert "The alarm rang in 3 of 3 epochs" in capsys.readouterr().err


def test_without_ground_truth_alarms_are_the_same(adapt, tmp_path, capsys):
    """The images alone, as predict.py --adapt sees them."""
    argv = [*collapsing(adapt, tmp_path / "run", "warn"), "--n_epoch", "3"]
    program.main(argv)
    said = capsys.readouterr().err
    argv[argv.index("--workdir") + 1] = str(tmp_path / "blind")
    program.main([*argv, "--target_folders", "[('IMG', png_transform, False)]"])
    harm = "This adaptation did harm"
    assert capsys.readouterr().err.splitlines() == [line for line in said.splitlines() if not line.startswith(harm)]
    logs = log(tmp_path / "run"), log(tmp_path / "blind")
    for column in ("alarms", "val_source_agreement"):
        assert logs[0][column].tolist() == logs[1][column].tolist()


def test_a_supervised_run_that_predicts_background_alone_says_so_once(tmp_path, capsys):
    """Its training labels were wiped. It has no source network, so nothing else is alarming."""
    site = write_site(tmp_path / "site", 200, 60, seed=1)
    for path in site.glob("train/GT/*.png"):
        Image.fromarray(np.zeros((24, 20), np.uint8)).save(path)
    program.main(
        arguments(site, tmp_path / "run", *SMALLEST, "--n_epoch", 8, "--augment", 0, "--saveim", 0, "--do_hd", 0)
    )
    said = capsys.readouterr().err
    assert re.fullmatch(r"For \d epochs the network has given every pixel of the validation images class 0, .*\n", said)
    assert "alarms" not in log(tmp_path / "run")
