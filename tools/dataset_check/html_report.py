"""Report of a data-set check as one self-contained HTML file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from html import escape
from itertools import pairwise
from pathlib import Path

from tools.dataset_check.dataset_statistics import COUNT_EDGES, SIZE_EDGES
from tools.dataset_check.findings import KINDS, SEVERITIES, Finding, counted
from tools.dataset_check.html_charts import bar_chart, class_table
from tools.dataset_check.html_style import STYLE
from tools.dataset_check.records import LabelRecord
from tools.dataset_check.text_report import CheckReport
from tools.dataset_check.thumbnails import render_thumbnail
from utils.core.log import progress

_MAX_FIGURES = 8  # findings of a kind shown with images
_MAX_LISTED = 200  # findings of a kind listed; the JSON file has all
_MAX_IMAGES = 3  # of one finding
_HEAD = (
    "<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport content='width=device-width'>"
    "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
)


def render_html(report: CheckReport) -> str:
    """Render the report as an HTML page without scripts and external resources."""
    source = str(report.records.data.source)
    title = escape(f"Data-set check: {Path(source).name}")
    body = "\n".join(
        [
            f"<header><h1>{title}</h1><p class=path>{escape(source)}</p>{_verdict(report)}</header>",
            f"<main>{_split_cards(report)}{_findings(report)}{_charts(report)}{_anchors(report)}</main>",
        ]
    )
    text = f"{_HEAD}<title>{title}</title><style>{STYLE}</style></head><body>{body}</body></html>\n"
    return text.encode("utf-8", "replace").decode()  # file names may have invalid characters


def _verdict(report: CheckReport) -> str:
    counts = report.counts
    worst = next((severity for severity in SEVERITIES[:2] if counts[severity]), "good")
    words = {"error": "Errors found", "warning": "No errors, but warnings", "good": "No errors or warnings"}
    marks = "".join(f"<span class='mark {name}'>{counted(counts[name], name)}</span>" for name in SEVERITIES)
    return f"<p class='verdict {worst}'>{words[worst]}</p><p>{marks}</p>"


def _split_cards(report: CheckReport) -> str:
    """Render a card with the numbers of each split."""
    cards = []
    for split, about in report.statistics.items():
        rows = [("images", about["images"])]
        rows += [("unreadable", about["unreadable"])] if about["unreadable"] else []
        if "objects" in about:
            rows += [("objects", about["objects"]), ("images without objects", about["without_objects"])]
            rows += [("objects with polygons", about["outlines"])] if about["outlines"] else []
            rows += [("label format", about["format"])]
        rows += [("semantic maps", about["maps"])] if "maps" in about else []
        if "shapes" in about:
            rows += [
                (name, " × ".join(map(str, about["shapes"][f"{name}_wh"])))
                for name in ("smallest", "median", "largest")
            ]
        lines = "".join(f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>" for name, value in rows)
        cards.append(f"<section class=card><h3>{escape(split)}</h3><table>{lines}</table></section>")
    return f"<div class=cards>{''.join(cards)}</div>"


def _findings(report: CheckReport) -> str:
    labelled = {one.image.path: one for images in report.records.splits.values() for one in images}
    root = f"{report.records.data.root}{os.sep}"
    kinds = report.by_kind()
    if not kinds:
        return "<h2>Findings</h2><p>None.</p>"
    bar = progress(kinds.items(), len(kinds), "rendering", "kind")
    return "<h2>Findings</h2>" + "".join(
        _kind_section(kind, [replace(one, text=one.text.replace(root, "")) for one in found], labelled)
        for kind, found in bar
    )


def _kind_section(kind: str, found: Sequence[Finding], labelled: dict[str, LabelRecord]) -> str:
    about = KINDS[kind]
    figures = "".join(_figure(one, labelled) for one in found[:_MAX_FIGURES] if one.image)
    listed = [one for one in found[:_MAX_LISTED] if one not in found[:_MAX_FIGURES] or not one.image]
    lines = "".join(f"<li>{escape(one.text)}</li>" for one in listed)
    more = len(found) - _MAX_LISTED
    rest = f"<li class=more>… {more} more; see report.json</li>" if more > 0 else ""
    items = f"<ul>{lines}{rest}</ul>" if lines or rest else ""
    expanded = "" if about.severity == "note" else " open"
    return (
        f"<details class='kind {about.severity}'{expanded}><summary>"
        f"<span class='mark {about.severity}'>{about.severity}"
        f"</span><b>{escape(about.title)}</b><span class=count>{len(found)}</span></summary>"
        f"<p class=advice>{escape(about.advice)} <code>{kind}</code></p><div class=figures>{figures}</div>{items}"
        "</details>"
    )


def _figure(finding: Finding, labelled: dict[str, LabelRecord]) -> str:
    paths = [finding.image, *(path for path in finding.others if path != finding.image)][:_MAX_IMAGES]
    images = "".join(
        f"<img alt='{escape(Path(path).name)}' src='{data}'>" if data else "<span class=none>no image</span>"
        for path, data in ((path, render_thumbnail(path, finding, labelled.get(path))) for path in paths)
    )
    several = " class=several" if len(paths) > 1 else ""
    return f"<figure{several}><div>{images}</div><figcaption>{escape(finding.text)}</figcaption></figure>"


def _charts(report: CheckReport) -> str:
    numbers, data = report.statistics, report.records.data
    parts = []
    boxed = {split: about for split, about in numbers.items() if "objects" in about}
    if boxed:
        parts.append("<h2>Object classes</h2>")
        parts.append(class_table(data.names, {split: about["per_class"] for split, about in boxed.items()}))
        if not report.records.classification:
            size = report.records.imgsz
            sizes = {split: about["sizes_px"] for split, about in boxed.items()}
            counts = {split: about["objects_per_image"] for split, about in boxed.items()}
            parts.append(f"<h2>Object sizes</h2><p>Square root of the box area in pixels at image size {size}.</p>")
            parts.append(bar_chart(_bins(SIZE_EDGES), sizes))
            parts.append("<h2>Objects per image</h2>" + bar_chart(_bins(COUNT_EDGES, whole=True), counts))
    mapped = {split: about["pixels_per_class"] for split, about in numbers.items() if "maps" in about}
    if mapped and data.semantic is not None:
        parts += ["<h2>Semantic classes (pixels)</h2>", class_table(data.semantic.names, mapped)]
    return "".join(parts)


def _bins(edges: Iterable[int], whole: bool = False) -> list[str]:
    """Format the labels of bins between edges; for integers the upper end is included."""
    values = list(edges)
    names = []
    for low, high in pairwise(values):
        last = high - 1 if whole else high
        names.append(str(low) if last == low else f"{low}–{last}")
    return [*names, f"{values[-1]}+"]


def _anchors(report: CheckReport) -> str:
    anchors = report.anchors
    if anchors is None:
        return ""
    fits = [(f"reference ({anchors.reference})", anchors.reference_fit), ("fitted", anchors.fit)]
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{fit.recall:.4f}</td><td>{fit.matches_per_label:.2f}</td><td>{fit.fitness:.4f}</td></tr>"
        for name, fit in fits
        if fit is not None
    )
    head = "<tr><th></th><th>best possible recall</th><th>matching anchors per label</th><th>fitness</th></tr>"
    size = report.records.imgsz
    fitted = f"Fitted to {counted(anchors.labels, 'label')} at image size {size}. {escape(anchors.advice)}"
    text = f"<h2>Anchors</h2><p>{fitted}</p>"
    return f"{text}<table class=plain>{head}{rows}</table><pre>{escape(anchors.to_yaml())}</pre>"
