"""How long a peer may take, and how many may be connected: what uvicorn leaves to a proxy."""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

_PROGRESS = 65_536


class Connection(H11Protocol):
    """One HTTP/1.1 connection, closed when its peer keeps it waiting.

    A request's headers must be there `header_seconds` after the connection was made or the last
    answer was given, however they trickle in; so must the rest of a body that was answered before
    it ended. A peer that takes less than 64 KiB of what is there for it in `stalled_seconds`, and
    does not take all, is gone. Of more than `most` connections the last is closed at once. The
    deadline of a body is the application's, which reads it.

    Source: `uvicorn.protocols.http.h11_impl`, whose only deadline is for silence after an answer.
    """

    header_seconds = 10.0
    stalled_seconds = 30.0
    most = 512

    _waiting: asyncio.TimerHandle | None = None
    _draining: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.most:
            transport.abort()
        else:
            self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_drain()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            self._draining = _stopped(self._draining)

    def connection_lost(self, exc: Exception | None) -> None:
        self._waiting, self._draining = _stopped(self._waiting), _stopped(self._draining)
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Sets or ends the deadline for what the peer owes."""
        if self.transport.is_closing():  # what is written is still sent, if the peer takes it
            self._waiting = _stopped(self._waiting)
            self._watch_drain()
            return
        answered = self.cycle is None or self.cycle.response_complete
        state = self.conn.their_state
        if state is h11.IDLE or (state is h11.SEND_BODY and answered):
            if self._waiting is None:
                self._waiting = self.loop.call_later(self.header_seconds, self.transport.abort)
        else:
            self._waiting = _stopped(self._waiting)

    def _watch_drain(self) -> None:
        if self._draining is None:
            left = self.transport.get_write_buffer_size()
            self._draining = self.loop.call_later(self.stalled_seconds, self._look_again, left)

    def _look_again(self, before: int) -> None:
        self._draining = None
        if self.transport.get_write_buffer_size() > before - _PROGRESS:
            self.transport.abort()
        else:
            self._watch_drain()


def _stopped(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


def connection(**limits: Any) -> type[Connection]:
    """A `Connection` with other limits, as uvicorn takes it."""
    return type("Connection", (Connection,), limits)


__all__ = ["Connection", "connection"]
