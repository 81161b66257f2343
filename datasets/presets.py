"""Sets of ranges that go by a name: `--augmentation slaug`, or with changes "{'preset': 'slaug', 'flip': True}".

What a preset leaves out has its default in `Augmentation`, so each says what becomes of contrast and gamma, which are
on there. None flips: classes may be told by their side.
"""

from typing import Any

MOVES = {"rotate": 20, "scale": 0.5}  # of CSDG, without its shear, and its shift by 15 pixels of 192
PRESETS: dict[str, dict[str, Any]] = {
    # curves of the classes on half of the images and a curve of all on half of the others; mild moves, a worse scanner
    "transfer": {
        "rotate": 15,
        "scale": 0.2,
        "contrast": 0,
        "gamma": 0,
        "curves": 0.5,
        "label_curves": 0.5,
        "blur": 0.2,
        "low_resolution": 0.2,
        "noise": 0.05,
    },
    # pictures whose scale nobody wrote down, of objects that another site shows up to 2.5 times as large or as small
    "sizes": {"scale": 1.5},
    # CSDG, Ouyang et al., TMI 2022: every image by a random network; its gamma, before that network, is left out
    "gin": MOVES | {"contrast": 0, "gamma": 0, "spread": 0.4, "noise": 0.15, "gin": 1},
    # SLAug, Su et al., AAAI 2023, without its saliency: half of the images with a curve, half with a curve a class
    "slaug": MOVES | {"contrast": 0, "gamma": 0, "spread": 0.4, "noise": 0.15, "curves": 1, "label_curves": 0.5},
    # BigAug, Zhang et al., TMI 2020: each of its nine with probability 1/2 there; here moves, noise, brightness, gamma
    # and contrast fall on all images, at strengths that include 0
    "bigaug": {
        "rotate": 20,
        "scale": 0.6,
        "elastic": 2,
        "elastic_share": 0.5,
        "blur": 0.5,
        "sharpen": 0.5,
        "noise": 0.3,
        "offset": 0.1,
        "contrast": 0.1,
        "gamma": 1.5,
    },
    # nnU-Net's DA5 at its probabilities, without its quarter turns, transpositions and median filter
    "strong": {
        "rotate": 30,
        "scale": 0.43,
        "contrast": 0,
        "spread": 0.5,
        "brightness": 0.5,
        "gamma": 0.5,
        "noise": 0.1,
        "invert": 0.1,
        "gradient": 0.3,
        "local_gamma": 0.3,
        "blur": 0.2,
        "sharpen": 0.2,
        "low_resolution": 0.15,
        "blank": 0.4,
    },
}
