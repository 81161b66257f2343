"""How often the intervals of analysis/statistics hold the truth, and how often its tests see what is not there.

    python -m tests.studies.coverage [--studies 2000] [--seed 0]

Makes up studies of P patients and S seeds whose truth is known: d = mean + patient + seed + rest, each normal with a
variance of its own. Prints tables in Markdown, for docs/statistics.md. A share of 2,000 studies is known to ±1 point.
"""

import processes.ctrl_c  # noqa: F401  first: from here on Ctrl-C is one line

from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit
from scipy.stats import wilcoxon

from analysis.statistics.claims import gap_closed, probability_better
from analysis.statistics.intervals import bootstrap_ends, crossed, draw_shares, mean_squares, means_of_draws
from analysis.statistics.tests import crossed_test, sign_flip
from tests.studies.regret import table
from utils import ProgramParser, run_program

Ends = tuple[NDArray[np.float64], NDArray[np.float64]]  # lower and upper, (N,) each
Variances = tuple[float, float, float]  # of patients, of seeds, of the rest

SITUATIONS: Mapping[str, Variances] = {
    "patients, and as much noise": (1, 0, 1),
    "patients, little noise": (1, 0, 0.1),
    "patients, seeds a little": (1, 0.05, 0.5),
    "patients, seeds a quarter": (1, 0.25, 1),
    "patients and seeds alike": (1, 1, 1),
    "seeds more than patients": (0.25, 1, 0.5),
    "seeds, and as much noise": (0, 1, 1),
    "noise, little else": (0.05, 0.05, 1),
    "noise alone": (0, 0, 1),
}
SOME = ("patients, and as much noise", "patients, seeds a quarter", "seeds more than patients", "noise alone")
SIZES = [*product((5, 10, 30), (3, 5))]  # P, S
DRAWS = 500  # of the bootstraps here
AT_ONCE = 100  # studies that share the draws of a bootstrap
SLOW = 300  # studies for what is slow
LEVEL = 0.95


def make_studies(
    n_study: int, n_patient: int, n_seed: int, variances: Variances, rng: np.random.Generator, skewed: bool = False
) -> NDArray[np.float64]:
    """(N, P, S) studies whose true mean is 0; `skewed`: patients from an exponential distribution, its tail below."""
    shapes = (n_study, n_patient, 1), (n_study, 1, n_seed), (n_study, n_patient, n_seed)
    parts = [np.sqrt(variance) * rng.standard_normal(shape) for variance, shape in zip(variances, shapes, strict=True)]
    if skewed:
        parts[0] = np.sqrt(variances[0]) * (1 - rng.standard_exponential(shapes[0]))
    return sum(parts)


# ---------------------------------------------------------------------------------------- intervals of a mean


def around(mean: NDArray[np.float64], square: NDArray[np.float64], df: NDArray[np.float64] | float) -> Ends:
    """mean ± t_df times the root of `square`; of a negative square a point."""
    half = stdtrit(df, (1 + LEVEL) / 2) * np.sqrt(np.maximum(square, 0))
    return mean - half, mean + half


def by_crossed(studies: NDArray[np.float64], rng: np.random.Generator) -> Ends:
    """As the tables have it."""
    mean, se, df = crossed(studies)
    return around(mean, se**2, df)


def as_published(studies: NDArray[np.float64], rng: np.random.Generator) -> Ends:
    """Satterthwaite's, components below zero and all."""
    n_patient, n_seed = studies.shape[1:]
    a, b, c = mean_squares(studies)
    below = a**2 / (n_patient - 1) + b**2 / (n_seed - 1) + c**2 / ((n_patient - 1) * (n_seed - 1))
    return around(studies.mean((1, 2)), (a + b - c) / (n_patient * n_seed), np.maximum((a + b - c) ** 2 / below, 1))


def floored(studies: NDArray[np.float64], rng: np.random.Generator) -> Ends:
    """Satterthwaite's, where a component below zero is none; seeds count once."""
    n_patient, n_seed = studies.shape[1:]
    a, b, c = mean_squares(studies)
    few = [b < c, a < c]
    below = a**2 / (n_patient - 1) + b**2 / (n_seed - 1) + c**2 / ((n_patient - 1) * (n_seed - 1))
    square = np.select(few, [a, b], a + b - c) / (n_patient * n_seed)
    return around(studies.mean((1, 2)), square, np.select(few, [n_patient - 1, n_seed - 1], (a + b - c) ** 2 / below))


def few_degrees(studies: NDArray[np.float64], rng: np.random.Generator) -> Ends:
    """Components of at least zero, min(P, S) - 1 degrees of freedom."""
    n_patient, n_seed = studies.shape[1:]
    a, b, c = mean_squares(studies)
    square = np.maximum(np.maximum(a, b), a + b - c) / (n_patient * n_seed)
    return around(studies.mean((1, 2)), square, min(n_patient, n_seed) - 1)


