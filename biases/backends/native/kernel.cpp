// Attention with biases that are tables of relative positions or numbers of the keys, forward and backward, in memory
// linear in the numbers of queries and keys.
//
// A tile of queries lies along the vector lanes, a block of keys is walked through: logits S^T = K Q^T, then biases and
// weights in place, then the product with the values. Softmax keeps a running maximum and sum (Milakov and Gimelshein,
// arXiv 1805.02867); the backward computes the weights again from them (Dao et al., arXiv 2205.14135).
#if defined(_OPENMP)
#include <omp.h>
#endif

#include "backward.hpp"
#include "forward.hpp"
#include "retention.hpp"

namespace biases {
namespace {

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
    values[5] = sizeof(biases::Retention);
#if defined(_OPENMP)
    values[6] = 1;
#else
    values[6] = 0;
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

void biases_retention_sizes(const biases::Retention* problem, int64_t* shared, int64_t* scratch) {
    biases::Arena of_one(nullptr);
    biases::take_retention(of_one, *problem);
    *shared = problem->batch * problem->heads * (problem->parts - 1) * biases::state_size(*problem);
    *scratch = of_one.used();
}

void biases_retention(const biases::Retention* problem) { biases::retain(*problem); }
}
