"""The registered networks, those marked as skipped that the environment lacks a package for."""

from importlib.util import find_spec

import pytest

import networks  # noqa: F401  which fills the registry
from nets.base import NETWORKS

LACKING = {  # the module that a network is built by, where that is an optional package
    **dict.fromkeys(("DynamicUNet", "DynamicUNet3D"), "dynamic_network_architectures"),
    **dict.fromkeys(("MonaiNet", "MonaiNet3D"), "monai"),
}
NETWORKS_HERE = [
    pytest.param(
        name,
        marks=[pytest.mark.skip(reason=f"needs the package {LACKING[name]}")]
        if name in LACKING and find_spec(LACKING[name]) is None
        else [],
    )
    for name in NETWORKS
]
