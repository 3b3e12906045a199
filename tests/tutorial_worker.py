"""Execute the code blocks of Markdown pages in one process, at a small size: `tutorial_worker.py RESULTS PAGE...`.

Runs in a copy of the project, the current folder. Bash blocks run the programs in this process, since importing torch
for each of them would take longer than what they do. Python blocks of a page share their names; a comment `# → text`
is a line that the block has to print. The line above a block may be `<!-- shown only: reason -->` or, for a command
that fails, `<!-- status 1 -->`.
"""

import contextlib
import io
import json
import re
import runpy
import shlex
import sys
import traceback
from pathlib import Path

BLOCK = re.compile(r"^(?:<!-- ([^\n]*) -->\n)?```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SMALL = {"--epochs": "1", "--img": "64", "--imgsz": "64", "--batch-size": "8"}  # values that replace those of the page
TRAINING, VALIDATION = ("train.py", "segment/train.py", "classify/train.py"), ("val.py", "segment/val.py")


def blocks_of(text):
    """Return (remark, language, code, line number) of every block."""
    return [(m[1] or "", m[2], m[3], text.count("\n", 0, m.start()) + 1) for m in BLOCK.finditer(text)]


def shrink(words):
    """Replace sizes of a command by small ones and switch plots and workers off."""
    small, option = [], ""
    for word in words:
        option = word if word.startswith("-") else option
        small.append(SMALL[option] if option in SMALL and not word.startswith("-") else word)
    program = next((word for word in words if word.endswith(".py")), "")
    if program in (*TRAINING, *VALIDATION):
        small += ["--workers", "0", "--noplots"]
    return small


def run_command(line):
    """Run one line of a bash block and return its exit status."""
    words = shrink(shlex.split(line, comments=True))
    assert words[0] == "python", f"{line}: only python can be run"
    module = words[1] == "-m"
    sys.argv = words[2 if module else 1 :]
    try:
        if module:
            runpy.run_module(words[2], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(words[1], run_name="__main__")
    except SystemExit as stop:
        return stop.code or 0
    return 0


def run_python(code, names, folder):
    """Run a Python block with the names of its page and return the expected lines that it did not print."""
    path = folder / "block.py"
    path.write_text(code, encoding="utf-8")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        names |= runpy.run_path(str(path), init_globals=names)
    lines = iter(printed.getvalue().splitlines())
    return [text for text in re.findall(r"^ *# → (.*)$", code, re.MULTILINE) if text not in lines]


def run_page(path, folder):
    """Return (number of blocks that ran, faults) of a page."""
    names, faults, count = {}, [], 0
    for remark, language, code, number in blocks_of(path.read_text(encoding="utf-8")):
        if remark.startswith("shown only: "):
            continue
        count += 1
        wanted = int(remark.removeprefix("status ")) if remark.startswith("status ") else 0
        try:
            if language == "python":
                faults += [f"{path.name}:{number}: {text!r} is not printed" for text in run_python(code, names, folder)]
                continue
            for line in filter(None, code.replace("\\\n", " ").splitlines()):
                status = run_command(line)
                if status != wanted:
                    faults.append(f"{path.name}:{number}: {line}: status {status}")
        except Exception:  # noqa: BLE001 - any error of a documented block is a fault of the page
            faults.append(f"{path.name}:{number}: {traceback.format_exc()[-1500:]}")
    return count, faults


def main():
    results, *pages = sys.argv[1:]
    sys.path.insert(0, str(Path.cwd()))
    folder = Path(results).parent
    found = {Path(page).name: run_page(Path(page), folder) for page in pages}
    Path(results).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
