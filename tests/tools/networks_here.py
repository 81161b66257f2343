"""The registered networks, those marked as skipped that the environment lacks a package for."""

from importlib.util import find_spec

import pytest

import networks  # noqa: F401  which fills the registry
from nets.base import NETWORKS

OF_NNUNET = ("DynamicUNet", "DynamicUNet3D")
lacking = pytest.mark.skipif(
    find_spec("dynamic_network_architectures") is None, reason="needs the package dynamic-network-architectures"
)
NETWORKS_HERE = [pytest.param(name, marks=[lacking] if name in OF_NNUNET else []) for name in NETWORKS]
