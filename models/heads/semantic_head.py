"""What every head of per-pixel classes shares: the arguments of its row, its output, its decoding (behaviour.md 12)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from models.heads.anchor_head import as_full
from models.layer_plan import Row
from utils.core.contracts import IGNORED_PIXEL, Decoded, HeadSpec, Raw


@dataclass(frozen=True)
class SemanticRow:
    """The arguments [classes, repeats, channels, shortcut] of a semantic row, scaled to the size of the model."""

    num_classes: int
    repeats: int
    channels: int
    shortcut: bool


def semantic_row(row: Row, num_inputs: int) -> SemanticRow:
    """Check and scale a semantic row's arguments; one that cannot be right raises ValueError."""
    if len(row.channels) != num_inputs:
        raise ValueError(f"takes {num_inputs} input row(s), the first entry names {len(row.channels)}")
    if len(row.arguments) != 4:
        raise ValueError(f"takes [n_segcls, repeats, channels, shortcut]; {len(row.arguments)} arguments are there")
    num_classes, repeats, channels, shortcut = row.arguments
    whole = isinstance(num_classes, int) and not isinstance(num_classes, bool)
    if not whole or not 1 <= num_classes <= IGNORED_PIXEL:
        raise ValueError(f"the number of classes must be from 1 to {IGNORED_PIXEL}, not {num_classes!r:.40}")
    if not isinstance(shortcut, bool):
        raise ValueError(f"the fourth argument is True or False, not {shortcut!r:.40}")
    return SemanticRow(num_classes, row.scale_depth(repeats), row.scale_width(channels), shortcut)


class SemanticHead(nn.Module):
    """Logits of a class per pixel, at the size of the first input; whoever needs the image's size upsamples them."""

    name = "semantic"
    takes_list = True
    classes_key = "n_segcls"  # of the model YAML

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def set_up(self, strides: tuple[int, ...]) -> None:
        """Take the strides of the inputs, of which the first must be the finest."""
        if min(strides) != strides[0]:
            raise ValueError(f"the first input must be the finest; they divide the image by {list(strides)}")

    def decode(self, raw: Raw) -> Decoded:
        """Return logits (B, C, h, w) in fp32. The corners of the map are the corners of the image."""
        return {"logits": as_full(raw["logits"])}

    @property
    def spec(self) -> HeadSpec:
        """Return what losses and post-processing need."""
        return HeadSpec(self.name, self.num_classes)
