// What the kernels that make a whole window of the cell under a mixture share: its tables, blocks of
// units in memory, and the cell's matrices as factors. kernels_window.cpp says what slots and jobs are.

#pragma once

#include "kernels_blocks.h"

namespace {

enum { STRETCH = 32 };  // streams of a job on the way back

// What forward and backward know of the cell.
template <class S> struct Mixed {
    int64_t steps, streams, hidden, nodes;
    const int64_t *first;   // edge of every slot, and the end
    const int64_t *source;  // slot of every edge's source; of the first edge, none
    const int64_t *matrices;
    const S *shares;  // of every edge, COLUMNS
    S epsilon;
    const S *from_x, *h, *mask;
    int64_t slots() const { return nodes + 1; }
    int64_t edges() const { return first[slots()]; }
};

// Sizes of blocks, and of the factors of products, in elements.
template <class G> struct Shape {
    enum { L = G::lanes };
    int64_t streams, hidden, blocks, half, size, rows, tall, deep;
    Shape(int64_t streams, int64_t hidden)
        : streams(streams), hidden(hidden), blocks(padded(hidden, L) / L),
          half(G::inner(padded(hidden, L))),  // columns of c, and of z, where they are multiplied
          size(blocks * streams * L),         // of a state
          rows(G::rows(streams)), tall(G::rows(padded(hidden, L))),
          deep(padded(G::inner(streams), 2)) {}  // streams, where they are the inner index
    int64_t wide() const { return G::inner(padded(hidden, L)); }
    int64_t count(int64_t block) const { return std::min<int64_t>(L, hidden - block * L); }
    int64_t at(int64_t block, int64_t b = 0) const { return (block * streams + b) * L; }
};

// Rows of the whole width are read with a stride; the processor is told some rows before.
enum { AHEAD = 8 };
template <class T> inline void foretell(const T *row, int64_t stride) {
    __builtin_prefetch(row + AHEAD * stride);
}

// Products as they are kept, and as what follows takes them. kept: null where they need not be.
template <int L, class P, class S> ALONE void round_block(int64_t streams, S *products, P *kept) {
    for (int64_t b = 0; b < streams; b++, products += 2 * L) {
        P rounded[2 * L];
#pragma omp simd
        for (int u = 0; u < 2 * L; u++) {
            narrow(products[u], rounded[u]);
            products[u] = S(widen(rounded[u]));
        }
        if (kept) std::memcpy(kept + b * 2 * L, rounded, sizeof rounded);
    }
}
#ifdef TILES
// Past the caches: a window's products fill them many times over until they are read again.
template <int L> ALONE void round_block(int64_t streams, float *products, bf16 *kept) {
    for (int64_t b = 0; b < streams; b++, products += 2 * L) {
        __m512 c = _mm512_loadu_ps(products), z = _mm512_loadu_ps(products + L);
        __m512i both = (__m512i)_mm512_cvtne2ps_pbh(z, c);
        if (kept) _mm512_stream_si512(reinterpret_cast<__m512i *>(kept + b * 2 * L), both);
        __m512i low = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(both));
        __m512i high = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(both, 1));
        _mm512_storeu_ps(products, _mm512_castsi512_ps(_mm512_slli_epi32(low, 16)));
        _mm512_storeu_ps(products + L, _mm512_castsi512_ps(_mm512_slli_epi32(high, 16)));
    }
}
inline void written() { _mm_sfence(); }  // what went past the caches, for other threads
#else
inline void written() {}
#endif

// products += from_x of some units: c, and as far on as a row has units, z.
template <int L, class S>
void add_inputs(int64_t streams, int64_t hidden, int64_t count, const S *from_x, S *products) {
    for (int64_t b = 0; b < streams; b++) {
        const S *x = from_x + b * 2 * hidden;
        S *c = products + b * 2 * L;
        foretell(x, 2 * hidden);
        foretell(x + hidden, 2 * hidden);
        each<L>(count, [=](int u) { c[u] += x[u]; });
        each<L>(count, [=](int u) { c[L + u] += x[hidden + u]; });
    }
}

template <int L, class S>
void gather_block(int64_t streams, int64_t hidden, int64_t count, const S *from, S *block) {
    for (int64_t b = 0; b < streams; b++) {
        foretell(from + b * hidden, hidden);
        fetch<L>(from + b * hidden, count, block + b * L);
    }
}

// The mask block by block; null where there is none.
template <class G, class S>
const S *blocks_of(const Shape<G> &shape, const S *mask, std::vector<S> &kept) {
    if (!mask) return nullptr;
    kept.resize(shape.size);
    for (int64_t block = 0; block < shape.blocks; block++)
        gather_block<G::lanes>(shape.streams, shape.hidden, shape.count(block),
                               mask + block * G::lanes, kept.data() + shape.at(block));
    return kept.data();
}

// The matrices as right factors: of the units of a slot's block c and z, one panel of `size` rows each,
// from row `first` of it.
template <class S, class G>
void pack(const Mixed<S> &cell, const int64_t *matrices, const Shape<G> &shape, int64_t size,
          int64_t first, typename G::F *panels) {
    enum { L = G::lanes };
    const int64_t H = cell.hidden, panel = G::panel(size);
#pragma omp for schedule(static)
    for (int64_t job = 0; job < cell.slots() * shape.blocks; job++) {
        const int64_t block = job % shape.blocks, count = shape.count(block);
        const S *w = reinterpret_cast<const S *>(matrices[job / shape.blocks]) + block * L;
        for (int half = 0; half < 2; half++) {
            typename G::F *to = panels + (job * 2 + half) * panel;
            std::memset(to + first * L, 0, shape.wide() * L * sizeof *to);
            for (int64_t k = 0; k < H; k++)
                for (int64_t u = 0; u < count; u++)
                    G::round(w[k * 2 * H + half * H + u], to[G::at(first + k, u)]);
        }
    }
}

// The same matrices turned: of a block of the units that they multiply, the inner index c and z.
template <class S, class G>
void pack_turned(const Mixed<S> &cell, const int64_t *matrices, const Shape<G> &shape, int64_t size,
                 int64_t first, typename G::F *panels) {
    enum { L = G::lanes };
    const int64_t H = cell.hidden, panel = G::panel(size);
#pragma omp for schedule(static)
    for (int64_t job = 0; job < cell.slots() * shape.blocks; job++) {
        const int64_t block = job % shape.blocks, count = shape.count(block);
        const S *w = reinterpret_cast<const S *>(matrices[job / shape.blocks]);
        typename G::F *to = panels + job * panel;
        std::memset(to + first * L, 0, 2 * shape.half * L * sizeof *to);
        for (int64_t u = 0; u < count; u++)
            for (int half = 0; half < 2; half++)
                for (int64_t k = 0; k < H; k++)
                    G::round(w[(block * L + u) * 2 * H + half * H + k],
                             to[G::at(first + half * shape.half + k, u)]);
    }
}

}  // namespace
