"""What a run puts into its checkpoints of its source, and that no adaptation tells of its target."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import CROSS_ENTROPY, FOLDERS, write_prior, write_site
from PIL import Image

import main as program
from datasets.class_measures import measure_shapes
from engine import source_bundle
from engine.source_bundle import SourceBundle
from methods.base import METHODS
from nets.bundle import QUANTITIES, STATISTICS, read_bundle
from nets.checkpoint_files import load_checkpoint
from networks import build_network
from tests.tools.chaos import _bits as bits
from tests.tools.chaos import ask_to_stop, before_call, differences

REGEX = r"(Case\d+)_(\d+)"


class Crash(Exception):
    """The process is gone."""


def crash(*_, **__):
    raise Crash


STEEP = ("--l_rate", 0.1, "--seed", 2)  # the first epoch is the best, the second the last
IN_MM = ("volume_mm3", "area_mm2", "spread_mm")


def arguments(site, run, *more):
    words = ["--target_dataset", site, "--workdir", run, "--target_folders", FOLDERS, "--target_losses", CROSS_ENTROPY]
    words += ["--n_class", 2, "--grp_regex", REGEX, "--network", "Dimwit", "--cpu", "--n_epoch", 2, "--l_rate", 1e-2]
    return list(map(str, [*words, *more]))


def bundle_of(path):
    return read_bundle(load_checkpoint(path))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A source whose first patient also has a second piece."""
    root = write_site(tmp_path_factory.mktemp("source") / "site", 200, 60, seed=1)
    path = root / "train" / "GT" / "Case00_1.png"
    mask = np.asarray(Image.open(path)).copy()
    mask[0, 0] = 1
    Image.fromarray(mask).save(path)
    return root


@pytest.fixture(scope="module")
def source(site):
    program.main(arguments(site, site.parent / "source", *STEEP))
    return site.parent / "source"


def read(site, split, folder):
    """Patient -> its arrays, in the order of their numbers."""
    found = {}
    for path in sorted((site / split / folder).glob("*.png")):
        found.setdefault(path.stem.split("_")[0], []).append(np.asarray(Image.open(path)))
    return {patient: np.array(each) for patient, each in found.items()}


def column(values):
    return dict(zip(STATISTICS, values.tolist(), strict=True))


# -- what is in it ------------------------------------------------------------------------------------------------


def test_the_numbers_are_those_of_the_files(site, source):
    found, labels, images = bundle_of(source / "last.pkl"), read(site, "train", "GT"), read(site, "train", "IMG")
    volumes = [each.sum() for each in labels.values()]
    areas = [plane.sum() for each in labels.values() for plane in each if plane.any()]
    assert column(found.volume_voxels[0])["mean"] == pytest.approx(np.mean(volumes))
    assert column(found.volume_voxels[0])["sd"] == pytest.approx(np.std(volumes, ddof=1))
    assert column(found.area_pixels[0])["median"] == pytest.approx(np.median(areas))
    assert column(found.area_pixels[0])["count"] == len(areas) == 12
    assert column(found.area_share[0])["q95"] == pytest.approx(np.quantile(areas, 0.95) / 480)
    assert column(found.slices_with_class[0])["mean"] == 0.75
    assert found.image_shares == pytest.approx([1 - sum(volumes) / 16 / 480, sum(volumes) / 16 / 480])
    assert found.patients_with_class == [1]
    assert column(found.components[0])["q95"] == pytest.approx(np.quantile([2, 1, 1, 1], 0.95))
    centres = [measure_shapes(each, 2)["centroid"][0] for each in labels.values()]
    assert found.centroid[0, :, 0] == pytest.approx(np.mean(centres, axis=0))
    steps = (np.arange(256) + 0.5) / 256
    seen = [each.ravel() / 255 for each in images.values()]
    assert found.grey_quantiles[0] == pytest.approx(np.mean([np.quantile(each, steps) for each in seen], 0), abs=1e-6)
    bodies = [np.quantile(each[each > each.min()], steps) for each in seen]
    assert found.grey_quantiles_body[0] == pytest.approx(np.mean(bodies, 0), abs=1e-6)


def net_of(path):
    state = load_checkpoint(path)
    net = build_network(state["network"], state["in_channels"], state["n_class"])
    net.load_state_dict(state["net"])
    return net.eval()


