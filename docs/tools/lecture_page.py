"""Writes docs/lecture.md from the rows and what was measured for them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from docs.tools.lecture_records import LectureMeasurement, read_measurement
from docs.tools.lecture_rows import STATUSES, LectureCommand, LectureRow

_STATUS_TEXTS = {
    "shown": "shown",
    "caveat": "shown with a caveat",
    "not here": "not shown here",
}
_DATA_TEXTS = {
    "mnist": "MNIST",
    "cifar10": "CIFAR-10",
    "hymenoptera": "ants and bees",
    "squeezenet": "SqueezeNet",
}
_TABLE_GAP = "\n\n"
_PERCENTAGE = re.compile(r"(\d)%")
_LINE = 72
"""Characters of a command up to which those below it put their seconds in the same column."""


def write_page(rows: Sequence[LectureRow]) -> str:
    """Raises NetError if a row with commands was not measured."""
    measurements = {row.name: read_measurement(row) for row in rows if row.commands}
    parts = [_introduction(rows, measurements), _table(rows, measurements)]
    parts += [_section(row, measurements.get(row.name)) for row in rows]
    return "\n\n".join(parts) + "\n"


def _introduction(rows: Sequence[LectureRow], measurements: dict[str, LectureMeasurement]) -> str:
    counts = {s: sum(row.status == s for row in rows) for s in STATUSES}
    counted = ", ".join(f"{n} {_STATUS_TEXTS[s]}" for s, n in counts.items() if n)
    return f"""\
# The lecture

A lecture on convolutional networks as claims that you can check: each section states a claim, names the file that shows
it, lists the commands, and says what came out. Run the commands in the folder of this repository. Then read the
question at the end of the section, write down what you expect, and try it. The answer is folded below the question.

{len(rows)} claims: {counted}. A caveat says what is missing, and what it would take to show it. Accuracies are means over
seeds where a command says `--seeds`. {_measured(list(measurements.values()))}

## Data

Most commands need none: they use random numbers or the digits that scikit-learn brings along (`pip install
"netdsl[digits]"`). The column *Data* of the table names what the others need.

- **MNIST** and **CIFAR-10** are downloaded at the first use. If you have them already, `--data DIR` names their folder.
- **Ants and bees**: the photographs of PyTorch's transfer learning tutorial, `hymenoptera_data.zip`. Unpack it, rename
  the folder to `hymenoptera`, and put it beside the file that reads it or into the cache directory
  ([Files and folders](training.md#files-and-folders)).
- **SqueezeNet**: the weights of SqueezeNet 1.0 from ONNX's model zoo (`squeezenet1.0-12.onnx`), saved as
  `squeezenet1_0.onnx` in the folder where you run the commands. [weights.md](weights.md) explains the import."""


def _measured(found: list[LectureMeasurement]) -> str:
    if not found:
        return ""
    machines = "; ".join(sorted({m.machine for m in found}))
    first, last = min(m.date for m in found), max(m.date for m in found)
    dates = first if first == last else f"{first} to {last}"
    return f"Figures and seconds were measured on this machine: {machines} ({dates})."


def _table(rows: Sequence[LectureRow], measurements: dict[str, LectureMeasurement]) -> str:
    lines = ["| | Claim | Status | Time | Data |", "|---|---|---|---|---|"]
    for row in rows:
        title = f"[{row.texts['title']}](#{slugify(heading(row))})"
        found = measurements.get(row.name)
        time = format_seconds(found.total_seconds) if found else ""
        data = ", ".join(_DATA_TEXTS[x] for x in row.needs)
        lines.append(f"| {row.number} | {title} | {_STATUS_TEXTS[row.status]} | {time} | {data} |")
    return "\n".join(["## Claims", "", *lines])


def _section(row: LectureRow, found: LectureMeasurement | None) -> str:
    figures = found.figures if found else {}
    parts = [f"## {heading(row)}", row.texts["claim"]]
    if row.commands and found:
        parts.append(_intro_of_commands(row))
        parts.append(_commands(row.commands, found))
    if "result" in row.texts:
        parts.append(_label("What came out.", _format(row, "result", figures)))
    if "caveat" in row.texts:
        label = "Caveat" if row.status == "caveat" else "Not shown here"
        parts.append(f"> **{label}.** {_quote(_format(row, 'caveat', figures))}")
    if "picture" in row.texts:
        parts.append(f"![{row.texts['alt']}]({row.texts['picture']})")
    if "change" in row.texts:
        parts.append(_label("Change this and predict.", row.texts["change"]))
        parts.append(_details(_format(row, "answer", figures)))
    return "\n\n".join(parts)


def _label(label: str, text: str) -> str:
    """A table needs a paragraph of its own."""
    return f"**{label}**{_TABLE_GAP if text.startswith('|') else ' '}{text}"


def _format(row: LectureRow, key: str, figures: Mapping[str, float]) -> str:
    """The text with its figures; percentages get the space that the pages write."""
    return _PERCENTAGE.sub(r"\1 %", row.format(key, figures))


def _intro_of_commands(row: LectureRow) -> str:
    files = sorted(row.files, key=lambda x: (x != row.texts.get("file"), x))
    links = [f"[{x}](../{x})" for x in files]
    if not links:
        return "**Commands.**"
    return f"**{'File' if len(links) == 1 else 'Files'}.** {', '.join(links)}"


def _commands(commands: Sequence[LectureCommand], found: LectureMeasurement) -> str:
    width = max((len(c.text) for c in commands if len(c.text) <= _LINE), default=0)
    lines = ["```sh"]
    for command in commands:
        remark = (
            format_seconds(found.seconds[command.text]) if command.text in found.seconds else ""
        )
        if command.is_refused:
            remark += ", refused"
        lines.append(f"{command.text:{width}}  # {remark}")
    return "\n".join([*lines, "```"])


def _details(answer: str) -> str:
    return f"<details>\n<summary>Answer</summary>\n\n{answer}\n\n</details>"


def _quote(text: str) -> str:
    return text.replace("\n", "\n> ")


def heading(row: LectureRow) -> str:
    return f"{row.number}. {row.texts['title']}"


def slugify(text: str) -> str:
    """The anchor that repository hosts and site generators give to a heading."""
    return re.sub(r"[^\w\s-]", "", text.lower()).strip().replace(" ", "-")


def format_seconds(seconds: float) -> str:
    """Rounded as one would say it: 2 s, 45 s, 3 min."""
    if seconds < 10:
        return f"{max(1, round(seconds))} s"
    if seconds < 90:
        return f"{round(seconds / 5) * 5} s"
    return f"{round(seconds / 60)} min"
