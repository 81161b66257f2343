"""The precisions that a network can compute in."""

import torch

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = ("auto", "fp32", "tf32", *AUTOCAST)  # auto: tf32 on a GPU, which is fp32 everywhere else


def allow_tf32(precision: str) -> None:
    """Whether a GPU may round the factors of float32 products to ten bits, several times as fast."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision in ("auto", "tf32")
