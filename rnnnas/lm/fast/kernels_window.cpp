// All steps of the cell under a mixture in one call, forward and backward, products included.
//
// A slot is a state, s0 first; slot 0 has one edge, the first, from the step before. A job is a block
// of units of one slot, for all streams: products, what is element-wise and the normalisation, which
// needs all streams of a unit, follow one another while their numbers are in a core's cache. On the
// way back a second kind of job, some streams of one edge, takes the gradients of the products to
// the edge's source. Between two kinds all threads wait. No sum depends on the number of threads.
//
// What only these kernels read lies block by block, (blocks, streams, L) with L units of a block: rows
// of the whole width would be read a line here and a line there. What units beyond the
// last hold meets weights of zero alone, and their gradients are zero.

#include "kernels_window.h"

namespace {

// total += m s + sigmoid(c) (sum of p f(z) - m s), of a block; products (streams, 2 L) = [c, z].
template <int L, class S>
ALONE void mix_block(int64_t streams, const S *__restrict shares, const S *__restrict s,
                     const S *__restrict products, S *__restrict total) {
    S p[COLUMNS];
    std::copy(shares, shares + COLUMNS, p);
    for (int64_t b = 0; b < streams; b++, s += L, products += 2 * L, total += L) {
#pragma omp simd
        for (int u = 0; u < L; u++) {
            S carried = p[MASS] * s[u], value = products[L + u], sigmoid, tanh;
            both(value, sigmoid, tanh);
            S gate = S(1) / (S(1) + power(-products[u]));
            total[u] += carried + gate * (mixed(p, value, sigmoid, tanh) - carried);
        }
    }
}

// Back through it: products become their gradients, by d, that of the total. What reaches the source
// directly is added to `reach`; to the sums (COLUMNS, L) what the shares' gradients are made of.
template <int L, class S>
ALONE void mix_block_back(int64_t streams, const S *__restrict shares, const S *__restrict s,
                          const S *__restrict d, S *__restrict products, S *__restrict reach,
                          S *__restrict sums) {
    S p[COLUMNS];
    std::copy(shares, shares + COLUMNS, p);
    for (int64_t b = 0; b < streams; b++, s += L, d += L, products += 2 * L, reach += L) {
#pragma omp simd
        for (int u = 0; u < L; u++) {
            S value = products[L + u], sigmoid, tanh;
            both(value, sigmoid, tanh);
            S relu = value > 0 ? value : value != value ? value : S(0);
            S gate = S(1) / (S(1) + power(-products[u]));
            S through = d[u] * gate, rest = d[u] - through;
            S gain = mixed(p, value, sigmoid, tanh) - p[MASS] * s[u];
            S rise = p[IDENTITY] + (value > 0 ? p[RELU] : S(0)) + p[TANH] * (S(1) - tanh * tanh) +
                     p[SIGMOID] * sigmoid * (S(1) - sigmoid);
            products[u] = rest * gate * gain;
            products[L + u] = through * rise;
            reach[u] += rest * p[MASS];
            sums[MASS * L + u] += rest * s[u];
            sums[TANH * L + u] += through * tanh;
            sums[RELU * L + u] += through * relu;
            sums[SIGMOID * L + u] += through * sigmoid;
            sums[IDENTITY * L + u] += through * value;
        }
    }
}

// Every unit of a block to mean 0 and variance 1 over the streams, in place. scale: what it was
// multiplied with.
template <int L, class S>
ALONE void normalise_block(int64_t streams, S epsilon, S *__restrict block, S *__restrict scale) {
    S mean[L] = {}, spread[L] = {};
    for (int64_t b = 0; b < streams; b++)
#pragma omp simd
        for (int u = 0; u < L; u++) mean[u] += block[b * L + u];
    for (int u = 0; u < L; u++) mean[u] /= S(streams);
    for (int64_t b = 0; b < streams; b++)
#pragma omp simd
        for (int u = 0; u < L; u++) {
            block[b * L + u] -= mean[u];
            spread[u] += block[b * L + u] * block[b * L + u];
        }
    for (int u = 0; u < L; u++) scale[u] = S(1) / std::sqrt(spread[u] / S(streams) + epsilon);
    for (int64_t b = 0; b < streams; b++)
#pragma omp simd
        for (int u = 0; u < L; u++) block[b * L + u] *= scale[u];
}

// The gradient before the normalisation from the one after it.
template <int L, class S>
ALONE void normalise_block_back(int64_t streams, const S *__restrict state,
                                const S *__restrict scale, const S *__restrict d,
                                S *__restrict out) {
    S along[L] = {}, level[L] = {};
    for (int64_t b = 0; b < streams; b++)
#pragma omp simd
        for (int u = 0; u < L; u++) {
            along[u] += d[b * L + u] * state[b * L + u];
            level[u] += d[b * L + u];
        }
    for (int u = 0; u < L; u++) {
        along[u] /= S(streams);
        level[u] /= S(streams);
    }
    for (int64_t b = 0; b < streams; b++)
#pragma omp simd
        for (int u = 0; u < L; u++)
            out[b * L + u] =
                (d[b * L + u] - level[u] - state[b * L + u] * along[u]) * scale[u];
}

// A block of units, times the mask, as a left factor.
template <class G, class S>
void factor(const Shape<G> &shape, int64_t block, const S *state, const S *mask,
            typename G::F *left) {
    enum { L = G::lanes };
    for (int64_t b = 0; b < shape.streams; b++) {
        S value[L];
        const S *x = state + b * L, *m = mask ? mask + shape.at(block, b) : nullptr;
#pragma omp simd
        for (int u = 0; u < L; u++) value[u] = m ? x[u] * m[u] : x[u];
        G::store(value, left + G::left(b, block * L, shape.rows, shape.wide()));
    }
}

template <class S, class P, class G>
void window(const Mixed<S> &cell, bool keep, S *states, S *rstd, P *product, S *results,
            int threads) {
    typedef typename G::F F;
    enum { L = G::lanes };
    const Shape<G> shape(cell.streams, cell.hidden);
    const int64_t H = cell.hidden, B = cell.streams, slots = cell.slots(), edges = cell.edges();
    const int64_t blocks = shape.blocks, panel = G::panel(shape.wide());
    const int64_t lead = G::lead(shape.wide()), step = G::step(shape.rows);
    const int64_t left = shape.rows * shape.wide();
    F *panels = scratch<F>(0, slots * blocks * 2 * panel);
    F *inner = scratch<F>(1, (slots + 1) * left);  // of the states, and of the step before
    S *before = scratch<S>(2, shape.size);
    std::memset(inner, 0, (slots + 1) * left * sizeof(F));
    std::vector<S> kept;
    const S *mask = blocks_of(shape, cell.mask, kept);
#pragma omp parallel num_threads(threads)
    {
        typename G::Scope scope;
        std::vector<S> sums(shape.rows * 2 * L);
        pack<S, G>(cell, cell.matrices, shape, shape.wide(), 0, panels);
#pragma omp for schedule(static)
        for (int64_t block = 0; block < blocks; block++) {
            S *to = before + shape.at(block);
            gather_block<L>(B, H, shape.count(block), cell.h + block * L, to);
            factor<G>(shape, block, to, mask, inner + slots * left);
        }
        for (int64_t t = 0; t < cell.steps; t++) {
            const int64_t at = keep ? t : 0;
            S *own = states + at * slots * shape.size;
            for (int64_t slot = 0; slot < slots; slot++) {
#pragma omp for schedule(static)
                for (int64_t block = 0; block < blocks; block++) {
                    const F *start = panels + (slot * blocks + block) * 2 * panel;
                    const F *pair[2] = {start, start + panel};
                    S *total = own + slot * shape.size + shape.at(block);
                    std::fill(total, total + B * L, S(0));
                    for (int64_t e = cell.first[slot]; e < cell.first[slot + 1]; e++) {
                        G::template multiply<2>(
                            B, shape.wide(), inner + (slot ? cell.source[e] : slots) * left, lead,
                            pair, sums.data(), false, step);
                        const int64_t to = ((t * edges + e) * shape.size + shape.at(block)) * 2;
                        round_block<L>(B, sums.data(), keep ? product + to : nullptr);
                        if (!slot)
                            add_inputs<L>(B, H, shape.count(block),
                                          cell.from_x + t * B * 2 * H + block * L, sums.data());
                        const S *from = slot ? own + cell.source[e] * shape.size : before;
                        mix_block<L>(B, cell.shares + e * COLUMNS, from + shape.at(block),
                                     sums.data(), total);
                    }
                    normalise_block<L>(B, cell.epsilon, total,
                                       rstd + ((at * slots + slot) * blocks + block) * L);
                    factor<G>(shape, block, total, mask, inner + slot * left);
                }
            }
#pragma omp for schedule(static)
            for (int64_t block = 0; block < blocks; block++) {
                S *sum = before + shape.at(block);
                std::memcpy(sum, own + shape.size + shape.at(block), B * L * sizeof(S));
                for (int64_t slot = 2; slot < slots; slot++) {
                    const S *x = own + slot * shape.size + shape.at(block);
#pragma omp simd
                    for (int64_t k = 0; k < B * L; k++) sum[k] += x[k];
                }
#pragma omp simd
                for (int64_t k = 0; k < B * L; k++) sum[k] /= S(cell.nodes);
                S *to = results + t * B * H + block * L;
                for (int64_t b = 0; b < B; b++)
                    put<L>(sum + b * L, shape.count(block), to + b * H);
                factor<G>(shape, block, sum, mask, inner + slots * left);
            }
        }
        written();
    }
}

// grad_nodes: null where it is not wanted. dots: (blocks, edges, COLUMNS), set.
template <class S, class P, class G>
void window_back(const Mixed<S> &cell, const S *states, const S *rstd, const S *results,
                 const P *product, const S *gradient, S *grad_x, S *grad_h, S *grad_nodes, S *dots,
                 int threads) {
    typedef typename G::F F;
    enum { L = G::lanes };
    const Shape<G> shape(cell.streams, cell.hidden);
    const int64_t H = cell.hidden, B = cell.streams, slots = cell.slots(), edges = cell.edges();
    const int64_t blocks = shape.blocks, panel = G::panel(2 * shape.half);
    const int64_t lead = G::lead(2 * shape.half), step = G::step(shape.rows);
    const int64_t left = shape.rows * 2 * shape.half, deep = shape.deep, tall = shape.tall;
    const int64_t stretches = padded(B, STRETCH) / STRETCH;
    int64_t most = 1;  // edges of a slot
    for (int64_t slot = 0; slot < slots; slot++)
        most = std::max(most, cell.first[slot + 1] - cell.first[slot]);
    F *panels = scratch<F>(3, slots * blocks * panel);
    F *inner = scratch<F>(4, most * left);               // the gradients of a slot's products
    S *reach = scratch<S>(5, (slots + 1) * shape.size);  // of the states, and of the one before
    F *turned = scratch<F>(6, grad_nodes ? tall * slots * deep : 0);  // states, streams innermost
    S *weights = scratch<S>(7, grad_nodes ? cell.nodes * blocks * tall * 2 * L : 0);
    S *onward = reach + slots * shape.size;
    std::memset(inner, 0, most * left * sizeof(F));
    std::memset(onward, 0, shape.size * sizeof(S));
    std::memset(dots, 0, blocks * edges * COLUMNS * sizeof(S));
    if (grad_nodes) {
        std::memset(turned, 0, tall * slots * deep * sizeof(F));
        std::memset(weights, 0, cell.nodes * blocks * tall * 2 * L * sizeof(S));
    }
    std::vector<S> kept;
    const S *mask = blocks_of(shape, cell.mask, kept);
#pragma omp parallel num_threads(threads)
    {
        typename G::Scope scope;
        std::vector<S> through(padded(STRETCH, 16) * 2 * L), d(B * L), copy(B * L),
            products((B + 1) * 2 * L);
        std::vector<F> pairs(2 * most * deep * L);  // c, then z, of a slot's products
        pack_turned<S, G>(cell, cell.matrices, shape, 2 * shape.half, 0, panels);
        for (int64_t t = cell.steps - 1; t >= 0; t--) {
            const S *own = states + t * slots * shape.size;
#pragma omp for schedule(static)
            for (int64_t block = 0; block < blocks; block++) {
                const int64_t at = shape.at(block);
                gather_block<L>(B, H, shape.count(block), gradient + t * B * H + block * L,
                                copy.data());
#pragma omp simd
                for (int64_t k = 0; k < B * L; k++) {
                    copy[k] = (copy[k] + onward[at + k]) / S(cell.nodes);
                    onward[at + k] = 0;
                    reach[at + k] = 0;
                }
                for (int64_t slot = 1; slot < slots; slot++)
                    std::memcpy(reach + slot * shape.size + at, copy.data(), B * L * sizeof(S));
                if (!grad_nodes) continue;
                for (int64_t slot = 0; slot < slots; slot++) {
                    const S *state = own + slot * shape.size + at;
                    const S *m = mask ? mask + at : nullptr;
                    for (int64_t b = 0; b < B; b += 2) {
                        S pair[2][L] = {};
                        for (int64_t k = 0; k < std::min<int64_t>(2, B - b); k++)
#pragma omp simd
                            for (int u = 0; u < L; u++) {
                                const int64_t i = (b + k) * L + u;
                                pair[k][u] = m ? state[i] * m[i] : state[i];
                            }
                        const int64_t wide = slots * deep;
                        G::store_columns(pair[0], pair[1],
                                         turned + G::left(block * L, slot * deep + b, tall, wide),
                                         wide);
                    }
                }
            }
            for (int64_t slot = slots - 1; slot >= 0; slot--) {
                const int64_t begin = cell.first[slot], many = cell.first[slot + 1] - begin;
#pragma omp for schedule(static)
                for (int64_t block = 0; block < blocks; block++) {
                    const int64_t at = shape.at(block), count = shape.count(block);
                    normalise_block_back<L>(B, own + slot * shape.size + at,
                                            rstd + ((t * slots + slot) * blocks + block) * L,
                                            reach + slot * shape.size + at, d.data());
                    if (!slot)
                        gather_block<L>(B, H, count,
                                        (t ? results + (t - 1) * B * H : cell.h) + block * L,
                                        copy.data());
                    for (int64_t e = begin; e < begin + many; e++) {
                        const P *made = product + ((t * edges + e) * shape.size + at) * 2;
#pragma omp simd
                        for (int64_t k = 0; k < B * 2 * L; k++) products[k] = S(widen(made[k]));
                        if (!slot)
                            add_inputs<L>(B, H, count, cell.from_x + t * B * 2 * H + block * L,
                                          products.data());
                        const S *from = slot ? own + cell.source[e] * shape.size + at : copy.data();
                        S *to = slot ? reach + cell.source[e] * shape.size + at : onward + at;
                        S sums[COLUMNS * L] = {};
                        mix_block_back<L>(B, cell.shares + e * COLUMNS, from, d.data(),
                                          products.data(), to, sums);
                        S *sum = dots + (block * edges + e) * COLUMNS;
                        for (int k = 0; k < COLUMNS; k++)
                            for (int u = 0; u < L; u++) sum[k] += sums[k * L + u];
                        F *rows = inner + (e - begin) * left;
                        for (int64_t b = 0; b < B; b++) {
                            const S *c = products.data() + b * 2 * L;
                            const int64_t first = block * L, wide = 2 * shape.half;
                            G::store(c, rows + G::left(b, first, shape.rows, wide));
                            G::store(c + L, rows + G::left(b, shape.half + first, shape.rows, wide));
                        }
                        if (!slot) {
                            S *whole = grad_x + t * B * 2 * H + block * L;
                            for (int64_t b = 0; b < B; b++) {
                                const S *c = products.data() + b * 2 * L;
                                put<L>(c, count, whole + b * 2 * H);
                                put<L>(c + L, count, whole + b * 2 * H + H);
                            }
                        } else if (grad_nodes) {
                            F *panel_c = pairs.data() + (e - begin) * deep * L;
                            F *panel_z = panel_c + most * deep * L;
                            std::memset(products.data() + B * 2 * L, 0, 2 * L * sizeof(S));
                            for (int64_t b = 0; b < B; b += 2) {
                                const S *even = products.data() + b * 2 * L, *odd = even + 2 * L;
                                G::store_pair(even, odd, panel_c, b);
                                G::store_pair(even + L, odd + L, panel_z, b);
                            }
                        }
                    }
                    if (!grad_nodes || !slot) continue;
                    // Edges whose sources follow one another are one product.
                    S *weight = weights + ((slot - 1) * blocks + block) * tall * 2 * L;
                    for (int64_t e = begin, next; e < begin + many; e = next) {
                        next = e + 1;
                        while (next < begin + many && cell.source[next] == cell.source[next - 1] + 1)
                            next++;
                        const F *panel_c = pairs.data() + (e - begin) * deep * L;
                        const F *pair[2] = {panel_c, panel_c + most * deep * L};
                        G::template multiply<2>(
                            tall, (next - e) * deep,
                            turned + G::left(0, cell.source[e] * deep, tall, slots * deep),
                            G::lead(slots * deep), pair, weight, true, G::step(tall));
                    }
                }
#pragma omp for schedule(static)
                for (int64_t job = 0; job < many * stretches; job++) {
                    const int64_t e = begin + job / stretches, top = job % stretches * STRETCH;
                    const int64_t streams = std::min<int64_t>(STRETCH, B - top);
                    const F *rows =
                        inner + (e - begin) * left + G::left(top, 0, shape.rows, 2 * shape.half);
                    S *to = slot ? reach + cell.source[e] * shape.size : onward;
                    for (int64_t block = 0; block < blocks; block += 2) {
                        const F *start = panels + (slot * blocks + block) * panel;
                        const F *pair[2] = {start, start + panel};
                        const int64_t across = std::min<int64_t>(2, blocks - block);
                        if (across == 2)
                            G::template multiply<2>(streams, 2 * shape.half, rows, lead, pair,
                                                    through.data(), false, step);
                        else
                            G::template multiply<1>(streams, 2 * shape.half, rows, lead, pair,
                                                    through.data(), false, step);
                        for (int64_t k = 0; k < across; k++) {
                            const int64_t at = shape.at(block + k, top);
                            const S *m = mask ? mask + at : nullptr;
                            for (int64_t b = 0; b < streams; b++) {
                                const S *x = through.data() + (b * across + k) * L;
                                S *sum = to + at + b * L;
#pragma omp simd
                                for (int u = 0; u < L; u++)
                                    sum[u] += m ? x[u] * m[b * L + u] : x[u];
                            }
                        }
                    }
                }
            }
        }
#pragma omp for schedule(static)
        for (int64_t block = 0; block < blocks; block++)
            for (int64_t b = 0; b < B; b++)
                std::memcpy(grad_h + b * H + block * L, onward + shape.at(block, b),
                            shape.count(block) * sizeof(S));
        if (grad_nodes) {
#pragma omp for schedule(static)
            for (int64_t job = 0; job < cell.nodes * blocks; job++) {
                const int64_t block = job % blocks, count = shape.count(block);
                const S *weight = weights + job * tall * 2 * L;
                for (int64_t k = 0; k < H; k++) {
                    S *to = grad_nodes + (job / blocks * H + k) * 2 * H + block * L;
                    put<L>(weight + k * 2 * L, count, to);
                    put<L>(weight + k * 2 * L + L, count, to + H);
                }
            }
        }
    }
}

}  // namespace

