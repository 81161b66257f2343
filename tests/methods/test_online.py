"""Online adaptation: each rule against its formula written out in float64, the reset, the order of the patients."""

import math

import pytest
import torch
from conftest import CROSS_ENTROPY
from test_methods import ENTROPY, make, moved, train
from torch.func import functional_call

import main as program
from datasets.sampling import PatientByPatient
from datasets.streams import Batch
from methods.agreement import self_agreement
from methods.base import METHODS
from methods.climb import climb
from methods.pixel_filters import (
    certainty_weight,
    mean_over,
    patch_order,
    pixel_entropy,
    probability_fall,
    reordered,
    sure_pixels,
)
from methods.starting_point import Collapse, StartingPoint
from nets.checkpoint_files import load_checkpoint
from processes.errors import UserError
from tests.modes import Watch
from tests.tools.chaos import ask_to_stop, before_call, differences

SGD = ("--optimiser", "sgd", "--momentum", "0", "--l_rate", "0.5")


def never():
    raise AssertionError("nobody asked for it")


@pytest.fixture
def exact(sites):
    """A method on the smallest network with batch norms, in float64, and a batch that it is unsure of in parts."""

    def build(*flags):
        method, _ = make(sites, "online", ENTROPY, *SGD, *flags, network="Dimwit:nG=3")
        method.net.double()
        method.__init__(method.net, method.loss, method.settings)  # its copies of the weights in float64, too
        method.begin_epoch(0)
        image = torch.randn(3, 1, 9, 10, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        return method, Batch(3 * image, [None], [None], torch.arange(3))

    return build


def entropies(p):
    """(B, K, W, H) probabilities -> (B, W, H), class by class."""
    return sum(-p[:, k] * p[:, k].log() for k in range(p.shape[1]))


def network(method, image):
    """The probabilities as a function of the parameters, with batch statistics and no memory."""
    net, fresh = method.net, {name: value.clone() for name, value in method.net.named_buffers()}
    return lambda parameters: functional_call(net, parameters | fresh, (image,)).softmax(1)


def parameters_of(method):
    return {name: value.detach().clone().requires_grad_() for name, value in method.net.named_parameters()}


def gradient(loss, parameters):
    return dict(zip(parameters, torch.autograd.grad(loss, [*parameters.values()]), strict=True))


def assert_moved_to(method, expected):
    for name, value in method.net.named_parameters():
        torch.testing.assert_close(value.detach(), expected[name].detach(), rtol=1e-9, atol=1e-11)


# -- the rules --------------------------------------------------------------------------------------------------------


def test_sar_is_the_formula_written_out(exact):
    method, batch = exact("--online", "sar")
    theta, p_of, limit = parameters_of(method), network(method, batch.image), 0.4 * math.log(2)
    h = entropies(p_of(theta))
    kept = [tuple(at) for at in torch.nonzero(h < limit).tolist()]
    g = gradient(sum(h[at] for at in kept) / len(kept), theta)
    length = math.sqrt(sum(float((each**2).sum()) for each in g.values()))
    up = {name: (value + 0.05 * g[name] / length).detach().requires_grad_() for name, value in theta.items()}
    h_up = entropies(p_of(up))
    both = [at for at in kept if h_up[at] < limit]
    assert 0 < len(both) < len(kept) < h.numel()
    loss = sum(h_up[at] for at in both) / len(both)
    g_up = gradient(loss, up)
    terms, logits = method.step({"target": batch})
    torch.testing.assert_close(logits.softmax(1), p_of(theta).detach())
    assert terms["tot"].item() == pytest.approx(loss.item(), rel=1e-9)
    assert terms["kept"].item() == pytest.approx(len(both) / h.numel())
    assert_moved_to(method, {name: theta[name] - 0.5 * g_up[name] for name in theta})


def test_eata_is_the_formula_written_out(exact):
    """Two steps: in the first the springs are where they began, in the second they pull."""
    method, batch = exact("--online", "eata", "--fisher", "30")
    theta, p_of, limit = parameters_of(method), network(method, batch.image), 0.4 * math.log(2)
    origin, squares = {name: value.detach().clone() for name, value in theta.items()}, []
    for _ in range(2):
        p = p_of(theta)
        g = gradient(-p.max(1).values.log().mean(), theta)
        squares.append({name: each**2 for name, each in g.items()})
        firm = {name: sum(each[name] for each in squares) / len(squares) for name in theta}
        p = p_of(theta)
        h = entropies(p)
        kept = [tuple(at) for at in torch.nonzero(h < limit).tolist()]
        sure = sum(h[at] * math.exp(limit - h[at].item()) for at in kept) / len(kept)
        held = 30 * sum((firm[name] * (theta[name] - origin[name]) ** 2).sum() for name in theta)
        g = gradient(sure + held, theta)
        terms, _ = method.step({"target": batch})
        assert terms["tot"].item() == pytest.approx((sure + held).item(), rel=1e-9)
        assert terms["held"].item() == pytest.approx(held.item(), rel=1e-9, abs=1e-15)
        theta = {name: (theta[name] - 0.5 * g[name]).detach().requires_grad_() for name in theta}
        assert_moved_to(method, theta)
    assert held > 0
    method.begin_epoch(1)
    method.step({"target": batch})
    assert method.springs.measured == 2  # in the first round alone


def mixed_by_hand(image, order, grid=4):
    """An image (W, H) cut into 4 x 4 patches, of which number i of the result is number order[i]; also the rest."""
    w, h = image.shape[0] // grid, image.shape[1] // grid
    result = image.clone()
    for new, old in enumerate(order):
        (a, b), (c, d) = divmod(new, grid), divmod(old, grid)
        result[a * w : a * w + w, b * h : b * h + h] = image[c * w : c * w + w, d * h : d * h + h]
    return result


def test_deyo_is_the_formula_written_out(exact):
    method, batch = exact("--online", "deyo")
    method.begin_step(0, seed=11)
    theta, p_of, n = parameters_of(method), network(method, batch.image), 2
    order = torch.randperm(16, generator=torch.Generator().manual_seed(11)).tolist()
    shuffled = torch.stack([mixed_by_hand(image[0], order)[None] for image in batch.image])
    back = [order.index(patch) for patch in range(16)]
    p, p_mixed = p_of(theta), network(method, shuffled)(theta).detach()
    p_back = torch.stack([torch.stack([mixed_by_hand(each, back) for each in image]) for image in p_mixed])
    h, total, kept = entropies(p), 0.0, 0
    for at in torch.nonzero(h < 0.5 * math.log(n)).tolist():
        b, i, j = at
        label = int(p[b, :, i, j].argmax())
        fall = p[b, label, i, j].item() - p_back[b, label, i, j].item()
        if fall > 0.2:
            weight = math.exp(0.4 * math.log(n) - h[b, i, j].item()) + math.exp(fall)
            total, kept = total + weight * h[b, i, j], kept + 1
    assert 0 < kept < h.numel()
    g = gradient(total / kept, theta)
    terms, _ = method.step({"target": batch})
    assert terms["tot"].item() == pytest.approx((total / kept).item(), rel=1e-9)
    assert terms["kept"].item() == pytest.approx(kept / h.numel())
    assert_moved_to(method, {name: theta[name] - 0.5 * g[name] for name in theta})


def test_gradients_that_overflow_move_nothing_and_make_no_spring_firm(exact):
    """As the first ones in fp16, whose scale is too large."""
    method, _ = exact("--online", "sar")
    before = [parameter.detach().clone() for parameter in method.learnt]
    for number, parameter in enumerate(method.learnt):
        parameter.grad = torch.full_like(parameter, (torch.inf, torch.nan, 2.0)[number % 3])
    assert all(torch.equal(a, b) for a, b in zip(before, climb(method.learnt), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, method.learnt, strict=True))
    method.springs.measure(torch.tensor(4.0))
    assert [float(each.max()) for each in method.springs.firmness[:3]] == [0, 0, 0.25]


@pytest.mark.parametrize("rule", ["sar", "eata", "deyo"])
def test_a_step_remembers_the_statistics_of_its_images_once(exact, rule):
    """Whatever passes it makes: with --bn_stats refresh they are those of the batch."""
    method, batch = exact("--online", rule, "--bn_stats", "refresh")
    seen = []
    norm = method.norms[0]
    norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().mean((0, 2, 3))))
    method.step({"target": batch})
    own = seen[{"sar": 0, "eata": 1, "deyo": 1}[rule]]
    torch.testing.assert_close(norm.running_mean, own)
    assert norm.num_batches_tracked == 1


