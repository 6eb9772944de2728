// A tile of queries and a block of keys: packing, exclusion, weights and the gradients of logits.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "bounds.hpp"
#include "masks.hpp"
#include "problem.hpp"
#include "terms.hpp"

namespace biases {
namespace {

// to (rows, width) = scale * from (rows, D), zeros beyond D.
void pack(float* to, long width, const float* from, long stride, long rows, long D, float scale) {
    for (long r = 0; r < rows; ++r) {
        const float* x = from + r * stride;
        float* y = to + r * width;
        long d = 0;
        for (; d + W <= D; d += W) store(y + d, load(x + d) * scale);
        for (; d < D; ++d) y[d] = x[d] * scale;
        for (; d < width; ++d) y[d] = 0.0f;
    }
}

void unpack(float* to, long stride, const float* from, long width, long rows, long D, float scale) {
    for (long r = 0; r < rows; ++r) {
        const float* x = from + r * width;
        float* y = to + r * stride;
        long d = 0;
        for (; d + W <= D; d += W) store(y + d, load(x + d) * scale);
        for (; d < D; ++d) y[d] = x[d] * scale;
    }
}

// Rows of a tile, zeros up to a whole number of vectors, and the same with queries along the lanes, (width, TILE).
void pack_tile(float* rows, float* lanes_, long width, const float* from, long stride, int queries, long D, float scale) {
    const int padded = static_cast<int>(round_up(queries, W));
    pack(rows, width, from, stride, queries, D, scale);
    std::memset(rows + queries * width, 0, sizeof(float) * (padded - queries) * width);
    for (int i = 0; i < padded; i += W)
        for (long d = 0; d < width; d += W) transpose(rows + i * width + d, width, lanes_ + d * TILE + i, TILE);
}

struct Shared {
    Tables tables;
    Bounds bounds;
};

struct Tile {
    long index, start;  // which, and its first query
    int queries, vectors;
    long first, last;  // keys that any of them may see: first .. last - 1
};

Tile tile_of(const Problem& p, long index) {
    Tile tile;
    tile.index = index;
    tile.start = index * TILE;
    tile.queries = static_cast<int>(std::min<long>(TILE, p.L - tile.start));
    tile.vectors = (tile.queries + W - 1) / W;
    tile.first = 0;
    tile.last = p.S;
    if (p.causal) {
        tile.last = std::clamp<long>(tile.start + tile.queries + p.offset, 0, p.S);
        if (p.window) tile.first = std::clamp<long>(tile.start + p.offset - p.window + 1, 0, tile.last);
    }
    return tile;
}

// S = -inf where causality, window or mask exclude a pair.
void exclude(const Problem& p, const Tile& tile, long key, int keys, const Allowed& allowed, float* S) {
    if (p.causal) {
        const V never = splat(-INFINITE);
        // Positions of the first and the last query in the coordinates of the keys.
        const long low = tile.start + p.offset, high = low + tile.queries - 1;
        const bool all = key + keys - 1 <= low && (!p.window || key > high - p.window);
        for (int v = 0; v < (all ? 0 : tile.vectors); ++v) {
            const I query = lanes() + static_cast<int32_t>(low + v * W);
            for (int j = 0; j < keys; ++j) {
                const int32_t at = static_cast<int32_t>(key + j);
                I inside = query >= splat(at);
                if (p.window) inside &= query < splat(at + static_cast<int32_t>(p.window));
                float* s = S + j * TILE + v * W;
                store(s, inside ? load(s) : never);
            }
        }
    }
    if (allowed.all) return;
    for (int j = 0; j < keys; ++j)
        for (int v = 0; v < tile.vectors; ++v) {
            float* s = S + j * TILE + v * W;
            store(s, where_allowed(allowed.queries_of[j] >> (v * W), load(s)));
        }
}

void add_to_rows(float* X, const float* values, int keys, int vectors) {
    for (int j = 0; j < keys; ++j)
        for (int v = 0; v < vectors; ++v) {
            float* x = X + j * TILE + v * W;
            store(x, load(x) + values[j]);
        }
}

// The least of own_weight over a tile, and of the norms of its scaled queries (rows of `width`) the largest.
float least_own_weight(const Problem& p, const Tile& tile, const float* rows, long width, long b, long h) {
    float least = INFINITE;
    for (int i = 0; i < tile.queries; ++i) {
        least = smaller_of(least, own_weight(p, rows + i * width, b, h, tile.start + i));
    }
    return least;
}

float largest_norm(const Tile& tile, const float* rows, long width, long D) {
    float squared = 0.0f;
    for (int i = 0; i < tile.queries; ++i) {
        squared = larger_of(squared, dot(rows + i * width, rows + i * width, D));
    }
    return finite_root(squared);
}

// Buffers of a block of keys and a tile of queries, (MOST_KEYS, TILE) each; null where the problem has no use for them.
struct Block {
    float *S, *P, *post, *factor;
};

Block take_block(Arena& arena, const Problem& p, const Tables& tables, bool backward) {
    Block block;
    block.S = arena.take(MOST_KEYS * TILE);
    block.P = backward ? arena.take(MOST_KEYS * TILE) : nullptr;
    block.post = tables.present[LOGARITHM] || p.post_bias ? arena.take(MOST_KEYS * TILE) : nullptr;
    block.factor = tables.present[FACTOR] ? arena.take(MOST_KEYS * TILE) : nullptr;
    return block;
}

// S += biases, then exclusion; `post` and `factor` = what joins later.
void add_biases(const Problem& p, const Tables& tables, const Tile& tile, long b, long h, long key, int keys,
                const Allowed& allowed, const Block& block) {
    if (tables.present[LOGITS])
        add_stage(p, tables, LOGITS, b, h, tile.index, key, keys, tile.vectors, block.S, false);
    if (p.key_bias)
        add_to_rows(block.S, p.key_bias + b * p.key_bias_strides[0] + h * p.key_bias_strides[1] + key, keys, tile.vectors);
    if (block.post) {
        if (tables.present[LOGARITHM])
            add_stage(p, tables, LOGARITHM, b, h, tile.index, key, keys, tile.vectors, block.post, true);
        else
            std::memset(block.post, 0, sizeof(float) * keys * TILE);
        if (p.post_bias)
            add_to_rows(block.post, p.post_bias + b * p.post_bias_strides[0] + h * p.post_bias_strides[1] + key, keys,
                        tile.vectors);
    }
    if (block.factor) add_stage(p, tables, FACTOR, b, h, tile.index, key, keys, tile.vectors, block.factor, true);
    exclude(p, tile, key, keys, allowed, block.S);
}

// Logarithm of a weight up to what a row has in common; with sigmoids up to 1 / (1 + exp(-|s|)), between 1/2 and 1.
template <int MODE>
inline V exponent(V s, const Block& block, long at) {
    if (MODE == SIGMOID_NORMALISED) s = -larger(-s, V{});
    return MODE == SIGMOID_NORMALISED && block.post ? s + load(block.post + at) : s;
}

// S = weights, not yet divided by the sum of their row. Returns whether a maximum rose, and for each query the factor
// that what was summed before has to be multiplied by.
template <int MODE>
bool weigh(const Block& block, int keys, int vectors, float* top, float* total, float* correction) {
    float* S = block.S;
    bool rose = false;
    for (int v = 0; v < vectors; ++v) {
        if (MODE == SIGMOID) {
            for (int j = 0; j < keys; ++j) {
                const long at = j * TILE + v * W;
                V rest;
                const V x = sigmoid(load(S + at), rest);
                store(S + at, block.factor ? x * load(block.factor + at) : x);
            }
            continue;
        }
        const V before = load(top + v * W);
        V highest = before;
        for (int j = 0; j < keys; ++j) {
            const long at = j * TILE + v * W;
            const V x = exponent<MODE>(load(S + at), block, at);
            highest = larger(highest, x);
        }
        // A row without a key so far keeps the maximum -inf.
        const V reference = highest == -INFINITE ? V{} : highest;
        const V factor = exponential(before - reference);
        // Small weights would be lost one by one in a sum over all keys.
        V of_block{};
        for (int j = 0; j < keys; ++j) {
            const long at = j * TILE + v * W;
            const V s = load(S + at);
            V x = exponential(exponent<MODE>(s, block, at) - reference);
            if (MODE == SIGMOID_NORMALISED) x *= reciprocal(1.0f + exponential(-magnitude(s)));
            of_block += x;
            store(S + at, block.factor ? x * load(block.factor + at) : x);
        }
        store(top + v * W, highest);
        store(total + v * W, load(total + v * W) * factor + of_block);
        store(correction + v * W, factor);
        const I changed = before != highest;
        for (int lane = 0; lane < W; ++lane) rose |= changed[lane] != 0;
    }
    return rose;
}

// From logits S and P = dO . v: S = what multiplies dO in dV, P = gradients of the logits, and where there are such terms
// post = gradients of what is added after the sigmoid, factor = gradients of the factors.
template <int MODE>
void differentiate(const Block& block, int keys, int vectors, const float* top, const float* inverse, const float* delta) {
    float *S = block.S, *P = block.P;
    for (int v = 0; v < vectors; ++v) {
        const V reference = load(top + v * W), scale = load(inverse + v * W), mean = load(delta + v * W);
        for (int j = 0; j < keys; ++j) {
            const long at = j * TILE + v * W;
            const V s = load(S + at), received = load(P + at);
            const V factor = block.factor ? load(block.factor + at) : splat(1.0f);
            V weight, rest;
            if (MODE == SIGMOID) {
                weight = sigmoid(s, rest);
                store(P + at, received * factor * weight * rest);
            } else {
                weight = exponential(exponent<MODE>(s, block, at) - reference) * scale;
                if (MODE == SIGMOID_NORMALISED) {
                    const V e = exponential(-magnitude(s)), near = reciprocal(1.0f + e);
                    weight *= near;
                    rest = s >= 0.0f ? e * near : near;
                }
                const V gradient = weight * (received * factor - mean);
                if (MODE == SIGMOID_NORMALISED && block.post) store(block.post + at, gradient);
                store(P + at, MODE == SIGMOID_NORMALISED ? gradient * rest : gradient);
            }
            store(S + at, weight * factor);
            if (block.factor) store(block.factor + at, received * weight);
        }
    }
}

}  // namespace
}  // namespace biases
