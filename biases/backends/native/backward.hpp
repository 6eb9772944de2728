// The gradients: for each chunk of keys a pass over the tiles of queries, whose weights are computed again.
#pragma once

#include "product.hpp"
#include "tiles.hpp"

namespace biases {
namespace {

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

// Blocks of keys whose bound is below this do not matter to the gradients of a tile. NaN leaves nothing out.
float least_that_counts(const Problem& p, const BackwardScratch& s, const Tile& tile, long b, long h) {
    const long D = round_up(p.D, W), Dv = round_up(p.Dv, W);
    if (!(largest_norm(tile, s.dO, Dv, p.Dv) < INFINITE)) return NOT_A_NUMBER;
    if (p.mode == SIGMOID) return least_own_weight(p, tile, s.Q, D, b, h) - NEGLIGIBLE;
    float least = INFINITE;
    for (int i = 0; i < tile.queries; ++i) {
        const bool valid = s.top[i] == s.top[i] && s.inverse[i] == s.inverse[i] && s.delta[i] == s.delta[i];
        least = smaller_of(least, valid ? s.top[i] : NOT_A_NUMBER);
    }
    return least - NEGLIGIBLE;
}

// One tile of queries against the keys of a chunk that begins at `start` and ends before `stop`.
void backward_tile(const Problem& p, const Shared& shared, const BackwardScratch& s, long thread, long b, long h,
                   const Tile& tile, long start, long stop, const float* k, long k_stride, const float* v, long v_stride) {
    const long D = round_up(p.D, W), Dv = round_up(p.Dv, W), padded = row_width(p);
    const Block& block = s.block;
    const Tables& tables = shared.tables;
    const bool skips = shared.bounds.worthwhile;
    const float norm = skips ? largest_norm(tile, s.Q, D, p.D) : 0.0f;
    const long of_block = block_keys(p);
    Allowed allowed;
    const float least = skips ? least_that_counts(p, s, tile, b, h) : 0.0f;
    for (long key = std::max(start, tile.first), keys = 0; key < std::min(stop, tile.last); key += keys) {
        keys = std::min({stop, tile.last, (key / of_block + 1) * of_block}) - key;
        if (skips && upper_bound(p, shared.bounds, s.bounds, norm, b, h, tile.index, key / of_block) < least) continue;
        read_mask(p, b, h, tile.start, tile.queries, key, keys, allowed);
        if (!allowed.any) continue;
        const float *K = k + (key - start) * k_stride, *values = v + (key - start) * v_stride;
        product<false>(keys, tile.vectors, p.D, K, k_stride, s.q_lanes, TILE, block.S, TILE, false);
        product<false>(keys, tile.vectors, p.Dv, values, v_stride, s.dO_lanes, TILE, block.P, TILE, false);
        add_biases(p, tables, tile, b, h, key, keys, allowed, block);
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

}  // namespace
}  // namespace biases
