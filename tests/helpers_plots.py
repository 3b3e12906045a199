"""Checks of matplotlib figures."""

from itertools import combinations


def overlapping_texts(figure):
    """Return the pairs of visible texts of a figure whose bounding boxes overlap."""
    figure.canvas.draw()
    texts = [*figure.texts, *(text for legend in figure.legends for text in legend.texts)]
    texts += [text for text in (figure._supxlabel, figure._supylabel, figure._suptitle) if text is not None]
    for axes in figure.axes:
        if axes.axison:
            texts += [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
            texts += [label for axis in (axes.xaxis, axes.yaxis) for label in _tick_labels(axis)]
    shown = {id(text): text for text in texts if text.get_text().strip() and text.get_visible()}
    boxes = [(text.get_text(), text.get_window_extent()) for text in shown.values()]
    return [(a, b) for (a, one), (b, two) in combinations(boxes, 2) if _overlap(one, two)]


def _tick_labels(axis):
    low, high = sorted(axis.get_view_interval())
    return [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]  # others are not drawn


def _overlap(one, two):
    return min(one.x1, two.x1) - max(one.x0, two.x0) > 1 and min(one.y1, two.y1) - max(one.y0, two.y0) > 1
