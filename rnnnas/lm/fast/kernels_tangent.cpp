// The element-wise work of the cell under a mixture and of its directional derivative, values and
// tangents in one pass over memory. tangent_elementwise.py has the formulas.

#include "kernels.h"

namespace {

template <class S, class P>
void dual_mix(int64_t n, int64_t rows, int64_t hidden, int64_t units, const int64_t *source,
              const S *shares, const P *product, const P *dproduct, const S *states,
              const S *dstates, S *total, S *dtotal, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t b = 0; b < rows; b++) {
        S *out = total + b * hidden, *dout = dtotal + b * hidden;
        std::fill(out, out + hidden, S(0));
        std::fill(dout, dout + hidden, S(0));
        for (int64_t e = 0; e < n; e++) {
            int64_t from = (source[e] * rows + b) * hidden, at = (e * rows + b) * 2 * units;
            const S *s = states + from, *ds = dstates + from;
            const P *c = product + at, *z = c + units, *dc = dproduct + at, *dz = dc + units;
            S p[COLUMNS];
            std::copy(shares + e * COLUMNS, shares + (e + 1) * COLUMNS, p);
#pragma omp simd
            for (int64_t u = 0; u < units; u++) {
                Curve<S> m = curve(p, S(widen(z[u])));
                S gate = S(1) / (S(1) + power(-S(widen(c[u]))));
                S carried = p[MASS] * s[u], dcarried = p[MASS] * ds[u];
                S gain = m.value - carried, dgain = m.rise * widen(dz[u]) - dcarried;
                out[u] += carried + gate * gain;
                dout[u] += dcarried + gate * ((S(1) - gate) * widen(dc[u]) * gain + dgain);
            }
#pragma omp simd
            for (int64_t u = units; u < hidden; u++) {
                out[u] += p[MASS] * s[u];
                dout[u] += p[MASS] * ds[u];
            }
        }
    }
}

template <class S, class P>
void dual_mix_back(int64_t n, int64_t rows, int64_t hidden, int64_t units, const int64_t *source,
                   const S *shares, const P *product, const P *dproduct, const S *states,
                   const S *dstates, const S *gradient, const S *dgradient, S *d, S *dd, P *dense,
                   P *pair, S *dots, int threads) {
    int64_t parts = (rows + PART - 1) / PART;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t part = 0; part < parts; part++)
        for (int64_t e = 0; e < n; e++) {
            S *sums = dots + (part * n + e) * COLUMNS;
            S p[COLUMNS];
            std::copy(shares + e * COLUMNS, shares + (e + 1) * COLUMNS, p);
            S kept = 0, by_tanh = 0, by_relu = 0, by_sigmoid = 0, by_identity = 0;
            for (int64_t b = part * PART; b < std::min(rows, (part + 1) * PART); b++) {
                int64_t from = (source[e] * rows + b) * hidden, at = (e * rows + b) * 2 * units;
                const S *s = states + from, *ds = dstates + from;
                const S *in = gradient + b * hidden, *din = dgradient + b * hidden;
                const P *c = product + at, *z = c + units, *dc = dproduct + at, *dz = dc + units;
                S *to = d + from, *dto = dd + from;
                P *alone = dense + at, *beside = pair + 2 * at;
#pragma omp simd reduction(+ : kept, by_tanh, by_relu, by_sigmoid, by_identity)
                for (int64_t u = 0; u < units; u++) {
                    S value = widen(z[u]), tangent = widen(dz[u]);
                    Curve<S> m = curve(p, value);
                    S gate = S(1) / (S(1) + power(-S(widen(c[u]))));
                    S dgate = gate * (S(1) - gate) * widen(dc[u]);
                    S gain = m.value - p[MASS] * s[u], dgain = m.rise * tangent - p[MASS] * ds[u];
                    S through = in[u] * gate, rest = in[u] - through;
                    S dthrough = din[u] * gate + in[u] * dgate, drest = din[u] - dthrough;
                    S of_c = rest * gate * gain, of_z = through * m.rise;
                    narrow(of_c, alone[u]);
                    narrow(of_z, alone[units + u]);
                    narrow(drest * gate * gain + rest * (dgate * gain + gate * dgain), beside[u]);
                    narrow(dthrough * m.rise + through * m.bend * tangent, beside[units + u]);
                    narrow(of_c, beside[2 * units + u]);
                    narrow(of_z, beside[3 * units + u]);
                    to[u] += rest * p[MASS];
                    dto[u] += drest * p[MASS];
                    S moved = through * tangent;
                    kept += drest * s[u] + rest * ds[u];
                    by_tanh += dthrough * m.tanh + moved * (S(1) - m.tanh * m.tanh);
                    by_relu += dthrough * m.relu + (value > 0 ? moved : S(0));
                    by_sigmoid += dthrough * m.sigmoid + moved * m.sigmoid * (S(1) - m.sigmoid);
                    by_identity += dthrough * value + moved;
                }
#pragma omp simd reduction(+ : kept)
                for (int64_t u = units; u < hidden; u++) {
                    to[u] += in[u] * p[MASS];
                    dto[u] += din[u] * p[MASS];
                    kept += din[u] * s[u] + in[u] * ds[u];
                }
            }
            sums[MASS] += kept;
            sums[TANH] += by_tanh;
            sums[RELU] += by_relu;
            sums[SIGMOID] += by_sigmoid;
            sums[IDENTITY] += by_identity;
        }
}

