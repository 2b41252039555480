// All steps of a derived cell in one call, forward and backward, products included. For cells whose
// matrices stay in a core's cache: there a library's call for each product costs more than the
// product. Larger ones go step by step (derived_cpu.py).
//
// Slots number the states by depth, s0 first; the states of a level depend on the level before it
// alone. A job is a block of units of one slot: the product of all rows for them, and then what is
// element-wise, while both are in the first cache. Between two levels all threads wait.
// No sum depends on the number of threads.

#include "kernels_blocks.h"

namespace {

// What forward and backward know of the cell.
template <class S> struct Cell {
    int64_t steps, streams, hidden, levels, chosen;
    const int64_t *level, *source, *op, *outputs, *matrices;
    const S *from_x, *h, *mask;
    int64_t slots() const { return level[levels]; }
    int64_t size() const { return streams * hidden; }
};

// state + sigmoid(c) (f(z) - state) of one row of a block, in full vectors.
template <int OP, int LANES, class S>
ALONE void open_row(const S *__restrict s, const S *__restrict c, const S *__restrict z,
                    S *__restrict out) {
#pragma omp simd
    for (int u = 0; u < LANES; u++) {
        S open = S(1) / (S(1) + power(-c[u]));
        out[u] = s[u] + open * (value_of<OP>(z[u]) - s[u]);
    }
}

// c and z become their gradients, by d, that of the new state; rest reaches s directly.
template <int OP, int LANES, class S>
ALONE void open_row_back(const S *__restrict s, const S *__restrict d, S *__restrict c,
                         S *__restrict z, S *__restrict rest) {
#pragma omp simd
    for (int u = 0; u < LANES; u++) {
        S by_c = c[u], by_z = z[u];
        S open = S(1) / (S(1) + power(-by_c)), value = value_of<OP>(by_z);
        S through = d[u] * open, left = d[u] - through;
        c[u] = left * open * (value - s[u]);
        z[u] = through * rise_of<OP>(by_z, value);
        rest[u] = left;
    }
}

// The two for an operation: chosen once a block, so that all else is compiled once.
template <int LANES, class S>
auto opener(int64_t op) -> void (*)(const S *, const S *, const S *, S *) {
    return op == TANH      ? open_row<TANH, LANES, S>
           : op == RELU    ? open_row<RELU, LANES, S>
           : op == SIGMOID ? open_row<SIGMOID, LANES, S>
                           : open_row<IDENTITY, LANES, S>;
}
template <int LANES, class S>
auto opener_back(int64_t op) -> void (*)(const S *, const S *, S *, S *, S *) {
    return op == TANH      ? open_row_back<TANH, LANES, S>
           : op == RELU    ? open_row_back<RELU, LANES, S>
           : op == SIGMOID ? open_row_back<SIGMOID, LANES, S>
                           : open_row_back<IDENTITY, LANES, S>;
}

template <class S, class P, class G>
void unroll(const Cell<S> &cell, bool keep, S *states, P *product, S *results, int threads) {
    typedef typename G::F F;
    const int64_t H = cell.hidden, B = cell.streams, slots = cell.slots(), lanes = G::lanes;
    const int64_t blocks = padded(H, lanes) / lanes, wide = G::inner(H), rows = G::rows(B);
    const int64_t kept = keep ? cell.steps : 1, panel = G::panel(H);
    F *panels = scratch<F>(0, slots * blocks * 2 * panel);
    F *inner = scratch<F>(1, (slots + 1) * rows * wide);  // of the states, and of the step before
    std::memset(inner, 0, (slots + 1) * rows * wide * sizeof(F));
#pragma omp parallel num_threads(threads)
    {
        typename G::Scope scope;
        std::vector<S> sums(rows * 2 * lanes);
#pragma omp for schedule(static)
        for (int64_t job = 0; job < slots * blocks; job++) {
            int64_t first = job % blocks * lanes, count = std::min(lanes, H - first);
            const S *w = reinterpret_cast<const S *>(cell.matrices[job / blocks]);
            for (int half = 0; half < 2; half++) {
                F *to = panels + (job * 2 + half) * panel;
                if (count < lanes || wide > H) std::memset(to, 0, panel * sizeof(F));
                for (int64_t k = 0; k < H; k++)
                    for (int64_t u = 0; u < count; u++)
                        G::round(w[k * 2 * H + half * H + first + u], to[G::at(k, u)]);
            }
        }
        auto factor = [&](int64_t slot, int64_t b, int64_t first, int64_t count, const S *state) {
            F *to = inner + (slot * rows + b) * wide + first;
            if (cell.mask) {
                const S *m = cell.mask + b * H + first;
                each<G::lanes>(count, [=](int u) { G::round(state[u] * m[u], to[u]); });
            } else
                each<G::lanes>(count, [=](int u) { G::round(state[u], to[u]); });
        };
#pragma omp for schedule(static)
        for (int64_t b = 0; b < B; b++)
            for (int64_t first = 0; first < H; first += lanes)
                factor(slots, b, first, std::min(lanes, H - first), cell.h + b * H + first);
        for (int64_t t = 0; t < cell.steps; t++) {
            const int64_t at = keep ? t : 0;
            const S *before = t ? results + (t - 1) * cell.size() : cell.h;
            for (int64_t l = 0; l < cell.levels; l++) {
                int64_t start = cell.level[l], many = cell.level[l + 1] - start;
#pragma omp for schedule(static)
                for (int64_t job = 0; job < many * blocks; job++) {
                    int64_t slot = start + job / blocks, first = job % blocks * lanes;
                    int64_t count = std::min(lanes, H - first), from = cell.source[slot];
                    const F *own = panels + (slot * blocks + job % blocks) * 2 * panel;
                    const F *pair[2] = {own, own + panel};
                    const F *left = inner + (slot ? from : slots) * rows * wide;
                    G::template multiply<2>(B, H, left, wide, pair, sums.data(), false);
                    const S *source =
                        slot ? states + (from * kept + at) * cell.size() : before;
                    S *state = states + (slot * kept + at) * cell.size();
                    auto open = opener<G::lanes, S>(cell.op[slot]);
                    for (int64_t b = 0; b < B; b++) {
                        S s[G::lanes], out[G::lanes], x[G::lanes];
                        S *c = sums.data() + b * 2 * lanes, *z = c + lanes;
                        P rounded[2 * G::lanes];
#pragma omp simd
                        for (int u = 0; u < 2 * G::lanes; u++) {
                            narrow(c[u], rounded[u]);
                            c[u] = S(widen(rounded[u]));
                        }
                        if (keep) {
                            P *to = product + ((slot * kept + at) * B + b) * 2 * H + first;
                            put<G::lanes>(rounded, count, to);
                            put<G::lanes>(rounded + lanes, count, to + H);
                        }
                        if (!slot) {
                            const S *added = cell.from_x + (t * B + b) * 2 * H + first;
                            fetch<G::lanes>(added, count, x);
                            for (int u = 0; u < G::lanes; u++) c[u] += x[u];
                            fetch<G::lanes>(added + H, count, x);
                            for (int u = 0; u < G::lanes; u++) z[u] += x[u];
                        }
                        fetch<G::lanes>(source + b * H + first, count, s);
                        open(s, c, z, out);
                        put<G::lanes>(out, count, state + b * H + first);
                        factor(slot, b, first, count, out);
                    }
                }
            }
#pragma omp for schedule(static)
            for (int64_t job = 0; job < blocks; job++) {
                int64_t first = job * lanes, count = std::min(lanes, H - first);
                for (int64_t b = 0; b < B; b++) {
                    S sum[G::lanes] = {}, x[G::lanes];
                    for (int64_t k = 0; k < cell.chosen; k++) {
                        const S *state =
                            states + (cell.outputs[k] * kept + at) * cell.size() + b * H + first;
                        fetch<G::lanes>(state, count, x);
                        for (int u = 0; u < G::lanes; u++) sum[u] += x[u];
                    }
                    for (int u = 0; u < G::lanes; u++) sum[u] /= S(cell.chosen);
                    put<G::lanes>(sum, count, results + (t * B + b) * H + first);
                    factor(slots, b, first, count, sum);
                }
            }
        }
    }
}

template <class S, class P, class G>
void unroll_back(const Cell<S> &cell, const S *states, const S *results, P *product,
                 const S *gradient, S *grad_x, S *grad_h, int threads) {
    typedef typename G::F F;
    const int64_t H = cell.hidden, B = cell.streams, slots = cell.slots(), lanes = G::lanes;
    const int64_t blocks = padded(H, lanes) / lanes, wide = G::inner(2 * H), rows = G::rows(B);
    const int64_t panel = G::panel(2 * H);
    F *panels = scratch<F>(2, slots * blocks * panel);
    F *inner = scratch<F>(3, slots * rows * wide);        // the gradients of c and z
    S *rest = scratch<S>(4, slots * B * H);               // what reaches a slot's source directly
    S *share = scratch<S>(5, B * H);                      // of every output state
    std::vector<char> is_output(slots, 0);
    for (int64_t k = 0; k < cell.chosen; k++) is_output[cell.outputs[k]] = 1;
    std::memset(inner, 0, slots * rows * wide * sizeof(F));
    std::memset(rest, 0, B * H * sizeof(S));
#pragma omp parallel num_threads(threads)
    {
        typename G::Scope scope;
        std::vector<S> sums(rows * lanes);
#pragma omp for schedule(static)
        for (int64_t job = 0; job < slots * blocks; job++) {
            int64_t first = job % blocks * lanes, count = std::min(lanes, H - first);
            const S *w = reinterpret_cast<const S *>(cell.matrices[job / blocks]);
            F *to = panels + job * panel;
            if (count < lanes || wide > 2 * H) std::memset(to, 0, panel * sizeof(F));
            for (int64_t u = 0; u < count; u++)
                for (int64_t k = 0; k < 2 * H; k++)
                    G::round(w[(first + u) * 2 * H + k], to[G::at(k, u)]);
        }
        auto reached = [&](int64_t slot, int64_t block, bool add) {  // sums (+)= through a product
            const F *own = panels + (slot * blocks + block) * panel;
            G::template multiply<1>(B, 2 * H, inner + slot * rows * wide, wide, &own, sums.data(),
                                    add);
        };
        // The gradient of the state that the step hands on, of a block: what comes from the step
        // after, and `from`, if there is one, of its own outputs.
        auto spread = [&](int64_t block, const S *from, S share_of, S *to) {
            int64_t first = block * lanes, count = std::min(lanes, H - first);
            reached(0, block, false);
            for (int64_t b = 0; b < B; b++) {
                int64_t at = b * H + first;
                const S *through = sums.data() + b * lanes;
                S x[G::lanes], onward[G::lanes];
                fetch<G::lanes>(rest + at, count, onward);
                if (cell.mask) {
                    fetch<G::lanes>(cell.mask + at, count, x);
                    each<G::lanes>(lanes, [&](int u) { onward[u] += through[u] * x[u]; });
                } else
                    each<G::lanes>(lanes, [&](int u) { onward[u] += through[u]; });
                if (from) {
                    fetch<G::lanes>(from + at, count, x);
                    each<G::lanes>(lanes, [&](int u) { onward[u] += x[u]; });
                }
                each<G::lanes>(count, [&](int u) { to[at + u] = onward[u] / share_of; });
            }
        };
        for (int64_t t = cell.steps - 1; t >= 0; t--) {
#pragma omp for schedule(static)
            for (int64_t block = 0; block < blocks; block++)
                spread(block, gradient + t * cell.size(), S(cell.chosen), share);
            const S *before = t ? results + (t - 1) * cell.size() : cell.h;
            for (int64_t l = cell.levels - 1; l >= 0; l--) {
                int64_t start = cell.level[l], many = cell.level[l + 1] - start;
                int64_t next = l + 1 < cell.levels ? cell.level[l + 2] : cell.level[l + 1];
#pragma omp for schedule(static)
                for (int64_t job = 0; job < many * blocks; job++) {
                    int64_t slot = start + job / blocks, block = job % blocks;
                    int64_t first = block * lanes, count = std::min(lanes, H - first);
                    bool used = false;
                    for (int64_t i = start + many; i < next; i++)
                        if (cell.source[i] == slot) {
                            reached(i, block, used);
                            used = true;
                        }
                    const S *source = slot ? states + (cell.source[slot] * cell.steps + t) * cell.size()
                                           : before;
                    auto back = opener_back<G::lanes, S>(cell.op[slot]);
                    for (int64_t b = 0; b < B; b++) {
                        int64_t at = b * H + first;
                        S s[G::lanes], d[G::lanes], c[G::lanes], z[G::lanes], x[G::lanes],
                            left[G::lanes];
                        if (is_output[slot]) fetch<G::lanes>(share + at, count, d);
                        else std::memset(d, 0, sizeof d);
                        if (used) {
                            const S *through = sums.data() + b * lanes;
                            if (cell.mask) {
                                fetch<G::lanes>(cell.mask + at, count, x);
                                for (int u = 0; u < G::lanes; u++) d[u] += through[u] * x[u];
                            } else
                                for (int u = 0; u < G::lanes; u++) d[u] += through[u];
                            for (int64_t i = start + many; i < next; i++)
                                if (cell.source[i] == slot) {
                                    fetch<G::lanes>(rest + i * B * H + at, count, x);
                                    for (int u = 0; u < G::lanes; u++) d[u] += x[u];
                                }
                        }
                        fetch<G::lanes>(source + at, count, s);
                        P *kept = product + ((slot * cell.steps + t) * B + b) * 2 * H + first;
                        if (count < lanes) std::memset(c, 0, sizeof c);
                        if (count < lanes) std::memset(z, 0, sizeof z);
                        each<G::lanes>(count, [&](int u) { c[u] = S(widen(kept[u])); });
                        each<G::lanes>(count, [&](int u) { z[u] = S(widen(kept[H + u])); });
                        if (!slot) {
                            const S *added = cell.from_x + (t * B + b) * 2 * H + first;
                            fetch<G::lanes>(added, count, x);
                            for (int u = 0; u < G::lanes; u++) c[u] += x[u];
                            fetch<G::lanes>(added + H, count, x);
                            for (int u = 0; u < G::lanes; u++) z[u] += x[u];
                        }
                        back(s, d, c, z, left);
                        put<G::lanes>(left, count, rest + slot * B * H + at);
                        F *to = inner + (slot * rows + b) * wide + first;
                        each<G::lanes>(count, [&](int u) { narrow(c[u], kept[u]); });
                        each<G::lanes>(count, [&](int u) { narrow(z[u], kept[H + u]); });
                        each<G::lanes>(count, [&](int u) { G::round(c[u], to[u]); });
                        each<G::lanes>(count, [&](int u) { G::round(z[u], to[H + u]); });
                        if (!slot) {
                            S *whole = grad_x + (t * B + b) * 2 * H + first;
                            put<G::lanes>(c, count, whole);
                            put<G::lanes>(z, count, whole + H);
                        }
                    }
                }
            }
        }
#pragma omp for schedule(static)
        for (int64_t block = 0; block < blocks; block++) spread(block, nullptr, S(1), grad_h);
    }
}

}  // namespace

