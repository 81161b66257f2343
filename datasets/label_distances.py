"""Distances inside label maps and round them, measured on the CPU for the Hausdorff losses."""

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from datasets.distance_maps import signed_distance_maps
from nets.probabilities import one_hot


def border_distances(label: Tensor, n_class: int) -> Tensor:
    """(B, …) class numbers -> (B, K, …) float32 signed distances in pixels, on the CPU."""
    return torch.from_numpy(np.stack([signed_distance_maps(each, n_class) for each in label.cpu().numpy()]))


def inner_distances(label: Tensor, n_class: int) -> Tensor:
    """(B, …) class numbers -> (B, K, …) float32: inside each class the pixels to the nearest one of another, else 0.

    On the CPU. As in the published code, a class that fills the image has whatever scipy makes of a shape without a
    border. (Published, the distances of the prediction are whole numbers besides, cut towards zero.)
    """
    masks = one_hot(label, n_class, torch.bool).cpu().numpy()
    maps = [[distance_transform_edt(mask) if mask.any() else mask for mask in image] for image in masks]
    return torch.from_numpy(np.array(maps, np.float32))
