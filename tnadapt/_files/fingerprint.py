"""Fingerprints of the host's weights that are factors of an adapter: a guard against another host."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tnadapt._errors import FormatError
from tnadapt._hosts import Site

__all__: list[str] = []

SAMPLES = 16  # numbers of a weight
DIGITS = 4 * SAMPLES  # two bytes each, as hexadecimal digits
CLOSE = 0.2  # relative; a weight in 8 bits differs by a hundredth, another weight by about 1.4


def fingerprint_of(weight: npt.ArrayLike) -> str:
    """Return evenly spaced numbers of a weight as float16, in hexadecimal digits.

    A hash would tell a weight from the same one in another dtype, which an adapter may be used with.
    """
    return _samples(weight).astype("<f2").tobytes().hex()


def check_fingerprint(where: str | Path, site: Site, known: str, weight: npt.ArrayLike) -> None:
    """Raise FormatError if a weight is not that of a fingerprint, up to the rounding of its dtype."""
    before = np.frombuffer(bytes.fromhex(known), dtype="<f2").astype(np.float64)
    now = np.frombuffer(bytes.fromhex(fingerprint_of(weight)), dtype="<f2").astype(np.float64)  # tiny ones are 0 there
    size = max(float(np.linalg.norm(before)), float(np.linalg.norm(now)))
    if not np.linalg.norm(before - now) <= CLOSE * size:
        raise FormatError(
            f"{where}: expected the weight of {site.path} that the adapter was trained with, got another.\n"
            "The weight is a factor of the adapter. Load it onto the model that it was trained on."
        )


def check_fingerprints(where: str | Path, known: Mapping[str, object], paths: Mapping[str, Site]) -> None:
    """Raise FormatError unless these are fingerprints of the weights of these sites, by path."""
    if known.keys() != paths.keys():
        odd = sorted(known.keys() ^ paths.keys())[0]
        raise FormatError(f"{where}: expected a fingerprint for each site, got a file that differs in {odd:.100}.")
    for path, text in known.items():
        if not isinstance(text, str) or len(text) != DIGITS or {*text} - {*"0123456789abcdef"}:
            raise FormatError(
                f"{where}: expected {DIGITS} hexadecimal digits for the weight of {path:.100}, got others."
            )


def _samples(weight: npt.ArrayLike) -> npt.NDArray[np.float64]:
    flat = np.asarray(weight).reshape(-1)
    places = np.linspace(0, flat.size - 1, SAMPLES).astype(np.int64)
    return np.clip(np.asarray(flat[places], dtype=np.float64), -65504.0, 65504.0)
