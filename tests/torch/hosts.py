"""Small models for the tests of the PyTorch binding, and functions that compare them."""

import torch
from torch import Tensor, nn

from tnadapt import AdapterSpec, families
from tnadapt_torch import AdapterState, attach

WIDTH, HEADS, GROUPS, INNER, WORDS = 16, 4, 2, 24, 11

# Each family with sizes that fit the toy model; q_proj (16 x 16), v_proj (8 x 16) and down (16 x 24) make three shapes.
FAMILIES: dict[str, tuple[AdapterSpec, dict]] = {
    "lora": (families.lora(), {"rank": 2}),
    "lotr": (families.lotr(), {"rank": {"p": 2, "q": 3}}),
    "lorta": (families.lorta(), {"rank": 3, "sizes": {"head": 4}}),
    "tlora": (families.tlora(), {"rank": {"p": 2, "q": 3}}),
    "tera": (families.tera(), {"rank": 2}),
    "vera": (families.vera(), {"rank": 5}),
    "loha": (families.loha(), {"rank": 2}),
    "lokr": (families.lokr(), {"rank": 2}),
}
TARGETS = ["q_proj", "v_proj", "down"]
# Where each change of a bond is planned anew: to plan for the thirteen factors of TeRA takes a fifth of a second.
PLANNED_AT_ONCE = [name for name in FAMILIES if name != "tera"]
# A test of a hook, a copy or a file runs on these; tests/parity compares the numbers of every family.
REPRESENTATIVES = (
    "lora",  # a plain product of two factors, one network per site
    "lorta",  # a hyperedge through five factors, two of them with site modes
    "vera",  # frozen factors, held in buffers and shared by all shapes
)


class Attention(nn.Module):
    """Grouped-query attention: k_proj and v_proj are narrower than q_proj."""

    def __init__(self) -> None:
        super().__init__()
        narrow = WIDTH * GROUPS // HEADS
        self.q_proj = nn.Linear(WIDTH, WIDTH, bias=False)
        self.k_proj = nn.Linear(WIDTH, narrow)
        self.v_proj = nn.Linear(WIDTH, narrow)
        self.o_proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (-1, WIDTH // HEADS)).transpose(-2, -3)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        k, v = (part.repeat_interleave(HEADS // GROUPS, dim=-3) for part in (k, v))
        heard = (q @ k.mT / 2).softmax(-1) @ v  # not fused: torch's fused attention has no second derivative on a CPU
        return self.o_proj(heard.transpose(-2, -3).flatten(-2))


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, INNER)
        self.down = nn.Linear(INNER, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.nn.functional.silu(self.up(x)))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.self_attn = Attention()
        self.mlp = Mlp()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.norm(x))
        return x + self.mlp(x)


class Toy(nn.Module):
    """A small Llama-like model from token ids (batch, length) to scores (batch, length, 3)."""

    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.ModuleList([Block() for _ in range(layers)])
        self.norm = nn.LayerNorm(WIDTH)
        self.score = nn.Linear(WIDTH, 3)

    def forward(self, words: Tensor) -> Tensor:
        x = self.embed(words)
        for layer in self.layers:
            x = layer(x)
        return self.score(self.norm(x))


class Pair(nn.Module):
    """Two stacks of blocks, like an encoder and a decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Module(), nn.Module()
        self.encoder.layers = nn.ModuleList([Block(), Block()])
        self.decoder.layers = nn.ModuleList([Block(), Block()])

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.encoder.layers, *self.decoder.layers):
            x = layer(x)
        return x


class CallsAll(nn.Module):
    """A container that calls all its children but is not an nn.Sequential."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        for child in self.children():
            x = child(x)
        return x


def toy(layers: int = 2, dtype: torch.dtype = torch.float32) -> Toy:
    """Make the toy model, with the same numbers at every call."""
    torch.manual_seed(0)
    return Toy(layers).to(dtype)


def sequential() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


def words(batch: int = 2, length: int = 5, seed: int = 1) -> Tensor:
    return torch.randint(0, WORDS, (batch, length), generator=torch.Generator().manual_seed(seed))


def normal(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def wake(state: AdapterState, seed: int = 7, size: float = 0.5) -> AdapterState:
    """Give every trainable factor random values, so that the update is not 0."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in state.parameters():
            values = size * torch.randn(parameter.shape, generator=random, dtype=torch.float64)
            parameter.copy_(values)
    return state


def adapt(model: nn.Module, family: str = "lotr", *, name: str = "default", awake: bool = True, **more) -> AdapterState:
    """Attach a family with its sizes to TARGETS, by default with an update that is not 0."""
    spec, sizes = FAMILIES[family]
    arguments = {"target_modules": TARGETS, "seed": 3, "adapter_name": name} | sizes | more
    state = attach(model, spec, **arguments)
    return wake(state, seed=len(name)) if awake else state


def photo(model: nn.Module) -> dict[str, object]:
    """Record everything that attach or detach could change on a host, except its outputs."""
    tensors = {key: value.clone() for key, value in model.state_dict().items()}
    hooks = {
        name: len(module._forward_hooks) + len(module._forward_pre_hooks) for name, module in model.named_modules()
    }
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    idents = {name: id(parameter) for name, parameter in model.named_parameters()}
    kinds = {name: type(module) for name, module in model.named_modules()}
    return {"tensors": tensors, "hooks": hooks, "flags": flags, "idents": idents, "kinds": kinds}


def assert_same_photo(before: dict[str, object], after: dict[str, object]) -> None:
    assert {key: value for key, value in before.items() if key != "tensors"} == {
        key: value for key, value in after.items() if key != "tensors"
    }
    assert before["tensors"].keys() == after["tensors"].keys()
    for key, value in before["tensors"].items():
        assert torch.equal(value, after["tensors"][key]), key


def grads(model: nn.Module) -> dict[str, Tensor]:
    """Copy the gradients of all parameters that have one."""
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> None:
    """Assert equality relative to the largest wanted entry, which must not be 0."""
    assert found.shape == wanted.shape
    largest = wanted.double().abs().max().item()
    assert largest > 0, "nothing to compare"
    error = (found.double() - wanted.double()).abs().max().item()
    assert error <= tolerance * largest, f"off by {error / largest:.3g} of the largest entry"
