"""HTTP connections that hang up on clients who keep one open without sending a whole request."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


def patient(seconds: float) -> type[H11Protocol]:
    """Return uvicorn's protocol with a limit that it lacks: on the time in which a request must have begun.

    It counts from the connection, or from the last answer, to the end of a request's headers; while the application
    works on a request its own limits hold. What is left of a refused request's body must come within it too.
    """

    class PatientProtocol(H11Protocol):
        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            super().__init__(*arguments, **keywords)
            self._idle_since = self.loop.time()
            self._timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._look()

        def connection_lost(self, exc: Exception | None) -> None:
            if self._timer is not None:
                self._timer.cancel()
            super().connection_lost(exc)

        def on_response_complete(self) -> None:
            self._idle_since = self.loop.time()
            super().on_response_complete()

        def _look(self) -> None:
            """Hang up once it is time, else look again when it will be."""
            now = self.loop.time()
            busy = self.cycle is not None and not self.cycle.response_complete
            left = seconds if busy else self._idle_since + seconds - now
            if left <= 0:
                self.transport.close()
            else:
                self._timer = self.loop.call_later(left, self._look)

    return PatientProtocol
