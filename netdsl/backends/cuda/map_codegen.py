"""Generates the CUDA source of a map: expressions become a loop over rows and lanes.

A thread keeps its lane, so what depends on the lane alone (scales and shifts of channels) is
hoisted out of the loop over rows; in the loop, all loads are issued before their first use.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from netdsl.backends.cuda.c_expression import MEMORY_TYPES, REGISTER_TYPES, literal, render
from netdsl.backends.cuda.cuda_launch import KernelArgument, element_address
from netdsl.backends.cuda.geometry import Geometry
from netdsl.backends.cuda.prelude import PRELUDE
from netdsl.lower.expression import Constant, Expr, LinearIndex, Load, iter_expressions
from netdsl.lower.index_terms import Digit, Term
from netdsl.lower.levels import Level, assign_levels
from netdsl.lower.trace import Store, TracedKernel


def device_function_source(lines: Sequence[str], argument_count: int, macros: str = "") -> str:
    """Returns the source of a function of so many arguments, and of the block's column and row and
    the number of columns."""
    parameters = ", ".join(f"i64 w{i}" for i in range(argument_count))
    text = "\n  ".join(lines)
    head = f"__device__ __forceinline__ void body({parameters}, int bx, int by, int nbx)"
    return f"{PRELUDE}\n{macros}{head} {{\n  {text}\n}}\n"


class MapCodegen:
    """Generates the lines of a kernel's body, and collects its arguments."""

    def __init__(self, traced: TracedKernel, g: Geometry) -> None:
        self.traced = traced
        self.g = g
        self.arguments: list[KernelArgument] = []
        self.expressions = list(iter_expressions(traced.roots))
        self.numbers = {id(e): i for i, e in enumerate(self.expressions)}
        self.levels = assign_levels(traced.roots, self._level)
        self.base_pointers: dict[int, str] = {}
        self.stride_arguments: dict[tuple[int, int], str] = {}

    # arguments

    def add_argument(self, value: KernelArgument) -> str:
        """Adds an argument and returns its name."""
        self.arguments.append(value)
        return f"w{len(self.arguments) - 1}"

    # levels

    def _strides(self, terms: Sequence[Term]) -> tuple[int, ...]:
        return self.g.digits.strides(terms) or (0,)

    def _level(self, e: Load | LinearIndex) -> Level:
        strides = self._strides(e.terms)
        if any(strides[:-1]) or (isinstance(e, Load) and e.padded_axes):
            return Level.ROW
        return Level.LANE if strides[-1] else Level.FIXED

    def _varies_with_lane(self, e: Load | LinearIndex) -> bool:
        """Returns whether an address depends on the lane."""
        return self._strides(e.terms)[-1] != 0

    # text

    def hoist(self) -> list[str]:
        """Returns the lines for what does not depend on the row."""
        lines = []
        for e in self.expressions:
            if self.levels[id(e)] == Level.FIXED and not isinstance(e, Constant):
                lines += self._hoist_fixed(e)
        for e in self.expressions:
            if self.levels[id(e)] == Level.LANE:
                lines += self._hoist_lane(e)
        return lines

    def _hoist_fixed(self, e: Expr) -> list[str]:
        name, ctype = self._name(e), REGISTER_TYPES[e.dtype]
        if isinstance(e, Load):
            return [f"const {ctype} {name} = ({ctype})widen({self._base(e)}[0]);"]
        if isinstance(e, LinearIndex):
            return [f"const i64 {name} = {self._first_of_rank(e)};"]
        return [f"const {ctype} {name} = {self._formula(e)};"]

    def _hoist_lane(self, e: Expr) -> list[str]:
        name, ctype = self._name(e), REGISTER_TYPES[e.dtype]
        head = f"{ctype} {name}[V];"
        if isinstance(e, LinearIndex):
            step = self._strides(e.terms)[-1]
            each = f"UNROLL for (int j = 0; j < V; j++) {name}[j]"
            first = self._first_of_rank(e)
            return [f"i64 {name}[V];", f"{each} = {first} + (c + j) * {step};"]
        if isinstance(e, Load):
            offset = self._offset(e, e.terms)
            return [head, f"unpack<{ctype}>(load<V>({self._base(e)} + {offset}), {name});"]
        return [head, f"UNROLL for (int j = 0; j < V; j++) {name}[j] = {self._formula(e)};"]

    def count_hoisted(self) -> int:
        """Returns how many values of a lane the loop over rows uses: they stay in registers."""
        users = [e.args for e in self.expressions if self.levels[id(e)] == Level.ROW]
        used = {id(a): a for args in (*users, self.traced.roots) for a in args}
        return sum(
            self.levels[key] == Level.LANE and not isinstance(e, LinearIndex)
            for key, e in used.items()
        )

    def load_raw(self, exprs: Iterable[Expr]) -> tuple[list[str], list[str]]:
        """Returns declarations of packed vectors, and the lines that load a row into them."""
        declared, loads = [], []
        for e in exprs:
            if not isinstance(e, Load) or self.levels[id(e)] != Level.ROW:
                continue
            i, kind = self.numbers[id(e)], MEMORY_TYPES[e.place.dtype]
            width = "V" if self._varies_with_lane(e) else "1"
            declared.append(f"Pack<{kind}, {width}> v{i}[U];")
            offset = self._offset(e, e.terms)
            if e.padded_axes:
                declared.append(f"bool k{i}[U];")
                inside, offset = self._padded_access(e, offset)
                loads.append(f"k{i}[u] = {inside};")
                loads.append(f"if (k{i}[u]) v{i}[u] = load<{width}>({self._base(e)} + {offset});")
            else:
                loads.append(f"v{i}[u] = load<{width}>({self._base(e)} + {offset});")
        return declared, loads

    def unpack_loads(self, exprs: Iterable[Expr]) -> list[str]:
        """Returns the lines that convert loaded vectors to register types."""
        lines = []
        for e in exprs:
            if self.levels[id(e)] != Level.ROW:
                continue
            i = self.numbers[id(e)]
            if isinstance(e, LinearIndex):
                first = self._first_of_rank(e)
                lines.append(f"const i64 n{i} = {first} + {self._offset(e, e.terms)};")
            elif isinstance(e, Load):
                width = "V" if self._varies_with_lane(e) else "1"
                ctype = REGISTER_TYPES[e.dtype]
                text = f"{ctype} x{i}[{width}]; unpack<{ctype}>(v{i}[u], x{i});"
                if e.padded_axes:
                    each = f"UNROLL for (int j = 0; j < {width}; j++)"
                    text += f" if (!k{i}[u]) {each} x{i}[j] = {literal(e.fill, ctype)};"
                lines.append(text)
        return lines

    def compute(self, exprs: Iterable[Expr]) -> list[str]:
        """Returns the lines that compute one element, in the loop over j."""
        return [
            f"const {REGISTER_TYPES[e.dtype]} {self._name(e)} = {self._formula(e)};"
            for e in exprs
            if self.levels[id(e)] == Level.ROW and not isinstance(e, Load | LinearIndex)
        ]

    def store(self, stores: Sequence[Store]) -> tuple[list[str], list[str], list[str]]:
        """Returns declarations, assignments in the loop over j, and stores after it."""
        declared, assigned, stores_after = [], [], []
        for i, s in enumerate(stores):
            kind = MEMORY_TYPES[s.place.dtype]
            base = self.add_argument(element_address(s.place, s.place.layout.offset))
            declared.append(f"{REGISTER_TYPES[s.value.dtype]} o{i}[V];")
            assigned.append(f"o{i}[j] = {self.element(s.value)};")
            stores_after.append(f"store<V>(({kind}*){base} + {self._offset(s, s.terms)}, o{i});")
        return declared, assigned, stores_after

    def element(self, e: Expr) -> str:
        """Returns the text of an expression for element j of the thread's row."""
        if isinstance(e, Constant):
            return render(e, ())
        i, level = self.numbers[id(e)], self.levels[id(e)]
        if isinstance(e, LinearIndex) and level == Level.ROW:
            return f"(n{i} + j * {self._strides(e.terms)[-1]})"
        if isinstance(e, Load) and level == Level.ROW:
            return f"x{i}[{'j' if self._varies_with_lane(e) else '0'}]"
        return f"e{i}[j]" if level == Level.LANE else f"e{i}"

    def _name(self, e: Expr) -> str:
        return f"e{self.numbers[id(e)]}"

    def _formula(self, e: Expr) -> str:
        return render(e, [self.element(a) for a in e.args])

    def _base(self, e: Load) -> str:
        if id(e) not in self.base_pointers:
            kind = MEMORY_TYPES[e.place.dtype]
            self.base_pointers[id(e)] = (
                f"((const {kind}*){self.add_argument(element_address(e.place, e.offset))})"
            )
        return self.base_pointers[id(e)]

    def _offset(self, owner: object, terms: Sequence[Term]) -> str:
        """Returns the text of an address as a sum over digits, counted in elements."""
        strides = self._strides(terms)
        parts = []
        for d, s in enumerate(strides[:-1]):
            if s:
                parts.append(f"d{d} * {self._stride_argument(owner, d, s)}")
        if strides[-1] == 1:
            parts.append("c")
        elif strides[-1]:
            parts.append(f"c * {self._stride_argument(owner, len(strides) - 1, strides[-1])}")
        return "(" + (" + ".join(parts) or "0") + ")"

    def _first_of_rank(self, e: LinearIndex) -> str:
        """Returns the text of how many elements the ranks before this one have: the rank is a digit
        ahead of all others."""
        return f"(i64){self.element(e.args[0])} * {self._stride_argument(e, -1, e.size)}"

    def _stride_argument(self, owner: object, digit: int, stride: int) -> str:
        key = (id(owner), digit)
        if key not in self.stride_arguments:
            self.stride_arguments[key] = self.add_argument(stride)
        return self.stride_arguments[key]

    def _padded_access(self, e: Load, offset: str) -> tuple[str, str]:
        """Returns the condition for an element to be inside the padding, and its address."""
        conditions, parts = [], [offset]
        for w in e.padded_axes:
            low, step, size, stride = (
                self.add_argument(v) for v in (w.low, w.step, w.size, w.stride)
            )
            position = f"({self._coordinate(w.digits)} - {low})"
            exact = f" && {position} % {step} == 0" if w.step > 1 and not w.inner_stride else ""
            index = f"{position} / {step}" if w.step > 1 else position
            conditions.append(f"{position} >= 0{exact} && {index} < {size}")
            parts.append(f"{index} * {stride}")
            if w.inner_stride:
                parts.append(f"{position} % {step} * {self.add_argument(w.inner_stride)}")
        return " && ".join(f"({c})" for c in conditions), "(" + " + ".join(parts) + ")"

    def _coordinate(self, pieces: Sequence[Digit]) -> str:
        parts, scale = [], 1
        for p in reversed(pieces):
            strides = self._strides((Term(p, scale),))
            for d, s in enumerate(strides):
                name = "c" if d == len(strides) - 1 else f"d{d}"
                if s:
                    parts.append(f"{name} * {self.add_argument(s)}")
            scale *= p.extent
        return "(" + (" + ".join(parts) or "0") + ")"

    def decode_digits(self) -> list[str]:
        """Returns the lines that split a row number into digits."""
        extents = self.g.row_extents
        if len(extents) <= 1:
            return ["const i64 d0 = row; (void)d0;"]
        kind = "unsigned" if self.traced.size < 2**32 else "unsigned long long"
        lines = [f"{kind} rest = ({kind})row;"]
        for d in range(len(extents) - 1, 0, -1):
            size = self._stride_argument(self.g, d, extents[d])
            lines.append(f"const i64 d{d} = rest % ({kind}){size}; rest /= ({kind}){size};")
        return [*lines, "const i64 d0 = rest; (void)d0;"]
