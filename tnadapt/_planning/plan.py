"""The plan of a network: its contraction order, cheapest for training, with the cost of every step."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal, get_args

import opt_einsum
from opt_einsum.paths import ssa_to_linear

from tnadapt._errors import PlanError
from tnadapt._language import Adapter, AdapterSpec, Network
from tnadapt._planning.cost import OBJECTIVES, Convolution, Cost, Line, Modes, Objective, Question, measure_lines
from tnadapt._planning.equation import equation_of
from tnadapt._planning.fold import dense_costs, factor_products, keeps_little
from tnadapt._planning.host_product import find_product, product_modes, product_name
from tnadapt._planning.spectrum import amount_of_cyclic
from tnadapt._planning.terms import paired, search_terms
from tnadapt._signature import answers

__all__ = ["BUCKETS", "Plan", "Step", "bucket", "plan"]

TOKEN, X = "(token)", "(x)"  # no mode of a spec can have a name with brackets
BUCKETS = (1, 16, 128, 1024, 8192)
"""The numbers of tokens that plans are made for."""
Ask = Literal["apply", "delta"]
When = Literal["once", "update", "call"]
WHEN_TEXT: dict[When, str] = {
    "once": "at every call, from frozen factors alone",
    "update": "at every call, from factors alone",
    "call": "at every call",
}


@dataclass(frozen=True)
class Step:
    """One pairwise contraction, or a convolution in place of one with a cyclic pattern.

    `left` and `right` are the numbers of its operands, `modes` the modes of its result, `cost` its cost, with the peak
    up to this step. `when` says how often its values change: "once" (they depend on frozen factors only), "update"
    (not on x, so with each parameter update) or "call". Every site runs every step at every call.
    """

    left: int
    right: int
    modes: Modes
    cost: Cost
    when: When
    convolution: Convolution | None = None


@dataclass(frozen=True)
class Plan:
    """Pairwise steps that answer `ask` at one site: "apply" (x times the update) or "delta" (the dense update).

    Operand n is `operands[n]` with modes `inputs[n]`; step n makes number len(operands) + n. The answer is the sum of
    `results`, each a sign and the number of a term's result. There are no site modes, since a plan is for one site, and
    the scale is not included. `exact` says whether all orders were searched, for each term by itself: that of a single
    term is then proven to be the cheapest by the objective. With a `host_product`, terms that begin with the host's
    weight times x read that product, an operand of its own for each node that is the weight.
    """

    network: Network
    ask: Ask
    tokens: int
    objective: Objective
    training: bool
    x_needs_grad: bool
    host_product: bool
    operands: tuple[str, ...]
    inputs: tuple[Modes, ...]
    answer: Modes
    steps: tuple[Step, ...]
    results: tuple[tuple[int, int], ...]
    cost: Cost
    exact: bool

    @property
    def forward_flops(self) -> int:
        """Return the flops of the forward pass, counted as opt_einsum does."""
        return self.cost.forward

    @property
    def backward_flops(self) -> int:
        """Return the flops of the backward pass: one product for each side of a step that needs a gradient."""
        return self.cost.backward

    @property
    def saved_elements(self) -> int:
        """Return the elements of x and of intermediates that are kept for the backward pass."""
        return self.cost.saved

    @property
    def peak_elements(self) -> int:
        """Return the largest number of elements of intermediates alive at once in the forward pass."""
        return self.cost.peak

    @property
    def convolutions(self) -> tuple[Convolution, ...]:
        """The convolutions among the steps. The frozen patterns that they replace are not read."""
        return tuple(step.convolution for step in self.steps if step.convolution)

    @property
    def unread(self) -> frozenset[str]:
        """The names of the operands that no step reads: a convolution or the layer's product stands for each."""
        read = {side for step in self.steps for side in (step.left, step.right)} | {end for _, end in self.results}
        return frozenset(name for number, name in enumerate(self.operands) if number not in read)

    def cancels(self, result: int) -> bool:
        """Return whether a result and the next one are of the same factors and opposite signs: they start equal."""
        if result + 1 >= len(self.results):
            return False
        terms = paired(self.network)
        (sign, _, root), (other, _, same) = terms[result], terms[result + 1]
        return root == same and sign == -other

    def modes(self, number: int) -> Modes:
        """Return the modes of an operand or of a step's result, in order."""
        known = len(self.inputs)
        return self.inputs[number] if number < known else self.steps[number - known].modes

    def size(self, mode: str) -> int:
        """Return the size of a mode; the token axis is a mode too."""
        return self.tokens if mode == TOKEN else self.network.sizes[mode]

    def to_opt_einsum(self) -> list[tuple[int, ...]]:
        """Return this order as a path for `opt_einsum.contract`. Raises PlanError for several terms, or an FFT."""
        self._expect_one_term("to_opt_einsum")
        if self.convolutions:
            raise PlanError(
                "to_opt_einsum: expected steps that contract, got one that convolves, which opt_einsum cannot.\n"
                "Look at the steps of the plan instead."
            )
        return [tuple(pair) for pair in ssa_to_linear([(step.left, step.right) for step in self.steps])]

    def equation(self) -> str:
        """Return the einsum equation of the whole plan, in opt_einsum's symbols. Raises PlanError for several terms."""
        self._expect_one_term("equation")
        return equation_of(self.inputs, self.answer)

    def opt_einsum_flops(self) -> int:
        """Return the forward flops of this order as opt_einsum itself counts them, where it can run it."""
        shapes = [tuple(self.size(mode) for mode in modes) for modes in self.inputs]
        path = self.to_opt_einsum() or [(0,)]
        return int(opt_einsum.contract_path(self.equation(), *shapes, shapes=True, optimize=path)[1].opt_cost)

    def _expect_one_term(self, where: str) -> None:
        if len(self.results) > 1:
            raise PlanError(
                f"{where}: expected an update of one term, got {len(self.results)}, which are several contractions.\n"
                "Look at the steps of the plan instead."
            )

    def __str__(self) -> str:
        """Return a head with the totals, and two lines for each step."""
        tokens = f" at {self.tokens:,} tokens" if self.ask == "apply" else ""
        is_one = len(self.results) == 1
        proof = "no order is cheaper" if self.exact else "not proven cheapest"
        if not is_one:  # another order of one term might share more with the others
            proof = f"a sum of {len(self.results)} terms, each {'' if self.exact else 'not '}searched exhaustively"
        checked = f" (opt_einsum: {self.opt_einsum_flops():,})" if is_one and not self.convolutions else ""
        lines = [
            f"{self.ask}{tokens}, for {self.objective.name} ({proof})",
            f"  flops {self.forward_flops:,} forward{checked}, "
            f"{self.backward_flops:,} backward; saved {self.saved_elements:,}, peak {self.peak_elements:,} elements",
        ]
        for number, step in enumerate(self.steps, len(self.operands)):
            left, right = (" ".join(self.modes(side)) for side in (step.left, step.right))
            names = [self._name(side) for side in (step.left, step.right)]
            lines.append(f"  %{number} = {names[0]}, {names[1]}  [{left}, {right} -> {' '.join(step.modes)}]")
            flops = f"{step.cost.forward:,} + {step.cost.backward:,} flops"
            lines.append(f"       {flops}, saves {step.cost.saved:,}; {WHEN_TEXT[step.when]}")
            if how := step.convolution:
                lines.append(
                    f"       by FFT: {how.left} and {how.right} to {how.made}, in place of {self._name(how.pattern)}"
                )
        return "\n".join(lines)

    def explain(self) -> str:
        """Compare the plan with making the dense update first and with folding it into the weight.

        All are in units of the objective: flops, and numbers moved or saved by their weights. Making the update first
        is one of the orders that the search for a single term covers. Folding, x (W + dW), costs only the update and
        its gradient, since the host's own product does the rest; it needs a full-precision weight. Raises PlanError
        for a delta.
        """
        if self.ask != "apply":
            raise PlanError('explain: expected a plan for "apply", got one for "delta".\nPlan with ask="apply".')
        weigh = self.objective.of
        own, (made, folded) = weigh(self.cost), self._other_costs()
        return "\n".join(
            [
                f"apply at {self.tokens:,} tokens, for {self.objective.name}: {own:.3g}",
                f"  making the update first: {made / own:.2f} times that",
                f"  folding it into the weight: {folded / own:.2f} times that; "
                + ("it would pay on a full-precision weight" if folded < own else "it would not pay"),
            ]
        )

    @cached_property
    def pays_to_fold(self) -> bool:
        """Return whether x (W + dW) is cheaper than this plan and the host's own product, and keeps little more."""
        return self._other_costs()[1] < self.objective.of(self.cost) and keeps_little(self)

    @property
    def factor_products(self) -> int:
        """The elements of the products of factors alone by which activations are multiplied."""
        return factor_products(self)

    def _other_costs(self) -> tuple[float, float]:
        """Return the cost of making the dense update first, and of folding it into the weight."""
        update = _plan(self.network, "delta", 1, (self.training, False, False, False), self.objective)
        dense, gradient = dense_costs(self)
        weigh = self.objective.of
        return weigh(update.cost) + weigh(dense), weigh(update.cost) + weigh(gradient)

    def _name(self, number: int) -> str:
        return self.operands[number] if number < len(self.operands) else f"%{number}"


