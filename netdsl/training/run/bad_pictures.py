"""Unreadable picture files of a run: found early, reported once, fatal if a whole class is lost."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from netdsl.data.inventory import format_skipped_pictures
from netdsl.data.pictures import BadPicture, Pictures
from netdsl.data.sources import SKIP_HELP
from netdsl.data.verification import Verification
from netdsl.errors import NetError, fail
from netdsl.ranks.communicator import ONE_RANK, Communicator
from netdsl.text_escaping import escape_line
from netdsl.training.job import Job


class PictureMonitor:
    """Reports the bad pictures that a job skips through `log`; the first `reported` are known
    already. Each rank of `communicator` finds those in its part, and all of them report together:
    all know of the same ones afterwards."""

    def __init__(
        self,
        job: Job,
        log: Callable[[str], None],
        reported: int,
        communicator: Communicator = ONE_RANK,
    ) -> None:
        self.job, self.log, self.reported = job, log, reported
        self.communicator = communicator

    @property
    def are_files(self) -> bool:
        """Whether training reads picture files."""
        return isinstance(self.job.train.images, Pictures)

    def verify_in_background(self) -> Verification:
        """Decodes this rank's share of the validation and test pictures while the first epoch
        runs."""
        test = self.job.dataset.read_test
        parts = [self.job.validation, *([test()] if test is not None and self.are_files else [])]
        share = slice(self.communicator.rank, None, self.communicator.size)
        pictures = [x.images[share] for x in parts if isinstance(x.images, Pictures)]
        return Verification(pictures, self.job.transform)

    def check(self) -> None:
        """Reports what was skipped. Raises NetError if all training pictures of a class were."""
        self.report()
        if not self.reported:
            return
        train, classes = self.job.train, self.job.dataset.classes
        left = train.take(np.flatnonzero(train.weights)).count_by_class(len(classes))
        is_lost = (left == 0) & (train.count_by_class(len(classes)) > 0)
        if is_lost.any():
            name = escape_line(classes[int(is_lost.argmax())])
            raise fail(
                f"none of the training pictures of `{name}` can be used",
                help="restore some of them and start a new run, or start a run without that class",
            )

    def report(self) -> None:
        """Reports the bad pictures found on any rank since the last report."""
        skipped_pictures = self.job.dataset.skipped_pictures
        if skipped_pictures is not None and not self.communicator.is_alone:
            skipped_pictures.share(self.communicator)
        faults = self.job.dataset.picture_errors
        if len(faults) > self.reported:
            self.log("\n".join(format_skipped_pictures(faults)))
        self.reported = len(faults)


def bad_picture_error(fault: BadPicture, is_saved: bool) -> NetError:
    """The error that ends a run at a bad picture, which can be resumed if it is saved."""
    first = fault.diagnostics[0]
    mend = first.help or "restore it"
    if not is_saved:
        return fail(first.message, help=f"{mend}, then start the run again; {SKIP_HELP}")
    help = f"{mend}, then resume the run; {SKIP_HELP}, and a resumed run may set "
    return fail(first.message, help=f"{help}`data.on_bad_picture=skip`")
