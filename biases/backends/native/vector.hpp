// Vectors of floats as wide as the registers of the machine, and the functions of them that attention needs.
#pragma once

#include <cstdint>

#if defined(__SSE__)
#include <immintrin.h>
#endif

namespace biases {

#if defined(__AVX512F__)
constexpr int W = 16;      // floats in a vector
constexpr int PANEL = 4;   // vectors of a row that a product keeps in registers
constexpr int REGISTERS = 32;
#elif defined(__AVX__)
constexpr int W = 8;
constexpr int PANEL = 2;
constexpr int REGISTERS = 16;
#elif defined(__aarch64__)
constexpr int W = 4;
constexpr int PANEL = 4;
constexpr int REGISTERS = 32;
#else
constexpr int W = 4;
constexpr int PANEL = 2;
constexpr int REGISTERS = 16;
#endif

typedef float V __attribute__((vector_size(W * 4)));
typedef int32_t I __attribute__((vector_size(W * 4)));
typedef uint32_t U __attribute__((vector_size(W * 4)));
typedef float Unaligned __attribute__((vector_size(W * 4), aligned(4), may_alias));

inline V load(const float* p) { return *reinterpret_cast<const Unaligned*>(p); }
inline void store(float* p, V x) { *reinterpret_cast<Unaligned*>(p) = x; }
// x - 0 is x for every x, so that this is a broadcast and no arithmetic.
inline V splat(float x) { return x - V{}; }
inline I splat(int32_t x) { return x - I{}; }
#if defined(__AVX512F__)
inline V larger(V a, V b) { return (V)_mm512_max_ps((__m512)a, (__m512)b); }
#elif defined(__AVX__)
inline V larger(V a, V b) { return (V)_mm256_max_ps((__m256)a, (__m256)b); }
#else
inline V larger(V a, V b) { return a > b ? a : b; }
#endif
inline V magnitude(V x) { return (V)((I)x & 0x7fffffff); }

inline float sum(V x) {
    float total = 0.0f;
    for (int lane = 0; lane < W; ++lane) total += x[lane];
    return total;
}

inline I lanes() {
    I index;
    for (int lane = 0; lane < W; ++lane) index[lane] = lane;
    return index;
}

// exp(x) for x <= 88; exactly 0 below -86.5, where the result would soon be subnormal. Rounding of x aside, which the
// reduction by a single ln 2 stays below, the error is about one unit in the last place.
inline V exponential(V x) {
    // Adding 1.5 * 2^23 leaves the nearest integer in the lowest bits.
    const V shifted = x * 1.44269504088896341f + 12582912.0f;
    const V r = x - (shifted - 12582912.0f) * 0.693147180559945309f;
    // Minimax polynomial of exp on [-ln 2 / 2, ln 2 / 2], relative error 3e-9.
    V p = 1.381458365e-3f * r + 8.368724026e-3f;
    p = p * r + 4.166838899e-2f;
    p = p * r + 1.666652113e-1f;
    p = p * r + 4.999999404e-1f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return x < -86.5f ? V{} : (V)((U)p + ((U)shifted << 23));
}

// 1 / y for 1 <= y <= 2, by Newton's iteration from a quadratic with an error of 1 %: several times faster than division.
inline V reciprocal(V y) {
    V r = (y * 0.32323232f - 1.45454545f) * y + 2.12121212f;
    r = r + r * (1.0f - y * r);
    return r + r * (1.0f - y * r);
}

// sigmoid(x), and sigmoid(-x) in `rest`.
inline V sigmoid(V x, V& rest) {
    const V e = exponential(-magnitude(x));
    const V near = reciprocal(1.0f + e), far = e * near;
    const I positive = x >= 0.0f;
    rest = positive ? far : near;
    return positive ? near : far;
}

inline V interleave(V a, V b, int half) {
    I index;
    for (int lane = 0; lane < W; ++lane) index[lane] = lane / 2 + half * (W / 2) + (lane % 2) * W;
#if defined(__clang__)
    V mixed;
    for (int lane = 0; lane < W; ++lane) mixed[lane] = index[lane] < W ? a[index[lane]] : b[index[lane] - W];
    return mixed;
#else
    return __builtin_shuffle(a, b, index);
#endif
}

// to[c][r] = from[r][c] for W rows and W columns.
inline void transpose(const float* from, long from_stride, float* to, long to_stride) {
    V x[W], y[W];
    for (int r = 0; r < W; ++r) x[r] = load(from + r * from_stride);
    for (int width = 1; width < W; width *= 2) {
#pragma GCC unroll 16
        for (int r = 0; r < W / 2; ++r) {
            y[2 * r] = interleave(x[r], x[r + W / 2], 0);
            y[2 * r + 1] = interleave(x[r], x[r + W / 2], 1);
        }
#pragma GCC unroll 16
        for (int r = 0; r < W; ++r) x[r] = y[r];
    }
    for (int r = 0; r < W; ++r) store(to + r * to_stride, x[r]);
}

// Numbers too small for the normal format count as zero while it lives: arithmetic on them is a hundred times slower.
class FlushSubnormals {
#if defined(__SSE__)
    unsigned saved_ = _mm_getcsr();

  public:
    FlushSubnormals() { _mm_setcsr(saved_ | 0x8040); }
    ~FlushSubnormals() { _mm_setcsr(saved_); }
#elif defined(__aarch64__)
    uint64_t saved_;

  public:
    FlushSubnormals() {
        __asm__ volatile("mrs %0, fpcr" : "=r"(saved_));
        __asm__ volatile("msr fpcr, %0" ::"r"(saved_ | (1ull << 24)));
    }
    ~FlushSubnormals() { __asm__ volatile("msr fpcr, %0" ::"r"(saved_)); }
#else
  public:
    FlushSubnormals() {}
    ~FlushSubnormals() {}
#endif
    FlushSubnormals(const FlushSubnormals&) = delete;
    FlushSubnormals& operator=(const FlushSubnormals&) = delete;
};

}  // namespace biases
