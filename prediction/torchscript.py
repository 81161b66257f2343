"""The program of a network (script.py) as a file, which torch runs without this package."""

import io
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from datasets.transforms import TRANSFORMS
from prediction.export import Exported
from prediction.model import Model
from prediction.preparation import VolumePreparation, preparation
from prediction.script import Matched, OfSlices, OfVolumes, Unmatched
from processes.errors import UserError
from utils import atomic_write

SIDES = (4, 5)  # of images that are compared, in multiples of what the network halves them by


def write_torchscript(model: Model, path: Path) -> str:
    """Writes a program that maps a volume (1, C, X, Y, Z) of grey levels, turned to the network's directions, to
    probabilities (1, K, X, Y, Z). Returns a line about it.

    Raises UserError for a network whose images are made, or whose masks are read, by steps that the program has not.
    """
    if faults := _beyond(model):
        raise UserError(f"{path} was not written: {'; '.join(faults)}. predict.py --bundle does all that.")
    whole = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch recommends torch.export; MONAI's bundles are TorchScript
        torch.jit.save(torch.jit.script(_program(model).eval()), whole)
    path.parent.mkdir(exist_ok=True)
    with atomic_write(path) as file:
        file.write(whole.getbuffer())
    return "TorchScript: a volume of grey levels in, probabilities out, and all steps between"


def _beyond(model: Model) -> list[str]:
    """What of the network the program cannot do, in words."""
    recipe = model.recipe
    faults = {
        "it predicts at several batch-norm statistics of each image (--bn_mix)": model.net.mixes,
        "its masks are those of the highest expected Dice (--decode dice)": model.decode != "argmax",
        "its slices were cut round the labels (--centre labels)": recipe.tile is not None,
    }
    if recipe.plan:
        return ["its volumes are prepared as nnU-Net prepares them"]
    if recipe.crop is None:
        spec = preparation(recipe, Path()).spec
        faults["its slices are resampled (--spacing, --resize)"] = bool(spec.spacing or spec.resize)
        faults["its slices have their bias field taken out (--n4)"] = spec.n4
        faults["it takes one channel of its volumes (--channel)"] = bool(spec.channel)
    return [what for what, is_so in faults.items() if is_so]


def _program(model: Model) -> nn.Module:
    recipe, prepare = model.recipe, preparation(model.recipe, Path())
    matching = Matched(model.levels) if model.levels else Unmatched()
    net = _traced(model)
    if isinstance(prepare, VolumePreparation):
        channels, scale = prepare.channels or tuple(range(model.in_channels)), (prepare.mean, prepare.sd)
        how = (prepare.axes, channels, scale, recipe.crop, recipe.overlap)
        return OfVolumes(net, matching, model.n_class, *how)
    transform = TRANSFORMS[recipe.image.transform].__name__
    return OfSlices(net, matching, prepare.spec, model.n_class, model.net.multiple, transform)


def _traced(model: Model) -> torch.jit.ScriptModule:
    """The network on images that need no padding. Raises UserError where its trace is not the network."""
    net = Exported(model.net).cpu().float().eval()
    images = [_image(model, side) for side in SIDES] if model.recipe.crop is None else [_image(model, 0)]
    with torch.inference_mode(False), torch.no_grad():
        traced = torch.jit.trace(net, images[0], check_trace=False)
        same = all(torch.allclose(traced(image), net(image), atol=1e-4) for image in images)
    if not same:
        raise UserError(f"{model.network} cannot be traced by torch: its trace computes something else than it does.")
    return traced


def _image(model: Model, side: int) -> Tensor:
    """Random images, of the window of a network of volumes, or of sides of so many multiples."""
    size = model.recipe.crop or [model.net.multiple * (side + place) for place in range(2)]
    size = [-(-n // model.net.multiple) * model.net.multiple for n in size]
    return torch.randn(2, model.in_channels, *size, generator=torch.Generator().manual_seed(side))
