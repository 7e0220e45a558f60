"""Style, axes, legends and files that all pictures share; no pyplot, no global state."""

import logging
import math
import textwrap
from functools import wraps
from io import BytesIO
from itertools import cycle
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from recbole_pref.errors import PrefError
from recbole_pref.plots.numbers import pareto_front

# Okabe-Ito without its yellow, which is hardly seen on white paper
COLOURS = ("#000000", "#E69F00", "#0072B2", "#009E73", "#D55E00", "#56B4E9", "#CC79A7")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "*")
KINDS = ("png", "pdf", "svg")  # of files
LINES = ("-", "--", "-.", (0, (1, 1.2)))
GREY = "#666666"
MOST_INSIDE = 6  # labels that a legend below the picture holds
NAME_SHIFTS = (7, 18, 30, 44, 60)  # points between a dot and its name; a line joins them from the second on
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
    "pdf.fonttype": 42,  # text stays text: journals refuse Type 3 fonts
    "svg.hashsalt": "recbole-pref",  # the same picture is the same file
}


def need_matplotlib():
    try:
        import matplotlib
    except ImportError:
        raise PrefError("Pictures need matplotlib: run pip install matplotlib.") from None
    # RecBole lets every package's information through; this one tells each table of a PDF's fonts.
    logging.getLogger("fontTools").setLevel(logging.WARNING)
    return matplotlib


def styled(draw):
    """Let a function draw in this module's style, whatever the process has set."""

    @wraps(draw)
    def wrapper(*args, **kwargs):
        matplotlib = need_matplotlib()
        with matplotlib.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return wrapper


def panels(width, height, rows=1, columns=1, **options):
    """Return a figure in inches and its axes, a list."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.07, h_pad=0.05)
    FigureCanvasAgg(figure)  # text can be measured before the picture is saved
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, list(axes.flat)


def styles(labels):
    """Return ``{label: {"color", "marker", "linestyle"}}``, different for up to 77 labels."""
    labels = list(dict.fromkeys(labels))
    kinds = zip(labels, cycle(COLOURS), cycle(MARKERS), cycle(LINES))
    return {label: {"color": c, "marker": m, "linestyle": s} for label, c, m, s in kinds}


def shortened(label, width=34):
    """Return a label as text of a picture: broken into lines, and never read as mathematics."""
    return "\n".join(textwrap.wrap(str(label), width)).replace("$", r"\$")


def add_scope(figure, text):
    """Write a small line above the panels, before the legend is added and names are placed."""
    if not text:
        return
    width, height = figure.get_size_inches()
    lines = shortened(text, int(14 * width))
    figure.set_size_inches(width, height + 0.18 * (1 + lines.count("\n")))
    figure.suptitle(lines, x=0.02, ha="left", fontsize=9, color=GREY)


def add_legend(figure, entries):
    """Add a legend outside the axes: below them up to six entries, on the right beyond.

    Args:
        entries (list): (text, artist).
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
    # matplotlib before 3.10 leaves out texts that begin with "_", so they are put in afterwards
    legend = figure.legend(handles, ["-"] * len(texts), loc=place, ncols=columns, handlelength=2.8)
    for text, shown in zip(legend.get_texts(), texts):
        text.set_text(shown)


def line_handle(style):
    from matplotlib.lines import Line2D

    return Line2D([], [], **style)


def draw_mean(axis, x, values, style, label, markevery=1, floor=-math.inf):
    """Draw the mean over seeds with a band from the lowest to the highest.

    Args:
        x (array [P]): ascending.
        values (array [S, P]): NaN where a seed has no value; every column has one at least.
        floor (float): line and band stand here where they are lower, for a logarithmic axis, which would draw
            a step to 0 as a drop at the point before.
    """
    mean, low, high = (np.maximum(of(values, axis=0), floor) for of in (np.nanmean, np.nanmin, np.nanmax))
    axis.plot(x, mean, label=label, **style, markevery=markevery)
    texts = [f"{label} at {place:g}: {value:.4g}" for place, value in zip(x, mean)]
    if len(values) > 1:
        axis.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)
        texts = [f"{text} ({low:.4g} to {high:.4g})" for text, low, high in zip(texts, low, high)]
    add_tips(axis.scatter(x, mean, s=60, alpha=0, linewidths=0, label="_tips"), texts)


def axis_scale(values):
    """Return ``log``, ``symlog`` or ``linear`` for an axis that shows these numbers."""
    sizes = np.abs(np.asarray(values, dtype=float))
    sizes = sizes[sizes > 0]
    if not len(sizes) or sizes.max() <= LOG_SPAN * sizes.min():
        return "linear"
    return "log" if len(sizes) == len(values) and min(values) > 0 else "symlog"


