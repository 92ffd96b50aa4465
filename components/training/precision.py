"""The dtype of the matrix products where the settings leave it to the machine."""

from __future__ import annotations

import platform

import torch


def resolved(wanted: str, device: str) -> str:
    """`float32` or `bfloat16`: what was asked for; of `auto`, bfloat16 where the hardware multiplies it, else float32.

    Without such instructions (a processor with AVX2 alone, say) torch emulates bfloat16, a step then takes ten times as long and more. The
    hardware's own list of instructions decides and no clock, so one machine always decides alike.
    """
    if wanted != "auto":
        return wanted
    return "bfloat16" if _multiplies_bfloat16(device) else "float32"


def _multiplies_bfloat16(device: str) -> bool:
    if device != "cpu":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if platform.machine() in ("x86_64", "AMD64"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
