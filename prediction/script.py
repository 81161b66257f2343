"""A network and all that is done to a volume around it, as one TorchScript program: voxels in, probabilities out.

Whoever runs it needs torch alone: MONAI, or C++. The volume comes turned to the network's directions. The steps are
those of preprocess/slicing, datasets/grey_matching.py and nets/sliding_window.py, written in the part of Python that
TorchScript compiles; tests hold both against each other. Shapes: C channels, K classes, a volume (C, X, Y, Z), a stack
(N, W, H) of its planes.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.grey_matching import SourceLevels
from datasets.grey_quantiles import LOOKED_AT, SAMPLE
from nets.bundle import LEVELS
from nets.sliding_window import gaussian
from preprocess.slicing.spec import SliceSpec

STEP = 8  # slices at a time
TINY = torch.finfo(torch.float32).tiny


class GreyLevels(nn.Module):
    """Grey levels of a stack as the network sees them; what files/grey_levels.py does."""

    def __init__(self, spec: SliceSpec) -> None:
        super().__init__()
        how = spec.normalisation
        self.kind, self.by_slice = how.kind, how.scope == "slice"
        self.first, self.last = (percent / 100 for percent in how.percentiles)
        self.low, self.high = map(float, how.window or (0, 1))
        self.least, self.most = map(float, how.clip or (-math.inf, math.inf))
        self.clips = not how.no_clip and how.kind not in ("zscore", "none")

    def forward(self, stack: Tensor) -> tuple[Tensor, Tensor]:
        """(N, W, H) float32 -> the same normalised, and (N, 1, 1) what lies outside of each plane."""
        stack = stack.clamp(self.least, self.most)
        lowest = stack.amin((1, 2), keepdim=True)
        if not self.by_slice:
            shift, width = self.fit(stack)
            lowest = lowest.amin().expand(len(stack), 1, 1)
            return self.scaled(stack, shift, width), self.scaled(lowest, shift, width)
        planes, fills = [], []
        for plane, level in zip(stack, lowest):  # noqa: B905  TorchScript knows no `strict`
            shift, width = self.fit(plane[None])
            planes.append(self.scaled(plane, shift, width))
            fills.append(self.scaled(level, shift, width))
        return torch.stack(planes), torch.stack(fills)

    def fit(self, stack: Tensor) -> tuple[float, float]:
        """Shift and width of the scale that normalises a stack."""
        if self.kind == "none":
            return 0.0, 1.0
        if self.kind == "minmax":
            return float(stack.min()), float(stack.max()) - float(stack.min())
        if self.kind == "window":
            return self.low, self.high - self.low
        values = stack.double().flatten()
        if self.kind == "zscore":
            return float(values.mean()), float(values.std(correction=0))
        ordered = values.sort()[0]
        low, high = at_share(ordered, self.first), at_share(ordered, self.last)
        return low, high - low

    def scaled(self, levels: Tensor, shift: float, width: float) -> Tensor:
        if width == 0:
            return torch.zeros_like(levels)
        levels = (levels - shift) / width
        return levels.clamp(0, 1) if self.clips else levels


def at_share(ordered: Tensor, share: float) -> float:
    """The quantile of (n,) float64 in ascending order, interpolated linearly."""
    place = share * (len(ordered) - 1)
    below = int(place)
    low, high = float(ordered[below]), float(ordered[min(below + 1, len(ordered) - 1)])
    return low + (place - below) * (high - low)


class Unmatched(nn.Module):
    """Grey levels stay."""

    def forward(self, images: Tensor) -> Tensor:
        return images


class Matched(nn.Module):
    """Grey levels of a patient brought to those of the source, as datasets/grey_matching.py does."""

    def __init__(self, source: SourceLevels) -> None:
        super().__init__()
        wanted = torch.from_numpy(source.levels).double()
        if source.share < 0:
            wanted = torch.cat([wanted[:, :1], wanted[:, 1:].flip(1)], 1)
        self.share = abs(source.share)
        self.register_buffer("wanted", wanted)
        self.register_buffer("steps", (torch.arange(LEVELS, dtype=torch.float64) + 0.5) / LEVELS)
        self.looked_at, self.sample, self.tiny = LOOKED_AT, SAMPLE, TINY

    def forward(self, images: Tensor) -> Tensor:
        """(R, C, *size) all images of a patient -> the same."""
        seen, found = self.thinned(images), []
        for c in range(images.shape[1]):
            found.append(self.channel(images[:, c], seen[c], self.wanted[c]))
        return torch.stack(found, 1)

    def thinned(self, images: Tensor) -> Tensor:
        """(C, n) of them: at most so many images, evenly spread, and every so many pixels along each axis."""
        count, last = min(len(images), self.looked_at), len(images) - 1
        rows = [last if row and row == count - 1 else int(row * (last / max(count - 1, 1))) for row in range(count)]
        axes, pixels = images.dim() - 2, images[0, 0].numel()
        step = max(math.ceil((count * pixels / self.sample) ** (1 / axes)), 1)
        thin = images[rows]
        for axis in range(axes):
            thin = thin.index_select(2 + axis, torch.arange(0, thin.shape[2 + axis], step, device=thin.device))
        return thin.transpose(0, 1).flatten(1)

    def channel(self, images: Tensor, seen: Tensor, wanted: Tensor) -> Tensor:
        """(R, *size) and (n,) of one channel, (KNOTS,) levels of the source -> (R, *size)."""
        values = seen.double()
        body = values[values > values.min()].sort()[0]
        if len(body) == 0:
            return images
        place = self.steps * (len(body) - 1)
        below = place.long()
        part, low, high = place - below, body[below], body[(below + 1).clamp_max(len(body) - 1)]
        quantiles = torch.where(part < 0.5, low + (high - low) * part, high - (high - low) * (1 - part))
        knots = torch.cat([values.min()[None], quantiles.cummax(0)[0]]).float()
        group = torch.cat([torch.zeros_like(below[:1]), (knots[1:] != knots[:-1]).long()]).cumsum(0)
        sums, sizes = torch.zeros_like(wanted), torch.zeros_like(wanted)
        sums.scatter_add_(0, group, wanted)
        sizes.scatter_add_(0, group, torch.ones_like(wanted))
        levels = (sums / sizes)[group].float()
        after = torch.searchsorted(knots, images.contiguous(), right=True).clamp(1, len(knots) - 1)
        left, right = knots[after - 1], knots[after]
        share = ((images - left) / (right - left).clamp_min(self.tiny)).clamp(0, 1)
        return torch.lerp(images, levels[after - 1] + share * (levels[after] - levels[after - 1]), self.share)


class OfSlices(nn.Module):
    """A network of slices on a volume.

    rows: of a slice that its transform leaves; 0 is all. levels: whole grey levels of a png, 0 for other formats
    """

    def __init__(
        self, net: nn.Module, matching: nn.Module, spec: SliceSpec, n_class: int, multiple: int, transform: str
    ) -> None:
        super().__init__()
        self.net, self.matching, self.grey_levels = net, matching, GreyLevels(spec)
        self.axis, self.n_class, self.multiple, self.step = spec.axis, n_class, multiple, STEP
        self.size, self.padded_to = list(spec.size or (0, 0)), spec.multiple or 1
        self.levels = float(2**spec.bits - 1 if spec.format == "png" else 0)
        self.published_crop, self.published_scale = transform == "nii_transform2", transform == "nii_zscore_transform"

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, X, Y, Z) grey levels -> (B, K, X, Y, Z) probabilities, where nothing is seen those of background."""
        return torch.stack([self.of_one(volume.float()) for volume in image])

    def of_one(self, volume: Tensor) -> Tensor:
        stack = volume.movedim(self.axis + 1, 1)
        wanted = [self.side(have, want) for have, want in zip(stack.shape[2:], self.size)]  # noqa: B905
        seen = self.matching(self.read(stack, wanted))
        p = torch.cat([self.predict(part) for part in seen.split(self.step)])
        whole = torch.zeros(len(p), self.n_class, wanted[0], wanted[1], device=p.device)
        whole[:, 0] = 1
        whole[:, :, : p.shape[2], : p.shape[3]] = p
        background = torch.zeros(self.n_class, 1, 1, device=p.device)
        background[0] = 1
        return self.cut(whole, background, stack.shape[2:], -1).movedim(0, self.axis + 1)

    def side(self, have: int, want: int) -> int:
        want = have if want == 0 else want
        return (want + self.padded_to - 1) // self.padded_to * self.padded_to

    def read(self, stack: Tensor, wanted: list[int]) -> Tensor:
        """(C, N, W, H) grey levels -> (N, C, w, h) as a run reads the slices."""
        channels = []
        for channel in stack:
            planes, fill = self.grey_levels(channel)
            planes = self.cut(planes[:, None], fill[:, None], wanted, 1)[:, 0]
            channels.append((planes * self.levels).round() / self.levels if self.levels > 0 else planes)
        seen = torch.stack(channels, 1)
        if self.published_scale:
            seen = (seen + 4) / 8.5
        return seen[:, :, :384, :384] if self.published_crop else seen

    def cut(self, planes: Tensor, fill: Tensor, size: list[int], way: int) -> Tensor:
        """(N, C, W, H) planes -> (N, C, *size), cut or padded round the middle; way -1 puts back what 1 cut."""
        out = fill.expand(planes.shape[0], planes.shape[1], size[0], size[1]).clone()
        w, w_end, w_to = self.span(planes.shape[2], size[0], way)
        h, h_end, h_to = self.span(planes.shape[3], size[1], way)
        out[:, :, w_to : w_to + w_end - w, h_to : h_to + h_end - h] = planes[:, :, w:w_end, h:h_end]
        return out

    def span(self, have: int, want: int, way: int) -> tuple[int, int, int]:
        """Of an axis: first and last pixel that stay, and where the first comes to lie."""
        offset = (have - want) // 2 if way == 1 else -((want - have) // 2)
        first = max(offset, 0)
        return first, max(min(offset + want, have), first), first - offset

    def predict(self, images: Tensor) -> Tensor:
        """(n, C, w, h) -> (n, K, w, h) probabilities; padded at the far end as the network pads."""
        w, h = images.shape[2], images.shape[3]
        down, right = -w % self.multiple, -h % self.multiple
        if down + right > 0:
            images = F.pad(images, [0, right, 0, down], mode="replicate")
        return self.net(images)[:, :, :w, :h].softmax(1)


