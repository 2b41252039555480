// The element-wise work of a derived cell between its matrix products, in training: each stage in
// one pass over memory. A product (B, k, 2H) = [c, z] of the k nodes that take one state.

#include "kernels.h"

namespace {

// What the next product takes: a row of states times the mask, rounded as products are.
template <class S, class P>
inline void as_factor(int64_t hidden, const S *state, const S *mask, P *inner) {
    if (mask) {
#pragma omp simd
        for (int64_t u = 0; u < hidden; u++) narrow(state[u] * mask[u], inner[u]);
    } else {
#pragma omp simd
        for (int64_t u = 0; u < hidden; u++) narrow(state[u], inner[u]);
    }
}

template <class S, class P>
void gate(int64_t rows, int64_t hidden, int64_t nodes, int64_t stride, const int64_t *ops,
          const P *product, const S *added, const S *source, const S *mask, S *state, P *inner,
          int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t b = 0; b < rows; b++)
        for (int64_t i = 0; i < nodes; i++) {
            const P *c = product + (b * nodes + i) * 2 * hidden, *z = c + hidden;
            const S *s = source + b * hidden, *x = added ? added + b * 2 * hidden : nullptr;
            S *out = state + i * stride + b * hidden;
            by_op(ops[i], [=](auto op) {
                auto one = [](S s, S c, S z) {
                    S open = S(1) / (S(1) + power(-c));
                    return s + open * (value_of<decltype(op)::kind>(z) - s);
                };
                if (x) {
#pragma omp simd
                    for (int64_t u = 0; u < hidden; u++)
                        out[u] = one(s[u], S(widen(c[u])) + x[u], S(widen(z[u])) + x[hidden + u]);
                } else {
#pragma omp simd
                    for (int64_t u = 0; u < hidden; u++)
                        out[u] = one(s[u], widen(c[u]), widen(z[u]));
                }
            });
            if (inner) {
                const S *m = mask ? mask + b * hidden : nullptr;
                as_factor(hidden, out, m, inner + (i * rows + b) * hidden);
            }
        }
}

template <class S, class P>
void mean(int64_t rows, int64_t hidden, int64_t chosen, int64_t stride, const int64_t *outputs,
          const S *states, const S *mask, S *result, P *inner, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t b = 0; b < rows; b++) {
        S *out = result + b * hidden;
        std::fill(out, out + hidden, S(0));
        for (int64_t k = 0; k < chosen; k++) {
            const S *s = states + outputs[k] * stride + b * hidden;
#pragma omp simd
            for (int64_t u = 0; u < hidden; u++) out[u] += s[u];
        }
#pragma omp simd
        for (int64_t u = 0; u < hidden; u++) out[u] /= S(chosen);
        if (inner) as_factor(hidden, out, mask ? mask + b * hidden : nullptr, inner + b * hidden);
    }
}

// gradients of all states, by what reaches the outputs from above and from the step after.
template <class S, class P>
void spread(int64_t rows, int64_t hidden, int64_t states, int64_t chosen, const int64_t *outputs,
            const S *gradient, S *onward, const P *back, const S *mask, S *gradients, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t b = 0; b < rows; b++) {
        const S *d = gradient + b * hidden, *m = mask ? mask + b * hidden : nullptr;
        const P *in = back + b * hidden;
        S *rest = onward + b * hidden;
        if (m) {
#pragma omp simd
            for (int64_t u = 0; u < hidden; u++)
                rest[u] = (d[u] + (rest[u] + widen(in[u]) * m[u])) / S(chosen);
        } else {
#pragma omp simd
            for (int64_t u = 0; u < hidden; u++)
                rest[u] = (d[u] + (rest[u] + widen(in[u]))) / S(chosen);
        }
        for (int64_t i = 0, k = 0; i < states; i++) {
            S *out = gradients + (i * rows + b) * hidden;
            if (k < chosen && outputs[k] == i) {
                std::copy(rest, rest + hidden, out);
                k++;
            } else
                std::fill(out, out + hidden, S(0));
        }
        std::fill(rest, rest + hidden, S(0));
    }
}

template <class S, class P>
void gate_back(int64_t rows, int64_t hidden, int64_t nodes, const int64_t *ops, P *product,
               const S *added, const S *source, const S *gradient, S *reach, S *whole, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t b = 0; b < rows; b++)
        for (int64_t i = 0; i < nodes; i++) {
            P *c = product + (b * nodes + i) * 2 * hidden, *z = c + hidden;
            const S *s = source + b * hidden, *d = gradient + (i * rows + b) * hidden;
            const S *x = added ? added + b * 2 * hidden : nullptr;
            S *to = reach + b * hidden, *full = whole ? whole + b * 2 * hidden : nullptr;
            by_op(ops[i], [=](auto op) {
                auto one = [](S s, S d, S &c, S &z) {
                    S open = S(1) / (S(1) + power(-c));
                    S value = value_of<decltype(op)::kind>(z);
                    S through = d * open, rest = d - through;
                    c = rest * open * (value - s);
                    z = through * rise_of<decltype(op)::kind>(z, value);
                    return rest;
                };
                if (x) {  // the first state: its gradient is handed out, and may be rounded too
#pragma omp simd
                    for (int64_t u = 0; u < hidden; u++) {
                        S by_c = S(widen(c[u])) + x[u], by_z = S(widen(z[u])) + x[hidden + u];
                        to[u] += one(s[u], d[u], by_c, by_z);
                        narrow(full[u] = by_c, c[u]);
                        narrow(full[hidden + u] = by_z, z[u]);
                    }
                } else {
#pragma omp simd
                    for (int64_t u = 0; u < hidden; u++) {
                        S by_c = widen(c[u]), by_z = widen(z[u]);
                        to[u] += one(s[u], d[u], by_c, by_z);
                        narrow(by_c, c[u]);
                        narrow(by_z, z[u]);
                    }
                }
            });
        }
}

}  // namespace

#define EXPORT(NAME, S, P)                                                                         \
    extern "C" void gate_##NAME(int64_t rows, int64_t hidden, int64_t nodes, int64_t stride,       \
                                const int64_t *ops, const P *product, const S *added,              \
                                const S *source, const S *mask, S *state, P *inner, int threads) { \
        gate(rows, hidden, nodes, stride, ops, product, added, source, mask, state, inner,         \
             threads);                                                                             \
    }                                                                                              \
    extern "C" void mean_##NAME(int64_t rows, int64_t hidden, int64_t chosen, int64_t stride,      \
                                const int64_t *outputs, const S *states, const S *mask, S *result, \
                                P *inner, int threads) {                                           \
        mean(rows, hidden, chosen, stride, outputs, states, mask, result, inner, threads);         \
    }                                                                                              \
    extern "C" void spread_##NAME(int64_t rows, int64_t hidden, int64_t states, int64_t chosen,    \
                                  const int64_t *outputs, const S *gradient, S *onward,               \
                                  const P *back, const S *mask, S *gradients, int threads) {          \
        spread(rows, hidden, states, chosen, outputs, gradient, onward, back, mask, gradients, threads); \
    }                                                                                              \
    extern "C" void gate_back_##NAME(int64_t rows, int64_t hidden, int64_t nodes,                  \
                                     const int64_t *ops, P *product, const S *added,               \
                                     const S *source, const S *gradient, S *reach, S *whole,          \
                                     int threads) {                                                \
        gate_back(rows, hidden, nodes, ops, product, added, source, gradient, reach, whole, threads); \
    }

EXPORT(float32, float, float)
EXPORT(bfloat16, float, bf16)
EXPORT(float64, double, double)
