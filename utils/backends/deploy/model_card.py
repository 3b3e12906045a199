"""Model card for the Hugging Face Hub: README.md with YAML front matter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from utils.backends.deploy import DEPLOYMENTS, Deployment
from utils.backends.deploy.release import Release
from utils.core.errors import UserError
from utils.core.files import write_text
from utils.core.yaml_file import dump_yaml

_PIPELINE_TAGS = {  # of the Hub, by head
    "detect": "object-detection",
    "segment": "image-segmentation",
    "semantic": "image-segmentation",
    "classify": "image-classification",
}
_PROGRAMS = {"classify": "classify/predict.py", "segment": "segment/predict.py"}
_MAX_NAMES = 100  # class names listed in the text


@DEPLOYMENTS.register("model-card")
class ModelCardDeployment(Deployment):
    """Writes README.md, to be uploaded beside the checkpoint and the exported files."""

    title, formats, ending = "model card", (), "_model_card"

    @staticmethod
    def write(release: Release, folder: Path) -> None:
        """Write the card; facts are those of the checkpoint; unknown ones are left out."""
        tag = _PIPELINE_TAGS.get(release.task, "object-detection")
        front: dict[str, Any] = {"library_name": "polyolo", "pipeline_tag": tag, "tags": ["polyolo", "yolo", tag]}
        data = Path(str(release.training.get("data") or "")).stem
        if data:
            front["datasets"] = [data]
        parts = [f"---\n{dump_yaml(front)}---\n", f"# {release.stem}\n", _facts(release, data)]
        if table := _metrics(release.checkpoint):
            parts.append(f"## Metrics\n\n{table}")
        parts += [_usage(release), _files(release), _classes(release)]
        write_text(folder / "README.md", "\n".join(parts))


def _facts(release: Release, data: str) -> str:
    about = next(iter(release.metadata.values()))
    heads = ", ".join(f"{name} ({spec.num_classes} classes)" for name, spec in about.specs.items())
    height, width = about.image_hw
    lines = [f"- Heads: {heads}", f"- Input: {height} x {width} pixels, RGB from 0 to 1; multiples of {about.stride}"]
    lines += [f"- Training data: `{data}`"] if data else []
    return "\n".join(lines) + "\n"


def _metrics(checkpoint: Path) -> str:
    """Format the validation metrics of the run that wrote a best.pt as a table, "" without any."""
    results = checkpoint.parent.parent / "results.json"
    if checkpoint.name != "best.pt" or not results.is_file():
        return ""
    try:
        stored = json.loads(results.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{results}: damaged; remove it, or validate the checkpoint again") from error
    scores = {key: value for key, value in stored.items() if isinstance(value, float)}
    numbers = {key: value for key, value in scores.items() if not key.startswith(("speed/", "val/"))}
    rows = "".join(f"| {key} | {value:.4f} |\n" for key, value in numbers.items())
    return f"| metric | validation |\n|---|---|\n{rows}" if rows else ""


def _usage(release: Release) -> str:
    program = _PROGRAMS.get(release.task, "detect.py")
    file = release.checkpoint.name
    return (
        "## Usage\n\n"
        f"```bash\npython {program} --weights hf://OWNER/REPOSITORY/{file} --download --source photo.jpg\n```\n\n"
        f'```python\nimport polyolo\n\nresults = polyolo.load({file!r}).predict("photo.jpg")\n```\n'
    )


def _files(release: Release) -> str:
    rows = "".join(
        f"| `{path.name}` | {name}, {release.metadata[name].precision} |\n" for name, path in release.files.items()
    )
    return f"## Files\n\n| file | format |\n|---|---|\n| `{release.checkpoint.name}` | checkpoint |\n{rows}"


def _classes(release: Release) -> str:
    names = [name.replace("\n", " ") for name in release.class_names]
    more = f", … ({len(names)} in all)" if len(names) > _MAX_NAMES else ""
    return f"## Classes\n\n{', '.join(names[:_MAX_NAMES])}{more}\n"
