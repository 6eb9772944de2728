// Attention with biases that are tables of relative positions or numbers of the keys, forward and backward, in memory
// linear in the numbers of queries and keys.
//
// A tile of queries lies along the vector lanes, a block of keys is walked through: logits S^T = K Q^T, then biases and
// weights in place, then the product with the values. Softmax keeps a running maximum and sum (Milakov and Gimelshein,
// arXiv 1805.02867); the backward computes the weights again from them (Dao et al., arXiv 2205.14135).
#include <algorithm>
#include <cmath>
#include <cstring>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "bounds.hpp"
#include "problem.hpp"
#include "product.hpp"
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
void exclude(const Problem& p, const Tile& tile, long b, long h, long key, int keys, float* S) {
    const V never = splat(-INFINITE);
    if (p.causal) {
        // Positions of the first and the last query in the coordinates of the keys.
        const long low = tile.start + p.offset, high = low + tile.queries - 1;
        const bool all = key + keys - 1 <= low && (!p.window || key > high - p.window);
        for (int v = 0; v < (all ? 0 : tile.vectors); ++v) {
            const I query = lanes() + static_cast<int32_t>(low + v * W);
            for (int j = 0; j < keys; ++j) {
                const int32_t at = static_cast<int32_t>(key + j);
                I allowed = query >= splat(at);
                if (p.window) allowed &= query < splat(at + static_cast<int32_t>(p.window));
                float* s = S + j * TILE + v * W;
                store(s, allowed ? load(s) : never);
            }
        }
    }
    if (!p.mask) return;
    uint64_t allowed[KEYS] = {};  // of each key, a bit for each query
    for (int i = 0; i < tile.queries; ++i) {
        const uint8_t* row = mask_row(p, b, h, tile.start + i) + key;
        for (int j = 0; j < keys; ++j) allowed[j] |= static_cast<uint64_t>(row[j] != 0) << i;
    }
    const I bit = splat(int32_t{1}) << lanes();
    for (int j = 0; j < keys; ++j)
        for (int v = 0; v < tile.vectors; ++v) {
            const I here = splat(static_cast<int32_t>(allowed[j] >> (v * W))) & bit;
            float* s = S + j * TILE + v * W;
            store(s, here != 0 ? load(s) : never);
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
        const float own = own_weight(p, rows + i * width, b, h, tile.start + i);
        least = own >= least ? least : own;
    }
    return least;
}

float largest_norm(const Tile& tile, const float* rows, long width, long D) {
    float squared = 0.0f;
    for (int i = 0; i < tile.queries; ++i) {
        const float own = dot(rows + i * width, rows + i * width, D);
        squared = own <= squared ? squared : own;
    }
    return std::sqrt(squared);
}

// Buffers of a block of keys and a tile of queries, (KEYS, TILE) each; null where the problem has no use for them.
struct Block {
    float *S, *P, *post, *factor;
};

Block take_block(Arena& arena, const Problem& p, const Tables& tables, bool backward) {
    Block block;
    block.S = arena.take(KEYS * TILE);
    block.P = backward ? arena.take(KEYS * TILE) : nullptr;
    block.post = tables.present[LOGARITHM] || p.post_bias ? arena.take(KEYS * TILE) : nullptr;
    block.factor = tables.present[FACTOR] ? arena.take(KEYS * TILE) : nullptr;
    return block;
}

