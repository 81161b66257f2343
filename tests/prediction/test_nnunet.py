"""Networks of nnU-Net v2: read without running anything, prepared, slid and mirrored as there, and adapted."""

import io
import itertools
import json
import pickle
import zipfile

import nibabel as nib
import numpy as np
import pytest
import torch
from skimage.transform import resize

import main as program
import predict
from files.faults import VolumeFault
from nets.checkpoint_files import load_checkpoint
from nets.sliding_window import sliding_logits
from prediction import adopt, bundle
from prediction.nnunet_plan import NnunetPlan
from prediction.nnunet_preparation import body_of
from prediction.nnunet_resampling import coarse_axis, new_shape, resample
from processes.errors import UserError

pytest.importorskip("dynamic_network_architectures", reason="pip install -r tests/requirements.txt")

from nets.dynamic import own_names
from networks import build_network, network_of
from tests.tools.fake_nnunet import resampling, results_of, shape_of, theirs

SHAPES = {2: (3, 1, 8, 12), 3: (2, 1, 6, 8, 12)}


def adopted(folder, out, *flags):
    adopt.main(list(map(str, ["--nnunet", folder, "--out", out, *flags])))
    return out


def volumes(folder, count=2, channels=1, size=(11, 13, 7), spacing=(1.2, 0.9, 2.5)):
    """case<n>_<channel>.nii.gz: a body of noise, a border of 0 round it."""
    folder.mkdir(parents=True)
    for number, channel in itertools.product(range(count), range(channels)):
        rng = np.random.default_rng(10 * number + channel)
        voxels = np.zeros(size, np.float32)
        voxels[1:-2, 2:-1, :-1] = rng.normal(100, 20, np.array(size) - [3, 3, 1])
        image = nib.Nifti1Image(voxels, np.diag([*spacing, 1]))
        nib.save(image, folder / f"case{number}_{channel:04}.nii.gz")
    return folder


def predicted(weights, folder, out, *flags, channels=1):
    words = [word for c in range(channels) for word in ("--volumes", f"{folder}/*_{c:04}.nii.gz")]
    words += ["--weights", weights, "--out", out, "--layout", "nnunet", "--device", "cpu", *flags]
    predict.main(list(map(str, words)))
    return {path.name[:5]: np.asarray(nib.load(path).dataobj) for path in sorted(out.glob("case*.nii.gz"))}


