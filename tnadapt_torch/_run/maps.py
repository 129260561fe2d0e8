"""Maps on factors in torch: the node of the network that a factor's numbers stand for. Autograd pulls back."""

import torch
from torch import Tensor

from tnadapt.binding import unknown_map

__all__: list[str] = []


def map_factor(name: str, held: Tensor) -> Tensor:
    """As the core's `map_factor`, on the last axes; the gradient at a zero vector is 0. Raises SpecError as it does."""
    if not name:
        return held
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
