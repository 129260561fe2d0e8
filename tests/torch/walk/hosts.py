"""The hosts of the walk: six small models, and beside each the same computation written out by hand.

The second form reads its weights from the oracle (`Plain` of `oracle.py`) and calls no module, so that nothing that an
adapter does to a module can reach it.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

WIDTH, INNER, HEADS, WORDS = 8, 12, 2, 8


class Host(nn.Module):
    """A model whose blocks can run under gradient checkpointing, as those of transformers can."""

    checkpointing = ""  # or "reentrant", or "non-reentrant"

    def run(self, block: nn.Module, x: Tensor, *more: Tensor) -> Tensor:
        if not self.checkpointing or not torch.is_grad_enabled():
            return block(x, *more)
        if self.checkpointing == "reentrant" and not x.requires_grad:
            x = x.detach().requires_grad_()  # what transformers' enable_input_require_grads does
        return checkpoint(block, x, *more, use_reentrant=self.checkpointing == "reentrant")


# ---- layers of multi-layer perceptrons


class MlpBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class MlpBody(Host):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([MlpBlock(), MlpBlock()])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.run(layer, x)
        return x


class Mlp(Host):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = MlpBody(), nn.Linear(WIDTH, 4)
        self.register_buffer("gain", torch.tensor(1.25))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)) * self.gain


def plain_mlp(p: Any, x: Tensor) -> Tensor:
    def block(path: str, x: Tensor) -> Tensor:
        return x + p.linear(f"{path}.down", torch.tanh(p.linear(f"{path}.up", p.norm(f"{path}.norm", x))))

    for n in range(2):
        x = p.block(f"body.layers.{n}", block, x)
    return p.linear("head", x) * p.value("gain")


# ---- a decoder of Llama's form, its head tied to its embedding or not


class Attention(nn.Module):
    """Grouped-query attention: one head of keys and values for both heads of queries."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.o_proj = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH)
        self.k_proj, self.v_proj = nn.Linear(WIDTH, WIDTH // HEADS), nn.Linear(WIDTH, WIDTH // HEADS)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        memory = x if memory is None else memory
        return self.o_proj(attend(self.q_proj(x), self.k_proj(memory), self.v_proj(memory)))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend with as many heads as q is wider than k, all of them to the same keys and values."""
    heads = q.unflatten(-1, (-1, k.shape[-1])).transpose(-2, -3)
    scores = heads @ k.unsqueeze(-3).transpose(-1, -2) / 2
    return (scores.softmax(-1) @ v.unsqueeze(-3)).transpose(-2, -3).flatten(-2)


class LlamaBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.self_attn = nn.LayerNorm(WIDTH), Attention()
        self.gate_proj, self.up_proj = nn.Linear(WIDTH, INNER, bias=False), nn.Linear(WIDTH, INNER, bias=False)
        self.down_proj = nn.Linear(INNER, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.norm(x))
        return x + self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class LlamaBody(Host):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.ModuleList([LlamaBlock(), LlamaBlock()])
        self.ln_f = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = self.run(layer, x)
        return self.ln_f(x)


class Llama(Host):
    def __init__(self, *, tied: bool = False) -> None:
        super().__init__()
        self.model, self.lm_head = LlamaBody(), nn.Linear(WIDTH, WORDS, bias=False)
        if tied:
            self.lm_head.weight = self.model.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.lm_head(self.model(x))


def tied_llama() -> Host:
    return Llama(tied=True)


def plain_attention(p: Any, path: str, x: Tensor, memory: Tensor) -> Tensor:
    q, k, v = p.linear(f"{path}.q_proj", x), p.linear(f"{path}.k_proj", memory), p.linear(f"{path}.v_proj", memory)
    return p.linear(f"{path}.o_proj", attend(q, k, v))


def plain_llama(p: Any, ids: Tensor) -> Tensor:
    def block(path: str, x: Tensor) -> Tensor:
        normed = p.norm(f"{path}.norm", x)
        x = x + plain_attention(p, f"{path}.self_attn", normed, normed)
        gate = F.silu(p.linear(f"{path}.gate_proj", x))
        return x + p.linear(f"{path}.down_proj", gate * p.linear(f"{path}.up_proj", x))

    x = p.value("model.embed.weight")[ids]
    for n in range(2):
        x = p.block(f"model.layers.{n}", block, x)
    return p.linear("lm_head", p.norm("model.ln_f", x))


# ---- an encoder and a decoder with one embedding, held under three names, and a head tied to it


class Stack(Host):
    def __init__(self, embed: nn.Embedding) -> None:
        super().__init__()
        self.embed = embed
        self.layers = nn.ModuleList([Attention(), Attention()])

    def forward(self, x: Tensor, *memory: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = x + self.run(layer, x, *memory)
        return x


class Pair(Host):
    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Embedding(WORDS, WIDTH)
        self.encoder, self.decoder = Stack(self.shared), Stack(self.shared)
        self.lm_head = nn.Linear(WIDTH, WORDS, bias=False)
        self.lm_head.weight = self.shared.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.lm_head(self.decoder(x, self.encoder(x.flip(-1))))


def plain_pair(p: Any, ids: Tensor) -> Tensor:
    def stack(path: str, x: Tensor, memory: Tensor | None = None) -> Tensor:
        for n in range(2):

            def block(path: str, x: Tensor) -> Tensor:
                return plain_attention(p, path, x, x if memory is None else memory)

            x = x + p.block(f"{path}.layers.{n}", block, x)
        return x

    embed = p.value("shared.weight")
    return p.linear("lm_head", stack("decoder", embed[ids], stack("encoder", embed[ids.flip(-1)])))


# ---- torch's own encoder, which in eval() reads its weights past its modules


class Encoder(Host):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(  # of a smooth activation: rounding moves the gradient across a kink
            WIDTH, HEADS, INNER, dropout=0.0, activation="gelu", batch_first=True
        )
        self.stack = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stack(x))


def plain_encoder(p: Any, x: Tensor) -> Tensor:
    def block(path: str, x: Tensor) -> Tensor:
        weight, bias = (p.value(f"{path}.self_attn.in_proj_{word}") for word in ("weight", "bias"))
        q, k, v = (x @ weight.T + bias).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(-2, -3) for part in (q, k, v))
        heard = (q @ k.mT / (WIDTH // HEADS) ** 0.5).softmax(-1) @ v
        x = p.norm(f"{path}.norm1", x + p.linear(f"{path}.self_attn.out_proj", heard.transpose(-2, -3).flatten(-2)))
        return p.norm(f"{path}.norm2", x + p.linear(f"{path}.linear2", F.gelu(p.linear(f"{path}.linear1", x))))

    for n in range(2):
        x = p.block(f"stack.layers.{n}", block, x)
    return p.linear("head", x)


# ---- a model of GPT-2's form: fused projections in Conv1D layers, stored as (in, out)


class Conv1D(nn.Module):
    """The layer of transformers of this name, which a binding knows by its name and its `nf`."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight, self.bias = nn.Parameter(0.3 * torch.randn(nx, nf)), nn.Parameter(torch.zeros(nf))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class GptBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c_attn, self.c_proj = Conv1D(3 * WIDTH, WIDTH), Conv1D(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.c_proj(attend(*self.c_attn(x).chunk(3, -1)))


class Gpt(Host):
    def __init__(self) -> None:
        super().__init__()
        self.h = nn.ModuleList([GptBlock(), GptBlock()])
        self.score = nn.Linear(WIDTH, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.h:
            x = self.run(layer, x)
        return self.score(x)


def plain_gpt(p: Any, x: Tensor) -> Tensor:
    def block(path: str, x: Tensor) -> Tensor:
        return x + p.linear(f"{path}.c_proj", attend(*p.linear(f"{path}.c_attn", x).chunk(3, -1)))

    for n in range(2):
        x = p.block(f"h.{n}", block, x)
    return p.linear("score", x)


# ---- a mixture of experts whose weights are parameters of three axes


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, 4)
        self.up, self.down = nn.Parameter(torch.randn(4, WIDTH, INNER)), nn.Parameter(torch.randn(4, WIDTH, INNER) / 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + mix(self.router(x).softmax(-1), x, self.up, self.down)


def mix(gates: Tensor, x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Weigh the answers of all experts: `up` is (expert, in, out), `down` is (expert, out, in)."""
    inner = torch.einsum("...i,eio->...eo", x, up).tanh()
    return torch.einsum("...e,...ei,eoi->...o", gates, inner, down)


class Mixture(Host):
    def __init__(self) -> None:
        super().__init__()
        self.layers, self.head = nn.ModuleList([Experts(), Experts()]), nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.run(layer, x)
        return self.head(x)


def plain_mixture(p: Any, x: Tensor) -> Tensor:
    def block(path: str, x: Tensor) -> Tensor:
        gates = p.linear(f"{path}.router", x).softmax(-1)
        return x + mix(gates, x, p.value(f"{path}.up"), p.value(f"{path}.down"))

    for n in range(2):
        x = p.block(f"layers.{n}", block, x)
    return p.linear("head", x)
