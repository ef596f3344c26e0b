"""What a kernel does with the results of its product: in the registers that they are computed in,
or row by row while they are near."""

from __future__ import annotations

from netdsl.backends.cpu.gemm_loops import RowEpilogueArgs
from netdsl.backends.cpu.map_kernels import (
    DomainBody,
    KernelTasks,
    PlanMemory,
    make_output_halo_tasks,
)
from netdsl.backends.cpu.memory_ref import KernelOperand
from netdsl.backends.cpu.record import RecordTable
from netdsl.backends.cpu.register_epilogue import RegisterEpilogue, make_register_epilogue
from netdsl.backends.cpu.row_kernel import compile_row_kernel
from netdsl.backends.cpu.stride_collapsing import collapse_strides
from netdsl.backends.cpu.task_program import Task
from netdsl.lower.index_terms import UnsupportedKernelError
from netdsl.plan.kernel import Kernel
from netdsl.plan.layout import IntTuple, Layout, make_contiguous
from netdsl.types import Node


class AnchorEpilogue:
    """Where a product is written, and what its kernel computes of it. The domain has four axes:
    images, rows, pixels, columns."""

    def __init__(self, memory: PlanMemory, kernel: Kernel, node: Node, domain: IntTuple) -> None:
        self.memory, self.kernel, self.node, self.domain = memory, kernel, node, domain
        self.is_stored = node.name in kernel.outputs
        self.body = self._make_body()
        self.register_epilogue = self._find_register_epilogue()
        self.prologue_tasks, self.reduction_tasks = KernelTasks(), KernelTasks()

    def _make_body(self) -> DomainBody | None:
        """What else the kernel computes."""
        memory, name = self.memory, self.node.name
        outputs = [o for o in self.kernel.outputs if o != name]
        if not outputs:
            return None
        local_operand = KernelOperand(
            0, make_contiguous(self.node.type.shape), "float32", is_local=True
        )
        operands = {name: memory.operand(name) for name in self.kernel.inputs}
        operands[name] = memory.operand(name) if self.is_stored else local_operand
        body = DomainBody(memory, self.kernel, self.domain, operands, outputs)
        if body.reductions and body.kept_axes != (False, True):
            raise UnsupportedKernelError("sums of products over different axes")
        return body

    def _find_register_epilogue(self) -> RegisterEpilogue | None:
        """What can be done there: with results that nobody else reads, where one value comes of
        each."""
        if (
            self.body is None
            or self.is_stored
            or self.body.reductions
            or len(self.body.row_body.outputs) != 1
        ):
            return None
        return make_register_epilogue(self.body.row_body)

    def local_bytes(self, rows: int, pitch: int) -> int:
        """Of rows of results that only this kernel reads, `pitch` elements a pixel."""
        elements = rows * self.domain[2] * pitch
        return 0 if self.is_stored or self.register_epilogue else -(-elements // 16) * 64 + 256

    def pack_operand_addresses(self, table: RecordTable, column: int) -> int:
        """Where the addresses stand of what a tile's finish reads beside results from that column
        on; 0 where there is no finish."""
        return (
            table.add_i64s([*self.register_epilogue.operand_addresses(column), 0])
            if self.register_epilogue
            else 0
        )

    def locate_output(self, pitch: int) -> tuple[int, IntTuple]:
        """Where results are written: the address of the first one, 0 for local ones, and the bytes
        from image to image, row to row and pixel to pixel."""
        if self.register_epilogue:
            output_ref = self.register_epilogue.target
            address, strides = output_ref.address, output_ref.strides[:3]
        elif self.is_stored:
            operand = self.memory.operand(self.node.name)
            address, strides = (
                operand.address + 4 * operand.layout.offset,
                self._output_strides(operand.layout),
            )
        else:
            row = self.domain[2] * pitch
            address, strides = 0, (self.domain[1] * row, row, pitch)
        return address, tuple(4 * s for s in strides)

    def _output_strides(self, layout: Layout) -> IntTuple:
        """Of images, rows and pixels where the plan has put the product."""
        shape, strides = self.domain, list(layout.strides)
        if layout.shape != shape:
            step = collapse_strides(layout, len(layout.shape) - 1)
            if step is None:
                raise UnsupportedKernelError("a product with gaps")
            strides = [shape[1] * shape[2] * step, shape[2] * step, step, strides[-1]]
        if shape[3] > 1 and strides[3] != 1:
            raise UnsupportedKernelError("a product whose columns are not contiguous")
        return tuple(strides[:3])

    def make_row_epilogue(
        self, tasks: int, local: tuple[int, int], pitch: int, has_all_columns: bool
    ) -> RowEpilogueArgs:
        """What is called for rows that are there. Of local results, `local` says where they lie and
        bytes of a task's; there are `pitch` elements a pixel, 0 for as many as the rows have;
        `has_all_columns` says that all columns are there at once. `prologue_tasks` has what must
        run before, `reduction_tasks` after the tasks."""
        if self.body is None or self.register_epilogue:
            return RowEpilogueArgs(function=0, args=0, unit=1, local=0, size=0)
        address, size = (0, local[1]) if self.is_stored else local
        loop_nest = self.body.build_loop_nest(fixed_axes=2, can_merge_rows=has_all_columns)
        per_row = loop_nest.row_count // (self.domain[0] * self.domain[1])
        row_kernel = compile_row_kernel(
            loop_nest,
            self.body.row_body,
            tasks,
            (address, size, pitch or loop_nest.run),
        )
        if row_kernel.prepare:
            self.prologue_tasks.stages.append([(row_kernel.prepare, row_kernel.args)])
        self.prologue_tasks.keepalive.append(row_kernel)
        self.reduction_tasks = self.body.make_reduction_tasks(loop_nest, row_kernel, 1, tasks)
        unit = -loop_nest.run if per_row == 1 and has_all_columns else per_row
        return RowEpilogueArgs(
            function=row_kernel.function, args=row_kernel.args, unit=unit, local=address, size=size
        )


def combine_tasks(
    input_tasks: KernelTasks, weight_tasks: KernelTasks, epilogue: AnchorEpilogue, stage: list[Task]
) -> KernelTasks:
    """The launch of a product: its image and `weight_tasks` are made ready, then `stage` runs,
    beside the zeros around results."""
    combined = KernelTasks(
        [list(s) for s in input_tasks.stages],
        list(input_tasks.keepalive),
        list(input_tasks.refresh_tasks),
    )
    combined.merge_parallel(weight_tasks)
    combined.merge_parallel(epilogue.prologue_tasks)
    combined.stages.append(
        stage + make_output_halo_tasks(epilogue.memory, epilogue.kernel.outputs, combined.keepalive)
    )
    combined.append_stages(epilogue.reduction_tasks)
    return combined
