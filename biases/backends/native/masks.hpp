// Which pairs of a query and a key the mask allows.
#pragma once

#include <cstdint>
#include <cstring>

#include "problem.hpp"

namespace biases {

// Of a tile of queries and a block of keys.
struct Allowed {
    uint64_t queries_of[MOST_KEYS];  // bit i: query i of the tile may see the key
    bool any = true, all = true;
};

typedef uint8_t Bytes __attribute__((vector_size(MOST_KEYS)));

// Reads the mask for queries from `first` on and keys from `key` on.
inline void read_mask(const Problem& p, long b, long h, long first, int queries, long key, int keys, Allowed& allowed) {
    if (!p.mask) return;
    uint8_t bits[TILE / 8][MOST_KEYS] = {};
    const uint8_t* row = mask_row(p, b, h, first) + key;
    const long stride = p.mask_strides[2];
    for (int i = 0; i < queries; ++i, row += stride) {
        Bytes here{}, before;
        // Up to the end of the last row, what lies beyond the keys of this one is memory of the mask as well.
        if ((queries - 1 - i) * stride + keys >= MOST_KEYS)
            std::memcpy(&here, row, MOST_KEYS);
        else
            std::memcpy(&here, row, keys);
        std::memcpy(&before, bits[i / 8], MOST_KEYS);
        const uint8_t bit = static_cast<uint8_t>(1u << i % 8);
        before |= (Bytes)(here != 0) & bit;
        std::memcpy(bits[i / 8], &before, MOST_KEYS);
    }
    for (int j = 0; j < MOST_KEYS; ++j) {
        uint64_t seen = 0;
        for (int group = 0; group < TILE / 8; ++group) seen |= static_cast<uint64_t>(bits[group][j]) << (8 * group);
        allowed.queries_of[j] = seen;
    }
    uint64_t in_some = 0, in_all = ~uint64_t{0};
    for (int j = 0; j < keys; ++j) {
        in_some |= allowed.queries_of[j];
        in_all &= allowed.queries_of[j];
    }
    allowed.any = in_some != 0;
    allowed.all = in_all == ~uint64_t{0} >> (TILE - queries);
}

// x in the lanes whose bit is set, -inf in the others.
inline V where_allowed(uint64_t bits, V x) {
#if defined(__AVX512F__)
    return (V)_mm512_mask_mov_ps((__m512)splat(-INFINITE), static_cast<__mmask16>(bits), (__m512)x);
#else
    const I here = splat(static_cast<int32_t>(bits)) & (splat(int32_t{1}) << lanes());
    return here != 0 ? x : splat(-INFINITE);
#endif
}

}  // namespace biases
