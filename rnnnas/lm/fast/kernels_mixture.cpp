// The element-wise work of the cell under a mixture between its matrix products, each stage in one
// pass over memory.

#include "kernels.h"

namespace {

template <class S, class P>
void mix(int64_t n, int64_t rows, int64_t hidden, int64_t units, const int64_t *source,
         const S *shares, const P *product, const S *states, S *total, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t b = 0; b < rows; b++) {
        S *out = total + b * hidden;
        std::fill(out, out + hidden, S(0));
        for (int64_t e = 0; e < n; e++) {
            const S *s = states + (source[e] * rows + b) * hidden;
            const P *c = product + (e * rows + b) * 2 * units, *z = c + units;
            S p[COLUMNS];
            std::copy(shares + e * COLUMNS, shares + (e + 1) * COLUMNS, p);
#pragma omp simd
            for (int64_t u = 0; u < units; u++) {
                S carried = p[MASS] * s[u], value = widen(z[u]), sigmoid, tanh;
                both(value, sigmoid, tanh);
                S gate = S(1) / (S(1) + power(-S(widen(c[u]))));
                out[u] += carried + gate * (mixed(p, value, sigmoid, tanh) - carried);
            }
#pragma omp simd
            for (int64_t u = units; u < hidden; u++) out[u] += p[MASS] * s[u];
        }
    }
}

template <class S, class P>
void mix_back(int64_t n, int64_t rows, int64_t hidden, int64_t units, const int64_t *source,
              const S *shares, P *product, const S *states, const S *gradient, S *gradients, S *dots,
              int threads) {
    int64_t parts = (rows + PART - 1) / PART;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t part = 0; part < parts; part++)
        for (int64_t e = 0; e < n; e++) {
            S *sums = dots + (part * n + e) * COLUMNS;
            S p[COLUMNS];
            std::copy(shares + e * COLUMNS, shares + (e + 1) * COLUMNS, p);
            S kept = 0, by_tanh = 0, by_relu = 0, by_sigmoid = 0, by_identity = 0;
            for (int64_t b = part * PART; b < std::min(rows, (part + 1) * PART); b++) {
                const S *s = states + (source[e] * rows + b) * hidden, *d = gradient + b * hidden;
                S *reach = gradients + (source[e] * rows + b) * hidden;
                P *c = product + (e * rows + b) * 2 * units, *z = c + units;
#pragma omp simd reduction(+ : kept, by_tanh, by_relu, by_sigmoid, by_identity)
                for (int64_t u = 0; u < units; u++) {
                    S value = widen(z[u]), sigmoid, tanh;
                    both(value, sigmoid, tanh);
                    S relu = value > 0 ? value : value != value ? value : S(0);
                    S gate = S(1) / (S(1) + power(-S(widen(c[u]))));
                    S through = d[u] * gate, rest = d[u] - through;
                    S gain = mixed(p, value, sigmoid, tanh) - p[MASS] * s[u];
                    S rise = p[IDENTITY] + (value > 0 ? p[RELU] : S(0)) +
                             p[TANH] * (S(1) - tanh * tanh) +
                             p[SIGMOID] * sigmoid * (S(1) - sigmoid);
                    narrow(rest * gate * gain, c[u]);
                    narrow(through * rise, z[u]);
                    reach[u] += rest * p[MASS];
                    kept += rest * s[u];
                    by_tanh += through * tanh;
                    by_relu += through * relu;
                    by_sigmoid += through * sigmoid;
                    by_identity += through * value;
                }
#pragma omp simd reduction(+ : kept)
                for (int64_t u = units; u < hidden; u++) {
                    reach[u] += d[u] * p[MASS];
                    kept += d[u] * s[u];
                }
            }
            sums[MASS] += kept;
            sums[TANH] += by_tanh;
            sums[RELU] += by_relu;
            sums[SIGMOID] += by_sigmoid;
            sums[IDENTITY] += by_identity;
        }
}

template <class S, class P>
void reach(int64_t n, int64_t rows, int64_t hidden, int64_t units, const int64_t *source,
           const P *back, const S *mask, S *gradients, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t b = 0; b < rows; b++)
        for (int64_t e = 0; e < n; e++) {
            S *out = gradients + (source[e] * rows + b) * hidden;
            const P *in = back + (e * rows + b) * units;
            const S *m = mask ? mask + b * units : nullptr;
            if (m) {
#pragma omp simd
                for (int64_t u = 0; u < units; u++) out[u] += widen(in[u]) * m[u];
            } else {
#pragma omp simd
                for (int64_t u = 0; u < units; u++) out[u] += widen(in[u]);
            }
        }
}

enum { STRIP = 64 };  // units whose statistics are taken together

