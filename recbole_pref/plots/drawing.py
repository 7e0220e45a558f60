"""Style, axes, legends and files of all pictures, without pyplot and without global state."""

from __future__ import annotations  # matplotlib is imported late

import logging
import math
import os
import textwrap
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from io import BytesIO
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeAlias, TypeVar
from xml.etree import ElementTree

import numpy as np

from recbole_pref.errors import PrefError
from recbole_pref.plots.numbers import pareto_front

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

P = ParamSpec("P")
T = TypeVar("T")
Style: TypeAlias = dict[str, Any]  # color, marker and linestyle

# Okabe-Ito without yellow, which is hard to see on white
COLOURS = ("#000000", "#E69F00", "#0072B2", "#009E73", "#D55E00", "#56B4E9", "#CC79A7")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "*")
KINDS = ("png", "pdf", "svg")  # of picture files
LINES = ("-", "--", "-.", (0, (1, 1.2)))
GREY = "#666666"
MOST_INSIDE = 6  # labels in a legend below the picture; with more, the legend is on the right
NAME_SHIFTS = (7, 18, 30, 44, 60)  # points between a dot and its name; a line joins them if they are not adjacent
LOG_SPAN = 30  # values that span more than this factor get a logarithmic axis

_SVG = "{http://www.w3.org/2000/svg}"
_HREF = "{http://www.w3.org/1999/xlink}href"
_STYLE = {
    "font.size": 10,
    "axes.labelsize": 10,
    "axes.titlesize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.use_mathtext": True,
    "axes.formatter.limits": (-3, 4),
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "text.usetex": False,
    "pdf.fonttype": 42,  # embed TrueType fonts: journals refuse Type 3 fonts
    "svg.hashsalt": "recbole-pref",  # equal pictures give equal files
}


def need_matplotlib() -> Any:
    """Import matplotlib.

    Raises:
        PrefError: it is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise PrefError("Pictures need matplotlib: run pip install matplotlib.") from None
    # RecBole logs the messages of all packages; fontTools would log each table of the fonts in a PDF.
    logging.getLogger("fontTools").setLevel(logging.WARNING)
    return matplotlib


def styled(draw: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function so that it draws in the style of this module."""

    @wraps(draw)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        matplotlib = need_matplotlib()
        with matplotlib.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return wrapper


