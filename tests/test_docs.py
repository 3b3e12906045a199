"""The documentation: its commands are accepted, its files exist, and options.md lists exactly the programs' options."""

import argparse
import importlib
import re
import shlex
from pathlib import Path

import pytest

from utils.core.cli import format_default
from utils.core.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "benchmarks" / "README.md"], key=lambda path: path.name
)
PROGRAMS = (
    "train", "val", "detect", "segment/train", "segment/val", "segment/predict", "classify/train", "classify/val",
    "classify/predict", "convert", "export", "benchmark", "hubconf",
    "serve", "check", "tune", "prune",
)  # fmt: skip
PLACEHOLDERS = {"data/animals.yaml"}  # what readers are to write themselves
OURS = re.compile(
    r"(?:utils|models|data|docs|tests|benchmarks|\.ci)/[\w./{},-]*|[\w-]+\.(?:py|toml)|requirements[\w-]*\.txt"
)


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def parser_of(program):
    return importlib.import_module(program.replace("/", ".")).build_parser()


def actions_of(program):
    """Return the options of a program; of one with commands, those of all commands in their order."""
    actions = parser_of(program)._actions
    commands = [action.choices.values() for action in actions if isinstance(action, argparse._SubParsersAction)]
    return [action for parser in commands[0] for action in parser._actions] if commands else actions


def blocks(text, language):
    """Return the contents of the code blocks in `language`."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def without_blocks(text):
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def spans(text):
    """Return what stands between single backquotes."""
    return re.findall(r"`([^`\n]+)`", without_blocks(text))


def command_lines(text):
    """Return every single command of the bash blocks, and those that stand between backquotes in the text."""
    lines = [line for block in blocks(text, "bash") for line in block.replace("\\\n", " ").splitlines()]
    lines += [span for span in spans(text) if span.startswith(("python ", "torchrun "))]
    words = [shlex.split(line, comments=True) for line in lines]
    commands = []
    for line in words:
        while "&&" in line:
            commands.append(line[: line.index("&&")])
            line = line[line.index("&&") + 1 :]
        commands.append(line)
    return [command for command in commands if command]


def program_and_options(command):
    """Return which script a command runs and with what, (None, []) if it runs none of ours."""
    for place, word in enumerate(command):
        if word.endswith(".py") and command[0] in {"python", "torchrun"}:
            return word.removesuffix(".py"), [option for option in command[place + 1 :] if option != "…"]
    return None, []


COMMANDS = [(name_of(page), command) for page in PAGES for command in command_lines(page.read_text())]


@pytest.mark.parametrize(
    ("page", "command"), COMMANDS, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_documented_commands_parse(page, command):
    program, options = program_and_options(command)
    if program is None:
        return
    if program.startswith("benchmarks/"):
        parser = importlib.import_module(program.replace("/", ".")).build_parser()
    else:
        assert program in PROGRAMS, f"{page}: {program}.py is no program"
        parser = parser_of(program)
    try:
        parser.parse_args(options)
    except SystemExit as stop:
        if stop.code:  # --help leaves with 0
            pytest.fail(f"{page}: `{' '.join(command)}` is refused with status {stop.code}")


def test_every_program_has_documented_commands():
    found = {program_and_options(command)[0] for _, command in COMMANDS}
    assert set(PROGRAMS) <= found and len(COMMANDS) > 30


def test_wrong_options_are_detected():
    text = "```bash\npython val.py --no-such-option\n```\nand `torchrun --nproc-per-node 2 train.py --epoch …`\n"
    first, second = (program_and_options(command) for command in command_lines(text))
    assert first == ("val", ["--no-such-option"]) and second == ("train", ["--epoch"])
    with pytest.raises(UserError, match="--no-such-option"):
        parser_of("val").parse_args(first[1])


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_resolve(page):
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


def variants(text):
    """Return what `a/{b,c}.py` stands for."""
    found = re.search(r"\{([^}]*)\}", text)
    if not found:
        return [text]
    return [way for part in found[1].split(",") for way in variants(text[: found.start()] + part + text[found.end() :])]


def named_files(page):
    """Return the files of the project that a page names; the left column of a table may name another project's."""
    text = page.read_text()
    if page.name.startswith("coming-from-"):
        text = "\n".join(line.split("|", 2)[2] if line.startswith("| `") else line for line in text.splitlines())
    inside = [word for span in spans(text) if OURS.fullmatch(span) for word in variants(span)]
    return [name for name in inside if name not in PLACEHOLDERS and not re.search(r"(^|/)x\.py$", name)]


