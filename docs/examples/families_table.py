"""Writes the table of docs/families.md: every family with its counts and rank bounds on two models, from the specs."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tnadapt import AdapterSpec, Site, count, families, find_host, rank_bound

PAGE = Path(__file__).parents[1] / "families.md"
BEGIN, END = "<!-- made by docs/examples/families_table.py -->", "<!-- end of what is made -->"
HOSTS = {"roberta-base": "RoBERTa-base", "llama-2-7b": "LLaMA-2-7B"}
HEADS = {768: 12, 4096: 32}
TASKS = ("a", "b")


@dataclass(frozen=True)
class Setting:
    """The sizes of the bonds, 8 unless told, and of modes of the weight."""

    rank: int | Mapping[str, int] = 8
    sizes: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        """As in r=8 n=96, sizes behind a semicolon."""
        ranks = self.rank if isinstance(self.rank, int) else " ".join(f"{k}={v}" for k, v in self.rank.items())
        sizes = " ".join(f"{k}={v}" for k, v in self.sizes.items())
        return f"{ranks}; {sizes}" if sizes else str(ranks)


def setting(family: str, width: int) -> Setting:
    """What each family is bound with on square weights of this width."""
    heads = {"head": HEADS[width]}
    shape = {768: (8, 8, 12), 4096: (16, 16, 16)}[width]
    wires = dict.fromkeys("io", {768: (4, 4, 6, 8), 4096: (16, 8, 8, 4)}[width])
    special = {
        "btt": Setting(1),
        "cara": Setting(8, heads),
        "gralora": Setting(4, {"o1": 2, "i1": 2}),
        "kadaptation": Setting(32, {"o1": 32, "i1": 32}),
        "krona": Setting(1),
        "loretta": Setting(5, {"r": 8, **{f"{side}{n}": size for side in "io" for n, size in enumerate(shape, 1)}}),
        "lorta": Setting(8, heads),
        "monarch": Setting(1, {"i1": 4, "o2": 4}),
        "mora": Setting(1, {"o2": 96, "i2": 96} if width == 768 else {"o2": 256, "i2": 256}),  # noqa: PLR2004
        "quanta": Setting(16, {f"{side}{n}": size for side, all_ in wires.items() for n, size in enumerate(all_, 1)}),
        "randlora": Setting({"r": 8, "n": math.ceil(width / 8)}),
    }
    return special.get(family, Setting())


def sites_of(spec: AdapterSpec, host: str) -> tuple[Site, ...]:
    """Query and value of every layer, once for each task where the spec stacks tasks."""
    sites = find_host(host).sites()
    if "task" not in spec.site_modes:
        return sites
    return tuple(
        Site(f"{site.path}.{task}", site.shape, dict(site.coordinates) | {"task": task})
        for site in sites
        for task in TASKS
    )


def row(family: str) -> str:
    """One line: name, update, formula, where it starts, and on each model its count and its rank bound."""
    make = getattr(families, family)
    spec: AdapterSpec = make()
    first = (make.__doc__ or "").partition("\n")[0]
    said = re.fullmatch(r"(.*) \(([^()]*)\)\.", first)
    if said is None:
        raise ValueError(f"{family}: its docstring begins {first!r}, not with 'words (source).'")
    zero = [name for name, factor in spec.factors.items() if factor.init.is_zero]
    cells = [f"`{family}`", said[1].replace("*", "\\*"), f"`{spec.formula()}`"]
    cells.append(f"{zero[0]} = 0" if zero else "less its start")
    for host in HOSTS:
        sites = sites_of(spec, host)
        if family == "quantum_peft":
            qubits = math.log2(sites[0].shape[1])
            if not qubits.is_integer():
                cells.append("its axes are no power of two")
                continue
            spec = make(qubits=int(qubits))
        chosen = setting(family, sites[0].shape[1])
        adapter = spec.bind(sites, rank=chosen.rank if set(spec.bonds) - set(spec.ties) else None, sizes=chosen.sizes)
        told = "" if str(chosen) == "8" else f" ({chosen})"
        cells.append(f"{count(adapter).trainable:,}; {rank_bound(adapter, sites[0]).rank:,}{told}")
    return "| " + " | ".join([*cells, said[2]]) + " |"


def table() -> str:
    """The whole table, in the order of the names."""
    models = " | ".join(f"{name}: trains; rank at most" for name in HOSTS.values())
    head = f"| family | update | a network trains | starts at 0 by | {models} | source |"
    return "\n".join([head, "|---|---|---|---|---|---|---|", *(row(family) for family in families.__all__)])


def page(text: str, made: str) -> str:
    """The page with the table that was made in its place."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{made}\n\n{END}{rest.partition(END)[2]}"


def main() -> None:
    """Rewrites docs/families.md."""
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), table()), encoding="utf-8")


if __name__ == "__main__":
    main()