class OfVolumes(nn.Module):
    """A network of whole volumes, in windows that overlap."""

    def __init__(
        self,
        net: nn.Module,
        matching: nn.Module,
        n_class: int,
        axes: tuple[int, int, int],
        channels: tuple[int, ...],
        scale: tuple[float, float],
        window: tuple[int, int, int],
        overlap: float,
    ) -> None:
        super().__init__()
        self.net, self.matching, self.mean, self.sd, self.overlap = net, matching, *scale, overlap
        self.channels, self.window, self.n_class = list(channels), list(window), n_class
        self.axes = [0, *(1 + axis for axis in axes)]
        self.back = [self.axes.index(axis) for axis in range(4)]
        self.register_buffer("weight", gaussian(window))

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, X, Y, Z) grey levels -> (B, K, X, Y, Z) probabilities."""
        return torch.stack([self.of_one(volume.float()) for volume in image])

    def of_one(self, volume: Tensor) -> Tensor:
        volume = (volume[self.channels].permute(self.axes) - self.mean) / self.sd
        p = self.predict(self.matching(volume[None]))[0]
        return p.permute(self.back)

    def predict(self, image: Tensor) -> Tensor:
        """(1, C, D, W, H) -> (1, K, D, W, H): the weighted mean of the windows' probabilities."""
        d, w, h = image.shape[2:]
        missing = [max(want - have, 0) for want, have in zip(self.window, image.shape[2:])]  # noqa: B905
        if max(missing) > 0:
            image = F.pad(image, [0, missing[2], 0, missing[1], 0, missing[0]], mode="replicate")
        places = [self.starts(have, want) for have, want in zip(image.shape[2:], self.window)]  # noqa: B905
        size = image.shape[2:]
        total = torch.zeros([1, self.n_class, size[0], size[1], size[2]], device=image.device)
        weights = torch.zeros_like(image[:, :1])
        wide, high, deep = self.window[0], self.window[1], self.window[2]
        for a in places[0]:
            for b in places[1]:
                for c in places[2]:
                    p = self.net(image[:, :, a : a + wide, b : b + high, c : c + deep]).softmax(1)
                    total[:, :, a : a + wide, b : b + high, c : c + deep] += p * self.weight
                    weights[:, :, a : a + wide, b : b + high, c : c + deep] += self.weight
        return (total / weights)[:, :, :d, :w, :h]

    def starts(self, size: int, window: int) -> list[int]:
        """Where windows begin along an axis, as nets/sliding_window.py has them."""
        step = max(window * (1 - self.overlap), 1.0)
        steps = -math.floor((window - size) / step)
        return [place * (size - window) // steps for place in range(steps + 1)] if steps > 0 else [0]
