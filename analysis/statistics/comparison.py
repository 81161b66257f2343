"""One run against another, and the rows of a table against their reference, as one family of tests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from analysis.statistics.claims import probability_better, probability_false
from analysis.statistics.intervals import Interval, bootstrap_interval, complete, paired_interval
from analysis.statistics.tests import crossed_test, holm, patient_differences, sign_flip, smallest_p, wilcoxon
from processes.errors import UserError
from utils import nearest

TESTS = ("p", "sign_flip", "wilcoxon")  # those that are raised after Holm


@dataclass(frozen=True)
class Paired:
    """Run A less run B, on the same patients and seeds; of fewer than two patients p and probabilities are NaN.

    difference          mean of A - B, crossed interval
    bootstrap           the same, interval of the two-way bootstrap
    better, worse       patients on whom A is higher, lower, in the mean over seeds
    sign_flip, wilcoxon two-sided p over patients, for the networks that were trained
    crossed             two-sided p over patients and seeds
    p                   the larger of `sign_flip` and `crossed`: small only if A and B differ for other patients, by a
                        test that asks for no normal scores, and for other seeds
    …_holm              a p after Holm, of the declared family; as it was where there is none
    smallest_p          the smallest that `p` can be with so many patients, before Holm
    probability_false   that the better mean is the better run: the probability that it is not
    probability_better  P(A > B) of another patient and another seed
    """

    difference: Interval
    bootstrap: Interval
    better: int
    worse: int
    sign_flip: float
    sign_flip_holm: float
    wilcoxon: float
    wilcoxon_holm: float
    crossed: float
    p: float
    p_holm: float
    smallest_p: float
    probability_false: float
    probability_better: Interval


def compare(first: ArrayLike, second: ArrayLike, seed: int = 0) -> Paired:
    """Compares two runs, tables (P, S), of which higher is better. seed: of the bootstrap, and of drawn signs."""
    differences = patient_differences(first, second)
    (one, other), _, left_out = complete(first, second)
    apart = one - other
    flipped, ranked = sign_flip(differences, np.random.default_rng(seed)), wilcoxon(differences)
    crossed = crossed_test(apart)
    p = float(np.maximum(flipped, crossed))  # NaN if either is
    claim = (one, other) if apart.size == 0 or apart.mean() >= 0 else (other, one)
    return Paired(
        difference=paired_interval(first, second),
        bootstrap=replace(bootstrap_interval(apart, np.random.default_rng(seed)), left_out=left_out),
        better=int((differences > 0).sum()),
        worse=int((differences < 0).sum()),
        sign_flip=flipped,
        sign_flip_holm=flipped,
        wilcoxon=ranked,
        wilcoxon_holm=ranked,
        crossed=crossed,
        p=p,
        p_holm=p,
        smallest_p=smallest_p(int((differences != 0).sum())),
        probability_false=probability_false(*claim),
        probability_better=probability_better(first, second),
    )


def compare_family(
    rows: Mapping[str, ArrayLike], reference: str, family: Sequence[str] | None = None, seed: int = 0
) -> dict[str, Paired]:
    """Row -> its comparison with the reference, each test after Holm over the family.

    rows: name -> table (P, S); family: the rows that were declared before anything was seen, by default all but the
    reference. Rows outside of it are not compared. Raises UserError for a name that is no row.
    """
    family = [name for name in rows if name != reference] if family is None else list(family)
    for name in (reference, *family):
        if name not in rows:
            raise UserError(f"{name} is none of the rows that are compared: {', '.join(rows)}.{nearest(name, rows)}")
    found = {name: compare(rows[name], rows[reference], seed) for name in family}
    for test in TESTS:
        raised = holm([getattr(each, test) for each in found.values()])
        found = {name: replace(found[name], **{f"{test}_holm": p}) for name, p in zip(found, raised, strict=True)}
    return found
