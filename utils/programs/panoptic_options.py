"""Options of the merge of instance masks and semantic maps to panoptic maps."""

from __future__ import annotations

from utils.core.cli import Options
from utils.core.segment_types import MergeSettings


def add_merge_constants(group: Options) -> None:
    """Add the constants of the merge."""
    add, usual = group.add_argument, MergeSettings()
    add("--panoptic-conf", type=float, default=usual.confidence, metavar="P", help="minimum confidence of things")
    text = "maximum fraction of a thing that better ones may cover"
    add("--panoptic-overlap", type=float, default=usual.overlap, metavar="R", help=text)
    text = "smaller segments of stuff, in pixels, become void"
    add("--min-stuff-area", type=int, default=usual.min_stuff_area, metavar="N", help=text)