def test_a_step_without_a_pixel_that_is_sure_changes_nothing(exact):
    method, batch = exact("--online", "sar")
    torch.nn.init.zeros_(method.net.classifier.weight)
    torch.nn.init.zeros_(method.net.classifier.bias)
    before = [parameter.detach().clone() for parameter in method.net.parameters()]
    terms, _ = method.step({"target": batch})
    assert terms["kept"] == terms["tot"] == 0
    assert all(torch.equal(a, b) for a, b in zip(before, method.net.parameters(), strict=True))


def test_the_weight_of_the_loss_is_that_of_the_entropy(sites):
    totals = []
    for weight in (1, 3):
        method, streams = make(sites, "online", f"[('SelfEntropy', {{}}, {weight})]", "--l_rate", "0")
        totals.append(train(method, streams)[0])
    assert totals[1] == pytest.approx(3 * totals[0], rel=1e-5)  # float32


# -- filters ----------------------------------------------------------------------------------------------------------


def test_filters_on_numbers_done_by_hand():
    p = torch.tensor([[0.9, 0.1], [0.5, 0.5], [0.99, 0.01]], dtype=torch.float64)
    logits = p.log().T[None]  # 1 k n
    h = pixel_entropy(logits)
    assert h[0].tolist() == pytest.approx([0.3250830, 0.6931472, 0.0560015], abs=1e-6)
    assert sure_pixels(h, 2)[0].tolist() == [False, False, True]  # 0.4 log 2 is 0.277
    assert sure_pixels(h, 2, 0.5)[0].tolist() == [True, False, True]  # 0.347
    assert mean_over(h, sure_pixels(h, 2, 0.5)).item() == pytest.approx((0.3250830 + 0.0560015) / 2, abs=1e-6)
    assert mean_over(h, h > 9).item() == 0
    assert certainty_weight(h, 2)[0, 2].item() == pytest.approx(math.exp(0.2772589 - 0.0560015), abs=1e-6)
    mixed = torch.tensor([[0.6, 0.4], [0.2, 0.8], [1.0, 1e-9]], dtype=torch.float64).log().T[None]
    assert probability_fall(logits, mixed)[0].tolist() == pytest.approx([0.3, 0.3, -0.01], abs=1e-6)


