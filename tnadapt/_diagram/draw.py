"""Draw the tensor-network diagram of a spec or a network: SVG for a page, text for a terminal."""

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape

from tnadapt._diagram.layout import Point, level
from tnadapt._diagram.scene import LINE, PLAIN, SMALL, Box, Scene, Stroke, line, text_width
from tnadapt._diagram.score import WIDTH, score
from tnadapt._diagram.subject import Subject
from tnadapt._errors import SpecError
from tnadapt._language import Adapter, AdapterSpec, Factor, Network, Node, Term, text_of
from tnadapt._signature import answers, mistake, told
from tnadapt._structure import minimum_cut
from tnadapt._table import wrap
from tnadapt.families import SpecLike, spec_of

__all__ = ["Diagram", "draw"]

PAD = 20.0  # distance from the picture to the border of its card
LEAST = 470.0  # smallest width of a card inside its border
TITLE = 16.0  # font size
KEY = 22.0  # width of a symbol in the legend
FONT = "system-ui, -apple-system, 'Segoe UI', 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"
PAPER, RIM, INK, QUIET = "#fcfcfd", "#d0d7de", "#1f2937", "#57606a"
FILL, EDGE, SITE, CUT = "#dbeafe", "#1e3a8a", "#b45309", "#cf222e"
SIZES = {"factor": PLAIN, "title": TITLE}
COLOURS = {"site": SITE, "note": QUIET, "axis": QUIET}
HATCH = (
    '<defs><pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<rect width="6" height="6" fill="#f3f4f6"/><rect width="1.6" height="6" fill="#c3c9d2"/></pattern></defs>'
)


@dataclass(frozen=True)
class Diagram:
    """A diagram of a network: `svg()` for a page, `str()` for a terminal.

    Factors are nodes. A frozen factor is hatched; a factor that several sites share has a double border. Modes are
    edges, with a dot where they join more than two ends. Out legs point to the left and in legs to the right; dashed
    legs are site modes. `boxes` are all nodes, dots and texts with their positions; `strokes` are all lines.
    """

    title: str
    text: str
    boxes: tuple[Box, ...]
    strokes: tuple[Stroke, ...]
    width: int
    height: int

    def __str__(self) -> str:
        """Return the diagram as text, with one row per factor and one column per mode."""
        return self.text

    def svg(self) -> str:
        """Return a complete SVG document with a light background, without scripts or references."""
        factors = [box for box in self.boxes if box.kind in ("factor", "key")]
        lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width}" height="{self.height}" '
            f'viewBox="0 0 {self.width} {self.height}" role="img" font-family="{FONT}">',
            f"<title>{escape(self.title)}</title>",
            *([HATCH] if any(box.is_frozen for box in factors) else []),
            f'<rect x="0.5" y="0.5" width="{self.width - 1}" height="{self.height - 1}" rx="10" '
            f'fill="{PAPER}" stroke="{RIM}"/>',
            *(_path(stroke) for stroke in self.strokes if stroke.kind != "cut"),
            *(line for box in self.boxes for line in _drawn(box)),
            *(_path(stroke) for stroke in self.strokes if stroke.kind == "cut"),
            "</svg>",
        ]
        return "\n".join(lines) + "\n"

    def _repr_svg_(self) -> str:
        """Return the SVG that a notebook shows."""
        return self.svg()


