"""Pixel metrics between pictures, which need no weights.

Every function takes pictures `B 3 H W` of the same size in any stored type and a mask `B 1 H W` (or
`1 1 H W`, or None = everywhere), whose pixels over 0 count. For an empty mask the value is NaN: it
has no error, and no perfect score either.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

_RADIUS, _SIGMA = 5, 1.5  # Wang et al. 2004: an 11x11 Gaussian window
_C1, _C2 = 0.01**2, 0.03**2


def check_same_size(a: Tensor, b: Tensor, mask: Tensor | None) -> None:
    """Check that two batches of pictures and their mask have the same size.

    Raises:
        ValueError: they have not; names the shapes.
    """
    if a.ndim != 4 or a.shape[1] != 3 or a.shape[-2:] != b.shape[-2:] or b.shape[1] != 3:
        raise ValueError(
            f"Both pictures need 3 channels and the same size, got the shapes {tuple(a.shape)} and "
            f"{tuple(b.shape)}. Resize one first."
        )
    if mask is not None and (mask.ndim != 4 or mask.shape[-2:] != a.shape[-2:]):
        raise ValueError(
            f"The mask needs one channel and the size of the pictures, {a.shape[-1]}x{a.shape[-2]}, "
            f"got the shape {tuple(mask.shape)}."
        )


def _double(pixels: Tensor) -> Tensor:
    # An integer divided by 255 is rounded in float32; equality is compared in float64.
    if pixels.is_floating_point():
        return pixels.double()
    return pixels.double() / (65535 if pixels.dtype == torch.uint16 else 255)


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the pixels whose mask is over 0 and over all channels, `B`."""
    if mask is None:
        return values.flatten(1).mean(1)
    on = (mask > 0).to(values).expand(len(values), 1, *values.shape[-2:])
    return (values * on).flatten(1).sum(1) / (on.flatten(1).sum(1) * values.shape[1])


def masked_mse(a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared difference in units of the full range, `B`; differentiable.

    Raises:
        ValueError: the sizes differ.
    """
    check_same_size(a, b, mask)
    return masked_mean((_double(a) - _double(b)).square(), mask)


def masked_psnr(a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio in dB, `B` float64; infinite where the pictures agree.

    Raises:
        ValueError: the sizes differ.
    """
    return -10 * masked_mse(a, b, mask).log10()


def _mirrored(length: int) -> Tensor:
    """Indices that mirror a line of pixels at its ends, repeating the edge pixel: b a | a b c."""
    i = torch.arange(-_RADIUS, length + _RADIUS) % (2 * length)
    return torch.where(i < length, i, 2 * length - 1 - i)


def _window_mean(x: Tensor) -> Tensor:
    steps = torch.arange(-_RADIUS, _RADIUS + 1, dtype=x.dtype, device=x.device)
    kernel = torch.exp(-0.5 * (steps / _SIGMA) ** 2)
    kernel = (kernel / kernel.sum()).reshape(1, 1, 1, -1)
    b, c, h, w = x.shape
    x = x.reshape(b * c, 1, h, w)[..., _mirrored(w).to(x.device)]
    x = F.conv2d(x, kernel)[..., _mirrored(h).to(x.device), :]
    return F.conv2d(x, kernel.transpose(2, 3)).reshape(b, c, h, w)


def structural_similarity(x: Tensor, y: Tensor, mean: Callable[[Tensor], Tensor]) -> Tensor:
    """Structural similarity at every pixel and channel, `B C H W` in [-1, 1], Wang et al. 2004.

    `mean` computes the mean of the window around every pixel; pictures are float in [0, 1].
    """
    mx, my = mean(x), mean(y)
    vx, vy = mean(x * x) - mx * mx, mean(y * y) - my * my
    both = mean(x * y) - mx * my
    return ((2 * mx * my + _C1) * (2 * both + _C2)) / ((mx * mx + my * my + _C1) * (vx + vy + _C2))


def ssim_map(a: Tensor, b: Tensor) -> Tensor:
    """`structural_similarity` in float64 with a Gaussian window and population covariance.

    The same values as scikit-image's
    `structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False)`.
    """
    return structural_similarity(_double(a), _double(b), _window_mean)


def masked_ssim(a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean of `ssim_map` over the mask, `B` float64, 1 = same; differentiable.

    Raises:
        ValueError: the sizes differ.
    """
    check_same_size(a, b, mask)
    return masked_mean(ssim_map(a, b), mask)


def sobel(image: Tensor) -> Tensor:
    """Horizontal and vertical Sobel gradients per channel, `B 2C H W`, in range units per pixel."""
    smooth = image.new_tensor((1.0, 2.0, 1.0)) / 4
    slope = image.new_tensor((-1.0, 0.0, 1.0)) / 2
    across = smooth[:, None] * slope[None, :]
    kernels = torch.stack([across, across.T])[:, None]
    b, c, h, w = image.shape
    padded = F.pad(image.reshape(b * c, 1, h, w), (1, 1, 1, 1), mode="replicate")
    return F.conv2d(padded, kernels).reshape(b, 2 * c, h, w)


def edge_error(a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared difference of the Sobel gradients over the mask, `B`, 0 = same; differentiable.

    A constant colour cast does not count, and blur, which a squared pixel error rewards, does.

    Raises:
        ValueError: the sizes differ.
    """
    check_same_size(a, b, mask)
    return masked_mean((sobel(_double(a)) - sobel(_double(b))).square(), mask)


def outside_difference(a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
    """Largest difference where the mask is 0, `B`, in units of the full range; 0 = exact.

    If nothing is outside the mask, the value is 0.

    Raises:
        ValueError: the sizes differ.
    """
    check_same_size(a, b, mask)
    apart = (_double(a) - _double(b)).abs() * (mask == 0)
    return apart.flatten(1).amax(1)
