// Blocks of units, a vector wide, and the products of all rows for one: in vectors, or in tiles.

#pragma once

#include "kernels_tiles.h"

namespace {

#ifdef __AVX512F__
enum { VECTOR = 64, ROWS = 8 };  // bytes; rows of a product that stay in registers
#else
enum { VECTOR = 32, ROWS = 4 };
#endif

template <class S> struct Vector {
    enum { lanes = VECTOR / sizeof(S) };
    typedef S type __attribute__((vector_size(VECTOR)));
};

// A product's factors as they are, or rounded to bfloat16 but kept as floats: F is S.
template <class S, class P> struct Plain {
    typedef S F;
    enum { lanes = Vector<S>::lanes };
    static int64_t inner(int64_t size) { return size; }
    static int64_t rows(int64_t size) { return size; }
    static int64_t panel(int64_t size) { return size * lanes; }  // elements
    static void round(S x, F &out) {
        P narrowed;
        narrow(x, narrowed);
        out = S(widen(narrowed));
    }

    // Element (k, column) of a panel.
    static int64_t at(int64_t k, int64_t column) { return k * lanes + column; }
    static void store(const S *from, F *to) {
        for (int u = 0; u < lanes; u++) round(from[u], to[u]);
    }
    // Rows k and k + 1 of a panel, k even.
    static void store_pair(const S *even, const S *odd, F *panel, int64_t k) {
        store(even, panel + k * lanes);
        store(odd, panel + (k + 1) * lanes);
    }

    template <int MANY, int COUNT>
    static void block(int64_t size, const F *a, int64_t lead, const F *const *panels, S *out,
                      bool add) {
        typedef typename Vector<S>::type V;
        V sums[COUNT][MANY];
        for (int r = 0; r < COUNT; r++)
            for (int n = 0; n < MANY; n++) {
                if (add) std::memcpy(&sums[r][n], out + (r * MANY + n) * lanes, sizeof(V));
                else sums[r][n] = V{};
            }
        for (int64_t k = 0; k < size; k++) {
            V w[MANY];
            for (int n = 0; n < MANY; n++) std::memcpy(&w[n], panels[n] + k * lanes, sizeof(V));
            for (int r = 0; r < COUNT; r++) {
                S x = a[r * lead + k];
                for (int n = 0; n < MANY; n++) sums[r][n] += w[n] * x;
            }
        }
        for (int r = 0; r < COUNT; r++)
            for (int n = 0; n < MANY; n++)
                std::memcpy(out + (r * MANY + n) * lanes, &sums[r][n], sizeof(V));
    }

    // out (rows, MANY lanes) (+)= a (rows, size) times MANY panels (size, lanes).
    template <int MANY>
    static void multiply(int64_t rows, int64_t size, const F *a, int64_t lead,
                         const F *const *panels, S *out, bool add, int64_t = 0) {
        int64_t r = 0;
        // A panel alone takes twice the rows: as many sums are under way at a time.
        if constexpr (MANY == 1)
            for (; r + 2 * ROWS <= rows; r += 2 * ROWS)
                block<MANY, 2 * ROWS>(size, a + r * lead, lead, panels, out + r * lanes, add);
        for (; r + ROWS <= rows; r += ROWS)
            block<MANY, ROWS>(size, a + r * lead, lead, panels, out + r * MANY * lanes, add);
        for (; r + 4 <= rows; r += 4)
            block<MANY, 4>(size, a + r * lead, lead, panels, out + r * MANY * lanes, add);
        for (; r < rows; r++)
            block<MANY, 1>(size, a + r * lead, lead, panels, out + r * MANY * lanes, add);
    }

    // A left factor of its own: how far apart its rows are, and where an element is.
    static int64_t lead(int64_t size) { return size; }
    static int64_t step(int64_t) { return 0; }
    static int64_t left(int64_t row, int64_t column, int64_t, int64_t size) {
        return row * size + column;
    }
    // Two columns of `lanes` rows of it.
    static void store_columns(const S *even, const S *odd, F *to, int64_t size) {
        for (int u = 0; u < lanes; u++) {
            round(even[u], to[u * size]);
            round(odd[u], to[u * size + 1]);
        }
    }

    struct Scope {  // of a thread's work
        Scope() {}
    };
};

// Within a large function the compiler unrolls these loops before it could make vectors of them.
#define ALONE __attribute__((noinline))

// f(u) for the first `count` units of a block; a whole block takes vectors.
template <int LANES, class Do> inline void each(int64_t count, Do f) {
    if (count == LANES) {
#pragma omp simd
        for (int u = 0; u < LANES; u++) f(u);
    } else
        for (int u = 0; u < count; u++) f(u);
}

// A block of units, the rest zeros.
template <int LANES, class T> inline void fetch(const T *from, int64_t count, T *to) {
    if (count < LANES) std::memset(to, 0, LANES * sizeof(T));
    each<LANES>(count, [=](int u) { to[u] = from[u]; });
}

// The first `count` units of a block. A whole one is a store of known size, not a call.
template <int LANES, class T> inline void put(const T *from, int64_t count, T *to) {
    if (count == LANES) std::memcpy(to, from, LANES * sizeof(T));
    else std::memcpy(to, from, count * sizeof(T));
}

// f(how the products are made, as a type).
template <class S, class P, class F> void by_products(bool, P *, F f) { f(Plain<S, P>()); }
#ifdef TILES
template <class S, class F> void by_products(bool tiled, bf16 *, F f) {
    if (tiled) f(Tiled());
    else f(Plain<S, bf16>());
}
#endif

}  // namespace
