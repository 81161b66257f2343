"""Grey levels brought to the source's: a curve against its definition, and which pixels it moves how far."""

import numpy as np
import pytest
import torch
from test_grey_quantiles import set_of

from datasets.grey_matching import KNOTS, SHARE, SourceLevels, levels_to_match, match_set, matched, with_share
from datasets.grey_quantiles import grey_quantiles
from nets.bundle import QUANTITIES, make_bundle
from processes.errors import UserError
from tests.modes import Watch

STEPS = (np.arange(256) + 0.5) / 256


def levels_of(*bodies, share=1.0, lowest=0.0):
    """Of a source whose channels have these bodies."""
    quantiles = [np.quantile(body, STEPS) for body in bodies]
    return SourceLevels(np.array([[lowest, *each] for each in quantiles]), share)


def literally(x, seen, source, share):
    """x' of the pixels x (n,) of a patient with the pixels seen (m,), float64, pixel by pixel."""
    own = [seen.min(), *np.quantile(seen[seen > seen.min()], STEPS)]
    places = sorted(set(own))
    theirs = [np.mean([there for level, there in zip(own, source, strict=True) if level == place]) for place in places]
    return share * np.interp(x, places, theirs) + (1 - share) * x


@pytest.mark.parametrize("share", [1.0, 0.3])
@pytest.mark.parametrize("kind", ["continuous", "few levels"])
def test_it_is_the_formula(share, kind):
    rng = np.random.default_rng(0)
    seen = rng.gamma(2, 40, (2, 3000)) if kind == "continuous" else rng.integers(0, 12, (2, 3000)) * 7.0
    source = levels_of(rng.normal(300, 50, 999), rng.uniform(-3, 8, 999), share=share, lowest=-4)
    image = rng.choice(seen.ravel(), (3, 2, 5, 6)) + rng.choice([0, 2.5, -300, 900], (3, 2, 5, 6))
    curves = torch.from_numpy(source.curve(seen)).expand(3, -1, -1, -1)
    found = matched(torch.from_numpy(image).float(), curves, share)
    for channel in range(2):
        wanted = literally(image[:, channel], seen[channel], source.levels[channel], share)
        assert np.allclose(found[:, channel], wanted, rtol=1e-4, atol=1e-3)


def test_what_a_scanner_did_to_the_levels_is_undone():
    """Whatever rises is undone, and however much background there is around the body."""
    rng = np.random.default_rng(0)
    body = rng.gamma(3, 0.1, 4000)
    theirs = levels_of(body, lowest=0)
    for zeros, scanner in ((10, np.sqrt), (9000, lambda x: 40 * x**2 + 7)):
        levels = scanner(np.concatenate([np.zeros(zeros), body]))
        curve = torch.from_numpy(theirs.curve(levels[None]))[None]
        found = matched(torch.from_numpy(levels).float()[None, None], curve, 1.0)[0, 0].numpy()
        assert (found[:zeros] == 0).all()
        inside = (body > np.quantile(body, 0.01)) & (body < np.quantile(body, 0.99))
        assert np.allclose(found[zeros:][inside], body[inside], atol=0.01)


def test_a_negative_share_turns_the_body_round():
    """The darkest of the body becomes the source's brightest; what lies around the body stays the lowest."""
    body = np.random.default_rng(0).gamma(3, 0.1, 4000) + 0.01
    levels = np.concatenate([np.zeros(500), body.max() + 0.01 - body])  # air, and a body whose contrast is inverted
    turned = levels_of(body, share=-1.0)
    curve = torch.from_numpy(turned.curve(levels[None]))[None]
    found = matched(torch.from_numpy(levels).float()[None, None], curve, -1.0)[0, 0].numpy()
    assert (found[:500] == 0).all()
    inside = (body > np.quantile(body, 0.01)) & (body < np.quantile(body, 0.99))
    assert np.allclose(found[500:][inside], body[inside], atol=0.01)
    half = matched(torch.from_numpy(levels).float()[None, None], curve, -0.5)[0, 0].numpy()
    assert np.allclose(half, (found + levels) / 2, atol=1e-6)


