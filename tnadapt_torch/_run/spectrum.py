"""Real signals to their spectra and back, along the first axis."""

import torch
from torch import Tensor

__all__: list[str] = []

NARROW = (torch.bfloat16, torch.float16)  # types that no transform takes on every device


def to_spectrum(value: Tensor, amount: float, *, conjugated: bool) -> Tensor:
    """Return the spectrum of a real value times a number, in float32 or better.

    Without tokens there is nothing to transform, which MKL refuses to do; the shape and the gradient are as always.
    """
    wide = value.float() if value.dtype in NARROW else value
    wide = wide if amount == 1.0 else wide * amount  # in float16 the product could be lost
    if not value.numel():
        return torch.complex(wide, wide)[: len(value) // 2 + 1]
    spectrum: Tensor = torch.fft.rfft(wide, dim=0)
    return spectrum.conj() if conjugated else spectrum


def from_spectrum(spectrum: Tensor, size: int, like: Tensor) -> Tensor:
    """Return the real signal of this many entries, in the dtype of `like`."""
    if not spectrum.numel():
        return torch.cat([spectrum.real, spectrum.real[: size - len(spectrum)]]).to(like.dtype)
    signal: Tensor = torch.fft.irfft(spectrum, n=size, dim=0)
    return signal.to(like.dtype)
