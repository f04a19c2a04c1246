"""Views against torchvision's functional operations with the same parameters, and against scipy's interpolation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import ndimage, stats
from torch import Tensor
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as tv

from ssl_core.augment import ViewParameters, apply, draw, normalise, prepare
from ssl_core.config import NO_AUGMENT, AugmentConfig
from ssl_core.errors import DataError

ALL = AugmentConfig(crop=(0.4, 1.0), flip=0.5, rotate=30.0)
PARAMETERS = ("warp", "brightness", "contrast", "saturation", "hue", "colour", "sigma")
INTERPOLATE = tv.InterpolationMode.BILINEAR


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(n: int, channels: int = 3, size: int = 24, seed: int = 7) -> Tensor:
    """Noise, with black, white, primary colours and ties between channels among the pixels."""
    images = torch.randint(0, 256, (n, channels, size, size), dtype=torch.uint8, generator=seeded(seed))
    images[:, :, :4, :8] = 0
    images[:, :, 4:8, :8] = 255
    images[:, :, 8:12] = 255 * torch.randint(0, 2, (n, channels, 4, size), dtype=torch.uint8, generator=seeded(seed))
    images[:, :, 12:14] = images[:, :1, 12:14]
    return images


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def each(images: Tensor, operation: Callable[..., Tensor], *values: Tensor) -> Tensor:
    """`operation` on one image at a time, with that image's values as Python numbers."""
    return torch.stack([operation(x, *(v[i].item() for v in values)) for i, x in enumerate(images)])


def only(**settings: object) -> AugmentConfig:
    return dataclasses.replace(NO_AUGMENT, **settings)


def jitter_only(**strengths: float) -> AugmentConfig:
    return only(jitter=1.0, **{**dict.fromkeys(("brightness", "contrast", "saturation", "hue"), 0.0), **strengths})


def geometry(p: ViewParameters) -> tuple[Tensor, ...]:
    """Crop box in px (top, left, height, width), angle in degrees and flip (-1 or 1), read back from the warps."""
    assert p.warp is not None
    (ax, bx, cx), (ay, by, cy) = p.warp.double().unbind(1)[0].unbind(1), p.warp.double().unbind(1)[1].unbind(1)
    height, width = p.size * torch.hypot(ay, by), p.size * torch.hypot(ax, bx)
    top, left = (p.size * (cy + 1) - height) / 2, (p.size * (cx + 1) - width) / 2
    return top, left, height, width, torch.rad2deg(torch.atan2(ay, by)), torch.sign(ax * by - bx * ay)


# --- exactly torchvision ---


def test_prepare_and_normalise_equal_torchvision() -> None:
    images = pictures(3)
    x = prepare(images)
    close(x, tv.to_dtype(images, torch.float32, scale=True), 1e-7)
    mean, std = (0.1, 0.5, 0.7), (0.2, 0.3, 0.4)
    close(normalise(x, mean, std), tv.normalize(x, mean, std), 1e-6)


def test_a_flip_equals_torchvision() -> None:
    images = pictures(8)
    p = draw(only(flip=0.5), 8, 3, 24, seeded())
    flipped = geometry(p)[-1] < 0
    assert 0 < flipped.sum() < 8
    x = prepare(images)
    close(apply(images, p), torch.where(flipped[:, None, None, None], tv.horizontal_flip(x), x))


@pytest.mark.parametrize("degrees", [30.0, 180.0])
def test_a_rotation_equals_torchvisions_with_black_outside(degrees: float) -> None:
    images = pictures(16)
    p = draw(only(rotate=degrees), 16, 3, 24, seeded())
    expected = each(prepare(images), lambda x, a: tv.rotate(x, a, interpolation=INTERPOLATE), geometry(p)[4])
    close(apply(images, p), expected, 2e-5)


