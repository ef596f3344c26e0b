"""Standard output and standard error: where they take no more, the work goes on without them."""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from typing import Any, TextIO


class OutputStream(io.RawIOBase):
    """A file descriptor whose first error is its last: what is written from then on is dropped.

    Whoever writes here is never interrupted by a full disk, a reader that has gone or a terminal
    that was closed; `error` is that error, for who wants to know."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self.descriptor = descriptor
        self.error: OSError | None = None
        self.was_closed = False
        """Whether the process was started without it."""

    def write(self, data: Any) -> int:
        remaining = whole = memoryview(data).cast("B")
        while remaining and self.error is None:
            try:
                remaining = remaining[os.write(self.descriptor, remaining) :]
            except BlockingIOError:  # somebody made the other end non-blocking, and it is full
                select.select([], [self.descriptor], [])
            except OSError as e:
                self.error = e
        return len(whole)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.descriptor

    def isatty(self) -> bool:
        return os.isatty(self.descriptor)

    @property
    def reportable_error(self) -> OSError | None:
        """The error, where somebody still expects the output; a reader that has gone does not."""
        is_reader_gone = isinstance(self.error, ConnectionError) or (
            self.error is not None and self.error.errno == errno.EBADF
        )
        return None if is_reader_gone else self.error


STANDARD_OUTPUT, STANDARD_ERROR = OutputStream(1), OutputStream(2)


def open_standard_streams() -> None:
    """Puts these two under `sys.stdout` and `sys.stderr`; to be called once, before anything is
    opened. Descriptors that are closed lead nowhere: else the next file that is opened would be
    standard output, and receive what is printed."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            _redirect_to_null(descriptor)
            for output in (STANDARD_OUTPUT, STANDARD_ERROR):
                output.was_closed |= output.descriptor == descriptor
    sys.stdout = _make_text_stream(STANDARD_OUTPUT, sys.__stdout__)
    sys.stderr = _make_text_stream(STANDARD_ERROR, sys.__stderr__)


def _redirect_to_null(descriptor: int) -> None:
    opened = os.open(os.devnull, os.O_RDWR)
    if opened != descriptor:
        os.dup2(opened, descriptor)
        os.close(opened)


def _make_text_stream(output: OutputStream, original: TextIO | None) -> TextIO:
    """A text stream over an output, buffered as the one that Python has made for it."""
    template = original if isinstance(original, io.TextIOWrapper) else None
    unbuffered = template is not None and template.write_through
    target: Any = output if unbuffered else io.BufferedWriter(output)
    return io.TextIOWrapper(
        target,
        encoding=template.encoding if template else "utf-8",
        errors="backslashreplace",
        line_buffering=template.line_buffering if template else True,
        write_through=unbuffered,
    )