@pytest.mark.parametrize("size", [(8, 12), (9, 14), (3, 5), (4, 5, 9)])
def test_patches_change_places_as_a_whole_and_what_is_left_over_stays(size):
    order = patch_order(size, torch.Generator().manual_seed(0))
    assert sorted(order.tolist()) == list(range(math.prod(size)))
    places = torch.arange(math.prod(size)).view(1, 1, *size)
    mixed = reordered(places, order)
    assert torch.equal(reordered(mixed, order.argsort()), places)
    grid = [min(4, n) for n in size]
    lengths = [n // parts for n, parts in zip(size, grid, strict=True)]
    inner = mixed[0, 0][tuple(slice(0, parts * n) for parts, n in zip(grid, lengths, strict=True))]
    for axis, length in enumerate(lengths):  # within a patch neighbours stay neighbours
        steps = inner.diff(dim=axis)
        within = torch.arange(1, inner.shape[axis]) % length != 0
        stride = math.prod(size[axis + 1 :])
        assert (steps.index_select(axis, within.nonzero().flatten()) == stride).all()
    rest = torch.ones(size, dtype=torch.bool)
    rest[tuple(slice(0, n) for n in inner.shape)] = False
    assert torch.equal(mixed[0, 0][rest], places[0, 0][rest])
    assert not torch.equal(mixed, places)


# -- back to the start ------------------------------------------------------------------------------------------------


def test_the_average_of_the_loss_resets_as_in_the_formula():
    """From 1: 0.9 · 1 + 0.1 · 0 = 0.9, then 0.81 < 0.85. A step that kept no pixel does not count."""
    net = torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.BatchNorm1d(1))
    optimiser = torch.optim.Adam(net.parameters(), 0.1, fused=True)
    point, start = StartingPoint(net, optimiser, 0.85), {name: v.clone() for name, v in net.state_dict().items()}

    def step(loss, counts=True):
        optimiser.zero_grad()
        net(torch.randn(4, 2)).pow(2).sum().backward()
        optimiser.step()
        return point.after_step(torch.tensor(loss), torch.tensor(counts), never).item()

    assert [step(1.0), step(0.0, counts=False), step(0.0)] == [0, 0, 0]
    assert point.collapse.average.item() == pytest.approx(0.9)
    assert not torch.equal(net[0].weight, start["0.weight"])
    assert step(0.0) == 1
    assert all(torch.equal(value, start[name]) for name, value in net.state_dict().items())
    assert all(not each.any() for moments in optimiser.state.values() for each in moments.values())
    assert point.collapse.average.isnan()
    assert step(2.0) == 0  # begun anew
    assert point.collapse.average.item() == 2


