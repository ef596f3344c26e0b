"""The pages of the site in their order: the one table from which its navigation is made."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Section:
    """An entry of the navigation: its title and its pages, as paths in the repository."""

    title: str
    pages: tuple[str, ...]


NAVIGATION = (
    Section("Home", ("README.md",)),
    Section(
        "Tutorial",
        (
            "docs/tutorial/README.md",
            "docs/tutorial/1-digits.md",
            "docs/tutorial/2-photographs.md",
            "docs/tutorial/3-architecture.md",
            "docs/tutorial/4-deploy.md",
        ),
    ),
    Section("Language guide", ("docs/language.md",)),
    Section(
        "Guides",
        (
            "docs/training.md",
            "docs/pictures.md",
            "docs/python.md",
            "docs/onnx.md",
            "docs/weights.md",
            "docs/cli.md",
            "docs/engines.md",
            "docs/scaling.md",
        ),
    ),
    Section("Reference", ("docs/reference.md", "grammar/README.md")),
    Section("Lecture", ("docs/lecture.md",)),
    Section("Models", ("models/README.md",)),
    Section("Gallery", ("docs/gallery/README.md",)),
    Section("Comparison", ("docs/comparison.md",)),
    Section("FAQ", ("docs/faq.md",)),
    Section(
        "Internals",
        (
            "docs/internals.md",
            "docs/architecture.md",
            "docs/ir.md",
            "docs/add-an-op.md",
            "docs/add-a-kernel.md",
            "docs/add-a-layer.md",
            "docs/add-a-pass.md",
            "docs/debugging.md",
            "docs/glossary.md",
            "docs/compatibility.md",
            "CONTRIBUTING.md",
            "CHANGELOG.md",
        ),
    ),
)
