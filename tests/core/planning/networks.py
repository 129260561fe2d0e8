"""Networks to plan: random ones, and one function for each kind that the planner must be quick with."""

import random

from hypothesis import strategies as st
from opt_einsum.paths import greedy, linear_to_ssa

from tnadapt._planning import Question, measure

LETTERS = "abcdef"


@st.composite
def questions(draw, most=5):
    """Random networks with hyperedges, scalars, outer products and random masks."""
    inputs = draw(st.lists(st.sets(st.sampled_from(LETTERS), max_size=4), min_size=1, max_size=most))
    carried = sorted(set().union(*inputs))
    often = {mode: sum(mode in modes for modes in inputs) for mode in carried}
    answer = tuple(mode for mode in carried if often[mode] == 1 or draw(st.booleans()))
    sizes = {mode: draw(st.sampled_from([1, 2, 3, 5, 8, 20])) for mode in carried}
    flags = st.lists(st.booleans(), min_size=len(inputs), max_size=len(inputs)).map(tuple)
    return Question(tuple(tuple(sorted(modes)) for modes in inputs), answer, sizes, draw(flags), draw(flags))


def all_trees(numbers):
    """Every binary tree over operands."""
    if len(numbers) == 1:
        yield numbers[0]
        return
    first, *others = numbers
    for mask in range(2 ** len(others) - 1):
        left = [first, *(number for place, number in enumerate(others) if mask >> place & 1)]
        right = [number for place, number in enumerate(others) if not mask >> place & 1]
        yield from ((one, two) for one in all_trees(left) for two in all_trees(right))


def numbered(tree, known):
    """The pairs of a nested tree."""
    pairs = []

    def number(node):
        if isinstance(node, int):
            return node
        pair = (number(node[0]), number(node[1]))
        pairs.append(pair)
        return known + len(pairs) - 1

    number(tree)
    return pairs


def cost(question, pairs, objective):
    return objective.of(measure(question, pairs)[2])


def pairs_by_opt_einsum(question):
    path = greedy(list(map(frozenset, question.inputs)), frozenset(question.answer), dict(question.sizes))
    return linear_to_ssa(path)


def tree_of(made, result):
    """The operands below a result of a plan, each as often as it is read, and the steps that make it, in order."""
    if result < len(made.operands):
        return [result], []
    step = made.steps[result - len(made.operands)]
    (left, before), (right, more) = (tree_of(made, side) for side in (step.left, step.right))
    return left + right, [*before, *more, result]


def path_of(made, result):
    """The operands of a term of a plan, and the pairs of its order, as numbers among them and what was made before."""
    leaves, steps = tree_of(made, result)
    places = {number: place for place, number in enumerate([*leaves, *steps])}
    known = len(made.operands)
    return leaves, [(places[made.steps[n - known].left], places[made.steps[n - known].right]) for n in steps]


def matrices(count, size=3):
    """A chain of matrices."""
    inputs = tuple((f"m{n}", f"m{n + 1}") for n in range(count))
    sizes = {f"m{n}": size + n % 4 for n in range(count + 1)}
    return Question(inputs, ("m0", f"m{count}"), sizes, (True,) * count, (False,) * count)


def applied(factors, sizes, into):
    """The question that applies factors to x of 1,024 tokens and the modes `into`; all need a gradient."""
    held = [mode for modes in factors for mode in modes]
    answer = tuple(mode for mode in dict.fromkeys(held) if held.count(mode) == 1 and mode not in into)
    count = len(factors)
    return Question(
        (("t", *into), *factors),
        ("t", *answer),
        {"t": 1024, **sizes},
        (True,) * (count + 1),
        (True,) + (False,) * count,
    )


