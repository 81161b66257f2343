"""Bayesian pseudo labels: the labels, the latent threshold, what a step learns from, and what it never looks at."""

import copy
import itertools
import math

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

import methods.pseudo_label as pseudo
import methods.thresholds as thresholds
from datasets.streams import Batch
from engine.arguments import get_args
from methods.base import METHODS
from methods.objective import LossSum
from methods.terms import Term, build_loss, parse_losses
from nets.probabilities import one_hot
from processes.errors import UserError
from processes.team import Team
from tests.modes import Watch
from utils import settings_of

SEGPL = "[('DiceLoss', {'idc': [1], 'smooth': 1}, 0.5), ('CrossEntropy', {'idc': [0, 1]}, 0.5)]"
AT_ONCE = ("--warmup_start", "0", "--warmup", "0")
LEARNT = ("--threshold", "learnt", *AT_ONCE)


class Toy(nn.Module):
    """A convolution and a classifier, of two or three axes."""

    def __init__(self, axes=2, n_class=2, width=6):
        super().__init__()
        torch.manual_seed(0)
        conv = nn.Conv2d if axes == 2 else nn.Conv3d
        self.body, self.classifier = conv(1, width, 3, padding=1), conv(width, n_class, 1)
        nn.init.normal_(self.classifier.weight)

    def with_features(self, image):
        features = self.body(image).relu()
        return self.classifier(features), features

    def forward(self, image):
        return self.with_features(image)[0]

    def parameter_groups(self):
        return [(list(self.parameters()), 1.0)]


def build(*flags, method="pseudo_label", losses=SEGPL, net=None, team=None, n_class=2):
    kind = METHODS[method]
    argv = ["--target_dataset", "x", "--workdir", "x", "--grp_regex", "x", "--target_folders", "x", "--cpu"]
    argv += ["--target_losses", losses, "--n_class", str(n_class), "--method", method, "--n_epoch", "10", *flags]
    args = get_args([*argv, *(["--model_weights", "given"] if kind.needs_weights else [])])
    specs = parse_losses(losses)
    loss = LossSum([Term(build_loss(spec), spec.weight) for spec in specs])
    torch.manual_seed(0)
    made = kind(net or Toy(n_class=n_class), loss, settings_of(kind.Settings, vars(args)), *([team] if team else []))
    made.begin_epoch(0)
    return made