template <class S, class P>
void normalise(int64_t rows, int64_t hidden, int64_t units, int64_t roll, S epsilon, const S *raw,
               const S *mask, S *state, S *rstd, P *inner, int threads) {
    int64_t strips = (hidden + STRIP - 1) / STRIP;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t strip = 0; strip < strips; strip++) {
        int64_t first = strip * STRIP, width = std::min<int64_t>(STRIP, hidden - first);
        S mean[STRIP] = {}, spread[STRIP] = {};
        int64_t to[STRIP];
        for (int64_t k = 0; k < width; k++) to[k] = (first + k + roll) % hidden;
        for (int64_t b = 0; b < rows; b++) {
            const S *x = raw + b * hidden + first;
#pragma omp simd
            for (int64_t k = 0; k < width; k++) mean[k] += x[k];
        }
        for (int64_t k = 0; k < width; k++) mean[k] /= S(rows);
        for (int64_t b = 0; b < rows; b++) {
            const S *x = raw + b * hidden + first;
#pragma omp simd
            for (int64_t k = 0; k < width; k++) spread[k] += (x[k] - mean[k]) * (x[k] - mean[k]);
        }
        for (int64_t k = 0; k < width; k++) {
            spread[k] = S(1) / std::sqrt(spread[k] / S(rows) + epsilon);
            rstd[to[k]] = spread[k];
        }
        for (int64_t b = 0; b < rows; b++) {
            const S *x = raw + b * hidden + first;
            S *out = state + b * hidden;
            P *in = inner + b * units;
            const S *m = mask ? mask + b * units : nullptr;
            if (!roll && first + width <= units) {
#pragma omp simd
                for (int64_t k = 0; k < width; k++) {
                    S value = (x[k] - mean[k]) * spread[k];
                    out[first + k] = value;
                    narrow(m ? value * m[first + k] : value, in[first + k]);
                }
                continue;
            }
            for (int64_t k = 0; k < width; k++) {
                S value = (x[k] - mean[k]) * spread[k];
                out[to[k]] = value;
                if (to[k] < units) narrow(m ? value * m[to[k]] : value, in[to[k]]);
            }
        }
    }
}

template <class S>
void normalise_back(int64_t rows, int64_t hidden, int64_t roll, const S *gradient, const S *state,
                    const S *rstd, S *total, int threads) {
    int64_t strips = (hidden + STRIP - 1) / STRIP;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t strip = 0; strip < strips; strip++) {
        int64_t first = strip * STRIP, width = std::min<int64_t>(STRIP, hidden - first);
        S along[STRIP] = {}, level[STRIP] = {};
        for (int64_t b = 0; b < rows; b++) {
            const S *d = gradient + b * hidden + first, *s = state + b * hidden + first;
#pragma omp simd
            for (int64_t k = 0; k < width; k++) {
                along[k] += d[k] * s[k];
                level[k] += d[k];
            }
        }
        for (int64_t k = 0; k < width; k++) {
            along[k] /= S(rows);
            level[k] /= S(rows);
        }
        for (int64_t b = 0; b < rows; b++) {
            const S *d = gradient + b * hidden + first, *s = state + b * hidden + first;
            S *out = total + b * hidden;
            if (!roll) {
#pragma omp simd
                for (int64_t k = 0; k < width; k++)
                    out[first + k] = (d[k] - level[k] - s[k] * along[k]) * rstd[first + k];
                continue;
            }
            for (int64_t k = 0; k < width; k++)
                out[(first + k + hidden - roll) % hidden] =
                    (d[k] - level[k] - s[k] * along[k]) * rstd[first + k];
        }
    }
}

}  // namespace

#define EXPORT(NAME, S, P)                                                                         \
    extern "C" void mix_##NAME(int64_t n, int64_t rows, int64_t hidden, int64_t units,             \
                               const int64_t *source, const S *shares, const P *product,           \
                               const S *states, S *total, int threads) {                           \
        mix(n, rows, hidden, units, source, shares, product, states, total, threads);              \
    }                                                                                              \
    extern "C" void mix_back_##NAME(int64_t n, int64_t rows, int64_t hidden, int64_t units,        \
                                    const int64_t *source, const S *shares, P *product,            \
                                    const S *states, const S *gradient, S *gradients, S *dots,           \
                                    int threads) {                                                 \
        mix_back(n, rows, hidden, units, source, shares, product, states, gradient, gradients, dots,     \
                 threads);                                                                         \
    }                                                                                              \
    extern "C" void reach_##NAME(int64_t n, int64_t rows, int64_t hidden, int64_t units,           \
                                 const int64_t *source, const P *back, const S *mask, S *gradients,   \
                                 int threads) {                                                    \
        reach(n, rows, hidden, units, source, back, mask, gradients, threads);                        \
    }                                                                                              \
    extern "C" void normalise_##NAME(int64_t rows, int64_t hidden, int64_t units, int64_t roll,    \
                                     double epsilon, const S *raw, const S *mask, S *state,        \
                                     S *rstd, P *inner, int threads) {                             \
        normalise(rows, hidden, units, roll, S(epsilon), raw, mask, state, rstd, inner, threads);  \
    }                                                                                              \
    extern "C" void normalise_back_##NAME(int64_t rows, int64_t hidden, int64_t roll,              \
                                          const S *gradient, const S *state, const S *rstd, S *total, \
                                          int threads) {                                           \
        normalise_back(rows, hidden, roll, gradient, state, rstd, total, threads);                    \
    }

EXPORT(float32, float, float)
EXPORT(bfloat16, float, bf16)
EXPORT(float64, double, double)
