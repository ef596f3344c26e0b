"""The primitives of expressions on vectors: a table from their names to what computes them."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from netdsl.backends.cpu.llvm_builder import I32, I64, Lanes, Value
from netdsl.ops.dropout import PHILOX_DOMAIN, PHILOX_MULTIPLIERS, PHILOX_WEYL

CONTRACT = ("contract",)
"""Lets a product and a sum become one instruction, which rounds once: only where one kernel alone
computes a value. What two kernels compute must have the same bits in both."""


def add(v: Lanes, x: Value, z: Value, flags: tuple[str, ...] = ()) -> Value:
    return v.f.b.fadd(x, z, flags=flags)


def sub(v: Lanes, x: Value, z: Value, flags: tuple[str, ...] = ()) -> Value:
    return v.f.b.fsub(x, z, flags=flags)


def mul(v: Lanes, x: Value, z: Value, flags: tuple[str, ...] = ()) -> Value:
    return v.f.b.fmul(x, z, flags=flags)


def div(v: Lanes, x: Value, z: Value) -> Value:
    return v.f.b.fdiv(x, z)


def fma(v: Lanes, x: Value, y: Value, z: Value) -> Value:
    return v.map("llvm.fma", x, y, z)


def less_than(v: Lanes, x: Value, z: Value) -> Value:
    return v.f.b.fcmp_ordered("<", x, z)


def greater_than(v: Lanes, x: Value, z: Value) -> Value:
    return v.f.b.fcmp_ordered(">", x, z)


def select(v: Lanes, c: Value, x: Value, z: Value) -> Value:
    return v.f.b.select(c, x, z)


def _is_nan(v: Lanes, x: Value) -> Value:
    return v.f.b.fcmp_unordered("uno", x, x)


def maximum(v: Lanes, x: Value, z: Value) -> Value:
    """A NaN in either operand stays one; with a constant, one comparison is enough."""
    if isinstance(z, ir.Constant):
        return select(v, less_than(v, x, z), z, x)
    return select(v, v.f.b.or_(greater_than(v, x, z), _is_nan(v, x)), x, z)


def minimum(v: Lanes, x: Value, z: Value) -> Value:
    if isinstance(z, ir.Constant):
        return select(v, greater_than(v, x, z), z, x)
    return select(v, v.f.b.or_(less_than(v, x, z), _is_nan(v, x)), x, z)


def _clamp(v: Lanes, x: Value, low: float, high: float) -> Value:
    x = select(v, less_than(v, x, v.const(low)), v.const(low), x)
    return select(v, greater_than(v, x, v.const(high)), v.const(high), x)


def _horner(v: Lanes, x: Value, *coefficients: float) -> Value:
    total = v.const(coefficients[0])
    for c in coefficients[1:]:
        total = fma(v, total, x, v.const(c))
    return total


def exp(v: Lanes, x: Value) -> Value:
    """Cephes' expf: 2^n e^r with |r| < ln 2 / 2, r's power by a polynomial."""
    b = v.f.b
    y = _clamp(v, x, -87.3, 88.72)
    n = v.map("llvm.nearbyint", mul(v, y, v.const(1.44269504088896341)))
    r = fma(v, n, v.const(-0.693359375), y)
    r = fma(v, n, v.const(2.12194440e-4), r)
    p = _horner(v, r, 1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2)
    p = fma(v, fma(v, p, r, v.const(1.6666665459e-1)), r, v.const(5.0000001201e-1))
    p = fma(v, p, mul(v, r, r), add(v, r, v.const(1)))
    whole = b.fptosi(select(v, _is_nan(v, n), v.const(0), n), v.vector_type(I32))
    seven = ir.Constant(v.vector_type(I32), [1] * v.count)
    half = b.ashr(whole, seven)
    found = mul(v, mul(v, p, _power_of_two(v, half)), _power_of_two(v, b.sub(whole, half)))
    found = select(v, greater_than(v, x, v.const(88.72)), v.const(float("inf")), found)
    found = select(v, less_than(v, x, v.const(-103)), v.const(0), found)
    return select(v, _is_nan(v, x), x, found)


def _power_of_two(v: Lanes, n: Value) -> Value:
    b = v.f.b
    bias, shift = (ir.Constant(v.vector_type(I32), [k] * v.count) for k in (127, 23))
    return b.bitcast(b.shl(b.add(n, bias), shift), v.float_type)


_TANH_NUMERATOR = (
    -2.76076847742355e-16,
    2.00018790482477e-13,
    -8.60467152213735e-11,
    5.12229709037114e-08,
    1.48572235717979e-05,
    6.37261928875436e-04,
    4.89352455891786e-03,
)
_TANH_DENOMINATOR = (
    1.19825839466702e-06,
    1.18534705686654e-04,
    2.26843463243900e-03,
    4.89352518554385e-03,
)
_TANH_SATURATION = 9.0


def tanh(v: Lanes, x: Value) -> Value:
    """A quotient of polynomials on [-7.9, 7.9], as Eigen's; 1 or -1 where float32 has nothing
    between."""
    y = _clamp(v, x, -7.90531110763549805, 7.90531110763549805)
    square = mul(v, y, y)
    numerator = mul(v, y, _horner(v, square, *_TANH_NUMERATOR))
    found = div(v, numerator, _horner(v, square, *_TANH_DENOMINATOR))
    magnitude = v.map("llvm.fabs", x)
    one = v.map("llvm.copysign", v.const(1), x)
    found = select(v, greater_than(v, magnitude, v.const(_TANH_SATURATION)), one, found)
    return select(v, less_than(v, magnitude, v.const(0.0004)), x, found)


def expm1(v: Lanes, x: Value) -> Value:
    """2t / (1 - t) with t = tanh(x / 2): exact near zero."""
    t = tanh(v, mul(v, v.const(0.5), x))
    return div(v, mul(v, v.const(2), t), sub(v, v.const(1), t))


_ERF_NUMERATOR = (
    2.0501167057920766e-06,
    2.848823445636765e-04,
    3.7655437545073096e-03,
    5.274849541455429e-02,
    1.904045797194197e-01,
    1.1283791461601003,
)
_ERF_DENOMINATOR = (
    3.8092004382073216e-05,
    1.1625202783866297e-03,
    1.496906676071078e-02,
    1.1410835196897094e-01,
    5.02074406355802e-01,
    1.0,
)
"""The best rational approximation of erf(x) / x in x^2 on [0, 3.92]: its relative error is 2e-8."""
_ERF_SATURATION = 3.92


def erf(v: Lanes, x: Value) -> Value:
    """x times a quotient of polynomials in x^2; 1 or -1 where float32 has nothing between."""
    y = _clamp(v, x, -_ERF_SATURATION, _ERF_SATURATION)
    square = mul(v, y, y)
    numerator = mul(v, y, _horner(v, square, *_ERF_NUMERATOR))
    found = div(v, numerator, _horner(v, square, *_ERF_DENOMINATOR))
    is_limit = greater_than(v, v.map("llvm.fabs", x), v.const(_ERF_SATURATION))
    return select(v, is_limit, v.map("llvm.copysign", v.const(1), x), found)


_LOG1P_POLYNOMIAL = (
    -0.04507479865082303,
    0.10463022013702206,
    -0.13161193607867513,
    0.14478395038004108,
    -0.1664731217633645,
    0.19990861222844808,
    -0.25000095841327097,
    0.33333449112820324,
    -0.5,
)
"""Of (log(1 + m) - m) / m^2 on [-0.25, 0.5]: the relative error of the logarithm is 5e-9."""


def log1p(v: Lanes, x: Value) -> Value:
    """e ln 2 + log(1 + m), where 1 + x = 2^e (1 + m) with m in [-0.25, 0.5]. Of the bits of 1 + x
    only the exponent is used: m = 2^-e x + (2^-e - 1) has those that 1 + x rounds away."""
    b, words = v.f.b, v.vector_type(I32)

    def word(n: int) -> Value:
        return ir.Constant(words, [n] * v.count)

    total = b.bitcast(add(v, x, v.const(1)), words)
    exponent = b.and_(b.sub(total, word(0x3F400000)), word(-0x800000))  # 1.0 is 0x3F800000
    scaled = b.bitcast(b.sub(b.bitcast(x, words), exponent), v.float_type)
    factor = b.bitcast(b.sub(word(0x40800000), exponent), v.float_type)  # 4 * 2^-e is normal
    m = add(v, scaled, fma(v, factor, v.const(0.25), v.const(-1)))
    rest = fma(v, mul(v, m, m), _horner(v, m, *_LOG1P_POLYNOMIAL), m)
    e = b.sitofp(b.ashr(exponent, word(23)), v.float_type)
    found = fma(v, e, v.const(0.6931471805599453), rest)
    found = select(v, less_than(v, x, v.const(float("inf"))), found, x)
    is_pole = b.fcmp_ordered("==", x, v.const(-1))
    limit = select(v, is_pole, v.const(float("-inf")), v.const(float("nan")))
    return select(v, greater_than(v, x, v.const(-1)), found, limit)


def is_finite(v: Lanes, x: Value) -> Value:
    return v.f.b.fcmp_ordered("==", sub(v, x, x), v.const(0))


def sqrt(v: Lanes, x: Value) -> Value:
    return v.map("llvm.sqrt", x)


def dropout_mask(
    v: Lanes, element: Value, seed: Value, step: Value, key: int, threshold: int
) -> Value:
    """The mask of ops/dropout.py: every lane its own block of Philox4x32-10, of which it uses one
    word. `seed` and `step` are integers in all lanes, `element` the indices of the elements."""
    b = v.f.b
    words, longs = v.vector_type(I32), v.vector_type(I64)

    def word(n: int) -> Value:
        return ir.Constant(words, [n] * v.count)

    def product(x: Value, n: int) -> tuple[Value, Value]:
        wide = b.mul(b.zext(x, longs), ir.Constant(longs, [n] * v.count))
        high = b.lshr(wide, ir.Constant(longs, [32] * v.count))
        return b.trunc(high, words), b.trunc(wide, words)

    block = b.lshr(element, ir.Constant(longs, [2] * v.count))
    high = b.lshr(block, ir.Constant(longs, [32] * v.count))
    c0, c1, c2, c3 = b.trunc(block, words), b.trunc(high, words), step, word(key)
    k0, k1 = seed, word(PHILOX_DOMAIN)
    for _ in range(10):
        (h0, l0), (h1, l1) = product(c0, PHILOX_MULTIPLIERS[0]), product(c2, PHILOX_MULTIPLIERS[1])
        c0, c1, c2, c3 = b.xor(b.xor(h1, c1), k0), l1, b.xor(b.xor(h0, c3), k1), l0
        k0, k1 = b.add(k0, word(PHILOX_WEYL[0])), b.add(k1, word(PHILOX_WEYL[1]))
    lane = b.and_(b.trunc(element, words), word(3))
    bits = c3
    for i, c in ((0, c0), (1, c1), (2, c2)):
        bits = b.select(b.icmp_unsigned("==", lane, word(i)), c, bits)
    if threshold >> 32:  # a rate so near to 1 that no word of 32 bits reaches it
        return ir.Constant(v.mask_type, None)
    return b.icmp_unsigned(">=", bits, word(threshold))


FUNCTIONS: dict[str, Any] = {
    "add": add,
    "sub": sub,
    "mul": mul,
    "div": div,
    "fma": fma,
    "neg": lambda v, x: v.f.b.fneg(x),
    "abs": lambda v, x: v.map("llvm.fabs", x),
    "maximum": maximum,
    "minimum": minimum,
    "greater": greater_than,
    "equal": lambda v, x, z: v.f.b.fcmp_ordered("==", x, z),
    "is_finite": is_finite,
    "select": select,
    "exp": exp,
    "expm1": expm1,
    "log": lambda v, x: v.map("llvm.log", x),
    "log1p": log1p,
    "sqrt": sqrt,
    "tanh": tanh,
    "erf": erf,
    "pow": lambda v, x, z: v.map("llvm.pow", x, z),
}
"""The primitives of `lower/expression.py` but `cast`, which a row kernel emits itself."""
