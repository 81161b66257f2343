"""Priors whose image-level tags are partly wrong, as of a person in a hurry: for sensitivity runs."""

import numpy as np


def mistag(tagged: np.ndarray, untagged: np.ndarray, share: float, draw: int) -> np.ndarray:
    """(N, K) pixels of a prior in which this share of the tags is wrong; a tag is of a slice and a foreground class.

    tagged     (N, K) pixels of the prior, where a class without a pixel is one that the slice does not show
    untagged   (N, K) pixels of the same classes in every slice, which one gets that is wrongly said to be there
    draw       which tags, by its number; those of a smaller share are among those of a larger one

    A slice that the prior leaves out (all zero) keeps being left out. Classes that would outgrow a slice share it in
    their proportions.
    """
    total = tagged.sum(axis=1)
    shown, counted = tagged[:, 1:] > 0, np.repeat(total[:, None] > 0, tagged.shape[1] - 1, axis=1)
    order = np.random.default_rng(draw).permutation(np.flatnonzero(counted))
    wrong = np.zeros(shown.size, bool)
    wrong[order[: round(share * len(order))]] = True
    turned = np.where(shown, 0, untagged[:, 1:])
    foreground = np.where(wrong.reshape(shown.shape), turned, tagged[:, 1:])
    wanted = np.maximum(foreground.sum(axis=1), 1)
    foreground = np.where((wanted > total)[:, None], np.floor(foreground * (total / wanted)[:, None]), foreground)
    return np.concatenate([(total - foreground.sum(axis=1))[:, None], foreground], axis=1)
