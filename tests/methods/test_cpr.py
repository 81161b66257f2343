"""Refined pseudo labels: what the affinity learns from, what is believed after the walk, and when."""

import copy

import pytest
import torch

import methods.cpr as module
import methods.denoising as formulas
from datasets.streams import Batch
from methods.affinity import label_of_cells, to_cells, to_pixels
from processes.errors import UserError
from tests.methods.test_denoised import CROSS_ENTROPY, Stream, network
from tests.methods.test_pseudo_label import build
from tests.modes import Watch

LOOSE = ("--quantile", "0.1", "--most_spread", "0.2")


def make(*flags, method="cpr", name="Dimwit:nG=6"):
    return build(*flags, method=method, losses=CROSS_ENTROPY, net=network(name))


@pytest.mark.parametrize(
    ("name", "shape"), [("Dimwit:nG=6", (8, 10)), ("UNet:nG=4", (9, 10)), ("UNet3D:width=2,depth=1", (4, 5, 6))]
)
def test_what_is_believed_is_what_the_walk_makes_of_the_denoised_labels(name, shape):
    method, plain, stream = make(*LOOSE, name=name), make(*LOOSE, method="denoised", name=name), Stream(shape)
    for each in (method, plain):
        each.meet({"target": stream})
    torch.testing.assert_close(method.prototypes, plain.prototypes)
    refined = []
    for batch in stream.batches:
        passes, features = plain.passes(batch.image)
        walked = method.affinity.walk(to_cells(features), to_cells(passes.mean), 4)
        confidence, label = to_pixels(walked, shape).max(1)
        refined.append((formulas.Guess(label, confidence, 0 * confidence), features))
    counts = sum(formulas.counted_bins(guess, 2).sum(0) for guess, _ in refined)
    assert torch.equal(method.bins, formulas.quantile_bins(counts, 0.1))
    for batch, (guess, features) in zip(stream.batches, refined, strict=True):
        believed = formulas.believed(guess, features, plain.prototypes, method.bins, 0.2)
        assert torch.equal(method.pseudo_label(batch), torch.where(believed, guess.label, 2))
    first, (refined_first, _) = plain.guess(stream.batches[0].image)[0], refined[0]
    assert not torch.equal(refined_first.label, first.label)


def test_the_affinity_learns_from_the_denoised_labels_of_all_images(monkeypatch):
    shown, learn = [], module.Affinity.loss
    monkeypatch.setattr(module.Affinity, "loss", lambda self, *args: shown.append(args) or learn(self, *args))
    method, plain, stream = make(*LOOSE), make(*LOOSE, method="denoised"), Stream()
    for each in (method, plain):
        each.meet({"target": stream})
    assert len(shown) == 16 * 2
    for number, (cells, label, n_class) in enumerate(shown):
        batch = stream.batches[number % 2]
        assert torch.equal(label, label_of_cells(plain.pseudo_label(batch), 2))
        torch.testing.assert_close(cells, to_cells(plain.guess(batch.image)[1]))
        assert n_class == 2


def test_a_run_that_starts_again_refines_alike_and_draws_the_same_numbers():
    """What is learnt before the first step is not in a checkpoint."""
    made = []
    for _ in range(2):
        method = make(*LOOSE)
        torch.manual_seed(7)
        method.meet({"target": Stream()})
        made.append((method, torch.rand(1)))
    (one, first), (other, second) = made
    assert torch.equal(first, second)
    torch.manual_seed(7)
    assert torch.equal(first, torch.rand(1))
    for ours, theirs in zip(one.affinity.parameters(), other.affinity.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    again = copy.deepcopy([*one.affinity.parameters()])
    one.meet({"target": Stream()})
    assert all(torch.equal(a, b) for a, b in zip(again, one.affinity.parameters(), strict=True))


def test_no_step_looks_at_a_value_or_moves_the_affinity():
    method, stream = make(*LOOSE, "--optimiser", "sgd"), Stream()
    method.meet({"target": stream})
    before = copy.deepcopy(method.affinity.state_dict())
    with Watch():
        method.step({"target": stream.batches[0]})
    assert all(torch.equal(value, before[name]) for name, value in method.affinity.state_dict().items())


def test_the_label_of_an_image_depends_on_that_image_alone():
    method, stream = make(*LOOSE), Stream()
    method.meet({"target": stream})
    batch = stream.batches[0]
    whole = method.pseudo_label(batch)
    alone = [method.pseudo_label(Batch(batch.image[i : i + 1], [None], [None], torch.arange(1))) for i in range(3)]
    assert torch.equal(torch.cat(alone), whole)


@pytest.mark.parametrize("flags", [("--radius", "1"), ("--walk", "0"), ("--walk", "65"), ("--quantile", "1")])
def test_numbers_out_of_range_are_refused(flags):
    with pytest.raises(UserError, match=f"{flags[0]} is {flags[1]}"):
        make(*flags)
