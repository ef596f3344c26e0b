"""What a kernel does with the results of its product: in the registers that they are computed in,
or row by row while they are near."""

from __future__ import annotations

from netdsl.backends.cpu.columns import flat
from netdsl.backends.cpu.expression import Operand, Unsupported
from netdsl.backends.cpu.finish import Finish, finish_of
from netdsl.backends.cpu.launch import Task
from netdsl.backends.cpu.maps import Body, Launch, Memory, border_tasks
from netdsl.backends.cpu.product import FollowerArgs
from netdsl.backends.cpu.record import Table
from netdsl.backends.cpu.rows import build
from netdsl.plan.kernel import Kernel
from netdsl.plan.layout import IntTuple, Layout, make_contiguous
from netdsl.types import Node


class After:
    """Where a product is written, and what its kernel computes of it. The domain has four axes:
    images, rows, pixels, columns."""

    def __init__(self, memory: Memory, kernel: Kernel, node: Node, domain: IntTuple) -> None:
        self.memory, self.kernel, self.node, self.domain = memory, kernel, node, domain
        self.shown = node.name in kernel.outputs
        self.body = self._body()
        self.registers = self._in_registers()
        self.launched, self.folding = Launch(), Launch()

    def _body(self) -> Body | None:
        """What else the kernel computes."""
        memory, name = self.memory, self.node.name
        outputs = [o for o in self.kernel.outputs if o != name]
        if not outputs:
            return None
        own = Operand(0, make_contiguous(self.node.type.shape), "float32", local=True)
        operands = {name: memory.operand(name) for name in self.kernel.inputs}
        operands[name] = memory.operand(name) if self.shown else own
        body = Body(memory, self.kernel, self.domain, operands, outputs)
        if body.results and body.kept != (False, True):
            raise Unsupported("sums of products over other axes")
        return body

    def _in_registers(self) -> Finish | None:
        """What can be done there: with results that nobody else reads, where one value comes of
        each."""
        if self.body is None or self.shown or self.body.results or len(self.body.outputs) != 1:
            return None
        return finish_of(*self.body.outputs[0])

    def local_bytes(self, rows: int, pitch: int) -> int:
        """Of rows of results that only this kernel reads, `pitch` elements a pixel."""
        elements = rows * self.domain[2] * pitch
        return 0 if self.shown or self.registers else -(-elements // 16) * 64 + 256

    def reads(self, table: Table, column: int) -> int:
        """Where the addresses stand of what a tile's finish reads beside results from that column
        on; 0 where there is no finish."""
        return table.longs([*self.registers.addresses(column), 0]) if self.registers else 0

    def target(self, pitch: int) -> tuple[int, IntTuple]:
        """Where results are written: the address of the first one, 0 for local ones, and the bytes
        from image to image, row to row and pixel to pixel."""
        if self.registers:
            place = self.registers.target
            address, strides = place.address, place.strides[:3]
        elif self.shown:
            own = self.memory.operand(self.node.name)
            address, strides = own.address + 4 * own.layout.offset, self._own_strides(own.layout)
        else:
            row = self.domain[2] * pitch
            address, strides = 0, (self.domain[1] * row, row, pitch)
        return address, tuple(4 * s for s in strides)

    def _own_strides(self, layout: Layout) -> IntTuple:
        """Of images, rows and pixels where the plan has put the product."""
        shape, strides = self.domain, list(layout.strides)
        if layout.shape != shape:
            step = flat(layout, len(layout.shape) - 1)
            if step is None:
                raise Unsupported("a product with gaps")
            strides = [shape[1] * shape[2] * step, shape[2] * step, step, strides[-1]]
        if shape[3] > 1 and strides[3] != 1:
            raise Unsupported("a product whose columns lie apart")
        return tuple(strides[:3])

    def follower(self, tasks: int, local: tuple[int, int], pitch: int, whole: bool) -> FollowerArgs:
        """What is called for rows that are there. Of local results, `local` says where they lie and
        bytes of a task's; there are `pitch` elements a pixel, 0 for as many as the rows have;
        `whole` says that all columns are there at once. `launched` has what must run before,
        `folding` after the tasks."""
        if self.body is None or self.registers:
            return FollowerArgs(function=0, args=0, unit=1, local=0, size=0)
        address, size = (0, local[1]) if self.shown else local
        found = self.body.walk(fixed=2, extend=whole)
        per_row = found.rows // (self.domain[0] * self.domain[1])
        rows = build(
            found, self.body.outputs, self.body.sums, tasks, (address, size, pitch or found.run)
        )
        if rows.prepare:
            self.launched.stages.append([(rows.prepare, rows.args)])
        self.launched.kept.append(rows)
        self.folding = self.body.fold(found, rows, 1, tasks)
        unit = -found.run if per_row == 1 and whole else per_row
        return FollowerArgs(
            function=rows.function, args=rows.args, unit=unit, local=address, size=size
        )


def together(before: Launch, weights: Launch, after: After, stage: list[Task]) -> Launch:
    """The launch of a product: its image and `weights` are made ready, then `stage` runs, beside
    the zeros around results."""
    found = Launch([list(s) for s in before.stages], list(before.kept), list(before.early))
    found.beside(weights)
    found.beside(after.launched)
    found.stages.append(stage + border_tasks(after.memory, after.kernel.outputs, found.kept))
    found.then(after.folding)
    return found
