"""Standard output and standard error: where they take no more, the work goes on without them."""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from typing import Any, TextIO


class Output(io.RawIOBase):
    """A file descriptor whose first error is its last: what is written from then on is dropped.

    Whoever writes here is never interrupted by a full disk, a reader that has gone or a terminal
    that was closed; `fault` is that error, for who wants to know."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        self.fault: OSError | None = None
        self.was_closed = False
        """Whether the process was started without it."""

    def write(self, data: Any) -> int:
        left = whole = memoryview(data).cast("B")
        while left and self.fault is None:
            try:
                left = left[os.write(self.number, left) :]
            except BlockingIOError:  # somebody made the other end non-blocking, and it is full
                select.select([], [self.number], [])
            except OSError as e:
                self.fault = e
        return len(whole)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.number

    def isatty(self) -> bool:
        return os.isatty(self.number)

    @property
    def loss(self) -> OSError | None:
        """The error, where somebody still expects the output; a reader that has gone does not."""
        gone = isinstance(self.fault, ConnectionError) or (
            self.fault is not None and self.fault.errno == errno.EBADF
        )
        return None if gone else self.fault


STANDARD_OUTPUT, STANDARD_ERROR = Output(1), Output(2)


def open_standard_streams() -> None:
    """Puts these two under `sys.stdout` and `sys.stderr`; to be called once, before anything is
    opened. Descriptors that are closed lead nowhere: else the next file that is opened would be
    standard output, and receive what is printed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            _lead_nowhere(number)
            for output in (STANDARD_OUTPUT, STANDARD_ERROR):
                output.was_closed |= output.number == number
    sys.stdout = _text(STANDARD_OUTPUT, sys.__stdout__)
    sys.stderr = _text(STANDARD_ERROR, sys.__stderr__)


def _lead_nowhere(number: int) -> None:
    opened = os.open(os.devnull, os.O_RDWR)
    if opened != number:
        os.dup2(opened, number)
        os.close(opened)


def _text(output: Output, before: TextIO | None) -> TextIO:
    """A text stream over an output, buffered as the one that Python has made for it."""
    made = before if isinstance(before, io.TextIOWrapper) else None
    unbuffered = made is not None and made.write_through
    target: Any = output if unbuffered else io.BufferedWriter(output)
    return io.TextIOWrapper(
        target,
        encoding=made.encoding if made else "utf-8",
        errors="backslashreplace",
        line_buffering=made.line_buffering if made else True,
        write_through=unbuffered,
    )
