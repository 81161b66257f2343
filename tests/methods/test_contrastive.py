"""Contrastive pre-training: what learns and what stands still, what is seen, and what it refuses."""

import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import FOLDERS

from datasets.sampling import Partitions
from datasets.slices import open_slices
from datasets.streams import Batch, Stream
from datasets.transforms import parse_image_folder
from engine.arguments import get_args
from methods.base import METHODS
from methods.contrastive_losses import global_loss
from methods.embeddings import GridPool, global_head, local_head
from methods.objective import LossSum
from networks import build_network
from processes.errors import UserError
from processes.team import Team
from utils import derived_seed, seed_everything, settings_of

CPU = torch.device("cpu")
STRATEGIES = [
    ("contrastive_global", "GR"),
    ("contrastive_global", "GD-"),
    ("contrastive_global", "GD"),
    ("contrastive_local", "LR"),
    ("contrastive_local", "LD"),
]


def make(name, strategy, *flags, network="UNet:nG=4"):
    """The method on a small network, from random weights."""
    argv = "--target_dataset x --workdir x --n_class 2 --batch_size 6 --n_parts 2 --head_grid 2 --embedding 16 --cpu"
    argv = argv.split() if name == "contrastive_global" else argv.replace("--head_grid 2", "--model_weights x").split()
    argv += ["--target_folders", FOLDERS, "--grp_regex", r"(Case\d+)_(\d+)", "--network", network, "--l_rate", "1e-3"]
    args = get_args([*argv, "--method", name, "--strategy", strategy, *flags])
    seed_everything(0)
    kind = METHODS[name]
    return kind(build_network(network, 1, 2), LossSum([]), settings_of(kind.Settings, vars(args)))


@pytest.fixture
def stream(sites):
    """The images of four volumes of four slices, without any ground truth."""
    slices = open_slices(sites[1], "train", [parse_image_folder(FOLDERS)], 2, r"(Case\d+)_(\d+)")
    return Stream(slices, 6, CPU, sampler=Partitions(slices.patients, 6, 2), with_targets=False)


def train(method, stream, epochs=1):
    found = []
    for epoch in range(epochs):
        method.begin_epoch(epoch)
        for step, (batch, _) in enumerate(stream.epoch(epoch)):
            method.begin_step(epoch, derived_seed(epoch, step))
            terms, logits = method.step({"target": batch})
            assert logits is None
            assert list(terms) == method.columns
            assert not any(term.requires_grad for term in terms.values())
            found.append(terms["tot"].item())
    return found


@pytest.mark.parametrize(("name", "strategy"), STRATEGIES)
def test_the_loss_falls_and_only_what_is_trained_moves(stream, name, strategy):
    method = make(name, strategy)
    before = copy.deepcopy(method.net.state_dict())
    found = train(method, stream, epochs=12)
    assert sum(found[-9:]) < 0.95 * sum(found[:9])
    moved = {key for key, value in method.net.state_dict().items() if not torch.equal(value, before[key])}
    encoder, blocks = (
        {key for key in before if key.startswith(tuple(method.net.parts(count)))} for count in (0, method.net.n_blocks)
    )
    assert moved == (encoder if name == "contrastive_global" else blocks - encoder)
    assert any("running" in key for key in moved)


def test_blocks_beyond_those_that_learn_stand_still(stream):
    method = make("contrastive_local", "LR", "--local_blocks", "2")
    before = copy.deepcopy(method.net.state_dict())
    train(method, stream)
    moved = {key for key, value in method.net.state_dict().items() if not torch.equal(value, before[key])}
    assert moved
    assert all(key.startswith(tuple(method.net.parts(2))) for key in moved)


@pytest.mark.parametrize(("name", "strategy"), STRATEGIES)
def test_state_goes_round(stream, name, strategy):
    method, other = make(name, strategy), make(name, strategy)
    train(method, stream)
    other.net.load_state_dict(method.net.state_dict())
    other.load_state_dict(copy.deepcopy(method.state_dict()))
    for each in (method, other):
        train(each, stream)
    ours, theirs = (each.module.state_dict() for each in (method, other))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


# -- a step ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("strategy", "plain", "count"), [("GR", 0, 2), ("GD-", 1, 3), ("GD", 1, 2), ("LR", 0, 2)])
def test_versions_are_slices_and_views_by_the_seed_of_the_step(stream, strategy, plain, count):
    method = make("contrastive_local" if strategy == "LR" else "contrastive_global", strategy)
    batch, _ = next(stream.epoch(0))
    method.begin_step(0, 1)
    versions = method.versions(batch)
    assert [torch.equal(version, batch.image) for version in versions] == [True] * plain + [False] * (count - plain)
    assert not torch.equal(versions[-1], versions[-2])
    again = method.versions(batch)
    method.begin_step(0, 2)
    other = method.versions(batch)
    for version in range(count):
        assert torch.equal(versions[version], again[version])
        assert torch.equal(versions[version], other[version]) == (version < plain)