def panels(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, list[Axes]]:
    """Return a figure of this size in inches, and its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    layout: Any = figure.get_layout_engine()
    layout.set(w_pad=0.07, h_pad=0.05)
    FigureCanvasAgg(figure)  # needed to measure text before the picture is saved
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, list(axes.flat)


def styles(labels: Iterable[str]) -> dict[str, Style]:
    """Return ``{label: {"color", "marker", "linestyle"}}``, different for up to 77 labels."""
    labels = list(dict.fromkeys(labels))
    kinds = zip(labels, cycle(COLOURS), cycle(MARKERS), cycle(LINES))
    return {label: {"color": c, "marker": m, "linestyle": s} for label, c, m, s in kinds}


def shortened(label: object, width: int = 34) -> str:
    """Wrap a label into lines, and escape characters that matplotlib reads as mathematics."""
    return "\n".join(textwrap.wrap(str(label), width)).replace("$", r"\$")


def add_scope(figure: Figure, text: str) -> None:
    """Write a small subtitle above the panels. Call this before the legend is added and names are placed."""
    if not text:
        return
    width, height = figure.get_size_inches()
    lines = shortened(text, int(14 * width))
    figure.set_size_inches(width, height + 0.18 * (1 + lines.count("\n")))
    figure.suptitle(lines, x=0.02, ha="left", fontsize=9, color=GREY)


def add_legend(figure: Figure, entries: list[tuple[str, Any]]) -> None:
    """Add a legend outside the axes: below them, or on the right if it has more than six entries.

    Args:
        entries: pairs of text and artist.
    """
    if not entries:
        return
    texts = [shortened(text) for text, _ in entries]
    handles = [handle for _, handle in entries]
    longest = max(len(line) for text in texts for line in text.split("\n"))
    entry_inches = 0.75 + 0.08 * longest
    width, height = figure.get_size_inches()
    if len(entries) > MOST_INSIDE:
        lines = sum(text.count("\n") + 1 for text in texts)
        figure.set_size_inches(width + entry_inches, max(height, 0.4 + 0.2 * lines))
        place, columns = "outside right upper", 1
    else:
        columns = min(len(entries), max(1, int(width / entry_inches)))
        figure.set_size_inches(width, height + 0.2 * math.ceil(len(entries) / columns))
        place = "outside lower center"
    # matplotlib before 3.10 skips texts that begin with "_", so the texts are set afterwards
    legend = figure.legend(handles, ["-"] * len(texts), loc=place, ncols=columns, handlelength=2.8)  # type: ignore[call-overload]  # newer places
    for text, shown in zip(legend.get_texts(), texts):
        text.set_text(shown)


def line_handle(style: Style) -> Line2D:
    """Return the legend handle of a line."""
    from matplotlib.lines import Line2D

    return Line2D([], [], **style)


def draw_mean(
    axis: Axes,
    x: Sequence[float] | np.ndarray,
    values: np.ndarray,
    style: Style,
    label: str,
    markevery: int = 1,
    floor: float = -math.inf,
) -> None:
    """Draw the mean over seeds with a band from the lowest to the highest.

    Args:
        x: [P] ascending.
        values: [S, P] NaN where a seed has no value; every column has one at least.
        floor: the lowest value that is drawn. A logarithmic axis needs it, because it cannot show 0.
    """
    mean, low, high = (np.maximum(of(values, axis=0), floor) for of in (np.nanmean, np.nanmin, np.nanmax))
    axis.plot(x, mean, label=label, **style, markevery=markevery)
    texts = [f"{label} at {place:g}: {value:.4g}" for place, value in zip(x, mean)]
    if len(values) > 1:
        axis.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)
        texts = [f"{text} ({low:.4g} to {high:.4g})" for text, low, high in zip(texts, low, high)]
    add_tips(axis.scatter(x, mean, s=60, alpha=0, linewidths=0, label="_tips"), texts)


def axis_scale(values: Any) -> str:
    """Return the scale of an axis for these numbers: ``log``, ``symlog`` or ``linear``."""
    sizes = np.abs(np.asarray(values, dtype=float))
    sizes = sizes[sizes > 0]
    if not len(sizes) or sizes.max() <= LOG_SPAN * sizes.min():
        return "linear"
    return "log" if len(sizes) == len(values) and min(values) > 0 else "symlog"


def value_axis(axis: Axes, values: Any) -> None:
    """Put a tick at each value of the x axis; labels are skipped if they would overlap."""
    values = sorted(set(values))
    scale = axis_scale(values)
    options = {"linthresh": min(abs(v) for v in values if v), "linscale": 0.5} if scale == "symlog" else {}
    axis.set_xscale(scale, **options)
    axis.minorticks_off()
    positions = axis.transAxes.inverted().transform(
        axis.transData.transform([(value, axis.get_ylim()[1]) for value in values])
    )[:, 0]
    texts, last = [], -1.0
    for value, position in zip(values, positions):
        room = position - last >= 0.02 + 0.012 * len(f"{value:g}")
        texts.append(f"{value:g}" if room else "")
        last = position if room else last
    axis.set_xticks(values, texts)


def front_steps(axis: Axes, points: np.ndarray, name: str) -> list[tuple[str, Any]]:
    """Draw the Pareto front of ``points`` [N, 2] up to the edges of the axes; return its legend entry."""
    front = points[pareto_front(points)]
    front = front[np.argsort(front[:, 0], kind="stable")]
    (left, _), (bottom, _) = axis.get_xlim(), axis.get_ylim()
    x = np.concatenate(([left], front[:, 0], front[-1:, 0]))
    y = np.concatenate((front[:1, 1], front[:, 1], [bottom]))
    (line,) = axis.plot(
        x, y, drawstyle="steps-pre", color=GREY, linestyle="--", linewidth=1, zorder=1, label="front"
    )  # fmt: skip
    axis.autoscale(False)
    axis.set_xlim(left=left)
    axis.set_ylim(bottom=bottom)
    return [(name, line)]


def name_points(
    figure: Figure, axis: Axes, points: np.ndarray, names: list[str], colours: list[str], boxes: np.ndarray
) -> None:
    """Write each name next to its point, where it overlaps least with names, points, bars, steps and edges.

    Args:
        points: [N, 2] in data coordinates.
        names, colours: [N] the texts and their colours.
        boxes: [M, 4] left, bottom, right and top, in data coordinates, of areas to keep free.
    """
    from matplotlib.patheffects import withStroke

    figure.draw_without_rendering()  # compute the layout, so that pixels are known
    canvas: Any = figure.canvas
    renderer, pixel = canvas.get_renderer(), figure.dpi / 72
    frame = np.array(axis.get_window_extent(renderer).extents)
    low, high = (axis.transData.transform(boxes[:, side]) for side in (slice(0, 2), slice(2, 4)))
    taken = np.concatenate((np.hstack((low - 4 * pixel, high + 4 * pixel)), _step_boxes(axis)))
    centres = axis.transData.transform(points)
    texts = [shortened(name, 26) for name in names]
    sizes = []
    for text in texts:
        probe = axis.text(0, 0, text, fontsize=9, transform=None)
        sizes.append([probe.get_window_extent(renderer).width, probe.get_window_extent(renderer).height])
        probe.remove()
    placed = np.full((len(names), 4), np.nan)
    best: list[Any] = [None] * len(names)
    for _ in range(2):  # the second round starts from the positions of all names
        for i, (centre, size) in enumerate(zip(centres, np.array(sizes))):
            others = np.delete(placed, i, axis=0)
            others = others[~np.isnan(others[:, 0])]
            dots = np.delete(centres, i, axis=0)
            away = np.concatenate((others, np.hstack((dots - 4 * pixel, dots + 4 * pixel))))
            best[i] = min(_positions(centre, size, pixel, frame, taken, others, away), key=lambda p: p[0])
            placed[i] = best[i][2]
    for centre, text, colour, (_, shift, box) in zip(points, texts, colours, best):
        offset = (box[:2] - axis.transData.transform(centre)) / pixel
        note = axis.annotate(
            text, centre, xytext=offset, textcoords="offset points", fontsize=9, color=dark(colour),
            ha="left", va="bottom", path_effects=[withStroke(linewidth=2, foreground="white")],
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.7, "shrinkA": 1, "shrinkB": 3}
            if shift > NAME_SHIFTS[0] else None,
        )  # fmt: skip
        note.set_in_layout(False)


def _positions(
    centre: np.ndarray,
    size: np.ndarray,
    pixel: float,
    frame: np.ndarray,
    taken: np.ndarray,
    names: np.ndarray,
    away: np.ndarray,
) -> list[tuple[float, int, np.ndarray]]:
    """Return candidate positions of a name around a point: tuples of cost in pixels, shift and box [4].

    The cost is low if the name is inside ``frame`` [4] and does not overlap with ``taken`` and ``names``, and if its
    line does not cross ``away`` [M, 4].
    """
    positions = []
    for shift in NAME_SHIFTS:
        for angle in np.arange(16) * np.pi / 8:
            way = np.array([math.cos(angle), math.sin(angle)])
            # the nearest edge or corner of the name is on the circle around the point
            side = np.where(np.abs(way) < 0.3, 0, np.sign(way))
            low = centre + way * shift * pixel + size * (side - 1) / 2
            box = np.concatenate((low, low + size))
            cost = _overlap(box, taken).sum() + 4 * (size.prod() - _overlap(box, frame[None])[0])
            cost += 3 * _overlap(box, names).sum() + shift * pixel
            if shift > NAME_SHIFTS[0]:
                leader = centre + np.linspace(0, 1, 24)[:, None] * (box[:2] + size / 2 - centre)  # [24, 2]
                inside = (leader[:, None] > away[:, :2]) & (leader[:, None] < away[:, 2:])  # [24, M, 2]
                cost += 40 * pixel * inside.all(axis=2).any(axis=0).sum()
            positions.append((cost, shift, box))
    return positions


def _step_boxes(axis: Axes) -> np.ndarray:
    """Return the pixel boxes [M, 4] of the segments of the step lines in an axis."""
    boxes = [np.empty((0, 4))]
    for line in axis.lines:
        if line.get_drawstyle() == "steps-pre":
            x, y = line.get_data()
            corners = np.column_stack((np.repeat(x, 2)[:-1], np.repeat(y, 2)[1:]))  # [2 P - 1, 2]
            corners = axis.transData.transform(corners)
            low = np.minimum(corners[:-1], corners[1:]) - 2
            boxes.append(np.hstack((low, np.maximum(corners[:-1], corners[1:]) + 2)))
    return np.concatenate(boxes)


def _overlap(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the area of the intersection of a box [4] with each of the others [M, 4]."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    return np.clip(sides, 0, None).prod(axis=1)


def dark(colour: str) -> tuple[float, ...]:
    """Return the colour at 70% brightness, for text on white."""
    from matplotlib.colors import to_rgb

    return tuple(0.7 * part for part in to_rgb(colour))


def as_svg(figure: Figure) -> bytes:
    """Return a figure as SVG."""
    return _rendered(figure, "svg")


def add_tips(artist: Any, texts: Iterable[str]) -> None:
    """Set the tooltips of :func:`as_html` for a line or for each point of a scatter."""
    artist.tips = list(texts)


def as_html(figure: Figure, name: str, title: str) -> str:
    """Return a figure as an ``svg`` element for an HTML page, with tooltips and with IDs that begin with ``name``.

    Args:
        figure: the figure.
        name: a name that is unique in the page.
        title: the text for screen readers.
    """
    tipped: list[Any] = figure.findobj(lambda artist: hasattr(artist, "tips"))
    for artist in tipped:  # matplotlib writes links around points; they are replaced by groups with a title
        artist.set_urls(artist.tips) if hasattr(artist, "set_urls") else artist.set_url(artist.tips[0])
    try:
        root = ElementTree.fromstring(as_svg(figure))
    finally:
        for artist in tipped:
            artist.set_urls([None]) if hasattr(artist, "set_urls") else artist.set_url(None)
    root.attrib |= {"role": "img", "aria-label": title}
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{_SVG}metadata", f"{_SVG}style"):
                parent.remove(child)
    for element in root.iter():
        for key, value in element.attrib.items():
            value = f"{name}-{value}" if key == "id" else value.replace("url(#", f"url(#{name}-")
            element.set(key, f"#{name}-{value[1:]}" if key == _HREF and value.startswith("#") else value)
        if element.tag == f"{_SVG}a":
            element.tag = f"{_SVG}g"
            tip = ElementTree.Element(f"{_SVG}title")
            tip.text = element.attrib.pop(_HREF)
            element.insert(0, tip)
    ElementTree.register_namespace("", _SVG[1:-1])
    ElementTree.register_namespace("xlink", _HREF[1:].partition("}")[0])
    return ElementTree.tostring(root, encoding="unicode")


def _rendered(figure: Figure, kind: str) -> bytes:
    matplotlib = need_matplotlib()
    # Without a date, equal pictures give equal files.
    metadata: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    file = BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(file, format=kind, dpi=200, metadata=metadata.get(kind))
    return file.getvalue()


def save(figure: Figure, path_stem: str | os.PathLike[str]) -> list[Path]:
    """Write a figure as PNG (200 dpi), PDF and SVG.

    Args:
        figure: the figure.
        path_stem: path of the files without suffix; the folder is created if necessary.

    Returns:
        The paths of the PNG, PDF and SVG files.

    Raises:
        PrefError: a file cannot be written.
    """
    from recbole_pref.checkpoint import write_atomically

    stem = Path(path_stem)
    paths = []
    for kind in KINDS:
        data = _rendered(figure, kind)
        paths.append(stem.with_name(f"{stem.name}.{kind}"))
        write_atomically(paths[-1], lambda file: file.write(data), "output")
    return paths
