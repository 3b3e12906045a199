"""A complete classification network of torchvision as a head whose input is the image."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from models.heads.classify import USUAL_PX, ClassHead
from models.layer_plan import HEADS, Plan, Row
from utils.core.contracts import Raw
from utils.core.errors import UserError

_FIXED_SIZE_FAMILIES = ("vit_", "maxvit")  # their position embeddings have one size
_MIN_PX = {"inception_v3": 75, "alexnet": 63}  # with less, a convolution has nothing left to work on
_BUILD_OPTIONS: dict[str, dict[str, Any]] = {  # their published weights expect inputs in [-1, 1], not ImageNet's scale
    name: {"aux_logits": False, "transform_input": True, "init_weights": True} for name in ("googlenet", "inception_v3")
}


def classifier_names() -> list[str]:
    """List torchvision's classification networks.

    Raises:
        UserError: torchvision cannot be imported.
    """
    try:
        from torchvision import models
    except (ImportError, RuntimeError) as error:  # RuntimeError: built for another version of torch
        raise UserError(f"torchvision cannot be imported ({error}); pip install torchvision") from error
    return sorted(models.list_models(module=models))


def _plan(row: Row) -> Plan:
    if len(row.arguments) != 2 or not isinstance(row.arguments[0], str):
        raise ValueError("expected the name of a torchvision network and the number of classes")
    return Plan(row.arguments, 0)


@HEADS.register("torchvision")
class Torchvision(ClassHead):
    """A torchvision network under `net`; `fixed_px` is its only input size, 0 for any.

    Args:
        network: torchvision's name of the network.
        num_classes: number of classes.

    Raises:
        UserError: torchvision is missing or has no such network.
    """

    takes_list = False
    stride = 32  # total stride of these networks
    plan = staticmethod(_plan)

    def __init__(self, network: str, num_classes: int) -> None:
        super().__init__()
        if network not in classifier_names():
            raise UserError(f"torchvision has no classification network {network!r}")
        from torchvision.models import get_model

        self.num_classes = num_classes
        self.net: nn.Module = get_model(
            network, weights=None, num_classes=num_classes, **_BUILD_OPTIONS.get(network, {})
        )
        self.min_px = _MIN_PX.get(network, 1)
        self.fixed_px = USUAL_PX if network.startswith(_FIXED_SIZE_FAMILIES) else 0
        self._norms = [(m, m.eps, m.momentum) for m in self.net.modules() if isinstance(m, nn.BatchNorm2d)]

    def configure(self, strides: tuple[int, ...]) -> None:
        """Restore torchvision's normalisation settings, which the builder replaced."""
        for module, eps, momentum in self._norms:
            module.eps, module.momentum = eps, momentum
        self._norms = []

    def forward(self, images: Tensor) -> Raw:
        """Compute logits (B, C) from images (B, 3, H, W)."""
        if min(images.shape[2:]) < self.min_px:
            raise UserError(
                f"--imgsz {min(images.shape[2:])}: this network needs images of at least {self.min_px} pixels"
            )
        return {"logits": self.net(images)}