// S += biases, then exclusion; `post` and `factor` = what joins later.
void add_biases(const Problem& p, const Tables& tables, const Tile& tile, long b, long h, long key, int keys,
                const Block& block) {
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
    exclude(p, tile, b, h, key, keys, block.S);
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

struct ForwardScratch {
    float *Q, *lanes, *K, *V, *O, *top, *total, *correction;
    KeyBounds bounds;
    Block block;
    bool pack_k, pack_v;
};

ForwardScratch take_forward(Arena& arena, const Problem& p, const Tables& tables) {
    const long D = round_up(p.D, W), Dv = round_up(p.Dv, W), several = p.L > 2 * TILE;
    ForwardScratch s;
    s.Q = arena.take(TILE * D);
    s.lanes = arena.take(TILE * D);
    // Rows far apart in memory fall into few sets of the cache.
    s.pack_k = several && p.k_strides[2] != p.D;
    s.pack_v = p.Dv % W != 0 || (several && p.v_strides[2] != p.Dv);
    s.K = s.pack_k ? arena.take(p.S * p.D) : nullptr;
    s.V = s.pack_v ? arena.take(p.S * Dv) : nullptr;
    s.O = arena.take(TILE * Dv);
    s.top = arena.take(TILE);
    s.total = arena.take(TILE);
    s.correction = arena.take(TILE);
    s.bounds = take_key_bounds(arena, p);
    s.block = take_block(arena, p, tables, false);
    return s;
}

bool weigh_by_mode(const Problem& p, const ForwardScratch& s, int keys, int vectors) {
    if (p.mode == SOFTMAX) return weigh<SOFTMAX>(s.block, keys, vectors, s.top, s.total, s.correction);
    if (p.mode == SIGMOID) return weigh<SIGMOID>(s.block, keys, vectors, s.top, s.total, s.correction);
    return weigh<SIGMOID_NORMALISED>(s.block, keys, vectors, s.top, s.total, s.correction);
}

void forward_tile(const Problem& p, const Shared& shared, const ForwardScratch& s, long b, long h, const Tile& tile,
                  const float* k, long k_stride, const float* v, long v_stride) {
    const long D = round_up(p.D, W), Dv = round_up(p.Dv, W);
    const float* q = p.q + b * p.q_strides[0] + h * p.q_strides[1] + tile.start * p.q_strides[2];
    pack_tile(s.Q, s.lanes, D, q, p.q_strides[2], tile.queries, p.D, static_cast<float>(p.scale));
    std::fill(s.top, s.top + TILE, -INFINITE);
    std::fill(s.total, s.total + TILE, 0.0f);
    const bool skips = shared.bounds.worthwhile;
    const float norm = skips ? largest_norm(tile, s.Q, D, p.D) : 0.0f;
    const float least = skips ? least_own_weight(p, tile, s.Q, D, b, h) - NEGLIGIBLE : 0.0f;
    bool started = false;
    for (long key = tile.first, keys = 0; key < tile.last; key += keys) {
        keys = std::min<long>(tile.last, (key / KEYS + 1) * KEYS) - key;
        if (skips && upper_bound(p, shared.bounds, s.bounds, norm, b, h, tile.index, key / KEYS) < least) continue;
        product<false>(keys, tile.vectors, p.D, k + key * k_stride, k_stride, s.lanes, TILE, s.block.S, TILE, false);
        add_biases(p, shared.tables, tile, b, h, key, keys, s.block);
        if (weigh_by_mode(p, s, keys, tile.vectors) && started)
            for (int i = 0; i < tile.queries; ++i)
                for (long d = 0; d < Dv && s.correction[i] != 1.0f; d += W)
                    store(s.O + i * Dv + d, load(s.O + i * Dv + d) * s.correction[i]);
        product<true>(tile.queries, static_cast<int>(Dv / W), keys, s.block.S, TILE, v + key * v_stride, v_stride, s.O, Dv,
                      started);
        started = true;
    }
    float* out = p.out + b * p.out_strides[0] + h * p.out_strides[1] + tile.start * p.out_strides[2];
    const long row = (b * p.heads + h) * p.L + tile.start;
    for (int i = 0; i < tile.queries; ++i) {
        float scale = 1.0f;
        if (p.mode != SIGMOID) {
            const bool empty = !(s.total[i] > 0.0f);
            scale = empty ? 0.0f : 1.0f / s.total[i];
            p.top[row + i] = empty ? INFINITE : s.top[i];
            p.inverse[row + i] = scale;
        }
        float* to = out + i * p.out_strides[2];
        if (started)
            unpack(to, p.Dv, s.O + i * Dv, Dv, 1, p.Dv, scale);
        else
            std::fill(to, to + p.Dv, 0.0f);
    }
}

// Tasks are pairs of a head and an example, head by head, each in p.parts: part n takes tiles n, n + parts, ...
void forward_tasks(const Problem& p, const Shared& shared, long thread, long threads) {
    const FlushSubnormals guard;
    Arena arena(p.scratch + thread * p.scratch_size);
    const ForwardScratch s = take_forward(arena, p, shared.tables);
    const long tasks = p.batch * p.heads * p.parts, tiles = (p.L + TILE - 1) / TILE, Dv = round_up(p.Dv, W);
    for (long task = tasks * thread / threads; task < tasks * (thread + 1) / threads; ++task) {
        const long part = task % p.parts, b = task / p.parts % p.batch, h = task / p.parts / p.batch;
        const float *k = p.k + b * p.k_strides[0] + h * p.k_strides[1], *v = p.v + b * p.v_strides[0] + h * p.v_strides[1];
        if (s.pack_k) pack(s.K, p.D, k, p.k_strides[2], p.S, p.D, 1.0f);
        if (s.pack_v) pack(s.V, Dv, v, p.v_strides[2], p.S, p.Dv, 1.0f);
        if (shared.bounds.worthwhile) find_key_bounds(p, s.bounds, b, h);
        for (long index = part; index < tiles; index += p.parts)
            forward_tile(p, shared, s, b, h, tile_of(p, index), s.pack_k ? s.K : k, s.pack_k ? p.D : p.k_strides[2],
                         s.pack_v ? s.V : v, s.pack_v ? Dv : p.v_strides[2]);
    }
}

struct BackwardScratch {
    float *Q, *q_lanes, *dO, *dO_lanes, *K, *V, *dQ, *dK, *dV, *top, *inverse, *delta, *sums, *post_sums;
    KeyBounds bounds;
    float* dense[STAGES];  // gradients of the expanded tables of one head, (S, L rounded up to 16)
    Block block;
    bool pack_k, pack_v;
};

BackwardScratch take_backward(Arena& arena, const Problem& p, const Tables& tables) {
    const long D = round_up(p.D, W), Dv = round_up(p.Dv, W), chunk = std::min<long>(CHUNK, p.S);
    BackwardScratch s;
    s.Q = arena.take(TILE * D);
    s.q_lanes = arena.take(TILE * D);
    s.dO = arena.take(TILE * Dv);
    s.dO_lanes = arena.take(TILE * Dv);
    s.pack_k = p.D % W != 0 || (p.L > TILE && p.k_strides[2] != p.D);
    s.pack_v = p.L > 2 * TILE && p.v_strides[2] != p.Dv;
    s.K = s.pack_k ? arena.take(chunk * D) : nullptr;
    s.V = s.pack_v ? arena.take(chunk * p.Dv) : nullptr;
    s.dQ = arena.take(p.L * D);
    s.dK = arena.take(chunk * D);
    s.dV = arena.take(chunk * Dv);
    s.top = arena.take(TILE);
    s.inverse = arena.take(TILE);
    s.delta = arena.take(TILE);
    s.sums = p.grad_key_bias ? arena.take(chunk * W) : nullptr;
    s.post_sums = p.grad_post_bias ? arena.take(chunk * W) : nullptr;
    s.bounds = take_key_bounds(arena, p);
    for (int stage = 0; stage < STAGES; ++stage)
        s.dense[stage] = p.expand && tables.wanted[stage] ? arena.take(p.S * row_width(p)) : nullptr;
    s.block = take_block(arena, p, tables, true);
    return s;
}

void differentiate_by_mode(const Problem& p, const BackwardScratch& s, int keys, int vectors) {
    if (p.mode == SOFTMAX)
        differentiate<SOFTMAX>(s.block, keys, vectors, s.top, s.inverse, s.delta);
    else if (p.mode == SIGMOID)
        differentiate<SIGMOID>(s.block, keys, vectors, s.top, s.inverse, s.delta);
    else
        differentiate<SIGMOID_NORMALISED>(s.block, keys, vectors, s.top, s.inverse, s.delta);
}

// Queries, gradients of the output and row statistics of a tile.
void load_tile(const Problem& p, const BackwardScratch& s, long b, long h, const Tile& tile) {
    const long D = round_up(p.D, W), Dv = round_up(p.Dv, W), row = (b * p.heads + h) * p.L + tile.start;
    const float* q = p.q + b * p.q_strides[0] + h * p.q_strides[1] + tile.start * p.q_strides[2];
    const float* dO =
        p.grad_out + b * p.grad_out_strides[0] + h * p.grad_out_strides[1] + tile.start * p.grad_out_strides[2];
    pack_tile(s.Q, s.q_lanes, D, q, p.q_strides[2], tile.queries, p.D, static_cast<float>(p.scale));
    pack_tile(s.dO, s.dO_lanes, Dv, dO, p.grad_out_strides[2], tile.queries, p.Dv, 1.0f);
    if (p.mode == SIGMOID) return;
    const float* out = p.out + b * p.out_strides[0] + h * p.out_strides[1] + tile.start * p.out_strides[2];
    for (int i = 0; i < tile.vectors * W; ++i) {
        const bool real = i < tile.queries;
        s.top[i] = real ? p.top[row + i] : INFINITE;
        s.inverse[i] = real ? p.inverse[row + i] : 0.0f;
        s.delta[i] = 0.0f;
        if (!real) continue;
        const float *o = out + i * p.out_strides[2], *g = s.dO + i * Dv;
        s.delta[i] = dot(o, g, p.Dv);
    }
}

void add_row_sums(float* sums, const float* X, int keys, int vectors) {
    for (int j = 0; j < keys; ++j) {
        V x = load(X + j * TILE);
        for (int v = 1; v < vectors; ++v) x += load(X + j * TILE + v * W);
        store(sums + j * W, load(sums + j * W) + x);
    }
}

// One tile of queries against the keys of a chunk that begins at `start` and ends before `stop`.
void backward_tile(const Problem& p, const Shared& shared, const BackwardScratch& s, long thread, long b, long h,
                   const Tile& tile, long start, long stop, const float* k, long k_stride, const float* v, long v_stride) {
    const long D = round_up(p.D, W), Dv = round_up(p.Dv, W), padded = row_width(p);
    const Block& block = s.block;
    const Tables& tables = shared.tables;
    const bool skips = shared.bounds.worthwhile;
    const float norm = skips ? largest_norm(tile, s.Q, D, p.D) : 0.0f;
    float least = 0.0f;
    if (skips && p.mode == SIGMOID) least = least_own_weight(p, tile, s.Q, D, b, h) - NEGLIGIBLE;
    if (skips && p.mode != SIGMOID) least = *std::min_element(s.top, s.top + tile.queries) - NEGLIGIBLE;
    for (long key = std::max(start, tile.first), keys = 0; key < std::min(stop, tile.last); key += keys) {
        keys = std::min({stop, tile.last, (key / KEYS + 1) * KEYS}) - key;
        if (skips && upper_bound(p, shared.bounds, s.bounds, norm, b, h, tile.index, key / KEYS) < least) continue;
        const float *K = k + (key - start) * k_stride, *values = v + (key - start) * v_stride;
        product<false>(keys, tile.vectors, p.D, K, k_stride, s.q_lanes, TILE, block.S, TILE, false);
        product<false>(keys, tile.vectors, p.Dv, values, v_stride, s.dO_lanes, TILE, block.P, TILE, false);
        add_biases(p, tables, tile, b, h, key, keys, block);
        differentiate_by_mode(p, s, keys, tile.vectors);
        const int width = static_cast<int>(D / W), value_width = static_cast<int>(Dv / W);
        product<false>(keys, value_width, tile.queries, block.S, TILE, s.dO, Dv, s.dV + (key - start) * Dv, Dv, true);
        product<false>(keys, width, tile.queries, block.P, TILE, s.Q, D, s.dK + (key - start) * D, D, true);
        product<true>(tile.queries, width, keys, block.P, TILE, K, k_stride, s.dQ + tile.start * D, D, true);
        if (s.sums) add_row_sums(s.sums + (key - start) * W, block.P, keys, tile.vectors);
        if (s.post_sums) add_row_sums(s.post_sums + (key - start) * W, block.post, keys, tile.vectors);
        const float* of_stage[STAGES] = {block.P, block.post, block.factor};
        for (int stage = 0; stage < STAGES; ++stage) {
            if (!tables.wanted[stage]) continue;
            if (!s.dense[stage]) {
                add_stage_gradients(p, tables, stage, thread, b, h, tile.index, key, keys, tile.vectors, of_stage[stage], TILE);
                continue;
            }
            for (int j = 0; j < keys; ++j)
                for (int i = 0; i < tile.vectors * W; i += W) {
                    float* to = s.dense[stage] + (key + j) * padded + tile.start + i;
                    store(to, load(to) + load(of_stage[stage] + j * TILE + i));
                }
        }
    }
}

// Adds the gradients of the expanded tables to those of the tables themselves, and begins anew.
void flush(const Problem& p, const Tables& tables, const BackwardScratch& s, long thread, long h) {
    const long padded = row_width(p);
    for (int stage = 0; stage < STAGES; ++stage) {
        if (!s.dense[stage]) continue;
        for (long index = 0; index * TILE < p.L; ++index)
            add_stage_gradients(p, tables, stage, thread, 0, h, index, 0, static_cast<int>(p.S), tile_of(p, index).vectors,
                                s.dense[stage] + index * TILE, padded);
        std::memset(s.dense[stage], 0, sizeof(float) * p.S * padded);
    }
}

void backward_chunk(const Problem& p, const Shared& shared, const BackwardScratch& s, long thread, long b, long h,
                    long start, long stop) {
    const long D = round_up(p.D, W), Dv = round_up(p.Dv, W), n = stop - start, tiles = (p.L + TILE - 1) / TILE;
    const float* k = p.k + b * p.k_strides[0] + h * p.k_strides[1] + start * p.k_strides[2];
    const float* v = p.v + b * p.v_strides[0] + h * p.v_strides[1] + start * p.v_strides[2];
    if (s.pack_k) pack(s.K, D, k, p.k_strides[2], n, p.D, 1.0f);
    if (s.pack_v) pack(s.V, p.Dv, v, p.v_strides[2], n, p.Dv, 1.0f);
    std::memset(s.dK, 0, sizeof(float) * n * D);
    std::memset(s.dV, 0, sizeof(float) * n * Dv);
    if (s.sums) std::memset(s.sums, 0, sizeof(float) * n * W);
    if (s.post_sums) std::memset(s.post_sums, 0, sizeof(float) * n * W);
    for (long index = 0; index < tiles; ++index) {
        const Tile tile = tile_of(p, index);
        if (tile.first >= stop || tile.last <= start) continue;
        load_tile(p, s, b, h, tile);
        backward_tile(p, shared, s, thread, b, h, tile, start, stop, s.pack_k ? s.K : k, s.pack_k ? D : p.k_strides[2],
                      s.pack_v ? s.V : v, s.pack_v ? p.Dv : p.v_strides[2]);
    }
    float* grad_k = p.grad_k + b * p.grad_k_strides[0] + h * p.grad_k_strides[1] + start * p.grad_k_strides[2];
    float* grad_v = p.grad_v + b * p.grad_v_strides[0] + h * p.grad_v_strides[1] + start * p.grad_v_strides[2];
    unpack(grad_k, p.grad_k_strides[2], s.dK, D, n, p.D, 1.0f);
    unpack(grad_v, p.grad_v_strides[2], s.dV, Dv, n, p.Dv, 1.0f);
    const long row = (b * p.heads + h) * p.S + start;
    for (long j = 0; j < n; ++j) {
        if (s.sums) p.grad_key_bias[row + j] = sum(load(s.sums + j * W));
        if (s.post_sums) p.grad_post_bias[row + j] = sum(load(s.post_sums + j * W));
    }
}

// Tasks as in the forward; part n takes chunks of keys n, n + parts, ...
void backward_tasks(const Problem& p, const Shared& shared, long thread, long threads) {
    const FlushSubnormals guard;
    Arena arena(p.scratch + thread * p.scratch_size);
    const BackwardScratch s = take_backward(arena, p, shared.tables);
    const long tasks = p.batch * p.heads * p.parts, D = round_up(p.D, W), padded = row_width(p);
    for (int stage = 0; stage < STAGES; ++stage)
        if (s.dense[stage]) std::memset(s.dense[stage], 0, sizeof(float) * p.S * padded);
    const float scale = static_cast<float>(p.scale);
    long head = -1;
    for (long task = tasks * thread / threads; task < tasks * (thread + 1) / threads; ++task) {
        const long part = task % p.parts, b = task / p.parts % p.batch, h = task / p.parts / p.batch;
        if (head >= 0 && h != head) flush(p, shared.tables, s, thread, head);
        head = h;
        if (shared.bounds.worthwhile) find_key_bounds(p, s.bounds, b, h);
        std::memset(s.dQ, 0, sizeof(float) * p.L * D);
        for (long start = part * CHUNK; start < p.S; start += p.parts * CHUNK)
            backward_chunk(p, shared, s, thread, b, h, start, std::min<long>(start + CHUNK, p.S));
        if (p.parts > 1)
            unpack(p.partial_q + ((part * p.batch + b) * p.heads + h) * p.L * p.D, p.D, s.dQ, D, p.L, p.D, scale);
        else
            unpack(p.grad_q + b * p.grad_q_strides[0] + h * p.grad_q_strides[1], p.grad_q_strides[2], s.dQ, D, p.L, p.D,
                   scale);
    }
    if (head >= 0) flush(p, shared.tables, s, thread, head);
}

template <typename Tasks>
void run(const Problem& p, Tasks tasks) {
    Shared shared;
    Arena arena(p.shared);
    prepare(p, arena, shared.tables);
    prepare(p, arena, shared.bounds);
    // Threads beyond those there are leave their share undone, so the share is by the number that runs.
#if defined(_OPENMP)
#pragma omp parallel num_threads(static_cast<int>(p.threads)) if (p.threads > 1)
    tasks(p, shared, omp_get_thread_num(), omp_get_num_threads());
#else
    tasks(p, shared, 0, 1);
#endif
}

}  // namespace
}  // namespace biases

extern "C" {

int biases_limits(int64_t* values) {
    values[0] = biases::TILE;
    values[1] = biases::PAD;
    values[2] = biases::CHUNK;
    values[3] = sizeof(biases::Problem);
    values[4] = sizeof(biases::Term);
#if defined(_OPENMP)
    values[5] = 1;
#else
    values[5] = 0;
#endif
    return biases::W;
}

// Floats that the shared buffer and the scratch of each thread need.
void biases_sizes(const biases::Problem* problem, int64_t backward, int64_t* shared, int64_t* scratch) {
    biases::Problem p = *problem;
    p.shared = nullptr;
    biases::Tables tables;
    biases::Bounds bounds;
    biases::Arena of_all(nullptr), of_one(nullptr);
    biases::prepare(p, of_all, tables);
    biases::prepare(p, of_all, bounds);
    if (backward)
        biases::take_backward(of_one, p, tables);
    else
        biases::take_forward(of_one, p, tables);
    *shared = of_all.used();
    *scratch = of_one.used();
}

void biases_forward(const biases::Problem* problem) { biases::run(*problem, biases::forward_tasks); }

void biases_backward(const biases::Problem* problem) { biases::run(*problem, biases::backward_tasks); }
}
