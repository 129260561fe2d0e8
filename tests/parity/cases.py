"""Cases for both bindings: every family with its options, custom specs, specs with maps, centered specs."""

from tests import table
from tnadapt import AdapterSpec, Site, frozen, grid, magnitude, masked, normal, over_rank, raw, same, trainable
from tnadapt.initializers import constant, host, ones, orthogonal
from tnadapt.sizes import like

KINDS = {"attn.q": (6, 4), "attn.v": (6, 4), "mlp.up": (4, 6)}
SITES = grid(layers=2, kinds=KINDS)
GAPS = tuple(
    Site(f"h.{layer}.{kind}", shape, {"layer": layer, "kind": kind})
    for layer in (11, 3)
    for kind, shape in {"q": (6, 4), "v": (6, 4), "up": (4, 6)}.items()
)

FAMILIES = {
    name: (case.spec, {"rank": case.rank, "sizes": case.sizes})
    for name, case in table.FAMILIES.items()
    if case.is_linear
}


def own(weight, over, scale=None, **factors):
    """Return a custom spec whose update need not start at 0: every factor has nonzero starting values."""
    return AdapterSpec(name="own", weight=weight, over=over, factors=factors, scale=scale or raw(0.5), start="free")


def t(modes):
    return trainable(modes)


REPRESENTATIVES = [name for name in table.REPRESENTATIVES if name in FAMILIES]

OWN = {
    "LoHa": own("out in", "", A=t("out r"), B=t("r in"), C=t("out q"), D=t("q in")),
    "LoKr": own("(o1 o2) (i1 i2)", "", A=t("o1 i1"), B=t("o2 r"), C=t("r i2"), scale=over_rank("r", alpha=4)),
    "CP": own("out in", "layer kind", A=t("out r"), B=t("r in"), L=t("layer r"), K=t("r kind"), s=t("r")),
    "out and in split": own("(o1 o2) (i1 i2)", "layer", A=t("o2 p i1"), B=t("p i2 q o1"), C=t("layer q")),
    "scalar": own("out in", "", A=t("out r"), s=t(""), B=t("in r")),
    "scalar first": own("out in", "", s=t(""), A=t("out r"), B=t("in r")),
    "two scalars": own("out in", "", s=t(""), D=t("out in"), u=frozen("", init=constant(0.7))),
    "one dense factor": own("out in", "", D=t("out in")),
    "one dense factor, turned": own("out in", "", D=t("in out")),
    "one split factor, mixed": own("(o1 o2) (i1 i2)", "", D=t("i2 o1 i1 o2")),
    "one dense factor for all": own("out in", "layer", D=t("in out")),
    "a dense factor a site": own("out in", "site", D=t("in site out")),
    "outer product": own("out in", "layer", a=t("out"), b=t("in layer")),
    "row scale": own("out in", "", a=t("out"), D=frozen("out in"), b=t("in")),
    "in mode in all": own("out in", "", A=t("in r"), B=t("r out in"), c=t("in")),
    "out mode in all": own("out in", "", A=t("in r out"), B=t("r out"), c=t("out")),
    "bond in four": own("out in", "", A=t("out r"), B=t("in r"), c=t("r"), d=t("r")),
    "bond of stacks only": own(
        "out in", "layer kind", D=t("out in p"), L=t("layer p"), K=t("kind p q"), M=t("q layer")
    ),
    "chain": own("(o1 o2) (i1 i2)", "site", A=t("o1 p"), B=t("p o2 q"), C=t("q i1 r"), D=t("r i2 u"), S=t("u site")),
    "site mode twice": own("out in", "layer", A=t("layer out p"), B=t("in layer p"), C=t("p layer")),
    "constant frozen": own(
        "out in", "", A=t("out r"), B=frozen("r in", init=constant(0.3)), c=frozen("r", init=ones())
    ),
    "frozen at both ends": own("out in", "site", A=frozen("in p site"), B=t("p q site"), C=frozen("out q")),
    "orthogonal": own("out in", "layer", A=frozen("out r", init=orthogonal()), B=t("r in layer")),
    "all sizes from one": own("out in", "kind", A=t("out r"), B=t("r in"), k=t("kind")),
}

MAPPED = {  # specs whose maps make square nodes
    name: AdapterSpec(
        name="mapped", weight="out in", over=over, factors=nodes, scale=raw(0.5), start="free", sizes=sizes
    )
    for name, over, nodes, sizes in (
        (
            "reflections",
            "",
            {"u": trainable("out a", map="householder"), "s": t("a b"), "v": trainable("in b", map="householder")},
            {"a": like("out"), "b": like("in")},
        ),
        ("cayley", "layer", {"Q": trainable("layer out a", map="cayley"), "B": t("a in")}, {"a": like("out")}),
        ("rotation", "layer", {"A": t("out p"), "R": trainable("layer p q", map="rotation"), "B": t("q in")}, {}),
    )
}

