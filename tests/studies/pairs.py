"""The pairs of a study, and what main.py is told on them: lines as the makefiles have them, for small images."""

import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from datasets.size_table import WITH_TAGS, WITHOUT_TAGS
from tests.studies.sites import SITES
from tests.tools.checkout import ROOT

RATE = 5e-4
ADAPT = ("--n_epoch", "20", "--lr_decay", "0.7", "--lr_decay_epoch", "5", "--keep_every", "4", "--eval_every", "20")
LEARN = ("--lr_decay", "0.5", "--augment", "--eval_every", "5")
METHODS = ("sfda", "sfda_notags", "tent", "adaent", "shot", "selftrain")
PRIORS = ("sfda_margin", "sfda_reestimate", "sfda_em")  # sfda with a prior that bends, in a table of their own
FURTHER = (
    "mean_teacher",
    "upl",
    "denoised",
    "cpr",
    "proto",
    "consist",
)  # what is tried on source networks of several recipes
EVERY = METHODS + PRIORS + FURTHER
UNDER_STRESS = ("sfda", "tent")  # what is tried on a pair that is made to fail
USUAL = "usual"
MILD_MOVES = "{'preset': 'slaug', 'curves': 0, 'label_curves': 0}"  # of slaug, without its curves
RECIPES = {  # of a source network: what its images look like while it learns, or how
    USUAL: (),
    **{name: ("--augmentation", name) for name in ("gin", "slaug", "bigaug", "strong", "transfer")},
    "saliency": ("--method", "saliency", "--augmentation", MILD_MOVES),
    "mix_style": ("--method", "mix_style"),
    "ipa": ("--method", "ipa", "--augmentation", MILD_MOVES),
    "sizes": ("--augmentation", "{'scale': 1.5}"),
}


@dataclass(frozen=True)
class Pair:
    """A source and a target by the names of their sites, and what is known of them.

    epochs, l_rate   of the source network
    size_of          how the losses measure a predicted size
    times            what the prior's sizes are multiplied by: 1 is the mean of the source's slices
    rate             what the adaptation's learning rate is multiplied by
    stress           whether it is made to fail
    mild             whether it is the smaller one of two shifts, which the study of choices leaves out
    """

    source: str
    target: str
    n_class: int = 2
    epochs: int = 40
    l_rate: float = 4e-3
    network: str = "UNet:nG=4"
    size_of: str = "norm_soft_size"
    times: float = 1
    rate: float = 1
    stress: bool = False
    mild: bool = False

    @property
    def methods(self) -> tuple[str, ...]:
        return UNDER_STRESS if self.stress else EVERY

    @property
    def column(self) -> str:
        """Of the csv of sizes: what is told where tags are."""
        return WITH_TAGS if self.times == 1 else f"{WITH_TAGS}_x{self.times:g}"

    @property
    def weights(self) -> list[float]:
        """(K,) of the classes in the entropy: 0.1 of the background, the rest shared out."""
        return [0.1, *[round(0.9 / (self.n_class - 1), 3)] * (self.n_class - 1)]


HIPPOCAMPUS = Pair("hippocampus", "hippocampus_gamma", n_class=3)
PAIRS = {
    "fluo_a-fluo_b": Pair("fluo_a", "fluo_b"),
    "fluo_a-histology": Pair("fluo_a", "histology"),
    "fluo_b-fluo_a": Pair("fluo_b", "fluo_a"),
    "fluo_b-histology": Pair("fluo_b", "histology"),
    "histology-fluo_a": Pair("histology", "fluo_a"),
    "histology-fluo_b": Pair("histology", "fluo_b"),
    "ct-mr": Pair("ct", "mr", epochs=60, size_of="soft_size"),
    "mr-ct": Pair("mr", "ct", epochs=60, size_of="soft_size"),
    "prostate": Pair("prostate_source", "prostate_target", epochs=25, l_rate=2e-3),
    "heart": Pair("heart_source", "heart_target", n_class=5, l_rate=3e-3),
    "discs": Pair("discs_source", "discs_target", epochs=25, l_rate=2e-3),
    **{
        f"hippocampus-{name}": replace(HIPPOCAMPUS, target=f"hippocampus_{name}")
        for name in ("inverted_contrast", "gamma", "bias_field", "noise")
    },
    **{
        f"hippocampus-{name}-3": replace(HIPPOCAMPUS, target=f"hippocampus_{name}_3", mild=True)
        for name in ("inverted_contrast", "gamma", "bias_field", "noise")
    },
    "no gap": replace(HIPPOCAMPUS, target="hippocampus_same", stress=True),
    "prior x 3": replace(HIPPOCAMPUS, times=3, stress=True),
    "prior / 3": replace(HIPPOCAMPUS, times=1 / 3, stress=True),
    "organ missing": replace(HIPPOCAMPUS, target="hippocampus_missing", stress=True),
    "rate x 10": replace(HIPPOCAMPUS, rate=10, stress=True),
    "one patient": replace(HIPPOCAMPUS, target="hippocampus_one", stress=True),
    "no batch norm": replace(HIPPOCAMPUS, network="GroupUNet:nG=4", stress=True),
}


def longer(name: str, times: int) -> Pair:
    """The pair of that name, with so many times its epochs for the source network and for the upper bound."""
    return replace(PAIRS[name], epochs=times * PAIRS[name].epochs)


