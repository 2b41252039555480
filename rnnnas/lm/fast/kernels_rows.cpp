// The loss of rows of logits, and the evaluation of a derived cell on few streams.

#include "kernels.h"

namespace {

template <class S, class P>
void losses(int64_t rows, int64_t words, P *logits, const S *bias, const int64_t *targets, S scale,
            double *nats, S *by_word, int64_t wanted, int threads) {
    int64_t parts = (rows + PART - 1) / PART;
    std::vector<S> sums(wanted ? parts * words : 0);
#pragma omp parallel num_threads(threads)
    {
        std::vector<S> line(words);
#pragma omp for schedule(static)
        for (int64_t part = 0; part < parts; part++)
            for (int64_t b = part * PART; b < std::min(rows, (part + 1) * PART); b++) {
                P *l = logits + b * words;
                S most = -INFINITY, mass = 0, *x = line.data();
                int lost = 0;
#pragma omp simd reduction(max : most) reduction(| : lost)
                for (int64_t v = 0; v < words; v++) {
                    x[v] = S(widen(l[v])) + bias[v];
                    most = x[v] > most ? x[v] : most;
                    lost |= x[v] != x[v];
                }
                S hit = x[targets[b]] - most;
#pragma omp simd reduction(+ : mass)
                for (int64_t v = 0; v < words; v++) {
                    x[v] = power(x[v] - most);
                    mass += x[v];
                }
                nats[b] = lost ? NAN : std::log(double(mass)) - double(hit);
                if (!wanted) continue;
                S share = (lost ? S(NAN) : scale) / mass;
                S *sum = sums.data() + part * words;
                x[targets[b]] -= mass;
#pragma omp simd
                for (int64_t v = 0; v < words; v++) {
                    S gradient = x[v] * share;
                    sum[v] += gradient;
                    narrow(gradient, l[v]);
                }
            }
    }
    for (int64_t part = 0; wanted && part < parts; part++)
#pragma omp simd
        for (int64_t v = 0; v < words; v++) by_word[v] += sums[part * words + v];
}

enum { SLICES = 8 };  // of a matrix' rows, whose sums are taken apart

// y (B, 2H) = x (B, H) W over the rows `first` to `end` of W: it is read once, as it lies.
template <class S>
void rows_times(int64_t streams, int64_t hidden, int64_t first, int64_t end, const S *x, const S *w,
                S *y) {
    int64_t width = 2 * hidden, k = first;
    std::fill(y, y + streams * width, S(0));
    for (; k + 4 <= end; k += 4)
        for (int64_t b = 0; b < streams; b++) {
            const S *in = x + b * hidden + k, *row = w + k * width;
            S a0 = in[0], a1 = in[1], a2 = in[2], a3 = in[3], *out = y + b * width;
#pragma omp simd
            for (int64_t u = 0; u < width; u++)
                out[u] += a0 * row[u] + a1 * row[u + width] + a2 * row[u + 2 * width] +
                          a3 * row[u + 3 * width];
        }
    for (; k < end; k++)
        for (int64_t b = 0; b < streams; b++) {
            const S *row = w + k * width;
            S a = x[b * hidden + k], *out = y + b * width;
#pragma omp simd
            for (int64_t u = 0; u < width; u++) out[u] += a * row[u];
        }
}

template <class S> inline S activated(int64_t op, S z, S sigmoid, S tanh) {
    return op == TANH ? tanh : op == SIGMOID ? sigmoid : op == IDENTITY ? z : z < 0 ? S(0) : z;
}

// Nodes `level[l]` to `level[l + 1]` take states that are known before; node 0 is the first state.
template <class S>
void evaluate(int64_t steps, int64_t streams, int64_t hidden, int64_t levels, int64_t chosen,
              const int64_t *level, const int64_t *source, const int64_t *op,
              const int64_t *outputs, const int64_t *matrices, const S *from_x, const S *h,
              S *states, S *results, int threads) {
    int64_t size = streams * hidden, nodes = level[levels];
    std::vector<S> products(nodes * SLICES * 2 * size);
#pragma omp parallel num_threads(threads)
    for (int64_t t = 0; t < steps; t++) {
        S *result = results + t * size;
        const S *carried = t ? result - size : h;
        for (int64_t l = 0; l < levels; l++) {
            int64_t first = level[l], many = level[l + 1] - first;
#pragma omp for schedule(static)
            for (int64_t job = 0; job < many * SLICES; job++) {
                int64_t slice = job / many, node = first + job % many;
                rows_times(streams, hidden, hidden * slice / SLICES, hidden * (slice + 1) / SLICES,
                           node ? states + source[node] * size : carried,
                           reinterpret_cast<const S *>(matrices[node]),
                           products.data() + (node * SLICES + slice) * 2 * size);
            }
#pragma omp for schedule(static)
            for (int64_t job = 0; job < many * streams; job++) {
                int64_t node = first + job % many, b = job / many, kind = op[node];
                const S *in = (node ? states + source[node] * size : carried) + b * hidden;
                const S *y = products.data() + (node * SLICES * streams + b) * 2 * hidden;
                const S *x = from_x + (t * streams + b) * 2 * hidden;
                S *out = states + node * size + b * hidden;
#pragma omp simd
                for (int64_t u = 0; u < hidden; u++) {
                    S c = node ? S(0) : x[u], z = node ? S(0) : x[hidden + u], sigmoid, tanh;
                    for (int64_t k = 0; k < SLICES; k++) {
                        c += y[k * 2 * size + u];
                        z += y[k * 2 * size + hidden + u];
                    }
                    S gate = S(1) / (S(1) + power(-c));
                    both(z, sigmoid, tanh);
                    out[u] = in[u] + gate * (activated(kind, z, sigmoid, tanh) - in[u]);
                }
            }
        }
#pragma omp for schedule(static)
        for (int64_t u = 0; u < size; u++) {
            S sum = 0;
            for (int64_t k = 0; k < chosen; k++) sum += states[outputs[k] * size + u];
            result[u] = sum / S(chosen);
        }
    }
}

}  // namespace

#define LOSSES(NAME, S, P)                                                                          \
    extern "C" void losses_##NAME(int64_t rows, int64_t words, P *logits, const S *bias,           \
                                  const int64_t *targets, double scale, double *nats, S *by_word,  \
                                  int64_t wanted, int threads) {                                       \
        losses(rows, words, logits, bias, targets, S(scale), nats, by_word, wanted, threads);      \
    }

#define EVALUATE(NAME, S)                                                                          \
    extern "C" void evaluate_##NAME(                                                               \
        int64_t steps, int64_t streams, int64_t hidden, int64_t levels, int64_t chosen,            \
        const int64_t *level, const int64_t *source, const int64_t *op, const int64_t *outputs,    \
        const int64_t *matrices, const S *from_x, const S *h, S *states, S *results,               \
        int threads) {                                                                             \
        evaluate(steps, streams, hidden, levels, chosen, level, source, op, outputs, matrices,     \
                 from_x, h, states, results, threads);                                             \
    }

LOSSES(float32, float, float)
LOSSES(bfloat16, float, bf16)
LOSSES(float64, double, double)
EVALUATE(float32, float)
EVALUATE(float64, double)