def test_without_a_limit_nothing_is_kept_and_nothing_goes_back():
    net = torch.nn.Linear(2, 1)
    point = StartingPoint(net, None, 0.0)
    assert point.start == {}
    assert point.after_step(torch.tensor(-1.0), torch.tensor(True), never) == 0


def test_five_agreements_are_compared_with_the_five_before():
    """A fall as large as told is none yet. After one all begins anew."""
    collapse = Collapse(0.0, 0.125, torch.device("cpu"))

    def steps(*agreements):
        return [
            bool(collapse.seen(torch.tensor(1.0), torch.tensor(True), lambda each=each: torch.tensor(each)))
            for each in agreements
        ]

    assert steps(*[0.75] * 5, *[0.625] * 5) == [False] * 10
    assert steps(0.5625) == [False]  # 0.725, then 0.6125
    assert steps(0.25) == [True]  # 0.7, then 0.5375
    assert collapse.agreements.isnan().all()
    assert steps(*[0.75] * 5, *[0.125] * 4) == [False] * 9
    assert steps(0.125) == [True]


def test_the_agreement_is_that_of_passes_that_lack_features(exact):
    method, batch = exact()
    method.net.eval()
    generator = torch.Generator().manual_seed(5)
    found = self_agreement(method.net, batch.image, method.settings, generator)
    said, maps = method.net.with_features(batch.image)
    drawn = torch.rand(10, maps.shape[1], generator=torch.Generator().manual_seed(5)).tolist()
    for image in range(3):
        same = 0
        for lots in drawn:
            kept = torch.tensor([0 if lot < 0.4 else 1 / 0.6 for lot in lots], dtype=torch.float64)
            lacking = method.net.on_image(method.net.classifier(maps * kept.view(1, -1, 1, 1)), batch.image)
            same += (lacking.argmax(1) == said.argmax(1))[image].double().mean().item() / 10
        assert found[image].item() == pytest.approx(same)
    assert 0 < found.min() < 1