@pytest.mark.parametrize("name", ["last.pkl", "best_3d.pkl"])
@torch.inference_mode()
def test_what_depends_on_the_network_is_that_of_the_checkpoint(site, source, name):
    found, net = bundle_of(source / name), net_of(source / name)
    own, total, predicted, dice, truths = [], [], [], [], []
    labels = read(site, "val", "GT")
    for patient, images in read(site, "val", "IMG").items():
        p = net(torch.from_numpy(images)[:, None].float() / 255).softmax(1)[:, 1].numpy()
        mask, truth = p > 0.5, labels[patient].astype(bool)
        own, total, predicted = [*own, p[mask].sum()], [*total, p.sum()], [*predicted, mask.sum()]
        dice.append(2 * (mask & truth).sum() / (mask.sum() + truth.sum()))
        truths.append([[(mask[truth == row] == k).sum() for k in (False, True)] for row in (False, True)])
    assert column(found.dice[0])["mean"] == pytest.approx(np.mean(dice))
    confidence = 2 * np.array(own) / (np.array(total) + predicted)
    assert column(found.sdc[0])["mean"] == pytest.approx(confidence.mean(), abs=1e-5)
    assert found.confusion == pytest.approx(np.sum(truths, 0) / np.sum(truths))
    gap = column(found.sdc_scaled[0])["mean"] - column(found.dice[0])["mean"]
    assert gap == pytest.approx(found.temperature_residuals[1], abs=1e-6)
    features, classes = [], []
    for patient, images in read(site, "train", "IMG").items():
        features.append(net.features(torch.from_numpy(images)[:, None].float() / 255)[-1].movedim(1, -1).flatten(0, 2))
        classes.append(torch.from_numpy(read(site, "train", "GT")[patient]).flatten())
    features, classes = torch.cat(features), torch.cat(classes)
    means = np.array([features[classes == k].mean(0).tolist() for k in range(2)])
    assert found.prototypes == pytest.approx(means, abs=1e-5)


def test_every_quantity_is_there_or_has_a_reason(source):
    found = bundle_of(source / "last.pkl")
    for name in QUANTITIES:
        assert (getattr(found, name) is None) == ("left_out" in found.manifest[name])
    assert [name for name in QUANTITIES if getattr(found, name) is None] == [*sorted(IN_MM, key=[*QUANTITIES].index)]
    assert found.manifest["dice"]["over"] == "8 slices of 2 patients, site/val, labels GT"
    assert found.manifest["components"]["over"] == "16 slices of 4 patients, site/train, labels GT"
    assert found.manifest["batch_norm"]["numbers"] == 16


def test_no_patient_and_no_path_is_told(site, source):
    text = json.dumps(load_checkpoint(source / "last.pkl")["bundle"])
    assert "Case" not in text
    assert str(site.parent) not in text


def test_sizes_in_mm_where_the_spacing_is_known(site, source, tmp_path):
    root = shutil.copytree(site, tmp_path / "site")
    names = [path.stem for path in sorted(root.glob("*/GT/*.png"))]
    rows = [f"{name},{name.split('_')[0]},4.0,0.5,2.0" for name in names]
    (root / "manifest.csv").write_text("\n".join(["name,patient,spacing_slice,spacing_w,spacing_h", *rows]) + "\n")
    program.main(arguments(root, tmp_path / "run", *STEEP))
    found, without = bundle_of(tmp_path / "run" / "last.pkl"), bundle_of(source / "last.pkl")
    assert found.volume_mm3[0, :-1] == pytest.approx(4 * without.volume_voxels[0, :-1])
    assert found.area_mm2[0, :-1] == pytest.approx(without.area_pixels[0, :-1])
    fields_mm = np.array([4 * 4.0, 24 * 0.5, 20 * 2.0])
    assert found.spread_mm[0, :, 0] == pytest.approx(without.spread[0, :, 0] * fields_mm)


def test_pictures_make_up_no_volume(site, tmp_path):
    program.main(arguments(site, tmp_path / "run", "--scores", "iou", "--network", "ENet:kernels=4"))
    found = bundle_of(tmp_path / "run" / "last.pkl")
    assert "pictures" in found.manifest["components"]["left_out"]
    assert "no convolution of one pixel" in found.manifest["prototypes"]["left_out"]
    assert column(found.area_pixels[0])["count"] == 12
    assert column(found.dice[0])["count"] == 6  # of each picture that shows the class
    assert found.components is found.volume_voxels is found.prototypes is None


