"""The prelude of every generated source: element types, vectors of them, random numbers.

The same text compiles as C++ on the host, if `HOST` is defined.
"""

from __future__ import annotations

from netdsl.ops.dropout import PHILOX_MULTIPLIERS, PHILOX_WEYL

_TEXT = r"""
typedef long long i64;
typedef unsigned short u16;
struct alignas(2) bf16_t { u16 bits; };
struct alignas(2) half_t { u16 bits; };
#ifdef HOST
#define UNROLL
// what a GPU faults on, a processor may do
#define ALIGNED(p, T, V) if ((unsigned long long)(p) % alignof(Pack<T, V>)) abort()
static inline float bits_to_float(unsigned u) { float f; memcpy(&f, &u, 4); return f; }
static inline unsigned float_to_bits(float f) { unsigned u; memcpy(&u, &f, 4); return u; }
static inline float widen(bf16_t v) { return bits_to_float((unsigned)v.bits << 16); }
static inline float widen(half_t v) { _Float16 h; memcpy(&h, &v.bits, 2); return (float)h; }
static inline u16 bf16_bits(float f) {
  unsigned u = float_to_bits(f);
  return f != f ? 0x7fc0 : (u16)((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
}
static inline u16 half_bits(float f) { _Float16 h = (_Float16)f; u16 b; memcpy(&b, &h, 2); return b; }
static inline unsigned bf16_pair(float a, float b) { return bf16_bits(a) | (unsigned)bf16_bits(b) << 16; }
static inline unsigned half_pair(float a, float b) { return half_bits(a) | (unsigned)half_bits(b) << 16; }
static inline unsigned mulhi(unsigned a, unsigned b) { return (unsigned)(((unsigned long long)a * b) >> 32); }
#else
#define UNROLL _Pragma("unroll")
#define ALIGNED(p, T, V)
#define INFINITY __int_as_float(0x7f800000)
#define NAN __int_as_float(0x7fc00000)
__device__ __forceinline__ float widen(bf16_t v) { return __uint_as_float((unsigned)v.bits << 16); }
__device__ __forceinline__ float widen(half_t v) {
  float f; asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v.bits)); return f;
}
__device__ __forceinline__ unsigned bf16_pair(float a, float b) {
  unsigned d; asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(b), "f"(a)); return d;
}
__device__ __forceinline__ unsigned half_pair(float a, float b) {
  unsigned d; asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(b), "f"(a)); return d;
}
__device__ __forceinline__ unsigned mulhi(unsigned a, unsigned b) { return __umulhi(a, b); }
#endif
template <class T> __device__ __forceinline__ T widen(T v) { return v; }

// V elements that are loaded and stored at once
template <class T, int V> struct alignas(sizeof(T) * V > 16 ? 16 : sizeof(T) * V) Pack { T v[V]; };

template <class R, class T, int V>
__device__ __forceinline__ void unpack(const Pack<T, V>& p, R* r) {
  UNROLL for (int j = 0; j < V; j++) r[j] = (R)widen(p.v[j]);
}
template <class R, class T, int V>
__device__ __forceinline__ void pack(const R* r, Pack<T, V>& p) {
  UNROLL for (int j = 0; j < V; j++) p.v[j] = (T)r[j];
}
template <class R, int V>
__device__ __forceinline__ void pack(const R* r, Pack<bf16_t, V>& p) {
  UNROLL for (int j = 0; j < V; j += 2) {
    const unsigned w = bf16_pair((float)r[j], j + 1 < V ? (float)r[j + 1 < V ? j + 1 : j] : 0.0f);
    p.v[j].bits = (u16)w;
    if (j + 1 < V) p.v[j + 1 < V ? j + 1 : j].bits = (u16)(w >> 16);
  }
}
template <class R, int V>
__device__ __forceinline__ void pack(const R* r, Pack<half_t, V>& p) {
  UNROLL for (int j = 0; j < V; j += 2) {
    const unsigned w = half_pair((float)r[j], j + 1 < V ? (float)r[j + 1 < V ? j + 1 : j] : 0.0f);
    p.v[j].bits = (u16)w;
    if (j + 1 < V) p.v[j + 1 < V ? j + 1 : j].bits = (u16)(w >> 16);
  }
}
template <int V, class T> __device__ __forceinline__ Pack<T, V> load(const T* p) {
  ALIGNED(p, T, V); return *(const Pack<T, V>*)p;
}
template <int V, class R, class T> __device__ __forceinline__ void store(T* p, const R* r) {
  ALIGNED(p, T, V); Pack<T, V> q; pack<R>(r, q); *(Pack<T, V>*)p = q;
}

// word `number % 4` of Philox4x32-10's block `number / 4`, as the operator `dropout` defines it
__device__ __forceinline__ unsigned long long philox(
    i64 number, unsigned step, unsigned key, unsigned seed, unsigned domain) {
  const unsigned long long block = (unsigned long long)number >> 2;
  unsigned c0 = (unsigned)block, c1 = (unsigned)(block >> 32), c2 = step, c3 = key;
  unsigned k0 = seed, k1 = domain;
  UNROLL for (int i = 0; i < 10; i++) {
    const unsigned h0 = mulhi(c0, PHILOX_M0), l0 = c0 * PHILOX_M0;
    const unsigned h1 = mulhi(c2, PHILOX_M1), l1 = c2 * PHILOX_M1;
    c0 = h1 ^ c1 ^ k0; c1 = l1; c2 = h0 ^ c3 ^ k1; c3 = l0;
    k0 += PHILOX_W0; k1 += PHILOX_W1;
  }
  const int w = (int)(number & 3);
  return w == 0 ? c0 : w == 1 ? c1 : w == 2 ? c2 : c3;
}
"""
_CONSTANTS = {
    "PHILOX_M": PHILOX_MULTIPLIERS,
    "PHILOX_W": PHILOX_WEYL,
}


def _prelude() -> str:
    text = _TEXT
    for name, values in _CONSTANTS.items():
        for i, value in enumerate(values):
            text = text.replace(f"{name}{i}", f"0x{value:08X}u")
    return text


PRELUDE = _prelude()