def images(count, seed, shape=(8, 10), n_class=2):
    """Noise, brighter where the label is higher; and the label."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(n_class, (count, *shape), generator=generator)
    return torch.randn(count, 1, *shape, generator=generator) / 3 + label.unsqueeze(1), label


def make_batches(shape=(8, 10), n_class=2, n_loss=2):
    """Two labelled images, three without labels."""
    (image, label), (other, _) = images(2, 1, shape, n_class), images(3, 2, shape, n_class)
    known = Batch(image, [label] * n_loss, [None] * n_loss, torch.arange(2))
    return {"target": known, "unlabelled": Batch(other, [], [], torch.arange(3))}


def costs(method, batch, target):
    """L_sup of the network as it is on a batch."""
    return method.loss(method.net(batch.image), [target] * 2, [None] * 2)["tot"]


def gradients(method):
    return [None if p.grad is None else p.grad.clone() for p in method.net.parameters()]


# -- formulas -------------------------------------------------------------------------------------------------


def test_two_classes_are_the_published_comparison():
    f = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
    probs = torch.stack([torch.zeros_like(f), f], 1).softmax(1)
    for threshold in (0.3, 0.5, 0.9):
        assert torch.equal(pseudo.pseudo_label(probs, torch.tensor(threshold)), (f.sigmoid() > threshold).long())


def test_of_several_classes_the_most_probable_of_the_foreground_must_exceed_the_threshold():
    probs = torch.tensor([[0.45, 0.35, 0.20], [0.20, 0.10, 0.70], [0.05, 0.48, 0.47], [0.90, 0.04, 0.06]])
    label = pseudo.pseudo_label(probs.T[None], torch.tensor(0.34))
    assert label.tolist() == [[1, 2, 1, 0]]
    assert pseudo.pseudo_label(probs.T[None], torch.tensor(0.5)).tolist() == [[0, 2, 0, 0]]


def test_the_kl_is_the_one_of_two_normal_distributions():
    mean, sd = torch.rand(2, 4, 7, generator=torch.Generator().manual_seed(0)) + 0.1
    ours, prior = thresholds.Gaussian(mean, sd), thresholds.Gaussian(torch.tensor(0.7), torch.tensor(0.15))
    assert torch.allclose(ours.kl(prior), kl_divergence(Normal(mean, sd), Normal(0.7, 0.15)), rtol=1e-4)
    assert prior.kl(prior).item() == 0


@pytest.mark.parametrize(
    ("share", "start", "length", "weight"),
    [(0.4, 0.4, 0.1, 0), (0.45, 0.4, 0.1, 0.5), (0.5, 0.4, 0.1, 1), (0.9, 0.4, 0.1, 1), (0, 0, 0, 1), (0.3, 0.4, 0, 0)],
)
def test_what_is_without_labels_is_warmed_up(share, start, length, weight):
    assert pseudo.ramp_up(share, start, length) == pytest.approx(weight)


def test_a_straight_through_label_is_the_label_with_the_gradient_of_a_soft_comparison():
    probs = torch.randn(2, 4, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).softmax(1)
    threshold = torch.tensor(0.35, dtype=torch.float64, requires_grad=True)
    shares = pseudo.straight_through(probs, threshold)
    assert torch.equal(shares, one_hot(pseudo.pseudo_label(probs, threshold), 4, torch.float64))
    (gradient,) = torch.autograd.grad(shares[:, 0].sum(), threshold)
    believed = ((probs[:, 1:].amax(1) - 0.35) / thresholds.SOFTNESS).sigmoid()
    assert gradient.item() == pytest.approx((believed * (1 - believed)).sum().item() / thresholds.SOFTNESS)
    assert torch.autograd.grad(pseudo.straight_through(probs, threshold).sum(), threshold)[0].abs() < 1e-12


# -- a step -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "n_class"), [((8, 10), 2), ((8, 10), 4), ((4, 6, 8), 2), ((4, 6, 8), 3)])
def test_the_total_is_the_published_sum(shape, n_class):
    losses = "[('DiceLoss', {'smooth': 1}, 0.5), ('CrossEntropy', {}, 0.5)]"
    flags = ("--beta", "2", "--alpha", "3", "--threshold_value", "0.4", "--temperature", "2")
    method = build(*flags, losses=losses, net=Toy(len(shape), n_class), n_class=n_class)
    batches = make_batches(shape, n_class)
    method.begin_step(4.5)  # of 10 epochs: in the middle of the warm-up
    probs = (method.net(batches["unlabelled"].image) / 2).softmax(1)
    label = pseudo.pseudo_label(probs, torch.tensor(0.4))
    known = costs(method, batches["target"], batches["target"].targets[0]).item()
    unknown = 2 * 1.5 * costs(method, batches["unlabelled"], label).item()
    terms, logits = method.step(batches)
    assert list(terms) == ["tot", "DiceLoss", "CrossEntropy", "unlabelled", "threshold", "pseudo_share"]
    assert 0 < (label > 0).float().mean() < 1
    assert terms["pseudo_share"].item() == pytest.approx((label > 0).float().mean().item())
    assert terms["unlabelled"].item() == pytest.approx(unknown, rel=1e-4)
    assert terms["tot"].item() == pytest.approx(known + unknown, rel=1e-4)
    assert terms["threshold"].item() == pytest.approx(0.4)
    assert logits.shape == (2, n_class, *shape)


@pytest.mark.parametrize("prior_mu", [0.2, 0.7])
def test_the_learnt_threshold_is_a_mean_of_draws_unless_it_is_far_from_its_prior(prior_mu):
    """Of a head as it begins, which predicts means near 0 and deviations near 1."""
    method = build(*LEARNT, "--prior_mu", str(prior_mu))
    method.begin_step(0, seed=7)
    batches = make_batches()
    every = torch.cat([batch.image for batch in batches.values()])
    pooled = method.net.with_features(every)[1].mean((2, 3))
    mean, sd = method.module.head["mean"](pooled).relu(), (method.module.head["log_variance"](pooled) / 2).exp()
    drawn = (mean + sd * torch.randn(5, 256, generator=torch.Generator().manual_seed(7))).mean().item()
    expected = drawn if prior_mu == 0.2 else 0.7
    assert (abs(drawn - prior_mu) < 0.3) == (prior_mu == 0.2)
    kl = kl_divergence(Normal(mean, sd), Normal(prior_mu, 0.15)).sum(1).mean().item()
    label = (method.net(batches["unlabelled"].image).softmax(1)[:, 1] > expected).long()
    cost = costs(method, batches["unlabelled"], label).item()
    terms, _ = method.step(batches)
    assert terms["threshold"].item() == pytest.approx(expected, abs=1e-6)
    assert terms["kl"].item() == pytest.approx(0.1 * kl, rel=1e-4)
    assert terms["unlabelled"].item() == pytest.approx(cost, rel=1e-4)
    parts = sum(terms[name].item() for name in ("DiceLoss", "CrossEntropy", "unlabelled", "kl"))
    assert terms["tot"].item() == pytest.approx(parts, rel=1e-4)
    assert (terms["prior_mu"].item(), terms["prior_sd"].item()) == pytest.approx((prior_mu, 0.15))


def test_the_draw_depends_on_the_seed_of_the_step_alone():
    """Not on torch's own state, which differs between the processes of a team."""
    found = []
    for seed, state in ((1, 0), (1, 5), (2, 0)):
        method = build(*LEARNT, "--prior_mu", "0.2")
        method.begin_step(0, seed)
        torch.manual_seed(state)
        found.append(method.step(make_batches())[0]["threshold"].item())
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("flags", list(itertools.product("012", "012", "01", "01")))
def test_every_posterior_with_every_prior(flags):
    names = ("--post_mu", "--post_sd", "--pri_mu", "--pri_sd")
    method = build(*LEARNT, *itertools.chain(*zip(names, flags, strict=True)))
    batches = make_batches()
    every = torch.cat([batch.image for batch in batches.values()])
    confidence = method.net(every).softmax(1)[:, 1].mean().item()
    post_mu, post_sd, pri_mu, pri_sd = map(int, flags)
    mu_p = confidence if pri_mu else 0.7
    sd_p = min(mu_p, 1 - mu_p) / 2 if pri_sd else 0.15
    terms, _ = method.step(batches)
    assert all(math.isfinite(term) for term in terms.values())
    assert (terms["prior_mu"].item(), terms["prior_sd"].item()) == pytest.approx((mu_p, sd_p), rel=1e-4)
    assert ("mean" in method.module.head, "log_variance" in method.module.head) == (post_mu == 0, post_sd == 0)
    if post_mu and post_sd:
        mu_q = (confidence, 0.7)[post_mu - 1]
        sd_q = (min(mu_q, 1 - mu_q) / 2, 0.15)[post_sd - 1]
        kl = kl_divergence(*(Normal(torch.tensor(mu), sd) for mu, sd in ((mu_q, sd_q), (mu_p, sd_p)))).item()
        assert terms["kl"].item() == pytest.approx(0.1 * kl, rel=1e-3, abs=1e-3)
        assert abs(terms["threshold"].item() - mu_q) < sd_q or terms["threshold"].item() == pytest.approx(mu_p)