NOT_HERE = {"test.py", "data/images", "eval.py", "eval_onnx.py", "postprocess.py"}  # of others, named as such


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_named_files_exist(page):
    missing = [name for name in named_files(page) if name not in NOT_HERE and not (ROOT / name).exists()]
    # a table about one folder may name its files alone
    assert [name for name in missing if "/" in name or not list(ROOT.glob(f"*/**/{name}"))] == []


def test_file_name_detection():
    assert len(named_files(ROOT / "README.md")) > 5 and variants("a/{b,c}.py") == ["a/b.py", "a/c.py"]


# ----------------------------------------------------------------------------------------------------------------------
# options.md


def cell(text):
    return str(text).replace("%%", "%").replace("|", "\\|")


def option_row(action):
    """Return the table row of an option; its default is the parser's, or what the help text has in parentheses."""
    names = ", ".join(f"`{name}`" for name in action.option_strings)
    text, _, default = action.help.removesuffix(")").partition(" (default: ")
    if not default:
        text, value = action.help, "" if action.default is argparse.SUPPRESS else format_default(action.default)
        default = f"`{value}`" if value else ""
    choices = [str(choice) for choice in action.choices or () if choice != ""]
    choices = [] if all(choice in text for choice in choices) else choices
    listed = f" ({', '.join(choices)})" if choices else ""
    return f"| {names} | {cell(default)} | {cell(text)}{listed} |"


def option_rows(program):
    """Return the rows that the program's table must have."""
    shown = [action for action in actions_of(program) if action.dest != "help" and action.help != argparse.SUPPRESS]
    return [option_row(action) for action in shown]


@pytest.mark.parametrize("program", PROGRAMS)
def test_options_page_is_current(program):
    text = (ROOT / "docs" / "options.md").read_text()
    section = re.search(rf"^## {program}\.py\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section, f"docs/options.md has no section {program}.py"
    found = [line for line in section[1].splitlines() if line.startswith("| `--")]
    wanted = option_rows(program)
    assert found == wanted, f"the table of {program}.py should be\n" + "\n".join(wanted)


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_option_is_documented(program):
    text = "\n".join(page.read_text() for page in PAGES)
    options = {name for action in actions_of(program) for name in action.option_strings} - {"-h", "--help"}
    assert [name for name in sorted(options) if not re.search(rf"{re.escape(name)}(?![\w-])", text)] == []


# ----------------------------------------------------------------------------------------------------------------------
# What others rely on


@pytest.mark.parametrize(
    ("section", "wanted"),
    [
        ("Quick start", "python -m pip install -r requirements.txt && python train.py"),
        ("Tests", "python -m pip install -r requirements-dev.txt && python -m pytest tests"),
    ],
)
def test_readme_starts_with_the_two_commands(section, wanted):
    text = (ROOT / "README.md").read_text()
    part = text.split(f"\n## {section}\n", 1)[1].split("\n## ", 1)[0]
    assert re.findall(r"^```\w*\n(.*?)^```", part, re.MULTILINE | re.DOTALL)[0].strip() == wanted


def test_every_data_and_hyp_file_is_documented():
    text = "\n".join(page.read_text() for page in PAGES)
    files = [*(ROOT / "data").glob("*.yaml"), *(ROOT / "data" / "hyps").glob("*.yaml")]
    assert [path.name for path in files if path.name not in text] == []


def test_every_benchmark_is_documented():
    text = (ROOT / "benchmarks" / "README.md").read_text()
    programs = [path for path in (ROOT / "benchmarks").glob("*.py") if "def main(" in path.read_text()]
    assert len(programs) >= 5 and [path.name for path in programs if path.name not in text] == []


def test_reports_have_no_absolute_paths():
    pages = [*PAGES, *(ROOT / "benchmarks" / "results").glob("*.md")]
    # routes of the service are no folders
    absolute = r"(?<![\w.…*<>:/~-])/(?!v1/)[a-zA-Z]\w*/[\w./-]+"
    found = {name_of(page): re.findall(absolute, page.read_text()) for page in pages}
    assert not {name: words for name, words in found.items() if words}
