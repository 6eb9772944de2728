// Linear attention with exponential decay, o_i = scale sum_{j <= i} gamma^(i - j) (q_i . k_j) v_j, chunk by chunk:
//
//     o = ((q k^T) . D) v + (q . xi) S,     D_ij = gamma^(i - j) for j <= i, else 0,   xi_i = gamma^(i + 1)
//     S = gamma^TILE S + (k . zeta)^T v,    zeta_j = gamma^(TILE - 1 - j)
//
// The state S, (D, Dv), stays in the cache (RetNet, arXiv 2307.08621; its first version lacks the factor zeta).
// Both parts of o are one product: [q . xi | (q k^T) . D] with the state above the values of the chunk.
#pragma once

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "product.hpp"
#include "tiles.hpp"

namespace biases {

// What the caller passes; structures.py mirrors it field by field. Strides of tokens may be negative: back in time.
struct Retention {
    int64_t batch, heads, L, D, Dv, threads, parts;  // parts: into which the chunks of a head are cut, for threads
    double scale;
    // Tensors (batch, heads, tokens, channels) with strides of the first three axes; channels are adjacent.
    const float* q;
    int64_t q_strides[3];
    const float* k;
    int64_t k_strides[3];
    const float* v;
    int64_t v_strides[3];
    float* out;
    int64_t out_strides[3];
    const double* gamma;  // (batch, heads)
    int64_t gamma_strides[2];
    float* shared;  // a state for each part of each head but the last
    float* scratch;
    int64_t scratch_size;  // floats of each thread
};

namespace {

// Queries of one step. They are multiplied by keys of their chunk up to the last that any of them sees.
constexpr int ROWS = 16;
static_assert(TILE % ROWS == 0 && ROWS % W == 0, "steps are whole vectors of keys");

inline long state_size(const Retention& p) { return p.D * round_up(p.Dv, W); }

struct RetentionScratch {
    float *rows, *lanes;  // keys of a chunk, and the same with keys along the lanes, (D, TILE)
    float *left, *right;  // factors of the output: (ROWS, D + TILE), and the state above the values, (D + TILE, Dv)
    float* out;           // (ROWS, Dv)
    float* power;         // gamma^(TILE - n) for n = 0 .. TILE, then zeros
};

RetentionScratch take_retention(Arena& arena, const Retention& p) {
    const long D = round_up(p.D, W), Dv = round_up(p.Dv, W);
    RetentionScratch s;
    s.rows = arena.take(TILE * D);
    s.lanes = arena.take(TILE * D);
    s.left = arena.take(ROWS * (p.D + TILE));
    s.right = arena.take((p.D + TILE) * Dv);
    s.out = arena.take(ROWS * Dv);
    s.power = arena.take(2 * TILE);
    return s;
}

// One head of one example.
struct Head {
    const float *q, *k, *v;
    float* out;
    double gamma;
};

Head head_of(const Retention& p, const RetentionScratch& s, long task) {
    const long b = task / p.heads, h = task % p.heads;
    Head head;
    head.q = p.q + b * p.q_strides[0] + h * p.q_strides[1];
    head.k = p.k + b * p.k_strides[0] + h * p.k_strides[1];
    head.v = p.v + b * p.v_strides[0] + h * p.v_strides[1];
    head.out = p.out + b * p.out_strides[0] + h * p.out_strides[1];
    head.gamma = p.gamma[b * p.gamma_strides[0] + h * p.gamma_strides[1]];
    double power = 1.0;
    for (int n = TILE; n >= 0; --n, power *= head.gamma) s.power[n] = static_cast<float>(power);
    std::fill(s.power + TILE + 1, s.power + 2 * TILE, 0.0f);
    return head;
}

// The outputs of a chunk of `queries` tokens from q on, the state being zero if not `started`.
void put_outputs(const Retention& p, const RetentionScratch& s, const float* q, float* out, int queries, bool started) {
    const long D = p.D, Dv = round_up(p.Dv, W), width = D + TILE, skipped = started ? 0 : D;
    const float scale = static_cast<float>(p.scale);
    for (int start = 0; start < queries; start += ROWS) {
        const int rows = std::min(ROWS, queries - start), keys = std::min(start + ROWS, queries);
        const int vectors = (keys + W - 1) / W;
        const float* from = q + start * p.q_strides[2];
        product<false>(rows, vectors, D, from, p.q_strides[2], s.lanes, TILE, s.left + D, width, false);
        for (int r = 0; r < rows; ++r) {
            const int i = start + r;
            float* row = s.left + r * width;
            for (int v = 0; v < vectors; ++v) {
                const V weight = load(s.power + TILE - i + v * W) * scale;
                // A later key counts nothing even where the product overflows.
                const I past = lanes() + v * W <= splat(i);
                store(row + D + v * W, past ? load(row + D + v * W) * weight : V{});
            }
            if (started) pack(row, D, from + r * p.q_strides[2], 0, 1, D, scale * s.power[TILE - 1 - i]);
        }
        product<false>(rows, static_cast<int>(Dv / W), D + keys - skipped, s.left + skipped, width,
                       s.right + skipped * Dv, Dv, s.out, Dv, false);
        unpack(out + start * p.out_strides[2], p.out_strides[2], s.out, Dv, rows, p.Dv, 1.0f);
    }
}

// The state after a whole chunk, from that before.
void advance(const Retention& p, const RetentionScratch& s, bool started) {
    const long Dv = round_up(p.Dv, W), size = state_size(p);
    for (long d = 0; d < p.D; ++d)
        for (int j = 0; j < TILE; j += W) {
            float* k = s.lanes + d * TILE + j;
            store(k, load(k) * load(s.power + j + 1));
        }
    for (long n = 0; n < (started ? size : 0); n += W) store(s.right + n, load(s.right + n) * s.power[0]);
    const int rows = static_cast<int>(p.D), vectors = static_cast<int>(Dv / W);
    product<false>(rows, vectors, TILE, s.lanes, TILE, s.right + size, Dv, s.right, Dv, started);
}

// Chunks first .. last - 1 of a head: either their outputs, or the state after them. The state before them is zero if not
// `started`.
void walk(const Retention& p, const RetentionScratch& s, const Head& head, long first, long last, bool started,
          bool outputs) {
    const long D = round_up(p.D, W), Dv = round_up(p.Dv, W);
    for (long chunk = first; chunk < last; ++chunk) {
        const long start = chunk * TILE;
        const int tokens = static_cast<int>(std::min<long>(TILE, p.L - start));
        pack_tile(s.rows, s.lanes, D, head.k + start * p.k_strides[2], p.k_strides[2], tokens, p.D, 1.0f);
        pack(s.right + state_size(p), Dv, head.v + start * p.v_strides[2], p.v_strides[2], tokens, p.Dv, 1.0f);
        if (outputs)
            put_outputs(p, s, head.q + start * p.q_strides[2], head.out + start * p.out_strides[2], tokens, started);
        if (!outputs || chunk + 1 < last) advance(p, s, started);
        started = true;
    }
}

// The state before a part, from what each part before it adds.
void join(const Retention& p, const RetentionScratch& s, const Head& head, const float* added, long part, long chunks) {
    const long size = state_size(p);
    std::memcpy(s.right, added, sizeof(float) * size);
    for (long n = 1; n < part; ++n) {
        const long tokens = TILE * (chunks * (n + 1) / p.parts - chunks * n / p.parts);
        const float decay = static_cast<float>(std::pow(head.gamma, static_cast<double>(tokens)));
        for (long d = 0; d < size; d += W) store(s.right + d, load(s.right + d) * decay + load(added + n * size + d));
    }
}

// Heads one after another; where there are fewer than threads, in parts: first what each part adds to the state, then
// the outputs.
void retention_tasks(const Retention& p, long thread, long threads) {
    const FlushSubnormals guard;
    Arena arena(p.scratch + thread * p.scratch_size);
    const RetentionScratch s = take_retention(arena, p);
    const long tasks = p.batch * p.heads, chunks = (p.L + TILE - 1) / TILE, size = state_size(p);
    const long states = p.parts - 1;
    for (long n = tasks * states * thread / threads; n < tasks * states * (thread + 1) / threads; ++n) {
        const long part = n % states;
        const Head head = head_of(p, s, n / states);
        walk(p, s, head, chunks * part / p.parts, chunks * (part + 1) / p.parts, false, false);
        std::memcpy(p.shared + n * size, s.right, sizeof(float) * size);
    }
#if defined(_OPENMP)
#pragma omp barrier
#endif
    for (long n = tasks * p.parts * thread / threads; n < tasks * p.parts * (thread + 1) / threads; ++n) {
        const long part = n % p.parts, task = n / p.parts;
        const Head head = head_of(p, s, task);
        if (part) join(p, s, head, p.shared + task * states * size, part, chunks);
        walk(p, s, head, chunks * part / p.parts, chunks * (part + 1) / p.parts, part > 0, true);
    }
}

void retain(const Retention& p) {
#if defined(_OPENMP)
#pragma omp parallel num_threads(static_cast<int>(p.threads)) if (p.threads > 1)
    retention_tasks(p, omp_get_thread_num(), omp_get_num_threads());
#else
    retention_tasks(p, 0, 1);
#endif
}

}  // namespace
}  // namespace biases
