"""Random views of a batch of images, made on the device that trains.

`draw` turns a generator into the parameters of n views, one row a sample, on the CPU; `apply` turns uint8 images and
parameters into float32 views. Rows are independent, so a worker may draw for the global batch and apply its slice.

    crop, flip, rotation -> brightness -> contrast -> saturation -> hue -> grey -> blur

Every operation equals the function of its name in `torchvision.transforms.v2.functional` on float images, except that
- crop, flip and rotation are one bilinear sampling. The outermost half source pixel of a crop mixes in the real
  neighbours beyond the crop box, where `resized_crop` repeats its edge. (Crops only enlarge: antialiasing has no part.)
  A rotated crop shows what the image holds beyond the box. Beyond the image itself there is black when rotation is on,
  as in `rotate(fill=None)` (`fill=0` fades the pixels on the edge twice), and the edge's own pixels when it is off;
- jitter keeps the order above, where `ColorJitter` shuffles it. Because values are clipped between the steps the order
  matters a little: at strengths 0.4, 0.4, 0.4, 0.1 a pixel differs by 1.4 to 2.9 of 255 levels on average (photographs,
  stain and fundus colours), where jitter itself moves it by 15 to 34.

Grey images have no colour: saturation, hue and grey do nothing to them; brightness and contrast do.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ssl_core.config import AugmentConfig
from ssl_core.errors import DataError

#: Crops tried a sample before the whole image is taken, and their width / height (torchvision's RandomResizedCrop).
ATTEMPTS = 10
ASPECT = (3 / 4, 4 / 3)
#: Weights of red, green and blue in grey (ITU-R 601, torchvision's digits: they sum to 0.9999).
LUMA = (0.2989, 0.587, 0.114)


@dataclass(frozen=True, kw_only=True, eq=False)
class ViewParameters:
    """What happens to each of n images of `size` x `size` px. None: the operation is off and costs nothing."""

    n: int
    channels: int
    size: int
    warp: Tensor | None = None  # (n, 2, 3) from the view's coordinates to the image's, both in [-1, 1]
    outside: Literal["zeros", "border"] = "border"  # what the warp finds beyond the image
    brightness: Tensor | None = None  # (n,) factor; 1 keeps the image, as in the next two
    contrast: Tensor | None = None  # (n,) factor
    saturation: Tensor | None = None  # (n,) factor
    hue: Tensor | None = None  # (n,) turns of the colour circle; 0 keeps the image
    colour: Tensor | None = None  # (n,) 1 keeps colour, 0 makes grey
    sigma: Tensor | None = None  # (n,) px of blur, 0 for none; stays on the CPU, where `apply` picks the rows to blur
    radius: int = 0  # px of the blur kernel to either side

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, rows: slice) -> ViewParameters:
        """The parameters of samples `rows`."""
        chosen = {name: tensor[rows] for name, tensor in self._tensors().items()}
        return dataclasses.replace(self, n=len(range(self.n)[rows]), **chosen)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ViewParameters:
        """The parameters on `device`, except `sigma`."""
        moved = {k: v.to(device, non_blocking=non_blocking) for k, v in self._tensors().items() if k != "sigma"}
        return dataclasses.replace(self, **moved)

    def _tensors(self) -> dict[str, Any]:
        return {f.name: v for f in dataclasses.fields(self) if isinstance(v := getattr(self, f.name), Tensor)}


def draw(config: AugmentConfig, n: int, channels: int, size: int, generator: Generator) -> ViewParameters:
    """Parameters of n views of square images with `channels` (1 or 3) channels and `size` px a side.

    `generator` is a CPU generator and is advanced by the same count whatever is on, so that turning an operation on or
    off, or changing its strength, leaves the draws of all others as they are. Raises DataError for 2 or 4 channels.
    """
    if channels not in (1, 3):
        raise DataError(f"images have {channels} channels; views are made of grey images (1) or RGB images (3)")
    u = torch.rand(n, 2 * ATTEMPTS + 12, generator=generator, dtype=torch.float64)
    place, (jitter, brightness, contrast, saturation, hue, grey, blur, sigma) = u[:, :-8], u[:, -8:].unbind(1)
    rgb = channels == 3

    def around(centre: float, strength: float, u: Tensor) -> Tensor | None:
        if strength == 0 or config.jitter == 0:
            return None
        return torch.where(jitter < config.jitter, _between(centre - strength, centre + strength, u), centre).float()

    sigma = torch.where(blur < config.blur, _between(*config.blur_sigma, sigma), 0.0).float()
    return ViewParameters(
        n=n,
        channels=channels,
        size=size,
        warp=_warp(config, size, place),
        outside="zeros" if config.rotate > 0 else "border",
        brightness=around(1, config.brightness, brightness),
        contrast=around(1, config.contrast, contrast),
        saturation=around(1, config.saturation if rgb else 0, saturation),
        hue=around(0, config.hue if rgb else 0, hue),
        colour=(grey >= config.grey).float() if config.grey > 0 and rgb else None,
        sigma=sigma if config.blur > 0 else None,
        radius=min(math.ceil(3 * config.blur_sigma[1]), size - 1),  # a reflection holds size - 1 px
    )


def apply(images: Tensor, parameters: ViewParameters) -> Tensor:
    """Views of `images`, uint8 (B, C, S, S) -> contiguous float32 (B, C, S, S) in [0, 1] on the same device.

    Computes in float32, also inside an autocast region. `parameters` may be on the CPU still.
    Raises DataError if the images are not uint8, not square, or not what the parameters were drawn for.
    """
    p = parameters.to(images.device, non_blocking=True)
    if images.shape != (expected := (p.n, p.channels, p.size, p.size)):
        raise DataError(f"images are {tuple(images.shape)}, their parameters for {expected}: draw for this shape")
    with torch.autocast(images.device.type, enabled=False):
        x = prepare(images)
        if p.warp is not None:
            x = F.grid_sample(x, _grid(p.warp, p.size), padding_mode=p.outside, align_corners=False)
        if p.brightness is not None:
            x = x.mul_(_rows(p.brightness)).clamp_(0, 1)
        if p.contrast is not None:
            x = _blend(x, _luma(x.mean((2, 3), keepdim=True)), p.contrast)
        if p.saturation is not None:
            x = _blend(x, _luma(x), p.saturation)
        if p.hue is not None:
            x = _shift_hue(x, p.hue)
        if p.colour is not None:
            x = _blend(x, _luma(x), p.colour)
        if p.sigma is not None:
            x = _blur(x, p.sigma, p.radius)
        return x


def prepare(images: Tensor) -> Tensor:
    """Images as they are, uint8 (B, C, H, W) -> contiguous float32 in [0, 1]. Raises DataError for other types."""
    if images.dtype != torch.uint8:
        raise DataError(f"images are {images.dtype}, not uint8 in 0..255; convert them before this point")
    return images.to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def normalise(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(x - mean) / std for each channel of x (B, C, H, W). Raises DataError for a zero or missing deviation."""
    if not len(mean) == len(std) == x.shape[1] or min(std) <= 0:
        raise DataError(f"mean {tuple(mean)} and std {tuple(std)} must hold {x.shape[1]} numbers each, std above 0")
    return (x - x.new_tensor(mean)[:, None, None]) / x.new_tensor(std)[:, None, None]


