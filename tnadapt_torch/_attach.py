"""Attach a new adapter to a model; an attach that fails leaves the model unchanged."""

from collections.abc import Collection, Mapping, Sequence
from numbers import Real

from torch import nn

from tnadapt import SiteError, sites_of, split_sites
from tnadapt.binding import Rule, SpecLike, answers, expect_flag, match, spec_of
from tnadapt.initializers import Scale
from tnadapt_torch._host import (
    SavedModules,
    Weight,
    check_foldable,
    check_model,
    check_rules,
    check_trainable,
    find_weights,
    fold_in,
    parameter_paths,
    place_params,
    serve,
    settle_weights,
    slow_down,
    start_params,
    unwrapped,
    weights_to_fold,
)
from tnadapt_torch._state import (
    AdapterState,
    Enclosing,
    MarksCheck,
    Replicas,
    Saved,
    Watch,
    check_unmerged,
    enter,
    host_modules,
    make_updates,
    states_of,
)

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
    scale: Scale | float | None = None,
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
    """Attach a new adapter to a model and freeze the rest of it.

    Everything but `modules_to_save` is frozen. Until the adapter is trained, the model computes the same outputs. An
    attach that fails leaves the model unchanged.

    Args:
        model: any torch module. None of its modules are replaced: it gets one new child. The class of each adapted
            module is exchanged for a subclass.
        spec: the adapter's spec, a family, or the name of a family, such as "lotr".
        target_modules: module names, or suffixes of paths after a dot; or a regular expression for whole paths; or
            "all-linear".
        target_parameters: parameters that do not belong to a linear layer, such as those of a mixture of experts. Maps
            each name or suffix to the layout of the parameter: {"experts.gate_up_proj": "expert in out"}. Each expert
            is a site. The updates are computed as matrices and folded into the weights, as with `fold`.
        rank: the size of every bond, or a mapping from bond to size.
        alpha: replaces the alpha of the scale, whatever that was: alpha=16 with scale=unit(2) is unit(16).
        scale: replaces the spec's scale, as in scale=unit().
        sizes: a mapping from mode to size, such as {"head": 12}.
        exclude_modules: modules not to adapt, in the same forms as target_modules.
        layers_to_transform: adapt only the layers with these indices.
        blocks: weights to split into blocks, each of them a site, as in `split_sites`: {"fc1": (4, 1)}.
        fused: weights that hold several projections, each of them a site: {"c_attn": ["q", "k", "v"]}.
        tasks: names of tasks; every weight gets one site per task. The first task is used until `set_task` is called.
        modules_to_save: names of modules that are trained in full and stored in the adapter's file.
        dropout: the dropout probability on the adapter's input during training.
        seed: the seed of the starting values.
        adapter_name: an identifier that no other adapter on the model has.
        fold: add the update to the weight at each call, x (W + dW), instead of to the output. A float32 nn.Linear does
            so by itself where that is cheaper. The weights are parametrized, so their keys in the state dict change
            while the adapter is attached.
        overparametrized: allow a rank higher than that of any update, as in `AdapterSpec.bind`.

    Returns:
        The adapter's state, a child of the model named tnadapt_<adapter_name>.

    Raises:
        SiteError: an argument does not match or fit the model.
        SpecError: the spec is not valid, alpha is 0, or the scale does not fit the spec.
    """
    check_model(model, "attach")
    model = unwrapped(model)
    table = spec_of(spec, "attach")
    expect_flag(fold, "attach", "fold", SiteError)
    rules = {"target_modules": target_modules, "exclude_modules": exclude_modules}
    check_rules(rules, layers_to_transform, target_parameters, modules_to_save)
    known = host_modules(model)
    weights = find_weights(
        model, known, target_modules, exclude_modules, layers_to_transform, target_parameters=target_parameters
    )
    settle_weights(model, weights)
    experts = [path for path, weight in weights.items() if "expert" in weight.layout]
    shapes = {path: weight.shape for path, weight in weights.items()}
    sites = split_sites(
        sites_of(shapes, among=parameter_paths(known)),
        blocks=blocks,
        fused=fused,
        experts=experts,
        tasks=tasks,
    )
    adapter = table.bind(
        sites, rank=rank, sizes=sizes, alpha=alpha, scale=scale, seed=seed, overparametrized=overparametrized
    )
    params = start_params(adapter, weights)
    paths = match(known, list(modules_to_save), what="modules_to_save", things="modules") if modules_to_save else []
    saved = {path: known[path] for path in paths}
    state = AdapterState(adapter, place_params(adapter, weights, params), name=adapter_name, dropout=dropout)
    return install(model, state, weights, saved, fold=fold)