def test_volumes(tmp_path):
    rng, root, shape = np.random.default_rng(0), tmp_path / "site", (10, 9, 12)
    for split, cases in {"train": 3, "val": 2}.items():
        for case in range(cases):
            truth = np.zeros(shape, np.uint8)
            truth[2 : 6 + case, 3:7, 4:8] = 1
            for folder, array in (("IMG", (truth * 100 + rng.normal(50, 9, shape)).astype(np.float32)), ("GT", truth)):
                (root / split / folder).mkdir(parents=True, exist_ok=True)
                np.save(root / split / folder / f"{split}{case}.npy", array)
    folders = "[('IMG', nii_transform, False), ('GT', nii_gt_transform, False)]"
    more = ["--crop", 8, 12, 8, "--network", "UNet3D:width=2,depth=1", "--grp_regex", "(.*)", "--steps", 2]
    program.main(arguments(root, tmp_path / "run", *more, "--target_folders", folders))
    found, net = bundle_of(tmp_path / "run" / "last.pkl"), net_of(tmp_path / "run" / "last.pkl")
    assert column(found.volume_voxels[0])["mean"] == np.mean([64, 80, 96])
    assert found.image_shares[1] == pytest.approx(80 / 1080)
    assert column(found.slices_with_class[0])["median"] == 0.5
    assert column(found.dice[0])["count"] == 2
    assert found.manifest["sdc"]["over"] == "2 volumes, site/val, labels GT"
    sums, counts = np.zeros((2, 4)), np.zeros(2)
    with torch.inference_mode():
        for case in range(3):  # windows from 0 and 2 along D, 0 alone along W, from 0 and 4 along H
            image, truth = (np.load(root / "train" / folder / f"train{case}.npy") for folder in ("IMG", "GT"))
            image = np.pad(image, ((0, 0), (0, 3), (0, 0)), mode="edge")
            for d, new_d in ((0, slice(0, 8)), (2, slice(8, 10))):
                for h, new_h in ((0, slice(0, 8)), (4, slice(8, 12))):
                    window = torch.from_numpy(image[d : d + 8, :, h : h + 8].copy())[None, None]
                    part = net.features(net.pad(window))[-1][0].movedim(0, -1).numpy()
                    part = part[new_d.start - d :, :9, new_h.start - h :]
                    for k in range(2):
                        sums[k] += part[truth[new_d, :, new_h] == k].sum(0)
                        counts[k] += (truth[new_d, :, new_h] == k).sum()
    assert counts.sum() == 3 * 1080
    assert found.prototypes == pytest.approx(sums / counts[:, None], abs=1e-4)


def test_validation_images_without_labels(site, tmp_path):
    program.main(arguments(site, tmp_path / "run", "--val_target_folders", "[('IMG', png_transform, False)]"))
    found = bundle_of(tmp_path / "run" / "last.pkl")
    assert found.temperatures is None
    assert "no labels" in found.manifest["temperatures"]["left_out"]
    assert found.volume_voxels is not None
    assert found.manifest["dice"]["over"] == "8 slices of 2 patients, site/val"


# -- when it is written -------------------------------------------------------------------------------------------


def test_a_network_that_is_best_and_last_is_measured_once(site, tmp_path, monkeypatch):
    calls, measure = [], SourceBundle.measure
    monkeypatch.setattr(SourceBundle, "measure", lambda self: calls.append(1) or measure(self))
    program.main(arguments(site, tmp_path / "run", "--n_epoch", 1))
    last, best = (load_checkpoint(tmp_path / "run" / name) for name in ("last.pkl", "best_3d.pkl"))
    assert len(calls) == 1
    assert bits(last["bundle"]) == bits(best["bundle"])


MOMENTS = {  # the function of engine/source_bundle.py, and before its which call
    "with the images": ("grey_quantiles", 3),
    "with the labels": ("class_areas", 2),
    "with the last network": ("ConfidenceTable", 1),
    "with the best network": ("ConfidenceTable", 2),
}


@pytest.mark.parametrize("when", MOMENTS)
@pytest.mark.parametrize("disturb", [ask_to_stop, crash])
def test_stopped_or_killed_while_it_is_measured(site, source, tmp_path, monkeypatch, when, disturb):
    function, number = MOMENTS[when]
    argv = arguments(site, tmp_path / "run", *STEEP, "--resume")
    with monkeypatch.context() as patch:
        disturbed = before_call(number, getattr(source_bundle, function), disturb)
        patch.setattr(source_bundle, function, disturbed)
        with pytest.raises((SystemExit, Crash)):
            program.main(argv)
    program.main(argv)
    assert differences(source, tmp_path / "run") == []


def test_killed_between_the_two_checkpoints(site, source, tmp_path, monkeypatch):
    argv, enclose = arguments(site, tmp_path / "run", *STEEP, "--resume"), SourceBundle.enclose
    with monkeypatch.context() as patch:
        patch.setattr(SourceBundle, "enclose", before_call(2, enclose, crash))
        with pytest.raises(Crash):
            program.main(argv)
    assert "bundle" in load_checkpoint(tmp_path / "run" / "last.pkl")
    assert "bundle" not in load_checkpoint(tmp_path / "run" / "best_3d.pkl")
    program.main(argv)
    assert differences(source, tmp_path / "run") == []


