"""Attach a new adapter to a model, all or nothing."""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import nn

from tnadapt import SiteError, init, sites_of, split_sites
from tnadapt.binding import Rule, SpecLike, answers, match, spec_of
from tnadapt_torch._host import (
    HostWeights,
    SavedModules,
    Weight,
    check_foldable,
    check_model,
    check_rules,
    find_weights,
    fold_in,
    parameter_paths,
    unfold,
)
from tnadapt_torch._state import AdapterState, child_name, host_modules, make_hooks, states_of

__all__ = ["attach"]


@answers(SiteError)
def attach(
    model: nn.Module,
    spec: SpecLike,
    *,
    target_modules: Rule | None = None,
    target_parameters: Mapping[str, str] | None = None,
    rank: int | Mapping[str, int] | None = None,
    alpha: float | None = None,
    sizes: Mapping[str, int] | None = None,
    exclude_modules: Rule | None = None,
    layers_to_transform: int | Collection[int] | None = None,
    blocks: Mapping[str, tuple[int, int]] | None = None,
    fused: Mapping[str, Sequence[str | None] | Mapping[str, int]] | None = None,
    tasks: Collection[str] = (),
    modules_to_save: Collection[str] | None = None,
    dropout: float = 0.0,
    seed: int = 0,
    adapter_name: str = "default",
    fold: bool = False,
    overparametrized: bool = False,
) -> AdapterState:
    """Attach a new adapter; the host is frozen but for `modules_to_save`, and computes as before until it is trained.

    Args:
        model: any module; nothing in it is replaced, it gets one child and forward hooks.
        spec: the adapter's spec; or a family, or its name, as "lotr".
        target_modules: names or suffixes after a dot; or a regular expression for whole paths; or "all-linear".
        target_parameters: parameters that no linear layer is called with, as those of a mixture of experts: names or
            suffixes -> how each is stored, as {"experts.gate_up_proj": "expert in out"}. Each expert is a site. Their
            updates are made as matrices and folded in, as with `fold`.
        rank: the size of every bond, or bond -> size.
        alpha: replaces the alpha of the spec's scale.
        sizes: mode -> size, as {"head": 12}.
        exclude_modules: what not to adapt, in the forms of target_modules.
        layers_to_transform: only these indices of the repeated block.
        blocks: weights that are cut into blocks, each a site, as in `split_sites`: {"fc1": (4, 1)}.
        fused: weights that hold several projections, each a site: {"c_attn": ["q", "k", "v"]}.
        tasks: names of tasks; every site is there once for each. The first is used until `set_task`.
        modules_to_save: names of modules that are trained whole and stored in the adapter's file.
        dropout: probability of dropping entries of the x that the adapter sees, in training.
        seed: where the starting values come from.
        adapter_name: an identifier, one for each adapter on the model.
        fold: add the update to the weight at each call, x (W + dW), and not to the output. `plan(...).explain()` says
            when that pays. It parametrizes the weights, so that their keys in the state dict change while attached.
        overparametrized: allow a rank above that of any update, as in `AdapterSpec.bind`.

    Returns:
        The adapter's state, a child of the model named tnadapt_<adapter_name>.

    Raises:
        SiteError: what does not match or fit; the model is then as it was.
        SpecError: what is no spec, or an alpha that is 0.
    """
    check_model(model, "attach")
    table = spec_of(spec, "attach")
    rules = {"target_modules": target_modules, "exclude_modules": exclude_modules}
    check_rules(rules, layers_to_transform, target_parameters, modules_to_save)
    known = host_modules(model)
    weights = find_weights(
        model, known, target_modules, exclude_modules, layers_to_transform, target_parameters=target_parameters
    )
    experts = [path for path, weight in weights.items() if "expert" in weight.layout]
    shapes = {path: weight.shape for path, weight in weights.items()}
    sites = split_sites(
        sites_of(shapes, among=parameter_paths(known)),
        blocks=blocks,
        fused=fused,
        experts=experts,
        tasks=tasks,
    )
    adapter = table.bind(sites, rank=rank, sizes=sizes, alpha=alpha, seed=seed, overparametrized=overparametrized)
    params = {name: torch.from_numpy(value).float() for name, value in init(adapter, HostWeights(weights)).items()}
    paths = match(known, list(modules_to_save), what="modules_to_save", things="modules") if modules_to_save else []
    saved = {path: known[path] for path in paths}
    state = AdapterState(adapter, params, name=adapter_name, dropout=dropout)
    return install(model, state, weights, saved, fold=fold)


def install(
    model: nn.Module,
    state: AdapterState,
    weights: Mapping[str, Weight],
    saved: Mapping[str, nn.Module],
    *,
    fold: bool = False,
) -> AdapterState:
    """Put a state on its host: the one place that changes it, all or nothing.

    `weights` are the adapted ones by path, `saved` the modules that are trained whole.
    """
    _check_name(model, state.name)
    _check_saved(model, saved, weights)
    if isinstance(state.dropout, bool | str) or not 0.0 <= state.dropout < 1.0:
        raise SiteError(f"dropout: must be at least 0 and below 1, got {state.dropout!r}.\nWrite dropout=0.1.")
    folded = {path: weight for path, weight in weights.items() if fold or not weight.is_called}
    if folded:
        check_foldable(folded, state.dropout)
    state.host, state.weights, state.saved = (model,), dict(weights), SavedModules(saved)
    state.hooks, state.folded = make_hooks(state), list(folded.values())
    state.train(model.training)
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    earlier = states_of(model)
    state.host_flags = earlier[0].host_flags if earlier else flags
    try:
        _set_flags(model, earlier, saved)
        model.add_module(child_name(state.name), state)
        for path, weight in weights.items():
            if path in folded:
                fold_in(weight, state.hooks[path])
            else:
                state.handles.append(weight.module.register_forward_hook(state.hooks[path], with_kwargs=True))
    except BaseException:
        for handle in state.handles:
            handle.remove()
        for weight in folded.values():
            unfold(weight)
        model._modules.pop(child_name(state.name), None)
        for parameter, before in flags:
            parameter.requires_grad_(before)
        raise
    return state


def _set_flags(model: nn.Module, earlier: list[AdapterState], saved: Mapping[str, nn.Module]) -> None:
    """Freeze the host, but for what is trained whole and what belongs to earlier adapters."""
    owners = [owner for state in earlier for owner in (state, *state.saved.modules.values())]
    kept = {id(parameter) for owner in owners for parameter in owner.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in kept:
            parameter.requires_grad_(False)
    for module in saved.values():
        module.requires_grad_(True)


def _check_name(model: nn.Module, name: str) -> None:
    if not isinstance(name, str) or not name.isidentifier():
        raise SiteError(f'adapter_name {name!r}: must be an identifier.\nWrite adapter_name="default".')
    if hasattr(model, child_name(name)):
        raise SiteError(
            f"adapter_name {name!r}: the model has an adapter of this name already.\n"
            "Detach it, or give the new one another adapter_name."
        )


def _check_saved(model: nn.Module, saved: Collection[str], adapted: Collection[str]) -> None:
    taken = [path for state in states_of(model) for path in state.saved.modules]
    for path in saved:
        for site in adapted:
            if site == path or site.startswith(f"{path}."):
                raise SiteError(f"modules_to_save: {path} holds the adapted {site}; it cannot be both.")
        for other in taken:
            if f"{path}.".startswith(f"{other}.") or f"{other}.".startswith(f"{path}."):
                raise SiteError(f"modules_to_save: {path} is trained by another adapter already.")
