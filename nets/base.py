"""What every segmentation network shares: the registry, the base class, the initial weights, what batches it takes."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from nets.norm_mixing import mixed_prediction
from processes.errors import UserError
from utils import Registry, fits, listing

NETWORKS = Registry("network")

CONVOLUTIONS = {2: nn.Conv2d, 3: nn.Conv3d}
LINEAR = {2: "bilinear", 3: "trilinear"}
POOLS = {2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}


LEAST = {"n_class": 2}  # background is a class
MOST = {"n_class": 256, "depth": 12}  # labels are bytes; each level of depth halves an image, and doubles the widths
WIDEST = 2**16  # channels


class Network(nn.Module):
    """Base class: `forward` is `logits` on an image padded to a multiple of `multiple`, cropped back.

    One that halves its axes unequally says in `multiples` of what it pads each to a multiple; `multiple` then fits all.

    An image has `axes` spatial axes: where the shapes below say (W,H), a network of volumes has (D,W,H). The padding
    repeats the last row, column and slice, at the far end of each axis, so pixel (0,0) stays where it is.
    A subclass implements `features`. Its `coarser` are the channels of the maps before the classifier's that heads
    of their own can classify, the nearest first; `head_rate` is the learning-rate factor of such a head.
    A network with an encoder of its own has `n_blocks` decoder blocks; `widths` are the channels of `decode`'s maps.
    One that `mixes` predicts in evaluation mode at several batch-norm statistics (norm_mixing.py).
    `published` names the parts of a published network in the order in which it declares them (published_weights.py).
    """

    axes: int = 2
    multiple: int = 1
    multiples: tuple[int, ...] = ()
    align_corners: bool = False
    coarser: tuple[int, ...] = ()
    head_rate: float = 1.0
    keeps_channels_last: bool = True  # whether its maps stay in that memory layout from the first layer to the last
    n_blocks: int = 0
    widths: tuple[int, ...] = ()
    published: tuple[str, ...] = ()
    mixes: bool = False
    classifier: nn.Module

    def __init__(self, in_channels: int, n_class: int, **widths: int) -> None:
        super().__init__()
        given: dict[str, Any] = {"in_channels": in_channels, "n_class": n_class} | widths
        limits = {key: (LEAST.get(key, 1), MOST.get(key, WIDEST)) for key in given}
        wrong = [
            f"{key}={value!r} (at {f'most {most}' if fits(value, int) and value > most else f'least {least}'})"
            for (key, value), (least, most) in zip(given.items(), limits.values(), strict=True)
            if not fits(value, int) or not least <= value <= most
        ]
        if wrong:
            raise UserError(f"{type(self).__name__} needs whole numbers; it cannot have {listing(wrong)}.")
        self.n_class = n_class

    def forward(self, image: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """(B,C,W,H) -> (B,K,W,H), or of another `size`: upsampled to it from the classifier's own, once."""
        if self.mixes and not self.training:
            return mixed_prediction(lambda: self._forward(image, size), batch_norms(self))
        return self._forward(image, size)

    def _forward(self, image: Tensor, size: Sequence[int] | None) -> Tensor:
        padded = self.pad(image)
        if size is None or tuple(size) == tuple(image.shape[2:]):
            return _crop(self.logits(padded), image)
        if padded is image:
            return self._upsample(self.classifier(self.features(image)[-1]), size)
        return self._upsample(_crop(self.logits(padded), image), size)

    def pad(self, image: Tensor) -> Tensor:
        """(B,C,W,H) -> (B,C,W',H'), the next multiples; an image that fits comes back itself."""
        missing = self._missing(image)
        margins = [margin for far in reversed(missing) for margin in (0, far)]  # F.pad begins with the last axis
        return F.pad(image, margins, mode="replicate") if any(missing) else image

    def _missing(self, image: Tensor) -> list[int]:
        """How many pixels each spatial axis lacks to the next multiple."""
        multiples = self.multiples or (self.multiple,) * self.axes
        return [-size % multiple for size, multiple in zip(image.shape[2:], multiples, strict=True)]

    def features(self, image: Tensor) -> list[Tensor]:
        """Maps (B,*,w,h) of the padded image, coarse to fine; the classifier reads the last."""
        raise NotImplementedError

    def logits(self, image: Tensor) -> Tensor:
        """(B,C,W,H) -> (B,K,W,H), W and H divisible by `multiple`."""
        return self._classify(image, [self.classifier])[0]

    def levels(self, image: Tensor, heads: Sequence[nn.Module]) -> list[Tensor]:
        """Logits (B,K,W,H) of the classifier, then those of head 1, 2, … on coarser and coarser maps; one pass."""
        return [_crop(logits, image) for logits in self._classify(self.pad(image), [self.classifier, *heads])]

    def with_features(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B,K,W,H) as `forward` gives them, and the map (B,*,w,h) that the classifier read; one pass.

        The map is that of the padded image.
        """
        padded = self.pad(image)
        finest = self.features(padded)[-1]
        return self.on_image(self.classifier(finest), image), finest

    def on_image(self, maps: Tensor, image: Tensor) -> Tensor:
        """Maps (B,*,w,h) of the padded images -> (B,*,W,H), upsampled as logits are, and cropped to the images."""
        padded = tuple(size + more for size, more in zip(image.shape[2:], self._missing(image), strict=True))
        return _crop(self._upsample(maps, padded), image)

    def _classify(self, image: Tensor, classifiers: Sequence[nn.Module]) -> list[Tensor]:
        """Logits (B,K,W,H) of each classifier on a map of its own, the finest first; W, H as in `logits`."""
        maps = self.features(image)[::-1][: len(classifiers)]
        return [
            self._upsample(classify(level), image.shape[2:]) for classify, level in zip(classifiers, maps, strict=True)
        ]

    def _upsample(self, logits: Tensor, size: Sequence[int]) -> Tensor:
        if logits.shape[2:] == size:
            return logits
        return F.interpolate(logits, size=size, mode=LINEAR[self.axes], align_corners=self.align_corners)

    def make_head(self, level: int) -> nn.Module:
        """A fresh classifier of the map that lies `level` = 1, 2, … before the classifier's own, for `levels`.

        Raises UserError where the network has no such map.
        """
        most = 1 + len(self.coarser)
        if not 1 <= level < most:
            raise UserError(
                f"{type(self).__name__} has {most} level{'s' if most > 1 else ''} of logits, not {level + 1}. "
                f"Give --lambda_adv {f'at most {most} weights' if most > 1 else 'one weight'}, or take another network."
            )
        return self._head(self.coarser[level - 1])

    def _head(self, n_in: int) -> nn.Module:
        return CONVOLUTIONS[self.axes](n_in, self.n_class, 1).apply(xavier)

    def encode(self, image: Tensor) -> list[Tensor]:
        """Maps (B,*,w,h) of an image that is already padded, fine to coarse, the bottleneck last.

        Raises UserError where the network has no encoder of its own; so do `decode` and `parts`.
        """
        raise self._no_encoder()

    def decode(self, maps: Sequence[Tensor], blocks: int | None = None) -> list[Tensor]:
        """Maps (B, *, w, h) of `encode` -> the bottleneck, then the map after decoder block 1, 2, … up to `blocks`.

        Without `blocks` these are all blocks. If more layers follow, the map that the classifier reads comes last.
        Raises UserError for more blocks than there are.
        """
        raise self._no_encoder()

    def parts(self, blocks: int) -> tuple[str, ...]:
        """The prefixes in the state dict of the encoder, bottleneck included, and of the first `blocks` decoder blocks.

        Raises UserError for more blocks than there are.
        """
        raise self._no_encoder()

    def _no_encoder(self) -> UserError:
        return UserError(
            f"{type(self).__name__} has no encoder of its own; take UNet, ResidualUNet, PooledUNet or UNet3D."
        )

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], float]]:
        """The parameters that require a gradient, in groups, each with its learning-rate factor."""
        return [(trainable(self), 1.0)]

    def lacks_published(self, name: str) -> bool:
        """Whether an entry of the published state dict is of a layer that this network does not have."""
        return False

    def from_published(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Turns published weights that have this network's names already into what its layers take."""
        return state

    def load_backbone(self, path: Path) -> None:
        """Fills the pre-trained part from a state dict. Raises UserError where there is none or it does not fit."""
        raise UserError(
            f"{type(self).__name__} has no pre-trained backbone; DeepLabV2 and DeepLabVGG have one. "
            f"Leave {path} (--backbone_weights) out, or change the network."
        )