def patients_alone(studies: NDArray[np.float64], rng: np.random.Generator) -> Ends:
    """The usual interval of patients, mean over seeds first: as if the seeds were all that there are."""
    mean, se, df = crossed(studies.mean(2, keepdims=True))
    return around(mean, se**2, df)


def by_bootstrap(studies: NDArray[np.float64], rng: np.random.Generator) -> Ends:
    """As the tables have it."""
    return in_parts(studies, rng, bootstrap_ends)


def by_percentiles(studies: NDArray[np.float64], rng: np.random.Generator) -> Ends:
    """The percentiles of the two-way bootstrap."""
    return in_parts(studies, rng, lambda *told: tuple(np.quantile(means_of_draws(*told), ends_of(LEVEL), axis=-1)))


def by_wider_percentiles(studies: NDArray[np.float64], rng: np.random.Generator) -> Ends:
    """The same, sqrt(S / (S - 1)) times as far from the mean."""
    low, high = by_percentiles(studies, rng)
    mean, times = studies.mean((1, 2)), np.sqrt(studies.shape[2] / (studies.shape[2] - 1))
    return mean + times * (low - mean), mean + times * (high - mean)


def by_studentised_bootstrap(studies: NDArray[np.float64], rng: np.random.Generator) -> Ends:
    """Percentiles of (mean of a draw - mean) / SE of the draw, times SE; draws without spread are left out.

    Slow, so of the first of the studies alone.
    """
    studies = studies[:SLOW]
    mean, se, _ = crossed(studies)
    n_patient, n_seed = studies.shape[1:]
    ends = np.empty((2, len(studies)))
    for place, study in enumerate(studies):
        patients, seeds = rng.integers(n_patient, size=(DRAWS, n_patient)), rng.integers(n_seed, size=(DRAWS, n_seed))
        drawn = crossed(study[patients[:, :, None], seeds[:, None, :]])
        apart = (drawn.mean - mean[place]) / np.where(drawn.se > 0, drawn.se, np.nan)
        ends[:, place] = mean[place] - se[place] * np.nanquantile(apart, ends_of(LEVEL)[::-1])
    return ends[0], ends[1]


DESIGNS: Mapping[str, Callable[[NDArray[np.float64], np.random.Generator], Ends]] = {
    "**crossed**": by_crossed,
    "crossed, as published": as_published,
    "crossed, components of at least 0": floored,
    "crossed, min(P, S) - 1 degrees of freedom": few_degrees,
    "patients alone": patients_alone,
    "**bootstrap**": by_bootstrap,
    "bootstrap, percentiles": by_percentiles,
    "bootstrap, percentiles widened": by_wider_percentiles,
    "bootstrap, studentised": by_studentised_bootstrap,
}


def ends_of(level: float) -> list[float]:
    return [(1 - level) / 2, (1 + level) / 2]


def in_parts(studies: NDArray[np.float64], rng: np.random.Generator, ends: Callable[..., Ends]) -> Ends:
    """The ends of a bootstrap, of some studies at a time, which share their draws."""
    found = []
    for start in range(0, len(studies), AT_ONCE):
        shares = [draw_shares(n, rng, DRAWS) for n in studies.shape[1:]]
        found.append(ends(studies[start : start + AT_ONCE], *shares))
    low, high = np.concatenate(found, axis=1)
    return low, high


def coverage(ends: Ends, truth: float) -> float:
    """The share of the intervals that hold the truth."""
    return float(((ends[0] <= truth) & (truth <= ends[1])).mean())


# ------------------------------------------------------------------------------------------------ tables


def of_designs(
    n_study: int, seed: int, designs: Sequence[str] = tuple(DESIGNS), skewed: bool = False
) -> Iterator[tuple[str, str, int, int, float]]:
    """Design, situation, P, S, coverage."""
    for place, ((name, variances), (n_patient, n_seed)) in enumerate(product(SITUATIONS.items(), SIZES)):
        rng = np.random.default_rng([seed, place])
        studies = make_studies(n_study, n_patient, n_seed, variances, rng, skewed)
        for design in designs:
            yield design, name, n_patient, n_seed, coverage(DESIGNS[design](studies, rng), 0)


def false_positives(n_study: int, seed: int) -> Iterator[tuple[str, str, int, int, float]]:
    """Test, situation, P, S, share of studies without any difference in which it says p <= 0.05."""
    for place, (name, (n_patient, n_seed)) in enumerate(product(SOME, SIZES)):
        rng = np.random.default_rng([seed, place])
        studies = make_studies(n_study, n_patient, n_seed, SITUATIONS[name], rng)
        flips = np.array([sign_flip(study.mean(1), rng) for study in studies])
        ranks = wilcoxon(studies.mean(2), axis=1).pvalue
        both = np.array([crossed_test(study) for study in studies])
        told = {"sign flip": flips, "Wilcoxon": ranks, "crossed t": both, "**p of a claim**": np.maximum(flips, both)}
        for test, p in told.items():
            yield test, name, n_patient, n_seed, float((p <= 1 - LEVEL).mean())