# ------------------------------------------------------------------------------------------------- what main.py is told


def common(site: str, folder: Path, pair: Pair, seed: int) -> list[str]:
    """The flags about data and network."""
    images = f"[('{SITES[site].images}', png_transform, False), ('GT', gt_transform, False)]"
    classes = list(range(pair.n_class))
    losses = f"[('CrossEntropy', {{'idc': {classes}, 'weights': {[1] * pair.n_class}}}, None, None, None, 1)]"
    return [
        *("--target_dataset", str(folder), "--target_folders", images, "--grp_regex", r"(.+)_(\d+)"),
        *("--n_class", str(pair.n_class), "--network", pair.network, "--batch_size", "8", "--weight_decay", "1e-4"),
        *("--target_losses", losses, "--seed", str(seed), "--device", "cpu", "--resume"),
    ]


def source_flags(pair: Pair, recipe: str = USUAL) -> list[str]:
    """Of the source network."""
    rate = ("--n_epoch", str(pair.epochs), "--l_rate", str(pair.l_rate), "--lr_decay_epoch", str(-(-pair.epochs // 3)))
    return [*LEARN, *rate, *RECIPES[recipe]]


def method_flags(method: str, pair: Pair, sizes: Path, estimated: Path | None = None) -> list[str]:
    """Of an adaptation. sizes: the csv of its prior; estimated: the csv of what the source network estimates"""

    def prior(column: str, margin: float = 0) -> str:
        told = {"margin": margin, "dir": "both" if margin else "high", "mode": "percentage", "predcol": column}
        return f"'PredictionBounds', {told | {'sizefile': str(sizes)}}, '{pair.size_of}'"

    def ratio_with(**more: object) -> str:
        told = {"lamb_se": 1, "lamb_consprior": 1, "weights_se": pair.weights, "power": 1}
        return f"'EntKLProp', {told | more}"

    ratio = ratio_with()
    estimate = {"predcol": "mlls", "sizefile": str(estimated)}
    uniform = "'EntKLProp', {'over': 'batch'}, 'ConstantBounds', {'values': 'uniform'}, 'soft_size', 1"
    entropy = f"('SelfEntropy', {{'weights': {pair.weights}}}, 1)"
    told = {
        "sfda": ("--target_losses", f"[({ratio}, {prior(pair.column)}, 1)]"),
        "sfda_notags": ("--target_losses", f"[({ratio}, {prior(WITHOUT_TAGS)}, 1)]"),
        "sfda_margin": ("--target_losses", f"[({ratio}, {prior(pair.column, 0.5)}, 1)]"),
        "sfda_reestimate": ("--target_losses", f"[({ratio_with(reestimate=0.5)}, {prior(pair.column)}, 1)]"),
        "sfda_em": (
            "--target_losses",
            f"[({ratio_with(over='batch')}, 'IntervalBounds', {estimate}, 'soft_size', 1)]",
        ),
        "tent": ("--target_losses", "[('SelfEntropy', {}, 1)]", "--trainable", "bn"),
        "adaent": ("--target_losses", f"[{entropy}, ('KLPropInv', {{}}, {prior(WITH_TAGS)}, 1)]"),
        "shot": ("--target_losses", f"[({uniform})]", "--trainable", "features"),
        "selftrain": ("--method", "self_training", "--threshold", "fixed"),
        "mean_teacher": ("--method", "mean_teacher"),
        "upl": ("--method", "upl", "--pieces", "all", "--target_losses", "[('DiceLoss', {}, 1)]"),
        "denoised": ("--method", "denoised", "--most_spread", "0.1"),
        "cpr": ("--method", "cpr", "--most_spread", "0.1"),
        "proto": ("--method", "prototype_alignment", "--target_losses", f"[({ratio}, {prior(pair.column)}, 1)]"),
        "consist": ("--method", "consistency", "--optimiser", "adamw", "--target_losses", "[('SelfEntropy', {}, 1)]"),
    }
    return ["--method", "sfda", *ADAPT, "--l_rate", str(RATE * pair.rate), *told[method]]


def estimate_sizes(pair: Pair, target: Path, weights: Path, out: Path) -> None:
    """Writes the csv of what a source network estimates of the target's sizes, from its images alone."""
    told = ("--network_weights", weights, "--grp_regex", r"(.+)_(\d+)", "--unlabelled")
    place = ("--data", target, "--folder", SITES[pair.target].images, "--out", out)
    size_priors("make", *place, "--n_class", pair.n_class, *told)


def prior_of(pair: Pair, source: Path, target: Path, out: Path) -> Path:
    """The csv of sizes of the target: the mean of the source's slices, multiplied as the pair says."""
    if out.is_file():
        return out
    as_it_is = out if pair.times == 1 else out.with_name("source_mean.csv")
    if not as_it_is.is_file():
        size_priors("make", "--data", target, "--out", as_it_is, "--n_class", pair.n_class, "--source_mean", source)
    if as_it_is != out:
        size_priors("scale", "--sizes", as_it_is, "--column", WITH_TAGS, "--factors", pair.times, "--out", out)
    return out


def size_priors(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "preprocess.size_priors", *map(str, words)], cwd=ROOT, check=True)
