"""Stopping when asked to: SIGINT and SIGTERM become KeyboardInterrupt, but not amid what must be done as a whole.

    with deferred():
        train_a_few_steps()      # whoever asks to stop waits for the end of this

A second signal, SAME_S seconds or more after the first, ends the process at once, and so do PATIENCE_S seconds: what is
stored is whole at every moment, so that this loses no more than a kill does.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

PATIENCE_S = 4.5
"""Time that an orderly stop has; with what was asked for within 5 s, this leaves some for a busy machine."""

SAME_S = 0.25
"""Signals that come closer are one request: `timeout` sends one to its command and one to the group that it is in."""

AGAIN_S = 0.1
"""When a signal is sent to the main thread once more, if that has not noticed: it may have begun to wait for the user
or a disk just as the signal came, and Python runs handlers between bytecodes only."""

INTERRUPTED = 130
"""Exit code."""

_deferring = 0
_asked = False
_seen = False


@contextmanager
def deferred() -> Iterator[None]:
    """A signal that comes inside raises KeyboardInterrupt at the end, while `on_signals` is in force; they nest."""
    global _deferring, _asked
    _deferring += 1
    try:
        yield
    finally:
        _deferring -= 1
    if _asked and not _deferring:
        _asked = False
        raise KeyboardInterrupt


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside `deferred`: a signal that comes inside raises at once all the same, and one that has come, here."""
    global _deferring, _asked
    before, _deferring = _deferring, 0
    try:
        if _asked:
            _asked = False
            raise KeyboardInterrupt
        yield
    finally:
        _deferring = before


def asked() -> bool:
    """Whether a signal has come that waits for the end of `deferred`."""
    return _asked


@contextmanager
def on_signals(asking: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM)) -> Iterator[None]:
    """Handle SIGINT and SIGTERM, or others that ask to stop, while inside, in the main thread; but not those that are
    ignored, as SIGINT is under nohup."""
    if threading.current_thread() is not threading.main_thread():
        yield  # no other thread can handle signals
        return
    numbers = [n for n in asking if signal.getsignal(n) is not signal.SIG_IGN]
    # The interpreter writes each signal to `inlet` as it comes, even while the main thread waits for a device.
    outlet, inlet = socket.socketpair()
    inlet.setblocking(False)
    watcher = threading.Thread(target=_watch, args=(outlet, numbers), daemon=True)
    watcher.start()
    before = {number: signal.signal(number, _handle) for number in numbers}
    woken = signal.set_wakeup_fd(inlet.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        global _asked, _seen
        signal.set_wakeup_fd(woken)
        inlet.close()
        watcher.join()  # so that it sends nothing to the handlers that were there before
        for number, handler in before.items():
            signal.signal(number, handler)
        _asked = _seen = False


def _handle(number: int, frame: FrameType | None) -> None:
    global _asked, _seen
    if _seen:
        return  # the same request, which must not interrupt what the first began; of another one `_watch` takes care
    _seen = True
    if not _deferring:
        raise KeyboardInterrupt
    _asked = True


def _watch(outlet: socket.socket, numbers: list[signal.Signals]) -> None:
    """End the process at the second signal, or when the first has been waited for long enough."""
    with outlet:
        first: float | None = None
        same_until, again = 0.0, False
        while True:
            left = None
            if first is not None:
                left = max(0.0, first + (PATIENCE_S if again else AGAIN_S) - time.monotonic())
            if not select.select([outlet], [], [], left)[0]:
                if again:
                    break
                again = True
                if not _seen and hasattr(signal, "pthread_kill"):  # Windows has none
                    same_until = time.monotonic() + SAME_S
                    signal.pthread_kill(threading.main_thread().ident or 0, numbers[0])
                continue
            received = outlet.recv(64)
            if not received:
                return  # an orderly end
            if not any(number in numbers for number in received):
                continue
            if first is None:
                first = time.monotonic()
                same_until = first + SAME_S
            elif time.monotonic() >= same_until:
                break
        show_cursor = "\x1b[?25h\n" if os.isatty(2) else ""  # a live display hides it
        with suppress(OSError):  # a terminal that is gone, or whoever read a pipe
            os.write(2, f"{show_cursor}stopped at once, without a checkpoint; what is in the store is whole\n".encode())
        os._exit(INTERRUPTED)