def of_gaps(n_study: int, seed: int) -> Iterator[tuple[int, int, float, float]]:
    """P, S, share of studies in which the gap closed is defined, and in how many of these its interval holds the truth.

    A lower bound, a run that closes half of the gap, an upper bound 1.5 patients' deviations above; all three share
    their patients and seeds, and have noise of their own.
    """
    for n_patient, n_seed in SIZES:
        rng = np.random.default_rng([seed, n_patient, n_seed])
        shared = make_studies(n_study, n_patient, n_seed, (1, 0.25, 0), rng)
        three = [
            shared + true + make_studies(n_study, n_patient, n_seed, (0.1, 0.05, 0.2), rng) for true in (0.75, 0, 1.5)
        ]
        found = [gap_closed(*each) for each in zip(*three, strict=True)]
        known = [each for each in found if each is not None]
        yield n_patient, n_seed, len(known) / n_study, float(np.mean([each.low <= 0.5 <= each.high for each in known]))


def of_better(n_study: int, seed: int) -> Iterator[tuple[str, float, int, int, float]]:
    """Situation, true P(A > B), P, S, coverage of the interval of P(A > B)."""
    for place, (name, apart, (n_patient, n_seed)) in enumerate(product(SOME, (0, 0.7, 1.3), SIZES)):
        rng, variances = np.random.default_rng([seed, place]), SITUATIONS[name]
        gains = make_studies(n_study, n_patient, n_seed, variances, rng) + apart * np.sqrt(sum(variances))
        found = [probability_better(each, np.zeros_like(each)) for each in gains]
        truth = float(ndtr(apart))
        ends = np.array([[each.low, each.high] for each in found]).T
        yield name, truth, n_patient, n_seed, coverage((ends[0], ends[1]), truth)


def between(shares: Sequence[float]) -> str:
    """'93.1 to 97.6', in per cent."""
    return f"{100 * min(shares):.1f} to {100 * max(shares):.1f}"


def spread(rows: Sequence[tuple], by: int, what: str) -> str:
    """A row a value of column `by`, and in a column a number of seeds: between which shares it lies over the rest."""
    seeds = sorted({row[-2] for row in rows})
    lines = []
    for value in dict.fromkeys(row[by] for row in rows):
        own = [row for row in rows if row[by] == value]
        shown = f"{value:.2f}" if isinstance(value, float) else value
        lines.append([shown, *(between([row[-1] for row in own if row[-2] == seed]) for seed in seeds)])
    return table([what, *(f"{seed} seeds" for seed in seeds)], lines)


def by_patients(rows: Sequence[tuple], what: str) -> str:
    """A row a test, and in a column a number of patients: the mean share, in per cent, over situations and seeds."""
    numbers = sorted({row[2] for row in rows})
    lines = []
    for test in dict.fromkeys(row[0] for row in rows):
        own = [[row[-1] for row in rows if (row[0], row[2]) == (test, number)] for number in numbers]
        lines.append([test, *(100 * float(np.mean(shares)) for shares in own)])
    return table([what, *(f"{number} patients" for number in numbers)], lines)


def get_options(argv: Sequence[str] | None) -> Namespace:
    parser = ProgramParser("python -m tests.studies.coverage", description=__doc__)
    parser.add_argument("--studies", type=int, default=2000, metavar="N", help="of each kind (default 2000)")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the tables, in per cent of the studies: coverage first, false positives of the tests last."""
    options = get_options(argv)
    told = options.studies, options.seed
    designs = [*of_designs(*told)]
    print(spread(designs, 0, "interval of 95 %"), end="\n\n", flush=True)
    of_tables = ("**crossed**", "**bootstrap**")
    for design in of_tables:
        print(spread([row for row in designs if row[0] == design], 1, design), end="\n\n", flush=True)
    print(spread([*of_designs(*told, of_tables, skewed=True)], 2, "skewed, patients"), end="\n\n", flush=True)
    gaps = [[*sizes, f"{100 * known:.1f}", f"{100 * held:.1f}"] for *sizes, known, held in of_gaps(*told)]
    print(table(["patients", "seeds", "gap defined", "gap closed, held"], gaps), end="\n\n", flush=True)
    print(spread([*of_better(*told)], 1, "P(A > B)"), end="\n\n", flush=True)
    found = [*false_positives(*told)]
    calm = [row for row in found if SITUATIONS[row[1]][1] == 0]
    print(by_patients(calm, "seeds do not differ"), end="\n\n", flush=True)
    print(by_patients([row for row in found if row not in calm], "seeds differ"), flush=True)


if __name__ == "__main__":
    run_program(main)