#define WINDOW(NAME, S, P)                                                                         \
    extern "C" void window_##NAME(                                                                 \
        int64_t steps, int64_t streams, int64_t hidden, int64_t nodes, int64_t keep,               \
        int64_t tiled, const int64_t *first, const int64_t *source, const int64_t *matrices,       \
        const S *shares, double epsilon, const S *from_x, const S *h, const S *mask, S *states,    \
        S *rstd, P *product, S *results, int threads) {                                            \
        Mixed<S> cell{steps, streams, hidden, nodes, first, source, matrices, shares, S(epsilon),  \
                      from_x, h, mask};                                                            \
        by_products<S>(tiled, product, [&](auto how) {                                             \
            window<S, P, decltype(how)>(cell, keep, states, rstd, product, results, threads);      \
        });                                                                                        \
    }                                                                                              \
    extern "C" void window_back_##NAME(                                                            \
        int64_t steps, int64_t streams, int64_t hidden, int64_t nodes, int64_t tiled,              \
        const int64_t *first, const int64_t *source, const int64_t *matrices, const S *shares,     \
        const S *from_x, const S *h, const S *mask, const S *states, const S *rstd,                \
        const S *results, P *product, const S *gradient, S *grad_x, S *grad_h, S *grad_nodes,      \
        S *dots, int threads) {                                                                    \
        Mixed<S> cell{steps, streams, hidden, nodes, first, source, matrices, shares, S(0),        \
                      from_x, h, mask};                                                            \
        by_products<S>(tiled, product, [&](auto how) {                                             \
            window_back<S, P, decltype(how)>(cell, states, rstd, results, product, gradient,       \
                                             grad_x, grad_h, grad_nodes, dots, threads);           \
        });                                                                                        \
    }

WINDOW(float32, float, float)
WINDOW(bfloat16, float, bf16)
WINDOW(float64, double, double)
