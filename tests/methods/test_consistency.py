"""Consistency: a view and its way back, the loss against its formula, what a step compares."""

import numpy as np
import pytest
import torch
from test_methods import ENTROPY, make

from methods.consistency import View, disagreement, random_view
from processes.errors import UserError

SIZE = (30, 24)


def view_of(*size, count=2, strength=0.2, seed=0):
    return random_view(count, size, strength, torch.Generator().manual_seed(seed))


def bump(at, size=SIZE, width=3.0):
    w, h = np.mgrid[: size[0], : size[1]]
    image = np.exp(-((w - at[0]) ** 2 + (h - at[1]) ** 2) / (2 * width**2))
    return torch.from_numpy(image).float()[None, None].expand(2, 1, -1, -1)


def places_of(grid, size):
    """A grid of grid_sample in pixels (B, W, H, 2), along W and H."""
    along_h, along_w = grid.unbind(-1)
    return torch.stack([((along_w + 1) * size[0] - 1) / 2, ((along_h + 1) * size[1] - 1) / 2], -1)


def test_the_way_back_is_the_inverse_of_the_way_there():
    """Where the view reads q for p, the way back reads p for q."""
    view = view_of(*SIZE, strength=0.3)
    there, back = (places_of(grid, SIZE) for grid in (view.there, view.back))
    corner, step_w, step_h = back[:, 0, 0], back[:, 1, 0] - back[:, 0, 0], back[:, 0, 1] - back[:, 0, 0]
    for w, h in ((0, 0), (29, 3), (12, 20)):
        q = there[:, w, h]
        again = corner + q[:, :1] * step_w + q[:, 1:] * step_h
        assert torch.allclose(again, torch.tensor([[float(w), float(h)]] * 2), atol=1e-3)


def test_what_a_view_moved_is_brought_back_and_what_it_did_not_see_is_0():
    view, image = view_of(*SIZE), bump((14, 11))
    seen = view.image(image)
    assert not torch.allclose(seen, image, atol=0.1)
    assert torch.allclose(view.undo(seen), image, atol=0.05)
    assert torch.allclose(view_of(*SIZE, strength=1e-7).image(image), image, atol=1e-4)
    whole = view.undo(torch.ones_like(image))
    assert whole[:, :, 10:18, 8:15].min().item() == pytest.approx(1)
    assert whole.min() < 0.5


def test_the_numbers_that_are_drawn_stay_below_the_strength():
    there = places_of(view_of(*SIZE, count=200, strength=0.1).there, SIZE)
    across, middle = there[:, 1, 0] - there[:, 0, 0], there.mean((1, 2))
    angle, size = torch.atan2(across[:, 1], across[:, 0]).abs(), 1 / across.norm(dim=1)
    assert 0.09 < angle.max() <= 0.1 + 1e-4
    assert 0.09 < size.log().abs().max() <= 0.1 + 1e-3
    shift = (middle - torch.tensor([14.5, 11.5])).abs() / torch.tensor(SIZE)
    assert (shift.amax(0) <= 0.1 + 1e-4).all()
    assert (shift.amax(0) > 0.09).all()


def test_volumes_are_moved_within_their_planes():
    view, image = view_of(2, 4, *SIZE), torch.stack([bump((14, 11)), bump((10, 12))], 2)
    moved = view.image(image)
    for plane in range(2):
        assert torch.allclose(moved[:, :, plane], view.image(image[:, :, plane]), atol=1e-6)


def test_the_loss_is_the_formula():
    a, b = (torch.rand(2, 3, 4, 5, dtype=torch.float64).softmax(1) for _ in range(2))
    common = torch.rand(2, 1, 4, 5, dtype=torch.float64)
    dice = []
    for image in range(2):
        for k in (1, 2):
            above = below = 0.0
            for at in np.ndindex(4, 5):
                m = common[(image, 0, *at)].item()
                x, y = a[(image, k, *at)].item() * m, b[(image, k, *at)].item() * m
                above, below = above + 2 * x * y, below + (x + y) ** 2 / 2
            dice.append(above / below)
    assert disagreement(a, b, common).item() == pytest.approx(1 - np.mean(dice))
    assert disagreement(a, a, torch.ones_like(common)).item() == pytest.approx(0)
    first = a.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: disagreement(x, b, common), first)


def test_a_step_compares_two_views_of_the_same_image(sites):
    method, streams = make(sites, "consistency", ENTROPY, "--bn_stats", "freeze", "--strength", "0.1")
    batch, _ = next(streams["target"].epoch(0))
    method.begin_epoch(0)
    method.begin_step(0, seed=3)
    logits, terms = method.learn(batch)
    generator, brought = torch.Generator().manual_seed(3), []
    for _ in range(2):
        view = random_view(len(batch.rows), batch.image.shape[1:], 0.1, generator)
        brought.append(view.undo(method.net(view.image(batch.image)).softmax(1)))
    seen = [view_seen(seed=3, count=len(batch.rows), number=number) for number in range(2)]
    wanted = disagreement(*brought, seen[0] * seen[1])
    assert terms["tot"].item() == pytest.approx(wanted.item(), abs=1e-5)
    assert terms["tot"].item() > 0
    assert torch.allclose(logits, brought[0], atol=1e-5)
    method.begin_step(0, seed=4)
    assert method.learn(batch)[1]["tot"].item() != terms["tot"].item()


def view_seen(seed, count, number):
    """What the view of this number shows of images of 24 x 20."""
    generator = torch.Generator().manual_seed(seed)
    views = [random_view(count, (1, 24, 20), 0.1, generator) for _ in range(2)]
    return views[number].undo(torch.ones(count, 1, 24, 20))


def test_a_part_of_a_batch_is_moved_as_in_the_whole():
    view, image = view_of(*SIZE, count=2), bump((14, 11))
    part = View(view.there[1:], view.back[1:])
    assert torch.equal(part.image(image[1:]), view.image(image)[1:])


@pytest.mark.parametrize("strength", ["0", "1.5", "-0.1"])
def test_a_strength_that_cannot_be_is_refused(sites, strength):
    with pytest.raises(UserError, match="--strength is above 0 and at most 1"):
        make(sites, "consistency", ENTROPY, "--strength", strength)
