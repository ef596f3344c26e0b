"""Reductions in two deterministic stages: blocks add up rows, then one thread adds up blocks; where
one block has all rows of a result, it ends with that.

Moments are taken around the first element of each group, so that nothing cancels.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from netdsl.backends.cuda.expression import MEMORY, Expr
from netdsl.backends.cuda.geometry import Geometry
from netdsl.backends.cuda.index import Unmappable
from netdsl.backends.cuda.launch import SCRATCH, THREADS, Address, Mapped, Word, address_of
from netdsl.backends.cuda.source import Body, device_function
from netdsl.backends.cuda.trace import Reduction, Traced
from netdsl.plan.layout import row_major_strides

_FINISHERS = 512
_SIDE_BY_SIDE = 4
_PITCH = THREADS + 8
_SHARED_BYTES = 40 << 10


class Sums:
    """The accumulators of a kernel, each a number of the partial results that a block writes."""

    def __init__(self, traced: Traced, g: Geometry) -> None:
        self.reductions = traced.reductions
        self.columns = g.lanes * g.width if g.columns else 1
        self.by_column = g.columns
        self.width = g.width
        self.values: list[tuple[Expr, str]] = []
        self.shifted: list[Expr] = []
        for r in traced.reductions:
            mode = {"reduce_max": "max", "moments": "moments"}.get(r.node.op, "sum")
            self.values += [(v, mode) for v in r.values]
        self.first = {}
        at = 0
        for i, (value, mode) in enumerate(self.values):
            self.first[i] = at
            at += 3 if mode == "moments" else 1
            del value
        self.count = at
        self.ctype = "double" if any(v.ctype == "double" for v, _ in self.values) else "float"

    def declared(self) -> list[str]:
        if not self.count:
            return []
        starts = []
        for i, (_, mode) in enumerate(self.values):
            q = self.first[i]
            start = "-INFINITY" if mode == "max" else "0"
            starts.append(f"a[{q}][j] = {start};")
            if mode == "moments":
                starts.append(f"a[{q + 1}][j] = 0; a[{q + 2}][j] = 0;")
        each = "UNROLL for (int j = 0; j < V; j++)"
        return [f"{self.ctype} a[{self.count}][V];", f"{each} {{ {' '.join(starts)} }}"]

    def shifts(self, body: Body, raw: list[str], loads: list[str], decode: list[str]) -> list[str]:
        """The first row's values of what moments are taken of."""
        assigned = [
            f"a[{self.first[i] + 2}][j] = {body.element(v)};"
            for i, (v, mode) in enumerate(self.values)
            if mode == "moments"
        ]
        if not assigned:
            return []
        return [
            "{ const int u = 0; const i64 row = begin;",
            *raw,
            *decode,
            *loads,
            *body.opened(body.exprs),
            "UNROLL for (int j = 0; j < V; j++) {",
            *body.computed(body.exprs),
            *assigned,
            "} }",
            *self._one_shift(),
        ]

    def _one_shift(self) -> list[str]:
        """Where lanes are added up too, they share the first one's value."""
        if self.by_column:
            return []
        moments = [
            self.first[i] + 2 for i, (_, mode) in enumerate(self.values) if mode == "moments"
        ]
        return [f"UNROLL for (int j = 1; j < V; j++) a[{q}][j] = a[{q}][0];" for q in moments]

    def added(self, body: Body) -> list[str]:
        lines = []
        for i, (value, mode) in enumerate(self.values):
            q, v = self.first[i], body.element(value)
            if mode == "max":
                lines.append(
                    f"a[{q}][j] = a[{q}][j] >= {v} || a[{q}][j] != a[{q}][j] ? a[{q}][j] : {v};"
                )
            elif mode == "moments":
                lines.append(f"{{ const {self.ctype} m = {v} - a[{q + 2}][j];")
                lines.append(f"a[{q}][j] += m; a[{q + 1}][j] += m * m; }}")
            else:
                lines.append(f"a[{q}][j] += {v};")
        return lines

    def combined(self, part: str, across: int) -> list[str]:
        """The rows of a block together, into the scratch buffer."""
        if not self.count:
            return []
        head = [f"{self.ctype}* part = ({self.ctype}*){part};"]
        if self.by_column and across >= _SIDE_BY_SIDE:
            return [*head, *self._side_by_side()]
        lines = [*head, f"__shared__ {self.ctype} sm[V * {THREADS}];"]
        for q, how in self.hows():
            lines += self._tree(q, how)
        return lines

    def hows(self) -> list[tuple[int, str]]:
        """How the partial results of each accumulator become one, in the order of their numbers."""
        found = []
        for i, (_, mode) in enumerate(self.values):
            q = self.first[i]
            found.append((q, "max" if mode == "max" else "add"))
            if mode == "moments":
                found += [(q + 1, "add"), (q + 2, "first")]
        return found

    def _side_by_side(self) -> list[str]:
        """All columns of a block at once, each by one thread."""
        most = max(1, _SHARED_BYTES // (_PITCH * self.width * (8 if self.ctype == "double" else 4)))
        hows = self.hows()
        room = min(most, len(hows)) * self.width * _PITCH
        lines = [f"__shared__ {self.ctype} sm[{room}];"]
        for first in range(0, len(hows), most):
            some = hows[first : first + most]
            lines.append("__syncthreads();")
            for k, (q, _) in enumerate(some):
                at = f"sm[({k} * V + j) * {_PITCH} + t]"
                lines.append(f"UNROLL for (int j = 0; j < V; j++) {at} = a[{q}][j];")
            lines += [
                "__syncthreads();",
                f"for (int o = t; o < {len(some)} * V * across; o += down * across) {{",
                "const int x = o % across, kj = o / across, k = kj / V, j = kj % V;",
                f"const {self.ctype}* s = sm + kj * {_PITCH} + x; {self.ctype} v = s[0];",
            ]
            # a choice of numbers, since an array would lie in memory
            modes = [("add", "max", "first").index(how) for _, how in some]
            chain = "".join(f"k == {k} ? {mode} : " for k, mode in enumerate(modes[:-1]))
            lines += [
                f"const int mode = {chain}{modes[-1]};",
                f"if (mode < 2) for (int r = 1; r < down; r++) {{ const {self.ctype} z = s[r * across];",
                "v = mode == 0 ? v + z : v >= z || v != v ? v : z; }",
                "const int column = by * across + x;",
                "if (column < lanes)",
                f"part[(((i64)bx * {self.count} + {first} + k) * lanes + column) * V + j] = v; }}",
            ]
        return lines

    def _tree(self, q: int, how: str) -> list[str]:
        joined = {
            "add": "x + y",
            "max": "x >= y || x != x ? x : y",
            "first": "x",
        }[how]
        lines = [
            "__syncthreads();",
            f"UNROLL for (int j = 0; j < V; j++) sm[j * {THREADS} + t] = a[{q}][j];",
            "__syncthreads();",
            "for (int n = down; n > 1;) { const int half = (n + 1) / 2;",
            f"if (r0 < n - half) UNROLL for (int j = 0; j < V; j++) {{ const int k = j * {THREADS} + t;",
            f"const {self.ctype} x = sm[k], y = sm[k + half * across]; sm[k] = {joined}; }}",
            "n = half; __syncthreads(); }",
        ]
        if self.by_column:
            at = f"((i64)bx * {self.count} + {q}) * lanes * V + c + j"
            write = f"UNROLL for (int j = 0; j < V; j++) part[{at}] = sm[j * {THREADS} + t];"
            return [*lines, f"if (r0 == 0 && lane < lanes) {write}"]
        return [
            *lines,
            f"if (t == 0) {{ {self.ctype} x = sm[0];",
            f"UNROLL for (int j = 1; j < V; j++) {{ const {self.ctype} y = sm[j * {THREADS}]; x = {joined}; }}",
            f"part[(i64)bx * {self.count} + {q}] = x; }}",
        ]


def ending(traced: Traced, g: Geometry, chunks: int, scratch: int, threads: int | None) -> Mapped:
    """The second stage: every result from the partial ones of its blocks."""
    sums = Sums(traced, g)
    width = sums.columns
    across = 8 if chunks > 8 else 64
    while across > 1 and across // 2 >= width:
        across //= 2
    words: list[Word] = [Address(SCRATCH, scratch), chunks, width, across, g.rows * _each(g)]

    def word(value: Word) -> str:
        words.append(value)
        return f"w{len(words) - 1}"

    lines = [
        "const i64 chunks = w1, width = w2; const int t = threadIdx.x, across = (int)w3;",
        "const int x = t % across, y = t / across, down = blockDim.x / across;",
        "const i64 tiles = (width + across - 1) / across, outer = bx / tiles;",
        "const i64 col = (bx % tiles) * across + x, i = outer * width + col; (void)by; (void)nbx;",
        "const double count = (double)w4; (void)count; (void)i;",
        f"const {sums.ctype}* part = (const {sums.ctype}*)w0; __shared__ double sm[{_FINISHERS}];",
    ]
    for q, how in sums.hows():
        lines += _gathered(q, how, sums)
    lines += ["if (y == 0 && col < width) {", *_results(traced, sums, word), "}"]
    source = device_function(lines, len(words))
    blocks = g.outers * -(-width // across)
    down = 1
    while down < chunks and down * across < _FINISHERS:
        down *= 2
    return Mapped(source, (blocks, 1), threads or across * down, tuple(words))


def finished(traced: Traced, g: Geometry, sums: Sums, word: Callable[[Word], str]) -> list[str]:
    """The results of a block that has all rows: what it left in the scratch buffer, read back."""
    wide = "across * V" if g.columns else "1"
    gathered = [
        f"const double s{q} = part[(outer * {sums.count} + {q}) * width + col];"
        for q, _ in sums.hows()
    ]
    return [
        "__syncthreads();",
        f"const i64 width = {word(sums.columns)};",
        f"const double count = (double){word(g.rows * _each(g))}; (void)count;",
        f"for (int x = t; x < {wide}; x += across * down) {{",
        f"const i64 col = (i64)by * {wide} + x, i = outer * width + col; (void)i;",
        *["if (col < width) {", *gathered, *_results(traced, sums, word), "} }"],
    ]


def _results(traced: Traced, sums: Sums, word: Callable[[Word], str]) -> list[str]:
    """What is written of each reduction, from the sums `s0`, `s1`, ..."""
    lines, at = list[str](), 0
    for r in traced.reductions:
        lines += _finished(r, sums, at, word)
        at += len(r.values)
    return lines


def _each(g: Geometry) -> int:
    return 1 if g.columns else g.lanes * g.width


def _gathered(q: int, how: str, sums: Sums) -> list[str]:
    at = f"part[((outer * chunks + k) * {sums.count} + {q}) * width + col]"
    if how == "first":
        return [f"double s{q} = 0; if (col < width) {{ const i64 k = 0; s{q} = {at}; }}"]
    start, joined = ("-INFINITY", "v >= z || v != v ? v : z") if how == "max" else ("0", "v + z")
    return [
        f"double s{q} = {start};",
        "if (col < width) for (i64 k = y; k < chunks; k += down) {",
        f"const double v = s{q}, z = {at}; s{q} = {joined}; }}",
        f"__syncthreads(); sm[t] = s{q}; __syncthreads();",
        "for (int n = down; n > 1;) { const int half = (n + 1) / 2;",
        "if (y < n - half) { const double v = sm[t], z = sm[t + half * across];",
        f"sm[t] = {joined}; }} n = half; __syncthreads(); }}",
        f"s{q} = sm[x];",
    ]


def _finished(r: Reduction, sums: Sums, at: int, word: Callable[[Word], str]) -> list[str]:
    """A reduction's result from its sums."""
    size = math.prod(r.place.layout.shape)
    if r.place.padding is not None or r.place.layout.strides != row_major_strides(
        r.place.layout.shape
    ):
        raise Unmappable(f"{r.node.name} does not lie row after row")
    kind, op = MEMORY[r.place.dtype], r.node.op
    out = f"(({kind}*){word(address_of(r.place, r.place.layout.offset))})"
    q = sums.first[at]

    def put(where: str, value: str) -> str:
        return f"{{ const double r = {value}; store<1>({out} + {where}, &r); }}"

    if op == "moments":
        half = size // 2
        mean, var = f"(s{q} / count)", f"s{q + 1} / count - (s{q} / count) * (s{q} / count)"
        second = (
            f"{{ double r = {var}; r = r < 0 ? 0 : r; store<1>({out} + {word(half)} + i, &r); }}"
        )
        return [put("i", f"s{q + 2} + {mean}"), second]
    if op == "normalize_dmoments":
        return _dmoments(r, q, sums.first[at + 1], out, word)
    if op == "trust_ratio":
        a = r.node.attrs
        wide, steep = f"sqrt(s{q})", f"sqrt(s{sums.first[at + 1]})"
        down = f"({steep} + {a['weight_decay']!r} * {wide} + {a['eps']!r})"
        ratio = f"{wide} > 0 && {steep} > 0 ? {a['trust']!r} * {wide} / {down} : 1"
        return [put("i", ratio)]
    return [put("i", f"s{q} / count" if op == "reduce_mean" else f"s{q}")]


def _dmoments(
    r: Reduction, total: int, centred: int, out: str, word: Callable[[Word], str]
) -> list[str]:
    assert r.moments is not None
    half = math.prod(r.place.layout.shape) // 2
    layout = r.moments.layout
    if layout.strides != row_major_strides(layout.shape):
        raise Unmappable("moments do not lie row after row")
    place = word(address_of(r.moments, layout.offset + half))
    kind = MEMORY[r.moments.dtype]
    eps = repr(float(r.node.attrs["eps"]))
    return [
        f"{{ const double inv = 1 / sqrt((double)widen((({kind} const*){place})[i]) + {eps});",
        f"const double dm = -s{total} * inv, dv = -0.5 * s{centred} * inv * inv * inv;",
        f"store<1>({out} + i, &dm); store<1>({out} + {word(half)} + i, &dv); }}",
    ]
