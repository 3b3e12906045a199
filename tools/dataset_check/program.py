"""Data-set check from settings to reports: read everything once, run all checks, write the reports."""

from __future__ import annotations

from dataclasses import replace

from tools.dataset_check import CHECKS
from tools.dataset_check.anchor_fit import fit_dataset_anchors
from tools.dataset_check.check_settings import CheckSettings
from tools.dataset_check.cleaned_copy import write_cleaned_copy
from tools.dataset_check.collect import collect_records
from tools.dataset_check.findings import Finding
from tools.dataset_check.html_report import render_html
from tools.dataset_check.records import DatasetRecords
from tools.dataset_check.text_report import CheckReport
from utils.core.errors import UserError
from utils.core.files import run_folder, write_text
from utils.core.log import LOGGER, progress
from utils.datasets.fetch.dataset_download import resolve_dataset
from utils.datasets.generators.prepare import ensure_generated

_MIN_IMAGE_SIZE = 32


def run_checks(records: DatasetRecords) -> list[Finding]:
    """Run all checks on the records of a data set and return their findings."""
    names = CHECKS.names()
    return [found for name in progress(names, len(names), "checking", "check") for found in CHECKS.get(name)(records)]


def check_dataset(settings: CheckSettings) -> CheckReport:
    """Check a data set and write report.html, report.json and, if requested, a cleaned copy.

    Args:
        settings: The data set and what to do.

    Returns:
        The report.

    Raises:
        UserError: The settings are invalid, there is no such data set, or nothing of it can be read.
    """
    if settings.imgsz < _MIN_IMAGE_SIZE:
        raise UserError(f"--imgsz expects a size of at least {_MIN_IMAGE_SIZE}, got {settings.imgsz}")
    data = resolve_dataset(settings.data, settings.download)
    ensure_generated(data)
    records = collect_records(data, settings.imgsz, settings.fast)
    report = CheckReport(records, run_checks(records))
    if settings.anchors:
        report = replace(report, anchors=fit_dataset_anchors(records, settings.anchors, settings.anchor_t))
    folder = run_folder(settings.project, settings.name, settings.exist_ok)
    write_text(folder / "report.json", report.to_json())
    write_text(folder / "report.html", render_html(report))
    report.log_summary()
    LOGGER.info(f"{folder / 'report.html'}: report with images; report.json has the same as data")
    if settings.fix is not None:
        write_cleaned_copy(report, settings.fix)
    return report