def test_each_process_draws_the_views_of_its_own_images(stream):
    method = make("contrastive_global", "GD-")
    batch, _ = next(stream.epoch(0))
    whole = method.versions(batch)
    for rank in range(2):
        method.team = Team(rank, 2)
        share = method.team.share(6)
        own = method.versions(Batch(batch.image[share], [], [], batch.rows))
        assert all(torch.equal(part, version[share]) for part, version in zip(own, whole, strict=True))


def test_the_loss_is_that_of_the_whole_batch_version_by_version(stream):
    method = make("contrastive_global", "GD-", "--temperature", "0.2")
    batch, _ = next(stream.epoch(0))
    method.begin_epoch(0)
    embedded = method.module(torch.cat(method.versions(batch))).detach()
    terms, _ = method.step({"target": batch})
    assert terms["tot"].item() == pytest.approx(global_loss(embedded.view(3, 6, 16), "GD-", 2, 0.2)["tot"].item())


@pytest.mark.parametrize(("name", "strategy"), STRATEGIES)
def test_embeddings_are_compared_in_fp32_under_bf16(stream, name, strategy):
    method = make(name, strategy, "--precision", "bf16")
    method.begin_epoch(0)
    terms, _ = method.step({"target": next(stream.epoch(0))[0]})
    assert {term.dtype for term in terms.values()} == {torch.float32}


def test_a_local_batch_without_pairs_across_volumes_is_any_slices():
    patients = [patient for patient in "abc" for _ in range(4)]
    regions, groups = (make("contrastive_local", strategy) for strategy in ("LR", "LD"))
    assert regions.demand(regions.settings).sampler is None
    assert isinstance(groups.demand(groups.settings).sampler(patients), Partitions)


# -- heads -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6, 6), (2, 2), (1, 5), (7, 12)])
def test_the_grid_is_that_of_adaptive_pooling(shape):
    maps = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(GridPool(6)(maps), F.adaptive_avg_pool2d(maps, 6), atol=1e-6)


def test_heads_have_the_published_sizes():
    def n_parameters(head):
        return sum(parameter.numel() for parameter in head.parameters())

    assert n_parameters(global_head(128, 6, 128)) == 6 * 6 * 128 * 1024 + 1024 * 128
    assert n_parameters(local_head(64, 128)) == 2 * 64 * 64 + 2 * 64 + 3 * 3 * 64 * 128
    assert global_head(128, 6, 128)(torch.zeros(2, 128, 6, 6)).shape == (2, 128)
    assert local_head(64, 128)(torch.zeros(2, 64, 48, 48)).shape == (2, 17, 128)


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "strategy", "flags", "match"),
    [
        ("contrastive_global", "GR", ("--temperature", "0"), "--temperature is 0; it must be above 0"),
        ("contrastive_global", "GR", ("--head_grid", "0"), "--head_grid is 0"),
        ("contrastive_global", "GR", ("--head_grid", "65"), "--head_grid is 65; it must be at least 1 and at most 64"),
        ("contrastive_local", "LR", ("--local_blocks", "0"), "--local_blocks is 0"),
        ("contrastive_local", "LR", ("--local_blocks", "4"), "UNet has 3 blocks"),
        ("contrastive_global", "GD", ("--batch_size", "2"), "give --batch_size 4 or more"),
        ("contrastive_local", "LD", ("--batch_size", "2"), "give --batch_size 4 or more"),
    ],
)
def test_settings_out_of_range_are_refused(name, strategy, flags, match):
    with pytest.raises(UserError, match=match):
        make(name, strategy, *flags)


@pytest.mark.parametrize(("batch_size", "n_parts"), [(6, 4), (10, 2), (8, 8)])
def test_a_batch_that_is_no_whole_number_of_groups_is_refused(stream, batch_size, n_parts):
    """Not a multiple; more volumes than there are; more partitions than slices."""
    method = make("contrastive_global", "GR", "--batch_size", str(batch_size), "--n_parts", str(n_parts))
    with pytest.raises(UserError, match=f"--n_parts {n_parts}"):
        method.demand(method.settings).sampler(stream.slices.patients)


@pytest.mark.parametrize("name", ["contrastive_global", "contrastive_local"])
def test_a_network_without_an_encoder_and_one_of_volumes_are_refused(name):
    strategy = "GD" if name == "contrastive_global" else "LR"
    with pytest.raises(UserError, match="ENet has no encoder"):
        make(name, strategy, network="ENet")
    with pytest.raises(UserError, match="UNet3D is a network of volumes"):
        make(name, strategy, network="UNet3D:width=2")


def test_a_map_too_small_for_regions_is_refused(stream):
    method = make("contrastive_local", "LR", "--local_blocks", "1")
    method.begin_epoch(0)
    with pytest.raises(UserError, match="6 x 6.*--local_blocks"):
        method.step({"target": next(stream.epoch(0))[0]})


def test_the_decoder_is_not_trained_on_a_random_encoder():
    with pytest.raises(UserError, match="give --model_weights"):
        make("contrastive_local", "LR", "--model_weights", "")