def value_axis(axis, values):
    """Give the x axis a tick at each of the values, as far as their labels have room."""
    values = sorted(set(values))
    scale = axis_scale(values)
    options = {"linthresh": min(abs(v) for v in values if v), "linscale": 0.5} if scale == "symlog" else {}
    axis.set_xscale(scale, **options)
    axis.minorticks_off()
    places = axis.transAxes.inverted().transform(
        axis.transData.transform([(value, axis.get_ylim()[1]) for value in values])
    )[:, 0]
    texts, last = [], -1.0
    for value, place in zip(values, places):
        room = place - last >= 0.02 + 0.012 * len(f"{value:g}")
        texts.append(f"{value:g}" if room else "")
        last = place if room else last
    axis.set_xticks(values, texts)


def front_steps(axis, points, name):
    """Draw the Pareto front of ``points`` [N, 2] out to the axes' edges; return its legend entry."""
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


def name_points(figure, axis, points, names, colours, boxes):
    """Write each name beside its point where it covers least: other names, points, bars, steps or the edge.

    Args:
        points (array [N, 2]): in data coordinates.
        names, colours (list [N]): what is written, and in which colour.
        boxes (array [M, 4]): left, bottom, right, top in data coordinates of what is not to be covered.
    """
    from matplotlib.patheffects import withStroke

    figure.draw_without_rendering()  # settles the layout, so that pixels can be counted
    renderer, pixel = figure.canvas.get_renderer(), figure.dpi / 72
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
    best = [None] * len(names)
    for _ in range(2):  # the second round knows where all other names are
        for i, (centre, size) in enumerate(zip(centres, np.array(sizes))):
            others = np.delete(placed, i, axis=0)
            others = others[~np.isnan(others[:, 0])]
            dots = np.delete(centres, i, axis=0)
            away = np.concatenate((others, np.hstack((dots - 4 * pixel, dots + 4 * pixel))))
            best[i] = min(_places(centre, size, pixel, frame, taken, others, away), key=lambda p: p[0])
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


def _places(centre, size, pixel, frame, taken, names, away):
    """Return the places for a name around a point: list of (cost in pixels, shift, box [4]).

    The name is to stay within ``frame`` [4] and off ``taken`` and ``names``, its line off ``away`` [M, 4].
    """
    places = []
    for shift in NAME_SHIFTS:
        for angle in np.arange(16) * np.pi / 8:
            way = np.array([math.cos(angle), math.sin(angle)])
            # the name's nearest edge or corner lies on the circle around the point
            side = np.where(np.abs(way) < 0.3, 0, np.sign(way))
            low = centre + way * shift * pixel + size * (side - 1) / 2
            box = np.concatenate((low, low + size))
            cost = _overlap(box, taken).sum() + 4 * (size.prod() - _overlap(box, frame[None])[0])
            cost += 3 * _overlap(box, names).sum() + shift * pixel
            if shift > NAME_SHIFTS[0]:
                leader = centre + np.linspace(0, 1, 24)[:, None] * (box[:2] + size / 2 - centre)  # [24, 2]
                inside = (leader[:, None] > away[:, :2]) & (leader[:, None] < away[:, 2:])  # [24, M, 2]
                cost += 40 * pixel * inside.all(axis=2).any(axis=0).sum()
            places.append((cost, shift, box))
    return places


def _step_boxes(axis):
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


def _overlap(box, others):
    """Return the area that a box [4] shares with each of the others [M, 4]."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    return np.clip(sides, 0, None).prod(axis=1)


def dark(colour):
    """Return the colour at 70% brightness, so that text of it is read on white."""
    from matplotlib.colors import to_rgb

    return tuple(0.7 * part for part in to_rgb(colour))


def as_svg(figure):
    """Return a figure as SVG, bytes."""
    return _rendered(figure, "svg")


def add_tips(artist, texts):
    """Give a line, or each point of a scatter, the text that :func:`as_html` shows under the pointer."""
    artist.tips = list(texts)


def as_html(figure, name, title):
    """Return a figure as an ``svg`` element for a page: with tooltips, and with IDs that begin with ``name``.

    Args:
        figure (Figure): what to write.
        name (str): different for each figure of the page.
        title (str): for readers who do not see it.
    """
    tipped = figure.findobj(lambda artist: hasattr(artist, "tips"))
    for artist in tipped:  # SVG has links around points; they become groups with a title
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


def _rendered(figure, kind):
    matplotlib = need_matplotlib()
    nothing = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}  # a date would change the file
    file = BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(file, format=kind, dpi=200, metadata=nothing.get(kind))
    return file.getvalue()


def save(figure, path_stem):
    """Write a figure as PNG (200 dpi), PDF and SVG.

    Args:
        figure (Figure): what to write.
        path_stem (path-like): the files' path without ending; its folder is created if necessary.

    Returns:
        list of Path: the PNG, PDF and SVG file.

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
