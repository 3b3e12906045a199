"""Execute the code blocks of Markdown pages in one process, at a small size: `tutorial_worker.py RESULTS PAGE...`.

Runs in a copy of the project, the current folder. Bash blocks run the programs in this process, since importing torch
for each of them would take longer than what they do. Python blocks of a page share their names; a comment `# → text`
is a line that the block has to print. The line above a block may be `<!-- shown only: reason -->`, for a command
that fails `<!-- status 1 -->`, or `<!-- needs sahi -->` for a block that is left out without this package. `serve.py`
runs beside the blocks that follow, whose `curl` lines ask it. Of some pages only the Python blocks run.
"""

import contextlib
import importlib.util
import io
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import traceback
from pathlib import Path

BLOCK = re.compile(r"^(?:<!-- ([^\n]*) -->\n)?```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SMALL = {"--epochs": "1", "--img": "64", "--imgsz": "64", "--batch-size": "8"}  # values that replace those of the page
SMALL_CODE = {r"\bepochs=\d+": "epochs=1", r"\bimgsz=\[\d+\]": "imgsz=[64]", r"\bsize=\d+": "size=64"}
PYTHON_ONLY = ("README.md", "python.md", "hub.md")  # their commands are checked by test_docs.py
LISTENING = re.compile(r"listening on http://127\.0\.0\.1:(\d+)")
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


class Service:
    """serve.py in a process of its own, on a free port."""

    def __init__(self):
        self.process, self.port = None, 0

    def start(self, words):
        """Start the program in place of the one before; return 1 if it leaves before it listens."""
        self.stop()
        line = [sys.executable, *words[1:], "--port", "0", "--device", "cpu"]
        self.process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for text in self.process.stdout:
            if found := LISTENING.search(text):
                self.port = int(found[1])
                return 0
        return 1

    def ask(self, words):
        """Run a curl line; return 1 unless the answer is a prediction."""
        line = ["curl", "-s", *(re.sub(r"127\.0\.0\.1:\d+", f"127.0.0.1:{self.port}", word) for word in words[1:])]
        answer = json.loads(subprocess.run(line, capture_output=True, text=True, check=True).stdout)
        return 0 if answer.get("images") else 1

    def stop(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()
            self.process = None


def run_command(line, service):
    """Run one line of a bash block and return its exit status."""
    words = shrink(shlex.split(line, comments=True))
    if words[0] == "curl":
        return service.ask(words)
    assert words[0] == "python", f"{line}: only python can be run"
    if words[1] == "serve.py":
        return service.start(words)
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
    for pattern, small in SMALL_CODE.items():
        code = re.sub(pattern, small, code)
    path.write_text(code, encoding="utf-8")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        names |= runpy.run_path(str(path), init_globals=names)
    lines = iter(printed.getvalue().splitlines())
    return [text for text in re.findall(r"^ *# → (.*)$", code, re.MULTILINE) if text not in lines]


def is_left_out(remark, language, page):
    """Check whether a block is left out: shown only, of a package that is missing, or a command of some pages."""
    needed = remark.removeprefix("needs ").split() if remark.startswith("needs ") else []
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    return remark.startswith("shown only: ") or bool(missing) or (language == "bash" and page in PYTHON_ONLY)


def run_page(path, folder):
    """Return (number of blocks that ran, faults) of a page."""
    names, faults, count, service = {}, [], 0, Service()
    for remark, language, code, number in blocks_of(path.read_text(encoding="utf-8")):
        if is_left_out(remark, language, path.name):
            continue
        count += 1
        wanted = int(remark.removeprefix("status ")) if remark.startswith("status ") else 0
        try:
            if language == "python":
                faults += [f"{path.name}:{number}: {text!r} is not printed" for text in run_python(code, names, folder)]
                continue
            for line in filter(None, code.replace("\\\n", " ").splitlines()):
                status = run_command(line, service)
                if status != wanted:
                    faults.append(f"{path.name}:{number}: {line}: status {status}")
        except Exception:  # noqa: BLE001 - any error of a documented block is a fault of the page
            faults.append(f"{path.name}:{number}: {traceback.format_exc()[-1500:]}")
    service.stop()
    return count, faults


def main():
    results, *pages = sys.argv[1:]
    sys.path.insert(0, str(Path.cwd()))
    folder = Path(results).parent
    found = {}
    for page in map(Path, pages):
        found[page.name] = run_page(page, folder)
        if not Path("best.pt").exists():  # the first page trains it
            shutil.copy("runs/train/exp/weights/best.pt", "best.pt")
    Path(results).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
