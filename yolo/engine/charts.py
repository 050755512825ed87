# SPDX-License-Identifier: Apache-2.0
"""Figures of a run: curves over epochs, confusion matrices, label statistics.

Drawn with matplotlib's objects onto an Agg canvas: no pyplot, no style or backend is set, so a
user's own figures stay as they are. Epoch columns may have gaps (validation every few epochs).
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from yolo.engine.metrics import PartMetrics

INK, MUTED, GRID = "#1f2933", "#66717d", "#e4e7eb"
PALETTE = (
    "#2563eb", "#e4572e", "#0f9d76", "#d99a00", "#8b5cf6",
    "#db2777", "#0891b2", "#65a30d", "#b45309", "#64748b",
)  # fmt: skip
MOST_LEGEND_ROWS = 20
MOST_CELL_NUMBERS = 30
_DPI = 130


def _figure(width: float, height: float) -> Figure:
    """Return an empty figure of this size in inches, with an Agg canvas."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1, hspace=0.03, wspace=0.03)
    figure = Figure(figsize=(width, height), dpi=_DPI, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _tidy(axes: Axes, title: str = "", x: str = "", y: str = "") -> None:
    """Give axes the house look: light grid, two spines, muted numbers."""
    axes.set_title(title, fontsize=10.5, color=INK, loc="left", fontweight="bold")
    axes.set_xlabel(x, fontsize=9, color=MUTED)
    axes.set_ylabel(y, fontsize=9, color=MUTED)
    axes.tick_params(labelsize=8, colors=MUTED, length=3)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in {"left", "bottom"})
        spine.set_color("#cbd2d9")


def _save(figure: Figure, file: str | Path) -> Path:
    """Write the figure; the folder is made when it isn't there."""
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=_DPI)
    return path


# Curves over epochs.


def plot_results(results_csv: str | Path, file: str | Path | None = None) -> Path | None:
    """Draw every column of results.csv over the epochs.

    Training and validation loss of the same name share one panel.

    Args:
        results_csv: table with a header; empty cells are epochs without a value.
        file: picture to write; None means results.png beside the table.

    Returns:
        The picture, or None when the table has no rows or nothing to draw.
    """
    epochs, columns = read_columns(results_csv)
    panels = _panels(columns)
    if not len(epochs) or not panels:
        return None
    across = min(len(panels), 4)
    down = math.ceil(len(panels) / across)
    figure = _figure(3.3 * across, 2.7 * down)
    grid = figure.subplots(down, across, squeeze=False).ravel()
    for axes, (title, series) in zip(grid, panels, strict=False):
        _tidy(axes, title, "epoch")
        for place, (label, values) in enumerate(series):
            _epoch_line(axes, epochs, values, label, PALETTE[place % len(PALETTE)])
        if len(series) > 1:
            axes.legend(fontsize=8, frameon=False, labelcolor=INK)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    return _save(figure, Path(results_csv).with_name("results.png") if file is None else file)


