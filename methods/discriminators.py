"""Networks that tell the predictions of two sites apart."""

from itertools import pairwise

from torch import Tensor, nn

from processes.errors import UserError


class FCDiscriminator(nn.Sequential):
    """The fully convolutional discriminator of AdaptSegNet (Tsai et al., CVPR 2018), without its last upsampling.

    Five convolutions 4x4, nF, 2nF, 4nF, 8nF channels and 1, LeakyReLU(0.2) between them. Stride 2 is the published
    one; the published source-free experiments on medical images hold the same network with stride 1.
    """

    def __init__(self, n_channels: int, nF: int = 64, stride: int = 2) -> None:
        layers: list[nn.Module] = []
        widths = [n_channels, nF, 2 * nF, 4 * nF, 8 * nF]
        for n_in, n_out in pairwise(widths):
            layers += [nn.Conv2d(n_in, n_out, 4, stride, padding=1), nn.LeakyReLU(0.2)]
        super().__init__(*layers, nn.Conv2d(widths[-1], 1, 4, stride, padding=1))
        self.stride = stride
        self.least = {1: 6, 2: 32}[stride]

    def forward(self, maps: Tensor) -> Tensor:
        """(B,K,W,H) -> (B,1,w,h), one logit a patch: w = W/32 rounded down with stride 2, W-5 with stride 1.

        Raises UserError for maps too small for five convolutions.
        """
        width, height = maps.shape[-2:]
        if min(width, height) < self.least:
            raise UserError(
                f"The discriminator with stride {self.stride} needs at least {self.least} pixels along each axis, and "
                f"an image has {width} x {height}. Give {'--d_stride 1' if self.stride == 2 else 'larger images'}."
            )
        return super().forward(maps)