# ------------------------------------------------------------------------------------------------- the network


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("residual", [False, True])
def test_it_computes_what_nnunet_s_network_computes(tmp_path, axes, residual):
    folder, net = results_of(tmp_path / "there", axes, residual=residual)
    weights = adopted(folder, tmp_path / "x/last.pkl")
    ours = network_of(load_checkpoint(weights), weights)
    image = torch.randn(SHAPES[axes], generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(ours(image), net(image)[0], rtol=1e-5, atol=1e-5)
    assert len(ours.state_dict()) == len(list(ours.parameters()))  # each tensor once


def test_it_is_no_run_that_a_bundle_is_made_of(tmp_path):
    folder, _ = results_of(tmp_path / "there", 2)
    adopted(folder, tmp_path / "x/last.pkl")
    with pytest.raises(UserError, match=r"trained elsewhere, and no run; .*predict.py --adapt leaves OUT/adaptation"):
        bundle.main(["--run", str(tmp_path / "x"), "--out", str(tmp_path / "b")])


@pytest.mark.parametrize("axes", [2, 3])
def test_it_is_written_as_onnx_though_the_exporter_fixes_the_number_of_its_images(tmp_path, capsys, axes):
    pytest.importorskip("onnxruntime")
    folder, _ = results_of(tmp_path / "there", axes)
    weights = adopted(folder, tmp_path / "x/last.pkl")
    predict.main(["--weights", str(weights), "--export", str(tmp_path / "net.onnx"), "--device", "cpu"])
    assert "net.onnx: image of " in capsys.readouterr().out


def test_its_axes_are_padded_each_to_its_own_multiple():
    told = shape_of(3)
    net = build_network(
        f"DynamicUNet3D:widths=[4,4,4],strides={told['strides']},kernels={told['kernel_sizes']},convs=[1,1,1],"
        "decoder_convs=[1,1]",
        1,
        2,
    )
    assert net.multiples == (2, 4, 4)
    assert net.pad(torch.zeros(1, 1, 6, 9, 12)).shape == (1, 1, 6, 12, 12)
    assert net(torch.zeros(1, 1, 5, 9, 12)).shape == (1, 2, 5, 9, 12)


@pytest.mark.parametrize(
    "part",
    ["widths=[4]", "strides=[[1,1],[2,2]]", "kernels=[[3,3],[3,3],[2,2]]", "convs=[1,1]", "decoder_convs=[1,1,1]"],
)
def test_a_network_of_impossible_shape_is_refused(part):
    with pytest.raises(UserError, match=f"DynamicUNet needs for each of its 2 to 12 stages.*{part.split('=')[0]}="):
        build_network(f"DynamicUNet:{part}", 1, 2)


def test_the_heads_of_deep_supervision_stay_behind():
    names = own_names(theirs(2).state_dict())
    assert {name.split(".")[0] for name in names} == {"encoder", "up", "decoder", "classifier"}
    assert names["classifier.weight"].shape == (3, 4, 1, 1)


# --------------------------------------------------------------------------------------------- nothing is run


class Hostile:
    """Makes a file when it is loaded."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def with_pickle(folder, change, protocol=2):
    """The checkpoint saved anew after `change` of what is in it."""
    path = folder / "fold_0/checkpoint_final.pth"
    state = torch.load(path, weights_only=False)
    change(state)
    torch.save(state, path, pickle_protocol=protocol)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("place", ["network_weights", "init_args", "logging"])
def test_nothing_in_the_file_is_run(tmp_path, place, protocol):
    """Wherever it stands, and however it is named."""
    folder, _ = results_of(tmp_path / "there")
    with_pickle(folder, lambda state: state[place].update(x=Hostile(tmp_path / "made")), protocol)
    with pytest.raises(UserError, match="holds more than tensors and plain types, and to load that is to run code"):
        adopted(folder, tmp_path / "last.pkl")
    assert not (tmp_path / "made").exists()
    assert not (tmp_path / "last.pkl").exists()
    torch.load(folder / "fold_0/checkpoint_final.pth", weights_only=False)  # what would have been
    assert (tmp_path / "made").exists()


def test_an_array_of_objects_is_refused(tmp_path):
    folder, _ = results_of(tmp_path / "there")
    with_pickle(folder, lambda state: state["logging"].update(x=np.array([Hostile(tmp_path / "made")], object)))
    with pytest.raises(UserError, match="to load that is to run code"):
        adopted(folder, tmp_path / "last.pkl")
    assert not (tmp_path / "made").exists()


def test_numbers_of_an_older_numpy_are_read(tmp_path):
    folder, _ = results_of(tmp_path / "there")
    path, whole = folder / "fold_0/checkpoint_final.pth", io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(whole, "w", zipfile.ZIP_STORED) as new:
        for each in old.infolist():
            new.writestr(each, old.read(each).replace(b"cnumpy._core.", b"cnumpy.core."))
    path.write_bytes(whole.getvalue())
    assert load_checkpoint(adopted(folder, tmp_path / "last.pkl"))["labels"] == ["background", "shell", "core"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("network_weights"), "network_weights is NoneType"),
        (lambda state: state["init_args"].update(configuration=3), "configuration is int"),
        (lambda state: state.update(inference_allowed_mirroring_axes=(5,)), r"mirror is \[5\]"),
        (lambda state: state["network_weights"].popitem(), "do not fit|are foreign"),
        (lambda state: next(iter(state["network_weights"].values())).fill_(torch.nan), "NaN or infinite weights"),
    ],
)
def test_a_checkpoint_of_another_program_is_refused(tmp_path, change, words):
    folder, _ = results_of(tmp_path / "there")
    with_pickle(folder, change)
    with pytest.raises(UserError, match=words):
        adopted(folder, tmp_path / "last.pkl")


def test_a_torn_or_missing_checkpoint_is_refused(tmp_path):
    folder, _ = results_of(tmp_path / "there")
    with pytest.raises(UserError, match=r"There is no .*fold_3.*; there are fold_0/checkpoint_final.pth"):
        adopted(folder, tmp_path / "last.pkl", "--fold", 3)
    path = folder / "fold_0/checkpoint_final.pth"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="is torn"):
        adopted(folder, tmp_path / "last.pkl")
    path.write_bytes(pickle.dumps({}))
    with pytest.raises(UserError, match="is no checkpoint"):
        adopted(folder, tmp_path / "last.pkl")


# ---------------------------------------------------------------------------------------------------- plans


RELU = {"network_class_name": "x.PlainConvUNet", "arch_kwargs": shape_of(2) | {"nonlin": "torch.nn.ReLU"}}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"previous_stage": "3d_lowres"}, "second network of a cascade"),
        ({"normalization_schemes": ["Mine"]}, "schemes are Mine, expected ZScoreNormalization"),
        ({"normalization_schemes": ["CTNormalization"]}, "levels"),
        ({"resampling_fn_data": "resample_torch_fornnunet"}, "resampled by resample_torch_fornnunet"),
        ({"resampling_fn_probabilities_kwargs": resampling(1)[1] | {"order_z": 1}}, "resampled by"),
        ({"preprocessor_name": "Other"}, "prepared by Other"),
        ({"spacing": [1.0]}, "spacing is"),
        ({"patch_size": "8"}, "window is '8'"),
        ({"architecture": {"network_class_name": "x.Primus", "arch_kwargs": {}}}, "the network is a Primus"),
        ({"architecture": RELU}, "other layers than nnU-Net's own"),
    ],
)
def test_plans_that_cannot_be_followed_are_refused(tmp_path, changed, words):
    folder, _ = results_of(tmp_path / "there", **changed)
    with pytest.raises(UserError, match=words):
        adopted(folder, tmp_path / "last.pkl")
    assert not (tmp_path / "last.pkl").exists()


def test_regions_and_unknown_readers_are_refused(tmp_path):
    folder, _ = results_of(tmp_path / "there", plans={"image_reader_writer": "NaturalImage2DIO"})
    with pytest.raises(UserError, match="volumes are read by NaturalImage2DIO"):
        adopted(folder, tmp_path / "last.pkl")
    card = json.loads((folder / "dataset.json").read_text())
    card["labels"] = {"background": 0, "whole": [1, 2], "core": 2}
    (folder / "dataset.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match=r"learnt regions that overlap \(whole\)"):
        adopted(folder, tmp_path / "last.pkl")


def test_plans_of_before_are_followed(tmp_path):
    """Which list numbers in place of layers."""
    shape = shape_of(2)
    older = {
        "architecture": None,
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": 4,
        "unet_max_num_features": 8,
        "n_conv_per_stage_encoder": shape["n_conv_per_stage"],
        "n_conv_per_stage_decoder": shape["n_conv_per_stage_decoder"],
        "pool_op_kernel_sizes": shape["strides"],
        "conv_kernel_sizes": shape["kernel_sizes"],
    }
    networks = [
        load_checkpoint(adopted(results_of(tmp_path / name, **told)[0], tmp_path / f"{name}.pkl"))["network"]
        for name, told in (("older", older), ("newer", {}))
    ]
    assert networks[0] == networks[1]
    del older["conv_kernel_sizes"]
    with pytest.raises(UserError, match="does not tell of what layers the network is"):
        adopted(results_of(tmp_path / "torn", **older)[0], tmp_path / "torn.pkl")


def plan(**changed):
    told = {"spacing": [2.0, 1.0, 1.0], "transpose": [0, 1, 2], "window": [4, 8, 8], "schemes": ["NoNormalization"]}
    told |= {"masked": [False], "levels": [{}], "order": 3, "scores_order": 1, "mirror": []}
    return NnunetPlan(**told | changed)


def test_grey_levels_are_normalised_by_the_plan_s_schemes():
    image = np.array([0, 2, 4, 6], np.float32).reshape(1, 1, 2, 2)
    body = np.array([0, 1, 1, 1], bool).reshape(1, 2, 2)
    levels = {"mean": 3.0, "std": 2.0, "percentile_00_5": 1.0, "percentile_99_5": 5.0}

    def made(scheme, masked=False):
        return plan(schemes=[scheme], masked=[masked], levels=[levels]).normalise(image, body, "x").ravel().tolist()

    assert made("NoNormalization") == [0, 2, 4, 6]
    assert made("CTNormalization") == [-1, -0.5, 0.5, 1]
    assert made("RescaleTo01Normalization") == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert made("RGBTo01Normalization") == pytest.approx([0, 2 / 255, 4 / 255, 6 / 255])
    assert made("ZScoreNormalization") == pytest.approx([-3 / 5**0.5, -1 / 5**0.5, 1 / 5**0.5, 3 / 5**0.5])
    assert made("ZScoreNormalization", True) == pytest.approx([0, -(1.5**0.5), 0, 1.5**0.5], abs=1e-6)
    with pytest.raises(VolumeFault, match="outside 0..255"):
        plan(schemes=["RGBTo01Normalization"]).normalise(-image, body, "x")


def test_the_empty_border_is_cut_and_holes_are_body():
    image = np.zeros((2, 5, 6, 7), np.float32)
    image[0, 1:4, 1:4, 1:4], image[0, 2, 2, 2], image[1, 2, 4, 2] = 1, 0, 1
    box, mask = body_of(image, "x")
    assert box == (slice(1, 4), slice(1, 5), slice(1, 4))
    assert mask[2, 2, 2]
    assert mask.sum() == 28
    with pytest.raises(VolumeFault, match="nothing but 0"):
        body_of(np.zeros((1, 2, 2, 2)), "x")


# ---------------------------------------------------------------------------------- resampling and windows


def test_shapes_and_the_coarse_axis():
    assert new_shape((10, 10, 10), (3, 1, 1), (2, 1, 0.8)) == (15, 10, 12)  # 12.5, of two the even one
    assert coarse_axis((3, 1, 1), (2, 1, 1)) is None
    assert coarse_axis((3.1, 1, 1), (1, 1, 1)) == 0
    assert coarse_axis((1, 1, 1), (1, 1, 4)) == 2
    assert coarse_axis((4, 4, 1), (1, 1, 4)) is None  # the old grid tells first, and has two


def test_volumes_are_resampled_whole_or_plane_by_plane():
    image = np.random.default_rng(0).normal(size=(1, 4, 6, 5)).astype(np.float32)
    assert resample(image, (4, 6, 5), (1, 1, 1), (1, 1, 1), 3) is image
    whole = resize(image[0].astype(float), (5, 9, 5), 3, mode="edge", anti_aliasing=False)
    np.testing.assert_allclose(resample(image, (5, 9, 5), (1, 1.5, 1), (0.8, 1, 1), 3)[0], whole, rtol=1e-6)
    found = resample(image, (8, 9, 5), (8, 1.5, 1), (4, 1, 1), 3)
    planes = [resize(plane.astype(float), (9, 5), 3, mode="edge", anti_aliasing=False) for plane in image[0]]
    np.testing.assert_allclose(found[0], np.repeat(planes, 2, axis=0), rtol=1e-6)


def test_logits_are_averaged_and_not_probabilities():
    """Two windows of 8 over 12 pixels, each with logits of its own."""
    logits = iter((1.0, 4.0))

    def net(x):
        return torch.stack([torch.zeros_like(x[:, 0]), torch.full_like(x[:, 0], next(logits))], 1)

    found = sliding_logits(net, torch.zeros(1, 1, 12), (8,), 0.5, 1)[0]
    weight = torch.exp(-0.5 * (torch.arange(8) - 4.0) ** 2)  # its middle at half a side, rounded down
    mean = (weight[4:] + 4 * weight[:4]) / (weight[4:] + weight[:4])
    torch.testing.assert_close(found[1] - found[0], torch.cat([torch.ones(4), mean, torch.full((4,), 4.0)]))
    torch.testing.assert_close(found.exp().sum(0), torch.ones(12))


def test_windows_begin_at_the_nearest_voxel():
    seen = []

    def net(x):
        seen.extend(x[:, 0, 0].long().tolist())
        return torch.cat([x, x], 1)

    sliding_logits(net, torch.arange(2 * 21).view(2, 1, 21).float(), (8,), 0.5, 3)
    assert seen == [0, 3, 6, 10, 13, 21, 24, 27, 31, 34]  # 3.25 apart, rounded; each image for itself


# --------------------------------------------------------------------------------------- masks and adaptation


def by_hand(net, folder, case, axes, mirrors):
    """The mask where no resampling and no second window is needed: body, z-score, logits of all mirror images."""
    voxels = np.asarray(nib.load(folder / f"{case}_0000.nii.gz").dataobj).T.copy()
    box, mask = body_of(voxels[None], case)
    cut = voxels[box]
    inside = cut[mask[box]]
    cut[mask[box]] = (inside - inside.mean()) / inside.std()
    image = torch.from_numpy(cut)
    image = image[:, None] if axes == 2 else image[None, None]
    chosen = [a for n in range(axes + 1 if mirrors else 1) for a in itertools.combinations(range(2, 2 + axes), n)]
    with torch.no_grad():
        logits = sum(net(image.flip(a))[0].flip(a) for a in chosen) / len(chosen)
    found = np.zeros(voxels.shape, np.uint8)
    found[box] = logits.argmax(1).numpy().reshape(cut.shape)
    return found.T


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("flip", [True, False])
def test_masks_are_those_of_the_network_s_own_windows(tmp_path, axes, flip):
    """Whose body is as large as the window."""
    size = {"patch_size": [6, 12, 8][-axes:], "spacing": [2.5, 0.9, 1.2][-axes:]}
    folder, net = results_of(tmp_path / "there", axes, **size)
    weights = adopted(folder, tmp_path / "last.pkl")
    here = volumes(tmp_path / "new", size=(11, 15, 7))
    masks = predicted(weights, here, tmp_path / "out", *([] if flip else ["--flip"]))
    for case, mask in masks.items():
        np.testing.assert_array_equal(mask, by_hand(net, here, case, axes, mirrors=flip))
    assert len(masks) == 2
    assert len(np.unique(np.concatenate([mask.ravel() for mask in masks.values()]))) > 1


@pytest.mark.parametrize("axes", [2, 3])
def test_it_adapts_and_its_adapted_network_is_used_alike(tmp_path, axes):
    folder, _ = results_of(tmp_path / "there", axes, channels=2)
    weights = adopted(folder, tmp_path / "last.pkl")
    here = volumes(tmp_path / "new", channels=2)
    sizes = ["--prior_mm2", 20, 20] if axes == 2 else []
    flags = ["--adapt", *sizes, "--n_epoch", 1, "--l_rate", "1e-3", "--batch_size", 4]
    masks = predicted(weights, here, tmp_path / "out", *flags, channels=2)
    made = tmp_path / "out/adaptation/run/last.pkl"
    before, after = load_checkpoint(weights), load_checkpoint(made)
    moved = [name for name, value in before["net"].items() if not torch.equal(value, after["net"][name])]
    assert len(moved) > len(before["net"]) / 2
    told = after["preprocessing"]
    assert told["card"]["nnunet"] == before["preprocessing"]["card"]["nnunet"]
    assert (told["crop"], told["overlap"]) == ((None if axes == 2 else [4, 8, 8]), 0.5)
    again = predicted(made, here, tmp_path / "again", channels=2)
    assert again.keys() == masks.keys() == {"case0", "case1"}
    assert all(np.array_equal(again[case], mask) for case, mask in masks.items())


def test_a_network_of_volumes_may_be_told_volumes_but_no_areas(tmp_path):
    """Then it sees whole volumes as it learns, and the windows of its plan as it predicts."""
    weights = adopted(results_of(tmp_path / "there", 3)[0], tmp_path / "last.pkl")
    here = volumes(tmp_path / "new")
    with pytest.raises(
        UserError, match="--prior_mm2 is the area of a class in a slice, and this network takes volumes"
    ):
        predicted(weights, here, tmp_path / "out", "--adapt", "--prior_mm2", 9, 9)
    masks = predicted(weights, here, tmp_path / "out", "--adapt", "--prior_mm3", 90, 90, "--n_epoch", 1)
    told = load_checkpoint(tmp_path / "out/adaptation/run/last.pkl")["preprocessing"]
    assert told["crop"][1:] > [8, 8]
    assert told["card"]["nnunet"]["window"] == [4, 8, 8]
    assert len(masks) == 2


def test_images_of_other_channels_are_refused(tmp_path):
    weights = adopted(results_of(tmp_path / "there", 3)[0], tmp_path / "last.pkl")
    with pytest.raises(UserError, match="takes images of 1 channels"):
        predicted(weights, volumes(tmp_path / "two", channels=2), tmp_path / "out", channels=2)


def test_an_adopted_network_is_evaluated_and_adapted_by_main(tmp_path):
    """On the set that an adaptation made, with scale and shift of the instance norms alone."""
    weights = adopted(results_of(tmp_path / "there")[0], tmp_path / "last.pkl")
    here = volumes(tmp_path / "new")
    predicted(weights, here, tmp_path / "out", "--adapt", "--prior_mm2", 20, 20, "--n_epoch", 1)
    words = ["--target_dataset", tmp_path / "out/adaptation/set", "--target_folders", "[('IMG', nii_transform, False)]"]
    words += ["--target_losses", "[('SelfEntropy', {}, 1)]", "--grp_regex", r"^(.+)_(\d+)$", "--n_class", 3, "--cpu"]
    words += ["--method", "sfda", "--trainable", "bn", "--l_rate", "1e-3", "--n_epoch", 1, "--model_weights", weights]
    words += ["--network", load_checkpoint(weights)["network"], "--workdir", tmp_path / "run"]
    program.main(list(map(str, words)))
    before, after = (load_checkpoint(path)["net"] for path in (weights, tmp_path / "run/last.pkl"))
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    norms = {name for name in before if ".all_modules.1." in name}
    assert moved
    assert moved <= norms