def bucket(tokens: int) -> int:
    """Return the number of tokens to plan for: the largest of 1, 16, 128, 1,024 and 8,192 up to `tokens`, or 1."""
    return max((size for size in BUCKETS if size <= tokens), default=BUCKETS[0])


@answers(PlanError)
def plan(
    network: Network,
    ask: Ask = "apply",
    *,
    tokens: int = 1024,
    training: bool = True,
    x_needs_grad: bool = True,
    objective: str | Objective = "training",
    host_product: bool = False,
    fft: bool = True,
) -> Plan:
    """Plan the cheapest contraction order that answers `ask` for one site of a network.

    The order is proven to be the cheapest up to 14 operands (x is one). Beyond, it is a good one, found within a fixed
    amount of work: 40 factors take about 0.3 s. Plans are cached.

    Args:
        network: the network to contract, such as one of `adapter.networks`.
        ask: "apply" or "delta".
        tokens: the length of the token axis, for "apply".
        training: whether trainable factors need a gradient; if not, only the forward pass counts.
        x_needs_grad: whether x needs a gradient; it does not in the first adapted layer of a frozen host.
        objective: a name in OBJECTIVES, or an Objective of your own.
        host_product: whether the product of x and the host's weight is given, since the layer makes it anyway.
        fft: whether "apply" may replace a frozen `cyclic()` factor by a convolution, where that is cheaper.

    Raises:
        PlanError: an argument of another type, an unknown `ask` or objective, or `tokens` below 1.
    """
    if not isinstance(network, Network):
        raise PlanError(f"plan: expected a Network, got {_described(network)}.\n{_remedy(network)}")
    if ask not in get_args(Ask):
        raise PlanError(f"plan: expected ask to be one of {', '.join(get_args(Ask))}, got {ask!r}.\nPass one of these.")
    goal = OBJECTIVES.get(objective) if isinstance(objective, str) else objective
    if not isinstance(goal, Objective):
        raise PlanError(
            f"plan: expected objective to be one of {', '.join(OBJECTIVES)}, or an Objective, got {objective!r}.\n"
            f"Pass one of these names, or tnadapt.binding.Objective(name, backward=..., saved=..., moved=...)."
        )
    if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1:
        raise PlanError(
            f"plan: expected tokens to be an integer of at least 1, got {tokens!r}.\n"
            f"Pass the number of rows of x that the network sees at once."
        )
    through = ask == "apply"
    case = (training, x_needs_grad, host_product and through, fft and through)
    return _plan(network, ask, tokens if through else 1, case, goal)