@pytest.mark.parametrize("antialias", [False, True])
def test_a_crop_equals_torchvision_wherever_it_looks_between_pixels_of_the_box(antialias: bool) -> None:
    size = 24
    images = pictures(32, size=size)
    p = draw(only(crop=(0.2, 1.0)), 32, 3, size, seeded())
    box = torch.stack(geometry(p)[:4], 1)
    close(box, box.round(), 1e-4)  # whole pixels
    views = apply(images, p)
    for x, view, (top, left, height, width) in zip(prepare(images), views, box.round().int().tolist(), strict=True):
        expected = tv.resized_crop(x, top, left, height, width, [size, size], INTERPOLATE, antialias=antialias)
        look = (torch.arange(size) + 0.5) / size  # share of the box
        rows, columns = ((look * side > 0.5) & (look * side < side - 0.5) for side in (height, width))
        # at the image's own edges there is no neighbour beyond the box: equal there too
        rows |= torch.tensor([top == 0] * (size // 2) + [top + height == size] * (size // 2))
        columns |= torch.tensor([left == 0] * (size // 2) + [left + width == size] * (size // 2))
        assert rows.sum() >= size - 4
        assert columns.sum() >= size - 4
        close(view[:, rows][:, :, columns], expected[:, rows][:, :, columns], 2e-5)


@pytest.mark.parametrize(
    ("name", "operation"),
    [
        ("brightness", tv.adjust_brightness),
        ("contrast", tv.adjust_contrast),
        ("saturation", tv.adjust_saturation),
        ("hue", tv.adjust_hue),
    ],
)
@pytest.mark.parametrize("strength", [0.1, 0.5])
def test_a_step_of_the_jitter_equals_torchvision(name: str, operation: Callable[..., Tensor], strength: float) -> None:
    images = pictures(16)
    p = draw(jitter_only(**{name: strength}), 16, 3, 24, seeded())
    values = getattr(p, name)
    assert sum(getattr(p, other) is not None for other in PARAMETERS) == 1
    close(apply(images, p), each(prepare(images), operation, values), 2e-6)


def test_grey_equals_torchvision() -> None:
    images = pictures(16)
    p = draw(only(grey=0.5), 16, 3, 24, seeded())
    assert p.colour is not None
    assert 0 < p.colour.sum() < 16
    x = prepare(images)
    close(apply(images, p), each(x, lambda x, colour: x if colour else tv.rgb_to_grayscale(x, 3), p.colour), 1e-6)


@pytest.mark.parametrize(("size", "channels", "kernel"), [(24, 3, 13), (24, 1, 13), (8, 3, 13), (4, 3, 7)])
def test_a_blur_equals_torchvision(size: int, channels: int, kernel: int) -> None:
    images = torch.randint(0, 256, (16, channels, size, size), dtype=torch.uint8, generator=seeded())
    p = draw(only(blur=0.7), 16, channels, size, seeded())
    assert p.sigma is not None
    assert 0 < (p.sigma > 0).sum() < 16
    expected = each(prepare(images), lambda x, s: tv.gaussian_blur(x, [kernel] * 2, [s] * 2) if s else x, p.sigma)
    close(apply(images, p), expected, 1e-6)


def test_the_whole_chain_equals_torchvisions_in_the_documented_order() -> None:
    images = pictures(24)
    p = draw(dataclasses.replace(ALL, crop=None), 24, 3, 24, seeded())  # sampled twice, a crop would differ
    *_, angle, flip = geometry(p)

    def chain(x: Tensor, *values: float) -> Tensor:
        flip, angle, b, c, s, h, colour, sigma = values
        x = tv.horizontal_flip(x) if flip < 0 else x
        x = tv.rotate(x, angle, interpolation=INTERPOLATE)
        x = tv.adjust_contrast(tv.adjust_brightness(x, b), c)
        x = tv.adjust_hue(tv.adjust_saturation(x, s), h)
        x = x if colour else tv.rgb_to_grayscale(x, 3)
        return tv.gaussian_blur(x, [13, 13], [sigma, sigma]) if sigma else x

    values = [getattr(p, name) for name in PARAMETERS[1:]]
    close(apply(images, p), each(prepare(images), chain, flip, angle, *values), 3e-5)


def test_crop_flip_and_rotation_are_one_bilinear_sampling() -> None:
    size, images = 24, pictures(12)
    for config, mode in ((ALL, "grid-constant"), (dataclasses.replace(ALL, rotate=0.0), "nearest")):
        p = draw(dataclasses.replace(config, jitter=0.0, grey=0.0, blur=0.0), 12, 3, size, seeded())
        views = apply(images, p).numpy()
        y, x = np.mgrid[:size, :size] + 0.5 - size / 2  # px from the centre of the view
        for i, (top, left, height, width, angle, flip) in enumerate(torch.stack(geometry(p), 1).tolist()):
            a = np.deg2rad(angle)
            x_turned, y_turned = flip * (np.cos(a) * x - np.sin(a) * y), np.sin(a) * x + np.cos(a) * y
            rows = top + height / 2 + y_turned * height / size - 0.5
            columns = left + width / 2 + x_turned * width / size - 0.5
            for channel in range(3):
                plane = images[i, channel].numpy() / 255
                expected = ndimage.map_coordinates(plane, [rows, columns], order=1, mode=mode)
                np.testing.assert_allclose(views[i, channel], expected, atol=2e-5)


# --- invariances ---


def test_no_operation_gives_the_image_back_and_costs_nothing() -> None:
    p = draw(NO_AUGMENT, 5, 3, 24, seeded())
    assert all(getattr(p, name) is None for name in PARAMETERS)
    images = pictures(5)
    close(apply(images, p), prepare(images), 0)


def test_operations_that_are_off_have_no_parameters() -> None:
    assert draw(jitter_only(), 5, 3, 24, seeded()).brightness is None
    assert draw(only(jitter=0.0, brightness=0.9), 5, 3, 24, seeded()).brightness is None
    grey = draw(ALL, 5, 1, 24, seeded())
    assert [name for name in PARAMETERS if getattr(grey, name) is None] == ["saturation", "hue", "colour"]


def test_samples_for_which_nothing_is_drawn_pass_unchanged() -> None:
    rare = 1e-12
    config = AugmentConfig(crop=(1.0, 1.0), flip=rare, rotate=rare, jitter=rare, grey=rare, blur=rare)
    p = draw(config, 6, 3, 24, seeded())
    assert all(getattr(p, name) is not None for name in PARAMETERS)
    images = pictures(6)
    close(apply(images, p), prepare(images), 5e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_slice_of_the_parameters_makes_the_slice_of_the_views(channels: int) -> None:
    images = pictures(20, channels)
    p = draw(ALL, 20, channels, 24, seeded())
    parts = [apply(images[rows], p[rows]) for rows in (slice(0, 7), slice(7, 8), slice(8, 20))]
    assert [len(p[rows]) for rows in (slice(0, 7), slice(15, 40), slice(None, None, 2))] == [7, 5, 10]
    close(torch.cat(parts), apply(images, p), 1e-6)


def test_a_seed_makes_the_same_views_and_leaves_the_global_generator_alone() -> None:
    images, before = pictures(8), torch.get_rng_state()
    views = [apply(images, draw(ALL, 8, 3, 24, seeded(seed))) for seed in (3, 3, 4)]
    close(views[0], views[1], 0)
    assert (views[0] - views[2]).abs().mean() > 0.05
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    "off",
    [
        {"crop": None},
        {"flip": 0.0},
        {"rotate": 0.0},
        {"brightness": 0.1},
        {"grey": 0.0},
        {"blur": 0.0},
        {"blur_sigma": (1.0, 3.0)},
    ],
)
def test_changing_one_operation_leaves_the_draws_of_the_others(off: dict[str, object]) -> None:
    p, q = draw(ALL, 50, 3, 24, seeded()), draw(dataclasses.replace(ALL, **off), 50, 3, 24, seeded())  # type: ignore[arg-type]
    changed = {
        "crop": "warp",
        "flip": "warp",
        "rotate": "warp",
        "grey": "colour",
        "blur": "sigma",
        "blur_sigma": "sigma",
    }
    (name,) = off
    for parameter in PARAMETERS:
        a, b = getattr(p, parameter), getattr(q, parameter)
        assert (b is not None and torch.equal(a, b)) == (parameter != changed.get(name, name)), parameter
    # top, left, height, width, angle, flip: the box belongs to the crop
    mine = {"crop": {0, 1, 2, 3}, "rotate": {4}, "flip": {5}}.get(name, set())
    for i, (a, b) in enumerate(zip(geometry(p), geometry(q), strict=True)):
        assert torch.allclose(a, b, atol=1e-4) == (i not in mine), i


def test_a_grey_image_makes_the_same_views_as_its_three_equal_channels() -> None:
    grey = pictures(12, channels=1)
    one = apply(grey, draw(ALL, 12, 1, 24, seeded()))
    three = apply(grey.expand(-1, 3, -1, -1), draw(ALL, 12, 3, 24, seeded()))
    close(one.expand(-1, 3, -1, -1), three, 5e-4)  # torchvision's weights of grey sum to 0.9999


def test_views_do_not_depend_on_the_memory_format_and_leave_the_images_alone() -> None:
    images = pictures(6)
    kept, p = images.clone(), draw(ALL, 6, 3, 24, seeded())
    views = apply(images, p)
    from_last = apply(images.contiguous(memory_format=torch.channels_last), p)
    close(from_last, views, 0)
    assert views.is_contiguous()
    assert from_last.is_contiguous()
    assert prepare(images.contiguous(memory_format=torch.channels_last)).is_contiguous()
    assert torch.equal(images, kept)
    close(normalise(views.contiguous(memory_format=torch.channels_last), (0.5,) * 3, (0.2,) * 3), (views - 0.5) / 0.2)


def test_autocast_of_the_caller_does_not_reach_the_views() -> None:
    images, p = pictures(6), draw(ALL, 6, 3, 24, seeded())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        views = apply(images, p)
    assert views.dtype == torch.float32
    close(views, apply(images, p), 0)


def test_views_stay_within_0_and_1() -> None:
    views = apply(pictures(64), draw(dataclasses.replace(ALL, brightness=0.9, contrast=0.9), 64, 3, 24, seeded()))
    assert views.min() >= 0
    assert views.max() <= 1 + 1e-6
    assert views.max() > 0.99


# --- distributions ---


def test_each_sample_draws_its_own_parameters_from_the_stated_ranges() -> None:
    n = 4000
    p = draw(AugmentConfig(rotate=25.0, flip=0.3, jitter=0.8, grey=0.2, blur=0.5), n, 3, 64, seeded())
    assert p.brightness is not None
    assert p.colour is not None
    assert p.sigma is not None
    jittered, blurred = p.brightness != 1, p.sigma > 0
    drawn = {
        "brightness": (p.brightness[jittered], 0.6, 1.4),
        "contrast": (p.contrast[p.contrast != 1], 0.6, 1.4),  # type: ignore[index]
        "saturation": (p.saturation[p.saturation != 1], 0.6, 1.4),  # type: ignore[index]
        "hue": (p.hue[p.hue != 0], -0.1, 0.1),  # type: ignore[index]
        "sigma": (p.sigma[blurred], 0.1, 2.0),
        "angle": (geometry(p)[4], -25, 25),
    }
    for name, (values, low, high) in drawn.items():
        assert len(values.unique()) > 0.99 * len(values), name
        assert stats.kstest(values.numpy(), stats.uniform(low, high - low).cdf).pvalue > 0.01, name
    shares = {
        "jitter": (jittered, 0.8),
        "blur": (blurred, 0.5),
        "grey": (p.colour == 0, 0.2),
        "flip": (geometry(p)[5] < 0, 0.3),
    }
    for name, (chosen, probability) in shares.items():
        assert stats.binomtest(int(chosen.sum()), n, probability).pvalue > 0.01, name
    # jitter is drawn once a sample; unrelated operations are unrelated
    assert torch.equal(jittered, p.hue != 0)
    columns = [p.brightness, p.contrast, p.saturation, p.hue, p.sigma, p.colour, jittered, *geometry(p)[4:]]
    correlations = torch.corrcoef(torch.stack([c.float() for c in columns if c is not None])) - torch.eye(9)
    assert correlations.abs().max() < 0.065  # 4 standard errors


@pytest.mark.parametrize(("share", "size"), [((0.08, 1.0), 32), ((0.4, 1.0), 64), ((0.97, 1.0), 32), ((1.0, 1.0), 32)])
def test_crops_are_distributed_as_torchvisions(share: tuple[float, float], size: int) -> None:
    n = 3000
    mine = torch.stack(geometry(draw(only(crop=share), n, 3, size, seeded(1)))[:4], 1).round()
    blank = torch.zeros(1, size, size)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        theirs = torch.tensor([RandomResizedCrop.get_params(blank, list(share), [3 / 4, 4 / 3]) for _ in range(n)])
    assert mine[:, 0].min() >= 0
    assert (mine[:, 0] + mine[:, 2]).max() <= size
    assert (mine[:, 1] + mine[:, 3]).max() <= size
    for i, name in enumerate(("top", "left", "height", "width")):
        assert stats.ks_2samp(mine[:, i].numpy(), theirs[:, i].numpy()).pvalue > 0.01, name
    whole = [int(((box[:, 2] == size) & (box[:, 3] == size)).sum()) for box in (mine, theirs)]
    assert stats.fisher_exact([whole, [n - whole[0], n - whole[1]]]).pvalue > 0.01, whole


# --- errors ---


def test_images_that_do_not_fit_are_refused_with_the_remedy() -> None:
    images, p = pictures(6), draw(ALL, 6, 3, 24, seeded())
    with pytest.raises(DataError, match=r"\(5, 3, 24, 24\).*for \(6, 3, 24, 24\)"):
        apply(images[:5], p)
    with pytest.raises(DataError, match="draw for this shape"):
        apply(images[:, :, :20], p)
    with pytest.raises(DataError, match=r"torch.float32, not uint8"):
        apply(images / 255, p)
    with pytest.raises(DataError, match="4 channels"):
        draw(ALL, 6, 4, 24, seeded())
    with pytest.raises(DataError, match="must hold 1 numbers each"):
        normalise(prepare(pictures(2, 1)), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    with pytest.raises(DataError, match="std above 0"):
        normalise(prepare(pictures(2, 1)), (0.5,), (0.0,))
