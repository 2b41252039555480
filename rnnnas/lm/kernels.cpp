// The element-wise work between a cell's matrix products, each stage in one pass over memory.
// Compiled on the user's machine by kernels.py, which says what every function computes.
//
// Legend: B streams (rows), H hidden units, U of them computed, n computed edges of a node.
// S the type of states and sums, P the type of products. All arrays are dense, rows first.
// Sums over streams are taken in parts that do not depend on the number of threads, so that this
// number changes no result.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

struct bf16 {
    uint16_t bits;
};

inline float widen(bf16 x) {
    uint32_t bits = uint32_t(x.bits) << 16;
    float result;
    std::memcpy(&result, &bits, sizeof bits);
    return result;
}
inline float widen(float x) { return x; }
inline double widen(double x) { return x; }

inline void narrow(float x, bf16 &out) {  // to the nearest, ties to even
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    out.bits = uint16_t(x != x ? 0x7fc0u : rounded);
}
inline void narrow(float x, float &out) { out = x; }
inline void narrow(double x, double &out) { out = x; }

// exp(x) = 2^k 2^f with |f| <= 1/2, by Taylor's polynomial. The relative error is about 2e-7, and
// 1.2e-6 at the ends, e^-87 and e^88, where it stops: a float holds these still. NaN stays.
inline float power(float x) {
    const float magic = 0x1.8p23f + 127;  // adding it leaves k + 127 in the lowest bits
    float y = x < -87.0f ? -87.0f : x;
    y = y > 88.0f ? 88.0f : y;
    float shifted = y * 1.44269504f + magic;
    float f = y * 1.44269504f - (shifted - magic);
    float p = 1.5403530e-4f;  // log(2)^n / n!
    p = p * f + 1.3333558e-3f;
    p = p * f + 9.6181291e-3f;
    p = p * f + 5.5504109e-2f;
    p = p * f + 2.4022651e-1f;
    p = p * f + 6.9314718e-1f;
    p = p * f + 1.0f;
    uint32_t bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits <<= 23;
    float scale;
    std::memcpy(&scale, &bits, sizeof bits);
    return p * scale;
}
inline double power(double x) { return std::exp(x); }

// sigmoid and tanh of one argument, by one exponential.
template <class S> inline void both(S z, S &sigmoid, S &tanh) {
    S e = power(-z);
    sigmoid = S(1) / (S(1) + e);
    tanh = S(2) / (S(1) + e * e) - S(1);
}

enum { MASS, TANH, RELU, SIGMOID, IDENTITY, COLUMNS };  // of an edge's shares

template <class S> inline S mixed(const S *p, S z, S sigmoid, S tanh) {
    S kept = p[IDENTITY] != 0 ? p[IDENTITY] * z : S(0);  // an infinity times zero is no number
    kept += p[RELU] != 0 ? p[RELU] * (z > 0 ? z : z != z ? z : S(0)) : S(0);
    return kept + p[TANH] * tanh + p[SIGMOID] * sigmoid;
}

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

enum { PART = 16 };  // streams whose sums are taken together

template <class S, class P>
void mix_back(int64_t n, int64_t rows, int64_t hidden, int64_t units, const int64_t *source,
              const S *shares, P *product, const S *states, const S *slope, S *slopes, S *dots,
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
                const S *s = states + (source[e] * rows + b) * hidden, *d = slope + b * hidden;
                S *reach = slopes + (source[e] * rows + b) * hidden;
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
           const P *back, const S *mask, S *slopes, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t b = 0; b < rows; b++)
        for (int64_t e = 0; e < n; e++) {
            S *out = slopes + (source[e] * rows + b) * hidden;
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
void normalise_back(int64_t rows, int64_t hidden, int64_t roll, const S *slope, const S *state,
                    const S *rstd, S *total, int threads) {
    int64_t strips = (hidden + STRIP - 1) / STRIP;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t strip = 0; strip < strips; strip++) {
        int64_t first = strip * STRIP, width = std::min<int64_t>(STRIP, hidden - first);
        S along[STRIP] = {}, level[STRIP] = {};
        for (int64_t b = 0; b < rows; b++) {
            const S *d = slope + b * hidden + first, *s = state + b * hidden + first;
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
            const S *d = slope + b * hidden + first, *s = state + b * hidden + first;
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

template <class S, class P>
void losses(int64_t rows, int64_t words, P *logits, const S *bias, const int64_t *targets, S scale,
            double *nats, S *by_word, int wanted, int threads) {
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
                    S slope = x[v] * share;
                    sum[v] += slope;
                    narrow(slope, l[v]);
                }
            }
    }
    for (int64_t part = 0; wanted && part < parts; part++)
#pragma omp simd
        for (int64_t v = 0; v < words; v++) by_word[v] += sums[part * words + v];
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
                                    const S *states, const S *slope, S *slopes, S *dots,           \
                                    int threads) {                                                 \
        mix_back(n, rows, hidden, units, source, shares, product, states, slope, slopes, dots,     \
                 threads);                                                                         \
    }                                                                                              \
    extern "C" void reach_##NAME(int64_t n, int64_t rows, int64_t hidden, int64_t units,           \
                                 const int64_t *source, const P *back, const S *mask, S *slopes,   \
                                 int threads) {                                                    \
        reach(n, rows, hidden, units, source, back, mask, slopes, threads);                        \
    }                                                                                              \
    extern "C" void normalise_##NAME(int64_t rows, int64_t hidden, int64_t units, int64_t roll,    \
                                     double epsilon, const S *raw, const S *mask, S *state,        \
                                     S *rstd, P *inner, int threads) {                             \
        normalise(rows, hidden, units, roll, S(epsilon), raw, mask, state, rstd, inner, threads);  \
    }                                                                                              \
    extern "C" void normalise_back_##NAME(int64_t rows, int64_t hidden, int64_t roll,              \
                                          const S *slope, const S *state, const S *rstd, S *total, \
                                          int threads) {                                           \
        normalise_back(rows, hidden, roll, slope, state, rstd, total, threads);                    \
    }                                                                                              \
    extern "C" void losses_##NAME(int64_t rows, int64_t words, P *logits, const S *bias,           \
                                  const int64_t *targets, double scale, double *nats, S *by_word,  \
                                  int wanted, int threads) {                                       \
        losses(rows, words, logits, bias, targets, S(scale), nats, by_word, wanted, threads);      \
    }

EXPORT(float32, float, float)
EXPORT(bfloat16, float, bf16)
EXPORT(float64, double, double)