@answers(SpecError)
def draw(of: SpecLike | Network | Adapter, *, columns: int = WIDTH) -> Diagram:
    """Draw the diagram of a spec, or of a network with its sizes and the minimum cut that bounds its rank.

    Args:
        of: an `AdapterSpec`, a family or its name, one of an adapter's `networks`, or an adapter. For an adapter this
            draws its network, or its spec if its groups have several networks.
        columns: the most columns of the text. It takes more if one mode beside the names of the factors needs more.

    Returns:
        The diagram.

    Raises:
        SpecError: if `of` is anything else, or `columns` is not a whole number of at least 1.
    """
    if not isinstance(columns, int) or isinstance(columns, bool) or columns < 1:
        raise mistake(SpecError, "draw", "a whole number of columns", told(columns), "Write columns=80.")
    if isinstance(of, Adapter):
        kinds = set(of.networks)
        of = of.spec if len(kinds) > 1 else kinds.pop()
    if not isinstance(of, Network):
        of = spec_of(of, "draw")
    if isinstance(of, AdapterSpec):
        terms = of.sum
        arrays: Mapping[str, Factor] = {**of.arrays, **of.hosts}
        whole = Subject(of.axes, of.site_modes, {})
        title, over = of.name, f", stacked over {of.over}" if of.over else ""
        notes = [f"updates weights [{of.weight}]{over}", f"trains {of.formula()}"]
    else:
        cut, terms = minimum_cut(of), of.terms
        arrays, whole = of.factors, Subject(of.axes, of.over, {}, of.sizes, cut.modes)
        over = f", stacked over {', '.join(map(whole.label, of.over))}" if of.over else ""
        title = f"[{text_of(of.axes)}] = {' x '.join(f'{size:,}' for size in of.weight_shape)}{over}"
        own = {name: factor for name, factor in of.factors.items() if not factor.init.is_host}
        sums = [
            sum(math.prod(of.shape(name)) for name, factor in own.items() if factor.trainable is kind)
            for kind in (True, False)
        ]
        twice = f"{cut.times} times " if cut.times > 1 else ""
        notes = [
            f"rank ≤ {cut.rank:,}: {twice}cut {', '.join(cut.modes) or 'nothing'}",
            f"trains {sums[0]:,} entries" + (f", holds {sums[1]:,} frozen" if sums[1] else ""),
        ]
    shown = _shown(terms, of.nodes)
    notes += ["centered: minus the same network at its starting values"] if len(shown) < len(terms) else []
    subjects = [replace(whole, factors=_drawn_factors(term, of.nodes, arrays)) for term in shown]
    labels = [f"{'-' if term.sign < 0 else '+'} {' '.join(term.nodes)}" for term in shown]
    labels = [""] if len(shown) == 1 and shown[0].sign > 0 else labels
    marks = ["▒ frozen"] if any(not one.trainable for subject in subjects for one in subject.factors.values()) else []
    lines = [line for text in (title, *notes) for line in wrap(text, columns)]
    for label, subject in zip(labels, subjects, strict=True):
        lines += [*(["", *wrap(label, columns, hang="  ")] if label else []), *score(subject, columns)]
    text = "\n".join([*lines, *([""] if marks else []), *marks])
    return _card(title, notes, list(zip(labels, subjects, strict=True)), text)


def _shown(terms: Sequence[Term], nodes: Mapping[str, Node]) -> list[Term]:
    """Return the terms that are drawn: all but those that subtract the start of another one."""
    alike: dict[object, int] = {}
    shown = []
    for term in terms:
        key = tuple(sorted((nodes[name].factor, nodes[name].modes) for name in term.nodes))
        if alike.get(key) == -term.sign and any(nodes[name].at_start for name in term.nodes):
            continue
        alike[key] = term.sign
        shown.append(term)
    return shown


def _drawn_factors(term: Term, nodes: Mapping[str, Node], arrays: Mapping[str, Factor]) -> dict[str, Factor]:
    """Return what is drawn of a term by name: each factor under the modes that it has there."""
    drawn = {}
    for name in dict.fromkeys(name for name in (*arrays, *nodes) if name in term.nodes):
        node, factor = nodes[name], arrays[nodes[name].factor]
        drawn[name] = replace(factor, modes=node.modes, trainable=factor.trainable and not node.at_start)
    return drawn


def _card(title: str, notes: Sequence[str], subjects: Sequence[tuple[str, Subject]], text: str) -> Diagram:
    """Return the diagram: the title, a picture for each term below its label, the legend at the bottom."""
    pictures = [(label, Scene(subject)) for label, subject in subjects]
    inner = max(LEAST, *(picture.width for _, picture in pictures))
    limit = int(max(inner, 720.0) / (0.62 * SMALL))
    heads = [*textwrap.wrap(title, int(limit * 0.7)), *(line for note in notes for line in textwrap.wrap(note, limit))]
    titles = len(textwrap.wrap(title, int(limit * 0.7)))
    boxes: list[Box] = []
    y = PAD
    for number, words in enumerate(heads):
        kind, size = ("title", TITLE) if number < titles else ("note", SMALL)
        is_cut = words.startswith("rank ≤")
        wide = text_width(words, size) * (1.1 if kind == "title" else 1.0)
        boxes.append(Box(kind, words, PAD, y, wide, size + 4, anchor="start", is_cut=is_cut))
        y += size + 6
    inner = max(inner, *(box.width for box in boxes))
    strokes: list[Stroke] = []
    for label, picture in pictures:
        y += PAD
        if label:
            boxes.append(Box("note", label, PAD, y, text_width(label, SMALL), SMALL + 4, anchor="start"))
            y += SMALL + 6
        shift = PAD + (inner - picture.width) / 2
        boxes += [box.moved(shift, y) for box in picture.boxes]
        strokes += [stroke.moved(shift, y) for stroke in picture.strokes]
        y += picture.height
    y = _legend([subject for _, subject in subjects], inner, y + PAD, boxes, strokes)
    return Diagram(title, text, tuple(boxes), tuple(strokes), math.ceil(inner + 2 * PAD), math.ceil(y + PAD))


