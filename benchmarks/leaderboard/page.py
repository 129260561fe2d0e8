"""The page of the table: drawn from records alone."""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
from labels import Label, place_labels
from matplotlib.figure import Figure
from records import Record, RecordError, replacing

__all__ = ["write_page"]

mpl.use("Agg")
KINDS: dict[str, tuple[Callable[[str], bool], str, str]] = {  # of methods: which names, and how they are drawn
    "PEFT": (lambda method: method.startswith("PEFT"), "s", "#444444"),
    "unit, balanced rates": (lambda method: method.endswith("unit"), "o", "#1f5f9e"),
    "paper's scale, one rate": (lambda method: True, "^", "#b3450f"),
}
MARK = "<!-- drawn by benchmarks/leaderboard; do not edit -->"


def write_page(records: Sequence[Record], docs: Path) -> None:
    """Write leaderboard.md and its pictures into a folder. Raises RecordError for records that make no table."""
    check_alike(records)
    try:
        docs.mkdir(parents=True, exist_ok=True)
        _write(records, docs)
    except OSError as error:
        raise RecordError(f"{docs}: expected a place to write the page, got {error.strerror}") from error


def check_alike(records: Iterable[Record]) -> None:
    """Raise RecordError unless tasks have one number of steps, and the final runs of a method one rate."""
    steps: dict[str, int] = {}
    rates: dict[tuple[str, str], float] = {}
    for one in records:
        key = one.key
        if (wanted := steps.setdefault(key.task, one.steps)) != one.steps:
            raise RecordError(f"{key.file}: expected a run of {wanted} steps as others of {key.task}, got {one.steps}")
        rate = rates.setdefault((key.task, key.method), key.rate) if key.phase == "final" else key.rate
        if rate != key.rate:
            raise RecordError(
                f"{key.file}: expected final runs of {key.method} at one rate, got {rate:.3g} and {key.rate:.3g}; "
                "remove those of the search that is no longer the last one"
            )


def _write(records: Sequence[Record], docs: Path) -> None:
    parts = [MARK, *_head(records)]
    for task in dict.fromkeys(one.key.task for one in records):
        mine = [one for one in records if one.key.task == task]
        parts += [f"## {task}", ""]
        final = [one for one in mine if one.key.phase == "final"]
        if final:
            picture = docs / f"leaderboard_{task}.png"
            _draw_pareto(task, final, picture)
            parts += [*_table(final), "", f"![Test score against trained numbers]({picture.name})", ""]
        searched = [one for one in mine if one.key.phase == "search"]
        if searched:
            picture = docs / f"leaderboard_{task}_rates.png"
            what = "Validation loss by learning rate (mean over the seeds of the search; x: one diverged):"
            parts += [what, "", *_rates(searched), ""]
            if _draw_rates(task, searched, picture):
                parts += [f"![Validation loss against learning rate]({picture.name})", ""]
    with replacing(docs / "leaderboard.md") as draft:
        draft.write_text("\n".join(parts).rstrip() + "\n", encoding="utf-8")


def _head(records: Sequence[Record]) -> list[str]:
    if not records:
        return ["# Leaderboard", "", "There are no records.", ""]
    made = ", ".join(f"{name} {version}" for name, version in records[0].versions.items())
    return [
        "# Leaderboard",
        "",
        f"Drawn from {len(records):,} records in `results/`, made with",
        f"{made}. Every method has the same grid of",
        "learning rates, searched on the validation split with seeds of its own; the best rate then trains each of",
        "the final seeds, and only these read the test split. A family by its name has its paper's scale and one rate",
        'for all factors; with "unit" it has the scale `unit` and balanced rates: see',
        "[Learning rates](../explanation/learning_rate.md).",
        "",
    ]


