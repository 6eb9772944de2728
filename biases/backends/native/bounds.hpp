// Which blocks of keys cannot matter to a tile of queries, without looking at their logits.
//
// By Cauchy-Schwarz no logit exceeds |q| |k| scale plus the largest bias in the block. A key whose weight is at most
// exp(-NEGLIGIBLE) of that of the query's own key does not reach the rounding of the row.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "problem.hpp"
#include "terms.hpp"

namespace biases {

constexpr float NEGLIGIBLE = 32.0f;  // twice the logarithm of the precision of a float
constexpr long CELL = 32;            // entries of a table that share a maximum

// Of a table: maxima of its cells, and the range of `row` in a tile and of `column` in a block.
struct Extent {
    float* highest;  // (tables, cells)
    long cells;
    int32_t *row_low, *row_high, *column_low, *column_high;
};

struct Bounds {
    bool worthwhile = false;
    Extent extent[MOST_TERMS];
};

inline void find_range(const int32_t* values, long count, long of_each, int32_t* low, int32_t* high) {
    for (long start = 0; start < count; start += of_each) {
        const auto range = std::minmax_element(values + start, values + std::min(count, start + of_each));
        low[start / of_each] = *range.first;
        high[start / of_each] = *range.second;
    }
}

inline void prepare(const Problem& p, Arena& arena, Bounds& bounds) {
    if (p.expand) return;
    for (int t = 0; t < p.terms; ++t) {
        const Term& term = p.term[t];
        Extent& extent = bounds.extent[t];
        const long entries = term.length - 2 * PAD, tables = term.size / term.length;
        const long tiles = (p.L + TILE - 1) / TILE, of_block = block_keys(p), blocks = (p.S + of_block - 1) / of_block;
        extent.cells = (entries + CELL - 1) / CELL;
        extent.highest = arena.take(tables * extent.cells);
        extent.row_low = arena.take_integers(tiles);
        extent.row_high = arena.take_integers(tiles);
        extent.column_low = arena.take_integers(blocks);
        extent.column_high = arena.take_integers(blocks);
        if (!p.shared) continue;
        find_range(term.row, p.L, TILE, extent.row_low, extent.row_high);
        find_range(term.column, p.S, of_block, extent.column_low, extent.column_high);
        for (long n = 0; n < tables; ++n) {
            const float* table = term.table + n * term.length + PAD;
            float *highest = extent.highest + n * extent.cells, low = INFINITE, high = -INFINITE;
            for (long cell = 0; cell < extent.cells; ++cell) {
                const long stop = std::min(entries, (cell + 1) * CELL);
                highest[cell] = largest_of(table + cell * CELL, table + stop);
                low = std::min(low, highest[cell]);
                high = std::max(high, highest[cell]);
            }
            if (term.stage != FACTOR) bounds.worthwhile |= high - low > NEGLIGIBLE;
            if (term.stage == FACTOR && p.mode == SIGMOID) bounds.worthwhile |= low < high * std::exp(-NEGLIGIBLE);
        }
    }
}

// Largest norms of the keys of a block and largest biases of the key in it, for one head of one example.
struct KeyBounds {
    float *norm, *key_bias, *post_bias;
};

inline KeyBounds take_key_bounds(Arena& arena, const Problem& p) {
    const long of_block = block_keys(p), blocks = (p.S + of_block - 1) / of_block;
    return {arena.take(blocks), p.key_bias ? arena.take(blocks) : nullptr, p.post_bias ? arena.take(blocks) : nullptr};
}

inline float dot(const float* x, const float* y, long D) {
    V products{};
    long d = 0;
    for (; d + W <= D; d += W) products += load(x + d) * load(y + d);
    float total = sum(products);
    for (; d < D; ++d) total += x[d] * y[d];
    return total;
}

// A bound of NaN leaves nothing out: a weight of 0 times what is not finite is NaN, and so every pair counts.
inline float finite_root(float squared) { return squared < INFINITE ? std::sqrt(squared) : NOT_A_NUMBER; }

inline bool finite_values(const Problem& p, long b, long h) {
    const float* v = p.v + b * p.v_strides[0] + h * p.v_strides[1];
    for (long j = 0; j < p.S; ++j) {
        const float* row = v + j * p.v_strides[2];
        if (!(dot(row, row, p.Dv) < INFINITE)) return false;
    }
    return true;
}

inline void find_key_bounds(const Problem& p, const KeyBounds& bounds, long b, long h) {
    const float* k = p.k + b * p.k_strides[0] + h * p.k_strides[1];
    const bool finite = finite_values(p, b, h);
    const long of_block = block_keys(p);
    for (long start = 0; start < p.S; start += of_block) {
        const long stop = std::min(p.S, start + of_block), block = start / of_block;
        float squared = 0.0f;
        for (long j = start; j < stop; ++j) {
            const float* row = k + j * p.k_strides[2];
            squared = larger_of(squared, dot(row, row, p.D));
        }
        bounds.norm[block] = finite ? finite_root(squared) : NOT_A_NUMBER;
        if (p.key_bias) {
            const float* values = p.key_bias + b * p.key_bias_strides[0] + h * p.key_bias_strides[1];
            bounds.key_bias[block] = largest_of(values + start, values + stop);
        }
        if (p.post_bias) {
            const float* values = p.post_bias + b * p.post_bias_strides[0] + h * p.post_bias_strides[1];
            bounds.post_bias[block] = largest_of(values + start, values + stop);
        }
    }
}

inline float highest_entry(const Problem& p, const Bounds& bounds, int t, long b, long h, long tile, long block) {
    const Term& term = p.term[t];
    const Extent& extent = bounds.extent[t];
    const float* highest =
        extent.highest + (b / p.per_group * term.group_stride + h * term.head_stride) / term.length * extent.cells;
    const long low = (extent.row_low[tile] - extent.column_high[block]) / CELL;
    const long high = (extent.row_high[tile] - extent.column_low[block]) / CELL;
    const long last = extent.cells - 1;
    return largest_of(highest + std::clamp(low, 0l, last), highest + std::clamp(high, 0l, last) + 1);
}

// The logarithm of no weight of the block and the tile is above this, up to what their row has in common.
inline float upper_bound(const Problem& p, const Bounds& bounds, const KeyBounds& keys, float query_norm, long b, long h,
                         long tile, long block) {
    float x = query_norm * keys.norm[block] * 1.001f;
    for (int t = 0; t < p.terms; ++t)
        if (p.term[t].stage == LOGITS) x += highest_entry(p, bounds, t, b, h, tile, block);
    if (p.key_bias) x += keys.key_bias[block];
    if (p.mode == SOFTMAX) return x;
    x = smaller_of(x, 0.0f);
    for (int t = 0; t < p.terms; ++t) {
        if (p.term[t].stage == LOGARITHM) x += highest_entry(p, bounds, t, b, h, tile, block);
        if (p.term[t].stage == FACTOR && p.mode == SIGMOID)
            x += std::log(larger_of(0.0f, highest_entry(p, bounds, t, b, h, tile, block)));
    }
    return p.post_bias ? x + keys.post_bias[block] : x;
}

// The logarithm of the weight of query i's own key, scaled query at `q`, is at least this; -inf where it has none.
inline float own_weight(const Problem& p, const float* q, long b, long h, long i) {
    const long j = i + p.offset;
    if (j < 0 || j >= p.S) return -INFINITE;
    if (p.mask && !mask_row(p, b, h, i)[j]) return -INFINITE;
    float x = dot(q, p.k + b * p.k_strides[0] + h * p.k_strides[1] + j * p.k_strides[2], p.D);
    float later = p.mode == SOFTMAX ? 0.0f : -0.6931472f;
    for (int t = 0; t < p.terms; ++t) {
        const Term& term = p.term[t];
        const float entry = term.table[b / p.per_group * term.group_stride + h * term.head_stride + PAD + term.row[i] -
                                       term.column[j]];
        if (term.stage == LOGITS) x += entry;
        if (term.stage == LOGARITHM) later += entry;
        if (term.stage == FACTOR && p.mode == SIGMOID) later += std::log(larger_of(0.0f, entry));
    }
    if (p.key_bias) x += p.key_bias[b * p.key_bias_strides[0] + h * p.key_bias_strides[1] + j];
    if (p.post_bias) later += p.post_bias[b * p.post_bias_strides[0] + h * p.post_bias_strides[1] + j];
    return (p.mode == SOFTMAX ? x : smaller_of(x, 0.0f)) + later;
}

}  // namespace biases
