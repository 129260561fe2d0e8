"""The order in which a network is contracted, cheapest for training; made once for a network and a bucket of tokens."""

from dataclasses import dataclass
from functools import lru_cache

import opt_einsum
from opt_einsum.paths import ssa_to_linear

from tnadapt._errors import PlanError
from tnadapt._language import Network
from tnadapt._planning.cost import OBJECTIVES, Cost, Modes, Objective, Order, Question, measure
from tnadapt._planning.search import search

__all__ = ["BUCKETS", "Plan", "Step", "bucket", "plan"]

TOKEN = "(token)"  # brackets: no mode of a spec can have this name
X = "(x)"
ASKS = ("apply", "delta")
BUCKETS = (1, 16, 128, 1024, 8192)


@dataclass(frozen=True)
class Step:
    """One pairwise contraction.

    `left` and `right` number its operands, `modes` are those of its result, `cost` is what it takes (peak: the most
    alive up to it). `when` says how often its values change: "once" (frozen factors only), "update" (no x: once for
    each parameter update) or "call". `per_site` says whether it reads a factor that carries a site mode.
    """

    left: int
    right: int
    modes: Modes
    cost: Cost
    when: str
    per_site: bool


@dataclass(frozen=True)
class Plan:
    """Pairwise steps that answer `ask` at one site: apply (x to what the update adds) or delta (the dense update).

    Operand n is `operands[n]` with modes `inputs[n]`; step n makes number len(operands) + n. Site modes are gone: a
    site was chosen. The scale is not in it. `exact` says whether no order is cheaper by the objective.
    """

    network: Network
    ask: str
    tokens: int
    objective: Objective
    training: bool
    x_needs_grad: bool
    operands: tuple[str, ...]
    inputs: tuple[Modes, ...]
    answer: Modes
    steps: tuple[Step, ...]
    cost: Cost
    exact: bool

    @property
    def forward_flops(self) -> int:
        """Multiplications and additions forward, counted as opt_einsum does."""
        return self.cost.forward

    @property
    def backward_flops(self) -> int:
        """Flops of all products of the backward pass: one for each side of a step that needs a gradient."""
        return self.cost.backward

    @property
    def saved_elements(self) -> int:
        """Entries of x and of intermediates that are kept for the backward pass."""
        return self.cost.saved

    @property
    def peak_elements(self) -> int:
        """The most entries of intermediates that are alive at once in the forward pass."""
        return self.cost.peak

    def modes(self, number: int) -> Modes:
        """Modes of an operand or of a step's result, in order."""
        known = len(self.inputs)
        return self.inputs[number] if number < known else self.steps[number - known].modes

    def size(self, mode: str) -> int:
        """Size of a mode, the token axis among them."""
        return self.tokens if mode == TOKEN else self.network.sizes[mode]

    def to_opt_einsum(self) -> list[tuple[int, ...]]:
        """The path of this order, as `opt_einsum.contract` takes it."""
        return [tuple(pair) for pair in ssa_to_linear([(step.left, step.right) for step in self.steps])]

    def equation(self) -> str:
        """The einsum of the whole question in opt_einsum's symbols."""
        symbols = {mode: opt_einsum.get_symbol(n) for n, mode in enumerate(dict.fromkeys(sum(self.inputs, ())))}
        words = ["".join(symbols[mode] for mode in modes) for modes in (*self.inputs, self.answer)]
        return f"{','.join(words[:-1])}->{words[-1]}"

    def opt_einsum_flops(self) -> int:
        """Forward flops of this order, as opt_einsum itself counts them."""
        shapes = [tuple(self.size(mode) for mode in modes) for modes in self.inputs]
        path = self.to_opt_einsum() or [(0,)]
        return int(opt_einsum.contract_path(self.equation(), *shapes, shapes=True, optimize=path)[1].opt_cost)

    def __str__(self) -> str:
        """A head with the totals, and one line a step."""
        tokens = f" at {self.tokens:,} tokens" if self.ask == "apply" else ""
        proof = "no order is cheaper" if self.exact else "not proven cheapest"
        lines = [
            f"{self.ask}{tokens}, for {self.objective.name} ({proof})",
            f"  flops {self.forward_flops:,} forward (opt_einsum: {self.opt_einsum_flops():,}), "
            f"{self.backward_flops:,} backward; saved {self.saved_elements:,}, peak {self.peak_elements:,} elements",
        ]
        for number, step in enumerate(self.steps, len(self.operands)):
            left, right = (" ".join(self.modes(side)) for side in (step.left, step.right))
            names = [self._name(side) for side in (step.left, step.right)]
            often = {"once": "once for ever", "update": "once an update", "call": "each call"}[step.when]
            where = "" if step.per_site or step.when == "call" else ", for all sites"
            lines.append(f"  %{number} = {names[0]}, {names[1]}  [{left}, {right} -> {' '.join(step.modes)}]")
            flops = f"{step.cost.forward:,} + {step.cost.backward:,} flops"
            lines.append(f"       {flops}, saves {step.cost.saved:,}; {often}{where}")
        return "\n".join(lines)

    def explain(self) -> str:
        """Why this order: what it takes beside making the dense update first, and beside folding it into the weight.

        In units of the objective: flops, and numbers moved or saved by their weights. The search knows making the
        update first as one order among others. Folding, x (W + dW), costs only the update and its gradient, since the
        host's own product serves; it needs a full-precision weight. Raises PlanError for a delta.
        """
        if self.ask != "apply":
            raise PlanError("explain: compares ways to apply an update.\nHowever, this plan makes a delta.")
        weigh = self.objective.of
        own = weigh(self.cost)
        update = _plan(self.network, "delta", 1, (self.training, False), self.objective)
        dense, gradient = self._dense_costs(trained=any(f.trainable for f in self.network.factors.values()))
        made = weigh(update.cost) + weigh(dense)
        folded = weigh(update.cost) + weigh(gradient)
        return "\n".join(
            [
                f"apply at {self.tokens:,} tokens, for {self.objective.name}: {own:.3g}",
                f"  making the update first: {made / own:.2f} times that",
                f"  folding it into the weight: {folded / own:.2f} times that; "
                + ("it would pay on a full-precision weight" if folded < own else "it would not pay"),
            ]
        )

    def _dense_costs(self, *, trained: bool) -> tuple[Cost, Cost]:
        """Of x times a dense update, and of what folding adds to the host's product: the gradient of the weight."""
        outer, inner = (self.network.volume(modes) for modes in (self.network.out_modes, self.network.in_modes))
        flops, entries = 2 * self.tokens * outer * inner, outer * inner
        needs_weight, needs_x = self.training and trained, self.training and self.x_needs_grad
        moved = self.tokens * (outer + inner) + entries
        products = needs_weight + needs_x
        whole = Cost(flops, flops * products, needs_weight * self.tokens * inner, 0, moved * (1 + products))
        added = Cost(0, flops * needs_weight, needs_weight * self.tokens * inner, 0, 3 * entries + moved * needs_weight)
        return whole, added

    def _name(self, number: int) -> str:
        return self.operands[number] if number < len(self.operands) else f"%{number}"


