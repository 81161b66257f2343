"""Pseudo labels that leave pixels out, as shares: what each class has of a pixel, nothing where there is no label."""

from methods.objective import LossSum
from processes.errors import UserError
from utils import listing


def check_losses(loss: LossSum, method: str) -> None:
    """Raises UserError for losses that cannot leave out the pixels that have no pseudo label."""
    wrong = [type(part).__name__ for part in loss.losses if part.needs_target and not part.takes_shares]
    if wrong:
        raise UserError(
            f"--method {method} computes its losses where it has pseudo labels alone, and {listing(wrong)} would "
            "count the other pixels: take CrossEntropy and DiceLoss, and losses of the prediction alone."
        )
    if not any(part.needs_target for part in loss.losses):
        raise UserError(
            f"--method {method} learns from pseudo labels: give a loss on labels, as [('DiceLoss', {{}}, 1)]."
        )
