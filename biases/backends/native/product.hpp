// Products of small matrices, C[m][n] (+)= sum_k A[m][k] B[k][n], with a block of C in registers and n along the lanes.
#pragma once

#include "vector.hpp"

namespace biases {

// A[m][k] lies at A[m * lda + k], or if ACROSS at A[k * lda + m].
template <bool ACROSS, int MR, int NV>
inline void block(long depth, const float* A, long lda, const float* B, long ldb, float* C, long ldc, bool add) {
    V c[MR][NV];
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
        for (int n = 0; n < NV; ++n) c[m][n] = V{};
    for (long k = 0; k < depth; ++k) {
        V b[NV];
#pragma GCC unroll 4
        for (int n = 0; n < NV; ++n) b[n] = load(B + k * ldb + n * W);
#pragma GCC unroll 16
        for (int m = 0; m < MR; ++m) {
            const V a = splat(ACROSS ? A[k * lda + m] : A[m * lda + k]);
#pragma GCC unroll 4
            for (int n = 0; n < NV; ++n) c[m][n] += a * b[n];
        }
    }
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
        for (int n = 0; n < NV; ++n) {
            float* to = C + m * ldc + n * W;
            store(to, add ? load(to) + c[m][n] : c[m][n]);
        }
}

// Rows of C that a block of NV vectors leaves registers for.
template <int NV>
constexpr int rows_at_once() {
    return REGISTERS == 32 ? (NV == 4 ? 6 : NV == 3 ? 8 : 12) : (NV == 2 ? 6 : 12);
}

template <bool ACROSS, int NV>
void panel(int rows, long depth, const float* A, long lda, const float* B, long ldb, float* C, long ldc, bool add) {
    constexpr int MR = rows_at_once<NV>();
    const long step = ACROSS ? 1 : lda;
    int m = 0;
    for (; m + MR <= rows; m += MR) block<ACROSS, MR, NV>(depth, A + m * step, lda, B, ldb, C + m * ldc, ldc, add);
    for (; m + 4 <= rows; m += 4) block<ACROSS, 4, NV>(depth, A + m * step, lda, B, ldb, C + m * ldc, ldc, add);
    if (m + 2 <= rows) {
        block<ACROSS, 2, NV>(depth, A + m * step, lda, B, ldb, C + m * ldc, ldc, add);
        m += 2;
    }
    if (m < rows) block<ACROSS, 1, NV>(depth, A + m * step, lda, B, ldb, C + m * ldc, ldc, add);
}

// C, `rows` by `vectors` * W; B and C have room for whole vectors.
template <bool ACROSS>
void product(int rows, int vectors, long depth, const float* A, long lda, const float* B, long ldb, float* C, long ldc,
             bool add) {
    for (int n = 0; n < vectors; n += PANEL) {
        const float* b = B + n * W;
        float* c = C + n * W;
        switch (vectors - n < PANEL ? vectors - n : PANEL) {
            case 1: panel<ACROSS, 1>(rows, depth, A, lda, b, ldb, c, ldc, add); break;
            case 2: panel<ACROSS, 2>(rows, depth, A, lda, b, ldb, c, ldc, add); break;
#if defined(__AVX512F__) || defined(__aarch64__)
            case 3: panel<ACROSS, 3>(rows, depth, A, lda, b, ldb, c, ldc, add); break;
            default: panel<ACROSS, 4>(rows, depth, A, lda, b, ldb, c, ldc, add); break;
#else
            default: break;
#endif
        }
    }
}

}  // namespace biases
