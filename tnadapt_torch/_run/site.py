"""The update of one site, added to the output of its module: a plain object, pickled and copied with the model."""

from bisect import bisect_right
from collections.abc import Callable, Iterable
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from tnadapt import SiteError, plan
from tnadapt.binding import BUCKETS, FIXED, TRAINING, Network, Plan, find_product
from tnadapt_torch._run.asked import CODES, COMPILED, JOINED, KEPT, MORE, MOST, Asked, asked_at, is_joined
from tnadapt_torch._run.bundle import Member, Shared, may_join
from tnadapt_torch._run.call import Owner, is_dropping, see_x
from tnadapt_torch._run.entry import Parts, lower_entry
from tnadapt_torch._run.fixed import may_keep, run_code
from tnadapt_torch._run.lower import lower_apply, lower_delta, nodes_read
from tnadapt_torch._run.refs import Ref, read_all
from tnadapt_torch._run.ways import MACHINES
from tnadapt_torch._run.writer import Code
from tnadapt_torch._sharded import is_sharded

__all__: list[str] = []

FULL_PRECISION = (torch.float32, torch.float64)  # a weight of fewer bits would round the update away


class Called(Protocol):
    """A layer that is called together with its update."""

    def call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """Return the output of the layer with the update added, or None for a call that this cannot serve."""
        ...


