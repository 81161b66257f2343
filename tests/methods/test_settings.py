"""Settings: what a field says of its flag, and how a dataclass is filled from flags."""

import argparse
from dataclasses import dataclass
from typing import Literal

import pytest

from methods.optimisers import Learning
from methods.settings import Settings, add_flags, flag
from utils import settings_of


@dataclass(frozen=True, kw_only=True)
class Own(Settings):
    share: float = flag(0.5, "of it")
    order: Literal[1, 2] = flag(2, "first or second")
    how: Literal["one", "other"] = flag("one", "which")
    weights: tuple[float, ...] = flag((1.0,), "of each")
    loud: bool = flag(False, "whether")


def read(*words):
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_flags(parser.add_argument_group("own"), Own)
    return vars(parser.parse_args(words))


def test_a_field_is_a_flag_of_its_type():
    """Those that every method shares are no flags of this one."""
    assert read() == {"share": 0.5, "order": 2, "how": "one", "weights": [1.0], "loud": False}
    words = ("--share", "1", "--order", "1", "--how", "other", "--weights", "2", "3", "--loud")
    assert read(*words) == {"share": 1.0, "order": 1, "how": "other", "weights": [2.0, 3.0], "loud": True}


@pytest.mark.parametrize("words", ["--order 3", "--how neither", "--share much", "--weights"])
def test_what_is_not_of_the_type_is_refused(words):
    with pytest.raises(argparse.ArgumentError):
        read(*words.split())


def test_a_field_that_is_no_flag_is_named():
    """A default in the dataclass is no reason to leave a flag out."""
    with pytest.raises(KeyError, match="Learning has fields that are no flags: .*lr_rule"):
        settings_of(Learning, {"l_rate": 1.0})

    @dataclass
    class Small:
        l_rate: float = 2.0

    assert settings_of(Small, {"l_rate": 1.0, "more": 3}) == Small(1.0)
    with pytest.raises(KeyError, match="Small has fields that are no flags: l_rate"):
        settings_of(Small, {"more": 3})
