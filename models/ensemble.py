"""Several runners as one: boxes side by side, whole-image and per-pixel results averaged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from models.kernels.resample import resized
from utils.core.contracts import Decoded, HeadSpec, Outputs, Runner
from utils.core.errors import UserError


def join_boxes(parts: Sequence[Decoded], spec: HeadSpec) -> Decoded:
    """Return one head's boxes from several runs: (B, N1 + N2 + …, columns).

    With masks, every run has its own prototypes: these are stacked to (B, runs * M, h, w), and the coefficients of a
    box are zero for the others' prototypes, so that any combination still gives the mask it gave alone.
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


def mean(parts: Sequence[Decoded]) -> Decoded:
    """Return the average of what several runs found; maps are brought to the size of the largest."""
    return {key: torch.stack(_of_one_size([part[key] for part in parts])).mean(dim=0) for key in parts[0]}


def _of_one_size(tensors: list[Tensor]) -> list[Tensor]:
    if tensors[0].ndim != 4 or len({tensor.shape[2:] for tensor in tensors}) == 1:
        return tensors
    height, width = (max(tensor.shape[side] for tensor in tensors) for side in (2, 3))
    return [resized(tensor, height, width) for tensor in tensors]


class Ensemble:
    """A `Runner` over several: names of the first, the largest stride."""

    def __init__(self, members: Sequence[Runner]) -> None:
        if not members:
            raise ValueError("an ensemble needs at least one member")
        self.members = tuple(members)
        self.names = members[0].names
        self.stride = max(member.stride for member in members)
        self.specs = {name: self._joined_spec(name) for name in self._shared_heads()}
        sizes = {member.fixed_hw for member in members} - {None}
        if len(sizes) > 1:
            raise UserError(f"these models cannot run together, they take images of {len(sizes)} different sizes")
        self.fixed_hw: tuple[int, int] | None = next(iter(sizes), None)

    def _shared_heads(self) -> list[str]:
        heads = [sorted(member.specs) for member in self.members]
        for other in heads[1:]:
            if other != heads[0]:
                raise UserError(f"these models cannot run together, their heads differ: {', '.join(heads[0])} and "
                                f"{', '.join(other)}")  # fmt: skip
        return list(self.members[0].specs)

    def _joined_spec(self, name: str) -> HeadSpec:
        specs = [member.specs[name] for member in self.members]
        counts = sorted({spec.num_classes for spec in specs})
        if len(counts) > 1:
            raise UserError(f"these models cannot run together, they have {' and '.join(map(str, counts))} classes")
        return replace(specs[0], num_masks=sum(spec.num_masks for spec in specs))

    def run(self, images: Tensor) -> Outputs:
        """Return decoded outputs for (B, 3, H, W) uint8 or float images; there are no raw ones to speak of."""
        outputs = [member.run(images).decoded for member in self.members]
        decoded = {}
        for name in self.specs:
            parts = [output[name] for output in outputs]
            decoded[name] = join_boxes(parts, self.specs[name]) if "predictions" in parts[0] else mean(parts)
        return Outputs(decoded=decoded)
