// The output: for each tile of queries one pass over the keys, with running row statistics.
#pragma once

#include "product.hpp"
#include "tiles.hpp"

namespace biases {
namespace {

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
    const long of_block = block_keys(p);
    Allowed allowed;
    bool started = false;
    for (long key = tile.first, keys = 0; key < tile.last; key += keys) {
        keys = std::min(tile.last, (key / of_block + 1) * of_block) - key;
        if (skips && upper_bound(p, shared.bounds, s.bounds, norm, b, h, tile.index, key / of_block) < least) continue;
        read_mask(p, b, h, tile.start, tile.queries, key, keys, allowed);
        if (!allowed.any) continue;
        product<false>(keys, tile.vectors, p.D, k + key * k_stride, k_stride, s.lanes, TILE, s.block.S, TILE, false);
        add_biases(p, shared.tables, tile, b, h, key, keys, allowed, s.block);
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
            const bool empty = s.total[i] == 0.0f;
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

}  // namespace
}  // namespace biases
