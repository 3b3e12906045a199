"""Several runners as one: boxes are concatenated, class probabilities and semantic logits averaged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from models.kernels.resample import resize_maps
from utils.core.contracts import Decoded, HeadSpec, Outputs, Runner
from utils.core.errors import UserError


def require_all_boxes(runners: Sequence[Runner], what: str) -> None:
    """Raise UserError for runners with a duplicate filter, whose boxes cannot be merged by NMS."""
    if any(spec.end_to_end for runner in runners for spec in runner.specs.values()):
        raise UserError(f"--end-to-end: {what} merges boxes by NMS; leave the option out")


def concat_boxes(parts: Sequence[Decoded], spec: HeadSpec) -> Decoded:
    """Concatenate one head's boxes from several runs.

    Every run has its own mask prototypes: they are stacked, and each box gets zero coefficients for those of the other
    runs, so that its mask stays the same.

    Args:
        parts: predictions (B, N_i, columns) and prototypes (B, M_i, h, w), if any, of each run.
        spec: of the head.

    Returns:
        predictions (B, sum of N_i, columns) and prototypes (B, sum of M_i, h, w).
    """
    if "prototypes" not in parts[0]:
        return {"predictions": torch.cat([part["predictions"] for part in parts], dim=1)}
    boxes = 5 + spec.num_classes
    shifted = []
    for index, part in enumerate(parts):
        before = sum(other["prototypes"].shape[1] for other in parts[:index])
        after = sum(other["prototypes"].shape[1] for other in parts[index + 1 :])
        coefficients = functional.pad(part["predictions"][..., boxes:], (before, after))
        shifted.append(torch.cat((part["predictions"][..., :boxes], coefficients), dim=-1))
    prototypes = torch.cat([part["prototypes"] for part in parts], dim=1)
    return {"predictions": torch.cat(shifted, dim=1), "prototypes": prototypes}


def average_outputs(parts: Sequence[Decoded]) -> Decoded:
    """Average the outputs of several runs; maps are resized to the largest."""
    return {key: torch.stack(_to_one_size([part[key] for part in parts])).mean(dim=0) for key in parts[0]}


def _to_one_size(tensors: list[Tensor]) -> list[Tensor]:
    if tensors[0].ndim != 4 or len({tensor.shape[2:] for tensor in tensors}) == 1:
        return tensors
    height, width = (max(tensor.shape[side] for tensor in tensors) for side in (2, 3))
    return [resize_maps(tensor, height, width) for tensor in tensors]


class Ensemble:
    """`Runner` over several others, with the class names of the first and the largest stride.

    Raises:
        UserError: The members have different heads, numbers of classes or fixed input sizes.
    """

    def __init__(self, members: Sequence[Runner]) -> None:
        if not members:
            raise ValueError("an ensemble needs at least one member")
        if len(members) > 1:
            require_all_boxes(members, "an ensemble")
        self.members = tuple(members)
        self.names = members[0].names
        self.stride = max(member.stride for member in members)
        self.specs = {name: self._merge_specs(name) for name in self._common_heads()}
        sizes = {member.fixed_hw for member in members} - {None}
        if len(sizes) > 1:
            raise UserError(f"these models cannot form an ensemble: they need {len(sizes)} different input sizes")
        self.fixed_hw: tuple[int, int] | None = next(iter(sizes), None)

    def _common_heads(self) -> list[str]:
        heads = [sorted(member.specs) for member in self.members]
        for other in heads[1:]:
            if other != heads[0]:
                raise UserError(f"these models cannot form an ensemble: their heads differ ({', '.join(heads[0])} and "
                                f"{', '.join(other)})")  # fmt: skip
        return list(self.members[0].specs)

    def _merge_specs(self, name: str) -> HeadSpec:
        specs = [member.specs[name] for member in self.members]
        counts = sorted({spec.num_classes for spec in specs})
        if len(counts) > 1:
            raise UserError(f"these models cannot form an ensemble: they have {' and '.join(map(str, counts))} classes")
        return replace(specs[0], num_masks=sum(spec.num_masks for spec in specs))

    def run(self, images: Tensor) -> Outputs:
        """Run (B, 3, H, W) uint8 or float images; raw outputs stay empty."""
        outputs = [member.run(images).decoded for member in self.members]
        decoded = {}
        for name in self.specs:
            parts = [output[name] for output in outputs]
            boxes = "predictions" in parts[0]
            decoded[name] = concat_boxes(parts, self.specs[name]) if boxes else average_outputs(parts)
        return Outputs(decoded=decoded)
