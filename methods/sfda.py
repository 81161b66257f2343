"""Source-free adaptation (Bateson et al., MICCAI 2020 and MedIA 2022) and its cheap relatives.

Phase 2 of the paper: no source image, target training images, and a prior on the class ratios of each slice,
    L = λ_se · L_ent(p) + λ_prior · KL(τ̂ ‖ τ)                          (EntKLProp in losses.py)
minimised from the source weights over all parameters, batch normalisation in training mode. It is the supervised
step with another loss and less to look at: its batches carry no ground truth, and no source folder is opened.

The relatives are the same step with other switches:
    batch-norm refresh   --trainable none --bn_stats refresh        (Schneider et al. 2020)
    TENT                 SelfEntropy, --trainable bn                (Wang et al. 2021)
    SHOT-IM              entropy + KL of the batch to a uniform prior, --trainable features   (Liang et al. 2020)
"""

from dataclasses import dataclass
from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from methods.base import METHODS
from methods.objective import LossSum
from methods.settings import flag
from methods.supervised import Supervised
from nets.base import batch_norms
from processes.errors import UserError
from processes.team import ALONE, Team


@METHODS.register()
class SFDA(Supervised):
    """Entropy and class-ratio KL on the target stream alone."""

    labelled = ()
    needs_weights = True
    supervision = "none"  # what the prior knew is added by its bounds

    @dataclass(frozen=True, kw_only=True)
    class Settings(Supervised.Settings):
        trainable: Literal["all", "bn", "features", "none"] = flag(
            "all", "what adapts: every parameter, scale and shift of the norms, all but the classifier, nothing"
        )
        bn_stats: Literal["update", "refresh", "freeze"] = flag(
            "update", "batch-norm statistics: moving on from the source's, the target's alone, the source's"
        )

    settings: Settings

    def __init__(
        self,
        net: nn.Module,
        loss: LossSum,
        settings: Settings,
        team: Team = ALONE,
        module: nn.Module | None = None,
    ) -> None:
        """module: as in Method"""
        blind = [type(part).__name__ for part in loss.losses if part.needs_target]
        if blind:
            raise UserError(
                f"--method {settings.method} never sees ground truth, but {blind[0]} needs it; use a loss of the "
                "prediction alone (EntKLProp, SelfEntropy, KLPropInv, NaivePenalty), or --method supervised."
            )
        self.norms = batch_norms(net)
        let_learn(net, settings.trainable)
        super().__init__(net, loss, settings, team, module)

    def set_modes(self) -> None:
        super().set_modes()
        for norm in self.norms if self.settings.bn_stats == "freeze" else ():
            norm.eval()

    def begin_epoch(self, epoch: int, rate_factor: float = 1.0) -> None:
        super().begin_epoch(epoch, rate_factor)
        for norm in self.norms:
            if self.settings.bn_stats == "refresh":
                norm.momentum = None  # a plain average over the batches of this epoch
                norm.reset_running_stats()


def let_learn(net: nn.Module, trainable: str) -> None:
    """Has the gradient reach what --trainable names, and nothing else of the network."""
    free = [p for p in net.parameters() if p.requires_grad]  # a network may keep some frozen
    chosen = {
        "all": free,
        "bn": [p for part in net.modules() if isinstance(part, _NormBase) for p in part.parameters()],
        "features": free,
        "none": [],
    }[trainable]
    frozen = set(net.classifier.parameters()) if trainable == "features" else set()
    net.requires_grad_(False)
    for parameter in chosen:
        parameter.requires_grad_(parameter not in frozen)
