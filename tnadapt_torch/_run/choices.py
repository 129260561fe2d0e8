"""All ways to run one step of a plan: how its operands are read, copied or not, and how its result is written."""

from collections.abc import Iterable, Iterator
from itertools import permutations

from tnadapt.binding import Plan
from tnadapt_torch._run.ways import FORMS, PAGE, Form, Laid, Machine, Modes, Roles, Way, cost_of_copy, size_of

__all__: list[str] = []

SUMMED = RIGHT = 2  # the last axis of an operand, and of a result
MOVABLE = 3  # the most modes of a factor that are tried in every order


class Choices:
    """The ways to run a step from one way of each operand."""

    def __init__(
        self, plan: Plan, machine: Machine, sides: tuple[Laid, Laid], kept: Modes, grads: tuple[bool, bool]
    ) -> None:
        """Take a step on these sides, of which some need a gradient, with these modes in its result."""
        self.plan, self.machine, self.sides, self.grads = plan, machine, sides, grads
        self.roles = roles_of(sides[0].order, sides[1].order, kept)
        self.sizes = [size_of(plan, side.order) for side in sides]
        self.cost = sides[0].cost + sides[1].cost
        token = plan.answer[0] if plan.ask == "apply" else None
        self.factors = [token is not None and token not in side.order for side in sides]

    def add_to(self, found: dict[Modes, Way]) -> None:
        """Add the ways that are cheaper than those found for the same order of the result's axes."""
        (left, right), roles = self.sides, self.roles
        if not roles.summed:
            big, small = sorted((left.order, right.order), key=lambda order: -size_of(self.plan, order))
            order = (*big, *(mode for mode in small if mode not in big))
            if order not in found or self.cost < found[order].cost:
                found[order] = Way(order, self.cost, roles, left, right, left.order, right.order)
            return
        for one in self._free(0):
            for other in self._free(1):
                for summed in _orders(right.order, roles.summed):
                    for batch in _orders(right.order, roles.batch):
                        self._add(found, Roles(batch, one, other, summed))
                for repeated in (0, 1):
                    if self.factors[repeated] and not roles.batch and not self.factors[1 - repeated]:
                        for at in self._spread(repeated, (one, other)):
                            self._add(found, at, repeated)

    def _free(self, side: int) -> Iterable[Modes]:
        """Return the orders of the free modes to try: all for a small factor, since its copy is cheap."""
        free = (self.roles.left, self.roles.right)[side]
        return permutations(free) if self.factors[side] and len(free) <= MOVABLE else (free,)

    def _spread(self, repeated: int, free: tuple[Modes, Modes]) -> Iterator[Roles]:
        """Yield the roles in which some free modes of one side are a batch, over which the other side is repeated.

        So the summed modes may lie anywhere in an array, and the free modes may be split by the result.
        """
        order = self.sides[1 - repeated].order
        places = [place for place, mode in enumerate(order) if mode in self.roles.summed]
        first, end = places[0], places[-1] + 1
        if end - first != len(places):
            return
        before, summed, after = order[:first], order[first:end], order[end:]
        if before and after:
            splits = [(before, after)]
        elif before:
            cuts = [(before[:cut], before[cut:]) for cut in range(1, len(before))]
            splits = [*cuts, *(cut[::-1] for cut in cuts)]
        else:
            splits = [(after[:cut], after[cut:]) for cut in range(1, len(after))]
        for batch, rest in splits:
            yield Roles(batch, free[0] if repeated == 0 else rest, free[1] if repeated == 1 else rest, summed)

    def _add(self, found: dict[Modes, Way], at: Roles, repeated: int | None = None) -> None:
        """Add the ways for one order of the modes of each axis."""
        left, right = self.sides
        parts, size = (at.batch, at.left, at.right), size_of(self.plan, at.batch)
        result, extra = size_of(self.plan, parts[0] + parts[1] + parts[2]), self.cost + self._repetition(repeated, size)
        for left_order, left_form, left_cost in self._readings(0, at, repeated):
            for right_order, right_form, right_cost in self._readings(1, at, repeated):
                read = extra + left_cost + right_cost
                lying = left_order == left.order, right_order == right.order
                read += self._slowness(at, right_order) if self.grads[1] else 0.0
                for form in FORMS if at.batch else FORMS[:2]:
                    order = parts[form[0]] + parts[form[1]] + parts[form[2]]
                    cost = read + self._against((left_form, right_form), form, result)
                    is_strided = False
                    if at.batch:
                        written = self._rows(form, size, parts[form[2]], result, 1 + sum(self.grads))
                        strided, plain = self._written(size, (left_form, right_form), form, lying)
                        is_strided = repeated is not None or form[0] != 0 or strided < plain
                        cost += written + (strided if is_strided else plain)
                    if order not in found or cost < found[order].cost:
                        found[order] = Way(
                            order, cost, at, left, right, left_order, right_order, form, is_strided, repeated
                        )

    def _readings(self, side: int, at: Roles, repeated: int | None) -> Iterator[tuple[Modes, Form, float]]:
        """Yield the orders in which a side is read, their forms, and what that costs in both passes."""
        order = self.sides[side].order
        parts = (() if repeated == side else at.batch, (at.left, at.right)[side], at.summed)
        orders = {parts[form[0]] + parts[form[1]] + parts[form[2]]: form for form in reversed(FORMS)}
        if order in orders:
            form = orders[order]
            passes = 1 + self.grads[1 - side] + self.grads[side]
            batch = size_of(self.plan, at.batch)
            yield order, form, self._rows(form, batch, parts[form[2]], self.sizes[side], passes)
        for form in FORMS[:2] if repeated in (None, side) else ():
            wanted = parts[0] + parts[form[1]] + parts[form[2]]
            if wanted != order:
                copy = cost_of_copy(self.plan, self.machine, order, wanted)
                yield wanted, form, (1 + self.grads[side]) * copy

    def _rows(self, form: Form, batch: int, last: Modes, size: int, passes: int) -> float:
        """Return the cost of the rows of an array whose batch is not first, which are far apart in memory."""
        if form[0] == 0:
            return 0.0
        run = size_of(self.plan, last)
        number = min(self.machine.far, self.machine.row / run)
        return passes * number * size * min(1.0, run * batch / PAGE)

    def _against(self, forms: tuple[Form, Form], form: Form, size: int) -> float:
        """Return the extra cost of a product whose operands both lie against the result, in both passes."""
        left, right, result = forms[0][-1] == SUMMED, forms[1][-1] != SUMMED, form[-1] == RIGHT
        is_against = left == right != result
        return self.machine.against * (sum(self.sizes) + size) * (1 + sum(self.grads)) if is_against else 0.0

    def _written(
        self, batch: int, forms: tuple[Form, Form], form: Form, lying: tuple[bool, bool]
    ) -> tuple[float, float]:
        """Return the extra cost of a strided product of a batch, and of one that torch differentiates.

        Torch gives the gradient of each side as the products have it, and it is copied where that side lies otherwise.
        The gradient of a factor that was copied is copied back in any case.
        """
        swapped = form.index(2) < form.index(1)
        natural = (FORMS[swapped], FORMS[not swapped])
        plain = 0.0
        for side, size in enumerate(self.sizes):
            is_factor = self.factors[side]
            if self.grads[side] and forms[side] != natural[side] and (lying[side] or not is_factor):
                plain += (self.machine.turn if is_factor else self.machine.scatter) * size + self.machine.call
        arrays = [form, *(one for one, grad in zip(forms, self.grads, strict=True) if grad)]
        pieces = sum(one[0] != 0 for one in arrays) * batch
        strided = self.machine.piece * pieces + self.machine.function * (1.0 if any(self.grads) else 0.2)
        return strided, plain

    def _repetition(self, repeated: int | None, batch: int) -> float:
        """Return the cost of small products instead of one large one, whose gradients of the repeated side add up."""
        if repeated is None:
            return 0.0
        gradients = batch * self.sizes[repeated] + self.machine.call if self.grads[repeated] else 0
        return self.machine.item * batch * (1 + sum(self.grads)) + 2 * gradients

    def _slowness(self, roles: Roles, right_order: Modes) -> float:
        """Return the extra cost of the gradient of the right operand if its short side is innermost."""
        free, summed = size_of(self.plan, roles.right), size_of(self.plan, roles.summed)
        inner, outer = (summed, free) if right_order[-1:] == roles.summed[-1:] else (free, summed)
        is_slow = inner * self.machine.skinny <= outer
        return size_of(self.plan, roles.left) * free * summed / self.machine.slow if is_slow else 0.0


def roles_of(left: Modes, right: Modes, kept: Modes) -> Roles:
    """Return the roles of the modes of a step, each in the order of the first operand that has it."""
    both = [mode for mode in left if mode in right]
    return Roles(
        tuple(mode for mode in both if mode in kept),
        tuple(mode for mode in left if mode not in right),
        tuple(mode for mode in right if mode not in left),
        tuple(mode for mode in both if mode not in kept),
    )


def _orders(other: Modes, modes: Modes) -> Iterable[Modes]:
    """Return these modes in the order given and in the order of the other operand."""
    return dict.fromkeys((modes, tuple(mode for mode in other if mode in modes)))
