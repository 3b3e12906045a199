"""HTTP protocol of uvicorn with a timeout for idle connections and slow request headers."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


def protocol_with_header_timeout(seconds: float) -> type[H11Protocol]:
    """Create a protocol that closes connections whose request headers do not arrive in time.

    uvicorn has no such limit. The time counts from the start of the connection, or from the end of the last response,
    to the end of the headers. It does not run while the application handles a request, but includes the rest of the
    body of a rejected request.

    Args:
        seconds: The timeout.

    Returns:
        A protocol class for `uvicorn.Config(http=...)`.
    """

    class HeaderTimeoutProtocol(H11Protocol):
        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            super().__init__(*arguments, **keywords)
            self._idle_since = self.loop.time()
            self._timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._check_idle()

        def connection_lost(self, exc: Exception | None) -> None:
            if self._timer is not None:
                self._timer.cancel()
            super().connection_lost(exc)

        def on_response_complete(self) -> None:
            self._idle_since = self.loop.time()
            super().on_response_complete()

        def _check_idle(self) -> None:
            """Close the connection if it has been idle too long, otherwise re-arm the timer."""
            now = self.loop.time()
            busy = self.cycle is not None and not self.cycle.response_complete
            remaining = seconds if busy else self._idle_since + seconds - now
            if remaining <= 0:
                self.transport.close()
            else:
                self._timer = self.loop.call_later(remaining, self._check_idle)

    return HeaderTimeoutProtocol
