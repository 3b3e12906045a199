"""States of other processes of this machine, as far as the operating system tells them."""

from pathlib import Path


def process_state(pid: int) -> str:
    """Read the state of a process as one letter of Linux: R, S, D, T (stopped), Z (ended), X if there is none.

    Returns:
        The letter, empty where there is no /proc.
    """
    if not Path("/proc/self/stat").exists():
        return ""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "X"


def is_stopped(pid: int) -> bool:
    """Check whether a process is stopped by a signal or a debugger."""
    return process_state(pid) in ("T", "t")


def is_ended(pid: int) -> bool:
    """Check whether a process has ended."""
    return process_state(pid) in ("Z", "X")