def cp(count):
    """Every factor carries the bond."""
    ends = [f"m{n}" for n in range(count)]
    return applied([(end, "r") for end in ends], {"r": 4, **dict.fromkeys(ends, 2)}, ends[count // 2 :])


def chain(count, *, common=True, closed=False):
    """A tensor train; with `common` a bond that all factors carry beside, with `closed` a ring."""
    ends, bonds = [f"m{n}" for n in range(count)], [f"b{n}" for n in range(count)]
    factors = []
    for n, end in enumerate(ends):
        before = [bonds[n - 1]] if n or closed else []
        after = [bonds[n]] if n < count - 1 or closed else []
        factors.append((end, *before, *after, *(["c"] if common else [])))
    sizes = {"c": 4, **dict.fromkeys(ends, 2), **dict.fromkeys(bonds, 4)}
    return applied(factors, sizes, ends[count // 2 :])


def grid(rows, columns):
    """A sheet of factors, with open modes along one side."""
    factors = []
    for row in range(rows):
        for column in range(columns):
            modes = [f"h{row}.{column}", f"h{row}.{column + 1}", f"v{row}.{column}", f"v{row + 1}.{column}"]
            edges = {f"h{row}.0", f"h{row}.{columns}", f"v{rows}.{column}"}
            factors.append(tuple(mode for mode in modes if mode not in edges))
    sizes = {mode: 3 for modes in factors for mode in modes}
    return applied(factors, sizes, [f"v0.{column}" for column in range(columns // 2)])


def flags_of(generator, count):
    return tuple(generator.random() < 0.6 for _ in range(count)), tuple(n == 0 for n in range(count))


def hyper(count, seed, most=3):
    """A random network of small operands, many modes in three or more of them."""
    generator = random.Random(seed)
    modes = [f"m{n}" for n in range(count + 4)]
    inputs = tuple(tuple(generator.sample(modes, generator.randint(1, most))) for _ in range(count))
    carried = sorted({mode for operand in inputs for mode in operand})
    answer = tuple(m for m in carried if sum(m in operand for operand in inputs) == 1 or generator.random() < 0.15)
    sizes = {mode: generator.choice([2, 3, 4, 8, 16]) for mode in carried}
    return Question(inputs, answer, sizes, *flags_of(generator, count))


def graph(count, seed, degree=3):
    """A random network in which every bond joins two operands."""
    generator = random.Random(seed)
    inputs = [[f"o{n}"] if generator.random() < 0.3 else [] for n in range(count)]
    for number in range(count * degree // 2):
        for end in generator.sample(range(count), 2):
            inputs[end].append(f"e{number}")
    inputs = [modes or [f"o{n}"] for n, modes in enumerate(inputs)]
    sizes = {mode: generator.choice([2, 3, 4, 8, 16]) for modes in inputs for mode in modes}
    answer = tuple(sorted(mode for mode in sizes if mode.startswith("o")))
    return Question(tuple(map(tuple, inputs)), answer, sizes, *flags_of(generator, count))


def dense(count, seed, modes=30, share=0.4, sizes=(2, 3, 4)):
    """A random network in which each operand carries a large share of all modes."""
    generator = random.Random(seed)
    names = [f"m{n}" for n in range(modes)]
    inputs = tuple(tuple(mode for mode in names if generator.random() < share) or (names[0],) for _ in range(count))
    carried = sorted({mode for operand in inputs for mode in operand})
    answer = tuple(mode for mode in carried if generator.random() < 0.3)
    return Question(inputs, answer, {mode: generator.choice(sizes) for mode in carried}, *flags_of(generator, count))


def with_equal_operands(count, seed):
    """A random network of which many operands have equal modes and needs."""
    few = hyper(count // 2, seed)
    chosen = [random.Random(seed + n).randrange(count // 2) for n in range(count - count // 2)]
    inputs, grads = ((*of, *(of[n] for n in chosen)) for of in (few.inputs, few.needs_grad))
    return Question(inputs, few.answer, few.sizes, grads, (False,) * count)


KINDS = {
    "cp": cp(40),
    "chain with a common bond": chain(40),
    "chain": chain(40, common=False),
    "ring": chain(40, common=False, closed=True),
    "grid": grid(5, 8),
    "hyperedges": hyper(41, seed=3),
    "many hyperedges": hyper(41, seed=3, most=6),
    "graph": graph(41, seed=5, degree=4),
    "dense": dense(41, seed=0),
    "100 modes": dense(41, seed=0, modes=100),
    "1,000 modes": dense(41, seed=0, modes=1000),
}
