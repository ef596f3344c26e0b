"""The text in boxes and frames, and the sizes that hold it, in pixels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from netdsl.insight.draw.text_width import measure_text, shorten_to_width
from netdsl.insight.draw.tree import Group, Item, LayerBox
from netdsl.text_escaping import escape_line

FONT_SIZE, SMALL_FONT_SIZE = 12.0, 10.0
PADDING = 8.0
"""Between text and the sides of its box."""
LINE_HEIGHT, SMALL_LINE_HEIGHT = 16.0, 13.0
MAX_TEXT_WIDTH = 220.0
TITLE_HEIGHT, TITLE_BASELINE = 20.0, 14.0
BUTTON_SIZE = 12.0
"""Of the mark beside a title that folds its group."""
_GAP = 12.0
"""Between the word of a box and its shape."""
_PILL_FAMILIES = frozenset(("input", "output"))


@dataclass(frozen=True)
class TextLine:
    """A line of a box: text from the left, in bold with a name after it, and text to the right."""

    left: str
    right: str = ""
    is_bold: bool = False
    is_small: bool = False

    @property
    def size(self) -> float:
        return SMALL_FONT_SIZE if self.is_small else FONT_SIZE

    @property
    def height(self) -> float:
        return SMALL_LINE_HEIGHT if self.is_small else LINE_HEIGHT

    @property
    def width(self) -> float:
        left = measure_text(self.left, self.size, self.is_bold)
        right = measure_text(self.right, SMALL_FONT_SIZE)
        return left + right + _GAP * bool(self.left and self.right)


@dataclass(frozen=True)
class Label:
    """The text of a box or of a folded group, with the size of its box."""

    lines: tuple[TextLine, ...]
    width: float
    height: float


def make_label(item: Item, note: str = "", shape: str = "") -> Label:
    """The label of a box, or of a folded group whose last box has `shape`; `note` is its cost."""
    lines = _make_box_lines(item) if isinstance(item, LayerBox) else _make_group_lines(item, shape)
    if note:
        lines.append(
            TextLine(shorten_to_width(note, MAX_TEXT_WIDTH, SMALL_FONT_SIZE), "", False, True)
        )
    width = max(line.width for line in lines) + 2 * PADDING
    if isinstance(item, Group):
        width += BUTTON_SIZE + PADDING
    height = sum(line.height for line in lines) + (4 if len(lines) == 1 else 6)
    return Label(tuple(lines), width, height)


def find_baselines(label: Label) -> Iterator[float]:
    """The distance of each line of text from the top of its box."""
    y = 2.0 if len(label.lines) == 1 else 3.0
    for line in label.lines:
        y += line.height
        yield y - 4


def _make_box_lines(box: LayerBox) -> list[TextLine]:
    head = f"{box.label}: {box.word}" if box.label else box.word
    shape = "" if box.is_elementwise else box.shape
    lines = [
        TextLine(
            shorten_to_width(escape_line(head), MAX_TEXT_WIDTH - 80, FONT_SIZE, True), shape, True
        )
    ]
    if box.parameters and box.parameters != box.shape:
        text = shorten_to_width(escape_line(box.parameters), MAX_TEXT_WIDTH, SMALL_FONT_SIZE)
        lines.append(TextLine(text, "", False, True))
    return lines


def _make_group_lines(group: Group, shape: str) -> list[TextLine]:
    title = shorten_to_width(_make_name(group), MAX_TEXT_WIDTH - 80, FONT_SIZE, True)
    content = shorten_to_width(_describe_content(group), MAX_TEXT_WIDTH, SMALL_FONT_SIZE)
    return [TextLine(title, shape, True), TextLine(content, "", False, True)]


def _make_name(group: Group) -> str:
    name = escape_line(group.title)
    return f"{name} ×{len(group.children)}" if group.kind == "repeat" else name


_FAMILY_ORDER = (
    "convolution",
    "dense",
    "pooling",
    "structure",
    "normalization",
    "activation",
    "rearrangement",
    "input",
    "output",
)
"""From what says most about a group to what says least."""


def _describe_content(group: Group) -> str:
    """The layers in a group: one after the other if that is all there is, else counted by word."""
    shown = group.children[0] if group.kind == "repeat" else group
    boxes = sorted(shown.boxes, key=lambda box: _FAMILY_ORDER.index(box.family))
    words = Counter(box.word for box in boxes)
    first, *others = shown.boxes
    if all(n == 1 for n in words.values()) and all(box.is_elementwise for box in others):
        sizes = [p for p in first.parameters.split(", ") if "=" not in p]
        return " · ".join([" ".join([first.word, *sizes]), *(box.word for box in others)])
    return ", ".join(f"{n} {word}" if n > 1 else word for word, n in words.items())


ALL_BUTTON = "all"
"""The button of a repeat that shows all of its groups."""


def measure_title(group: Group) -> float:
    """The width of a title with its buttons, in a frame of its own."""
    text = measure_text(make_title(group), SMALL_FONT_SIZE, True)
    button = (
        2 * PADDING + measure_text(ALL_BUTTON, SMALL_FONT_SIZE) if group.kind == "repeat" else 0.0
    )
    return BUTTON_SIZE + text + 4 * PADDING + button


def find_all_button(group: Group) -> float:
    """The distance of the button that shows all groups of a repeat from the left of its frame."""
    text = measure_text(make_title(group), SMALL_FONT_SIZE, True)
    return BUTTON_SIZE + text + 3 * PADDING


def make_title(group: Group) -> str:
    """The text in the frame of an open group."""
    return shorten_to_width(_make_name(group), MAX_TEXT_WIDTH, SMALL_FONT_SIZE, True)


def align_widths(group: Group, labels: Mapping[str, Label]) -> dict[str, float]:
    """The widths of the boxes among a group's children: one width for all but inputs and outputs,
    which are as wide as their text."""
    own = {child.key: labels[child.key].width for child in group.children}
    common = [own[child.key] for child in group.children if not is_pill(child)]
    widest = max(common, default=0.0)
    return {
        child.key: own[child.key] if is_pill(child) else max(widest, own[child.key])
        for child in group.children
    }


def is_pill(item: Item) -> bool:
    """Whether a box is drawn with round ends: inputs and outputs."""
    return isinstance(item, LayerBox) and item.family in _PILL_FAMILIES