// Whether this processor and this system have tiles for products in bfloat16.
extern "C" int has_tiles() {
#ifdef TILES
    return Tiled::allowed();
#else
    return 0;
#endif
}

// Units of a block.
extern "C" int lanes_float32() { return Vector<float>::lanes; }
extern "C" int lanes_float64() { return Vector<double>::lanes; }

#define UNROLL(NAME, S, P)                                                                         \
    extern "C" void unroll_##NAME(                                                                 \
        int64_t steps, int64_t streams, int64_t hidden, int64_t levels, int64_t chosen,            \
        int64_t keep, int64_t tiled, const int64_t *level, const int64_t *source,                  \
        const int64_t *op, const int64_t *outputs, const int64_t *matrices, const S *from_x,       \
        const S *h, const S *mask, S *states, P *product, S *results, int threads) {               \
        Cell<S> cell{steps, streams, hidden, levels, chosen, level, source, op, outputs,           \
                     matrices, from_x, h, mask};                                                   \
        by_products<S>(tiled, product, [&](auto how) {                                             \
            unroll<S, P, decltype(how)>(cell, keep, states, product, results, threads);            \
        });                                                                                        \
    }                                                                                              \
    extern "C" void unroll_back_##NAME(                                                            \
        int64_t steps, int64_t streams, int64_t hidden, int64_t levels, int64_t chosen,            \
        int64_t tiled, const int64_t *level, const int64_t *source, const int64_t *op,             \
        const int64_t *outputs, const int64_t *matrices, const S *from_x, const S *h,              \
        const S *mask, const S *states, const S *results, P *product, const S *gradient,           \
        S *grad_x, S *grad_h, int threads) {                                                       \
        Cell<S> cell{steps, streams, hidden, levels, chosen, level, source, op, outputs,           \
                     matrices, from_x, h, mask};                                                   \
        by_products<S>(tiled, product, [&](auto how) {                                             \
            unroll_back<S, P, decltype(how)>(cell, states, results, product, gradient, grad_x,     \
                                             grad_h, threads);                                     \
        });                                                                                        \
    }

UNROLL(float32, float, float)
UNROLL(bfloat16, float, bf16)
UNROLL(float64, double, double)
