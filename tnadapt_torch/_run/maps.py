"""Maps on factors in torch: from the stored parameters of a factor to the tensor used in the network."""

import torch
from torch import Tensor

from tnadapt.binding import unknown_map

__all__: list[str] = []


def map_factor(name: str, held: Tensor) -> Tensor:
    """Apply a named map to the last axes of a factor, like `map_factor` of the core.

    Autograd differentiates through it; the gradient at a zero vector is 0. Raise SpecError for an unknown name.
    """
    if not name:
        return held
    if held.dtype in (torch.bfloat16, torch.float16):  # in which a rotation is far from one, and nothing is solved
        return map_factor(name, held.float()).to(held.dtype)
    if name == "rotation":
        cos, sin = torch.cos(held / 2), torch.sin(held / 2)
        return torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
    one = torch.eye(held.shape[-1], dtype=held.dtype, device=held.device)
    if name == "householder":
        square = (held * held).sum(-1)[..., None, None]
        outer = held[..., :, None] * held[..., None, :]
        return one - 2 * outer / torch.where(square > 0, square, torch.ones_like(square))
    if name != "cayley":
        raise unknown_map(name)
    turn = held - held.transpose(-1, -2)
    made: Tensor = torch.linalg.solve(one + turn, one - turn)
    return made
