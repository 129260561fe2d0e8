"""The methods as a person writes them in torch, one formula for a site; and a model whose layers use them.

A formula takes the factors of a site, with the axes of the family's docstring without the site modes, and x (token, in)
and returns the update of the output without the scale.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

import tnadapt_torch
from tnadapt import Adapter

__all__ = ["FORMULAS", "Formula", "HandLinear", "put_by_hand"]

Params = Mapping[str, Tensor]
Formula = Callable[[Params, Tensor], Tensor]


def lora(p: Params, x: Tensor) -> Tensor:
    """LoRA as in PEFT."""
    return linear(linear(x, p["A"]), p["B"])


def lotr(p: Params, x: Tensor) -> Tensor:
    """LoTR as in the code of its authors, with the core of one site."""
    return ((x @ p["B"]) @ p["G"].T) @ p["A"].T


def lorta(p: Params, x: Tensor) -> Tensor:
    """LoRTA by its factors; the heads need a small Khatri-Rao product."""
    out = (p["H"][:, None, :] * p["B"][None, :, :]).reshape(-1, p["B"].shape[1])
    return ((x @ p["A"]) * (p["L"] * p["M"])) @ out.T


def vera(p: Params, x: Tensor) -> Tensor:
    """VeRA as in PEFT."""
    return p["b"] * linear(p["d"] * linear(x, p["A"]), p["B"])


def metatt(p: Params, x: Tensor) -> Tensor:
    """MetaTT, core by core."""
    return (((x @ p["G_in"]) @ p["G_layer"]) @ p["G_kind"]) @ p["G_out"]


def fact_tt(p: Params, x: Tensor) -> Tensor:
    """FacT-TT as in the code of its authors."""
    return ((x @ p["U"]) @ p["S"].T) @ p["V"].T


def tt_lora(p: Params, x: Tensor) -> Tensor:
    """TT-LoRA, core by core from the last axis of x, as its authors contract it."""
    z = x.reshape(len(x), *(p[name].shape[1] for name in ("G4", "G5", "G6")))
    z = torch.tensordot(z, p["G6"], dims=([3], [1]))  # (token, i1, i2, r5)
    z = torch.tensordot(z, p["G5"], dims=([2, 3], [1, 2]))  # (token, i1, r4)
    z = torch.tensordot(z, p["G4"], dims=([1, 2], [1, 2]))  # (token, r3)
    z = torch.tensordot(z, p["G3"], dims=([1], [2]))  # (token, r2, o3)
    z = torch.tensordot(z, p["G2"], dims=([1], [2]))  # (token, o3, r1, o2)
    z = torch.tensordot(z, p["G1"], dims=([2], [1]))  # (token, o3, o2, o1)
    return z.permute(0, 3, 2, 1).reshape(len(x), -1)


def tlora(p: Params, x: Tensor) -> Tensor:
    """TLoRA as in the code of its author."""
    return p["a"] * (((x @ p["A"]) @ p["B"]) @ p["C"])


def loha(p: Params, x: Tensor) -> Tensor:
    """LoHa by its dense update, as in PEFT and LyCORIS."""
    return linear(x, (p["A1"] @ p["B1"]) * (p["A2"] @ p["B2"]))


def lokr(p: Params, x: Tensor) -> Tensor:
    """LoKr on x, as the bypass of LyCORIS."""
    z = linear(x.reshape(len(x), p["C"].shape[1], -1), p["A"] @ p["B"])  # (token, i1, o2)
    return linear(z.transpose(1, 2), p["C"]).transpose(1, 2).reshape(len(x), -1)


def gralora(p: Params, x: Tensor) -> Tensor:
    """GraLoRA, as the two sums of PEFT."""
    z = torch.einsum("tij,oirj->toir", x.reshape(len(x), p["A"].shape[1], -1), p["A"])
    return torch.einsum("toir,oipr->top", z, p["B"]).reshape(len(x), -1)


def tera(p: Params, x: Tensor) -> Tensor:
    """TeRA mode by mode: in maps, diagonals, the core as one matrix, diagonals, out maps."""
    z = x.reshape(len(x), *(p[f"U_i{n}"].shape[0] for n in (1, 2, 3)))
    for n in (1, 2, 3):
        z = torch.tensordot(z, p[f"U_i{n}"] * p[f"d_i{n}"], dims=([1], [0]))
    core = p["G"].reshape(-1, z[0].numel())
    z = (z.reshape(len(x), -1) @ core.T).reshape(-1, *p["G"].shape[:3])
    for n in (1, 2, 3):
        z = torch.tensordot(z, p[f"U_o{n}"] * p[f"d_o{n}"], dims=([1], [1]))
    return z.reshape(len(x), -1)


def monarch(p: Params, x: Tensor) -> Tensor:
    """Monarch as in the official code: two batched products, and the permutation between them."""
    (i1, t, o2, i2), tokens = p["P1"].shape, len(x)
    z = torch.bmm(x.reshape(tokens, i1, i2).transpose(0, 1), p["P1"].reshape(i1, t * o2, i2).transpose(1, 2))
    z = z.reshape(i1, tokens, t, o2).permute(3, 1, 0, 2).reshape(o2, tokens, i1 * t)
    z = torch.bmm(z, p["P2"].reshape(o2, -1, i1 * t).transpose(1, 2))  # (o2, token, o1)
    return z.permute(1, 2, 0).reshape(tokens, -1)


FORMULAS: dict[str, Formula] = {
    "lora": lora,
    "lotr": lotr,
    "lorta": lorta,
    "vera": vera,
    "metatt": metatt,
    "fact_tt": fact_tt,
    "tt_lora": tt_lora,
    "tlora": tlora,
    "loha": loha,
    "lokr": lokr,
    "gralora": gralora,
    "tera": tera,
    "monarch": monarch,
}


class HandLinear(nn.Module):
    """A frozen linear layer, plus a formula times a scale."""

    def __init__(self, base: nn.Module, formula: Formula, params: Params, scale: float) -> None:
        """Take a layer and the factors of its site, which may be those of other layers as well."""
        super().__init__()
        self.base, self.formula, self.scale = base, formula, scale
        self.names = list(params)
        for name, value in params.items():
            if isinstance(value, nn.Parameter):
                self.register_parameter(name, value)
            else:
                self.register_buffer(name, value)

    def forward(self, x: Tensor) -> Tensor:
        """Run the layer; factors are cast to the dtype of x, as PEFT casts x to theirs."""
        params = {name: getattr(self, name).to(x.dtype) for name in self.names}
        update = self.formula(params, x.reshape(-1, x.shape[-1])) * self.scale
        return self.base(x) + update.reshape(*x.shape[:-1], -1)


def put_by_hand(model: nn.Module, state: tnadapt_torch.AdapterState, formula: Formula) -> None:
    """Replace every layer that an adapter has as a site; factors have its values, and shared ones are shared.

    A row of a stacked factor is a parameter of its own, as in a list of parameters.
    """
    adapter: Adapter = state.adapter
    values = state.params()
    made: dict[tuple[str, str], Tensor] = {}
    for site in adapter.sites:
        address = adapter.address(site)
        params = {}
        for name, part in address.parts.items():
            key = part.name, str(part.cut)
            if key not in made:
                value = values[part.name][part.cut].detach().clone()
                made[key] = nn.Parameter(value) if part.factor.trainable else value
            params[name] = made[key]
        parent, _, name = site.path.rpartition(".")
        layer = model.get_submodule(site.path)
        hand = HandLinear(layer, formula, params, address.group.network.scale)
        setattr(model.get_submodule(parent), name, hand)