def test_a_checkpoint_is_written_in_the_middle_of_the_training_without_it(site, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(SourceBundle, "measure", crash)
        with pytest.raises(Crash):
            program.main(arguments(site, tmp_path / "run"))
    assert load_checkpoint(tmp_path / "run" / "last.pkl")["epoch"] == 1
    assert bundle_of(tmp_path / "run" / "last.pkl") is None


# -- what an adaptation tells -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return write_site(tmp_path_factory.mktemp("target") / "target", 150, 90, seed=2)


def adapt(method, target, source, prior):
    bounds = {"sizefile": str(prior), "predcol": "dumbpredwtags", "margin": 0}
    sized = f"[('EntKLProp', {{}}, 'PredictionBounds', {bounds}, 'soft_size', 1)]"
    more = {
        **dict.fromkeys(("sfda", "prototype_alignment", "consistency"), ("--target_losses", sized)),
        "online": ["--target_losses", "[('SelfEntropy', {}, 1)]", "--trainable", "all"],
        "adversarial": ["--source_dataset", source, "--d_width", 2, "--d_stride", 1],
        "mixup": [],
        "pseudo_label": ["--unlabelled_dataset", target, "--unlabelled_split", "train"],
        "supervised": ["--n_labelled", 2],
    }
    return ["--method", method, *more.get(method, [])]


SEGMENTING = [name for name in METHODS if METHODS[name].segments]


@pytest.mark.parametrize("method", SEGMENTING)
def test_who_starts_from_a_network_hands_on_its_bundle_and_tells_nothing_of_its_own_labels(
    site, source, target, tmp_path, method
):
    """What came with the network goes on unchanged; where nothing came, nothing is made of the labels there."""
    prior, weights = write_prior(tmp_path / "prior.csv", target), source / "best_3d.pkl"
    state = load_checkpoint(weights)
    torch.save({name: entry for name, entry in state.items() if name != "bundle"}, tmp_path / "older.pkl")
    for start in (weights, tmp_path / "older.pkl"):
        run = tmp_path / start.stem
        program.main(arguments(target, run, *adapt(method, target, site, prior), "--model_weights", start))
        for name in ("last.pkl", "best_3d.pkl"):
            made = load_checkpoint(run / name)
            assert bits(made.get("bundle")) == (bits(state["bundle"]) if start == weights else None)


def test_an_adaptation_holds_it_before_its_end(site, source, target, tmp_path, monkeypatch):
    """Whatever kills it: no checkpoint of it is without."""
    with monkeypatch.context() as patch:
        patch.setattr("engine.loop.Training._score", crash)
        with pytest.raises(Crash):
            program.main(arguments(target, tmp_path / "run", "--model_weights", source / "last.pkl"))
    assert bits(load_checkpoint(tmp_path / "run" / "last.pkl")["bundle"]) == bits(
        load_checkpoint(source / "last.pkl")["bundle"]
    )


def test_a_chain_of_adaptations_keeps_it_with_the_source_gone(site, source, target, tmp_path):
    gone = shutil.copy(source / "last.pkl", tmp_path / "weights.pkl")
    entropy = ["--method", "sfda", "--target_losses", "[('SelfEntropy', {}, 1)]"]
    program.main(arguments(target, tmp_path / "first", *entropy, "--model_weights", gone))
    program.main(arguments(target, tmp_path / "second", *entropy, "--model_weights", tmp_path / "first" / "last.pkl"))
    second = bundle_of(tmp_path / "second" / "last.pkl")
    assert np.array_equal(second.volume_voxels, bundle_of(source / "last.pkl").volume_voxels)
    assert second.manifest["dice"]["over"].startswith("8 slices of 2 patients, site/val")


def test_a_start_from_a_part_of_a_network_is_none(site, tmp_path):
    """The encoder of a pre-training, for one: what the run tells is its own."""
    net = ["--network", "UNet:nG=2"]
    program.main(arguments(site, tmp_path / "first", *net, "--n_epoch", 1))
    first = load_checkpoint(tmp_path / "first" / "last.pkl")["bundle"]
    blocks = ["--model_weights", tmp_path / "first" / "last.pkl", "--load_blocks", 1, "--n_labelled", 2]
    program.main(arguments(site, tmp_path / "second", *net, *blocks))
    second = bundle_of(tmp_path / "second" / "last.pkl")
    assert second.manifest["dice"]["over"] == first["manifest"]["dice"]["over"]
    assert second.manifest["components"]["over"] == "8 slices of 2 patients, site/train, labels GT"


def test_a_pre_training_tells_nothing(site, tmp_path):
    words = ["--method", "contrastive_global", "--n_parts", 2, "--network", "UNet:nG=2", "--embedding", 4]
    program.main(arguments(site, tmp_path / "run", *words))
    assert "bundle" not in load_checkpoint(tmp_path / "run" / "last.pkl")


def test_a_loss_that_sees_no_label_tells_nothing(site, tmp_path):
    program.main(arguments(site, tmp_path / "run", "--target_losses", "[('SelfEntropy', {}, 1)]"))
    assert "bundle" not in load_checkpoint(tmp_path / "run" / "last.pkl")
