"""One C++ kernel for all biases on the CPU: float32, forward and backward, in memory linear in L and S.

With logits ``s_ij = scale q_i . k_j + key_bias_j + sum_t table_t[row_t(i) - column_t(j)]`` it computes softmax, sigmoid
or normalised sigmoid weights, times such a table where a decay is placed after them. Gradients by tables and key
biases, and so by learned slopes, rates and gates, come from the same pass.

Linear weights with exponential decay go chunk by chunk, :mod:`biases.backends.native.retention`.

Beside the operands it holds, for each thread, keys and values of one head, and for the backward gradients of the
queries of one head and of the tables. Where there are fewer heads than threads, the backward also holds up to 8 times
the gradients of all queries.

The kernel is compiled at first use (:mod:`biases.backends.native.build`). Where that fails, or ``BIASES_NATIVE=0`` is
set, :func:`why_not` says so and other formulations take over.
"""

from biases.backends.native.plan import available, run, why_not

__all__ = ["available", "run", "why_not"]
