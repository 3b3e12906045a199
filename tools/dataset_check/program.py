"""The story of check.py: read everything, let every check look at it, write the reports."""

from __future__ import annotations

from dataclasses import replace

from tools.dataset_check import CHECKS
from tools.dataset_check.anchor_fit import fit_to
from tools.dataset_check.check_settings import GateSettings
from tools.dataset_check.cleaned_copy import write_fixed
from tools.dataset_check.collect import gather
from tools.dataset_check.findings import Finding
from tools.dataset_check.html_report import page
from tools.dataset_check.records import Gathered
from tools.dataset_check.text_report import Report
from utils.core.errors import UserError
from utils.core.files import run_folder, write_text
from utils.core.log import LOGGER, progress
from utils.datasets.fetch.dataset_download import resolve_dataset
from utils.datasets.generators.prepare import ensure_generated


def judge(gathered: Gathered) -> list[Finding]:
    """Return what all checks find."""
    names = CHECKS.names()
    return [found for name in progress(names, len(names), "checking", "check") for found in CHECKS.get(name)(gathered)]


def run_gate(settings: GateSettings) -> Report:
    """Check a data set; leave report.html and report.json in the run folder, and a cleaned copy where it is wanted.

    UserError: there is no such data set, or nothing of it can be read.
    """
    if settings.imgsz < 32:
        raise UserError(f"--imgsz {settings.imgsz}: at least 32 pixels")
    data = resolve_dataset(settings.data, settings.download)
    ensure_generated(data)
    gathered = gather(data, settings.imgsz, settings.fast)
    report = Report(gathered, judge(gathered))
    if settings.anchors:
        report = replace(report, anchors=fit_to(gathered, settings.anchors, settings.anchor_t))
    folder = run_folder(settings.project, settings.name, settings.exist_ok)
    write_text(folder / "report.json", report.json())
    write_text(folder / "report.html", page(report))
    report.tell()
    LOGGER.info(f"{folder / 'report.html'}: the report with pictures; report.json beside it is for machines")
    if settings.fix is not None:
        write_fixed(report, settings.fix)
    return report
