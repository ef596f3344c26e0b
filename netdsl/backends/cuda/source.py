"""Generated CUDA source: expressions become a kernel over rows and lanes.

A thread keeps its lane, so what depends on the lane alone (scales and shifts of channels) is
computed once, before the loop over rows; in the loop all loads come before their first use.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from netdsl.backends.cuda.expression import MEMORY, Expr, Load, Number, literal
from netdsl.backends.cuda.geometry import Geometry, everything
from netdsl.backends.cuda.index import Piece, Term
from netdsl.backends.cuda.launch import Word, address_of
from netdsl.backends.cuda.prelude import PRELUDE
from netdsl.backends.cuda.trace import Store, Traced

FIXED = 0
LANE = 1
ROW = 2


def device_function(lines: Sequence[str], words: int, macros: str = "") -> str:
    """The source of a function of so many words, and of where its block is: column, row, columns
    in all."""
    parameters = ", ".join(f"i64 w{i}" for i in range(words))
    text = "\n  ".join(lines)
    head = f"__device__ __forceinline__ void body({parameters}, int bx, int by, int nbx)"
    return f"{PRELUDE}\n{macros}{head} {{\n  {text}\n}}\n"


class Body:
    """The text of a kernel's body and the words that it is given."""

    def __init__(self, traced: Traced, g: Geometry) -> None:
        self.traced = traced
        self.g = g
        self.words: list[Word] = []
        self.exprs = list(everything(traced))
        self.index = {id(e): i for i, e in enumerate(self.exprs)}
        self.level: dict[int, int] = {}
        self.bases: dict[int, str] = {}
        self.steps: dict[tuple[int, int], str] = {}
        for e in self.exprs:
            self.level[id(e)] = self._level(e)

    # words

    def word(self, value: Word) -> str:
        """The name of an argument with this value."""
        self.words.append(value)
        return f"w{len(self.words) - 1}"

    # levels

    def _strides(self, terms: Sequence[Term]) -> tuple[int, ...]:
        return self.g.digits.strides(terms) or (0,)

    def _level(self, e: Expr) -> int:
        if isinstance(e, Load | Number):
            strides = self._strides(e.terms)
            if any(strides[:-1]) or (isinstance(e, Load) and e.windows):
                return ROW
            return LANE if strides[-1] else FIXED
        return max((self.level[id(a)] for a in e.args), default=FIXED)

    def _across(self, e: Load | Number) -> bool:
        """Whether an address moves with the lane."""
        return self._strides(e.terms)[-1] != 0

    # text

    def hoisted(self) -> list[str]:
        """What does not depend on the row."""
        lines = []
        for e in self.exprs:
            if self.level[id(e)] == FIXED:
                lines += self._fixed(e)
        for e in self.exprs:
            if self.level[id(e)] == LANE:
                lines += self._laned(e)
        return lines

    def _fixed(self, e: Expr) -> list[str]:
        name = self._name(e)
        if isinstance(e, Load):
            base = self._base(e)
            return [f"const {e.ctype} {name} = ({e.ctype})widen({base}[0]);"]
        if isinstance(e, Number):
            return [f"const i64 {name} = 0;"]
        return [f"const {e.ctype} {name} = {self._formula(e)};"]

    def _laned(self, e: Expr) -> list[str]:
        name = self._name(e)
        head = f"{e.ctype} {name}[V];"
        if isinstance(e, Number):
            step = self._strides(e.terms)[-1]
            each = f"UNROLL for (int j = 0; j < V; j++) {name}[j]"
            return [f"i64 {name}[V];", f"{each} = (c + j) * {step};"]
        if isinstance(e, Load):
            offset = self._offset(e, e.terms)
            return [head, f"unpack<{e.ctype}>(load<V>({self._base(e)} + {offset}), {name});"]
        return [head, f"UNROLL for (int j = 0; j < V; j++) {name}[j] = {self._formula(e)};"]

    def raw_loads(self, exprs: Iterable[Expr]) -> tuple[list[str], list[str]]:
        """Declarations, and loads of a row into them."""
        declared, loads = [], []
        for e in exprs:
            if not isinstance(e, Load) or self.level[id(e)] != ROW:
                continue
            i, kind = self.index[id(e)], MEMORY[e.place.dtype] if e.place else ""
            width = "V" if self._across(e) else "1"
            declared.append(f"Pack<{kind}, {width}> v{i}[U];")
            offset = self._offset(e, e.terms)
            if e.windows:
                declared.append(f"bool k{i}[U];")
                inside, offset = self._windowed(e, offset)
                loads.append(f"k{i}[u] = {inside};")
                loads.append(f"if (k{i}[u]) v{i}[u] = load<{width}>({self._base(e)} + {offset});")
            else:
                loads.append(f"v{i}[u] = load<{width}>({self._base(e)} + {offset});")
        return declared, loads

    def opened(self, exprs: Iterable[Expr]) -> list[str]:
        """Loaded rows as registers."""
        lines = []
        for e in exprs:
            if self.level[id(e)] != ROW:
                continue
            i = self.index[id(e)]
            if isinstance(e, Number):
                lines.append(f"const i64 n{i} = {self._offset(e, e.terms)};")
            elif isinstance(e, Load):
                width = "V" if self._across(e) else "1"
                text = f"{e.ctype} x{i}[{width}]; unpack<{e.ctype}>(v{i}[u], x{i});"
                if e.windows:
                    each = f"UNROLL for (int j = 0; j < {width}; j++)"
                    text += f" if (!k{i}[u]) {each} x{i}[j] = {literal(e.fill, e.ctype).text};"
                lines.append(text)
        return lines

    def computed(self, exprs: Iterable[Expr]) -> list[str]:
        """One element's values, in the loop over j."""
        return [
            f"const {e.ctype} {self._name(e)} = {self._formula(e)};"
            for e in exprs
            if self.level[id(e)] == ROW and not isinstance(e, Load | Number)
        ]

    def stored(self, stores: Sequence[Store]) -> tuple[list[str], list[str], list[str]]:
        """Declarations, assignments in the loop over j, and stores after it."""
        declared, inside, after = [], [], []
        for i, s in enumerate(stores):
            kind = MEMORY[s.place.dtype]
            base = self.word(address_of(s.place, s.place.layout.offset))
            declared.append(f"{s.value.ctype} o{i}[V];")
            inside.append(f"o{i}[j] = {self.element(s.value)};")
            after.append(f"store<V>(({kind}*){base} + {self._offset(s, s.terms)}, o{i});")
        return declared, inside, after

    def element(self, e: Expr) -> str:
        """An expression's value for the element j of the thread's row."""
        i, level = self.index[id(e)], self.level[id(e)]
        if isinstance(e, Number) and level == ROW:
            return f"(n{i} + j * {self._strides(e.terms)[-1]})"
        if isinstance(e, Load) and level == ROW:
            return f"x{i}[{'j' if self._across(e) else '0'}]"
        return f"e{i}[j]" if level == LANE else f"e{i}"

    def _name(self, e: Expr) -> str:
        return f"e{self.index[id(e)]}"

    def _formula(self, e: Expr) -> str:
        return e.text.format(*(self.element(a) for a in e.args))

    def _base(self, e: Load) -> str:
        if id(e) not in self.bases:
            assert e.place is not None
            kind = MEMORY[e.place.dtype]
            self.bases[id(e)] = f"((const {kind}*){self.word(address_of(e.place, e.offset))})"
        return self.bases[id(e)]

    def _offset(self, owner: object, terms: Sequence[Term]) -> str:
        """An address as a sum over digits, counted in elements."""
        strides = self._strides(terms)
        parts = []
        for d, s in enumerate(strides[:-1]):
            if s:
                parts.append(f"d{d} * {self._step(owner, d, s)}")
        if strides[-1] == 1:
            parts.append("c")
        elif strides[-1]:
            parts.append(f"c * {self._step(owner, len(strides) - 1, strides[-1])}")
        return "(" + (" + ".join(parts) or "0") + ")"

    def _step(self, owner: object, digit: int, stride: int) -> str:
        key = (id(owner), digit)
        if key not in self.steps:
            self.steps[key] = self.word(stride)
        return self.steps[key]

    def _windowed(self, e: Load, offset: str) -> tuple[str, str]:
        """Whether a window's element is there, and its address."""
        conditions, parts = [], [offset]
        for w in e.windows:
            low, step, size, stride = (self.word(v) for v in (w.low, w.step, w.size, w.stride))
            at = f"({self._coordinate(w.pieces)} - {low})"
            exact = f" && {at} % {step} == 0" if w.step > 1 and not w.inner else ""
            index = f"{at} / {step}" if w.step > 1 else at
            conditions.append(f"{at} >= 0{exact} && {index} < {size}")
            parts.append(f"{index} * {stride}")
            if w.inner:
                parts.append(f"{at} % {step} * {self.word(w.inner)}")
        return " && ".join(f"({c})" for c in conditions), "(" + " + ".join(parts) + ")"

    def _coordinate(self, pieces: Sequence[Piece]) -> str:
        parts, scale = [], 1
        for p in reversed(pieces):
            strides = self._strides((Term(p, scale),))
            for d, s in enumerate(strides):
                name = "c" if d == len(strides) - 1 else f"d{d}"
                if s:
                    parts.append(f"{name} * {self.word(s)}")
            scale *= p.extent
        return "(" + (" + ".join(parts) or "0") + ")"

    def digits(self) -> list[str]:
        """A row's digits."""
        extents = self.g.row_extents
        if len(extents) <= 1:
            return ["const i64 d0 = row; (void)d0;"]
        kind = "unsigned" if self.traced.size < 2**32 else "unsigned long long"
        lines = [f"{kind} rest = ({kind})row;"]
        for d in range(len(extents) - 1, 0, -1):
            size = self._step(self.g, d, extents[d])
            lines.append(f"const i64 d{d} = rest % ({kind}){size}; rest /= ({kind}){size};")
        return [*lines, "const i64 d0 = rest; (void)d0;"]
