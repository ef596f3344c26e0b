"""Standard output and standard error that never interrupt the work once they can no longer be
written."""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from typing import Any, TextIO


class OutputStream(io.RawIOBase):
    """A file descriptor that drops all output after its first error.

    A writer is never interrupted by a full disk, a reader that is gone or a closed terminal;
    `error` holds that first error.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self.descriptor = descriptor
        self.error: OSError | None = None
        self.was_closed = False
        """Whether the process was started with this descriptor closed."""

    def write(self, data: Any) -> int:
        remaining = whole = memoryview(data).cast("B")
        while remaining and self.error is None:
            try:
                remaining = remaining[os.write(self.descriptor, remaining) :]
            except BlockingIOError:  # the other end is non-blocking and full
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
        """The error, if anyone still expects the output; None if the reader is gone."""
        is_reader_gone = isinstance(self.error, ConnectionError) or (
            self.error is not None and self.error.errno == errno.EBADF
        )
        return None if is_reader_gone else self.error


STANDARD_OUTPUT, STANDARD_ERROR = OutputStream(1), OutputStream(2)


def open_standard_streams() -> None:
    """Installs these two as `sys.stdout` and `sys.stderr`. Call it once, before any file is opened.
    Closed descriptors are redirected to the null device; otherwise the next file opened would
    become standard output and receive what is printed."""
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
    """Returns a text stream over an output, buffered like the one that Python created for it."""
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
