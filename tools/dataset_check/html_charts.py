"""Tables and histograms as HTML and SVG, without scripts and in the colours of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

_WIDTH, _HEIGHT, _LEFT, _BELOW = 720, 170, 8, 34  # of a chart, in SVG units


def class_table(names: Sequence[str], counts: Mapping[str, Sequence[int]]) -> str:
    """Render a table of classes with their counts per split, the most frequent class first.

    Args:
        names: Class names.
        counts: Count of each class, by split.

    Returns:
        HTML in which all texts are escaped.
    """
    splits = list(counts)
    most = max((value for split in splits for value in counts[split]), default=0) or 1  # one scale for all bars
    order = sorted(range(len(names)), key=lambda number: (-sum(counts[split][number] for split in splits), number))
    head = "".join(f"<th>{escape(split)}</th>" for split in splits)
    rows = []
    for number in order:
        cells = "".join(
            f"<td class=bar><i style='width:{100 * counts[split][number] / most:.1f}%'></i>"
            f"<span>{counts[split][number]:,}</span></td>"
            for split in splits
        )
        rows.append(f"<tr><td class=number>{number}</td><th>{escape(names[number])}</th>{cells}</tr>")
    table = f"<table class=classes><tr><th></th><th>class</th>{head}</tr>{''.join(rows)}</table>"
    return f"<div class=scroll>{table}</div>"


def bar_chart(labels: Sequence[str], counts: Mapping[str, Sequence[int]]) -> str:
    """Render a histogram with one bar per split in each bin, as fractions of the split.

    Args:
        labels: Labels of the bins.
        counts: Count of each bin, by split.

    Returns:
        HTML with an SVG chart; all texts are escaped.
    """
    totals = {split: sum(values) or 1 for split, values in counts.items()}
    top = max((value / totals[split] for split, values in counts.items() for value in values), default=0) or 1
    step = (_WIDTH - 2 * _LEFT) / max(1, len(labels))
    thick = step * 0.8 / max(1, len(counts))
    shapes = []
    for position, label in enumerate(labels):
        left = _LEFT + position * step
        for row, (split, values) in enumerate(counts.items()):
            fraction = values[position] / totals[split]
            high = (_HEIGHT - 16) * fraction / top
            x, y = left + step * 0.1 + row * thick, _HEIGHT - high
            title = f"<title>{escape(split)} {escape(label)}: {values[position]} ({100 * fraction:.1f} %)</title>"
            shapes.append(f"<rect class=s{row} x={x:.1f} y={y:.1f} width={thick:.1f} height={high:.1f}>{title}</rect>")
        middle = left + step / 2
        shapes.append(f"<text x={middle:.1f} y={_HEIGHT + 16} text-anchor=middle>{escape(label)}</text>")
    line = f"<line x1={_LEFT} x2={_WIDTH - _LEFT} y1={_HEIGHT} y2={_HEIGHT} />"
    legend = "".join(f"<span><i class=s{row}></i>{escape(split)}</span>" for row, split in enumerate(counts))
    return (
        f"<p class=legend>{legend}</p><svg viewBox='0 0 {_WIDTH} {_HEIGHT + _BELOW}' role=img>{''.join(shapes)}{line}"
        "</svg>"
    )
