"""Augmentation pipelines for training: whole batches on the device, drawn from one addressed generator a batch.

Each takes uint8 images (N, C, H, W) and returns float32 of the same shape, normalised with the data set's statistics.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.data.augment import horizontal_flip, normalise, random_crop
from engine.data.image_set import ImageSet
from engine.errors import ConfigurationError

CROP_TRIES = 10
COLOURED = ("rfs", "imagenet")


def augment(data: ImageSet, images: Tensor, name: str, generator: torch.Generator) -> Tensor:
    """Apply the pipeline ``name`` of :data:`PIPELINES` to uint8 images of ``data`` and normalise them.

    Colours of images that are neither grey nor RGB cannot be changed: a :class:`~engine.errors.ConfigurationError`.
    """
    if name in COLOURED and images.shape[1] not in (1, 3):
        problem = f"changes colours, but {data.name} has {images.shape[1]} channels"
        raise ConfigurationError(f"--augmentation {name} {problem}; take none, drawing, photo or crop")
    return normalise(PIPELINES[name](images, generator), data.mean, data.std)


def random_affine(
    images: Tensor, generator: torch.Generator, *, degrees: float, scale: float, stretch: float, shift: float
) -> Tensor:
    """Turn, scale, stretch and shift each image (N, C, H, W), with zeros (paper) outside; bilinear, returned as float32.

    Uniform draws: angle within ±``degrees``, scale within 1 ± ``scale``, ratio of the axes within 1 ± ``stretch``, shift within
    ±``shift`` pixels along each axis.
    """
    count, _, height, width = images.shape
    draws = 2 * torch.rand(5, count, generator=generator, device=generator.device).to(images.device) - 1
    angle = draws[0] * math.radians(degrees)
    size, ratio = 1 + scale * draws[1], (1 + stretch * draws[2]).sqrt()
    cos, sin = angle.cos() / size, angle.sin() / size
    # grid_sample asks where each output pixel comes from, so scales divide.
    rows = [
        torch.stack([cos / ratio, sin / ratio, draws[3] * 2 * shift / width], 1),
        torch.stack([-sin * ratio, cos * ratio, draws[4] * 2 * shift / height], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images.float(), grid, align_corners=False)


def reflect_crop(images: Tensor, generator: torch.Generator, *, padding: int) -> Tensor:
    """Cut a window of the original size out of images (N, C, H, H) that are mirrored ``padding`` pixels beyond their borders, or
    as many as they have."""
    padding = min(padding, images.shape[-1] - 1)
    padded = F.pad(images.float(), (padding,) * 4, mode="reflect").to(images.dtype)
    return random_crop(padded, generator, padding=0, size=images.shape[-1])


def colour_jitter(images: Tensor, generator: torch.Generator, *, strength: float) -> Tensor:
    """Change brightness, contrast and saturation of each image (N, 3, H, W) by factors within 1 ± ``strength``; uint8 in, float
    out.

    The order is fixed (torchvision draws it for each image); values stay within 0 .. 255. Contrast mixes with the image's mean
    grey, saturation with each pixel's grey.
    """
    factors = 1 + strength * (2 * torch.rand(3, len(images), 1, 1, 1, generator=generator, device=generator.device) - 1)
    brightness, contrast, saturation = factors.to(images.device)
    bright = (images.float() * brightness).clamp_(0, 255)
    level = _grey(bright).mean((2, 3), keepdim=True)
    contrasted = (level + contrast * (bright - level)).clamp_(0, 255)
    grey = _grey(contrasted)
    return (grey + saturation * (contrasted - grey)).clamp_(0, 255)


def hue_shift(images: Tensor, generator: torch.Generator, *, strength: float) -> Tensor:
    """Turn the hue of each float image (N, 3, H, W) in 0 .. 255 by a share of the circle drawn within ±``strength``; saturation
    and value stay (torchvision's ``hue``). Grey images (N, 1, H, W) have none and stay as they are."""
    if images.shape[1] == 1:
        return images
    turns = strength * (2 * torch.rand(len(images), 1, 1, generator=generator, device=generator.device) - 1)
    value, largest = images.max(1)
    spread = value - images.amin(1)
    r, g, b = images.unbind(1)
    # The sector of the largest channel, and how far the other two lean to one side of it (0 for greys).
    lean = torch.stack([g - b, b - r, r - g], 1).gather(1, largest[:, None])[:, 0] / spread.clamp(min=1e-6)
    hue = 6 * turns.to(images.device) + lean + 2 * largest
    # The inverse: each channel is value - spread * clamp(min(k, 4 - k), 0, 1) with k = (n + hue) mod 6.
    channels = []
    for n in (5.0, 3.0, 1.0):
        k = (n + hue) % 6
        channels.append(value - spread * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, 1)


def cutout(images: Tensor, generator: torch.Generator, *, side: int) -> Tensor:
    """Set a square of each normalised image (N, C, H, W) to zero, the mean (DeVries and Taylor 2017).

    Its centre is uniform over the pixels; what reaches beyond the border is clipped.
    """
    count, _, height, width = images.shape
    inside = []
    for length in (height, width):
        centre = torch.randint(length, (count, 1), generator=generator, device=generator.device).to(images.device)
        first, place = centre - side // 2, torch.arange(length, device=images.device)
        inside.append((place >= first) & (place < first + side))
    return images.masked_fill((inside[0][:, :, None] & inside[1][:, None, :])[:, None], 0.0)


def random_resized_crop(images: Tensor, generator: torch.Generator) -> Tensor:
    """Cut a window of 8 to 100 % of the area and of sides 3:4 to 4:3 out of each image (N, C, H, H) and scale it to H x H.

    Draws as torchvision's: the first of ten windows that fits, else the whole image; bilinear without its antialiasing. Returned
    as float32.
    """
    count = len(images)
    draws = torch.rand(4, count, CROP_TRIES, generator=generator, device=generator.device).to(images.device)
    area = 0.08 + 0.92 * draws[0]
    ratio = torch.exp(math.log(4 / 3) * (2 * draws[1] - 1))
    width, height = (area * ratio).sqrt(), (area / ratio).sqrt()
    fits = (width <= 1) & (height <= 1)
    first = fits.double().argmax(1, keepdim=True)  # argmax() returns the first of equals
    found = fits.any(1)

    def chosen(values: Tensor) -> Tensor:
        return values.gather(1, first)[:, 0]

    w, h = (torch.where(found, chosen(size), 1.0) for size in (width, height))
    x, y = ((2 * chosen(draw) - 1) * (1 - size) for draw, size in ((draws[2], w), (draws[3], h)))
    zero = torch.zeros_like(x)
    theta = torch.stack([torch.stack([w, zero, x], 1), torch.stack([zero, h, y], 1)], 1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images.float(), grid, align_corners=False, padding_mode="border")


def _grey(images: Tensor) -> Tensor:
    """Luma of RGB images (ITU-R BT.601), (N, 1, H, W)."""
    weights = images.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    return (images * weights).sum(1, keepdim=True)


def _plain(images: Tensor, generator: torch.Generator) -> Tensor:
    return images


def _drawing(images: Tensor, generator: torch.Generator) -> Tensor:
    """Handwriting: turned ±10°, scaled ±10 %, stretched ±10 %, shifted ±2 px."""
    return random_affine(images, generator, degrees=10.0, scale=0.1, stretch=0.1, shift=2.0) / 255


def _photo(images: Tensor, generator: torch.Generator) -> Tensor:
    """Small photographs: reflected 4 px and cropped, mirrored."""
    return horizontal_flip(reflect_crop(images, generator, padding=4), generator)


def _crop(images: Tensor, generator: torch.Generator) -> Tensor:
    """CIFAR as the DARTS family does it: zero-padded by an eighth (4 of 32 px) and cropped, mirrored."""
    return horizontal_flip(random_crop(images, generator, padding=images.shape[-1] // 8), generator)


def _imagenet(images: Tensor, generator: torch.Generator) -> Tensor:
    """ImageNet as the DARTS family does it: a random window, mirrored, colour jitter of 0.4 and hue of 0.2.

    The window is one of the square images that the data set holds, not of the larger originals.
    """
    mirrored = horizontal_flip(random_resized_crop(images, generator), generator)
    return hue_shift(colour_jitter(mirrored, generator, strength=0.4), generator, strength=0.2) / 255


def _rfs(images: Tensor, generator: torch.Generator) -> Tensor:
    """RFS: zero-padded by 8 of 84 px and cropped, colour jitter of 0.4, mirrored (reference note section 7)."""
    cropped = random_crop(images, generator, padding=round(images.shape[-1] * 8 / 84))
    return horizontal_flip(colour_jitter(cropped, generator, strength=0.4), generator) / 255


PIPELINES: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "none": _plain,
    "drawing": _drawing,
    "photo": _photo,
    "crop": _crop,
    "rfs": _rfs,
    "imagenet": _imagenet,
}
