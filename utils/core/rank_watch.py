"""Watch over the processes of a distributed training: a rank that is killed, stopped or unreachable ends all of them.

Every rank counts up a sign of life in the launcher's key-value store. Rank 0 watches all others, these watch rank 0.
Collectives would otherwise wait for a lost rank until their time-out. A rank on the same machine is examined by its
process; one on another machine is lost when its signs of life stay away.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from utils.core.process_state import is_ended, is_stopped

if TYPE_CHECKING:
    from datetime import timedelta
    from types import FrameType

    from torch.distributed import Store

POLL_S = 1.0
ENDED_S = 2.0  # a rank that is no longer a process
STOPPED_S = 20.0  # a rank that is stopped
SILENT_S = 45.0  # a rank on another machine without signs of life
LAUNCHER_GRACE_S = 30.0  # time to save after the launcher has died
_VERDICT = "lost"


def _machine() -> str:
    """Name the machine and the container, whose process numbers mean the same processes."""
    try:
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        namespace = sys.platform
    return f"{socket.gethostname()}/{namespace}"


def open_store(address: str, port: int, timeout: timedelta) -> Store:
    """Connect to the key-value store of the launcher, separately from the connection of the process group."""
    from torch.distributed import TCPStore

    return TCPStore(address, port, None, is_master=False, timeout=timeout, wait_for_workers=False)


class RankWatch:
    """Thread that publishes signs of life of this rank and ends the process when another rank is lost.

    Args:
        store: Store of this attempt of the launcher; its keys must not be used by an earlier one.
        rank: Index of this process.
        world: Number of processes.
        launcher: Process number of the launcher on this machine; 0 if it may end before the ranks.
    """

    def __init__(self, store: Store, rank: int, world: int, launcher: int) -> None:
        self.store, self.rank, self.launcher = store, rank, launcher
        self.advice = "start it again"  # what to do after a rank is lost
        self._machine, self._beats = _machine(), 0
        self._others = [other for other in range(world) if other != rank] if rank == 0 else [0]
        self._last: dict[int, str] = {}
        self._lost_s = dict.fromkeys(self._others, 0.0)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="rank watch", daemon=True)

    def start(self) -> None:
        """Publish the first sign of life and start the thread."""
        self._publish()
        self._thread.start()
        in_main_thread = threading.current_thread() is threading.main_thread()
        if in_main_thread and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self._terminate)

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        """End after SIGTERM, which the launcher sends at once when a rank is killed, but name that rank before."""
        self._thread.join(ENDED_S + 2 * POLL_S)
        os._exit(128 + number)

    def stop(self) -> None:
        """Stop the thread."""
        self._end.set()
        self._thread.join(2 * POLL_S)

    def wait_for_verdict(self, seconds: float) -> None:
        """Wait for the thread, which ends the process once it knows the lost rank."""
        self._thread.join(seconds)

    def _publish(self) -> None:
        self._beats += 1
        self.store.set(f"rank{self.rank}", f"{self._beats} {os.getpid()} {self._machine}")

    def _watch(self) -> None:
        while not self._end.wait(POLL_S):
            if self.launcher and os.getppid() != self.launcher:
                self._leave_without_launcher()
                return
            # the store is gone: the launcher has ended or is about to
            with suppress(RuntimeError):
                self._publish()
                self._examine()

    def _examine(self) -> None:
        """Count for how long the watched ranks are lost, and end with the first that is lost for too long."""
        if self.store.check([_VERDICT]):
            self._exit("")
        known = [other for other in self._others if self.store.check([f"rank{other}"])]
        for other, sign in zip(known, self.store.multi_get([f"rank{other}" for other in known]), strict=True):
            text = sign.decode()
            _, pid, machine = text.split(" ", 2)
            local = machine == self._machine and Path("/proc/self/stat").exists()
            if local and is_ended(int(pid)):
                what, limit = "was killed or has ended", ENDED_S
            elif local and is_stopped(int(pid)):
                what, limit = "is stopped", STOPPED_S
            elif not local and self._last.get(other) == text:
                what, limit = "is unreachable", SILENT_S
            else:
                what, limit = "", 0.0
            self._last[other] = text
            self._lost_s[other] = self._lost_s[other] + POLL_S if what else 0.0
            if what and self._lost_s[other] >= limit and not self._end.is_set():
                if what == "is stopped" and self.rank <= 1:
                    os.kill(int(pid), signal.SIGKILL)  # it cannot obey the SIGTERM that the launcher sends
                place = f"process {pid} on {machine.partition('/')[0]}"
                self._exit(f"rank {other} ({place}) {what}; all processes end; {self.advice}")

    def _exit(self, text: str) -> None:
        """End the process; `text` is empty if another rank has said why."""
        if text and self.rank <= 1:  # one of the ranks that watch rank 0 is enough
            with suppress(RuntimeError):
                self.store.set(_VERDICT, text)
            sys.stderr.write(f"error: {text}\n")
            sys.stderr.flush()
        os._exit(1)

    def _leave_without_launcher(self) -> None:
        """Save and stop as after SIGTERM, because no process would end the ranks any more."""
        if self.rank == 0:
            sys.stderr.write("error: the launcher has ended; stopping\n")
            sys.stderr.flush()
        os.kill(os.getpid(), signal.SIGTERM)
        self._end.wait(LAUNCHER_GRACE_S)
        os._exit(143)