def install(
    model: nn.Module,
    state: AdapterState,
    weights: Mapping[str, Weight],
    saved: Mapping[str, nn.Module],
    *,
    fold: bool = False,
) -> AdapterState:
    """Install a state on its host, or leave the host unchanged and raise.

    No other function changes the host when an adapter is attached or loaded.

    Args:
        model: the host.
        state: the adapter's state.
        weights: the adapted weights by path.
        saved: the modules that are trained in full, by path.
        fold: add the updates to the weights instead of to the outputs.
    """
    _check_name(model, state.name)
    _check_saved(model, saved, weights)
    check_trainable(saved)
    _check_dropout(state.dropout)
    folded = weights_to_fold(model, weights, state.dropout, all_of_them=fold)
    if folded:
        check_foldable(folded, state.dropout)
    others = states_of(model)
    check_unmerged(state, weights, others)
    state.host, state.weights, state.saved, state.folded = (model,), dict(weights), SavedModules(saved), folded
    state.updates = make_updates(state)
    state.turn = 1 + max((other.turn for other in others), default=0)
    state.train(model.training)
    try:
        state.flags.freeze(model, state.saved.parameters(), _kept(others), turn=state.turn)
        model.add_module(state.child_name, state)
        for path, weight in weights.items():
            if path in folded:
                fold_in(weight, state.updates[path])
            else:
                state.handles.append(serve(weight, state.updates[path], state.siblings))
        slow_down(model, [weight.module for weight in weights.values()])
        check = model.register_load_state_dict_pre_hook(MarksCheck(state))  # type: ignore[no-untyped-call]
        state.handles.append(check)
        replicas = Replicas(state, model)
        state.handles.append(replicas)
        replicas.look()
        state.handles += [Saved(state, model), Enclosing()]
        state.watch = model.register_forward_hook(Watch(state))
    except BaseException:
        state.release()
        model._modules.pop(state.child_name, None)
        state.flags.restore(model)
        raise
    enter(state)
    return state


def _kept(others: Collection[AdapterState]) -> list[nn.Parameter]:
    """Return the parameters whose flags other adapters have set, or the user after them."""
    return [parameter for other in others for parameter in other.model.parameters()]


def _check_name(model: nn.Module, name: str) -> None:
    if not isinstance(name, str) or not name.isidentifier():
        raise SiteError(f'adapter_name: expected an identifier, got {name!r}.\nWrite adapter_name="default".')
    if hasattr(model, f"tnadapt_{name}"):
        raise SiteError(
            f"adapter_name: expected a name that is not in use on the model, got {name!r}.\n"
            "Detach the adapter of this name, or give the new one another adapter_name."
        )


def _check_dropout(rate: object) -> None:
    if not isinstance(rate, Real) or isinstance(rate, bool) or not 0.0 <= float(rate) < 1.0:
        raise SiteError(f"dropout: expected a number of at least 0 and below 1, got {rate!r}.\nWrite dropout=0.1.")


def _check_saved(model: nn.Module, saved: Collection[str], adapted: Collection[str]) -> None:
    taken = [path for state in states_of(model) for path in state.saved.modules]
    for path in saved:
        for site in adapted:
            if site == path or site.startswith(f"{path}."):
                raise SiteError(
                    f"modules_to_save: expected modules without adapted weights, got {path}, which holds {site}.\n"
                    "A weight cannot be both adapted and trained in full."
                )
        for other in taken:
            if f"{path}.".startswith(f"{other}.") or f"{other}.".startswith(f"{path}."):
                raise SiteError(f"modules_to_save: expected modules that no other adapter trains, got {path}.")