enum { STRIP = 64 };  // units whose statistics are taken together

template <class S, class P>
void dual_normalise(int64_t rows, int64_t hidden, int64_t units, int64_t roll, S epsilon,
                    const S *raw, const S *draw, const S *mask, S *state, S *dstate, S *rstd,
                    S *slant, P *inner, P *pair, int threads) {
    int64_t strips = (hidden + STRIP - 1) / STRIP;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t strip = 0; strip < strips; strip++) {
        int64_t first = strip * STRIP, width = std::min<int64_t>(STRIP, hidden - first);
        S mean[STRIP] = {}, dmean[STRIP] = {}, scale[STRIP] = {}, along[STRIP] = {};
        for (int64_t b = 0; b < rows; b++) {
            const S *x = raw + b * hidden + first, *dx = draw + b * hidden + first;
#pragma omp simd
            for (int64_t k = 0; k < width; k++) {
                mean[k] += x[k];
                dmean[k] += dx[k];
            }
        }
        for (int64_t k = 0; k < width; k++) {
            mean[k] /= S(rows);
            dmean[k] /= S(rows);
        }
        for (int64_t b = 0; b < rows; b++) {
            const S *x = raw + b * hidden + first, *dx = draw + b * hidden + first;
#pragma omp simd
            for (int64_t k = 0; k < width; k++) {
                S centred = x[k] - mean[k];
                scale[k] += centred * centred;
                along[k] += centred * (dx[k] - dmean[k]);
            }
        }
        for (int64_t k = 0; k < width; k++) {
            scale[k] = S(1) / std::sqrt(scale[k] / S(rows) + epsilon);
            along[k] *= scale[k] / S(rows);
            int64_t to = (first + k + roll) % hidden;
            rstd[to] = scale[k];
            slant[to] = along[k];
        }
        for (int64_t b = 0; b < rows; b++) {
            const S *x = raw + b * hidden + first, *dx = draw + b * hidden + first;
            S *out = state + b * hidden, *dout = dstate + b * hidden;
            P *in = inner + b * units, *beside = pair + b * 2 * units;
            const S *m = mask ? mask + b * units : nullptr;
            if (!roll && first + width <= units) {
#pragma omp simd
                for (int64_t k = 0; k < width; k++) {
                    S value = (x[k] - mean[k]) * scale[k];
                    S tangent = (dx[k] - dmean[k] - value * along[k]) * scale[k];
                    int64_t u = first + k;
                    out[u] = value;
                    dout[u] = tangent;
                    S share = m ? m[u] : S(1);
                    narrow(value * share, in[u]);
                    narrow(tangent * share, beside[u]);
                    narrow(value * share, beside[units + u]);
                }
                continue;
            }
            for (int64_t k = 0; k < width; k++) {
                S value = (x[k] - mean[k]) * scale[k];
                S tangent = (dx[k] - dmean[k] - value * along[k]) * scale[k];
                int64_t u = (first + k + roll) % hidden;
                out[u] = value;
                dout[u] = tangent;
                if (u >= units) continue;
                S share = m ? m[u] : S(1);
                narrow(value * share, in[u]);
                narrow(tangent * share, beside[u]);
                narrow(value * share, beside[units + u]);
            }
        }
    }
}

template <class S>
void dual_normalise_back(int64_t rows, int64_t hidden, int64_t roll, const S *d, const S *dd,
                         const S *state, const S *dstate, const S *rstd, const S *slant, S *total,
                         S *dtotal, int threads) {
    int64_t strips = (hidden + STRIP - 1) / STRIP;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t strip = 0; strip < strips; strip++) {
        int64_t first = strip * STRIP, width = std::min<int64_t>(STRIP, hidden - first);
        S level[STRIP] = {}, along[STRIP] = {}, dlevel[STRIP] = {}, dalong[STRIP] = {};
        for (int64_t b = 0; b < rows; b++) {
            int64_t at = b * hidden + first;
            const S *in = d + at, *din = dd + at, *s = state + at, *ds = dstate + at;
#pragma omp simd
            for (int64_t k = 0; k < width; k++) {
                level[k] += in[k];
                along[k] += in[k] * s[k];
                dlevel[k] += din[k];
                dalong[k] += din[k] * s[k] + in[k] * ds[k];
            }
        }
        for (int64_t k = 0; k < width; k++) {
            level[k] /= S(rows);
            along[k] /= S(rows);
            dlevel[k] /= S(rows);
            dalong[k] /= S(rows);
        }
        for (int64_t b = 0; b < rows; b++) {
            int64_t at = b * hidden + first;
            const S *in = d + at, *din = dd + at, *s = state + at, *ds = dstate + at;
            const S *scale = rstd + first, *bent = slant + first;
            S *out = total + b * hidden, *dout = dtotal + b * hidden;
            if (!roll) {
#pragma omp simd
                for (int64_t k = 0; k < width; k++) {
                    S one = (in[k] - level[k] - s[k] * along[k]) * scale[k];
                    out[first + k] = one;
                    dout[first + k] = (din[k] - dlevel[k] - ds[k] * along[k] - s[k] * dalong[k] -
                                       bent[k] * one) * scale[k];
                }
                continue;
            }
            for (int64_t k = 0; k < width; k++) {
                S one = (in[k] - level[k] - s[k] * along[k]) * scale[k];
                int64_t to = (first + k + hidden - roll) % hidden;
                out[to] = one;
                dout[to] = (din[k] - dlevel[k] - ds[k] * along[k] - s[k] * dalong[k] -
                            bent[k] * one) * scale[k];
            }
        }
    }
}

