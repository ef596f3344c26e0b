"""The peak rates of GPUs by their datasheets, for predictions without the GPU."""

from __future__ import annotations

from dataclasses import dataclass

from netdsl.backends.roofline import Ceilings
from netdsl.errors import fail, suggest_name


@dataclass(frozen=True)
class GpuDatasheet:
    """A GPU with the links that its maker's node of eight gives it. `link_bandwidth` is that to the
    GPUs of its node, `port_bandwidth` that to other nodes: bytes per second each way. Rates in 16
    bits are those without sparsity, which the datasheets halve in a footnote."""

    name: str
    ceilings: Ceilings
    link_bandwidth: float
    port_bandwidth: float
    source: str


GPUS = {
    "a100": GpuDatasheet(
        "A100 SXM 80 GB",
        Ceilings(19.5e12, 2.039e12, 312e12),
        300e9,
        25e9,
        "NVIDIA's datasheets of A100 and DGX A100",
    ),
    "h100": GpuDatasheet(
        "H100 SXM",
        Ceilings(67e12, 3.35e12, 989.5e12),
        450e9,
        50e9,
        "NVIDIA's datasheets of H100 and DGX H100",
    ),
    "h200": GpuDatasheet(
        "H200 SXM",
        Ceilings(67e12, 4.8e12, 989.5e12),
        450e9,
        50e9,
        "NVIDIA's datasheets of H200 and DGX H200",
    ),
}


def find_gpu(name: str) -> GpuDatasheet:
    """Returns the datasheet of a GPU. Raises NetError if there is none of that name."""
    if name.lower() not in GPUS:
        raise fail(f"no datasheet of `--gpu {name}`", help=suggest_name(name.lower(), GPUS, "GPUs"))
    return GPUS[name.lower()]
