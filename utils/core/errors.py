"""The error type for mistakes that users can correct, and suggestions for misspelled names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MAX_SUGGESTIONS = 3


class UserError(Exception):
    """Error that the user can correct: one line naming the file or option, the fault and the remedy.

    Programs print the message without a traceback and exit with status 2.
    """


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """Format the candidates most similar to `name` as the end of an error message.

    Args:
        name: The unknown name as the user wrote it.
        candidates: All valid names.

    Returns:
        Text such as `; did you mean 'Adam' or 'AdamW'?` with at most three names, ignoring case; empty if no
        candidate is similar.
    """
    by_lower_case = {candidate.lower(): candidate for candidate in candidates}
    close = difflib.get_close_matches(name.lower(), by_lower_case, n=MAX_SUGGESTIONS)
    if not close:
        return ""
    *others, last = [repr(by_lower_case[match]) for match in close]
    return f"; did you mean {', '.join(others) + ' or ' if others else ''}{last}?"