def published_inputs():
    """Of three images: a head's two outputs and the logits of four by five pixels, by formula."""
    b, d = torch.arange(3.0).view(3, 1), torch.arange(256.0).view(1, 256)
    head = {
        "mean": (0.3 + 0.2 * torch.sin(1 + b + 0.1 * d)).requires_grad_(),
        "log_variance": (-1 + 0.5 * torch.cos(2 * b + 0.05 * d)).requires_grad_(),
    }
    f = (1.5 * torch.sin(torch.arange(60.0).view(3, 4, 5))).requires_grad_()
    return head, f


# flags of posterior and prior; what kld_loss of EM-BPL-Semi-Seg gives: its value, the sums of its absolute gradient
# by the head's mean, by its log variance, and by the logits
PUBLISHED_KL = [
    ("0000", 2754.5178, (4527.7515, 2097.4541, 0.0)),
    ("0011", 612.43481, (893.07953, 708.87787, 952.22998)),
    ("1000", 1943.4987, (0.0, 2097.4541, 420.91251)),
    ("2010", 1943.4987, (0.0, 2097.4541, 420.91251)),
    ("0201", 1014.6941, (4527.7515, 0.0, 0.0)),
    ("2211", 0.47622895, (0.0, 0.0, 0.22886743)),
    ("1100", 1.1362028, None),  # whose published gradient lacks that of a logarithm
]


