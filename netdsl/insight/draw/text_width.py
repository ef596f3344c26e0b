"""The width of text without a font at hand: that in DejaVu Sans, one of the widest."""

from __future__ import annotations

_REGULAR = (
    "318 401 460 838 636 950 780 275 390 390 500 838 318 361 318 337 636 636 636 636 636 636 636 "
    "636 636 636 337 337 838 838 838 531 1000 684 686 698 770 632 575 775 752 295 295 656 557 863 "
    "748 787 603 787 695 635 611 732 684 989 685 611 685 390 337 390 838 500 500 613 635 550 635 "
    "615 352 635 634 278 278 579 278 974 634 612 635 635 411 521 392 634 592 818 592 592 525 636 "
    "337 636 838"
)
_BOLD = (
    "348 456 521 838 696 1002 872 306 457 457 523 838 380 415 380 365 696 696 696 696 696 696 696 "
    "696 696 696 400 400 838 838 838 580 1000 774 762 734 830 683 683 821 837 372 372 775 637 995 "
    "837 850 733 850 770 720 682 812 774 1103 771 724 725 457 365 457 838 500 500 675 716 593 716 "
    "678 435 716 712 343 343 665 343 1042 712 687 716 716 493 595 478 712 652 924 645 652 582 712 "
    "365 712 838"
)
_WIDTHS = {
    is_bold: {chr(32 + i): int(w) / 1000 for i, w in enumerate(text.split())}
    | {"…": 1.0, "×": 0.838, "–": 0.5, "·": 0.38, "µ": 0.74}
    for is_bold, text in ((False, _REGULAR), (True, _BOLD))
}
_OTHER_WIDTH = 1.2
"""The most that other letters take, in ems; few are as wide."""


def measure_text(text: str, size: float, is_bold: bool = False) -> float:
    """The most pixels that a line of text takes at a font size in pixels."""
    widths = _WIDTHS[is_bold]
    return size * sum(widths.get(c, _OTHER_WIDTH) for c in text)


def shorten_to_width(text: str, width: float, size: float, is_bold: bool = False) -> str:
    """The text, with an ellipsis in place of its end where it would be wider than `width`
    pixels."""
    if measure_text(text, size, is_bold) <= width:
        return text
    kept = text
    while kept and measure_text(kept + "…", size, is_bold) > width:
        kept = kept[:-1]
    return kept.rstrip(" ,") + "…"