def test_a_channel_of_one_level_stays_and_nobody_looks_at_a_value():
    source = levels_of(np.arange(9.0), np.arange(9.0))
    curves = torch.from_numpy(source.curve(np.array([[3.0] * 4, [1.0, 2, 3, 4]])))[None]
    image = torch.full((1, 2, 2, 2), 3.0)
    with Watch():
        found = matched(image, curves, 1.0)
    assert (found[0, 0] == 3).all()
    assert (found[0, 1] > 3).all()


def test_each_patient_of_a_set_has_a_curve_of_its_own_of_all_its_slices():
    rng = np.random.default_rng(0)
    images = rng.integers(1, 100, (4, 1, 6, 7), dtype=np.uint8) * np.array([1, 1, 2, 2], np.uint8)[:, None, None, None]
    plain = set_of(images)
    plain.patients = ["a", "a", "b", "b"]
    source = levels_of(rng.uniform(0, 9, 999))
    slices = match_set(plain, source).keep([3, 1])
    for row, own in enumerate(([2, 3], [0, 1])):
        pixels = np.concatenate([images[each].ravel() for each in own]) / 255
        wanted = literally(images[own[1]] / 255, pixels, source.levels[0], 1)
        assert np.allclose(slices.image(row), wanted, atol=1e-4)
        seen = slices.as_seen(torch.from_numpy(images[own[1]] / np.float32(255))[None], [row])
        assert torch.equal(seen[0], torch.from_numpy(slices.image(row)))
    assert slices.as_seen(torch.zeros(0, 1, 6, 7), []).shape == (0, 1, 6, 7)
    assert np.array_equal(match_set(slices, None).image(0), images[3] / np.float32(255))


# ------------------------------------------------------------------------------------------- of a checkpoint


def checkpoint(**values):
    left_out = dict.fromkeys(QUANTITIES, "not measured")
    bundle = make_bundle(values, {"training": "", "validation": ""}, left_out, 0)
    return {"n_class": 2, "in_channels": 1, "bundle": bundle.state()}


def test_the_source_s_lowest_level_and_the_quantiles_of_its_bodies_are_taken():
    whole, body = grey_quantiles(np.array([[0.0] * 50 + [float(n) for n in range(5, 105)]]))
    levels = levels_to_match(checkpoint(grey_quantiles=whole, grey_quantiles_body=body), 0.5)
    assert levels.share == 0.5
    assert levels.levels.shape == (1, KNOTS)
    assert levels.levels[0, 0] == 0
    assert np.array_equal(levels.levels[0, 1:], body[0])


def test_the_share_is_that_of_the_checkpoint_unless_one_is_given():
    whole, body = grey_quantiles(np.arange(9.0)[None])
    state = checkpoint(grey_quantiles=whole, grey_quantiles_body=body)
    assert levels_to_match(state, None) is None
    assert levels_to_match(state, 0.0) is None
    state["preprocessing"] = with_share({"crop": None}, 0.25)
    assert state["preprocessing"] == {"crop": None, SHARE: 0.25}
    assert levels_to_match(state, None).share == 0.25
    assert levels_to_match(state, 1.0).share == 1
    assert levels_to_match(state, 0.0) is None
    assert with_share(state["preprocessing"], 0) == {"crop": None}


@pytest.mark.parametrize("share", [-1.1, 1.5, "1", float("nan")])
def test_another_share_is_refused(share):
    with pytest.raises(UserError, match="--match_source is a share"):
        levels_to_match({"preprocessing": {SHARE: share}}, None)


@pytest.mark.parametrize("values", [None, {}, {"grey_quantiles_body": np.full((1, 256), np.nan)}])
def test_a_network_that_does_not_tell_its_source_s_levels_is_refused(values):
    state = {} if values is None else checkpoint(**values)
    with pytest.raises(UserError, match="has no source bundle.*leave --match_source out"):
        levels_to_match(state, 1.0)
