"""Base of the semantic heads: arguments of their row, output and decoding."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from models.heads.anchor_head import to_fp32
from models.layer_plan import Row
from utils.core.contracts import IGNORED_PIXEL, Decoded, HeadSpec, Raw


@dataclass(frozen=True)
class SemanticRow:
    """The arguments [classes, repeats, channels, shortcut] of a semantic row, scaled to the size of the model."""

    num_classes: int
    repeats: int
    channels: int
    shortcut: bool


def parse_semantic_row(row: Row, num_inputs: int) -> SemanticRow:
    """Validate and scale the arguments of a semantic head with `num_inputs` inputs.

    Raises:
        ValueError: The row has another number of inputs or arguments, or one of the arguments is invalid.
    """
    if len(row.channels) != num_inputs:
        raise ValueError(f"takes {num_inputs} input row(s), the first entry names {len(row.channels)}")
    if len(row.arguments) != 4:
        raise ValueError(f"expected [n_segcls, repeats, channels, shortcut], got {len(row.arguments)} arguments")
    num_classes, repeats, channels, shortcut = row.arguments
    whole = isinstance(num_classes, int) and not isinstance(num_classes, bool)
    if not whole or not 1 <= num_classes <= IGNORED_PIXEL:
        raise ValueError(f"the number of classes must be from 1 to {IGNORED_PIXEL}, got {num_classes!r:.40}")
    if not isinstance(shortcut, bool):
        raise ValueError(f"the fourth argument must be True or False, got {shortcut!r:.40}")
    return SemanticRow(num_classes, row.scale_depth(repeats), row.scale_width(channels), shortcut)


class SemanticHead(nn.Module):
    """Base of the semantic heads: logits per pixel at the size of the first input, corners aligned with the image."""

    name = "semantic"
    takes_list = True
    classes_key = "n_segcls"  # of the model YAML

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def configure(self, strides: tuple[int, ...]) -> None:
        """Check the strides of the inputs, of which the first must be the finest."""
        if min(strides) != strides[0]:
            raise ValueError(f"the first input must be the finest; the strides are {list(strides)}")

    def decode(self, raw: Raw) -> Decoded:
        """Decode to logits (B, C, h, w) in fp32."""
        return {"logits": to_fp32(raw["logits"])}

    @property
    def spec(self) -> HeadSpec:
        """Static description of the head."""
        return HeadSpec(self.name, self.num_classes)
