"""Wrappers: a spec made of another one, which changes what its update does to a weight."""

from dataclasses import replace

from tnadapt._errors import SpecError
from tnadapt._language.adapter import Adapter
from tnadapt._language.factor import Factor, trainable
from tnadapt._language.initializer import host, row_norms
from tnadapt._language.spec import AdapterSpec
from tnadapt._language.terms import words_of
from tnadapt._signature import answers, mistake, told

__all__ = ["magnitude", "masked"]


@answers(SpecError)
def magnitude(spec: AdapterSpec) -> AdapterSpec:
    """Set the lengths of the rows of the updated weight by trained numbers: DoRA on any spec (arXiv:2402.09353).

    The weight becomes m_o (W0 + dW)_o / |(W0 + dW)_o| in each row o, over all in axes; dW includes the scale of the
    spec. m (out) starts at the lengths of the rows of W0 + dW, so that the start stays that of the spec. The length is
    a constant in the gradient, as in section 4.3 of the paper. The bias of a layer is not scaled, and dropout falls on
    the input of dW alone. DoRA is magnitude(lora()), EDoRA magnitude(lora_xs(start="svd")).

    Args:
        spec: a spec without a magnitude.

    Returns:
        The spec with one more factor, "magnitude", of the site modes and the out modes. It is in no term.

    Raises:
        SpecError: the spec has a magnitude, or a factor of that name.
    """
    _expect_spec(spec, "magnitude")
    if name := "magnitude" if "magnitude" in spec.factors else spec.magnitude:
        fault = f"magnitude: expected a spec without a factor 'magnitude', got one with {name!r}"
        raise SpecError(spec.name, [fault])
    modes = " ".join((*spec.site_modes, *spec.axes[0]))
    factors = {**spec.factors, "magnitude": trainable(modes, init=row_norms())}
    return replace(spec, name=f"{spec.name}_magnitude", factors=factors)


@answers(SpecError)
def masked(spec: AdapterSpec) -> AdapterSpec:
    """Keep every zero of the host's weight: the update is 0 where the weight is, for any pattern (arXiv:2502.14816).

    LoSA is masked(lora(alpha=16)). A weight that is pruned later, or has other zeros in a file, has another pattern.

    Args:
        spec: a spec whose terms do not have the pattern yet.

    Returns:
        The spec with the frozen factor "mask" in every term: 1 where the weight is not 0. It is neither counted nor
        stored.

    Raises:
        SpecError: the spec has a factor of that name.
    """
    _expect_spec(spec, "masked")
    if "mask" in spec.factors:
        raise SpecError(spec.name, ["masked: expected a spec without a factor 'mask', got one that has it"])
    modes = tuple(mode for axis in spec.axes for mode in axis)
    factors = {**spec.factors, "mask": Factor(modes, host("mask"), trainable=False)}
    terms = [f"{'- ' if words_of(term)[0] < 0 else ''}{' '.join((*words_of(term)[1], 'mask'))}" for term in spec.terms]
    return replace(spec, name=f"{spec.name}_masked", factors=factors, terms=terms)


def without_magnitude(adapter: Adapter) -> Adapter:
    """Return the adapter of the same spec without its magnitude, if it has one; its params are named alike."""
    spec = adapter.spec
    if not spec.magnitude:
        return adapter
    factors = {name: one for name, one in spec.factors.items() if name != spec.magnitude}
    return replace(adapter, spec=replace(spec, factors=factors))


def _expect_spec(spec: object, where: str) -> None:
    if not isinstance(spec, AdapterSpec):
        raise mistake(SpecError, where, "a spec", told(spec), f"Write {where}(AdapterSpec(...)), or call the family.")