def _described(value: object) -> str:
    name = type(value).__name__
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"


def _remedy(value: object) -> str:
    """Say how to get a network from what was passed."""
    if isinstance(value, Adapter):
        return "Pass one of adapter.networks."
    if isinstance(value, AdapterSpec):
        return "Bind the spec to sites first, and pass one of adapter.networks."
    return "Pass one of the networks of an adapter: spec.bind(sites, ...).networks."


@lru_cache(maxsize=4096)
def _plan(network: Network, ask: Ask, tokens: int, case: tuple[bool, bool, bool, bool], objective: Objective) -> Plan:
    training, x_needs_grad, host_product, fft = case
    terms = paired(network)
    activations = {X: (TOKEN, *network.in_modes)} if ask == "apply" else {}
    chosen = [[*activations, *names] for _, names, _ in terms]
    for number, (_, names, _) in enumerate(terms):
        if host_product and (node := find_product(network, names)) is not None:
            activations[product_name(node)] = (TOKEN, *product_modes(network, node))
            chosen[number] = [product_name(node), *(name for name in names if name != node)]
    operands = (*activations, *network.nodes)
    inputs = (*activations.values(), *map(network.local_modes, network.nodes))
    answer = (TOKEN, *network.out_modes) if ask == "apply" else (*network.out_modes, *network.in_modes)
    grads = (training and x_needs_grad,) * len(activations)
    grads += tuple(training and network.is_trained(name) for name in network.nodes)
    active = tuple(name in activations for name in operands)
    amounts = tuple(amount_of_cyclic(network, name) if name in network.nodes else 0.0 for name in operands)
    cyclic = amounts if fft and any(amounts) else ()
    question = Question(inputs, answer, {TOKEN: tokens, **network.sizes}, grads, active, cyclic)
    place = {name: number for number, name in enumerate(operands)}
    program = search_terms(
        question,
        [[place[name] for name in names] for names in chosen],
        objective,
        {n: root for n, (_, _, root) in enumerate(terms) if root != n},
    )
    costs, total = measure_lines(question, program.lines, program.results)
    steps = _steps(network, operands, program.lines, costs)
    results = tuple((sign, number) for (sign, _, _), number in zip(terms, program.results, strict=True))
    return Plan(
        network,
        ask,
        tokens,
        objective,
        training,
        x_needs_grad,
        host_product,
        operands,
        inputs,
        answer,
        steps,
        results,
        total,
        program.exact,
    )


def _steps(
    network: Network, operands: tuple[str, ...], lines: Sequence[Line], costs: Sequence[Cost]
) -> tuple[Step, ...]:
    """Return steps with what they cost and how often their values change."""
    below = [{name} for name in operands]
    steps = []
    for line, cost in zip(lines, costs, strict=True):
        names = below[line.left] | below[line.right]
        below.append(names)
        inner = [name for name in names if name in network.nodes]
        is_trained = any(network.is_trained(name) for name in inner)
        when: When = "call" if len(inner) < len(names) else "update" if is_trained else "once"
        steps.append(Step(line.left, line.right, line.modes, cost, when, line.convolution))
    return tuple(steps)
