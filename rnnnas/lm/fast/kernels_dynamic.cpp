// Dynamic evaluation: weights that follow a text, each in one pass over memory.
//
// w becomes w - lr g / (rms + epsilon) + min(relative rms, 1) (trained - w).

#include "kernels.h"

namespace {

template <class S> struct Rates {
    S lr, epsilon, relative;
};

template <class S>
inline void follow(int64_t size, const S *grad, const S *trained, const S *rms, Rates<S> rates,
                   S *weights) {
#pragma omp simd
    for (int64_t u = 0; u < size; u++) {
        S back = rates.relative * rms[u];
        back = back > S(1) ? S(1) : back;
        S moved = weights[u] + back * (trained[u] - weights[u]);
        weights[u] = moved - rates.lr * grad[u] / (rms[u] + rates.epsilon);
    }
}

enum { SLICE = 4096, SLICES = 8 };  // elements of a part; parts of a matrix' rows

template <class S>
void learn(int64_t size, const S *grad, const S *trained, const S *rms, Rates<S> rates, S *weights,
           int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t start = 0; start < size; start += SLICE)
        follow(std::min<int64_t>(SLICE, size - start), grad + start, trained + start, rms + start,
               rates, weights + start);
}

// The gradient of W (V, D) is gradientᵀ x and lives a row at a time. Before it moves, W hands
// `gradient` W on to the outputs.
template <class S>
void learn_rows(int64_t targets, int64_t rows, int64_t width, const S *gradient, const S *x,
                const S *trained, const S *rms, Rates<S> rates, S *weights, S *back, int threads) {
    int64_t size = targets * width;
    std::vector<S> sums(SLICES * size);
#pragma omp parallel num_threads(threads)
    {
        std::vector<S> grad(width);
#pragma omp for schedule(static)
        for (int64_t slice = 0; slice < SLICES; slice++)
            for (int64_t v = rows * slice / SLICES; v < rows * (slice + 1) / SLICES; v++) {
                S *w = weights + v * width, *g = grad.data();
                std::fill(g, g + width, S(0));
                for (int64_t m = 0; m < targets; m++) {
                    S d = gradient[m * rows + v], *sum = sums.data() + slice * size + m * width;
                    const S *in = x + m * width;
#pragma omp simd
                    for (int64_t u = 0; u < width; u++) {
                        g[u] += d * in[u];
                        sum[u] += d * w[u];
                    }
                }
                follow(width, g, trained + v * width, rms + v * width, rates, w);
            }
    }
    std::fill(back, back + size, S(0));
    for (int64_t slice = 0; slice < SLICES; slice++)
        for (int64_t u = 0; u < size; u++) back[u] += sums[slice * size + u];
}

}  // namespace

#define EXPORT(NAME, S)                                                                            \
    extern "C" void learn_##NAME(int64_t size, const S *grad, const S *trained, const S *rms,      \
                                 double lr, double epsilon, double relative, S *weights,           \
                                 int threads) {                                                    \
        learn(size, grad, trained, rms, Rates<S>{S(lr), S(epsilon), S(relative)}, weights,         \
              threads);                                                                            \
    }                                                                                              \
    extern "C" void learn_rows_##NAME(int64_t targets, int64_t rows, int64_t width,                \
                                      const S *gradient, const S *x, const S *trained, const S *rms,  \
                                      double lr, double epsilon, double relative, S *weights,      \
                                      S *back, int threads) {                                      \
        learn_rows(targets, rows, width, gradient, x, trained, rms,                                   \
                   Rates<S>{S(lr), S(epsilon), S(relative)}, weights, back, threads);              \
    }

EXPORT(float32, float)
EXPORT(float64, double)
