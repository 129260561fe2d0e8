"""Run a jaxpr in which some values are adapted weights: follow them, and run everything else as it is."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from jax import Array, lax
from jax.extend.core import ClosedJaxpr, DebugInfo, Jaxpr, JaxprEqn, Literal, jaxpr_as_fun

from tnadapt_jax._walk.layout import move
from tnadapt_jax._walk.product import add_update
from tnadapt_jax._walk.weight import Weight

__all__: list[str] = []

INSIDE = tuple(f"{Path(path).parent}{os.sep}" for path in (Path(jax.__file__), Path(__file__).parent))


def walk(closed: ClosedJaxpr, inputs: Sequence[Any], where: str = "") -> list[Any]:
    """Return the outputs of a program, of which inputs and outputs may be adapted weights.

    `where` is the line from which it is called: jax's own functions have no line of the user inside.
    """
    jaxpr = closed.jaxpr
    known: dict[Any, Any] = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    known |= dict(zip(jaxpr.invars, inputs, strict=True))
    last = _last_uses(jaxpr)
    waiting: list[JaxprEqn] = []  # equations without a weight, to be run as one program
    for at, eqn in enumerate(jaxpr.eqns):
        if not any(isinstance(known.get(var), Weight) for var in _read_by(eqn)):
            waiting.append(eqn)
            continue
        _run_waiting(waiting, known, last, at)
        waiting = []
        given = [var.val if isinstance(var, Literal) else known[var] for var in eqn.invars]
        line = _line_of(eqn) or where
        found = _followed(eqn, given, line)
        if found is None:
            found = run_alone(eqn, dense_all(given, eqn.primitive.name, line))
        known |= dict(zip(eqn.outvars, found, strict=True))
    _run_waiting(waiting, known, last, len(jaxpr.eqns))
    return [var.val if isinstance(var, Literal) else known[var] for var in jaxpr.outvars]


def dense_all(values: Sequence[Any], why: str, where: str = "") -> list[Any]:
    """Return the values with every weight as an array that has its update."""
    return [value.dense(why, where) if isinstance(value, Weight) else value for value in values]


def run_alone(eqn: JaxprEqn, inputs: Sequence[Any]) -> list[Any]:
    """Run one equation as it is, whatever it is: as a program of one line, which keeps its rules and effects."""
    known = {var: value for var, value in zip(eqn.invars, inputs, strict=True) if not isinstance(var, Literal)}
    return list(jaxpr_as_fun(_program([eqn], list(known), list(eqn.outvars)))(*known.values()))


def _read_by(eqn: JaxprEqn) -> list[Any]:
    return [var for var in eqn.invars if not isinstance(var, Literal)]


def _last_uses(jaxpr: Jaxpr) -> dict[Any, int]:
    """Return for each variable the place of the last equation that reads it; behind all, if it is an output."""
    last = {var: at for at, eqn in enumerate(jaxpr.eqns) for var in _read_by(eqn)}
    return last | {var: len(jaxpr.eqns) for var in jaxpr.outvars if not isinstance(var, Literal)}


def _run_waiting(eqns: list[JaxprEqn], known: dict[Any, Any], last: dict[Any, int], at: int) -> None:
    """Run equations without weights as one program, and keep what is read at the place `at` or behind it."""
    if not eqns:
        return
    made = dict.fromkeys(var for eqn in eqns for var in eqn.outvars)
    inputs = list(dict.fromkeys(var for eqn in eqns for var in _read_by(eqn) if var not in made))
    kept = [var for var in made if last.get(var, -1) >= at]
    found = jaxpr_as_fun(_program(eqns, inputs, kept))(*(known[var] for var in inputs))
    known |= dict(zip(kept, found, strict=True))


def _program(eqns: list[JaxprEqn], inputs: list[Any], outputs: list[Any]) -> ClosedJaxpr:
    effects = frozenset().union(*(eqn.effects for eqn in eqns))
    debug = DebugInfo("tnadapt", "adapt", None, None)
    return ClosedJaxpr(Jaxpr([], inputs, outputs, eqns, effects, debug), [])


def _line_of(eqn: JaxprEqn) -> str:
    """Return the line outside of jax and this package where an equation was written, as far as jax says it."""
    traceback = getattr(getattr(eqn, "source_info", None), "traceback", None)
    for frame in getattr(traceback, "frames", ()):
        if not frame.file_name.startswith(INSIDE):
            return f" in {frame.file_name}:{frame.line_num}"
    return ""


def _followed(eqn: JaxprEqn, given: list[Any], where: str) -> list[Any] | None:
    """Return the outputs of an equation that reads a weight; None if the weight has to become an array first."""
    name = eqn.primitive.name
    if name in FOLLOWED:
        follow, *needed = FOLLOWED[name]
        return follow(eqn, given, where) if {*needed} <= eqn.params.keys() else None
    first, *rest = given
    if isinstance(first, Weight) and not any(isinstance(one, Weight) for one in rest) and len(eqn.outvars) == 1:
        (value,) = run_alone(eqn, [first.value, *rest])
        moved = move(name, eqn.params, first, rest, value)
        return None if moved is None else [moved]
    return None


def _closed(jaxpr: Any) -> ClosedJaxpr:
    return jaxpr if isinstance(jaxpr, ClosedJaxpr) else ClosedJaxpr(jaxpr, [])


def _product(eqn: JaxprEqn, given: list[Any], where: str) -> list[Any] | None:
    is_right = isinstance(given[1], Weight)
    if is_right and isinstance(given[0], Weight):
        return None
    weight, x = (given[1], given[0]) if is_right else (given[0], given[1])

    def product(value: Array, x: Array) -> Array:
        made: Array = run_alone(eqn, [x, value] if is_right else [value, x])[0]
        return made

    found = add_update(eqn.params, weight, x, product, is_right=is_right)
    return None if found is None else [found]


def _inlined(eqn: JaxprEqn, given: list[Any], where: str) -> list[Any] | None:
    inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    return None if inner is None else walk(_closed(inner), given, where)


def _checkpointed(eqn: JaxprEqn, given: list[Any], where: str) -> list[Any]:
    inner = _closed(eqn.params["jaxpr"])
    options = {name: eqn.params[name] for name in ("policy", "prevent_cse") if name in eqn.params}
    return list(jax.checkpoint(lambda *values: walk(inner, values, where), **options)(*given))


def _cond(eqn: JaxprEqn, given: list[Any], where: str) -> list[Any] | None:
    if isinstance(given[0], Weight):
        return None
    return list(
        lax.switch(given[0], [_branch(_closed(branch), where) for branch in eqn.params["branches"]], *given[1:])
    )


def _branch(branch: ClosedJaxpr, where: str) -> Callable[..., list[Any]]:
    return lambda *values: dense_all(walk(branch, values, where), "left a branch", where)


def _while(eqn: JaxprEqn, given: list[Any], where: str) -> list[Any]:
    params = eqn.params
    conditions, bodies = params["cond_nconsts"], params["body_nconsts"]
    of_condition, of_body = given[:conditions], given[conditions : conditions + bodies]
    start = dense_all(given[conditions + bodies :], "carried by a loop", where)

    def condition(carry: list[Any]) -> Any:
        return walk(_closed(params["cond_jaxpr"]), [*of_condition, *carry], where)[0]

    def body(carry: list[Any]) -> list[Any]:
        return dense_all(walk(_closed(params["body_jaxpr"]), [*of_body, *carry], where), "carried by a loop", where)

    found: list[Any] = lax.while_loop(condition, body, start)
    return found


def _scan(eqn: JaxprEqn, given: list[Any], where: str) -> list[Any] | None:
    """Scan over a stack of weights: what differs between layers is scanned with it, everything else closed over."""
    params, inner = eqn.params, _closed(eqn.params["jaxpr"])
    stacked, scanned = _scanned(eqn.outvars, inner.jaxpr.outvars), _scanned(eqn.invars, inner.jaxpr.invars)
    if stacked is None or scanned is None:
        return None
    carries = len(eqn.outvars) - stacked
    first = len(given) - carries - scanned
    constants, carry = given[:first], dense_all(given[first : first + carries], "carried by a scan", where)
    each = [_scannable(one, where) for one in given[first + carries :]]
    weights = {place: one for place, one in enumerate(each) if isinstance(one, Weight)}
    origins = {place: one.origin.again() for place, one in weights.items()}  # to know a slice again
    unchanged: dict[int, int] = {}

    def body(carry: list[Any], held: list[Any]) -> tuple[list[Any], list[Any]]:
        own = [
            weights[place].layer(origins[place], *one) if place in weights else one for place, one in enumerate(held)
        ]
        found = walk(inner, [*constants, *carry, *own], where)
        outputs = found[carries:]
        for place, one in enumerate(outputs):  # flax hands every variable on: that is the same stack afterwards
            same = [at for at in weights if isinstance(one, Weight) and one.is_same(own[at])]
            if same:
                unchanged[place] = same[0]
        left = [None if place in unchanged else one for place, one in enumerate(outputs)]
        return dense_all(found[:carries], "carried by a scan", where), dense_all(left, "left a scan", where)

    held = [one.scanned() if isinstance(one, Weight) else one for one in each]
    options = {name: params[name] for name in ("length", "unroll") if name in params}
    carry, outputs = lax.scan(body, list(carry), held, reverse=params["reverse"], **options)
    return [*carry, *(weights[unchanged[n]] if n in unchanged else one for n, one in enumerate(outputs))]


def _scanned(outside: Sequence[Any], inside: Sequence[Any]) -> int | None:
    """Return how many of the last values have an axis less inside; None unless the others, in front, are the same.

    By shapes, since jax has renamed the parameters that say it.
    """
    more = [len(out.aval.shape) - len(own.aval.shape) for out, own in zip(outside, inside, strict=False)]
    is_known = len(outside) == len(inside) and sorted(more) == more and {*more} <= {0, 1}
    return sum(more) if is_known else None


def _scannable(value: Any, where: str) -> Any:
    """Return a value to be scanned over; a weight whose first axis is no stack becomes an array."""
    if isinstance(value, Weight) and not value.axes[0]:
        return value.stacked_once()
    if isinstance(value, Weight) and value.lead_of(0) is None:
        return value.dense("scanned along an axis of one weight", where)
    return value


# What follows a weight through an equation, and the parameters that it needs: if jax calls them otherwise, the weight
# becomes an array there.
FOLLOWED: dict[str, tuple[Any, ...]] = {
    "dot_general": (_product, "dimension_numbers"),
    **dict.fromkeys(("jit", "pjit", "closed_call", "core_call"), (_inlined,)),
    **dict.fromkeys(("checkpoint", "remat", "remat2"), (_checkpointed, "jaxpr")),
    "cond": (_cond, "branches"),
    "while": (_while, "cond_nconsts", "body_nconsts", "cond_jaxpr", "body_jaxpr"),
    "scan": (_scan, "jaxpr", "reverse"),
}
