"""A folder of results as nnU-Net v2 leaves it, with a network of random weights that its package built."""

import json

import numpy as np
import torch
from dynamic_network_architectures.architectures import unet

KINDS = {False: ("PlainConvUNet", "n_conv_per_stage"), True: ("ResidualEncoderUNet", "n_blocks_per_stage")}


def shape_of(axes, residual=False):
    """arch_kwargs of a plan."""
    dim = "2d" if axes == 2 else "3d"
    return {
        "n_stages": 3,
        "features_per_stage": [4, 8, 8],
        "conv_op": f"torch.nn.modules.conv.Conv{dim}",
        "kernel_sizes": [[3] * axes] * 3 if axes == 2 else [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
        "strides": [[1] * axes, [2] * axes, [1, 2, 2][-axes:]],
        KINDS[residual][1]: [1, 2, 2],
        "n_conv_per_stage_decoder": [2, 1],
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dim}",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }


def theirs(axes, channels=1, classes=3, residual=False, seed=0):
    """The network that nnU-Net itself would build of the plan, with deep supervision as in its training."""
    torch.manual_seed(seed)
    told = shape_of(axes, residual)
    conv, norm = (getattr(torch.nn, f"{kind}{axes}d") for kind in ("Conv", "InstanceNorm"))
    told |= {"conv_op": conv, "norm_op": norm, "nonlin": torch.nn.LeakyReLU, "deep_supervision": True}
    net = getattr(unet, KINDS[residual][0])(input_channels=channels, num_classes=classes, **told)
    for parameter in net.parameters():  # scales and shifts of the norms too
        torch.nn.init.normal_(parameter, 0, 0.5)
    torch.nn.init.zeros_(net.decoder.seg_layers[-1].bias)  # so that no class is everywhere
    return net


def resampling(order):
    told = {"is_seg": False, "order": order, "order_z": 0, "force_separate_z": None}
    return "resample_data_or_seg_to_shape", told


def plans_of(axes, channels=1, residual=False, **changed):
    data, scores = resampling(3), resampling(1)
    network = f"dynamic_network_architectures.architectures.unet.{KINDS[residual][0]}"
    told = {
        "preprocessor_name": "DefaultPreprocessor",
        "patch_size": [8, 8] if axes == 2 else [4, 8, 8],
        "spacing": [1.0, 1.0] if axes == 2 else [2.5, 1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization"] * channels,
        "use_mask_for_norm": [True] * channels,
        "resampling_fn_data": data[0],
        "resampling_fn_data_kwargs": data[1],
        "resampling_fn_probabilities": scores[0],
        "resampling_fn_probabilities_kwargs": scores[1],
        "architecture": {"network_class_name": network, "arch_kwargs": shape_of(axes, residual)},
    }
    return {
        "dataset_name": "Dataset009_Fake",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "configurations": {"parent": told, "mine": {"inherits_from": "parent", **changed}},
    }


def checkpoint(net, axes):
    """What its trainer saves: numbers of numpy, a device and an optimiser among it."""
    optimiser = torch.optim.SGD(net.parameters(), 1e-2, momentum=0.99, nesterov=True)
    return {
        "network_weights": net.state_dict(),
        "optimizer_state": optimiser.state_dict(),
        "grad_scaler_state": None,
        "logging": {"mean_fg_dice": [np.float64(0.5), np.float32(0.25)], "lrs": [0.01]},
        "_best_ema": np.float64(0.5),
        "current_epoch": 1,
        "init_args": {"configuration": "mine", "fold": 0, "device": torch.device("cpu"), "plans": {}},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": tuple(range(axes)),
    }


def results_of(folder, axes=2, channels=1, residual=False, plans=None, **changed):
    """The folder, and the network in it. changed: entries of the configuration."""
    net = theirs(axes, channels, residual=residual)
    (folder / "fold_0").mkdir(parents=True)
    torch.save(checkpoint(net, axes), folder / "fold_0/checkpoint_final.pth")
    card = {"channel_names": {str(c): "T1" for c in range(channels)}, "file_ending": ".nii.gz", "numTraining": 6}
    card |= {"labels": {"background": 0, "shell": 1, "core": 2}}
    (folder / "dataset.json").write_text(json.dumps(card))
    (folder / "plans.json").write_text(json.dumps(plans_of(axes, channels, residual, **changed) | (plans or {})))
    return folder, net
