"""Load the chain in a file onto a model: its links in the weights, or as adapters beside them."""

import os
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from tnadapt import FormatError, SiteError
from tnadapt.binding import Checkpoint, answers, expect_flag, expect_path
from tnadapt.policies import Link
from tnadapt.policies import load_chain as read_chain
from tnadapt_torch._attach import install
from tnadapt_torch._files import weights_of
from tnadapt_torch._host import Merged, Weight, check_model, place_params, settle_weights, unwrapped
from tnadapt_torch._sharded import laid_like
from tnadapt_torch._state import AdapterState, check_unread, make_updates, states_of

__all__ = ["load_chain"]


@answers(FormatError)
def load_chain(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    beside: bool | None = None,
    adapter_name: str = "default",
    target_parameters: Mapping[str, str] | None = None,
    draw_limit: int | None = None,
) -> list[AdapterState]:
    """Load the links of a chain onto a model that has the weights from before the first link.

    In the weights, the links are summed in float32 or better before they are added, and each weight is rounded once.
    A load that fails leaves the model unchanged. If processes share the model by fully_shard, call this on each.

    Args:
        model: a model with the weights that the chain was begun on; the file cannot tell them from others.
        path: the file that `Restarts.save`, `save_chain` or `state.save` wrote.
        beside: attach the links as adapters that are not trained, instead of adding them to the weights; by default
            only if a weight is quantized.
        adapter_name: link k beside the weights becomes the adapter <adapter_name>_link_<k>.
        target_parameters: the layouts of parameters that do not belong to a linear layer, as in `attach`.
        draw_limit: the most frozen numbers to draw again for all links together, as in `tnadapt.policies.load_chain`.

    Returns:
        The links beside the weights, in order, each with the methods of an attached adapter; none if they are in the
        weights.

    Raises:
        FormatError: the file is damaged, or was saved for another model; the message names the first difference.
        SiteError: an argument is not valid; links for several tasks; a sum that is not finite; a weight that is shared,
            quantized, or read or merged into by another adapter, with links in the weights; or a link that can only be
            folded into its weight, or whose name is in use, with links beside them.
    """
    check_beside(beside, "load_chain")
    check_model(model, "load_chain")
    model = unwrapped(model)
    expect_path(path, "load_chain", FormatError)
    chain = read_chain(path, draw_limit=draw_limit)
    weights = weights_of(model, chain.links[0].adapter, path, target_parameters or {})
    settle_weights(model, weights)
    states = [_state_of(link, weights, f"{adapter_name}_link_{number}") for number, link in enumerate(chain.links)]
    if any(weight.storage for weight in weights.values()) if beside is None else beside:
        return _attach(model, states, weights)
    _merge(model, states, weights)
    return []


def check_beside(beside: object, where: str) -> None:
    """Raise SiteError unless `beside` is True, False or None."""
    if beside is not None:
        expect_flag(beside, where, "beside", SiteError)


def add_link(model: nn.Module, link: AdapterState, weights: Mapping[str, Weight]) -> None:
    """Attach a finished link, without training it. Raises SiteError if a weight takes its update only folded."""
    install(model, link, weights, {})
    if link.folded:
        path = next(iter(link.folded))
        link.detach()
        raise SiteError(
            f"{path}: expected links that are added to the outputs of their modules, got one that is folded into its "
            "weight.\nA weight takes one folded update. Keep the links in the weights: beside=False."
        )
    link.requires_grad_(False)


def _state_of(link: Link, weights: Mapping[str, Weight], name: str) -> AdapterState:
    """Return a link that is not attached. Raises SiteError for several tasks: a weight takes the links of one."""
    adapter, params = link
    dtype = torch.float64 if Checkpoint(adapter, dict(params), {}).is_double else torch.float32
    values = {key: torch.tensor(value, dtype=dtype) for key, value in params.items()}
    state = AdapterState(adapter, place_params(adapter, weights, values), name=name, dropout=0.0)
    if len(state.tasks) > 1:
        raise SiteError(
            f"load_chain: expected links of one task, got {', '.join(state.tasks)}.\n"
            "Weights take the links of one task. Load the adapter with tnadapt_torch.load, which has set_task."
        )
    return state


def _attach(model: nn.Module, links: Sequence[AdapterState], weights: Mapping[str, Weight]) -> list[AdapterState]:
    """Attach all links, or none."""
    attached: list[AdapterState] = []
    try:
        for link in links:
            add_link(model, link, weights)
            attached.append(link)
    except BaseException:
        for link in reversed(attached):
            link.detach()
        raise
    return attached


def _merge(model: nn.Module, links: Sequence[AdapterState], weights: Mapping[str, Weight]) -> None:
    """Write each weight with the sum of all links, or none."""
    for link in links:
        link.weights = dict(weights)
        link.updates = make_updates(link)
    others = states_of(model)
    check_unread(links[0], others)
    _check_no_merge(weights, others)
    Merged.write(model, weights, {path: partial(_sum, links, path, weight) for path, weight in weights.items()}, 0)


def _sum(links: Sequence[AdapterState], path: str, weight: Weight) -> Tensor:
    """Return the sum of the updates of all links, in the order in which `Restarts` adds them, as the weight lies."""
    like = weight.parameter.detach()
    updates = (laid_like(weight.lay(link.updates[path].delta(weight.like)), like) for link in links)
    total = next(updates)
    for update in updates:
        total = total + update
    return total


def _check_no_merge(weights: Mapping[str, Weight], others: Sequence[AdapterState]) -> None:
    """Raise SiteError for a weight with a merged update: to unmerge it would take the links out too."""
    known = {(id(weight.module), weight.name): path for path, weight in weights.items()}
    for other in others:
        for weight in other.weights.values() if other.merged else ():
            if path := known.get((id(weight.module), weight.name)):
                raise SiteError(
                    f"{path}: expected a weight without merged updates, got one with that of adapter {other.name!r}.\n"
                    f"Its unmerge() would take the links out too. Unmerge {other.name!r} first, or detach it."
                )
