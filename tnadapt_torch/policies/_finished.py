"""Where the updates of finished links are: in the weights of the host, or in adapters beside them."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from tnadapt import Adapter, SiteError
from tnadapt_torch._host import Weight, check_weights, place_params
from tnadapt_torch._sharded import laid_like, reshard, whole
from tnadapt_torch._state import AdapterState, check_unread, copy_values, set_values, states_of
from tnadapt_torch.policies._chain_file import add_link
from tnadapt_torch.policies._saved import Link

__all__: list[str] = []

Tensors = dict[str, Tensor]


class Finished(Protocol):
    """The updates of the links that are finished."""

    def check(self) -> None:
        """Raise SiteError unless the host is as the last link left it."""
        ...

    def add(self, adapter: Adapter, params: Mapping[str, Tensor]) -> Callable[[], None]:
        """Keep the update of the running link, whose adapter and values these are; return what takes it back."""
        ...

    def load(self, links: Sequence[Link]) -> None:
        """Hold these links and no others, or raise SiteError. The values of the running link may be lost."""
        ...

    def merged(self) -> Tensors:
        """Return the weights with all links, the running one included."""
        ...


class InWeights:
    """Finished links in the weights: each weight is its original plus the sum of the links, rounded once.

    The originals and, in float32 or better, the sum of all links are held, so that a bfloat16 weight loses nothing.
    """

    def __init__(self, state: AdapterState) -> None:
        """Copy the weights. Raises SiteError for weights that nothing can be merged into."""
        reshard([weight.module for weight in state.weights.values()])
        check_weights(state.model, state.weights)
        check_unread(state, states_of(state.model))
        self.state = state
        self.originals = {path: weight.parameter.detach().clone() for path, weight in state.weights.items()}
        self.sums: Tensors = {}

    def check(self) -> None:
        """Raise SiteError unless the weights hold what was written last, and no other adapter reads them."""
        check_unread(self.state, states_of(self.state.model))  # one may be attached since
        if path := self._odd(self.sums):
            raise SiteError(
                f"{path}: expected the weight that the policy left, got another: it was changed or cast since.\n"
                "A policy with links in the weights must be the only one that changes them. Begin it after the "
                "change, or keep the links beside the weights: beside=True."
            )

    def add(self, adapter: Adapter, params: Mapping[str, Tensor]) -> Callable[[], None]:
        """Add the update of the running link to the weights. Raises SiteError if a sum is not finite."""
        before, sums = self.sums, self._extended(self.sums)
        self._write(sums)
        return partial(self._write, before)

    def load(self, links: Sequence[Link]) -> None:
        """Write the originals with the sum of these links, whose values the running link takes one after another.

        Other programs load the weights of a checkpoint before its policy. So the weights may be the originals, those
        that the policy left, or already those with these links: all of them, to the last bit.
        """
        check_unread(self.state, states_of(self.state.model))
        sums: Tensors = {}
        for adapter, params in links:
            set_values(self.state, adapter, params)
            sums = self._extended(sums)
        if (path := self._odd(sums)) and self._odd({}) and self._odd(self.sums):
            raise SiteError(
                f"{path}: expected the weight from before the first link, or that with the {len(links)} finished links "
                "of the state dict, got another.\nLoad the weights and the policy from the same checkpoint, into a "
                "model on which the policy was made before."
            )
        self._write(sums)

    def merged(self) -> Tensors:
        """Return the weights with all links, the running one included, rounded once, in their stored layout."""
        sums = {path: self._next(path, self.sums) for path in self.originals}
        return {path: whole(self._total(path, sums)) for path in sums}

    def _extended(self, sums: Tensors) -> Tensors:
        """Return the sums with the update of the running link. Raises SiteError if a weight would not be finite."""
        longer = {path: self._next(path, sums) for path in self.originals}
        for path in longer:
            total = self._total(path, longer)
            if whole((~torch.isfinite(total)).sum()):
                raise SiteError(
                    f"{path}: expected a finite sum of weight and links, got NaN or infinity in {total.dtype}.\n"
                    "Nothing was changed."
                )
        return longer

    def _odd(self, sums: Mapping[str, Tensor]) -> str:
        """Return the path of a weight that is not its original with this sum, rounded once; "" if there is none."""
        reshard([weight.module for weight in self.state.weights.values()])
        for path, weight in self.state.weights.items():
            here, wanted = weight.parameter.detach(), self._total(path, sums)
            if here.dtype != wanted.dtype or whole((here != wanted).sum()):
                return path
        return ""

    def _next(self, path: str, sums: Mapping[str, Tensor]) -> Tensor:
        with torch.no_grad():
            update = self._laid(path, self.state.delta(path))
        known = sums.get(path)
        return update.clone() if known is None else self._laid(path, known) + update

    def _total(self, path: str, sums: Mapping[str, Tensor]) -> Tensor:
        original = self._laid(path, self.originals[path])
        if path not in sums:
            return original
        total = self._laid(path, sums[path])
        return (original.to(total.dtype) + total).to(original.dtype)

    def _laid(self, path: str, values: Tensor) -> Tensor:
        """Return values where the weight is now: it may have been moved or sharded since they were made."""
        parameter = self.state.weights[path].parameter.detach()
        return laid_like(values.to(parameter.device), parameter)

    def _write(self, sums: Tensors) -> None:
        self.sums = sums
        with torch.no_grad():
            for path, weight in self.state.weights.items():
                weight.parameter.copy_(self._total(path, self.sums))


class Beside:
    """Finished links as further adapters on the same host, which are not trained. The weights stay as they are."""

    def __init__(self, state: AdapterState) -> None:
        """Raise SiteError for an adapter whose updates are folded into weights, which take one update alone."""
        if state.folded:
            raise SiteError(
                f"{next(iter(state.folded))}: expected updates that are added to the outputs of their modules, got one "
                "that is folded into its weight.\nA weight takes one folded update. Attach without fold, or keep the "
                "links in the weights: beside=False."
            )
        self.state = state
        self.links: list[AdapterState] = []

    def check(self) -> None:
        """Raise SiteError unless all links are attached and enabled, and none is merged."""
        for link in self.links:
            if link.model is not self.state.model or not link.active:
                raise SiteError(
                    f"adapter {link.name!r}: expected a finished link that adds its update, got one that is merged or "
                    "disabled.\nUnmerge or enable it first."
                )

    def add(self, adapter: Adapter, params: Mapping[str, Tensor]) -> Callable[[], None]:
        """Attach the link under a name of its own, without training it."""
        state, weights = self.state, dict[str, Weight](self.state.weights)
        values = place_params(adapter, weights, {name: value.clone() for name, value in params.items()})
        link = AdapterState(adapter, values, name=f"{state.name}_link_{len(self.links)}", dropout=0.0)
        add_link(state.model, link, weights)
        self.links.append(link)
        return partial(self._drop, link)

    def load(self, links: Sequence[Link]) -> None:
        """Attach those of the links that are not there yet, and detach those that are not among them.

        Raises SiteError if a link that is there is another one than that of this number.
        """
        self.check()
        for link, (adapter, params) in zip(self.links, links, strict=False):
            held = copy_values(link)
            if link.adapter != adapter or not all(torch.equal(held[name], value) for name, value in params.items()):
                raise SiteError(
                    f"adapter {link.name!r}: expected the finished link of the state dict, got another.\n"
                    "Load the model again, and make a new policy on it."
                )
        added: list[Callable[[], None]] = []
        try:
            for adapter, params in links[len(self.links) :]:
                added.append(self.add(adapter, params))
        except BaseException:
            for take_back in reversed(added):
                take_back()
            raise
        for link in self.links[len(links) :]:
            self._drop(link)

    def merged(self) -> Tensors:
        """Raise SiteError: the weights may be stored in a way that no update is merged into."""
        raise SiteError(
            "merged: expected links in the weights, got links beside them.\nSave the chain, and merge it into the "
            "weights of the model without quantization: load_chain(path).merged(weights)."
        )

    def _drop(self, link: AdapterState) -> None:
        self.links.remove(link)
        link.detach()
