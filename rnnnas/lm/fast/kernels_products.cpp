// One matrix product shared out over torch's threads: each calls a library's product, which has one
// thread, for columns or rows of its own. No sum is split.
//
// All threads take part, also where there are fewer parts: a smaller team would make OpenMP end
// threads and start them again.

#include "kernels.h"

namespace {

// CBLAS' ?gemm with 64-bit integers.
template <class S>
using Gemm = void (*)(int order, int turn_a, int turn_b, int64_t rows, int64_t columns,
                      int64_t inner, S alpha, const S *a, int64_t lead_a, const S *b,
                      int64_t lead_b, S beta, S *out, int64_t lead_out);

enum { ROWS_FIRST = 101, AS_IT_LIES = 111, TURNED = 112 };
enum { STRIP = 16 };  // columns or rows that stay together: two vectors, so that few have a rest

template <class S>
void multiply(Gemm<S> gemm, int64_t rows, int64_t inner, int64_t columns, int64_t turned_a,
              const S *a, int64_t lead_a, int64_t turned_b, const S *b, int64_t lead_b, S beta,
              S *out, int64_t lead_out, int64_t parts, int threads) {
    bool wide = columns >= rows;
    int64_t length = wide ? columns : rows, strips = (length + STRIP - 1) / STRIP;
    int64_t step_a = turned_a ? 1 : lead_a, step_b = turned_b ? lead_b : 1;
    int turn_a = turned_a ? TURNED : AS_IT_LIES, turn_b = turned_b ? TURNED : AS_IT_LIES;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t part = 0; part < parts; part++) {
        int64_t start = strips * part / parts * STRIP;
        int64_t own = std::min(length, strips * (part + 1) / parts * STRIP) - start;
        if (own <= 0) continue;
        if (wide)
            gemm(ROWS_FIRST, turn_a, turn_b, rows, own, inner, S(1), a, lead_a, b + start * step_b,
                 lead_b, beta, out + start, lead_out);
        else
            gemm(ROWS_FIRST, turn_a, turn_b, own, columns, inner, S(1), a + start * step_a, lead_a,
                 b, lead_b, beta, out + start * lead_out, lead_out);
    }
}

}  // namespace

#define MULTIPLY(NAME, S)                                                                          \
    extern "C" void multiply_##NAME(int64_t gemm, int64_t rows, int64_t inner, int64_t columns,    \
                                    int64_t turned_a, const S *a, int64_t lead_a,                  \
                                    int64_t turned_b, const S *b, int64_t lead_b, double beta,     \
                                    S *out, int64_t lead_out, int64_t parts, int threads) {        \
        multiply(reinterpret_cast<Gemm<S>>(gemm), rows, inner, columns, turned_a, a, lead_a,       \
                 turned_b, b, lead_b, S(beta), out, lead_out, parts, threads);                     \
    }

MULTIPLY(float32, float)
MULTIPLY(float64, double)