def test_a_network_that_stops_agreeing_with_itself_goes_back(exact):
    method, batch = exact("--online", "eata", "--reset_fall", "0.02")
    start = {name: value.clone() for name, value in method.net.state_dict().items()}
    told = iter([0.9] * 5 + [0.8] * 5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("methods.online.self_agreement", lambda *_: torch.full((3,), next(told)))
        resets = [method.step({"target": batch})[0]["reset"].item() for _ in range(10)]
    assert resets == [0] * 9 + [1]
    assert all(torch.equal(value, start[name]) for name, value in method.net.state_dict().items())


def test_a_run_that_collapses_begins_anew(sites):
    """A limit above every entropy: each step goes back."""
    method, streams = make(sites, "online", ENTROPY, "--reset_below", "9")
    assert not moved(method, streams)


# -- patients, flags, resume ------------------------------------------------------------------------------------------


def test_a_batch_is_one_patient_s_slices_or_an_equal_part_of_them():
    sampler = PatientByPatient(["b", "b", "a", "b", "a", "b", "b"], batch_size=3)
    assert [rows.tolist() for rows in sampler(torch.Generator())] == [[0, 1, 3], [5, 6], [2, 4]]
    assert len(sampler) == 3


def test_the_patients_come_in_their_order_in_every_round(sites):
    _, streams = make(sites, "online", ENTROPY, "--batch_size", "3")
    stream = streams["target"]
    for epoch in (0, 1):
        seen = [[stream.slices.patients[row] for row in batch.rows] for batch, _ in stream.epoch(epoch)]
        assert [set(each) for each in seen] == [{name} for name in sorted(set(stream.slices.patients)) for _ in "12"]


@pytest.mark.parametrize("losses", [CROSS_ENTROPY, "[('SelfEntropy', {'weights': [1, 2]}, 1)]"])
def test_other_losses_are_refused(sites, losses):
    with pytest.raises(UserError, match="SelfEntropy|needs it"):
        make(sites, "online", losses)


OUT_OF_RANGE = (("--fisher", "-1"), ("--reset_below", "-1"), ("--reset_fall", "-1"))


@pytest.mark.parametrize("flags", [("--trainable", "none"), *OUT_OF_RANGE])
def test_settings_that_make_no_sense_are_refused(sites, flags, monkeypatch):
    monkeypatch.setattr(METHODS["online"], "example", ())
    with pytest.raises(UserError, match="nothing to learn|from 0 up"):
        make(sites, "online", ENTROPY, *flags)


def test_batch_norm_alone_moves_unless_told_otherwise(sites, monkeypatch):
    monkeypatch.setattr(METHODS["online"], "example", ())
    method, streams = make(sites, "online", ENTROPY)
    norms = {id(p) for norm in method.norms for p in norm.parameters()}
    learnt = {name for name, p in method.net.named_parameters() if id(p) in norms}
    changed = moved(method, streams)
    assert changed & learnt
    assert {name for name, _ in method.net.named_parameters()} & changed <= learnt


@pytest.mark.parametrize("rule", ["sar", "eata", "deyo"])
def test_no_step_looks_at_a_value(exact, rule):
    method, batch = exact("--online", rule, "--reset_below", "0.1", "--reset_fall", "0.02")
    with Watch():
        method.step({"target": batch})


@pytest.mark.parametrize("rule", ["sar", "eata", "deyo"])
def test_a_run_goes_on_with_the_same_bits(sites, tmp_path, monkeypatch, rule):
    def argv(run, *more):
        flags = f"--target_dataset {sites[1]} --workdir {tmp_path / run} --n_class 2 --network Dimwit --n_epoch 2 --cpu"
        where = ["--target_folders", "[('IMG', png_transform, False), ('GT', gt_transform, False)]"]
        return [*flags.split(), *where, "--grp_regex", r"(Case\d+)_(\d+)", "--l_rate", "0.1", "--resume", *more]

    program.main(argv("source", "--target_losses", CROSS_ENTROPY))
    more = ("--method", "online", "--online", rule, "--target_losses", ENTROPY, "--reset_below", "0.2")
    more += ("--reset_fall", "0.02", "--trainable", "all", "--model_weights", str(tmp_path / "source" / "last.pkl"))
    program.main(argv("whole", *more))
    kind = METHODS["online"]
    for _ in range(2):  # in the first round, and, three steps after that, in the second
        with monkeypatch.context() as patch:
            patch.setattr(kind, "step", before_call(3, kind.step, ask_to_stop))
            with pytest.raises(SystemExit):
                program.main(argv("stopped", *more))
    program.main(argv("stopped", *more))
    assert differences(tmp_path / "whole", tmp_path / "stopped") == []
    assert {"average", "agreements", "springs"} <= load_checkpoint(tmp_path / "whole" / "last.pkl")["method"].keys()
