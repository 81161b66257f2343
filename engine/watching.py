"""What a run says of itself while it trains: that an adaptation does harm, as far as that is seen without labels."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from dataloader import AnyStream
from datasets.streams import Stream
from datasets.volumes import WholeStream
from engine.collapse import CollapseAlarm, OneClass, SourceMaps, estranged, kappa, prior_share
from engine.evaluation import Evaluation, class_counts, evaluate
from methods.base import Method
from nets.probabilities import most_probable
from processes.interrupt import STOP
from utils import typed

COLUMNS = ("alarms", "val_source_agreement")  # of the log of a run that is watched


class Watch:
    """Looks at each epoch of a run, and knows what its alarms were compared with and what they said.

    The source network is met before the first step, and again at each start after a kill, as its maps are not kept.
    """

    def __init__(
        self,
        method: Method,
        streams: Mapping[str, AnyStream],
        val: Stream | WholeStream | None,
        whole: bool,
    ) -> None:
        """whole: whether all of the network comes from a checkpoint."""
        self.method, self.val = method, val
        self.n_class, self.n_epoch = method.settings.n_class, method.settings.n_epoch
        self.first = next(iter(streams.values()), None)
        blind = method.segments and "target" not in method.labelled
        self.is_on = self.first is not None and blind and whole
        compares = [part.compares_ratios for part in method.loss.losses]
        prior = self.first and prior_share(self.first.slices.bounds, compares)
        # one for each mode of the network: batch normalisation may hold in the one and collapse in the other
        self.training, self.validation = CollapseAlarm(prior), CollapseAlarm(prior)
        self.maps, self.one_class = SourceMaps(self.n_class), OneClass(self.n_epoch)
        self.agreement = np.nan  # of the last network that was evaluated, with the source network
        self.alarm_epochs: list[int] = []  # the epochs, counted from 1, in which something was alarming
        self.last_kinds: list[str] = []  # the kinds of what was alarming in the epoch before

    def meet_source(self) -> Evaluation | None:
        """Looks at the network as it is now, before the first step: its shares and maps. Returns its validation."""
        if not self.is_on:
            return None
        evaluation = evaluate(self.method, self.val, keep_masks=False, look=self.maps.keep)
        self.training.begin(_count_classes(self.method, self.first, self.n_class))
        return evaluation

    @torch.inference_mode()
    def look(self, number: int, labels: torch.Tensor) -> None:
        """Compares a batch of a validation with what the source network predicted on it.

        number: the batch's place; labels: predicted class numbers (B, W, H) or (B, D, W, H)
        """
        if self.is_on:
            self.maps.compare(number, labels)

    def alarms(self, trained: Mapping[str, np.ndarray], epoch: int) -> list[str]:
        """What is alarming in an epoch of training and in the validation after it, if there was one; notes the epoch.

        trained: "counts" (4, S, K) of the pixels predicted in training, and "sizes", the images of each step
        """
        if not self.is_on:
            return []
        ends = trained["sizes"].cumsum()[:-1]
        steps = np.array([step.sum(0) for step in np.split(trained["counts"][3], ends)])
        alarms = [f"{words} (training)" for words in self.training.alarms(steps)]
        pairs = self._compare()
        if pairs is not None:
            self.validation.begin(pairs.sum(1))
            in_validation = [*self.validation.alarms(pairs.sum(0)[None]), *estranged(self.agreement)]
            alarms += [f"{words} (validation)" for words in in_validation]
        self.alarm_epochs += [epoch + 1] * bool(alarms)
        return alarms

    def _compare(self) -> np.ndarray | None:
        pairs = self.maps.take()
        self.agreement = np.nan if pairs is None else kappa(pairs)
        return pairs

    def forget(self, epoch: int) -> None:
        """Forgets the network that was alarming in this epoch: the log's row becomes that of the one before."""
        self.alarm_epochs.remove(epoch + 1)

    def look_again(self) -> None:
        """Compares again, after a validation of a network that was rolled back."""
        self._compare()

    def is_news(self, alarms: list[str]) -> bool:
        """Whether other kinds of things are alarming than in the epoch before. Their figures do not count."""
        kinds, before = [_kind(words) for words in alarms], self.last_kinds
        self.last_kinds = kinds
        return kinds != before

    def cells(self, epoch: int) -> dict[str, float]:
        """The cells of the log."""
        if not self.is_on:
            return {}
        return {"alarms": float(epoch + 1 in self.alarm_epochs), "val_source_agreement": self.agreement}

    def sum_up(self) -> str:
        """What a reader of the screen must know at the end; nothing where the last epoch was in order."""
        if not self.alarm_epochs or self.alarm_epochs[-1] != self.n_epoch:
            return ""
        return (
            f"The alarm rang in {len(self.alarm_epochs)} of {self.n_epoch} epochs, the last among them. Before you use "
            "this network, compare it with the one it started from (--method noadap), by eye where there are no labels."
        )

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and texts."""
        parts = {"training": self.training.state_dict(), "one_class": self.one_class.state_dict()}
        return parts | {"rung": list(self.alarm_epochs), "said": list(self.last_kinds)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.training.load_state_dict(state["training"])
        if (source := self.training.source) is not None and len(source) != self.n_class:
            raise ValueError(f"shares of {len(source)} classes")
        self.one_class.load_state_dict(state["one_class"])
        self.alarm_epochs, self.last_kinds = map(list, typed(state, {"rung": Sequence[int], "said": Sequence[str]}))


def _kind(words: str) -> str:
    """An alarm without its figures."""
    return re.sub(r"[\d.]+(e-?\d+)? ?%|kappa [-\d.]+", "", words)


@torch.inference_mode()
def _count_classes(method: Method, stream: AnyStream, n_class: int) -> np.ndarray:
    """(K,) pixels that the network, in evaluation mode, gives each class in the first epoch's batches."""
    method.net.eval()
    total = torch.zeros(n_class, dtype=torch.float64, device=method.settings.device)
    for batch, _ in stream.epoch(0):
        STOP.check()
        total += class_counts(most_probable(method.predict(batch)), None, n_class)[3].sum(0)
    return total.cpu().numpy()
