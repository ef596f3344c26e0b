"""The options of `train` for the recorders of a run: `--plot` and `--tensorboard`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from netdsl.errors import fail
from netdsl.file_io import split_file_and_name

if TYPE_CHECKING:
    from netdsl.insight.recorders import Recorder


@dataclass(frozen=True)
class FollowOptions:
    """The file of `--plot`, and whether and where event files are written."""

    plot: Path | None = None
    tensorboard: bool = False
    tensorboard_dir: Path | None = None

    @property
    def arguments(self) -> list[str]:
        """The options as they were given."""
        given = ["--plot", str(self.plot)] if self.plot is not None else []
        given += ["--tensorboard"] * self.tensorboard
        if self.tensorboard_dir is not None:
            given += ["--tensorboard-dir", str(self.tensorboard_dir)]
        return given

    def check(self, file: str | None, out: Path | None, resume: Path | None) -> None:
        """Raises NetError for what would fail later: a missing package, a file that cannot be a
        picture or must not be overwritten, a folder with event files of another run."""
        if self.plot is not None:
            from netdsl.insight.plots.figure import check_format, import_matplotlib
            from netdsl.training.store.output_files import check_outputs

            check_format(self.plot)
            run = resume if resume is not None else out
            if run is None or self.plot.resolve().parent != run.resolve():  # which a run creates
                read = [Path(split_file_and_name(file)[0])] if file not in (None, "-") else []
                check_outputs([self.plot], read)
            import_matplotlib()
        if self.tensorboard and self.tensorboard_dir is not None:
            raise fail(
                "`--tensorboard` and `--tensorboard-dir` both set the folder of the event files"
            )
        if self.tensorboard or self.tensorboard_dir is not None:
            from netdsl.insight.event_log import check_unused, import_tensorboardx

            import_tensorboardx()
            if resume is None and self.tensorboard_dir is not None:
                check_unused(self.tensorboard_dir)

    def make_recorders(self, run: Path, run_root: Path) -> dict[str, Recorder]:
        """The recorders of the run in directory `run`: all of `run_root`, or one of its stages."""
        recorders: dict[str, Recorder] = {}
        if self.plot is not None:
            from netdsl.insight.plots.live_plot import LivePlot

            recorders[f"the plot {self.plot}"] = LivePlot(run_root, self.plot)
        if self.tensorboard or self.tensorboard_dir is not None:
            from netdsl.insight.event_log import FOLDER, EventLog

            folder = self.tensorboard_dir or run_root / FOLDER
            recorders[f"the event file in {folder}"] = EventLog(
                run, folder if run == run_root else folder / run.name
            )
        return recorders