@pytest.mark.parametrize(("flags", "value", "gradient"), PUBLISHED_KL)
def test_the_kl_is_the_published_one_and_so_is_its_gradient_into_the_network(flags, value, gradient):
    names = ("--post_mu", "--post_sd", "--pri_mu", "--pri_sd")
    method = build(*LEARNT, "--threshold_moves", "network", *itertools.chain(*zip(names, flags, strict=True)))
    head, f = published_inputs()
    kl = method.draw_threshold([torch.stack([torch.zeros_like(f), f], 1)], head)["kl"]
    assert kl.item() == pytest.approx(value, rel=1e-5)
    if gradient is None:
        return
    found = torch.autograd.grad(kl, [*head.values(), f], allow_unused=True)
    assert [0 if each is None else each.abs().sum().item() for each in found] == pytest.approx(gradient, rel=1e-4)


def test_with_its_gradient_held_back_the_kl_does_not_reach_the_logits():
    method = build(*LEARNT, "--pri_mu", "1", "--pri_sd", "1")
    head, f = published_inputs()
    kl = method.draw_threshold([torch.stack([torch.zeros_like(f), f], 1)], head)["kl"]
    assert torch.autograd.grad(kl, f, allow_unused=True)[0] is None


@pytest.mark.parametrize("flags", [("0", "0"), ("0", "1"), ("2", "2"), ("1", "2")])
def test_the_published_draw_stays_where_it_falls_and_has_the_learnt_deviation(flags):
    """Far from a prior of 0.9 +- 0.02; held, it is the mean of the prior."""
    post = ("--post_mu", flags[0], "--post_sd", flags[1], "--prior_mu", "0.9", "--prior_sd", "0.02")
    head, f = published_inputs()
    logits = [torch.stack([torch.zeros_like(f), f], 1)]
    method = build(*LEARNT, *post, "--threshold_draw", "published")
    method.begin_step(0, seed=7)
    noise = torch.randn(3, 256, generator=torch.Generator().manual_seed(7))
    mean = (head["mean"].relu(), f.sigmoid().mean(), torch.tensor(0.9))[int(flags[0])]
    expected = (mean + noise * (head["log_variance"] / 2).exp()).mean().item()
    assert method.draw_threshold(logits, head)["threshold"].item() == pytest.approx(expected, rel=1e-5)
    assert abs(expected - 0.9) > 1e-3
    layer = method.module.head["log_variance"]
    assert all(p.requires_grad == (flags[1] == "0") for p in layer.parameters())
    method.step(make_batches())
    held = build(*LEARNT, *post)
    held.begin_step(0, seed=7)
    if flags == ("0", "0"):
        assert held.draw_threshold(logits, head)["threshold"].item() == pytest.approx(0.9)


