"""Networks that nnU-Net itself trains: the same masks here as there, and networks that adapt.

    NNUNET=1 python -m pytest tests/prediction/test_nnunet_itself.py

This installs nnunetv2 into an environment of its own, and trains six networks on a miniature data set there: five to
ten minutes. NNUNET=/path/to/python takes an environment that has it; NNUNET=/path/to/folder what was made before.
"""

import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import predict
from prediction import adopt
from tests.tools.checkout import ROOT

pytestmark = pytest.mark.nnunet
pytest.importorskip("dynamic_network_architectures", reason="pip install -r tests/requirements.txt")

MADE = [
    (f"Dataset50{1 + is_ct}_Mini{'CT' * is_ct}", f"nnUNet{kind}Plans", configuration)
    for is_ct, kind in ((False, ""), (False, "ResEncUNetM"), (True, ""))
    for configuration in ("2d", "3d_fullres")
]


def python_with_nnunet(folder):
    """A python that has nnunetv2, in an environment made here. Skips where no package index can be reached."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    wanted = ["torch==2.13.0", "nnunetv2==2.8.1"]
    done = subprocess.run([folder / "bin/pip", "install", "-q", *wanted], capture_output=True, text=True, timeout=1800)
    if done.returncode:
        pytest.skip(f"nnunetv2 cannot be installed: {done.stderr[-300:]}")
    return folder / "bin/python"


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """What tests/tools/nnunet_reference.py makes."""
    asked = Path(os.environ["NNUNET"])
    if asked.is_dir():
        return asked
    python = asked if asked.is_file() else python_with_nnunet(tmp_path_factory.mktemp("env"))
    out = tmp_path_factory.mktemp("nnunet")
    subprocess.run([python, ROOT / "tests/tools/nnunet_reference.py", out], check=True, timeout=3000)
    return out


def adopted(there, made, out):
    name, plans, configuration = made
    folder = there / "results" / name / f"nnUNetTrainer__{plans}__{configuration}"
    adopt.main(["--nnunet", str(folder), "--out", str(out)])
    return out


def predicted(there, made, weights, out, *flags):
    words = [f"{there}/new/{made[0]}/*_{channel:04}.nii.gz" for channel in range(1 + ("CT" in made[0]))]
    words = [word for glob in words for word in ("--volumes", glob)]
    predict.main(
        [*words, *map(str, ["--weights", weights, "--out", out, "--layout", "nnunet", "--device", "cpu", *flags])]
    )
    return masks_in(out)


def masks_in(folder):
    return np.concatenate([np.asarray(nib.load(path).dataobj).ravel() for path in sorted(folder.glob("mini*.nii.gz"))])


@pytest.mark.parametrize("made", MADE, ids="-".join)
def test_masks_are_those_of_nnunet(there, tmp_path, made):
    """With its mirroring, which is the default here too, and without."""
    weights = adopted(there, made, tmp_path / "last.pkl")
    for tta, flags in (("mirrored", ()), ("plain", ("--flip",))):
        ours = predicted(there, made, weights, tmp_path / tta, *flags)
        theirs = masks_in(there / "there" / f"{made[0][7:10]}_{made[1]}_{made[2]}" / tta)
        for k in (1, 2):
            both, sizes = ((ours == k) & (theirs == k)).sum(), [(masks == k).sum() for masks in (ours, theirs)]
            assert min(sizes) > 100
            assert 2 * both / sum(sizes) >= 0.999


@pytest.mark.parametrize("made", MADE, ids="-".join)
def test_it_adapts(there, tmp_path, made):
    weights = adopted(there, made, tmp_path / "last.pkl")
    sizes = ("--prior_mm2", 150, 60) if made[2] == "2d" else ()
    masks = predicted(there, made, weights, tmp_path / "out", "--adapt", *sizes, "--n_epoch", 1, "--l_rate", 1e-3)
    assert {0, 1} <= {*np.unique(masks).tolist()} <= {0, 1, 2}
