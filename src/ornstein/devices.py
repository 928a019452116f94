"""Where a network runs, and in which arithmetic."""

import torch

from ornstein.errors import ConfigurationError


def pick_device(name: str) -> torch.device:
    """The device of that name; auto is cuda, else mps, else cpu. Raises `ConfigurationError` where it is not there."""
    if name == "auto":
        return torch.device(
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError):
        raise ConfigurationError(f"got device '{name}', which is not there; expected auto, cpu, cuda or mps") from None


def resolve_precision(precision: str, device: torch.device) -> str:
    """The arithmetic that "auto" stands for on a device: bfloat16 where the hardware multiplies it, else float32."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    # Without such units a CPU emulates bfloat16, some ten times slower than float32.
    probes = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return "bfloat16" if device.type == "cpu" and any(probe() for probe in probes if probe is not None) else "float32"


def reason(asked: str, precision: str, device: torch.device) -> str:
    """Why `resolve_precision` chose, as a remark in brackets, or "" where it was asked for."""
    if asked != "auto" or device.type == "mps":
        return " (auto: not tried in bfloat16)" if asked == "auto" else ""
    has = {"bfloat16": "has", "float32": "has no"}[precision]
    return f" (auto: this {'processor' if device.type == 'cpu' else 'device'} {has} bfloat16 units)"


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The context in which a network runs in `precision`, "float32" or "bfloat16"."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")