def test_a_fresh_network_draws_a_threshold_near_0_as_published():
    """Where nearly everything is foreground: the reason for holding it to its prior."""
    for flags, low, high in ((("--threshold_draw", "published"), -0.2, 0.3), ((), 0.7, 0.7)):
        method = build(*LEARNT, *flags)
        assert low - 1e-6 <= method.step(make_batches())[0]["threshold"].item() <= high + 1e-6


def test_before_the_warm_up_it_is_supervised_learning():
    ours, plain = build("--threshold", "learnt"), build("--batch_u", "0")
    for method in (ours, plain):
        method.begin_step(3.9)
    ours.step(make_batches())
    plain.step({"target": make_batches()["target"]})
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(gradients(ours), gradients(plain), strict=True))


def test_without_images_without_labels_it_is_the_same_run():
    """To the bit, that of --method supervised."""
    ours, plain = build("--batch_u", "0", "--threshold", "learnt"), build(method="supervised")
    assert list(ours.demand(ours.settings).streams) == ["target"]
    assert ours.columns == plain.columns
    batch = {"target": make_batches()["target"]}
    for _ in range(3):
        found = [method.step(batch) for method in (ours, plain)]
    assert all(torch.equal(found[0][0][name], found[1][0][name]) for name in plain.columns)
    assert torch.equal(found[0][1], found[1][1])
    assert all(torch.equal(a, b) for a, b in zip(ours.net.parameters(), plain.net.parameters(), strict=True))


SIZES = {"pseudo_label": ("--batch_u", "4"), "self_training": ()}


def test_streams_and_their_batch_sizes():
    both, alone = (build(*flags, "--batch_size", "2", method=name) for name, flags in SIZES.items())
    assert both.demand(both.settings).streams == {"target": 2, "unlabelled": 4}
    assert alone.demand(alone.settings).streams == {"target": 2}


# -- steps that teach less ------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [("--conf_lower", "0.9"), ("--skip_empty", "1")])
def test_a_step_outside_the_limits_learns_from_the_ground_truth_alone(flags):
    """A threshold of 0.7, which is the prior's mean, below --conf_lower; pseudo labels with too little foreground."""
    method, batches = build(*LEARNT, *flags), make_batches()
    batches["target"].targets[:] = [torch.ones(2, 8, 10, dtype=torch.long)] * 2
    terms, _ = method.step(batches)
    assert terms["unlabelled"] == terms["kl"] == 0
    assert terms["tot"].item() == pytest.approx((terms["DiceLoss"] + terms["CrossEntropy"]).item())
    assert terms["tot"] > 0
    assert not any(layer.weight.grad.any() for layer in method.module.head.values())


def test_a_labelled_batch_without_enough_foreground_skips_the_whole_step():
    method, batches = build(*LEARNT, "--skip_empty", "0.2"), make_batches()
    label = torch.zeros(2, 8, 10, dtype=torch.long)
    label[:, 0] = 1  # a tenth, and a row that is to be ignored
    label[:, 1:3] = 255
    batches["target"].targets[:] = [label] * 2
    terms, _ = method.step(batches)
    assert all(terms[name] == 0 for name in ("tot", "DiceLoss", "CrossEntropy", "unlabelled", "kl"))
    assert terms["threshold"] > 0
    assert not any(gradient.any() for gradient in gradients(method))


@pytest.mark.parametrize("flags", [AT_ONCE, LEARNT])
def test_what_is_not_finite_is_not_hidden_by_a_limit(flags):
    method, batches = build(*flags), make_batches()
    batches["unlabelled"].image[0, 0, 0, 0] = math.nan
    assert not math.isfinite(method.step(batches)[0]["tot"])


