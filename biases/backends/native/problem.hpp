// What the caller passes; arguments.py mirrors these structures field by field.
#pragma once

#include <cstdint>
#include <limits>

#include "vector.hpp"

namespace biases {

constexpr int TILE = 64;          // queries that are computed together, along the lanes
constexpr int KEYS = 48;          // keys of a block, where there are many
constexpr int MOST_KEYS = 64;     // keys of a block, at most
constexpr int CHUNK = 10 * KEYS;  // keys whose gradients the backward accumulates before it goes on
constexpr int PAD = 16;           // unused entries on either side of a table, as whole vectors are loaded
constexpr int STAGES = 3;
constexpr int MOST_TERMS = 8;
constexpr int VECTORS = TILE / W;
constexpr float INFINITE = std::numeric_limits<float>::infinity();
constexpr float NOT_A_NUMBER = std::numeric_limits<float>::quiet_NaN();

enum Mode { SOFTMAX = 0, SIGMOID = 1, SIGMOID_NORMALISED = 2 };
// Where a number joins: the logits; the logarithm of the weights, after the sigmoid; the finished weights, as a factor.
enum Stage { LOGITS = 0, LOGARITHM = 1, FACTOR = 2 };

// table[row[i] - column[j]] for query i and key j.
struct Term {
    const float* table;  // (groups or 1, heads or 1, PAD + entries + PAD)
    float* grad;         // (threads, as table), zero at first; null where no gradient is wanted
    int64_t group_stride, head_stride, length, size;  // length of one padded table, size of all
    const int32_t* row;     // (L)
    const int32_t* column;  // (S)
    int64_t stage;
};

struct Problem {
    int64_t batch, heads, L, S, D, Dv, offset, causal, window, mode, threads, terms, per_group, expand, parts;
    double scale;
    // Tensors (batch, heads, tokens, channels) with strides of the first three axes; channels are adjacent.
    const float *q, *k, *v;
    int64_t q_strides[3], k_strides[3], v_strides[3];
    float* out;
    int64_t out_strides[3];
    float *top, *inverse;  // (batch, heads, L): reference of the exponentials of a row, and one over their sum
    const float *key_bias, *post_bias;  // (batch, heads, S), strides of the first two axes; LOGITS and LOGARITHM
    int64_t key_bias_strides[2], post_bias_strides[2];
    const uint8_t* mask;  // (mask_batch, heads or 1, L, S), 1 = may attend; example b uses b % mask_batch
    int64_t mask_batch, mask_strides[3];
    const Term* term;
    // Of the backward alone.
    const float* grad_out;
    int64_t grad_out_strides[3];
    float *grad_q, *grad_k, *grad_v;
    int64_t grad_q_strides[3], grad_k_strides[3], grad_v_strides[3];
    float *grad_key_bias, *grad_post_bias;  // (batch, heads, S), or null
    float* partial_q;  // (parts, batch, heads, L, D), where parts > 1
    float *shared, *scratch;
    int64_t scratch_size;  // floats of each thread
};

// NaN is kept, so that comparing with a bound made of these says no.
inline float larger_of(float a, float b) { return a >= b || a != a ? a : b; }
inline float smaller_of(float a, float b) { return a <= b || a != a ? a : b; }

inline float largest_of(const float* from, const float* to) {
    float largest = *from;
    while (++from < to) largest = larger_of(largest, *from);
    return largest;
}

inline long round_up(long n, long to) { return (n + to - 1) / to * to; }

// Keys of a block. Few keys are shared out evenly, or are one block, as a block of one key costs as much as one of four.
inline long block_keys(const Problem& p) {
    if (p.S > CHUNK) return KEYS;
    if (p.S <= MOST_KEYS) return p.S;
    const long blocks = (p.S + KEYS + 3) / (KEYS + 4);
    return (p.S + blocks - 1) / blocks;
}

// Of a row of numbers for all queries: whole vectors, however wide those are.
inline long row_width(const Problem& p) { return round_up(p.L, 16); }

inline const uint8_t* mask_row(const Problem& p, long b, long h, long i) {
    return p.mask + b % p.mask_batch * p.mask_strides[0] + h * p.mask_strides[1] + i * p.mask_strides[2];
}

// Hands out pieces of a buffer; without a buffer it only counts.
class Arena {
    float* start_;
    long used_ = 0;

  public:
    explicit Arena(float* start) : start_(start) {}
    float* take(long floats) {
        float* piece = start_ ? start_ + used_ : nullptr;
        used_ += round_up(floats, 16);
        return piece;
    }
    int32_t* take_integers(long count) { return reinterpret_cast<int32_t*>(take(count)); }
    long used() const { return used_; }
};

}  // namespace biases
