"""What becomes of the probabilities of an image: one class a pixel."""

import torch
from torch import Tensor

from nets.probabilities import most_probable

LEAST = 0.5  # a class none of whose pixels is more probable than this is not there


def dice_optimal(log_p: Tensor) -> Tensor:
    """(B, K, …) log-probabilities -> (B, …) int64 class numbers: for each foreground class the mask of highest Dice.

    The pixels of a class are taken as independent, and those above a threshold of its own are its mask. Of the τ most
    probable ones the Dice to expect is 2 Σ_{j≤τ} p_(j) / (Σ p + τ + 1), and the τ of the highest is chosen (RankSEG,
    Dai and Li, JMLR 2023; the approximation is RMA, Wang and Dai, NeurIPS 2025). A pixel in several masks goes to the
    class whose Dice gains most by it, and one in none is background. A class is absent where no pixel passes LEAST.
    An image is what one row of the batch holds: a slice, or a volume.
    """
    p = log_p[:, 1:].exp().flatten(2)
    taken = torch.stack([p_k >= _threshold(p_k)[:, None] for p_k in p.unbind(1)], 1)
    times = taken.sum(1)
    sure = taken & (times == 1)[:, None]  # these are no others', so the Dice of a class begins with them
    mass, size = (p * sure).sum(2, keepdim=True), sure.sum(2, keepdim=True) + p.sum(2, keepdim=True)
    gain = 2 * ((mass + p) / (size + 2) - mass / (size + 1))
    best = most_probable(gain.masked_fill(~taken, -torch.inf)) + 1
    return torch.where(times > 0, best, 0).view(log_p[:, 0].shape)


def _threshold(p: Tensor) -> Tensor:
    """(B, N) probabilities of a class -> (B,) the least of those whose mask has the highest Dice; 2 for no mask.

    Equal probabilities stay together: between them the Dice only rises, or only falls.
    """
    ranked = p.sort(1, descending=True).values
    sums = ranked.cumsum(1, dtype=torch.float64)
    sizes = torch.arange(1, p.shape[1] + 1, device=p.device)
    count = most_probable(sums / (sums[:, -1:] + sizes + 1))
    return torch.where(ranked[:, 0] > LEAST, ranked.gather(1, count[:, None])[:, 0], 2)


# why no Dice is expected of other masks than those that nets/expected_dice.py learns from
DECODED = "what the source's labels told is of masks of the most probable class (--decode argmax)"

DECODERS = {"argmax": most_probable, "dice": dice_optimal}