@pytest.mark.parametrize("moves", ["head", "network"])
def test_the_gradient_of_the_kl_ends_where_it_is_told(moves):
    ours, plain = (build(*LEARNT, "--threshold_moves", moves, "--kl_weight", weight) for weight in ("1", "0"))
    for method in (ours, plain):
        method.step(make_batches())
    same = all(torch.equal(a, b) for a, b in zip(gradients(ours), gradients(plain), strict=True))
    assert same == (moves == "head")
    assert ours.module.head["mean"].weight.grad.any()


@pytest.mark.parametrize("more", [(), ("--straight_through",)])
def test_the_threshold_learns_from_the_losses_by_straight_through_alone(more):
    method = build(*LEARNT, "--kl_weight", "0", "--prior_mu", "0.2", *more)
    method.step(make_batches())
    for layer in method.module.head.values():
        assert bool(layer.weight.grad.any()) == bool(more)


def test_the_kl_moves_the_threshold_to_its_prior_and_the_log_says_so():
    """The published trap."""
    method = build(*LEARNT, "--l_rate", "2e-2", "--prior_mu", "0.4")
    for _ in range(100):
        terms, _ = method.step(make_batches())
    _, head = method.see(list(make_batches().values()))
    not_shut = (head["mean"] > 0).float().mean().item()  # a dimension whose ReLU is shut stays at 0
    assert terms["threshold"].item() == pytest.approx(0.4 * not_shut, abs=0.02)
    assert any("to its prior, whatever the images" in note for note in method.notes)
    assert build(*LEARNT, "--straight_through").notes == build("--batch_u", "0").notes == []


# -- learning ---------------------------------------------------------------------------------------------------


class Blind(Batch):
    """A batch whose ground truth must not be looked at."""

    def __getattribute__(self, name):
        assert name != "targets"
        return super().__getattribute__(name)


def blind(batch):
    return Blind(batch.image, [], batch.bounds, batch.rows)


def contrast(method, image, label):
    """How much more probable the foreground is inside than outside."""
    p = method.net(image).softmax(1)[:, 1].detach()
    return (p[label == 1].mean() - p[label == 0].mean()).item()


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("pseudo_label", AT_ONCE),
        ("pseudo_label", (*LEARNT, "--prior_mu", "0.5")),
        ("pseudo_label", (*LEARNT, "--prior_mu", "0.5", "--straight_through")),
        ("self_training", ()),
    ],
)
def test_pseudo_labels_move_the_network_and_the_truth_stays_unseen(name, flags):
    image, label = images(4, 3)
    method = build(*flags, "--l_rate", "1e-2", method=name)
    few = {"target": Batch(image[:1], [label[:1]] * 2, [None] * 2, torch.arange(1))}
    supervised = build("--batch_u", "0", "--l_rate", "1e-2", net=method.net)
    for _ in range(60):
        supervised.step(few)  # the network that both go on from
    rest = blind(Batch(image[1:], [], [], torch.arange(3)))
    batches = {"target": rest} if name == "self_training" else few | {"unlabelled": rest}
    before = contrast(method, image[1:], label[1:])
    totals = [method.step(batches)[0]["tot"].item() for _ in range(40)]
    assert contrast(method, image[1:], label[1:]) > before + 0.04
    assert totals[-1] < totals[0]


def test_self_training_logs_no_loss_on_ground_truth_and_starts_at_once():
    method = build(method="self_training")
    assert method.columns == ["tot", "unlabelled", "threshold", "pseudo_share"]
    terms, logits = method.step({"target": blind(make_batches()["unlabelled"])})
    assert terms["tot"].item() == terms["unlabelled"].item() > 0
    assert len(logits) == 3
    assert not hasattr(method.settings, "batch_u")


def test_state_goes_round():
    method, other = build(*LEARNT, "--l_rate", "1e-2"), build(*LEARNT, "--l_rate", "1e-2")
    for step in range(3):
        method.begin_step(0, step)
        method.step(make_batches())
    other.net.load_state_dict(method.net.state_dict())
    other.load_state_dict(copy.deepcopy(method.state_dict()))
    for each in (method, other):
        each.begin_step(0, 3)
        each.step(make_batches())
    ours, theirs = (each.module.state_dict() for each in (method, other))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert set(method.net.state_dict()) == set(Toy().state_dict())