class SiteUpdate:
    """Adds the update of one site to the output of its module, unless the adapter is disabled or merged."""

    def __init__(self, owner: Owner, network: Network, refs: Iterable[Ref]) -> None:
        """Store the factors in the order of the network's nodes."""
        self.owner = owner
        self.network = network
        self.refs = tuple(refs)
        self.width = network.volume(network.in_modes)
        self.unproven = False  # whether the layer is quantized and no call has yet shown that it passes the gradient on
        self.reads_product = any(find_product(network, term.nodes) is not None for term in network.terms)
        self._is_asked = False  # whether `allow_folding` was called
        self.may_fold = False  # whether `call_inside` may serve the layer: it is an nn.Linear, and that pays for many x
        self._code: list[tuple[Code, tuple[Ref, ...]] | None] = []  # each with the factors that it reads
        self._folds: list[bool | None] = []  # by place: whether that pays there
        self._dense: Code | None = None
        # How many numbers may be kept beside the factors: a dense update of each layer would double the model.
        self.most_kept = 0
        self._own: list[tuple[Code, tuple[Ref, ...]] | None] = []  # as `_code`, for an output that nobody else has
        self._parts: dict[int, Parts | None] = {}
        self.machine = "cpu"  # the type of device that code is written for
        self.layer: Called | None = None  # if it is that of a plain linear layer: what calls both at once
        self.was_called = False  # by this
        self.member: Member | None = None  # if it shares products of factors with other sites, in a block of `fixed()`
        self._forget_code()

    def __call__(
        self,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Tensor,
        base: Tensor | None = None,
    ) -> Tensor:
        """Return the output with the update added, as a new tensor. `base` is the output without any update."""
        if not self.owner.active:
            return output
        x = see_x(self, args, kwargs, output)
        is_read = self.reads_product and base is not None and not is_dropping(self.owner)
        product = product_of(module, base) if is_read and base is not None else None
        if x.ndim == 2:  # noqa: PLR2004  (a view costs as much as a small product)
            return self.add(output, x, product)
        return add_by_rows(self.add, output, x, product)

    def add(self, output: Tensor, x: Tensor, product: Tensor | None = None) -> Tensor:
        """Return the output (token, out) with the update of x (token, in) added.

        `product` (token, out) is x times the host's weight, if it is at hand and some term begins with it.
        """
        place = self.place_of(x)
        if type(x) is not Tensor and place != COMPILED and is_sharded(x):
            place += CODES
        if product is None:
            code, refs = self._code[place] or self._write_code(place)
            return run_code(code, (output, x), refs, self.owner.products, self.most_kept)
        code, refs = self._code[2 * CODES + place] or self._write_code(2 * CODES + place)
        return run_code(code, (output, x, product), refs, self.owner.products, self.most_kept)

    def call_inside(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """Return x (W + dW)^T + bias where that is cheaper than adding to the output; None elsewhere.

        It takes one product with a matrix of the weight's size instead of two, but only a weight of full precision
        holds the update, and only an input without dropout belongs to both.
        """
        weight = self.weight_for(module, args, kwargs)
        if weight is None:
            return None
        return nn.functional.linear(args[0], weight + self.delta(weight), bias_of(module))

    def weight_for(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> nn.Parameter | None:
        """Return the weight of the layer if it can hold the update and that pays for this call; else None."""
        if not self.owner.active or is_dropping(self.owner) or len(args) != 1 or kwargs:
            return None
        x, weight = args[0], module._parameters.get("weight")
        if type(weight) is not nn.Parameter or weight.dtype not in FULL_PRECISION or not is_like(x, weight):
            return None
        place = self._place(x, x.numel() // self.width)
        folds = self._folds[place]
        return weight if (self._decide(place) if folds is None else folds) else None

    def order(self, tokens: int, *, training: bool) -> Plan:
        """Return the plan that a call of so many tokens runs, outside torch.compile."""
        place = bisect_right(MORE, tokens) + (2 * len(BUCKETS) if training else 0)
        return plan(
            self.network,
            **asked_at(place, self.machine, host_product=self.reads_product and not is_dropping(self.owner)),
        )

    def sharing(self, tokens: int) -> tuple[str, int | None]:
        """Return how a call with gradients makes products of factors in a block, and the flops of what is left."""
        place = bisect_right(MORE, tokens) + (JOINED + 1) * len(BUCKETS)
        asked = self._asked(place, host_product=False)
        shared = self.shared_at(place, asked)
        if not isinstance(shared, Shared):
            return f"alone: {shared}", None
        sites = cast("Member", self.member).bundle.sites
        return f"products of {sites} sites at once", plan(shared.products.network, **asked).cost.forward

    def runs_inside(self, module: nn.Module, order: Plan) -> bool:
        """Return whether `call_inside` serves the calls of this plan, if x is of the dtype of the weight."""
        weight = module._parameters.get("weight")
        is_wide = type(weight) is nn.Parameter and weight.dtype in FULL_PRECISION
        return self.may_fold and is_wide and not is_dropping(self.owner) and order.pays_to_fold

    def allow_folding(self) -> None:
        """Let `call_inside` serve the layer where that pays; whether it ever does is known here."""
        self._is_asked = True
        compiled, most = self._decide(COMPILED), self._decide(MOST)
        self.may_fold = compiled or most
        if self.may_fold:
            self.write_dense()
        self._folds = [*[None] * COMPILED, self._folds[COMPILED]]

    def _decide(self, place: int) -> bool:
        """Return, and remember, whether folding pays for a bucket of tokens and the gradients needed."""
        order = plan(self.network, **asked_at(place, self.machine, host_product=self.reads_product))
        self._folds[place] = pays = order.pays_to_fold
        return pays

    def _place(self, x: Tensor, tokens: int) -> int:
        """Return the place of the code for so many tokens, and for what needs a gradient."""
        if torch.compiler.is_compiling() or isinstance(tokens, Tensor):  # as torch.jit.trace counts them
            return COMPILED
        if torch.is_grad_enabled():
            need = 2 if x.requires_grad else 1
            if self.owner.joint is not None:
                if self.owner.products:  # training has begun: not every optimizer counts what it changes
                    self.owner.products.clear()
                if self.member is not None and may_join(x):
                    need += JOINED - 1
        else:
            need = 0 if self.owner.products is None or not may_keep(x) else KEPT
        return bisect_right(MORE, tokens) + len(BUCKETS) * need

    def place_of(self, x: Tensor) -> int:
        """Return the place of the code for this x (token, in)."""
        return self._place(x, x.shape[0])

    def add_in_place(self, y: Tensor, x: Tensor, place: int) -> Tensor:
        """Add the update of x (token, in) to y (token, out), which nobody else has, and return the sum."""
        code, refs = self._own[place] or self._write_own(place)
        return run_code(code, (y, x), refs, self.owner.products, self.most_kept)

    def _write_own(self, place: int) -> tuple[Code, tuple[Ref, ...]]:
        """Write the code that adds in place, at the first call that needs it."""
        self._own[place] = found = self._lower(place, self._asked(place, host_product=False), in_place=True)
        return found

    def parts_at(self, place: int) -> Parts | None:
        """Return the update in two parts, for the calls of a place; None if it has no such parts."""
        if place not in self._parts:
            self._parts[place] = self._part(place)
        return self._parts[place]

    def _part(self, place: int) -> Parts | None:
        asked = self._asked(place, host_product=False)
        network, refs = self._read_at(place, asked)
        entry = lower_entry(
            network,
            asked["tokens"],
            training=asked["training"],
            x_needs_grad=asked["x_needs_grad"],
            objective=asked["objective"],
            machine=self.machine,
        )
        if entry is None:
            return None
        inner = tuple(tuple(refs[number] for number in rows.nodes) for rows in entry.rows)
        return Parts(entry, inner, tuple(refs[number] for number in entry.nodes))

    def delta(self, like: Tensor) -> Tensor:
        """Return the dense update, of shape (out, in), in the dtype and on the device of `like`."""
        code = self._dense or self.write_dense()
        return code(*read_all(self.refs, like))

    def write_dense(self) -> Code:
        """Write the code of the dense update. Tracing cannot do it, so an update that is folded does it at attach."""
        self._dense = code = lower_delta(self.network)
        return code

    def _write_code(self, place: int) -> tuple[Code, tuple[Ref, ...]]:
        """Write the code for a bucket of tokens and the gradients needed, at the first call that needs it."""
        is_given, at = divmod(place, 2 * CODES)
        asked = self._asked(at, host_product=bool(is_given))
        self._code[place] = found = self._lower(at, asked, compiled=at == COMPILED)
        return found

    def _lower(
        self, place: int, asked: Asked, *, compiled: bool = False, in_place: bool = False
    ) -> tuple[Code, tuple[Ref, ...]]:
        """Write the code of a place, and return it with the factors that it reads."""
        network, refs = self._read_at(place, asked)
        code = lower_apply(network, compiled=compiled, in_place=in_place, machine=self.machine, **asked)
        return code, tuple(refs[number] for number in nodes_read(network, **asked))

    def _read_at(self, place: int, asked: Asked) -> tuple[Network, tuple[Ref, ...]]:
        """Return the network of a place and what its nodes refer to: in a block, products of factors too."""
        shared = self.shared_at(place, asked)
        if not isinstance(shared, Shared):
            return self.network, self.refs
        return shared.products.network, cast("Member", self.member).joined(shared)

    def shared_at(self, place: int, asked: Asked) -> Shared | str:
        """Return the products of factors that the code of a place reads from those of all sites, or why it does not."""
        if self.member is None or not is_joined(place):
            return "no other site has its network"
        return self.member.bundle.shared(asked, self.machine, self.most_kept // 4)  # they have gradients as large

    def _asked(self, place: int, *, host_product: bool) -> Asked:
        """Return what the code at a place is made for. If it would keep large products of factors, it keeps few."""
        asked = asked_at(place, self.machine, host_product=host_product)
        is_fixed = asked["objective"] is FIXED[self.machine]
        if is_fixed and plan(self.network, **asked).factor_products > self.most_kept:
            asked["objective"] = TRAINING[self.machine]
        return asked

    def run_on(self, machine: str) -> None:
        """Write code for this type of device from now on, if it has a table of what is slow there."""
        if machine != self.machine and machine in MACHINES:
            self.machine = machine
            self._renew()

    def become(self, other: "SiteUpdate") -> None:
        """Take over the network and the references of another update, whose factors have other shapes."""
        self.network, self.refs, self.width, self.member = other.network, other.refs, other.width, None
        self._renew()

    def _renew(self) -> None:
        """Drop all code, and write that again which is not written in calls."""
        is_dense = bool(self._dense)
        self._forget_code()
        if is_dense:
            self.write_dense()
        if self._is_asked:
            self.allow_folding()

    @property
    def is_idle(self) -> bool:
        """Whether the site was never called, except under torch.compile and torch.jit.trace."""
        code = (code for place, code in enumerate(self._code) if place % CODES != COMPILED)
        return not self.was_called and not any(code) and not any(self._folds[:COMPILED])

    def _forget_code(self) -> None:
        """Drop all code except the code that torch.compile traces, which cannot be written during tracing."""
        network = self.network
        self.most_kept = max(network.volume(network.out_modes) * self.width // 4, 4096)
        self._code = [None] * (4 * CODES)
        self._folds, self._own = [None] * CODES, [None] * CODES
        self._parts = {}
        self._dense = None
        self._write_code(COMPILED)
        if self.reads_product:
            self._write_code(2 * CODES + COMPILED)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the code, which is written again from the network."""
        return {
            name: value for name, value in self.__dict__.items() if name not in ("_code", "_folds", "_own", "_parts")
        } | {"_dense": bool(self._dense), "member": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._renew()


def is_like(x: object, weight: Tensor) -> bool:
    """Return whether x is a plain tensor of the dtype of a weight, on its device, and not cast by autocast."""
    if type(x) not in (Tensor, nn.Parameter) or not isinstance(x, Tensor) or x.is_nested:
        return False
    kind = x.device.type
    is_cast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return x.dtype == weight.dtype and x.device == weight.device and not is_cast


def add_by_rows(
    add: Callable[[Tensor, Tensor, Tensor | None], Tensor], output: Tensor, x: Tensor, product: Tensor | None = None
) -> Tensor:
    """Add an update to an output of any number of axes; `add` takes matrices (token, out), (token, in), (token, out).

    The last is the product of x and the host's weight, or None.
    """
    if not output.is_nested:
        rows = None if product is None else product.reshape(-1, output.shape[-1])
        return add(output.reshape(-1, output.shape[-1]), x.reshape(-1, x.shape[-1]), rows).reshape(output.shape)
    ragged = cast("Any", output)  # the annotations of torch know no nested tensor
    if ragged.layout is not torch.jagged or ragged.lengths() is not None:
        raise SiteError(
            "x: expected a nested tensor of layout torch.jagged without holes, got another nested tensor.\n"
            "Make it with torch.nested.nested_tensor(..., layout=torch.jagged), or pad the batch."
        )
    total = add(output.values(), x.values(), None if product is None else product.values())
    return torch.nested.nested_tensor_from_jagged(total, ragged.offsets())


def bias_of(module: nn.Module) -> Tensor | None:
    """Return the bias of a layer, which may be computed: pruned or parametrized."""
    held = module._parameters  # an attribute of a module takes longer
    return held["bias"] if "bias" in held else cast("Tensor | None", module.bias)


def product_of(module: nn.Module, base: Tensor) -> Tensor | None:
    """Return x times the weight of a module, from its output; None where another adapter is folded into the weight."""
    if "parametrizations" in module._modules:
        return None
    bias = bias_of(module)
    return base if bias is None else base - bias.to(base.dtype)  # autocast leaves the bias as it is
