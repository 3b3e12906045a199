"""Write the option tables of docs/options.md from the programs' parsers: `python docs/write_options.py`."""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "options.md"
PROGRAMS = (
    "train", "val", "detect", "segment/train", "segment/val", "segment/predict", "classify/train", "classify/val",
    "classify/predict", "convert", "export", "benchmark", "hubconf", "serve", "check", "tune", "prune",
)  # fmt: skip
HEADER = "| option | meaning |\n|---|---|\n"
_DEFAULT_GROUPS = ("options", "positional arguments")


def parser_of(program: str) -> argparse.ArgumentParser:
    """Build the parser of a program, such as `segment/train`."""
    return importlib.import_module(program.replace("/", ".")).build_parser()


def commands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the parsers of a program's commands by name; without commands, its own parser under ""."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {"": parser}


def _row(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    names = ", ".join(f"`{name}`" for name in action.option_strings)
    meaning, found, default = parser._get_formatter()._expand_help(action).rpartition(" (default: ")
    meaning, default = (meaning, found + default) if found else (default, "")
    choices = [str(choice) for choice in action.choices or () if choice != ""]
    listed = "" if all(choice in meaning for choice in choices) else f": {', '.join(choices)}"
    text = f"{meaning}{listed}{default}".replace("|", "\\|")
    return f"| {names} | {text} |\n"


def tables(parser: argparse.ArgumentParser) -> str:
    """Return one Markdown table per argument group of a parser, each below the group's title."""
    parts = []
    for group in parser._action_groups:
        actions = [a for a in group._group_actions if a.dest != "help" and a.help != argparse.SUPPRESS]
        rows = "".join(_row(parser, action) for action in actions if action.option_strings)
        if rows:
            title = "" if group.title in _DEFAULT_GROUPS else f"**{str(group.title).capitalize()}**\n\n"
            parts.append(f"{title}{HEADER}{rows}")
    return "\n".join(parts)


def section(program: str, introduction: str) -> str:
    """Return the page's section of a program; `introduction` is the text before its first table."""
    parts = [f"## {program}.py\n", f"{introduction}\n" if introduction else ""]
    for command, parser in commands_of(parser_of(program)).items():
        parts += [f"### {command}\n" if command else "", tables(parser)]
    return "\n".join(part for part in parts if part)


def page(text: str) -> str:
    """Write the page with new tables; introductions are taken from `text`, its present content."""
    opening, *sections = re.split(r"^## (?=\S+\.py$)", text, flags=re.MULTILINE)
    introductions = {}
    for part in sections:
        name, _, rest = part.partition(".py\n")
        introductions[name] = re.split(r"^(?:\*\*|### |\| option )", rest, maxsplit=1, flags=re.MULTILINE)[0].strip()
    order = [*introductions, *(program for program in PROGRAMS if program not in introductions)]
    written = [section(name, introductions.get(name, "")) for name in order if name in PROGRAMS]
    return "\n".join([opening.rstrip() + "\n", *written])


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))  # the programs lie there
    main()
