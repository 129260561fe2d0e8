"""A planted fault for every event: something that goes wrong in its circumstances, and the walk that shows it."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.nn.utils import parametrize

from tests.torch.walk import circumstances as inside
from tests.torch.walk import plants
from tests.torch.walk.circumstances import Plant, wrong_if
from tests.torch.walk.plants import after_attach, around, misserves, misserves_words


@dataclass(frozen=True)
class Fault:
    """A fault, and the events before and after the one that must notice it."""

    plant: Plant
    before: tuple[str, ...] = ("attach",)
    after: tuple[str, ...] = ()
    kind: str = "mlp"


def in_backward(module: nn.Module, x: torch.Tensor) -> bool:
    return torch._C._current_graph_task_id() != -1


def in_transform(module: nn.Module, x: torch.Tensor) -> bool:
    return torch._C._functorch.peek_interpreter_stack() is not None


def is_normed(module: nn.Module, x: torch.Tensor) -> bool:
    return parametrize.is_parametrized(module) and hasattr(module.parametrizations.weight, "original1")


def scaled(value: Any) -> Callable[..., Any]:
    """Return a method that multiplies the answer of the true one, or the entry of a dict."""
    return lambda true, state, *args: value(true(state, *args))


TRAINED = lambda module, x: torch.is_grad_enabled()  # noqa: E731  (one condition among others)
FAULTS: dict[str, Fault] = {
    "attach": Fault(after_attach(plants.thaw_host), before=()),
    "attach a second": Fault(after_attach(plants.freeze_earlier)),
    "attach to a part": Fault(
        after_attach(lambda model, state, _: plants.thaw_host(model, state, _) if not hasattr(model, "head") else None)
    ),
    "attach after outer": Fault(after_attach(plants.freeze_earlier), before=("attach to a part",)),
    "attach a shared family": Fault(misserves(lambda state: state.spec.over), before=()),
    "attach tasks": Fault(misserves_words("tasks"), before=()),
    "attach what reads the weight": Fault(misserves(lambda state: state.adapter.hosts), before=()),
    "attach blocks": Fault(misserves_words("blocks"), before=()),
    "attach fused": Fault(misserves_words("fused"), before=(), kind="gpt"),
    "attach folded": Fault(misserves_words("fold"), before=()),
    "attach to parameters": Fault(misserves_words("target_parameters"), before=(), kind="mixture"),
    "attach with modules to save": Fault(misserves_words("modules_to_save"), before=()),
    "attach refused": Fault(plants.freezes_when_refused, before=()),
    "detach": Fault(around("detach", plants.detach_and_freeze), after=()),
    "detach merged": Fault(around("detach", plants.detach_with_update), before=("attach", "merge")),
    "merge": Fault(around("merge", plants.merge_and_change)),
    "unmerge": Fault(around("unmerge", plants.unmerge_by_subtracting), before=("attach", "merge")),
    "merge and back": Fault(around("unmerge", plants.unmerge_by_subtracting)),
    "disable": Fault(around("disabled", plants.disabled_in_name)),
    "set task": Fault(around("set_task", plants.ignore_task), before=("attach tasks",)),
    "cast": Fault(plants.rebinds_if(lambda old, new: old != new)),
    "cast to bfloat16": Fault(around("_apply", plants.loses_on_bfloat16)),
    "cast and rebind": Fault(plants.flags_by_identity),
    "cast and swap": Fault(around("_apply", plants.cannot_swap)),
    "move": Fault(plants.rebinds_if(lambda old, new: old == new)),
    "train": Fault(inside.wrong_gradient),
    "accumulate": Fault(inside.wrong_gradient),
    "checkpoint, reentrant": Fault(wrong_if(in_backward)),
    "checkpoint, non-reentrant": Fault(wrong_if(in_backward)),
    "second derivative": Fault(inside.once_differentiable),
    "detect anomaly": Fault(wrong_if(lambda module, x: torch.is_anomaly_enabled())),
    "autocast": Fault(wrong_if(lambda module, x: torch.is_autocast_enabled("cpu"))),
    "inference_mode": Fault(wrong_if(lambda module, x: torch.is_inference_mode_enabled())),
    "no_grad": Fault(wrong_if(TRAINED)),
    "eager call": Fault(wrong_if(TRAINED)),
    "train or eval": Fault(wrong_if(lambda module, x: not module.training)),
    "thread": Fault(wrong_if(lambda module, x: threading.current_thread() is not threading.main_thread())),
    "empty batch": Fault(inside.refuses_empty),
    "one token": Fault(wrong_if(lambda module, x: x.numel() == x.shape[-1])),
    "more axes": Fault(wrong_if(lambda module, x: x.ndim > 3)),
    "one axis less": Fault(wrong_if(lambda module, x: x.ndim == 2)),
    "strided input": Fault(wrong_if(lambda module, x: not x.is_contiguous())),
    "keyword": Fault(inside.wrong_by_keyword),
    "compile": Fault(wrong_if(lambda module, x: torch.compiler.is_compiling())),
    "call compiled": Fault(inside.stale_code, before=("compile", "attach")),
    "compile blocks": Fault(wrong_if(lambda module, x: torch.compiler.is_compiling())),
    "fake": Fault(inside.keeps_fakes),
    "make_fx": Fault(wrong_if(lambda module, x: get_proxy_mode() is not None)),
    "functional": Fault(wrong_if(in_transform)),
    "vmap": Fault(wrong_if(in_transform)),
    "forward mode": Fault(inside.wrong_gradient),
    "deepcopy": Fault(around("__setstate__", plants.loses_when_copied)),
    "deepcopy, keep both": Fault(inside.shares_when_copied, after=("train",)),
    "pickle": Fault(around("__setstate__", plants.loses_when_copied)),
    "torch.save": Fault(around("__setstate__", plants.loses_when_copied)),
    "state dict": Fault(inside.load_state_dict_of_the_host),
    "assign": Fault(plants.flags_by_identity),
    "take a snapshot": Fault(inside.load_state_dict_of_the_host, after=("train", "load a snapshot")),
    "load a snapshot": Fault(inside.load_state_dict_of_the_host, before=("attach", "take a snapshot", "train")),
    "save and load": Fault(plants.loses_a_factor("load")),
    "LoRA folder": Fault(plants.loses_a_factor("load_peft")),
    "hook after": Fault(wrong_if(lambda module, x: inside.has_hook("_forward_hooks")(module))),
    "hook before": Fault(wrong_if(lambda module, x: inside.has_hook("_forward_pre_hooks")(module))),
    "remove a hook": Fault(
        inside.wrong_once_without(inside.has_hook("_forward_hooks")), before=("attach", "hook after")
    ),
    "unfreeze": Fault(after_attach(plants.freeze_host), after=("attach a second",)),
    "freeze a factor": Fault(after_attach(plants.thaw_earlier), after=("attach a second",)),
    "freeze the whole": Fault(after_attach(plants.thaw_earlier), after=("attach a second",)),
    "parametrize": Fault(around("detach", plants.detach_everything)),
    "remove a parametrization": Fault(
        inside.wrong_once_without(parametrize.is_parametrized), before=("attach", "parametrize")
    ),
    "weight_norm": Fault(wrong_if(is_normed)),
    "replace a module": Fault(around("norms", plants.silent_norms)),
    "tell": Fault(around("table", lambda true, state: "")),
    "delta": Fault(around("delta", scaled(lambda found: 1.001 * found))),
    "norms": Fault(around("norms", scaled(lambda found: found | {"dW": 1.01 * found["dW"]}))),
}
READS = "attach what reads the weight"
READING: dict[str, Fault] = {  # what goes wrong with a weight that an adapter reads
    "a merge ignores the magnitude": Fault(around("merge", plants.merge_without_lengths), (READS, "merge")),
    "another adapter is merged": Fault(
        plants.checks_nothing("_state.state", "check_unread"), (READS, "attach a second", "merge")
    ),
    "a merged weight is read": Fault(
        plants.checks_nothing("_attach", "check_unmerged"), ("attach", "merge", READS), kind="gpt"
    ),
    "folded updates are read": Fault(plants.reads_what_computes, ("attach folded", READS)),
    "no gradient of the weight": Fault(plants.reads(lambda _, weight: weight.detach()), (READS, "unfreeze", "train")),
    "the weight of the attach": Fault(plants.reads(plants.as_at_first), (READS, "unfreeze", "train", "eager call")),
}
