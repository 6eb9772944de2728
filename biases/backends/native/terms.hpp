// Tables of relative positions: their entries for a block of keys and a tile of queries, and the gradients of those.
#pragma once

#include <cstring>

#include "problem.hpp"

namespace biases {

// Within a vector of queries, `row` mostly counts up by one: a piece of the table is loaded for each run in which it does.
struct Runs {
    int32_t* count;  // of a vector of queries
    int32_t* base;   // (vectors, W): the entry of lane l in that run is base + l - column[j]
    int32_t* first;  // (vectors, W + 1): first lane of each run, then W
};

struct Tables {
    Runs runs[MOST_TERMS];
    // The sums of all entries of a stage, (heads or 1, S, L rounded up to 16), where `expand` is set.
    float* expanded[STAGES] = {};
    long expanded_stride[STAGES] = {};
    bool present[STAGES] = {}, wanted[STAGES] = {};
};

inline void find_runs(const Problem& p, const Term& term, const Runs& runs) {
    const long vectors = round_up(p.L, TILE) / W;
    for (long v = 0; v < vectors; ++v) {
        int32_t *base = runs.base + v * W, *first = runs.first + v * (W + 1);
        int count = 0;
        for (int lane = 0; lane < W; ++lane) {
            const long i = v * W + lane;
            if (lane && (i >= p.L || term.row[i] == term.row[i - 1] + 1)) continue;
            first[count] = lane;
            base[count] = (i < p.L ? term.row[i] : 0) - lane;
            ++count;
        }
        first[count] = W;
        runs.count[v] = count;
    }
}

// X[j * stride + lane] = or += the entries, for one vector of queries.
inline void add_entries(const float* table, const int32_t* column, long keys, const Runs& runs, long v, float* X,
                        long stride, bool fresh) {
    const int32_t *base = runs.base + v * W, *first = runs.first + v * (W + 1);
    const int count = runs.count[v];
    const I lane = lanes();
    for (long j = 0; j < keys; ++j) {
        const float* at = table + PAD - column[j];
        V x = load(at + base[0]);
        for (int r = 1; r < count; ++r) x = lane >= splat(first[r]) ? load(at + base[r]) : x;
        store(X + j * stride, fresh ? x : load(X + j * stride) + x);
    }
}

inline void add_gradients(float* grad, const int32_t* column, int keys, const Runs& runs, long v, const float* X,
                          long stride) {
    const int32_t *base = runs.base + v * W, *first = runs.first + v * (W + 1);
    const int count = runs.count[v];
    const I lane = lanes();
    for (int j = 0; j < keys; ++j) {
        float* at = grad + PAD - column[j];
        const V x = load(X + j * stride);
        if (count == 1) {
            store(at + base[0], load(at + base[0]) + x);
            continue;
        }
        for (int r = 0; r < count; ++r) {
            const I inside = (lane >= splat(first[r])) & (lane < splat(first[r + 1]));
            store(at + base[r], load(at + base[r]) + (inside ? x : V{}));
        }
    }
}

inline void prepare(const Problem& p, Arena& arena, Tables& tables) {
    const long padded = row_width(p), vectors = round_up(p.L, TILE) / W;
    for (int t = 0; t < p.terms; ++t) {
        Runs& runs = tables.runs[t];
        runs.count = arena.take_integers(vectors);
        runs.base = arena.take_integers(vectors * W);
        runs.first = arena.take_integers(vectors * (W + 1));
        tables.present[p.term[t].stage] = true;
        tables.wanted[p.term[t].stage] |= p.term[t].grad != nullptr;
        if (p.shared) find_runs(p, p.term[t], runs);
    }
    if (!p.expand) return;
    for (int stage = 0; stage < STAGES; ++stage) {
        if (!tables.present[stage]) continue;
        bool by_head = false;
        for (int t = 0; t < p.terms; ++t) by_head |= p.term[t].stage == stage && p.term[t].head_stride;
        const long heads = by_head ? p.heads : 1;
        float* all = tables.expanded[stage] = arena.take(heads * p.S * padded);
        tables.expanded_stride[stage] = by_head ? p.S * padded : 0;
        if (!p.shared) continue;
        for (long h = 0; h < heads; ++h) {
            bool fresh = true;
            for (int t = 0; t < p.terms; ++t) {
                const Term& term = p.term[t];
                if (term.stage != stage) continue;
                float* to = all + h * p.S * padded;
                for (long v = 0; v * W < p.L; ++v)
                    add_entries(term.table + h * term.head_stride, term.column, p.S, tables.runs[t], v, to + v * W, padded,
                                fresh);
                fresh = false;
            }
        }
    }
}

// X[j][lane] = or += everything that the tables of a stage say for a block of keys and a tile of queries.
inline void add_stage(const Problem& p, const Tables& tables, int stage, long b, long h, long tile, long key, int keys,
                      int vectors, float* X, bool fresh) {
    const long first = tile * VECTORS;
    if (tables.expanded[stage]) {
        const long padded = row_width(p);
        const float* all = tables.expanded[stage] + h * tables.expanded_stride[stage] + key * padded + tile * TILE;
        for (int j = 0; j < keys; ++j)
            for (int v = 0; v < vectors; ++v) {
                const V x = load(all + j * padded + v * W);
                float* to = X + j * TILE + v * W;
                store(to, fresh ? x : load(to) + x);
            }
        return;
    }
    for (int t = 0; t < p.terms; ++t) {
        const Term& term = p.term[t];
        if (term.stage != stage) continue;
        const float* table = term.table + b / p.per_group * term.group_stride + h * term.head_stride;
        for (int v = 0; v < vectors; ++v)
            add_entries(table, term.column + key, keys, tables.runs[t], first + v, X + v * W, TILE, fresh);
        fresh = false;
    }
}

// The gradients of the tables of a stage out of X[j][lane], those of the entries.
inline void add_stage_gradients(const Problem& p, const Tables& tables, int stage, long thread, long b, long h, long tile,
                                long key, int keys, int vectors, const float* X, long stride) {
    for (int t = 0; t < p.terms; ++t) {
        const Term& term = p.term[t];
        if (term.stage != stage || !term.grad) continue;
        float* grad = term.grad + thread * term.size + b / p.per_group * term.group_stride + h * term.head_stride;
        for (int v = 0; v < vectors; ++v)
            add_gradients(grad, term.column + key, keys, tables.runs[t], tile * VECTORS + v, X + v * W, stride);
    }
}

}  // namespace biases
