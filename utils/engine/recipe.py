"""Application of `--recipe` to the settings of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from utils.core import distributed as dist
from utils.core.contracts import HeadSpec, Loader
from utils.core.hyp import Hyp
from utils.core.log import LOGGER
from utils.core.train_settings import TrainSettings
from utils.engine.recipe_facts import LARGEST_STEP, Facts


def close_mosaic(settings: TrainSettings, hyp: Hyp) -> Hyp:
    """Set the epochs without mosaic, which loaders need before the recipe knows the data."""
    if settings.recipe != "auto" or hyp.close_mosaic:
        return hyp
    from utils.engine.recipe_auto import closed_epochs  # loaded only if it is used

    return replace(hyp, close_mosaic=float(closed_epochs(settings.epochs)))


def apply_recipe(
    settings: TrainSettings, hyp: Hyp, loader: Loader, specs: Mapping[str, HeadSpec]
) -> tuple[TrainSettings, Hyp]:
    """Replace options and hyperparameters by those of the recipe; explicit options and hyperparameters stay.

    Without `--recipe` nothing changes, but a log line says when it would.

    Args:
        settings: Options of the run, with the batch size resolved.
        hyp: Its hyperparameters.
        loader: Training images.
        specs: Heads of the network by name.
    """
    anchor_free = any(spec.bins and name in (loader.heads or specs) for name, spec in specs.items())
    facts = Facts(
        images=loader.num_images,
        objects=int(loader.class_counts.sum()),
        epochs=settings.epochs,
        batch_size=int(settings.batch_size),
        pretrained=bool(settings.weights),
        processes=dist.world_size(),
        fixed_batch="batch_size" in settings.explicit,
        class_counts=tuple(loader.class_counts.tolist()) if anchor_free else (),
    )
    if settings.recipe != "auto":
        if facts.is_small and settings.optimizer == "SGD" and hyp.nominal_batch >= LARGEST_STEP > facts.batch_size:
            LOGGER.info(
                f"{facts.default_steps} optimizer steps are few; --recipe auto would use AdamW with a step per batch"
            )
        return settings, hyp
    from utils.engine.recipe_auto import choose  # loaded only if it is used

    choice = choose(facts)
    changed = {name: value for name, value in choice.settings.items() if name not in _explicit_options(settings)}
    kept = _explicit_hyps(settings, hyp)
    for reason in choice.reasons:
        LOGGER.info(f"recipe: {reason}")
    other = {name for name in kept & choice.hyp.keys() if getattr(hyp, name) != choice.hyp[name]}
    if clash := sorted(({*choice.settings} - {*changed}) | other):
        LOGGER.info(f"recipe: not changed, given explicitly: {', '.join(clash)}")
    return replace(settings, **changed), replace(hyp, **{k: v for k, v in choice.hyp.items() if k not in kept})


def _explicit_options(settings: TrainSettings) -> set[str]:
    given = set(settings.explicit)
    return given | ({"schedule"} if "cos_lr" in given else set())


def _explicit_hyps(settings: TrainSettings, hyp: Hyp) -> set[str]:
    """Return the hyperparameters that the user set: options, and values of `--hyp` other than the defaults."""
    options = {"lr0": "lr0", "decay": "weight_decay"}
    found = {name for option, name in options.items() if option in settings.explicit}
    if "hyp" in settings.explicit:
        default = Hyp().to_dict()
        found |= {name for name, value in hyp.to_dict().items() if value != default.get(name)}
    return found
