"""How far a network agrees with itself when it lacks features: pixels whose class dropout leaves as it is.

A network that is right of an image says so whichever of its features are left (AETTA, Lee et al., CVPR 2024). As
published the share is divided by a power of the entropy of the mean prediction, which a small organ makes as small as
0.007; here it is the share itself. The classifier's map loses the channels, so ten passes cost little more than one.
"""

import torch
from torch import Tensor, nn

from methods.feature_dropout import reweighted, width_of
from methods.settings import Settings
from nets.probabilities import most_probable

PASSES, DROPPED = 10, 0.4  # channels are dropped with this probability


@torch.no_grad()
def self_agreement(net: nn.Module, image: Tensor, settings: Settings, generator: torch.Generator) -> Tensor:
    """(b,) of each image (b, C, …): the share of its pixels, over the passes, whose class stays."""
    drawn = torch.rand(PASSES, width_of(net.classifier), generator=generator, device=generator.device)
    kept = (drawn >= DROPPED) / (1 - DROPPED)
    with settings.autocast():
        logits, maps = net.with_features(settings.laid_out(image))
        said = most_probable(logits)
        share = torch.zeros(len(image), device=image.device)
        for factors in kept:
            found = most_probable(net.on_image(net.classifier(reweighted(maps, factors)), image))
            share += (found == said).flatten(1).float().mean(1)
    return share / len(kept)
