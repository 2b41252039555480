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

    template <int MANY>
    static void multiply(int64_t rows, int64_t size, const F *a, int64_t lead,
                         const F *const *panels, float *out, bool add) {
        const int64_t row = MANY * lanes;
        for (int64_t r = 0; r < rows; r += 16, a += 16 * lead, out += 16 * row) {
            if (add) {
                _tile_loadd(0, out, row * 4);
                if (MANY > 1) _tile_loadd(1, out + lanes, row * 4);
            } else {
                _tile_zero(0);
                if (MANY > 1) _tile_zero(1);
            }
            for (int64_t k = 0; k < size; k += 32) {
                _tile_loadd(4, a + k, lead * 2);
                _tile_loadd(5, panels[0] + k * lanes, 64);
                _tile_dpbf16ps(0, 4, 5);
                if (MANY > 1) {
                    _tile_loadd(6, panels[1] + k * lanes, 64);
                    _tile_dpbf16ps(1, 4, 6);
                }
            }
            _tile_stored(0, out, row * 4);
            if (MANY > 1) _tile_stored(1, out + lanes, row * 4);
        }
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