CENTERED = {
    "two factors": {"A": trainable("out r"), "B": trainable("r in")},
    "stacked": {"A": trainable("layer out r"), "B": trainable("r in"), "s": trainable("layer")},
    "with frozen": {"A": trainable("out r", init=normal(0.3)), "F": frozen("r q"), "B": trainable("q in layer")},
    "dense": {"D": trainable("out in")},
}

SUMS = {  # specs of several terms, and specs that have a factor more than once
    name: AdapterSpec(
        name="sum", weight="out in", over=over, factors=factors, terms=terms, scale=raw(0.5), start="free"
    )
    for name, over, factors, terms in (
        ("two pairs", "", {"A": t("r in"), "B": t("out r"), "C": t("q in"), "D": t("out q")}, ["B A", "D C"]),
        ("a common half", "layer", {"A": t("r in"), "B": t("out r"), "C": t("layer out r")}, ["B A", "- C A"]),
        ("a common core", "", {"A": t("r in"), "B": t("out q"), "C": t("q r"), "s": t("")}, ["B C A", "- B C A s"]),
        (
            "less its start",
            "kind",
            {"A": t("r in"), "B": t("kind out r"), "A0": same("A", at_start=True)},
            ["B A", "- B A0"],
        ),
        ("a square", "", {"A": t("q in"), "C": t("r s"), "Ct": same("C", "q s"), "B": t("out r")}, []),
        ("an entrywise square", "layer", {"A": t("layer r in"), "A2": same("A"), "B": t("out r")}, []),
        ("a negative term", "", {"A": t("r in"), "B": t("out r")}, ["- B A"]),
        ("one term of one factor", "", {"D": t("out in"), "A": t("r in"), "B": t("out r")}, ["D", "B A"]),
        ("shared by all shapes", "", {"A": trainable("r in", shared=True), "B": t("out r")}, []),
        (
            "shared in two terms",
            "kind",
            {"A": trainable("r in", shared=True), "B": t("kind out r"), "C": trainable("out r", shared=True)},
            ["B A", "C A"],
        ),
    )
}

HOSTS = {  # specs with the host's weight, or parts of its SVD, as factors
    name: AdapterSpec(name="host", weight=weight, factors=factors, terms=terms, scale=raw(0.5), start="free", over=over)
    for name, weight, over, factors, terms in (
        ("gate", "out in", "", {"W": frozen("out in", init=host()), "A": t("r in"), "B": t("out r")}, []),
        (
            "gate of a stack",
            "out in",
            "layer",
            {"W": frozen("out in", init=host()), "A": t("layer r in"), "B": t("out r")},
            [],
        ),
        (
            "blocks turned",
            "(g o) in",
            "",
            {
                "W": frozen("g o in", init=host()),
                "W2": same("W", "g a in"),
                "R": trainable("g o a", map="cayley"),
            },
            ["R W2", "- W"],
        ),
        (
            "spectrum",
            "out in",
            "kind",
            {"U": frozen("out k", init=host("left")), "V": frozen("k in", init=host("right")), "d": t("kind k")},
            [],
        ),
        ("values", "out in", "", {"S": frozen("k", init=host("values")), "A": t("k in"), "B": t("out k")}, []),
        ("pattern", "out in", "", {"M": frozen("out in", init=host("mask")), "A": t("r in"), "B": t("out r")}, []),
        ("square", "out in", "", {"W": frozen("out in", init=host()), "W2": same("W"), "s": t("")}, ["W W2 s"]),
    )
}

WRAPPED = {  # a magnitude on every family, on every custom spec, and a mask
    **{f"magnitude {name}": (magnitude(spec), sizes) for name, (spec, sizes) in FAMILIES.items()},
    **{
        f"magnitude {name}": (
            magnitude(spec),
            {"rank": 2} | ({"sizes": {"g": 2}} if "g" in spec.weight.split("(")[-1] else {}),
        )
        for some in (OWN, MAPPED, SUMS, HOSTS)
        for name, spec in some.items()
    },
    **{f"mask {name}": (masked(FAMILIES[name][0]), FAMILIES[name][1]) for name in ("lora", "lotr", "lokr", "loha")},
    "both": (magnitude(masked(FAMILIES["lora"][0])), FAMILIES["lora"][1]),
}