def bucket(tokens: int) -> int:
    """The number of tokens that plans are made for: the largest of 1, 16, 128, 1,024, 8,192 that is not above."""
    return max((size for size in BUCKETS if size <= tokens), default=BUCKETS[0])


def plan(
    network: Network,
    ask: str = "apply",
    *,
    tokens: int = 1024,
    training: bool = True,
    x_needs_grad: bool = True,
    objective: str | Objective = "training",
) -> Plan:
    """The cheapest order that answers `ask` for one site of a network.

    Args:
        network: what is contracted.
        ask: "apply" or "delta".
        tokens: length of the token axis, for apply.
        training: whether trainable factors need a gradient; without, only the forward pass counts.
        x_needs_grad: whether x does; not in the first adapted layer of a frozen host.
        objective: a name in OBJECTIVES, or one of your own.

    Raises:
        PlanError: an ask or an objective that is not known, or no tokens.
    """
    goal = OBJECTIVES.get(objective) if isinstance(objective, str) else objective
    if ask not in ASKS or goal is None:
        raise PlanError(
            f"plan: ask must be one of {', '.join(ASKS)}, the objective one of {', '.join(OBJECTIVES)}.\n"
            f"However, they are {ask!r} and {objective!r}."
        )
    if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1:
        raise PlanError(f"plan: tokens must be an integer of at least 1, got {tokens!r}.")
    return _plan(network, ask, tokens if ask == "apply" else 1, (training, x_needs_grad), goal)


@lru_cache(maxsize=4096)
def _plan(network: Network, ask: str, tokens: int, needs: tuple[bool, bool], objective: Objective) -> Plan:
    training, x_needs_grad = needs
    through = ask == "apply"
    operands = ((X,) if through else ()) + tuple(network.factors)
    inputs = (((TOKEN, *network.in_modes),) if through else ()) + tuple(map(network.local_modes, network.factors))
    answer = (TOKEN, *network.out_modes) if through else (*network.out_modes, *network.in_modes)
    grads = tuple(training and factor.trainable for factor in network.factors.values())
    if through:
        grads = (training and x_needs_grad, *grads)
    active = tuple(name == X for name in operands)
    question = Question(inputs, answer, {TOKEN: tokens, **network.sizes}, grads, active)
    order = search(question, objective)
    steps, total = _steps(network, question, operands, order)
    return Plan(
        network, ask, tokens, objective, training, x_needs_grad, operands, inputs, answer, steps, total, order.exact
    )


def _steps(
    network: Network, question: Question, operands: tuple[str, ...], order: Order
) -> tuple[tuple[Step, ...], Cost]:
    """The steps of an order with what each depends on, and their total cost."""
    results, costs, total = measure(question, order.pairs)
    below = [{name} for name in operands]
    steps = []
    for (left, right), modes, cost in zip(order.pairs, results, costs, strict=True):
        names = below[left] | below[right]
        below.append(names)
        factors = [network.factors[name] for name in names - {X}]
        when = "call" if X in names else "update" if any(factor.trainable for factor in factors) else "once"
        per_site = any(set(factor.modes) & set(network.over) for factor in factors)
        steps.append(Step(left, right, modes, cost, when, per_site))
    return tuple(steps), total
