"""The number format that a model's weights are held in."""

import functools
import importlib.metadata
import os
import re
from pathlib import Path

from dspy_qvl.errors import InputError, shown

PRECISIONS = ("float32", "bfloat16", "float16")


def chosen_precision(precision: str | None, device: str | None, backend: str) -> str:
    """The precision a model runs in, decided without torch since it is part of the model's identity.

    bfloat16 where it is fast (a CPU with instructions for it, or an NVIDIA card), else float32.

    Args:
        precision: "float32", "bfloat16", "float16", or None for the fast one.
        device: as torch names it, or None for the best one.
        backend: "torch" or "onnx"; onnx runs in float32.

    Raises:
        InputError: another precision, or one that the backend lacks.
    """
    if precision is not None and precision not in PRECISIONS:
        whole = re.fullmatch(r"u?int\d+|[48]bit|binary|ubinary", str(precision))
        why = (
            "; vectors of whole numbers are not offered: measured on MiniLM, their cosine with the float32 vectors "
            "is only .78 to .82, and 'bfloat16' is as fast at .9998"
            if whole
            else ""
        )
        raise InputError(f"precision must be one of {PRECISIONS} or None, but got {shown(precision)}{why}.")
    if backend == "onnx":
        if precision not in (None, "float32"):
            raise InputError(f"backend='onnx' runs in float32, but precision={precision!r} was given; leave it out.")
        return "float32"
    if precision is not None:
        return precision
    kind = None if device is None else device.partition(":")[0]
    is_fast = (kind in (None, "cuda") and _has_cuda()) or (kind in (None, "cpu") and _cpu_has_bf16())
    return "bfloat16" if is_fast else "float32"


def _has_cuda() -> bool:
    """True if torch will find an NVIDIA card: a driver, not hidden, and a build of torch that can use it."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return False
    if not any(Path(path).exists() for path in ("/dev/nvidiactl", "/proc/driver/nvidia/version")):
        return False
    try:
        return not importlib.metadata.version("torch").endswith("+cpu")
    except importlib.metadata.PackageNotFoundError:
        return False


@functools.cache
def _cpu_has_bf16() -> bool:
    try:
        return has_bf16(Path("/proc/cpuinfo").read_text(errors="replace"))
    except OSError:  # no Linux
        return False


def has_bf16(cpuinfo: str) -> bool:
    """True if /proc/cpuinfo lists instructions for bfloat16, on x86 or on ARM."""
    match = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, re.MULTILINE)
    return match is not None and not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(match[1].split())