def _legend(subjects: Sequence[Subject], inner: float, y: float, boxes: list[Box], strokes: list[Stroke]) -> float:
    """Add a legend of the symbols in use. Return the y coordinate of its lower end."""
    subject = subjects[0]
    kinds = {factor.trainable for one in subjects for factor in one.factors.values()}
    items = [("trained", True), ("frozen", False)]
    signs: list[tuple[str, Box | Stroke]] = []
    signs += [(text, Box("key", "", 0, 0, KEY, 14, is_frozen=not kind)) for text, kind in items if kind in kinds]
    if any(one.is_shared(name) for one in subjects for name in one.factors):
        signs.append(("one for all sites", Box("key", "", 0, 0, KEY, 14, is_shared=True)))
    signs += [("site mode", Stroke("site", "", line((0, 8), (KEY, 8))))] if subject.over else []
    signs += [("minimum cut", Stroke("mode", "", line((0, 8), (KEY, 8)), is_cut=True))] if subject.cut else []
    x = PAD
    for text, sign in signs:
        wide = text_width(text, SMALL)
        if x > PAD and x + KEY + 6 + wide > PAD + inner:
            x, y = PAD, y + LINE + 4
        if isinstance(sign, Box):
            boxes.append(sign.moved(x, y + 1))
        else:
            mark = Stroke("cut", "", line((KEY / 2 - 3, 16), (KEY / 2 + 3, 0)), is_cut=True)
            strokes += [one.moved(x, y) for one in ([sign, mark] if sign.is_cut else [sign])]
        boxes.append(Box("note", text, x + KEY + 6, y, wide, LINE, anchor="start"))
        x += KEY + 6 + wide + 18
    return y + LINE


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _path(stroke: Stroke) -> str:
    """Return a stroke as an SVG path, with its straight pieces as lines."""
    points, steps = stroke.points, []
    for at in range(1, len(points), 3):
        start, piece = points[at - 1], points[at : at + 3]
        straight = list(piece) == level(start, piece[2])
        steps.append("L" + _pair(piece[2]) if straight else "C" + " ".join(map(_pair, piece)))
    colour = CUT if stroke.is_cut else {"site": SITE, "axis": QUIET}.get(stroke.kind, INK)
    width = 2.2 if stroke.is_cut else 1.5
    dashes = ' stroke-dasharray="4 3"' if stroke.kind == "site" else ""
    path = " ".join(["M" + _pair(points[0]), *steps])
    return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="{width}"{dashes}/>'


def _pair(point: Point) -> str:
    return f"{_number(point[0])},{_number(point[1])}"


def _drawn(box: Box) -> Iterator[str]:
    """Yield the SVG of a box: a node with its name, a dot, or a text."""
    if box.kind in ("factor", "key"):
        yield f'<g class="{box.kind}{" frozen" if box.is_frozen else ""}{" shared" if box.is_shared else ""}">'
        yield from _node(box)
        yield "</g>"
    if box.kind == "dot":
        centre = f'cx="{_number(box.x + box.width / 2)}" cy="{_number(box.y + box.height / 2)}"'
        yield f'<circle {centre} r="{_number(box.width / 2)}" fill="{CUT if box.is_cut else INK}"/>'
    elif box.kind != "factor" and box.text:
        yield _text(box)


def _node(box: Box) -> Iterator[str]:
    fill = "url(#hatch)" if box.is_frozen else FILL
    for inset in (0.0, 3.0) if box.is_shared else (0.0,):
        corner = f'x="{_number(box.x + inset)}" y="{_number(box.y + inset)}"'
        size = f'width="{_number(box.width - 2 * inset)}" height="{_number(box.height - 2 * inset)}"'
        inside = fill if inset == 0 else "none"
        radius = (6.0 if box.kind == "factor" else 3.0) - inset / 1.5
        yield f'<rect {corner} {size} rx="{_number(radius)}" fill="{inside}" stroke="{EDGE}" stroke-width="1.3"/>'
    if box.text:
        yield _text(box)


def _text(box: Box) -> str:
    size = SIZES.get(box.kind, SMALL)
    x = box.x + {"start": 0.0, "middle": box.width / 2, "end": box.width}[box.anchor]
    y = box.y + box.height / 2 + 0.36 * size
    colour = CUT if box.is_cut else COLOURS.get(box.kind, INK)
    bold = ' font-weight="600"' if box.kind in ("factor", "title") else ""
    place = f'x="{_number(x)}" y="{_number(y)}" text-anchor="{box.anchor}"'
    return f'<text {place} font-size="{_number(size)}" fill="{colour}"{bold}>{escape(box.text)}</text>'
