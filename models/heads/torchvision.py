"""A whole classification network of torchvision, as a head that looks at the image itself."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from models.heads.classify import ClassHead
from models.layer_plan import HEADS, Plan, Row
from utils.core.contracts import Raw
from utils.core.errors import UserError

FIXED_PX = 224  # of the families below, whose position tables have one size
_FIXED_FAMILIES = ("vit_", "maxvit")
_LEAST_PX = {"inception_v3": 75, "alexnet": 63}
_EXTRA: dict[str, dict[str, Any]] = {  # their published weights expect inputs turned from ImageNet's scale to [-1, 1]
    name: {"aux_logits": False, "transform_input": True, "init_weights": True} for name in ("googlenet", "inception_v3")
}


def classifier_names() -> list[str]:
    """Return the names of torchvision's classification networks; UserError where the package cannot be loaded."""
    try:
        from torchvision import models
    except (ImportError, RuntimeError) as error:  # RuntimeError: built for another version of torch
        raise UserError(f"torchvision cannot be loaded ({error}); pip install torchvision") from error
    return sorted(models.list_models(module=models))


def _plan(row: Row) -> Plan:
    if len(row.arguments) != 2 or not isinstance(row.arguments[0], str):
        raise ValueError("the arguments are the name of a network of torchvision and the number of classes")
    return Plan(row.arguments, 0)


@HEADS.register("torchvision")
class Torchvision(ClassHead):
    """The network that torchvision calls `network`, with `c2` classes; its weights stand below `net.`.

    Networks with a table of positions (ViT, MaxViT) take images of one size only, `fixed_px`.
    """

    takes_list = False
    stride = 32  # by which these networks shrink an image, one way or another
    plan = staticmethod(_plan)

    def __init__(self, network: str, c2: int) -> None:
        super().__init__()
        if network not in classifier_names():
            raise UserError(f"torchvision has no classification network called {network!r}")
        from torchvision.models import get_model

        self.num_classes = c2
        self.net: nn.Module = get_model(network, weights=None, num_classes=c2, **_EXTRA.get(network, {}))
        self.least_px = _LEAST_PX.get(network, 1)
        self.fixed_px = FIXED_PX if network.startswith(_FIXED_FAMILIES) else 0
        self._norms = [(m, m.eps, m.momentum) for m in self.net.modules() if isinstance(m, nn.BatchNorm2d)]

    def set_up(self, strides: tuple[int, ...]) -> None:
        """Give the normalisations torchvision's settings back, which the builder replaced by YOLOv5's."""
        for module, eps, momentum in self._norms:
            module.eps, module.momentum = eps, momentum
        self._norms = []

    def forward(self, images: Tensor) -> Raw:
        """Take (B, 3, H, W) images, return logits (B, C)."""
        if min(images.shape[2:]) < self.least_px:
            raise UserError(
                f"--imgsz {min(images.shape[2:])}: this network takes images from {self.least_px} pixels up"
            )
        return {"logits": self.net(images)}