def _table(final: Sequence[Record]) -> list[str]:
    head = ["method", "rate", "trained numbers", "file (KB)", "seconds", "memory (MB)", "test (%)", "validation loss"]
    head += ["forgetting"] if any(one.forgetting for one in final) else []
    rows = []
    seeds = sorted({one.key.seed for one in final})
    for method, runs in _by_method(final).items():
        own = [one.key.seed for one in runs]
        tests = [100 * one.test for one in runs if one.test is not None]
        row = [
            method if len(own) == len(seeds) else f"{method} (seeds {', '.join(map(str, sorted(own)))})",
            f"{runs[0].key.rate:.3g}",
            f"{runs[0].numbers:,}",
            f"{runs[0].bytes / 1000:,.0f}",
            f"{statistics.mean(one.seconds for one in runs):.1f}",
            f"{statistics.mean(one.memory for one in runs):,.0f}",
            f"{statistics.mean(tests):.1f} ± {_error(tests):.1f}",
            f"{statistics.mean(one.loss for one in runs):.3f}",
        ]
        if len(head) > len(row):
            rises = [one.forgetting[1] - one.forgetting[0] for one in runs if one.forgetting]
            row.append(f"{statistics.mean(rises):+.2f}" if rises else "-")
        rows.append((statistics.mean(one.loss for one in runs), row))
    lines = [row for _, row in sorted(rows)]
    size = max(one.test_size for one in final)
    note = (
        f"Mean and standard error over seeds {', '.join(map(str, seeds))}; {final[0].steps} steps; {size:,} test "
        f"examples, whose own standard error is up to {50 / math.sqrt(size):.1f} points. Forgetting is the rise of the "
        "loss on what the host could do before."
    )
    return [*_markdown([head, *lines]), "", note]


def _means(runs: Iterable[Record]) -> dict[float, float]:
    """Return rate -> mean validation loss over the seeds; infinite if one of them diverged."""
    found: dict[float, list[float]] = {}
    for one in runs:
        good = not one.diverged and math.isfinite(one.loss)
        found.setdefault(one.key.rate, []).append(one.loss if good else math.inf)
    return {rate: statistics.fmean(losses) for rate, losses in sorted(found.items())}


def _rates(searched: Sequence[Record]) -> list[str]:
    grid = sorted({one.key.rate for one in searched})
    rows = [["method", *(f"2^{math.log2(rate):g}" for rate in grid), "best"]]
    for method, runs in _by_method(searched).items():
        means = _means(runs)
        texts = {rate: f"{mean:.3f}" if math.isfinite(mean) else "x" for rate, mean in means.items()}
        best = min(means, key=lambda rate: means[rate])
        last = f"2^{math.log2(best):g}" if math.isfinite(means[best]) else "-"
        rows.append([method, *(texts.get(rate, "") for rate in grid), last])
    return _markdown(rows)


def _draw_rates(task: str, searched: Sequence[Record], path: Path) -> bool:
    """Draw families at their papers' scales, and under unit with balanced rates. Return whether there are any."""
    tables = {name: _means(runs) for name, runs in _by_method(searched).items()}
    families = list(
        dict.fromkeys(name.removesuffix(" unit") for name in tables if f"{name.removesuffix(' unit')} unit" in tables)
    )
    if not any(name in tables for name in families):  # none beside which another could be seen
        return False
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True, layout="constrained")
    titles = ("papers' scales, one rate", "unit, balanced rates")
    for axis, suffix, title in zip(axes, ("", " unit"), titles, strict=True):
        for number, name in enumerate(families):
            means = tables.get(name + suffix, {})
            style = "-" if number < len(mpl.color_sequences["tab10"]) else "--"
            axis.plot([*means], [*means.values()], style, marker="o", ms=3, label=name)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set(title=f"{task}: {title}", xlabel="learning rate")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("validation loss")
    axes[1].legend(fontsize=7)
    _save(figure, path)
    return True


def _draw_pareto(task: str, final: Sequence[Record], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(8.5, 5.5), layout="constrained")
    labels: dict[str, list[Label]] = {kind: [] for kind in KINDS}
    for method, runs in _by_method(final).items():
        kind = next(kind for kind, (is_one, _, _) in KINDS.items() if is_one(method))
        tests = [100 * one.test for one in runs if one.test is not None]
        labels[kind].append(Label(method, runs[0].numbers, statistics.mean(tests), _error(tests), KINDS[kind][2]))
    for kind, some in labels.items():
        x, y, error = ([getattr(one, name) for one in some] for name in ("x", "y", "error"))
        _, marker, color = KINDS[kind]
        if some:
            axes.errorbar(x, y, yerr=error, fmt=marker, color=color, ms=5, capsize=2, elinewidth=0.8, label=kind)
    axes.set(xscale="log", xlabel="trained numbers", ylabel="test (%)", title=task)
    axes.margins(x=0.15)  # for the names of the first and the last
    figure.legend(loc="outside lower center", ncols=len(KINDS), fontsize=8)
    place_labels(axes, [one for some in labels.values() for one in some])
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    try:
        with replacing(path) as draft:
            figure.savefig(draft, format="png", dpi=120)
    finally:
        plt.close(figure)


def _by_method(records: Iterable[Record]) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {}
    for one in records:
        found.setdefault(one.key.method, []).append(one)
    return found


def _error(values: Sequence[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def _markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return [lines[0], "|---|" + "---:|" * (len(rows[0]) - 1), *lines[1:]]
