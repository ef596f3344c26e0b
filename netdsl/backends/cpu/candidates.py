"""The candidates of the CPU engine, and its choice for a kernel."""

from __future__ import annotations

from netdsl.backends.cpu.map_candidates import (
    estimate_traffic,
    explain_batched_maps,
    explain_concat,
    explain_copy,
    explain_map,
    explain_reshape_copy,
    make_batched_map_tasks,
    make_copies,
    make_map_tasks,
    make_reshape_copy,
)
from netdsl.backends.cpu.opaque_kernels import (
    explain_lrn,
    explain_pooling,
    explain_scores,
    make_lrn_tasks,
    make_pooling_tasks,
    make_score_tasks,
)
from netdsl.backends.cpu.product_candidates import PRODUCT_CANDIDATES, CpuCandidate
from netdsl.backends.cpu.split_epilogue import SPLIT_EPILOGUE
from netdsl.lower.candidates import Candidate

CPU_CANDIDATES: tuple[CpuCandidate, ...] = (
    *PRODUCT_CANDIDATES,
    SPLIT_EPILOGUE,
    Candidate("map", explain_map, estimate_traffic, make_map_tasks),
    Candidate("batched_maps", explain_batched_maps, estimate_traffic, make_batched_map_tasks),
    Candidate("copy", explain_copy, estimate_traffic, make_copies),
    Candidate("concat", explain_concat, estimate_traffic, make_copies),
    Candidate("reshape_copy", explain_reshape_copy, estimate_traffic, make_reshape_copy),
    Candidate("pooling", explain_pooling, estimate_traffic, make_pooling_tasks),
    Candidate("lrn", explain_lrn, estimate_traffic, make_lrn_tasks),
    Candidate("scores", explain_scores, estimate_traffic, make_score_tasks),
)
"""Everything that computes kernels here; what none of them can is left to the reference."""
