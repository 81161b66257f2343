"""Losses as importable modules: `forward(logits, target, bounds)`. Each computes in fp32, at any precision of the run.

Shapes: B batch, K classes, W and H the spatial axes (any number of them: `bk...`). Every loss takes
    logits   (B, K, W, H)       the network's raw output
    target   (B, W, H) int64    label map, or None for a loss that needs none (`needs_target`);
             (B, K, W, H) float shares, for a loss that `takes_shares`: what each class has of each pixel
             (B, K, W, H)       distance maps, for a loss that `needs_maps`
    bounds   (B, K, 2) pixels   what is known of the class sizes, lower and upper, or None (`needs_bounds`)
             (B, K+2, 2)        the same, and behind it the mm of a pixel, for a loss that `measures_mm`
and returns a scalar, or a dict of named scalars: `terms`, which add up to the loss, and `shown`, which are only logged.

Formulas: Bateson et al. 2020 and 2022 (entropy, class-ratio KL), Kervadec et al. 2019 (size penalty; boundary),
Karimi and Salcudean 2019 (Hausdorff distance), Sudre et al. 2017 (generalised Dice), Lin et al. 2017 (focal).
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.label_distances import border_distances, inner_distances
from nets.priors import BendingPrior, prior_for
from nets.probabilities import (
    EPS,
    PROPORTION_OF,
    PROPORTIONS,
    class_vector,
    constant,
    entropy,
    fits_bounds,
    fits_labels,
    in_range,
    kl_divergence,
    log_probabilities,
    most_probable,
    one_hot,
    pick,
    prior_ratios,
)
from nets.shape_moments import UsualShape, shapes_of
from processes.errors import UserError
from utils import Registry

LOSSES = Registry("loss", typed=True)


class Loss(nn.Module):
    """The base of every loss: what a loss says of itself."""

    terms: ClassVar[tuple[str, ...]] = ("",)  # names of the scalars that add up to the loss; "" for the loss itself
    shown: ClassVar[tuple[str, ...]] = ()  # names of those that are logged and count for nothing
    needs_target: ClassVar[bool] = False
    takes_shares: ClassVar[bool] = False  # whether its target may also be shares, through which a gradient flows
    needs_maps: ClassVar[bool] = False  # whether its target is distance maps, not class numbers
    needs_bounds: ClassVar[bool] = False
    measures_mm: ClassVar[bool] = False  # whether its bounds also tell the size of a pixel (datasets/slices.py)
    compares_ratios: ClassVar[bool] = False  # whether its bounds are a prior of the class ratios
    own_weights: ClassVar[bool] = False  # whether its parameters weigh its terms: alone it has no other weight
    ignores: int | None = None  # the label whose pixels count nowhere
    note: str = ""  # what a reader of the log must know of it
    bends: BendingPrior | UsualShape | None = None  # its prior, where that is estimated anew
    example: ClassVar[dict[str, Any]] = {}  # parameters that fit two classes: the tests try every loss with them

    def needs_company(self, n_class: int) -> str:
        """Why the loss must not be the only one, for an error; '' if it may."""
        return ""


class _SizeLoss(Loss):
    """A loss that compares the predicted class ratios with a prior."""

    needs_bounds = True

    def __init__(self, prop: str | bool | None, fn: str, power: float) -> None:
        super().__init__()
        fn = PROPORTION_OF.get(prop, prop) if isinstance(prop, str) else fn
        if fn not in PROPORTIONS:
            raise UserError(
                f"{type(self).__name__}: no size function '{fn}'. Known: soft_size (mean probability, prop 'mean'), "
                "norm_soft_size (the published code's, prop 'maxnorm')."
            )
        self.proportion, self.power = PROPORTIONS[fn], in_range(type(self).__name__, "power", power, EPS)

    def ratios(self, probs: Tensor) -> Tensor:
        return self.proportion(probs, self.power)


# ------------------------------------------------------------------------------- losses on the ground truth


@LOSSES.register()
class CrossEntropy(Loss):
    """−Σ_{b,k,i} ω_k y_{bki} log p_{bki} / Σ y, over the classes `idc` (all of them by default).

    `weights` ω: one a class of `idc`; they are not in the divisor, as published. Pixels that carry
    `ignore_index` count nowhere. In shares these are the pixels in which no class has a share.
    """

    example: ClassVar = {"idc": [1], "weights": [3]}
    needs_target = True
    takes_shares = True

    def __init__(
        self,
        *,
        idc: Sequence[int] | None = None,
        weights: Sequence[float] | None = None,
        ignore_index: int = 255,
    ) -> None:
        super().__init__()
        if not -(2**31) <= ignore_index <= 255:
            raise UserError(f"CrossEntropy: 'ignore_index' is a label, at most 255, or below 0; got {ignore_index}.")
        self.idc, self.weights, self.ignores = idc, weights, ignore_index

    def forward(self, logits: Tensor, target: Tensor, bounds: Tensor | None = None) -> Tensor:
        assert fits_labels(target, logits), (target.shape, logits.shape)
        log_p, n_class = log_probabilities(logits), logits.shape[1]
        weight = class_vector(self.weights, self.idc, logits, "CrossEntropy").to(log_p.dtype)
        if target.is_floating_point():
            shares = target.to(log_p)
            per_class = (shares * log_p).flatten(2).sum((0, 2))
            return -(weight * per_class).sum() / pick(shares, self.idc).sum().clamp_min(1)
        ignored = self.ignores
        if ignored < 0:  # torch's own -100, for example: the table of `_counted` has no such place
            target, ignored = target.masked_fill(target == ignored, n_class), n_class
        # On a GPU torch adds the pixels up in any order, and refuses to under --deterministic.
        reduction = "none" if torch.are_deterministic_algorithms_enabled() else "sum"
        total = F.nll_loss(log_p, target, weight, ignore_index=ignored, reduction=reduction).sum()
        return total / self._counted(target, n_class, ignored).clamp_min(1)

    def _counted(self, target: Tensor, n_class: int, ignored: int) -> Tensor:
        """How many pixels the divisor counts: those of `idc` that are not to be ignored."""
        counts = [float(self.idc is None or k in self.idc) for k in range(max(ignored, n_class - 1) + 1)]
        counts[ignored] = 0.0
        return constant(tuple(counts), torch.float32, target.device)[target].sum()


@LOSSES.register()
class NegCrossEntropy(Loss):
    """Cross-entropy on the images that hold only classes of `idc`; 0 on all others.

    For weak labels: it teaches the background from the slices that hold nothing else, and says nothing about
    the slices that hold an organ. `weights`: as in CrossEntropy.
    """

    needs_target = True

    def __init__(self, *, idc: Sequence[int] = (0,), weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.idc, self.weights = list(idc), weights

    def forward(self, logits: Tensor, target: Tensor, bounds: Tensor | None = None) -> Tensor:
        assert fits_labels(target, logits), (target.shape, logits.shape)
        log_p = log_probabilities(logits).flatten(2)  # b k i
        label = target.flatten(1)  # b i
        weight = class_vector(self.weights, self.idc, logits, "NegCrossEntropy").to(log_p.dtype)
        counted = torch.isin(label, constant(tuple(self.idc), torch.int64, label.device)).all(1)
        picked = log_p.gather(1, label.unsqueeze(1)).squeeze(1) * weight[label]  # b i
        return -(picked.mean(1) * counted).sum() / counted.sum().clamp_min(1)


@LOSSES.register()
class FocalLoss(Loss):
    """−Σ y (1 − p)^γ log p / Σ y over the classes `idc`."""

    example: ClassVar = {"idc": [1]}
    needs_target = True

    def __init__(self, *, idc: Sequence[int] | None = None, gamma: float = 2.0) -> None:
        super().__init__()
        self.idc, self.gamma = idc, in_range("FocalLoss", "gamma", gamma, 0)

    def forward(self, logits: Tensor, target: Tensor, bounds: Tensor | None = None) -> Tensor:
        assert fits_labels(target, logits), (target.shape, logits.shape)
        log_p = log_probabilities(logits)
        picked = log_p.gather(1, target.unsqueeze(1)).squeeze(1)
        counted = class_vector(None, self.idc, logits, "FocalLoss").to(log_p.dtype)[target]
        # -expm1(log p) is 1 - p without cancellation near p = 1
        return -(counted * (-torch.expm1(picked)) ** self.gamma * picked).sum() / counted.sum().clamp_min(1)


@LOSSES.register()
class DiceLoss(Loss):
    """mean_{b,k} of 1 − (2 Σ p y + ε) / (Σ p + Σ y + ε), per image, over the classes `idc`.

    A class that the image lacks costs the share of the image that is predicted as it, Σ p / |Ω|: nothing where nothing
    is predicted. As published (`legacy`, ε = 1e-10) it costs 1 whatever is predicted, without a gradient. With an ε of
    one's own, `smooth`, the formula holds for such a class too. Pixels in which no class has a share count nowhere.
    """

    example: ClassVar = {"idc": [1]}
    needs_target = True
    takes_shares = True

    def __init__(self, *, idc: Sequence[int] | None = None, smooth: float | None = None, legacy: bool = False) -> None:
        super().__init__()
        self.idc, self.smooth = idc, EPS if smooth is None else in_range("DiceLoss", "smooth", smooth, EPS)
        self.spares_absent = smooth is None and not legacy

    def forward(self, logits: Tensor, target: Tensor, bounds: Tensor | None = None) -> Tensor:
        probs, truth = _chosen(logits, target, self.idc)
        intersection, both = (probs * truth).sum(2), probs.sum(2) + truth.sum(2)
        overlap = (2 * intersection + self.smooth) / (both + self.smooth)
        if self.spares_absent:
            overlap = torch.where(truth.sum(2) > 0, overlap, 1 - probs.mean(2))
        return 1 - overlap.mean()


@LOSSES.register()
class GeneralizedDice(Loss):
    """1 − 2 (Σ_k w_k Σ p y + ε) / (Σ_k w_k Σ (p + y) + ε) per image, w_k = 1 / (Σ y_k)², then the mean.

    A class that the image lacks has the weight of the smallest one that it has, so that predicting it costs what it
    costs to miss that one. An image that lacks all of `idc` costs the share of it that is predicted as them. With the
    background among `idc`, two classes cost the same. The published 1/(0 + 1e-10)², `legacy`, makes an absent class
    the only one that counts: the loss is 1 whatever is predicted, without a gradient, until less than half a pixel of
    it is left; and then falls to -1 where `idc` lacks the background.
    """

    example: ClassVar = {"idc": [0, 1]}
    needs_target = True

    def __init__(self, *, idc: Sequence[int] | None = None, legacy: bool = False) -> None:
        super().__init__()
        self.idc, self.legacy = idc, legacy

    def forward(self, logits: Tensor, target: Tensor, bounds: Tensor | None = None) -> Tensor:
        probs, onehot = _chosen(logits, target, self.idc)
        sizes = onehot.sum(2)  # b k
        if not self.legacy:
            smallest = torch.where(sizes > 0, sizes, torch.inf).amin(1, keepdim=True)
            sizes = torch.where(sizes > 0, sizes, smallest.clamp_max(onehot.shape[2]))
        weight = 1 / (sizes + EPS) ** 2
        intersection = (weight * (probs * onehot).sum(2)).sum(1)
        both = (weight * (probs.sum(2) + onehot.sum(2))).sum(1)
        cost = 1 - 2 * (intersection + EPS) / (both + EPS)
        if not self.legacy:
            cost = torch.where((onehot.sum(2) > 0).any(1), cost, probs.mean(2).sum(1))
        return cost.mean()


def _chosen(logits: Tensor, target: Tensor, idc: Sequence[int] | None) -> tuple[Tensor, Tensor]:
    """Probabilities and ground truth, one-hot or shares, of the classes `idc`, both (B, |idc|, pixels)."""
    assert fits_labels(target, logits), (target.shape, logits.shape)
    probs = log_probabilities(logits).exp()
    truth = target.to(probs) if target.is_floating_point() else one_hot(target, logits.shape[1], probs.dtype)
    probs = probs * (truth.sum(1, keepdim=True) > 0) if target.is_floating_point() else probs
    return pick(probs, idc).flatten(2), pick(truth, idc).flatten(2)


@LOSSES.register()
class BCEGDice(Loss):
    """α · cross-entropy + (1 − α) · generalised Dice, logged apart; with `lamb` cross-entropy + λ · generalised Dice.

    The latter is the published form. `legacy`: as in GeneralizedDice.
    """

    terms = ("ce", "gdice")
    needs_target = True

    def __init__(
        self,
        *,
        idc: Sequence[int] | None = None,
        weights: Sequence[float] | None = None,
        alpha: float | None = None,
        lamb: float | None = None,
        legacy: bool = False,
    ) -> None:
        super().__init__()
        if alpha is not None and lamb is not None:
            raise UserError("BCEGDice weighs its two parts by alpha or, as published, by lamb; leave one of them out.")
        self.ce, self.gdice = CrossEntropy(idc=idc, weights=weights), GeneralizedDice(idc=idc, legacy=legacy)
        alpha = 0.5 if alpha is None else in_range("BCEGDice", "alpha", alpha, 0, 1)
        self.shares = (alpha, 1 - alpha) if lamb is None else (1.0, lamb)

    def forward(self, logits: Tensor, target: Tensor, bounds: Tensor | None = None) -> dict[str, Tensor]:
        first, second = self.shares
        return {"ce": first * self.ce(logits, target), "gdice": second * self.gdice(logits, target)}


@LOSSES.register("SurfaceLoss")
class BoundaryLoss(Loss):
    """(1/(B·|idc|·|Ω|)) Σ_{b,k ∈ idc,i} φ_{bki} p_{bki}, φ the signed distance to the true border (Kervadec et al.).

    The target is distance maps (`dist_map_transform` and its relatives): positive outside the class, negative inside.
    So a good prediction has a negative loss, and that is right. `lowest` is what the true segmentation would give on
    the same batch, −Σ|φ| over the inside: as low as the loss can get. The gradient by p is φ divided by its count.

    On a binary task the loss alone ends in an empty prediction, where it is 0: `force` allows that all the same. On
    several classes it stands alone if `idc` (all of them by default) holds every class.
    """

    example: ClassVar = {"force": True}
    shown = ("lowest",)
    needs_target = True
    needs_maps = True
    note = (
        "BoundaryLoss adds up signed distances, negative inside the true border: a value below 0 is right, and the "
        "nearer to BoundaryLoss_lowest in the log the better."
    )

    def __init__(self, *, idc: Sequence[int] | None = None, force: bool = False) -> None:
        super().__init__()
        self.idc, self.force = idc, force

    def needs_company(self, n_class: int) -> str:
        if self.force or (n_class > 2 and (self.idc is None or set(self.idc) == set(range(n_class)))):
            return ""
        chosen = f" and idc {list(self.idc)}" if self.idc else ""
        return (
            f"BoundaryLoss alone with {n_class} classes{chosen} ends in an empty prediction, where it is 0 and stays. "
            "Put a regional loss before it, as in [('GeneralizedDice', {'idc': [0, 1]}, 1), ('BoundaryLoss', "
            "{'idc': [1]}, 0.1)]; with three classes or more it stands alone if idc lists them all. {'force': True} in "
            "its parameters runs it as it is."
        )

    def forward(self, logits: Tensor, target: Tensor, bounds: Tensor | None = None) -> dict[str, Tensor]:
        assert fits_labels(target, logits), (target.shape, logits.shape)
        probs = pick(log_probabilities(logits).exp(), self.idc)
        maps = pick(target, self.idc).to(probs.dtype)
        return {"": (probs * maps).mean(), "lowest": maps.clamp_max(0).mean()}


@LOSSES.register()
class HausdorffDTLoss(Loss):
    """mean_{b,k ∈ idc,i} (p − y)² (φ_y² + φ_p²), the Hausdorff distance by its transforms (Karimi et al. 2019).

    φ_y and φ_p: signed distances, in pixels, to the border of the truth and of the most probable class. The latter
    are computed again in every step, on the CPU: a step waits for the device, and takes as long as the transforms do.

    `inner` is the loss of the published code. It uses only the distances inside truth and prediction
    (`inner_distances`), so what lies outside of both costs nothing, however far away it is. HausdorffLoss, its
    published name, has it set.
    """

    needs_target = True

    def __init__(self, *, idc: Sequence[int] | None = None, inner: bool = False) -> None:
        super().__init__()
        self.idc, self.inner = idc, inner

    def forward(self, logits: Tensor, target: Tensor, bounds: Tensor | None = None) -> Tensor:
        assert fits_labels(target, logits), (target.shape, logits.shape)
        probs = log_probabilities(logits).exp()
        n_class, predicted = probs.shape[1], most_probable(probs)
        error = (probs - one_hot(target, n_class, probs.dtype)) ** 2
        if self.inner:
            distances = inner_distances(target, n_class), inner_distances(predicted, n_class).trunc()
        else:
            distances = border_distances(target, n_class), border_distances(predicted, n_class)
        return pick(error * (distances[0] ** 2 + distances[1] ** 2).to(error), self.idc).mean()


@LOSSES.register()
class HausdorffLoss(HausdorffDTLoss):
    """HausdorffDTLoss as published: only with distances inside the shapes, unless `inner` is False."""

    def __init__(self, *, idc: Sequence[int] | None = None, inner: bool = True) -> None:
        super().__init__(idc=idc, inner=inner)


# ------------------------------------------------------------------------------ losses without ground truth


@LOSSES.register()
class SelfEntropy(Loss):
    """Weighted Shannon entropy of the prediction, −Σ ν_k p log p / Σ p over the classes `idc`, natural logarithm.

    `weights` ν: one a class (of `idc`), not in the divisor, which over all classes is B·|Ω|.
    """

    example: ClassVar = {"weights": [0.1, 0.9]}

    def __init__(self, *, idc: Sequence[int] | None = None, weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.idc, self.weights = idc, weights

    def forward(self, logits: Tensor, target: Tensor | None = None, bounds: Tensor | None = None) -> Tensor:
        log_p = log_probabilities(logits)
        return entropy(log_p, log_p.exp(), self.weights, self.idc)


@LOSSES.register()
class EntKLProp(_SizeLoss):
    """Source-free adaptation: λ_se · entropy + λ_consprior · KL(predicted ‖ prior) over class ratios.

    L_KL = (1/B) Σ_b Σ_k τ̂_{bk} [log(τ̂_{bk} + ε) − log(τ_{bk} + ε)], background included (Bateson et al. 2022).
    The predicted ratio τ̂ is the mean probability (the paper's, `prop='mean'`, or fn 'soft_size') or the
    published code's (`prop='maxnorm'`, or fn 'norm_soft_size', with `power`). `weights_se`: ν of the entropy.

    `over='batch'` compares the mean ratios of the batch with the mean prior, image by image is `'image'`.

    Bounds with room between them, by their `margin`, make the KL silent inside: the prior is the nearest one that they
    allow (`prior_for`), and the background what the others leave. `silent=False` takes their lower ends, as published.
    `reestimate` a > 0 estimates the prior anew after each epoch, anchored to its start (`BendingPrior`).

    `curi=False` takes the prior from the ground truth instead of the bounds, as published: a method that may not
    see ground truth refuses it. `ivd`, `idc_c`, `lamb_conspred` and `inv_consloss` stand in published lines
    and change nothing; nor does, where this loss stands alone, the weight at the end of its tuple.
    """

    example: ClassVar = {"weights_se": [0.1, 0.9]}
    terms = ("entropy", "prior")
    compares_ratios = True
    own_weights = True

    def __init__(
        self,
        *,
        lamb_se: float = 1.0,
        lamb_consprior: float = 1.0,
        weights_se: Sequence[float] | None = None,
        prop: str | bool | None = None,
        fn: str = "soft_size",
        power: float = 1.0,
        over: Literal["image", "batch"] = "image",
        silent: bool = True,
        reestimate: float = 0.0,
        curi: bool = True,
        ivd: bool = True,
        idc_c: Sequence[int] | None = None,
        lamb_conspred: float = 0.0,
        inv_consloss: bool = False,
        fake: bool = False,
    ) -> None:
        super().__init__(prop, fn, power)
        self.over, self.silent = over, silent
        rate = in_range("EntKLProp", "reestimate", reestimate, 0, 1)
        if rate and not (silent and curi):
            raise UserError("EntKLProp: 'reestimate' is not published, and goes with no 'silent' or 'curi' of False.")
        self.bends = BendingPrior(rate) if rate else None
        self.lamb_se, self.lamb_consprior, self.weights_se = lamb_se, lamb_consprior, weights_se
        self.prior_from_truth = not curi
        self.needs_target = self.prior_from_truth  # type: ignore[misc]
        self.needs_bounds = not self.prior_from_truth  # type: ignore[misc]

    def forward(self, logits: Tensor, target: Tensor | None = None, bounds: Tensor | None = None) -> dict[str, Tensor]:
        assert self.prior_from_truth or fits_bounds(bounds, logits), (bounds.shape, logits.shape)
        log_p = log_probabilities(logits)
        probs = log_p.exp()
        predicted, silent, over_batch = self.ratios(probs), None, self.over == "batch"
        if self.prior_from_truth:
            prior = one_hot(target, logits.shape[1], log_p.dtype).flatten(2).mean(2)
        elif self.silent:
            prior, silent = prior_for(predicted, bounds, log_p[0, 0].numel(), self.bends, over_batch)
        else:
            prior = prior_ratios(bounds, log_p.dtype)
        if over_batch:
            predicted, prior = predicted.mean(0, keepdim=True), prior.mean(0, keepdim=True)
        return {
            "entropy": self.lamb_se * entropy(log_p, probs, self.weights_se),
            "prior": self.lamb_consprior * kl_divergence(predicted, prior, silent),
        }


@LOSSES.register()
class KLPropInv(_SizeLoss):
    """KL(prior ‖ predicted) over class ratios, the direction of AdaEnt (Bateson et al. 2020).

    (1/B) Σ_b Σ_k τ_{bk} [log(τ_{bk} + ε) − log(τ̂_{bk} + ε)]. The entropy of AdaEnt is a second tuple, SelfEntropy.

    The published class of this name computes another thing: Σ_b KL(predicted ‖ prior), added up over the batch, where
    one number is the prior of all classes and images, the first class's of the first image. `direction='predicted'` is
    that sum, each class with its own prior. `silent`: as in EntKLProp.

    The other parameters of the published class (`curi`, `ivd`, `idc_c`, `weights_se`, `lamb_se`, `lamb_consprior`,
    `lamb_conspred`, `inv_consloss`) change nothing, as published. A line that has them is a pasted one, and the log
    says which way the loss goes.
    """

    compares_ratios = True

    def __init__(
        self,
        *,
        prop: str | bool | None = None,
        fn: str = "soft_size",
        power: float = 1.0,
        direction: Literal["prior", "predicted"] = "prior",
        silent: bool = True,
        idc: Sequence[int] | None = None,
        curi: bool | None = None,
        ivd: bool | None = None,
        idc_c: Sequence[int] | None = None,
        weights_se: Sequence[float] | None = None,
        lamb_se: float | None = None,
        lamb_consprior: float | None = None,
        lamb_conspred: float | None = None,
        inv_consloss: float | bool | None = None,
    ) -> None:
        super().__init__(prop, fn, power)
        if curi is False:
            raise UserError(
                "KLPropInv takes its prior from its bounds (published, 'curi': False ends in an error). Leave it out, "
                "or take PreciseBounds, which measure the ground truth."
            )
        self.direction, self.silent = direction, silent
        unused = (curi, ivd, idc_c, weights_se, lamb_se, lamb_consprior, lamb_conspred, inv_consloss)
        if direction == "prior" and any(value is not None for value in unused):
            self.note = (
                "KLPropInv is KL(prior || predicted) here, a mean over the batch, the direction of AdaEnt; the "
                "published class of this name adds up KL(predicted || prior): 'direction': 'predicted'."
            )

    def forward(self, logits: Tensor, target: Tensor | None, bounds: Tensor) -> Tensor:
        assert fits_bounds(bounds, logits), (bounds.shape, logits.shape)
        log_p = log_probabilities(logits)
        predicted, silent = self.ratios(log_p.exp()), None
        if self.silent:
            prior, silent = prior_for(predicted, bounds, log_p[0, 0].numel())
        else:
            prior = prior_ratios(bounds, log_p.dtype)
        if self.direction == "predicted":
            return len(logits) * kl_divergence(predicted, prior, silent)
        return kl_divergence(prior, predicted, silent)


@LOSSES.register()
class NaivePenalty(_SizeLoss):
    """Quadratic penalty on soft sizes outside their bounds (constrained domain adaptation, size losses).

    Of d_{bk} = max(0, lower − s) + max(0, s − upper), s = Σ_i p_i in pixels, over the classes `idc`, `reduction` makes
        'sum'     Σ_b Σ_k d² / (W·H)²            the published one of the source-free code, the default
        'mean'    the same by the batch, (1/B) Σ_b Σ_k d² / (W·H)²
        'pixels'  mean_{b,k} d² / (W·H)          that of constrained domain adaptation (Bateson et al. 2021), whose
                                                 weight of 2.5 is made for it: W·H/(B·|idc|) times the default
    With fn 'norm_soft_size' s is the ratio times W·H. (There the published code compares ratios with pixels, and has
    next to no gradient.) `curi`, without which there is no published line of the first, changes nothing; where neither
    it nor `reduction` stands, the line may be one of the third, and the log says what it is taken for.
    """

    def __init__(
        self,
        *,
        idc: Sequence[int] = (1,),
        reduction: Literal["sum", "mean", "pixels"] | None = None,
        prop: str | bool | None = None,
        fn: str = "soft_size",
        power: float = 1.0,
        curi: bool | None = None,
    ) -> None:
        super().__init__(prop, fn, power)
        self.idc, self.reduction = list(idc), reduction or "sum"
        if reduction is None and curi is None:
            self.note = (
                "NaivePenalty adds up the squares over the batch, by (W*H)^2: 'reduction': 'sum'. A line of constrained"
                " domain adaptation, as one of weight 2.5, means 'reduction': 'pixels', which is far stronger."
            )

    def forward(self, logits: Tensor, target: Tensor | None, bounds: Tensor) -> Tensor:
        assert fits_bounds(bounds, logits), (bounds.shape, logits.shape)
        log_p = log_probabilities(logits)
        pixels = log_p[0, 0].numel()
        share, limits = pick(self.ratios(log_p.exp()), self.idc), pick(bounds, self.idc).to(log_p.dtype) / pixels
        penalty = F.relu(limits[..., 0] - share) ** 2 + F.relu(share - limits[..., 1]) ** 2  # b |idc|
        if self.reduction == "pixels":
            return penalty.mean() * pixels
        return penalty.sum() if self.reduction == "sum" else penalty.sum(1).mean()


LEAST_AREA = 10  # pixels that are predicted of a class whose shape is looked at
USUAL_AREA = (0.5, 1.5)  # times its prior size: an image whose shape counts for what is usual


@LOSSES.register()
class ShapeMoments(Loss):
    """Centroid and spread of a class, drawn to their mean over the slices (Bateson et al., MICCAI 2022).

    (1/B) Σ_b Σ_{k ∈ idc} Σ_axis of max(0, m̂(1 − ε) − m)² + max(0, m − m̂(1 + ε))², m in mm: the centroid, for which ε is
    0, and the spread, with ε the `margin`. Silent where a slice lacks the class by its bounds, or less than LEAST_AREA
    of it is predicted. m̂ is the mean of the epoch before, over the slices that show a usual size of the class by their
    bounds; in the first epoch the loss is silent (`UsualShape`). A set that tells no spacing has pixels of 1 mm.

    In the published code both halves reach into the margin, so that nothing inside it is free: `silent=False`.
    """

    terms = ("centroid", "spread")
    needs_bounds = True
    measures_mm = True

    def __init__(self, *, idc: Sequence[int] = (1,), margin: float = 0.1, silent: bool = True) -> None:
        super().__init__()
        self.idc, self.bends = list(idc), UsualShape()
        self.margin = in_range("ShapeMoments", "margin", margin, 0, 1) * (1 if silent else -1)

    def forward(self, logits: Tensor, target: Tensor | None, bounds: Tensor) -> dict[str, Tensor]:
        n_class, axes = logits.shape[1], logits.ndim - 2
        probs, sizes = pick(log_probabilities(logits).exp(), self.idc), pick(bounds[:, :n_class], self.idc)
        lengths = bounds[:, n_class:].flatten(1)[:, -axes:]  # b a; none where nothing but sizes is told
        area, shapes = shapes_of(probs, lengths if lengths.numel() else torch.ones_like(bounds[:, :1, 0]))
        shown, share = sizes[..., 1] > 0, area.detach() / sizes.mean(2).clamp_min(EPS)
        usual = self.bends.near(shapes, shown & (share >= USUAL_AREA[0]) & (share <= USUAL_AREA[1]))
        room = usual * constant((0.0, self.margin), usual.dtype, usual.device).unsqueeze(1)
        off = F.relu(usual - room - shapes) ** 2 + F.relu(shapes - usual - room) ** 2  # b f 2 a
        off = torch.where((shown & (area > LEAST_AREA))[..., None, None], off, 0).sum((1, 3)).mean(0)
        return {"centroid": off[0], "spread": off[1]}
