"""A network as ONNX, compared with what torch computes before the file gets its name."""

import json
import tempfile
import warnings
from collections.abc import Iterator, Set
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn

from datasets.grey_matching import SHARE
from prediction.model import Model
from processes.errors import UserError
from utils import atomic_write

MOST = 1e-3  # difference of logits above which the file is refused
OPSET = 18
AXES = {2: ("width", "height"), 3: ("depth", "width", "height")}
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


class Exported(nn.Module):
    """The network on an image that needs no padding."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> Tensor:
        return self.net.logits(image)


def export_onnx(model: Model, path: Path, real: Tensor | None) -> str:
    """Writes a network that maps `image` (B, C, W, H) float32 to `logits` (B, K, W, H), or both with (D, W, H).

    Returns a line about it.

    Number and size of the images are free where the exporter can follow the network with them; then W and H are
    multiples of what the network halves them by. Else they are those of the example. What the image must be is in
    the file's metadata, as in the checkpoint.

    real: a prepared image (1, C, …) to compare on, in addition to random ones

    Raises UserError where a package lacks, the network cannot be exported, or both differ by more than MOST.
    """
    if model.net.mixes:
        raise UserError(
            f"{path} was not written: the network predicts at several batch-norm statistics of each image (--bn_mix), "
            "and what is exported is one pass. Make a run of its weights with --bn_mix 0, and export that."
        )
    onnx, runtime = _packages()
    net = Exported(model.net).cpu().float().eval()
    example = _example(model, real)
    content, free, difference = _exported(net, example, real, model.net.axes, model.net.multiple, runtime)
    model.net.to(model.device)
    if not difference <= MOST:
        raise UserError(
            f"{path} was not written: its logits differ from those of torch by up to {difference:.3g}, {MOST:g} "
            f"allowed. {model.network} cannot be had as ONNX with these packages ({', '.join(PACKAGES)})."
        )
    whole = onnx.load_from_string(content)
    recipe = model.recipe
    told = {"card": recipe.card, "image": [recipe.image.folder, recipe.image.transform], "crop": recipe.crop}
    if model.levels:  # as datasets/grey_matching.py tells
        told |= {SHARE: model.levels.share, "levels": model.levels.levels.tolist()}
    for name, value in {"n_class": model.n_class, "network": model.network, "preprocessing": told}.items():
        whole.metadata_props.add(key=name, value=value if isinstance(value, str) else json.dumps(value))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(whole.SerializeToString())
    size = f"any size in multiples of {model.net.multiple}" if 2 in free else f"size {tuple(example.shape[1:])}"
    size += "" if 0 in free else ", one at a time"
    return f"{path}: image of {size}; logits differ from torch's by at most {difference:.2g}"


def _packages() -> tuple[ModuleType, ModuleType]:
    """The packages onnx and onnxruntime. Raises UserError if one of them lacks, or onnxscript, which torch needs."""
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"--export needs the packages {', '.join(PACKAGES)}, which the environment does not have ({error}): "
            f"pip install {' '.join(PACKAGES)}. Predicting works without them."
        ) from error
    return onnx, onnxruntime


def _example(model: Model, real: Tensor | None) -> Tensor:
    """A random image of the size that the network is given: that of its set, its windows, or what is there."""
    size = model.recipe.crop or (real.shape[2:] if real is not None else model.recipe.card.get("size") or (256, 256))
    size = [-(-n // model.net.multiple) * model.net.multiple for n in size]
    return torch.randn(2, model.in_channels, *size, generator=torch.Generator().manual_seed(0))


def _exported(
    net: nn.Module, example: Tensor, real: Tensor | None, axes: int, multiple: int, runtime: ModuleType
) -> tuple[bytes, set[int], float]:
    """The file's content, which axes of an image are free, 0 for the number of images, and the largest difference.

    An exporter may fix what was to be free, without a word: a file that does not run on other sizes is none of these.
    Raises UserError where nothing can be exported.
    """
    batch = torch.export.Dim("batch")
    steps = [torch.export.Dim(f"{name}_steps", min=2) for name in AXES[axes]]
    sizes = {2 + place: multiple * step if multiple > 1 else step for place, step in enumerate(steps)}
    errors = []
    for shapes in ({0: batch, **sizes}, sizes, {0: batch}, {}):
        images, free = example if 0 in shapes else example[:1], set(shapes)
        try:
            content = _export(net, images, shapes)
            session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
            return content, free, max(_difference(session, net, each) for each in _images(images, real, free, multiple))
        except Exception as error:  # noqa: BLE001  the exporter raises anything
            errors.append(f"{type(error).__name__}: {str(error).splitlines()[0]}")
    raise UserError(f"The network cannot be exported as ONNX: {errors[-1]}.")


def _export(net: nn.Module, example: Tensor, shapes: dict[int, object]) -> bytes:
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = Path(folder) / "network.onnx"
        torch.onnx.export(
            net,
            (example,),
            file,
            dynamo=True,
            external_data=False,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes={"image": shapes} if shapes else None,
            verbose=False,
        )
        return file.read_bytes()


def _images(example: Tensor, real: Tensor | None, free: Set[int], multiple: int) -> Iterator[Tensor]:
    """What is compared: the example; one more image of another size or number, where they are free; the real one."""
    yield example
    if free:
        larger = [n + 2 * multiple if axis in free else n for axis, n in enumerate(example.shape[2:], start=2)]
        number = 3 if 0 in free else len(example)
        yield torch.randn(number, example.shape[1], *larger, generator=torch.Generator().manual_seed(1))
    if real is not None:
        is_free = 2 in free
        size = [-(-n // multiple) * multiple for n in real.shape[2:]] if is_free else example.shape[2:]
        whole = torch.zeros(*real.shape[:2], *size)
        inside = (..., *(slice(min(n, m)) for n, m in zip(real.shape[2:], size, strict=True)))
        whole[inside] = real.cpu()[inside]
        yield whole if is_free else whole.expand(len(example), *whole.shape[1:])


def _difference(session: object, net: nn.Module, image: Tensor) -> float:
    with torch.inference_mode():
        wanted = net(image).numpy()
    found = session.run(None, {"image": np.ascontiguousarray(image.numpy())})[0]
    return float(np.abs(found - wanted).max())