// Of rows of logits and their tangents: the sum of the loss' derivatives along the direction, and
// in the logits' place scale times the gradient, in the tangents' place its derivative.
template <class S, class P>
void dual_losses(int64_t rows, int64_t words, P *logits, P *dlogits, const S *bias, const S *dbias,
                 const int64_t *targets, S scale, double *moved, int threads) {
#pragma omp parallel num_threads(threads)
    {
        std::vector<S> line(words), dline(words);
#pragma omp for schedule(static)
        for (int64_t b = 0; b < rows; b++) {
            P *l = logits + b * words, *dl = dlogits + b * words;
            S most = -INFINITY, mass = 0, sum = 0, *x = line.data(), *dx = dline.data();
            int broken = 0;
#pragma omp simd reduction(max : most) reduction(| : broken)
            for (int64_t v = 0; v < words; v++) {
                x[v] = S(widen(l[v])) + bias[v];
                dx[v] = S(widen(dl[v])) + dbias[v];
                most = x[v] > most ? x[v] : most;
                broken |= x[v] != x[v];
            }
#pragma omp simd reduction(+ : mass, sum)
            for (int64_t v = 0; v < words; v++) {
                x[v] = power(x[v] - most);
                mass += x[v];
                sum += x[v] * dx[v];
            }
            S mean = (broken ? S(NAN) : sum) / mass, share = scale / mass;
            int64_t t = targets[b];
            moved[b] = double(mean) - double(dx[t]);
            S hit = x[t] * share;
#pragma omp simd
            for (int64_t v = 0; v < words; v++) {
                S gradient = x[v] * share;
                narrow(gradient, l[v]);
                narrow(gradient * (dx[v] - mean), dl[v]);
            }
            narrow(hit - scale, l[t]);
        }
    }
}

}  // namespace

#define EXPORT(NAME, S, P)                                                                         \
    extern "C" void dual_mix_##NAME(                                                               \
        int64_t n, int64_t rows, int64_t hidden, int64_t units, const int64_t *source,             \
        const S *shares, const P *product, const P *dproduct, const S *states, const S *dstates,   \
        S *total, S *dtotal, int threads) {                                                        \
        dual_mix(n, rows, hidden, units, source, shares, product, dproduct, states, dstates,       \
                 total, dtotal, threads);                                                          \
    }                                                                                              \
    extern "C" void dual_mix_back_##NAME(                                                          \
        int64_t n, int64_t rows, int64_t hidden, int64_t units, const int64_t *source,             \
        const S *shares, const P *product, const P *dproduct, const S *states, const S *dstates,   \
        const S *gradient, const S *dgradient, S *d, S *dd, P *dense, P *pair, S *dots, int threads) {   \
        dual_mix_back(n, rows, hidden, units, source, shares, product, dproduct, states, dstates,  \
                      gradient, dgradient, d, dd, dense, pair, dots, threads);                           \
    }                                                                                              \
    extern "C" void dual_normalise_##NAME(                                                         \
        int64_t rows, int64_t hidden, int64_t units, int64_t roll, double epsilon, const S *raw,   \
        const S *draw, const S *mask, S *state, S *dstate, S *rstd, S *slant, P *inner, P *pair,   \
        int threads) {                                                                             \
        dual_normalise(rows, hidden, units, roll, S(epsilon), raw, draw, mask, state, dstate,      \
                       rstd, slant, inner, pair, threads);                                         \
    }                                                                                              \
    extern "C" void dual_normalise_back_##NAME(                                                    \
        int64_t rows, int64_t hidden, int64_t roll, const S *d, const S *dd, const S *state,       \
        const S *dstate, const S *rstd, const S *slant, S *total, S *dtotal, int threads) {        \
        dual_normalise_back(rows, hidden, roll, d, dd, state, dstate, rstd, slant, total, dtotal,  \
                            threads);                                                              \
    }                                                                                              \
    extern "C" void dual_losses_##NAME(int64_t rows, int64_t words, P *logits, P *dlogits,         \
                                       const S *bias, const S *dbias, const int64_t *targets,      \
                                       double scale, double *moved, int threads) {                 \
        dual_losses(rows, words, logits, dlogits, bias, dbias, targets, S(scale), moved, threads); \
    }

EXPORT(float32, float, float)
EXPORT(bfloat16, float, bf16)
EXPORT(float64, double, double)
