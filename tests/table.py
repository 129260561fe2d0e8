"""Every family and its options, with ranks and sizes that fit any weight with even axes, for all test suites.

Add a new family here; the tests of the laws, the core, the parity with each framework and the counts read the table.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product

from tnadapt import Adapter, AdapterSpec, Site, families, grid
from tnadapt.sizes import required

STANDARD = {"layer", "kind", "site"}
KERNEL = (3, 2)  # the other axes of a weight with more than two
VALUES = 2  # number of values of each coordinate other than layer, kind and site


@dataclass(frozen=True)
class Case:
    """A spec, the sizes of its bonds (3 by default; None if none is free), and sizes of modes of the weight."""

    spec: AdapterSpec
    rank: int | Mapping[str, int] | None = 3
    sizes: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_linear(self) -> bool:
        """Whether the spec fits any weight with two axes, at sites with only the coordinates of a grid."""
        return len(self.spec.axes) == 2 and STANDARD.issuperset(self.spec.site_modes) and not has_qubits(self.spec)

    def bind(self, *, layers: int, kinds: Mapping[str, tuple[int, int]], seed: int = 0) -> Adapter:
        """Bind the spec to a grid of sites, with kernel axes and other coordinates if the spec has them."""
        sites = places(self.spec, layers=layers, kinds=kinds)
        return self.spec.bind(sites, rank=self.rank, sizes=self.sizes, seed=seed, overparametrized=True)


def has_qubits(spec: AdapterSpec) -> bool:
    """Return whether a spec has gates on qubits."""
    return any(factor.map == "rotation" for factor in spec.arrays.values())


def places(spec: AdapterSpec, *, layers: int, kinds: Mapping[str, tuple[int, ...]]) -> tuple[Site, ...]:
    """Return a grid of sites with the axes and the coordinates that the spec requires.

    The axes of a spec with qubits have the sizes of its qubits, whatever shape is given.
    """
    further = [mode for mode in spec.site_modes if mode not in STANDARD]
    shaped = {kind: (*shape, *KERNEL[: len(spec.axes) - 2]) for kind, shape in kinds.items()}
    if has_qubits(spec):
        shaped = dict.fromkeys(kinds, tuple(2 ** len(axis) for axis in spec.axes))
    return tuple(
        Site(
            ".".join([site.path, *map(str, at)]),
            site.shape,
            dict(site.coordinates) | dict(zip(further, at, strict=True)),
        )
        for site in grid(layers=layers, kinds=shaped)
        for at in product(range(VALUES), repeat=len(further))
    )


FAMILIES = {
    "lora": Case(families.lora()),
    "lora rank 1": Case(families.lora(alpha=3), 1),
    "lora stabilized": Case(families.lora(rank_stabilized=True, gaussian=True)),
    "lora frozen a": Case(families.lora(frozen_a=True)),
    "lora_xs": Case(families.lora_xs(), {"p": 2, "q": 3}),
    "lora_xs sigma": Case(families.lora_xs(sigma=1e-5), 2),
    "lora_xs svd": Case(families.lora_xs(start="svd"), {"p": 2, "q": 3}),
    "pissa": Case(families.pissa(), 2),
    "abba": Case(families.abba(), {"p": 2, "q": 3}),
    "dota": Case(families.dota(order=2), 3),
    "dota 3": Case(families.dota(alpha=2), {"r1": 2, "r2": 3}),
    "lotr neutral": Case(families.lotr(start="neutral"), 2),
    "lotr svd": Case(families.lotr(start="svd", over="layer"), {"p": 2, "q": 3}),
    "lora_pt": Case(families.lora_pt(), {"r": 2, "q": 2}),
    "tcurlora": Case(families.tcurlora(), {"p": 2, "q": 3}),
    "mtlora_tasks": Case(families.mtlora_tasks(), 2),
    "mtlora_tasks learned": Case(families.mtlora_tasks(learned_scale=True, alpha=2), 2),
    "mtlora_tasks shared": Case(families.mtlora_tasks(shared=True, learned_scale=True, alpha=2), {"r": 2, "p": 1}),
    "mtlora": Case(families.mtlora(), {"p": 2, "q": 3}),
    "mtlora icfm": Case(families.mtlora(variant="icfm"), {"p": 2, "s": 3}),
    "mtlora ctcm": Case(families.mtlora(variant="ctcm", alpha=2), {"p": 2, "s": 2, "q": 3}),
    "mtlora dtsm": Case(families.mtlora(variant="dtsm"), 2),
    "triadaptlora": Case(families.triadaptlora(), {"p": 2, "q": 3}),
    "hira": Case(families.hira(), 2),
    "losa": Case(families.losa(), 2),
    "ssl": Case(families.ssl(), None),
    "ssb": Case(families.ssb(alpha=2), None),
    "nola": Case(families.nola(), {"r": 2, "n": 2, "k": 3}),
    "rasa": Case(families.rasa(), {"p": 1, "q": 2}),
    "bslora": Case(families.bslora(), {"p": 1, "q": 1, "r": 2}),
    "bslora gate": Case(families.bslora(mode="gate"), {"p": 1, "q": 1, "r": 2, "a": 3, "b": 2}),
    "bslora kron": Case(families.bslora(mode="kron", alpha=3), 1, {"o2": 2, "i2": 2}),
    "gralora hybrid": Case(families.gralora(hybrid=True), {"r": 2, "h": 1}, {"o1": 2, "i1": 2}),
    "cara blocks": Case(families.cara(part="blocks", alpha=2), 2),
    "randlora": Case(families.randlora(), {"r": 2, "n": 3}),
    "randlora short out": Case(families.randlora(short="out", alpha=3), {"r": 3, "n": 2}),
    "tlora": Case(families.tlora(), {"p": 2, "q": 3}),
    "tlora alpha": Case(families.tlora(alpha=0.5), 1),
    "vera": Case(families.vera()),
    "vera rank 1": Case(families.vera(d_initial=1), 1),
    "loha": Case(families.loha(), {"p": 2, "q": 3}),
    "lokr": Case(families.lokr()),
    "lokr whole": Case(families.lokr(low_rank=False, alpha=2), None),
    "krona": Case(families.krona(alpha=2), None),
    "kadaptation": Case(families.kadaptation(), 2),
    "kadaptation factorized": Case(families.kadaptation(factorized=True), 3, {"o1": 2, "i1": 2}),
    "superlora": Case(families.superlora(), 2),
    "superlora 1": Case(families.superlora(parts=1, alpha=2), {"p1": 2, "q1": 3, "t": 2}),
    "gralora": Case(families.gralora(), 2, {"o1": 2, "i1": 2}),
    "monarch": Case(families.monarch(), 1, {"i1": 2, "o2": 2}),
    "monarch wide": Case(families.monarch(alpha=2), 2),
    "btt": Case(families.btt(), 2),
    "mora": Case(families.mora(), None, {"o2": 2, "i2": 2}),
    "mora 6": Case(families.mora(variant=6, alpha=2), None, {"o2": 2, "i2": 2}),
    "c3a": Case(families.c3a(alpha=2), None, {"o2": 2, "i2": 2}),
    "c3a rectangular": Case(families.c3a(), None),
    "miss": Case(families.miss(alpha=2), None, {"i2": 2}),
    "miss mini": Case(families.miss(variant="mini"), None, {"o2": 2, "i2": 2}),
    "miss bat": Case(families.miss(variant="bat"), None, {"o2": 2, "i2": 2}),
    "bora": Case(families.bora(), 2, {"g": 2, "h": 2}),
    "tinylora": Case(families.tinylora(), {"p": 2, "q": 2, "k": 3}),
    "tinylora tied": Case(families.tinylora(tied=True, alpha=2), {"p": 2, "q": 2, "k": 3}),
    "sharelora": Case(families.sharelora()),
    "sharelora b": Case(families.sharelora(share="B", alpha=2), 2),
    "sharelora both": Case(families.sharelora(share="A B"), 2),
    "kradapter": Case(families.kradapter(), None),
    "kradapter short out": Case(families.kradapter(short="out", alpha=1), None),
    "cp": Case(families.cp()),
    "cp 1 2": Case(families.cp(out_order=1, in_order=2, alpha=2), 2),
    "craft": Case(families.craft(alpha=2), {"p": 2, "a": 2, "q": 3, "b": 3}),
    "adaring": Case(families.adaring(alpha=2), {"a": 2, "b": 3, "c": 2}),
    "oft": Case(families.oft(), None, {"i": 2}),
    "oft shared": Case(families.oft(shared_blocks=True), None, {"i": 2}),
    "hra": Case(families.hra(reflections=2), None),
    "hra free": Case(families.hra(reflections=3, start="free"), None),
    "svdiff": Case(families.svdiff(alpha=2), None),
    "soda": Case(families.soda(order=2), None),
    "soda delta": Case(families.soda(order=1, delta=1e-3), None),
    "lotr": Case(families.lotr(), {"p": 2, "q": 3}),
    "lotr by layer": Case(families.lotr(alpha=2, over="layer"), 2),
    "lotr_tt": Case(families.lotr_tt(), 2),
    "lotr_tt 1 2": Case(families.lotr_tt(out_order=1, in_order=2), {"r1": 2, "r2": 3, "r3": 2}),
    "lorta": Case(families.lorta(), 2, {"head": 2}),
    "lorta heads in": Case(families.lorta(heads="in"), 3, {"head": 2}),
    "lorta by layer": Case(families.lorta(over="layer"), 2, {"dim": 2}),
    "lorta by kind": Case(families.lorta(over="kind", rank_stabilized=True), 2, {"head": 1}),
    "lorta alone": Case(families.lorta(over=""), 2, {"head": 2}),
    "tera": Case(families.tera(out_order=2, in_order=2), 2),
    "tera 2 1": Case(families.tera(out_order=2, in_order=1, alpha=2), 3),
    "tera 1 1": Case(families.tera(out_order=1, in_order=1), 4),
    "flora": Case(families.flora(), {"r_out": 2, "r_in": 3}),
    "flora kernel": Case(families.flora(kernel_axes=2), 2),
    "flora gaussian": Case(families.flora(kernel_axes=1, gaussian=True, alpha=4), 2),
    "fact_tk": Case(families.fact_tk(), {"p": 2, "q": 3, "t": 2}),
    "fact_tt": Case(families.fact_tt(), {"p": 2, "q": 3}),
    "cara": Case(families.cara(), 2, {"head": 2}),
    "tenslora": Case(families.tenslora(), 2),
    "tenslora heads": Case(families.tenslora(over="layer", heads="head dim"), 2, {"head": 2}),
    "tenslora interleaved": Case(families.tenslora(over="", heads="dim head"), 2, {"head": 2}),
    "tenslora cp": Case(families.tenslora(over="kind", cp=True, alpha=2)),
    "metatt": Case(families.metatt(), {"r1": 2, "r2": 3, "r3": 2}),
    "metatt heads": Case(families.metatt(order=5, alpha=2), 2, {"head": 2}),
    "tt_lora": Case(families.tt_lora(out_order=2, in_order=2), 2),
    "tt_lora centered": Case(families.tt_lora(out_order=1, in_order=2, start="centered"), 2),
    "tt_lora random": Case(families.tt_lora(out_order=2, in_order=1, start="free"), 2),
    "loretta": Case(families.loretta(out_order=2, in_order=1), 2),
    "loretta centered": Case(families.loretta(out_order=1, in_order=1, start="centered"), 2),
    "loretta random": Case(families.loretta(out_order=1, in_order=2, start="free"), 2),
    "householder": Case(families.householder(), 4),
    "quantum_peft": Case(families.quantum_peft(qubits=2), None),
    "quanta": Case(families.quanta(order=3), 3),
    "quanta 2": Case(families.quanta(order=2, alpha=2), None),
}

# For tests that go beyond a law; the laws themselves are tested for every family (tests/laws).
REPRESENTATIVES = (
    "lora",  # a product of two factors, one network per site
    "lorta",  # a hyperedge through five factors, two of them along site modes
    "pissa",  # centered, with starting values read from the host
    "vera",  # frozen factors shared by weights of all shapes
    "householder",  # factors with a map
)

# One family for each kind of spec, and for each reason of a policy: tests/laws/test_table.py checks it. A test of every
# family has these in every run, and the others in `make laws`, if what it tests does not depend on the family.
OF_EACH_KIND = (
    *REPRESENTATIVES,
    *("lora_xs sigma", "tinylora", "sharelora", "abba", "hira", "hra", "soda", "quantum_peft"),
    *("mora", "mora 6", "tcurlora", "craft", "lotr svd", "lora_pt", "dota 3", "adaring"),
    *("mtlora icfm", "mtlora_tasks shared", "tenslora cp", "tera 2 1", "flora kernel", "flora gaussian"),
    *("lotr", "tt_lora", "lotr_tt", "fact_tt"),  # whose bonds can be swept: few are
)


def required_of(spec: AdapterSpec) -> list[str]:
    """Return the modes whose sizes have to be given."""
    return [mode for mode, rule in spec.sizes.items() if rule == required()]
