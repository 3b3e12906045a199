"""Every entry of the corpus of bad files ends in bounded time and memory, with one line or a counted skip."""

import json
import subprocess
import sys
from collections import Counter

import pytest
from corpus import KINDS, LIMIT_S
from helpers_run import ROOT, environment

MAX_PEAK_MB = 2000


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Read the corpus in a process of its own; return a record for each entry."""
    folder = tmp_path_factory.mktemp("corpus")
    line = [sys.executable, str(ROOT / "tests" / "corpus.py"), str(folder)]
    env = environment() | {"POLYOLO_CACHE": str(folder / "cache")}
    done = subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Traceback" not in done.stderr
    return [json.loads(text) for text in done.stdout.splitlines()]


def test_corpus_is_large(outcomes):
    counts = Counter(one["kind"] for one in outcomes)
    assert counts.keys() == KINDS.keys() and sum(counts.values()) >= 250 and min(counts.values()) >= 12


@pytest.mark.parametrize("kind", KINDS)
def test_one_line_or_a_counted_skip(outcomes, kind):
    found = [one for one in outcomes if one["kind"] == kind]
    faults = [f"{one['name']}: {one['fault']}" for one in found if one["fault"] or not one["text"]]
    assert not faults, "\n".join(faults)


def test_no_entry_hangs_or_grows(outcomes):
    slow = [f"{one['kind']} {one['name']}: {one['seconds']} s" for one in outcomes if one["seconds"] > LIMIT_S]
    assert not slow
    assert max(one["peak_mb"] for one in outcomes) < MAX_PEAK_MB
