"""Compute of training: how much a run or a recipe needs, and what was published.

A multiply and an add count as two operations. The backward pass takes twice the forward pass: a
product by the data and one by the weights (Amodei and Hernandez 2018, "AI and Compute").
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

SECONDS_PER_DAY = 86_400
TERAFLOPS_DAY = 10**12 * SECONDS_PER_DAY
"""Operations of a teraflop/s-day: 10^12 operations a second for a day."""
_PASSES = 3
_OPERATIONS_PER_MAC = 2
PUBLISHED_TOP5 = 0.791
"""The top-5 accuracy on ImageNet that the published figures are for: AlexNet's level."""
PUBLISHED_SOURCE = (
    'Hernandez, Brown 2020, "Measuring the Algorithmic Efficiency of Neural Networks" '
    "(arXiv:2005.04305); figures of its repository, openai/ai-and-efficiency"
)


def training_operations(macs: int, images: int) -> int:
    """Operations of training on `images` images, counted with repetition, of a net with `macs`
    multiply-accumulates per image: 3 passes x 2 operations x MACs x images."""
    return _PASSES * _OPERATIONS_PER_MAC * macs * images


@dataclass(frozen=True)
class PublishedCompute:
    """The compute to train a net to AlexNet's level on ImageNet, as published. A multiply-add
    counts as one operation in it: AlexNet's figure is 3 x 0.72e9 MACs x 1.28e6 images x 90 epochs
    to within a tenth."""

    net: str
    published: date
    teraflops_days: float

    @property
    def operations(self) -> float:
        """Operations, with a multiply and an add counted as two."""
        return _OPERATIONS_PER_MAC * self.teraflops_days * TERAFLOPS_DAY

    def as_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "published": self.published.isoformat(),
            "operations": self.operations,
        }


PUBLISHED_COMPUTE = (
    PublishedCompute("AlexNet", date(2012, 6, 1), 3.1),
    PublishedCompute("GoogLeNet", date(2014, 9, 17), 0.71),
    PublishedCompute("MobileNet", date(2017, 4, 17), 0.28),
    PublishedCompute("ShuffleNet", date(2017, 7, 3), 0.15),
    PublishedCompute("ShuffleNet v2", date(2018, 6, 30), 0.12),
    PublishedCompute("EfficientNet-B0", date(2019, 5, 28), 0.069),
)