def _between(low: float, high: float, u: Tensor) -> Tensor:
    return low + (high - low) * u


def _rows(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _crop_sides(share: tuple[float, float], size: int, tries: Tensor) -> tuple[Tensor, Tensor]:
    """Whole widths and heights (n,) of crops, as torchvision's RandomResizedCrop draws them.

    The first of ATTEMPTS crops that fits, of uniform area and log-uniform aspect; the whole image if none does.
    """
    area = _between(*share, tries[:, 0]) * size**2  # (n, ATTEMPTS)
    aspect = _between(math.log(ASPECT[0]), math.log(ASPECT[1]), tries[:, 1]).exp()
    width, height = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (width >= 1) & (width <= size) & (height >= 1) & (height <= size)
    first = fits.int().argmax(1, keepdim=True)

    def chosen(side: Tensor) -> Tensor:
        return torch.where(fits.any(1), side.gather(1, first)[:, 0], size)

    return chosen(width), chosen(height)


def _warp(config: AugmentConfig, size: int, u: Tensor) -> Tensor | None:
    """(n, 2, 3): a point of the view, turned back, flipped back, and placed in the crop box of the image."""
    if config.crop is None and config.flip == 0 and config.rotate == 0:
        return None
    tries, (top, left, flip, angle) = u[:, :-4].reshape(-1, 2, ATTEMPTS), u[:, -4:].unbind(1)
    width = height = torch.full_like(top, size)
    if config.crop is not None:
        width, height = _crop_sides(config.crop, size, tries)
    left, top = (left * (size - width + 1)).floor(), (top * (size - height + 1)).floor()  # px
    mirror = torch.where(flip < config.flip, -1.0, 1.0)
    radians = torch.deg2rad(_between(-config.rotate, config.rotate, angle))  # counter-clockwise
    cos, sin = radians.cos(), radians.sin()
    x = torch.stack((mirror * width * cos, -mirror * width * sin, 2 * left + width - size), 1)
    y = torch.stack((height * sin, height * cos, 2 * top + height - size), 1)
    return torch.stack((x, y), 1).div_(size).float()


def _grid(warp: Tensor, size: int) -> Tensor:
    """Where each pixel of the view looks, (n, S, S, 2): as `affine_grid(align_corners=False)`, in 1/40 of its time."""
    centre = (2 * torch.arange(size, device=warp.device) + 1) / size - 1
    across, down, offset = warp[:, :, :, None, None].unbind(2)  # each (n, 2, 1, 1)
    planes = across * centre + (down * centre[:, None] + offset)  # (n, 2, S, S)
    return planes.permute(0, 2, 3, 1)


def _luma(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, 1, H, W)."""
    if x.shape[1] == 1:
        return x.clone()
    red, green, blue = (x[:, c : c + 1] for c in range(3))
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def _blend(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """factor * x + (1 - factor) * other within [0, 1], in place of x."""
    return x.mul_(_rows(factor)).add_(other * _rows(1 - factor)).clamp_(0, 1)


def _shift_hue(x: Tensor, turns: Tensor) -> Tensor:
    """HSV hue plus `turns`; the largest and the smallest channel of each pixel, hence value and saturation, stay.

    With the hue h in [0, 6) (red 0, green 2, blue 4) and channels R, G, B stretched to span [0, 1], h = 1 + G + B - R
    where g >= b: G rises over h in [0, 1], R falls over [1, 2], B rises over [2, 3]. Where g < b, h is the mirror image
    6 - that. So t = 3 - h is one expression for all six sectors, and each channel is a clipped |t - const|.
    """
    red, green, blue = x.unbind(1)  # (B, H, W)
    low = x.amin(1)
    chroma = x.amax(1) - low
    stretched = (green + blue).sub_(red).sub_(low).div_(chroma.clamp(min=1e-12))  # G + B - R
    t = torch.copysign(2 - stretched, green - blue).sub_(6 * turns[:, None, None])
    t = t.sub_(torch.round(t / 6), alpha=6)  # back into [-3, 3]
    channels = torch.stack((t.abs() - 1, 2 - (t - 1).abs(), 2 - (t + 1).abs()), 1)
    return channels.clamp_(0, 1).mul_(chroma[:, None]).add_(low[:, None])


def _blur(x: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Gaussian blur of the rows with sigma > 0, in place of x, reflecting at the edges.

    The kernel is 2 * radius + 1 px for all samples, three times the largest sigma to either side (less on an image too
    small to reflect that much). What lies beyond, 0.3 % of the weight, is spread over the kernel, as torchvision does.
    """
    rows = sigma.nonzero()[:, 0]
    if len(rows) == 0:
        return x
    offsets = torch.arange(-radius, radius + 1)
    kernel = torch.softmax(-((offsets / sigma[rows, None]) ** 2) / 2, 1)  # (b, K)
    kernel, rows = kernel.to(x.device, non_blocking=True), rows.to(x.device, non_blocking=True)
    _, c, height, width = x.shape
    kernel = kernel.repeat_interleave(c, 0)[:, None]  # (b * C, 1, K): each image's channels are groups of their own
    padded = F.pad(x[rows], (radius,) * 4, mode="reflect").reshape(1, -1, height + 2 * radius, width + 2 * radius)
    across = F.conv2d(padded, kernel[:, :, None, :], groups=len(kernel))
    blurred = F.conv2d(across, kernel[:, :, :, None], groups=len(kernel))
    return x.index_copy_(0, rows, blurred.reshape(len(rows), c, height, width))
