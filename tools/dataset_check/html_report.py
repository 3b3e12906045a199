"""The report as one HTML file: nothing in it comes from elsewhere, so it can be sent and kept."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from html import escape
from itertools import pairwise
from pathlib import Path

from tools.dataset_check.dataset_statistics import COUNT_EDGES, SIZE_EDGES
from tools.dataset_check.findings import KINDS, SEVERITIES, Finding
from tools.dataset_check.html_charts import bars, class_table
from tools.dataset_check.html_style import STYLE
from tools.dataset_check.records import Labelled
from tools.dataset_check.text_report import Report
from tools.dataset_check.thumbnails import thumbnail
from utils.core.log import progress

_PICTURED = 8  # findings of a kind with pictures
_LISTED = 200  # with text; the JSON has all
_OF_ONE = 3  # pictures of a finding
_HEAD = (
    "<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport content='width=device-width'>"
    "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
)


def page(report: Report) -> str:
    """Return the page."""
    source = str(report.gathered.data.source)
    title = escape(f"Data check: {Path(source).name}")
    body = "\n".join(
        [
            f"<header><h1>{title}</h1><p class=path>{escape(source)}</p>{_verdict(report)}</header>",
            f"<main>{_tiles(report)}{_findings(report)}{_charts(report)}{_anchors(report)}</main>",
        ]
    )
    text = f"{_HEAD}<title>{title}</title><style>{STYLE}</style></head><body>{body}</body></html>\n"
    return text.encode("utf-8", "replace").decode()  # names of files may hold what is no character


def _verdict(report: Report) -> str:
    counts = report.counts
    worst = next((severity for severity in SEVERITIES[:2] if counts[severity]), "good")
    words = {"error": "Not fit for training as it is", "warning": "Usable, but look at the warnings", "good": "Sound"}
    marks = "".join(f"<span class='mark {name}'>{counts[name]} {name}s</span>" for name in SEVERITIES)
    return f"<p class='verdict {worst}'>{words[worst]}</p><p>{marks}</p>"


def _tiles(report: Report) -> str:
    """Return a card for each split."""
    cards = []
    for split, about in report.statistics.items():
        rows = [("images", about["images"])]
        rows += [("unreadable", about["unreadable"])] if about["unreadable"] else []
        if "objects" in about:
            rows += [("objects", about["objects"]), ("without objects", about["without_objects"])]
            rows += [("with outlines", about["outlines"])] if about["outlines"] else []
            rows += [("labels", about["format"])]
        rows += [("class maps", about["maps"])] if "maps" in about else []
        if "shapes" in about:
            rows += [
                (name, " × ".join(map(str, about["shapes"][f"{name}_wh"])))
                for name in ("smallest", "median", "largest")
            ]
        lines = "".join(f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>" for name, value in rows)
        cards.append(f"<section class=card><h3>{escape(split)}</h3><table>{lines}</table></section>")
    return f"<div class=cards>{''.join(cards)}</div>"


def _findings(report: Report) -> str:
    labelled = {one.picture.path: one for images in report.gathered.splits.values() for one in images}
    root = f"{report.gathered.data.root}{os.sep}"
    kinds = report.by_kind()
    if not kinds:
        return "<h2>Findings</h2><p>None.</p>"
    bar = progress(kinds.items(), len(kinds), "drawing", "kind")
    return "<h2>Findings</h2>" + "".join(
        _of_kind(kind, [replace(one, text=one.text.replace(root, "")) for one in found], labelled)
        for kind, found in bar
    )


def _of_kind(kind: str, found: Sequence[Finding], labelled: dict[str, Labelled]) -> str:
    about = KINDS[kind]
    pictured = "".join(_figure(one, labelled) for one in found[:_PICTURED] if one.image)
    listed = [one for one in found[:_LISTED] if one not in found[:_PICTURED] or not one.image]
    lines = "".join(f"<li>{escape(one.text)}</li>" for one in listed)
    more = len(found) - _LISTED
    rest = f"<li class=more>… {more} more, all in report.json</li>" if more > 0 else ""
    items = f"<ul>{lines}{rest}</ul>" if lines or rest else ""
    opened = "" if about.severity == "note" else " open"
    return (
        f"<details class='kind {about.severity}'{opened}><summary><span class='mark {about.severity}'>{about.severity}"
        f"</span><b>{escape(about.title)}</b><span class=count>{len(found)}</span></summary>"
        f"<p class=advice>{escape(about.advice)} <code>{kind}</code></p><div class=figures>{pictured}</div>{items}"
        "</details>"
    )


def _figure(finding: Finding, labelled: dict[str, Labelled]) -> str:
    paths = [finding.image, *(path for path in finding.others if path != finding.image)][:_OF_ONE]
    pictures = "".join(
        f"<img alt='{escape(Path(path).name)}' src='{data}'>" if data else "<span class=none>no picture</span>"
        for path, data in ((path, thumbnail(path, finding, labelled.get(path))) for path in paths)
    )
    several = " class=several" if len(paths) > 1 else ""
    return f"<figure{several}><div>{pictures}</div><figcaption>{escape(finding.text)}</figcaption></figure>"


def _charts(report: Report) -> str:
    numbers, data = report.statistics, report.gathered.data
    parts = []
    boxed = {split: about for split, about in numbers.items() if "objects" in about}
    if boxed:
        parts.append("<h2>Classes of objects</h2>")
        parts.append(class_table(data.names, {split: about["per_class"] for split, about in boxed.items()}))
        if data.format != "folders":
            size = report.gathered.imgsz
            sizes = {split: about["sizes_px"] for split, about in boxed.items()}
            counts = {split: about["objects_per_image"] for split, about in boxed.items()}
            parts.append(f"<h2>Sizes of objects</h2><p>Root of the area in pixels, at image size {size}.</p>")
            parts.append(bars(_bins(SIZE_EDGES), sizes))
            parts.append("<h2>Objects per image</h2>" + bars(_bins(COUNT_EDGES, whole=True), counts))
    mapped = {split: about["pixels_per_class"] for split, about in numbers.items() if "maps" in about}
    if mapped and data.semantic is not None:
        parts += ["<h2>Classes of pixels</h2>", class_table(data.semantic.names, mapped)]
    return "".join(parts)


def _bins(edges: Iterable[int], whole: bool = False) -> list[str]:
    """Return what the bins between edges are called; of whole numbers the upper end belongs to the bin."""
    values = list(edges)
    names = []
    for low, high in pairwise(values):
        last = high - 1 if whole else high
        names.append(str(low) if last == low else f"{low}–{last}")
    return [*names, f"{values[-1]}+"]


def _anchors(report: Report) -> str:
    anchors = report.anchors
    if anchors is None:
        return ""
    fits = [(f"usual ({anchors.usual})", anchors.usual_fit), ("fitted", anchors.fit)]
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{fit.recall:.4f}</td><td>{fit.matches_per_label:.2f}</td><td>{fit.fitness:.4f}</td></tr>"
        for name, fit in fits
        if fit is not None
    )
    head = "<tr><th></th><th>best possible recall</th><th>matching a label</th><th>fitness</th></tr>"
    size = report.gathered.imgsz
    text = f"<h2>Anchors</h2><p>For {anchors.labels} labels at image size {size}. {escape(anchors.advice)}</p>"
    return f"{text}<table class=plain>{head}{rows}</table><pre>{escape(anchors.yaml())}</pre>"
