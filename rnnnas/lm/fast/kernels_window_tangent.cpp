// The cell under a mixture and its derivative along a direction, all steps in one call: as
// kernels_window.cpp, whose slots and jobs these are, with a tangent beside every value.
//
// A dot marks a tangent, V the direction of the matrices W. A state's left factor is [s' s], so that
// its right half times W is the product and the whole times [W; V] the product's tangent; on the way
// back [dd d] of the products times [W V]^T, likewise. d is the gradient of a tangent, as a plain pass
// has it, dd that of a value, which is d's derivative along the direction (tangent_mixture.py).

#include "kernels_window.h"

namespace {

// What the kernels of values have, for tangents.
template <class S> struct Directed : Mixed<S> {
    const int64_t *directions;  // of the matrices
    const S *from_dx;
};

template <int L, class S>
ALONE void dual_mix_block(int64_t streams, const S *__restrict shares, const S *__restrict s,
                          const S *__restrict ds, const S *__restrict products,
                          const S *__restrict dproducts, S *__restrict total,
                          S *__restrict dtotal) {
    S p[COLUMNS];
    std::copy(shares, shares + COLUMNS, p);
    for (int64_t b = 0; b < streams; b++) {
#pragma omp simd
        for (int u = 0; u < L; u++) {
            Curve<S> m = curve(p, products[L + u]);
            S gate = S(1) / (S(1) + power(-products[u]));
            S carried = p[MASS] * s[u], dcarried = p[MASS] * ds[u];
            S gain = m.value - carried, dgain = m.rise * dproducts[L + u] - dcarried;
            total[u] += carried + gate * gain;
            dtotal[u] += dcarried + gate * ((S(1) - gate) * dproducts[u] * gain + dgain);
        }
        s += L, ds += L, total += L, dtotal += L, products += 2 * L, dproducts += 2 * L;
    }
}

// Back through it: products become d of themselves, their tangents dd. What reaches the source
// directly is added to reach and dreach; to the sums (COLUMNS, L) what dd of the shares is made of.
template <int L, class S>
ALONE void dual_mix_block_back(int64_t streams, const S *__restrict shares, const S *__restrict s,
                               const S *__restrict ds, const S *__restrict d,
                               const S *__restrict dd, S *__restrict products,
                               S *__restrict dproducts, S *__restrict reach, S *__restrict dreach,
                               S *__restrict sums) {
    S p[COLUMNS];
    std::copy(shares, shares + COLUMNS, p);
    for (int64_t b = 0; b < streams; b++) {
#pragma omp simd
        for (int u = 0; u < L; u++) {
            S value = products[L + u], tangent = dproducts[L + u];
            Curve<S> m = curve(p, value);
            S gate = S(1) / (S(1) + power(-products[u]));
            S dgate = gate * (S(1) - gate) * dproducts[u];
            S gain = m.value - p[MASS] * s[u], dgain = m.rise * tangent - p[MASS] * ds[u];
            S through = d[u] * gate, rest = d[u] - through;
            S dthrough = dd[u] * gate + d[u] * dgate, drest = dd[u] - dthrough;
            products[u] = rest * gate * gain;
            products[L + u] = through * m.rise;
            dproducts[u] = drest * gate * gain + rest * (dgate * gain + gate * dgain);
            dproducts[L + u] = dthrough * m.rise + through * m.bend * tangent;
            reach[u] += rest * p[MASS];
            dreach[u] += drest * p[MASS];
            S moved = through * tangent;
            sums[MASS * L + u] += drest * s[u] + rest * ds[u];
            sums[TANH * L + u] += dthrough * m.tanh + moved * (S(1) - m.tanh * m.tanh);
            sums[RELU * L + u] += dthrough * m.relu + (value > 0 ? moved : S(0));
            sums[SIGMOID * L + u] += dthrough * m.sigmoid + moved * m.sigmoid * (S(1) - m.sigmoid);
            sums[IDENTITY * L + u] += dthrough * value + moved;
        }
        s += L, ds += L, d += L, dd += L, reach += L, dreach += L;
        products += 2 * L, dproducts += 2 * L;
    }
}

// With y the state and 1/scale its deviation: y' = scale (x' - mean x' - y slant), slant = mean y x'.
template <int L, class S>
ALONE void dual_normalise_block(int64_t streams, S epsilon, S *__restrict block,
                                S *__restrict dblock, S *__restrict scale, S *__restrict slant) {
    S mean[L] = {}, dmean[L] = {}, spread[L] = {}, along[L] = {};
    for (int64_t b = 0; b < streams; b++)
#pragma omp simd
        for (int u = 0; u < L; u++) {
            mean[u] += block[b * L + u];
            dmean[u] += dblock[b * L + u];
        }
    for (int u = 0; u < L; u++) {
        mean[u] /= S(streams);
        dmean[u] /= S(streams);
    }
    for (int64_t b = 0; b < streams; b++)
#pragma omp simd
        for (int u = 0; u < L; u++) {
            block[b * L + u] -= mean[u];
            dblock[b * L + u] -= dmean[u];
            spread[u] += block[b * L + u] * block[b * L + u];
            along[u] += block[b * L + u] * dblock[b * L + u];
        }
    for (int u = 0; u < L; u++) {
        scale[u] = S(1) / std::sqrt(spread[u] / S(streams) + epsilon);
        slant[u] = along[u] / S(streams) * scale[u];
    }
    for (int64_t b = 0; b < streams; b++)
#pragma omp simd
        for (int u = 0; u < L; u++) {
            block[b * L + u] *= scale[u];
            dblock[b * L + u] = (dblock[b * L + u] - block[b * L + u] * slant[u]) * scale[u];
        }
}

// d and dd before the normalisation from those after it.
template <int L, class S>
ALONE void dual_normalise_block_back(int64_t streams, const S *__restrict state,
                                     const S *__restrict dstate, const S *__restrict scale,
                                     const S *__restrict slant, const S *__restrict d,
                                     const S *__restrict dd, S *__restrict out,
                                     S *__restrict dout) {
    S along[L] = {}, level[L] = {}, dalong[L] = {}, dlevel[L] = {};
    for (int64_t b = 0; b < streams; b++)
#pragma omp simd
        for (int u = 0; u < L; u++) {
            const int64_t i = b * L + u;
            along[u] += d[i] * state[i];
            level[u] += d[i];
            dalong[u] += dd[i] * state[i] + d[i] * dstate[i];
            dlevel[u] += dd[i];
        }
    for (int u = 0; u < L; u++) {
        along[u] /= S(streams);
        level[u] /= S(streams);
        dalong[u] /= S(streams);
        dlevel[u] /= S(streams);
    }
    for (int64_t b = 0; b < streams; b++)
#pragma omp simd
        for (int u = 0; u < L; u++) {
            const int64_t i = b * L + u;
            S one = (d[i] - level[u] - state[i] * along[u]) * scale[u];
            out[i] = one;
            dout[i] = (dd[i] - dlevel[u] - dstate[i] * along[u] - state[i] * dalong[u] -
                       slant[u] * one) * scale[u];
        }
}

// [s' s] of a block of units, times the mask, as parts of a left factor.
template <class G, class S>
void dual_factor(const Shape<G> &shape, int64_t block, const S *state, const S *dstate,
                 const S *mask, typename G::F *left) {
    enum { L = G::lanes };
    const int64_t wide = shape.wide();
    for (int64_t b = 0; b < shape.streams; b++) {
        S value[L], tangent[L];
        const S *m = mask ? mask + shape.at(block, b) : nullptr;
#pragma omp simd
        for (int u = 0; u < L; u++) {
            S share = m ? m[u] : S(1);
            value[u] = state[b * L + u] * share;
            tangent[u] = dstate[b * L + u] * share;
        }
        G::store(tangent, left + G::left(b, block * L, shape.rows, 2 * wide));
        G::store(value, left + G::left(b, wide + block * L, shape.rows, 2 * wide));
    }
}

template <int L, class S>
ALONE void scatter_block(int64_t streams, int64_t hidden, int64_t count, const S *block, S *to) {
    for (int64_t b = 0; b < streams; b++)
        put<L>(block + b * L, count, to + b * hidden);
}

template <class S, class P, class G>
void window(const Directed<S> &cell, bool keep, S *states, S *dstates, S *rstd, S *slant,
            P *product, P *dproduct, S *results, S *tangents, int threads) {
    typedef typename G::F F;
    enum { L = G::lanes };
    const Shape<G> shape(cell.streams, cell.hidden);
    const int64_t H = cell.hidden, B = cell.streams, slots = cell.slots(), edges = cell.edges();
    const int64_t blocks = shape.blocks, wide = shape.wide(), panel = G::panel(2 * wide);
    const int64_t lead = G::lead(2 * wide), step = G::step(shape.rows);
    const int64_t left = shape.rows * 2 * wide, own_half = G::left(0, wide, shape.rows, 2 * wide);
    F *panels = scratch<F>(0, slots * blocks * 2 * panel);
    F *inner = scratch<F>(1, (slots + 1) * left);  // of the states, and of the step before
    S *before = scratch<S>(2, 2 * shape.size);
    S *dbefore = before + shape.size;
    std::memset(inner, 0, (slots + 1) * left * sizeof(F));
    std::memset(dbefore, 0, shape.size * sizeof(S));
    std::vector<S> kept;
    const S *mask = blocks_of(shape, cell.mask, kept);
#pragma omp parallel num_threads(threads)
    {
        typename G::Scope scope;
        std::vector<S> sums(shape.rows * 2 * L), dsums(shape.rows * 2 * L);
        pack<S, G>(cell, cell.matrices, shape, 2 * wide, 0, panels);
        pack<S, G>(cell, cell.directions, shape, 2 * wide, wide, panels);
#pragma omp for schedule(static)
        for (int64_t block = 0; block < blocks; block++) {
            S *to = before + shape.at(block);
            gather_block<L>(B, H, shape.count(block), cell.h + block * L, to);
            dual_factor<G>(shape, block, to, dbefore + shape.at(block), mask, inner + slots * left);
        }
        for (int64_t t = 0; t < cell.steps; t++) {
            const int64_t at = keep ? t : 0;
            S *own = states + at * slots * shape.size, *down = dstates + at * slots * shape.size;
            for (int64_t slot = 0; slot < slots; slot++) {
#pragma omp for schedule(static)
                for (int64_t block = 0; block < blocks; block++) {
                    const int64_t here = shape.at(block);
                    const F *start = panels + (slot * blocks + block) * 2 * panel;
                    const F *pair[2] = {start, start + panel};
                    S *total = own + slot * shape.size + here;
                    S *dtotal = down + slot * shape.size + here;
                    std::fill(total, total + B * L, S(0));
                    std::fill(dtotal, dtotal + B * L, S(0));
                    for (int64_t e = cell.first[slot]; e < cell.first[slot + 1]; e++) {
                        const F *factor = inner + (slot ? cell.source[e] : slots) * left;
                        G::template multiply<2>(B, wide, factor + own_half, lead, pair, sums.data(),
                                                false, step);
                        G::template multiply<2>(B, 2 * wide, factor, lead, pair, dsums.data(),
                                                false, step);
                        const int64_t to = ((t * edges + e) * shape.size + here) * 2;
                        round_block<L>(B, sums.data(), keep ? product + to : nullptr);
                        round_block<L>(B, dsums.data(), keep ? dproduct + to : nullptr);
                        if (!slot) {
                            const int64_t x = t * B * 2 * H + block * L;
                            add_inputs<L>(B, H, shape.count(block), cell.from_x + x, sums.data());
                            add_inputs<L>(B, H, shape.count(block), cell.from_dx + x,
                                          dsums.data());
                        }
                        const S *s = slot ? own + cell.source[e] * shape.size : before;
                        const S *ds = slot ? down + cell.source[e] * shape.size : dbefore;
                        dual_mix_block<L>(B, cell.shares + e * COLUMNS, s + here, ds + here,
                                          sums.data(), dsums.data(), total, dtotal);
                    }
                    const int64_t scale = ((at * slots + slot) * blocks + block) * L;
                    dual_normalise_block<L>(B, cell.epsilon, total, dtotal, rstd + scale,
                                            slant + scale);
                    dual_factor<G>(shape, block, total, dtotal, mask, inner + slot * left);
                }
            }
#pragma omp for schedule(static)
            for (int64_t block = 0; block < blocks; block++) {
                const int64_t here = shape.at(block), to = t * B * H + block * L;
                for (S *sum : {before + here, dbefore + here}) {
                    const S *from = (sum == before + here ? own : down) + here;
                    std::memcpy(sum, from + shape.size, B * L * sizeof(S));
                    for (int64_t slot = 2; slot < slots; slot++) {
                        const S *x = from + slot * shape.size;
#pragma omp simd
                        for (int64_t k = 0; k < B * L; k++) sum[k] += x[k];
                    }
#pragma omp simd
                    for (int64_t k = 0; k < B * L; k++) sum[k] /= S(cell.nodes);
                }
                scatter_block<L>(B, H, shape.count(block), before + here, results + to);
                scatter_block<L>(B, H, shape.count(block), dbefore + here, tangents + to);
                dual_factor<G>(shape, block, before + here, dbefore + here, mask,
                               inner + slots * left);
            }
        }
        written();
    }
}

// dots: (blocks, edges, COLUMNS), set.
template <class S, class P, class G>
void window_back(const Directed<S> &cell, const S *states, const S *dstates, const S *rstd,
                 const S *slant, const S *results, const S *tangents, const P *product,
                 const P *dproduct, const S *of_value, const S *of_tangent, S *grad_x, S *grad_dx,
                 S *dots, int threads) {
    typedef typename G::F F;
    enum { L = G::lanes };
    const Shape<G> shape(cell.streams, cell.hidden);
    const int64_t H = cell.hidden, B = cell.streams, slots = cell.slots(), edges = cell.edges();
    const int64_t blocks = shape.blocks, deep = 2 * shape.half, panel = G::panel(2 * deep);
    const int64_t lead = G::lead(2 * deep), step = G::step(shape.rows);
    const int64_t left = shape.rows * 2 * deep, stretches = padded(B, STRETCH) / STRETCH;
    int64_t most = 1;  // edges of a slot
    for (int64_t slot = 0; slot < slots; slot++)
        most = std::max(most, cell.first[slot + 1] - cell.first[slot]);
    F *panels = scratch<F>(3, slots * blocks * panel);
    F *inner = scratch<F>(4, most * left);  // [dd d] of a slot's products
    // d and dd of the states, and of the one before.
    S *reach = scratch<S>(5, 2 * (slots + 1) * shape.size);
    S *dreach = reach + (slots + 1) * shape.size;
    S *onward = reach + slots * shape.size, *donward = dreach + slots * shape.size;
    std::memset(inner, 0, most * left * sizeof(F));
    std::memset(onward, 0, shape.size * sizeof(S));
    std::memset(donward, 0, shape.size * sizeof(S));
    std::memset(dots, 0, blocks * edges * COLUMNS * sizeof(S));
    std::vector<S> kept;
    const S *mask = blocks_of(shape, cell.mask, kept);
#pragma omp parallel num_threads(threads)
    {
        typename G::Scope scope;
        std::vector<S> through(padded(STRETCH, 16) * 2 * L), d(B * L), dd(B * L), copy(B * L),
            dcopy(B * L), products(B * 2 * L), dproducts(B * 2 * L);
        pack_turned<S, G>(cell, cell.matrices, shape, 2 * deep, 0, panels);
        pack_turned<S, G>(cell, cell.directions, shape, 2 * deep, deep, panels);
        for (int64_t t = cell.steps - 1; t >= 0; t--) {
            const S *own = states + t * slots * shape.size, *down = dstates + t * slots * shape.size;
#pragma omp for schedule(static)
            for (int64_t block = 0; block < blocks; block++) {
                const int64_t here = shape.at(block), from = t * B * H + block * L;
                for (int half = 0; half < 2; half++) {
                    S *to = (half ? dreach : reach) + here;
                    gather_block<L>(B, H, shape.count(block),
                                    (half ? of_value : of_tangent) + from, copy.data());
                    S *rest = to + slots * shape.size;  // onward
#pragma omp simd
                    for (int64_t k = 0; k < B * L; k++) {
                        copy[k] = (copy[k] + rest[k]) / S(cell.nodes);
                        rest[k] = 0;
                        to[k] = 0;
                    }
                    for (int64_t slot = 1; slot < slots; slot++)
                        std::memcpy(to + slot * shape.size, copy.data(), B * L * sizeof(S));
                }
            }
            for (int64_t slot = slots - 1; slot >= 0; slot--) {
                const int64_t begin = cell.first[slot], many = cell.first[slot + 1] - begin;
#pragma omp for schedule(static)
                for (int64_t block = 0; block < blocks; block++) {
                    const int64_t here = shape.at(block), count = shape.count(block);
                    const int64_t state = slot * shape.size + here;
                    const int64_t scale = ((t * slots + slot) * blocks + block) * L;
                    dual_normalise_block_back<L>(B, own + state, down + state, rstd + scale,
                                                 slant + scale, reach + state, dreach + state,
                                                 d.data(), dd.data());
                    if (!slot && t) {
                        const int64_t from = (t - 1) * B * H + block * L;
                        gather_block<L>(B, H, count, results + from, copy.data());
                        gather_block<L>(B, H, count, tangents + from, dcopy.data());
                    } else if (!slot) {
                        gather_block<L>(B, H, count, cell.h + block * L, copy.data());
                        std::fill(dcopy.begin(), dcopy.end(), S(0));
                    }
                    for (int64_t e = begin; e < begin + many; e++) {
                        const int64_t made = ((t * edges + e) * shape.size + here) * 2;
#pragma omp simd
                        for (int64_t k = 0; k < B * 2 * L; k++) {
                            products[k] = S(widen(product[made + k]));
                            dproducts[k] = S(widen(dproduct[made + k]));
                        }
                        const int64_t x = t * B * 2 * H + block * L;
                        if (!slot) {
                            add_inputs<L>(B, H, count, cell.from_x + x, products.data());
                            add_inputs<L>(B, H, count, cell.from_dx + x, dproducts.data());
                        }
                        const int64_t from = (slot ? cell.source[e] : slots) * shape.size + here;
                        S sums[COLUMNS * L] = {};
                        dual_mix_block_back<L>(
                            B, cell.shares + e * COLUMNS, slot ? own + from : copy.data(),
                            slot ? down + from : dcopy.data(), d.data(), dd.data(),
                            products.data(), dproducts.data(), reach + from, dreach + from, sums);
                        S *sum = dots + (block * edges + e) * COLUMNS;
                        for (int k = 0; k < COLUMNS; k++)
                            for (int u = 0; u < L; u++) sum[k] += sums[k * L + u];
                        F *rows = inner + (e - begin) * left;
                        for (int64_t b = 0; b < B; b++) {
                            const S *c = products.data() + b * 2 * L;
                            const S *dc = dproducts.data() + b * 2 * L;
                            const int64_t u = block * L;
                            auto place = [&](int64_t column) {
                                return rows + G::left(b, column + u, shape.rows, 2 * deep);
                            };
                            G::store(dc, place(0));
                            G::store(dc + L, place(shape.half));
                            G::store(c, place(deep));
                            G::store(c + L, place(deep + shape.half));
                        }
                        if (slot) continue;
                        for (int half = 0; half < 2; half++) {  // of c, of z
                            for (int64_t b = 0; b < B; b++) {
                                const int64_t to = x + b * 2 * H + half * H;
                                const int64_t at = (b * 2 + half) * L;
                                put<L>(&products[at], count, grad_dx + to);
                                put<L>(&dproducts[at], count, grad_x + to);
                            }
                        }
                    }
                }
#pragma omp for schedule(static)
                for (int64_t job = 0; job < many * stretches; job++) {
                    const int64_t e = begin + job / stretches, top = job % stretches * STRETCH;
                    const int64_t streams = std::min<int64_t>(STRETCH, B - top);
                    const int64_t to = (slot ? cell.source[e] : slots) * shape.size;
                    for (int half = 0; half < 2; half++) {  // d, then dd
                        const F *rows = inner + (e - begin) * left +
                                        G::left(top, half ? 0 : deep, shape.rows, 2 * deep);
                        const int64_t size = half ? 2 * deep : deep;
                        for (int64_t block = 0; block < blocks; block += 2) {
                            const F *start = panels + (slot * blocks + block) * panel;
                            const F *pair[2] = {start, start + panel};
                            const int64_t across = std::min<int64_t>(2, blocks - block);
                            if (across == 2)
                                G::template multiply<2>(streams, size, rows, lead, pair,
                                                        through.data(), false, step);
                            else
                                G::template multiply<1>(streams, size, rows, lead, pair,
                                                        through.data(), false, step);
                            for (int64_t k = 0; k < across; k++) {
                                const int64_t at = shape.at(block + k, top);
                                const S *m = mask ? mask + at : nullptr;
                                S *sum = (half ? dreach : reach) + to + at;
                                for (int64_t b = 0; b < streams; b++) {
                                    const S *x = through.data() + (b * across + k) * L;
#pragma omp simd
                                    for (int u = 0; u < L; u++)
                                        sum[b * L + u] += m ? x[u] * m[b * L + u] : x[u];
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

}  // namespace

#define WINDOW(NAME, S, P)                                                                         \
    extern "C" void dual_window_##NAME(                                                            \
        int64_t steps, int64_t streams, int64_t hidden, int64_t nodes, int64_t keep,               \
        int64_t tiled, const int64_t *first, const int64_t *source, const int64_t *matrices,       \
        const S *shares, const int64_t *directions, double epsilon, const S *from_x, const S *h,   \
        const S *mask, const S *from_dx, S *states, S *dstates, S *rstd, S *slant, P *product,     \
        P *dproduct, S *results, S *tangents, int threads) {                                       \
        Directed<S> cell{{steps, streams, hidden, nodes, first, source, matrices, shares,          \
                          S(epsilon), from_x, h, mask}, directions, from_dx};                      \
        by_products<S>(tiled, product, [&](auto how) {                                             \
            window<S, P, decltype(how)>(cell, keep, states, dstates, rstd, slant, product,         \
                                        dproduct, results, tangents, threads);                     \
        });                                                                                        \
    }                                                                                              \
    extern "C" void dual_window_back_##NAME(                                                       \
        int64_t steps, int64_t streams, int64_t hidden, int64_t nodes, int64_t tiled,              \
        const int64_t *first, const int64_t *source, const int64_t *matrices, const S *shares,     \
        const int64_t *directions, const S *from_x, const S *h, const S *mask, const S *from_dx,   \
        const S *states, const S *dstates, const S *rstd, const S *slant, const S *results,        \
        const S *tangents, P *product, const P *dproduct, const S *of_value, const S *of_tangent,  \
        S *grad_x, S *grad_dx, S *dots, int threads) {                                             \
        Directed<S> cell{{steps, streams, hidden, nodes, first, source, matrices, shares, S(0),    \
                          from_x, h, mask}, directions, from_dx};                                  \
        by_products<S>(tiled, product, [&](auto how) {                                             \
            window_back<S, P, decltype(how)>(cell, states, dstates, rstd, slant, results,          \
                                             tangents, product, dproduct, of_value, of_tangent,    \
                                             grad_x, grad_dx, dots, threads);                      \
        });                                                                                        \
    }

WINDOW(float32, float, float)
WINDOW(bfloat16, float, bf16)
WINDOW(float64, double, double)
