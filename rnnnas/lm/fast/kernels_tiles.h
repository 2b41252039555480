// Products in bfloat16, tile by tile, on processors that have AMX; and memory that threads keep.

#pragma once

#include "kernels.h"

#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__)
#define TILES 1
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

inline int64_t padded(int64_t size, int64_t unit) { return (size + unit - 1) / unit * unit; }

// Memory of a thread that calls, used again from call to call.
template <class T> T *scratch(int which, int64_t size) {
    thread_local std::vector<char> kept[8];
    std::vector<char> &own = kept[which];
    if (int64_t(own.size()) < size * int64_t(sizeof(T)) + 64) own.resize(size * sizeof(T) + 64);
    return reinterpret_cast<T *>((reinterpret_cast<uintptr_t>(own.data()) + 63) / 64 * 64);
}

#ifdef TILES
// Factors in bfloat16, multiplied tile by tile (AMX): 16 rows of 32 elements times 32 by 16.
struct Tiled {
    typedef bf16 F;
    enum { lanes = 16 };
    static int64_t inner(int64_t size) { return padded(size, 32); }
    static int64_t rows(int64_t size) { return padded(size, 16); }
    static int64_t panel(int64_t size) { return inner(size) * lanes; }
    static void round(float x, F &out) { narrow(x, out); }
    static int64_t at(int64_t k, int64_t column) {  // two rows lie side by side
        return k / 2 * 2 * lanes + 2 * column + k % 2;
    }
    static void store(const float *from, F *to) {
        __m256i rounded = (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(from));
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(to), rounded);
    }
    static __m512i side_by_side(const float *even, const float *odd) {
        alignas(64) static const uint16_t order[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                       21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                       11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
        __m512i both = (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(odd), _mm512_loadu_ps(even));
        return _mm512_permutexvar_epi16(_mm512_load_si512(order), both);
    }
    // Rows k and k + 1 of a panel, k even.
    static void store_pair(const float *even, const float *odd, F *panel, int64_t k) {
        _mm512_storeu_si512(panel + k * lanes, side_by_side(even, odd));
    }

    // out (16 A, row) (+)= a (16 A, size) times MANY panels (size, 16).
    template <int A, int MANY>
    static void block(int64_t size, const F *a, int64_t lead, int64_t step,
                      const F *const *panels, float *out, int64_t row, bool add) {
        if (add) {
            _tile_loadd(0, out, row * 4);
            if (MANY > 1) _tile_loadd(1, out + lanes, row * 4);
            if (A > 1) _tile_loadd(2, out + 16 * row, row * 4);
            if (A > 1 && MANY > 1) _tile_loadd(3, out + 16 * row + lanes, row * 4);
        } else {
            _tile_zero(0);
            if (MANY > 1) _tile_zero(1);
            if (A > 1) _tile_zero(2);
            if (A > 1 && MANY > 1) _tile_zero(3);
        }
        for (int64_t k = 0; k < size; k += 32, a += step) {
            _tile_loadd(4, a, lead * 2);
            _tile_loadd(6, panels[0] + k * lanes, 64);
            _tile_dpbf16ps(0, 4, 6);
            if (MANY > 1) {
                _tile_loadd(7, panels[1] + k * lanes, 64);
                _tile_dpbf16ps(1, 4, 7);
            }
            if (A > 1) {
                _tile_loadd(5, a + 16 * lead, lead * 2);
                _tile_dpbf16ps(2, 5, 6);
                if (MANY > 1) _tile_dpbf16ps(3, 5, 7);
            }
        }
        _tile_stored(0, out, row * 4);
        if (MANY > 1) _tile_stored(1, out + lanes, row * 4);
        if (A > 1) _tile_stored(2, out + 16 * row, row * 4);
        if (A > 1 && MANY > 1) _tile_stored(3, out + 16 * row + lanes, row * 4);
    }

    // out (rows, 16 MANY) (+)= a (rows, size) times MANY panels; both counts up to whole tiles.
    // step: elements of a from 32 columns to the next 32.
    template <int MANY>
    static void multiply(int64_t rows, int64_t size, const F *a, int64_t lead,
                         const F *const *panels, float *out, bool add, int64_t step = 32) {
        const int64_t row = MANY * lanes;
        int64_t r = 0;
        for (; r + 16 < rows; r += 32)
            block<2, MANY>(size, a + r * lead, lead, step, panels, out + r * row, row, add);
        if (r < rows)
            block<1, MANY>(size, a + r * lead, lead, step, panels, out + r * row, row, add);
    }

    // A left factor of its own, 32 columns after the other, so that a tile is one stretch of memory.
    static int64_t lead(int64_t) { return 32; }
    static int64_t step(int64_t rows) { return rows * 32; }
    static int64_t left(int64_t row, int64_t column, int64_t rows, int64_t) {
        return (column / 32 * rows + row) * 32 + column % 32;
    }
    // Two columns of 16 rows of it, the first one even.
    static void store_columns(const float *even, const float *odd, F *to, int64_t) {
        const __m512i rows = _mm512_setr_epi32(0, 16, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176,
                                               192, 208, 224, 240);
        _mm512_i32scatter_epi32(to, rows, side_by_side(even, odd), 4);
    }

    // The shapes of the tiles while a thread works; other libraries rely on their own after it.
    struct Scope {
        alignas(64) unsigned char before[64], own[64];
        Scope() {
            _tile_storeconfig(before);
            std::memset(own, 0, sizeof own);
            own[0] = 1;  // the palette
            for (int tile = 0; tile < 8; tile++) {
                own[16 + 2 * tile] = 64;  // bytes of a row
                own[48 + tile] = 16;      // rows
            }
            _tile_loadconfig(own);
        }
        ~Scope() {
            if (before[0]) _tile_loadconfig(before);
            else _tile_release();
        }
    };

    static bool allowed() {  // the system grants a process its tiles once it asks
        static const bool granted = syscall(SYS_arch_prctl, 0x1023, 18) == 0;
        return granted;
    }
};
#endif

}  // namespace
