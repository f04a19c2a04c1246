"""Where the work runs, and in which precision."""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from ssl_core.config import Precision

_TF32 = threading.Lock()  # whoever turns it off holds this

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


def settled(device: torch.device, precision: Precision) -> Literal["bf16", "float32"]:
    """What `precision` means on the device: `auto` is bf16 where it is native."""
    bf16 = precision == "bf16" or (precision == "auto" and multiplies_bf16(device))
    return "bf16" if bf16 else "float32"


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The context of a forward pass. Weights, gradients and losses stay float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=settled(device, precision) == "bf16")


@contextlib.contextmanager
def inference(device: torch.device, precision: Precision) -> Iterator[None]:
    """The context of a forward pass whose numbers are kept: as `autocast`, but float32 is float32 everywhere.

    An accelerator's convolutions otherwise round it to TF32, three digits. That switch is the process's, so threads
    take turns there.
    """
    with autocast(device, precision):
        if device.type != "cuda":
            yield
            return
        with _TF32:
            former = torch.backends.cudnn.allow_tf32
            torch.backends.cudnn.allow_tf32 = False
            try:
                yield
            finally:
                torch.backends.cudnn.allow_tf32 = former


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


class PeakMemory:
    """The most memory in use since this was made: on an accelerator by tensors, on a CPU by this process as a whole."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.known = True
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)  # what earlier work freed and the allocator kept is not ours
        try:
            Path("/proc/self/clear_refs").write_text("5")  # from now on VmHWM is the peak since now
        except OSError:
            self.known = False

    def read(self) -> int | None:
        """Bytes; None where the system does not tell (on a CPU, all but Linux)."""
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device))
        if not self.known:
            return None
        status = Path("/proc/self/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024  # "VmHWM:   123456 kB"
