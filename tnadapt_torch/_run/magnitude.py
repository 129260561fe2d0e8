"""The update of a site with a magnitude: rows of the weight with its update get their lengths from trained numbers."""

from typing import Any

import torch
from torch import Tensor, nn

from tnadapt import SiteError
from tnadapt.binding import RowProducts, row_products
from tnadapt_torch._run.call import Owner, find_x, is_dropping, see_x
from tnadapt_torch._run.gradient import path_of
from tnadapt_torch._run.lower import lower_delta
from tnadapt_torch._run.refs import Ref, read_all
from tnadapt_torch._run.site import SiteUpdate, bias_of, product_of
from tnadapt_torch._run.writer import Code

__all__: list[str] = []


class MagnitudeUpdate:
    """Adds to the output of a module what a magnitude m and the update below it change, row by row of the weight.

    The output becomes m / |W + dW| (W x + dW x) + bias. The length of a row is a constant in the gradient, and is
    computed in float32 or better. W x is the product that the layer has made; dropout falls on the x of dW alone.
    """

    def __init__(self, below: SiteUpdate, lengths: Ref, weight: Ref) -> None:
        """Store the update below the magnitude, and where the magnitude and the host's weight are."""
        self.below = below
        self.owner: Owner = below.owner
        self.width = below.width
        self.lengths = lengths
        self.weight = weight
        self.reads_product = True
        self.layer = None  # never called at once with its layer
        self._write_code()

    @property
    def refs(self) -> tuple[Ref, ...]:
        """The references to factors."""
        return (*self.below.refs, self.lengths)

    @property
    def may_fold(self) -> bool:
        """Whether `call_inside` may serve the layer."""
        return self.below.may_fold

    @property
    def is_idle(self) -> bool:
        """Whether the site was never called."""
        return self.below.is_idle

    @property
    def unproven(self) -> bool:
        """Whether no call has yet shown that the layer passes the gradient on."""
        return self.below.unproven

    @unproven.setter
    def unproven(self, value: bool) -> None:
        self.below.unproven = value

    def __call__(
        self,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Tensor,
        base: Tensor | None = None,
    ) -> Tensor:
        """Return the output with the change added, as a new tensor. `base` is the output without any update."""
        if not self.owner.active:
            return output
        x = see_x(self, args, kwargs, output)
        width = output.shape[-1]
        product = product_of(module, base) if base is not None and self.reads_product else None
        wide = torch.promote_types(torch.float32, output.dtype)
        is_alone = base is output and product is not None and wide == output.dtype
        if product is None:
            product = self._product(find_x(args, kwargs, self.width).to(output.dtype))
        rest = bias_of(module) if is_alone else (output.to(wide) - product).reshape(-1, width)
        total = self._total(product.reshape(-1, width), x.reshape(-1, x.shape[-1]), rest)
        return total.reshape(output.shape)

    def add(self, output: Tensor, x: Tensor, product: Tensor | None = None) -> Tensor:
        """Return the output (token, out) with the change for x (token, in) added.

        `product` (token, out) is x without dropout times the host's weight. Raise SiteError if it is not at hand, and
        the x that it is made of is lost to dropout.
        """
        if product is None:
            if is_dropping(self.owner):
                raise SiteError(
                    f"{path_of(self)}: expected dropout=0 for a magnitude on a block of columns, got "
                    f"dropout={self.owner.dropout}.\nAttach without dropout, or without splitting columns."
                )
            product = self._product(x)
        return self._total(product, x, output.to(torch.promote_types(torch.float32, output.dtype)) - product)

    def _product(self, x: Tensor) -> Tensor:
        """Return x times the host's weight, which is read for it."""
        (weight,) = read_all([self.weight], x)
        return nn.functional.linear(x, weight.reshape(len(weight), -1))

    def _total(self, product: Tensor, x: Tensor, rest: Tensor | None) -> Tensor:
        given = product if self.below.reads_product and not is_dropping(self.owner) else None
        total = self.below.add(product, x, given)
        scaled = total * self.ratios(total)
        return (scaled if rest is None else scaled + rest).to(total.dtype)

    def ratios(self, like: Tensor) -> Tensor:
        """Return m / |W + dW| for each row (out), in float32 or better."""
        dtype = torch.promote_types(torch.float32, like.dtype)
        model = like.new_empty((), dtype=dtype)
        (weight,) = (part.detach() for part in read_all([self.weight], model))
        parts = [part.detach() for part in read_all(self.below.refs, model)]
        if self._products.pays:
            network = self.below.network
            known = dict(zip(network.nodes, parts, strict=True))
            known["(host)"] = weight.reshape([network.sizes[mode] for mode in (*network.out_modes, *network.in_modes)])
            square = weight.square().flatten(1).sum(1)
            for one, code in zip((self._products.cross, self._products.square), self._codes, strict=True):
                square = square + code(*(known[self._products.source(node)] for node in one.nodes))
            norms = square.clamp_min(0).sqrt()
        else:
            norms = (weight.flatten(1) + self._codes[0](*parts).flatten(1)).norm(dim=1)
        return self._divided(norms)

    def _divided(self, norms: Tensor) -> Tensor:
        (lengths,) = read_all([self.lengths], norms)
        ratios: Tensor = lengths.reshape(-1) / torch.where(norms > 0, norms, torch.ones_like(norms))
        return ratios

    def delta(self, like: Tensor) -> Tensor:
        """Return the dense update of the weight, of shape (out, in), in the dtype and on the device of `like`."""
        (weight,) = read_all([self.weight], like)
        update = self.below.delta(like)
        whole = weight.reshape(update.shape) + update
        return self._scaled(whole) - weight.reshape(update.shape)

    def _scaled(self, whole: Tensor) -> Tensor:
        """Return a weight with its rows scaled to the lengths of the magnitude."""
        norms = whole.detach().flatten(1).norm(dim=1, dtype=torch.promote_types(torch.float32, whole.dtype))
        ratios = self._divided(norms).reshape(-1, *[1] * (whole.ndim - 1))
        return (ratios * whole).to(whole.dtype)

    def become(self, other: "MagnitudeUpdate") -> None:
        """Take over the factors of another update, as `SiteUpdate.become`."""
        self.below.become(other.below)
        self.lengths, self.weight = other.lengths, other.weight
        self._write_code()

    def write_dense(self) -> None:
        """Write the code of the dense update, as `SiteUpdate.write_dense`."""
        self.below.write_dense()

    def call_inside(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """Return the output of a layer that is called with the changed weight, as `SiteUpdate.call_inside`."""
        weight = self.below.weight_for(module, args, kwargs)
        if weight is None:
            return None
        whole = self._scaled(weight + self.below.delta(weight))
        return nn.functional.linear(args[0], whole, bias_of(module))

    def allow_folding(self) -> None:
        """Let `call_inside` serve the layer where that pays."""
        self.below.allow_folding()

    def _write_code(self) -> None:
        self._products: RowProducts = row_products(self.below.network)
        found = (self._products.cross, self._products.square) if self._products.pays else (self.below.network,)
        self._codes: tuple[Code, ...] = tuple(lower_delta(network) for network in found)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the code, which is written again from the network."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_codes", "_products")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._write_code()
