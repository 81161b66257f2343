"""In which look a source network starts: what each witness has to say for it, and the words of the decision."""

import numpy as np
import pytest

from selection.looks import LOOKS, Look, best_look

NAMES = list(LOOKS)


def look(place, agreement, consistency, edge, contrast):
    """Of eight patients who differ a little, alike in every look."""
    differ = np.linspace(-0.01, 0.01, 8)
    scores = {"consistency": consistency, "edge": edge, "contrast": contrast}
    return Look(NAMES[place], LOOKS[NAMES[place]], agreement, {name: value + differ for name, value in scores.items()})


def chosen(as_is, matched, turned):
    found, why = best_look([look(place, *each) for place, each in enumerate((as_is, matched, turned))])
    assert why.startswith(f"Grey levels, decided without labels: {found.name}, as ")
    return found.share


HOME, LOST = (0.9, 0.6, 1.5, 1.0), (0.4, 0.6, 1.5, 1.0)
POOR = (0.3, 0.2, 0.5, 0.2)  # nowhere at home


@pytest.mark.parametrize(
    ("as_is", "matched", "turned", "share"),
    [
        (HOME, HOME, HOME, 0),  # nothing is surely better
        (HOME, POOR, POOR, 0),
        (HOME, (0.95, 0.7, 1.5, 1.0), POOR, 0),  # one witness is not enough
        (HOME, (0.95, 0.7, 1.8, 1.0), POOR, 1),
        (HOME, (0.95, 0.7, 1.5, 1.3), POOR, 1),
        (HOME, (0.95, 0.5, 1.8, 1.3), POOR, 1),
        (HOME, (0.95, 0.7, 1.2, 1.3), POOR, 0),  # at weaker edges
        (HOME, (0.60, 0.7, 1.8, 1.3), POOR, 0),  # not at home there
        (LOST, POOR, (0.8, 0.5, 1.5, 0.9), -1),
        ((0.0, np.nan, np.nan, np.nan), POOR, (0.8, 0.5, 1.5, 0.9), -1),  # nothing is found in them
        (LOST, POOR, (0.8, 0.5, 1.2, 1.4), 0),
        (LOST, POOR, POOR, 0),
        (LOST, (0.9, 0.55, 1.6, 1.0), (0.8, 0.65, 1.6, 1.0), -1),  # the more consistent
        (LOST, (0.9, 0.65, 1.6, 1.0), (0.8, 0.55, 1.6, 1.0), 1),
    ],
)
def test_a_look_is_taken_on_these_grounds(as_is, matched, turned, share):
    assert chosen(as_is, matched, turned) == share


@pytest.mark.parametrize(("better", "share"), [((0.7, 1.8, 1.0), -1), ((0.7, 1.5, 1.0), 0), ((0.7, 1.2, 1.3), 0)])
def test_without_batch_norms_two_witnesses_have_to_agree(better, share):
    plain = (None, 0.6, 1.5, 1.0)
    assert chosen(plain, plain, (None, *better)) == share


def test_the_words_name_what_was_seen_in_every_look():
    _, why = best_look([look(0, *LOST), look(1, *POOR), look(2, *HOME)])
    assert (
        "exchanged, as the source network is at home there, and not on them as they are (as they are it agrees" in why
    )
    for figure in ("0.40", "0.30", "0.90"):
        assert f"agrees with its refresh to {figure}" in why
    nothing = look(0, 0.0, np.nan, np.nan, np.nan)
    assert "(as they are it agrees with its refresh to 0.00, finds nothing; " in best_look([nothing, look(1, *POOR)])[1]
    assert "agrees" not in best_look([look(place, None, 0.6, 1.5, 1.0) for place in range(3)])[1]
