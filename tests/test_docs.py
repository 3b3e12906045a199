"""The documentation: commands parse, links and names resolve, options.md lists exactly the programs' options."""

import ast
import importlib
import io
import re
import shlex
import tokenize
from dataclasses import fields
from pathlib import Path

import pytest

from docs.write_options import PROGRAMS, commands_of, page, parser_of
from tests.test_layout import MAY_IMPORT
from utils.core.errors import UserError
from utils.core.hyp import Hyp

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "benchmarks" / "README.md"], key=lambda path: path.name
)
PLACEHOLDERS = {"data/animals.yaml"}  # what readers are to write themselves
OURS = re.compile(
    r"(?:utils|models|tools|data|docs|tests|benchmarks|\.ci)/[\w./{},-]*|[\w-]+\.(?:py|toml)|requirements[\w-]*\.txt"
)


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def options_of(program):
    """Return every spelling of every option of a program, of all its commands."""
    parsers = commands_of(parser_of(program)).values()
    return {name for parser in parsers for action in parser._actions for name in action.option_strings}


def blocks(text, language):
    """Return the contents of the code blocks in `language`."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def without_blocks(text):
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def spans(text):
    """Return the texts between single backquotes."""
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
    if program.startswith("docs/"):  # takes no options
        assert (ROOT / f"{program}.py").is_file() and not options
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


def headings(path):
    """Return the anchors of a page's headings, as GitHub forms them."""
    titles = re.findall(r"^#+ (.*)$", without_blocks(path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_resolve(page):
    missing = []
    for link, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", page.read_text()):
        target = page.parent / link if link else page
        if "://" not in link and (not target.exists() or (anchor and anchor not in headings(target))):
            missing.append(f"{link}#{anchor}")
    assert not missing


def variants(text):
    """Expand braces as in `a/{b,c}.py`."""
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


def test_options_page_is_current():
    text = (ROOT / "docs" / "options.md").read_text()
    assert page(text) == text, "docs/options.md is out of date: run python docs/write_options.py"
    assert all(f"\n## {program}.py\n" in text for program in PROGRAMS)


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_option_is_documented(program):
    text = "\n".join(page.read_text() for page in PAGES)
    options = options_of(program) - {"-h", "--help"}
    assert [name for name in sorted(options) if not re.search(rf"{re.escape(name)}(?![\w-])", text)] == []


# ----------------------------------------------------------------------------------------------------------------------
# References to documents

FOLDERS = ("benchmarks", "classify", "data", "docs", "models", "segment", "tests", "tools", "utils")
SOURCES = sorted(
    path
    for pattern in ("*.py", "*.yaml", "*.md", "*.html", "*.toml", "*.txt", "Dockerfile")
    for folder in (ROOT, *(ROOT / name for name in FOLDERS))
    for path in (folder.glob(pattern) if folder == ROOT else folder.rglob(pattern))
)
TEST_INPUTS = {
    "licence.md",
    "notes.md",
    "docs/notes.md",
    "data/notes.md",
    "index.md",
    "benchmarks/index.md",
}  # files that tests name or write themselves
SECTION_NUMBER = re.compile(r"behaviou?r(?:\.md)?,? \d|[(;] ?(?:[1-9]|1[0-4])\.\d\d?[a-z]?(?:, [A-Z]\w+)?\)|\(G\d+[):]")


def documents_named(path):
    """Return the Markdown files that a file mentions."""
    return set(re.findall(r"(?<![\w./-])[\w./-]+\.md\b", path.read_text(encoding="utf-8"))) - TEST_INPUTS


def exists_somewhere(path, name):
    if (ROOT / "benchmarks" / f"{Path(name).stem}.py").is_file():  # the report that it writes on request
        return True
    folders = (path.parent, ROOT, ROOT / "docs", ROOT / "docs" / "reference", ROOT / "benchmarks" / "results")
    return any((folder / name).exists() for folder in folders)


def test_no_reference_to_missing_documents():
    missing = {
        name_of(path): sorted(name for name in documents_named(path) if not exists_somewhere(path, name))
        for path in SOURCES
    }
    assert not {path: names for path, names in missing.items() if names}


def remarks(path):
    """Return the comments and docstrings of a program, the comments of a YAML."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".yaml":
        return "\n".join(re.findall(r"(?:^|\s)#(.*)$", text, re.MULTILINE))
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [ast.get_docstring(node) or "" for node in ast.walk(ast.parse(text)) if isinstance(node, kinds)]
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return "\n".join([*found, *(token.string for token in tokens if token.type == tokenize.COMMENT)])


def test_no_section_numbers_of_other_documents():
    found = {
        name_of(path): SECTION_NUMBER.findall(remarks(path)) for path in SOURCES if path.suffix in (".py", ".yaml")
    }
    assert not {path: numbers for path, numbers in found.items() if numbers}


# ----------------------------------------------------------------------------------------------------------------------
# What others rely on


def test_architecture_page_lists_the_import_rule():
    text = (ROOT / "docs" / "architecture.md").read_text()
    short = {part.rpartition("/")[2]: part for part in MAY_IMPORT}
    table = {}
    for parts, imports in re.findall(
        r"^\| (`(?:utils|tools|models|polyolo)[^|]*) \| [^|]* \| ([^|]*) \|$", text, re.MULTILINE
    ):
        allowed = set() if imports == "no other part" else {short[name] for name in imports.split(", ")}
        table |= dict.fromkeys(re.findall(r"`([^`]+)`", parts), allowed)
    assert {part: table.get(part) for part in MAY_IMPORT} == MAY_IMPORT


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


def test_site_navigation_lists_every_page():
    text = (ROOT / "mkdocs.yml").read_text().split("\nnav:\n", 1)[1]
    listed = re.findall(r"[\w/-]+\.(?:md|ipynb)", text)
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert sorted(pages - set(listed)) == [], "add these pages to nav: of mkdocs.yml"
    assert len(listed) == len(set(listed))


def test_every_data_and_hyp_file_is_documented():
    text = "\n".join(page.read_text() for page in PAGES)
    files = [*(ROOT / "data").glob("*.yaml"), *(ROOT / "data" / "hyps").glob("*.yaml")]
    assert [path.name for path in files if path.name not in text] == []


def test_reference_lists_every_hyperparameter_with_its_default():
    text = (ROOT / "docs" / "reference" / "training.md").read_text()
    table = text.split("## Hyperparameters\n", 1)[1].split("\n## ", 1)[0]
    listed = {}
    for keys, defaults in re.findall(r"^\| (`[^|]*) \|([^|]*)\|", table, re.MULTILINE):
        listed |= dict(zip(re.findall(r"`(\w+)`", keys), defaults.strip().split(", "), strict=True))
    shown = {field.name: "" if field.default is None else field.default for field in fields(Hyp)}
    assert listed == {key: value if isinstance(value, str) else f"{value:g}" for key, value in shown.items()}


def test_every_benchmark_is_documented():
    text = (ROOT / "benchmarks" / "README.md").read_text()
    programs = [path for path in (ROOT / "benchmarks").glob("*.py") if "def main(" in path.read_text()]
    assert len(programs) >= 5 and [path.name for path in programs if path.name not in text] == []


def test_reports_have_no_absolute_paths():
    pages = [*PAGES, *(ROOT / "benchmarks" / "results").glob("*.md")]
    # routes of the service, and folders in a container, are none of this machine
    absolute = r"(?<![\w.…*<>:/~-])/(?!v1/|models/)[a-zA-Z]\w*/[\w./-]+"
    found = {name_of(page): re.findall(absolute, page.read_text()) for page in pages}
    assert not {name: words for name, words in found.items() if words}