def read_columns(results_csv: str | Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Read results.csv: the epochs, and every other numeric column with NaN for gaps."""
    with Path(results_csv).open(newline="", encoding="utf-8") as stream:
        rows = [{k.strip(): v for k, v in row.items() if k} for row in csv.DictReader(stream)]
    names = [name for name in (rows[0] if rows else {}) if name not in {"epoch", "time"}]

    def numbers(name: str) -> np.ndarray:
        return np.array([_number(row.get(name)) for row in rows])

    epochs = numbers("epoch")
    return epochs, {name: numbers(name) for name in names}


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def _panels(columns: Mapping[str, np.ndarray]) -> list[tuple[str, list[tuple[str, np.ndarray]]]]:
    """Group columns: losses of both splits by name, one panel a metric, all learning rates."""
    groups: dict[str, list[tuple[str, np.ndarray]]] = {}
    for order in ("train", "val", "metrics", "lr"):
        for column, values in columns.items():
            kind, _, name = column.partition("/")
            if kind != order or not np.isfinite(values).any():
                continue
            title = {"lr": "learning rate"}.get(kind, name.replace("_", " "))
            groups.setdefault(title, []).append((name if kind == "lr" else kind, values))
    return list(groups.items())


def _epoch_line(axes: Axes, epochs: np.ndarray, values: np.ndarray, label: str, color: str) -> None:
    from matplotlib.ticker import MaxNLocator

    known = np.isfinite(values)
    axes.plot(
        epochs[known],
        values[known],
        color=color,
        linewidth=1.8,
        marker="o" if known.sum() <= 30 else None,
        markersize=3,
        label=label,
    )
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


# Curves over confidence and recall.


def plot_part_curves(part: PartMetrics, names: Mapping[int, str], folder: str | Path) -> list[Path]:
    """Draw <Title>{PR,F1,P,R}_curve.png of one kind of output."""
    classes = [names[int(c)] for c in part.ap_class_index]
    files = []
    for short, values, x, y in (
        ("PR", part.prec_values, "Recall", "Precision"),
        ("F1", part.f1_curve, "Confidence", "F1"),
        ("P", part.p_curve, "Confidence", "Precision"),
        ("R", part.r_curve, "Confidence", "Recall"),
    ):
        title, notes = f"{part.title}: {y} over {x.lower()}", None
        if short == "PR":
            title += f" at IoU 0.5, mAP50 {part.map50:.3f}"
            notes = [f"{value:.3f}" for value in part.ap50]
        elif short == "F1" and classes:
            title += f", best mean {part.f1.mean():.2f} at {part.confidence:.2f}"
        file = Path(folder) / f"{part.title}{short}_curve.png"
        files.append(plot_curves(part.px, values, classes, file, title, x, y, notes))
    return files


def plot_curves(
    x: np.ndarray,
    values: np.ndarray,
    classes: Sequence[str],
    file: str | Path,
    title: str,
    x_name: str,
    y_name: str,
    notes: Sequence[str] | None = None,
) -> Path:
    """Draw one line a class and their mean.

    Args:
        x: (P,) abscissae in 0 .. 1.
        values: (k, P) in 0 .. 1, one row a class; may be empty.
        classes: (k,) names; with more than twenty the classes are grey and only the mean is named.
        file: picture to write.
        title: heading.
        x_name: name of the abscissa.
        y_name: name of the ordinate.
        notes: (k,) texts behind the names.
    """
    named = len(classes) <= MOST_LEGEND_ROWS
    figure = _figure(8.2, 5.2)
    axes = figure.subplots()
    _tidy(axes, title, x_name, y_name)
    for i, (name, row) in enumerate(zip(classes, values, strict=True)):
        label = f"{name}  {notes[i]}" if notes else name
        dashed = i >= len(PALETTE)
        axes.plot(
            x,
            row,
            color=PALETTE[i % len(PALETTE)] if named else "#b8c1cc",
            linewidth=1.3 if named else 0.7,
            linestyle="--" if dashed and named else "-",
            alpha=0.9 if named else 0.6,
            label=label if named else None,
        )
    if len(values):
        mean = values.mean(axis=0)
        axes.plot(x, mean, color=INK, linewidth=2.8, label="mean of all classes")
    else:
        axes.text(0.5, 0.5, "nothing is labelled", ha="center", color=MUTED)
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    if len(values):
        axes.legend(
            loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=8, frameon=False, labelcolor=INK
        )
    return _save(figure, file)


# Confusion.


def plot_confusion_matrix(matrix: np.ndarray, labels: Sequence[str], file: str | Path) -> Path:
    """Draw a confusion matrix.

    Args:
        matrix: (n, n) counts (integers) or column shares (floats); rows predicted, columns true.
        labels: (n,) names of rows and columns.
        file: picture to write.
    """
    from matplotlib.colors import LinearSegmentedColormap

    counts = np.issubdtype(matrix.dtype, np.integer)
    n = len(labels)
    side = float(np.clip(2.6 + 0.5 * n, 5.0, 14.0))
    figure = _figure(side + 0.9, side)
    axes = figure.subplots()
    colors = LinearSegmentedColormap.from_list(
        "blues", ["#ffffff", "#93b8f5", "#1d4ed8", "#172554"]
    )
    shown = np.where(matrix > 0, matrix, np.nan)
    top = 1.0 if not counts else max(float(matrix.max(initial=0)), 1.0)
    image = axes.imshow(shown, cmap=colors, vmin=0, vmax=top, aspect="equal")
    _tidy(
        axes, "Confusion" + ("" if counts else ", shares of each true class"), "true", "predicted"
    )
    axes.grid(False)
    size = float(np.clip(150 / n, 6, 9))
    slanted = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(n), labels, fontsize=size, **({"rotation": 90} if n > 6 else slanted))
    axes.set_yticks(range(n), labels, fontsize=size)
    axes.set_xticks(np.arange(n + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(n + 1) - 0.5, minor=True)
    axes.grid(which="minor", color=GRID, linewidth=0.6)
    axes.tick_params(which="minor", length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if n <= MOST_CELL_NUMBERS:
        for row, column in zip(*np.nonzero(matrix > (0 if counts else 0.005)), strict=True):
            value = matrix[row, column]
            axes.text(
                column,
                row,
                str(value) if counts else f"{value:.2f}",
                ha="center",
                va="center",
                fontsize=size,
                color="white" if value > 0.45 * top else INK,
            )
    bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, colors=MUTED, length=0)
    return _save(figure, file)


# Labels.


def plot_labels(
    classes: np.ndarray, boxes_xywhn: np.ndarray | None, names: Mapping[int, str], file: str | Path
) -> Path:
    """Draw what the labels look like: class counts, boxes, centres and sizes.

    Args:
        classes: (N,) class ids.
        boxes_xywhn: (N, 4) centre x, centre y, width, height as shares of the image; None where
            the classes are those of whole images.
        names: class names by id.
        file: picture to write (labels.jpg).
    """
    if boxes_xywhn is None:
        figure = _figure(max(5.2, min(0.35 * len(names), 14.0)), 4.3)
        _class_bars(figure.subplots(), classes, names, "images")
        return _save(figure, file)
    figure = _figure(10.4, 8.6)
    counts_axes, boxes_axes, centre_axes, size_axes = figure.subplots(2, 2).ravel()
    _class_bars(counts_axes, classes, names)
    _box_outlines(boxes_axes, classes, boxes_xywhn)
    for axes, (a, b), title in (
        (centre_axes, (0, 1), "centres (share of width, height)"),
        (size_axes, (2, 3), "sizes (share of width, height)"),
    ):
        _tidy(axes, title, "xywh"[a], "xywh"[b])
        _density(axes, boxes_xywhn[:, a], boxes_xywhn[:, b])
    centre_axes.invert_yaxis()  # as in the image, y grows downwards
    return _save(figure, file)


def _class_bars(
    axes: Axes, classes: np.ndarray, names: Mapping[int, str], what: str = "objects"
) -> None:
    counts = np.bincount(classes.astype(int), minlength=len(names))
    _tidy(axes, f"{len(classes)} {what} of {len(names)} classes", "", what)
    axes.bar(
        range(len(counts)),
        counts,
        color=[PALETTE[i % len(PALETTE)] for i in range(len(counts))],
        width=0.8,
    )
    axes.grid(axis="x", visible=False)
    if len(names) <= MOST_CELL_NUMBERS:
        crowded = len(names) > 6 or max(map(len, names.values()), default=0) > 10
        axes.set_xticks(range(len(counts)), [names.get(i, str(i)) for i in range(len(counts))])
        axes.tick_params(axis="x", rotation=90 if crowded else 0)
        if len(names) <= 12:
            for i, count in enumerate(counts):
                axes.text(i, count, str(count), ha="center", va="bottom", fontsize=8, color=INK)
    else:
        axes.set_xlabel("class id", fontsize=9, color=MUTED)


def _box_outlines(axes: Axes, classes: np.ndarray, boxes: np.ndarray, most: int = 800) -> None:
    """Draw boxes around one common centre, at most `most` of them, evenly picked."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    _tidy(axes, "boxes around one centre (share of the image)")
    picked = np.unique(np.linspace(0, len(boxes) - 1, min(len(boxes), most)).astype(int))
    patches: list[Any] = [Rectangle((-w / 2, -h / 2), w, h) for w, h in boxes[picked, 2:]]
    colors = [PALETTE[int(c) % len(PALETTE)] for c in classes[picked]]
    axes.add_collection(
        PatchCollection(patches, facecolor="none", edgecolor=colors, linewidth=0.7, alpha=0.45)
    )
    axes.set(xlim=(-0.52, 0.52), ylim=(0.52, -0.52), aspect="equal")


def _density(axes: Axes, x: np.ndarray, y: np.ndarray) -> None:
    """Draw points where they are few, a two-dimensional histogram where they are many."""
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    if len(x) < 3000:
        axes.scatter(x, y, s=14, alpha=0.35, color=PALETTE[0], linewidths=0)
    else:
        axes.hist2d(x, y, bins=60, range=[[0, 1], [0, 1]], cmap="Blues", cmin=1)