# -- teams, devices, mistakes -------------------------------------------------------------------------------------


class Halves(Team):
    """The first of two processes; the second holds the same as this one."""

    def __init__(self):
        super().__init__(0, 1)

    def gather(self, local, count):
        assert len(local) == -(-count // 2)
        return torch.cat([local, local])[:count]


def test_the_shares_of_each_stream_are_gathered_apart():
    method, batches = build(*LEARNT, team=Halves()), make_batches()
    parts = [batches["target"], batches["unlabelled"]]
    for batch, own in zip(parts, (1, 2), strict=True):
        batch.image = batch.image[:own]
    logits, head = method.see(parts)
    assert [len(each) for each in logits] == [2, 3]
    expected = [method.net(batch.image) for batch in parts]
    assert all(torch.allclose(a[: len(b)], b, atol=1e-6) for a, b in zip(logits, expected, strict=True))
    pooled = method.net.with_features(parts[1].image)[1].mean((2, 3))
    assert torch.allclose(head["mean"][2:4], method.module.head["mean"](pooled), atol=1e-6)
    assert len(head["mean"]) == 5
    method.step(batches)


@pytest.mark.parametrize("flags", [AT_ONCE, LEARNT, (*LEARNT, "--straight_through")])
def test_no_step_looks_at_a_value(flags):
    method, batches = build(*flags, "--optimiser", "sgd"), make_batches()
    with Watch():
        method.step(batches)


def test_the_threshold_is_computed_in_fp32_under_bf16():
    terms, logits = build(*LEARNT, "--precision", "bf16").step(make_batches())
    assert logits.dtype == torch.bfloat16
    assert {term.dtype for term in terms.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--post_mu", "3"), "--post_mu: invalid choice"),
        (("--pri_sd", "2"), "--pri_sd: invalid choice"),
        (("--threshold", "bayes"), "--threshold: invalid choice"),
        (("--batch_u", "-1", "--prior_sd", "0"), r"--batch_u -1 \(0 to inf\), --prior_sd 0 \(0.001 to inf\)"),
        (("--prior_mu", "1.5", "--temperature", "0"), r"--prior_mu 1.5 \(0 to 1\), --temperature 0"),
        (("--threshold_value", "0.5", "--conf_lower", "0.7"), "above --conf_lower 0.7, below 1"),
        (("--straight_through",), "only with --threshold learnt"),
        (("--threshold_draw", "published"), r"--threshold_draw published \(only with --threshold learnt"),
        ((*LEARNT, "--straight_through", "--post_mu", "2", "--post_sd", "2"), "--post_mu 0 or --post_sd 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(flags, message):
    with pytest.raises(UserError, match=message):
        build(*flags)


@pytest.mark.parametrize(
    ("losses", "flags", "message"),
    [
        ("[('GeneralizedDice', {}, 1), ('BoundaryLoss', {}, 1)]", (), "BoundaryLoss needs distance maps"),
        ("[('NaivePenalty', {}, 'B', {}, 'soft_size', 1)]", (), "NaivePenalty needs sizes"),
        ("[('FocalLoss', {}, 1)]", (*LEARNT, "--straight_through"), "FocalLoss needs class numbers"),
    ],
)
def test_losses_that_cannot_learn_from_pseudo_labels_are_refused(losses, flags, message):
    with pytest.raises(UserError, match=message):
        build(*flags, losses=losses)


def test_self_training_may_know_the_sizes():
    method = build(method="self_training", losses="[('NaivePenalty', {}, 'B', {}, 'soft_size', 1)]")
    image, _ = images(2, 1)
    sizes = torch.tensor([[[70.0, 75.0], [5.0, 10.0]]] * 2)
    terms, _ = method.step({"target": blind(Batch(image, [], [sizes], torch.arange(2)))})
    assert terms["unlabelled"] > 0