def _crop(logits: Tensor, image: Tensor) -> Tensor:
    """The part of the logits that lies on the image, without the padding."""
    return logits[(..., *(slice(size) for size in image.shape[2:]))]


def trainable(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def xavier(module: nn.Module) -> None:
    """For `apply`: makes convolutions Xavier-normal and their biases 0.

    A module that has shapes and no weights (on the meta device) is left as it is: torch would load its compiler to draw
    its weights, which takes seconds.
    """
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Conv3d) and not module.weight.is_meta:
        nn.init.xavier_normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def initialise(module: nn.Module) -> None:
    """For `apply`: `xavier`, and batch-norm weights from N(1, 0.02); their biases are 0 as torch makes them."""
    xavier(module)
    if isinstance(module, nn.BatchNorm2d) and not module.weight.is_meta:
        nn.init.normal_(module.weight, 1.0, 0.02)


# ---------------------------------------------------------------------------------------- batches that are too small


def values_per_channel(module: nn.Module, shape: Sequence[int]) -> dict[str, int]:
    """Name of each batch norm in training mode -> how many values of a channel it would average over.

    The module is called on an image of this shape (B,C,…) on the meta device, so nothing is computed: no weight,
    running statistic or mode changes. The dict is empty for a module that looks at values and so cannot be called.
    """
    norms = {part: name for name, part in module.named_modules() if isinstance(part, _BatchNorm) and part.training}
    counts: dict[str, int] = {}

    def count(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].numel() // inputs[0].shape[1]
        counts[norms[norm]] = min(values, counts.get(norms[norm], values))

    modes = [(part, part.training) for part in module.modules()]
    hooks = [norm.register_forward_pre_hook(count) for norm in norms]
    alike = [part for part in module.modules() if isinstance(part, _BatchNorm | nn.PReLU)]
    ghosts = {name: each.to("meta") for name, each in chain(module.named_parameters(), module.named_buffers())}
    for part in alike:  # what keeps the shape is most of the time, and norms themselves would refuse
        part.forward = _as_it_is
    module.eval()
    try:
        with torch.no_grad():
            functional_call(module, ghosts, (torch.empty(*shape, device="meta"),))
    except (NotImplementedError, RuntimeError):
        return {}
    finally:
        for hook in hooks:
            hook.remove()
        for part in alike:
            del part.forward
        for part, mode in modes:
            part.training = mode
    return counts


def _as_it_is(values: Tensor) -> Tensor:
    return values


def batch_norms(module: nn.Module) -> list[_BatchNorm]:
    """The batch norms in a network, in the order in which it declares them."""
    return [part for part in module.modules() if isinstance(part, _BatchNorm)]


def check_batch_norms(module: nn.Module, shape: Sequence[int]) -> None:
    """Raises UserError if images of this shape (B,C,…) leave a batch norm in training mode one value a channel.

    That one is its own mean, so nothing is left of it.
    """
    if shape[0] > 1 and len(shape) == 4:  # as many values at least; a network of volumes refuses small ones itself
        return
    single = [name for name, count in values_per_channel(module, shape).items() if count == 1]
    if not single:
        return
    count, size = shape[0], " x ".join(map(str, shape[2:]))
    raise UserError(
        f"{len(single)} batch norms of the network ({listing(single, 3)}) would average over one value: in a batch of "
        f"{count} image of {size} pixels, which is there at least once an epoch, one pixel is left of it where they "
        "stand. Take a --batch_size that leaves no single image at the end of the set, larger images, or a network "
        "that halves them less often."
    )
