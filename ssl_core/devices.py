"""Where the work runs, and in which precision."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from ssl_core.config import Precision

M = TypeVar("M", bound=nn.Module)


def choose(device: str | torch.device | None = None) -> torch.device:
    """`device` if given, else this process's current CUDA device, else the CPU."""
    if device is not None:
        return torch.device(device)
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 in hardware; elsewhere bf16 is emulated and slower than float32."""
    match device.type:
        case "cuda":
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
        case "cpu":
            native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
            return bool(native and torch.ops.mkldnn._is_mkldnn_bf16_supported())
        case _:
            return False


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The context of a forward pass. Weights, gradients and losses stay float32; `auto` is bf16 where it is native."""
    enabled = precision == "bf16" or (precision == "auto" and multiplies_bf16(device))
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def fuses(device: torch.device) -> bool:
    """Whether the optimisers update all weights there in one kernel."""
    return device.type in ("cpu", "cuda")


def place(module: M, device: torch.device) -> M:
    """`module` on the device, channels last: convolutions of that layout are the fast ones on CPU and GPU alike."""
    return module.to(device).to(memory_format=torch.channels_last)


def to_device(images: Tensor, device: torch.device) -> Tensor:
    """`images` on the device; the copy to an accelerator overlaps with what it computes."""
    if device.type == "cpu":
        return images
    return images.pin_memory().to(device, non_blocking=True)
