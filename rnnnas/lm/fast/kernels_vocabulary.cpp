// The loss over the vocabulary and its gradients in one call, products included, by tiles (AMX).
//
// Twice over the words, a block of them at a time, as the logits of a block stay in the second cache
// and are cheaper to make again than to read from memory: first every row's largest logit and the
// sum of exponentials, then the gradients. Logits lie words by rows, so that the lanes of a vector
// are rows and a sum over words needs no shuffling.
//
// Words are shared out in PARTS whatever the number of threads is, which so changes no sum. Rows are
// taken CHUNK at a time: what is multiplied with every block of words has to stay in the cache, too.

#include "kernels_tiles.h"

#ifdef TILES

namespace {

enum { LANES = 16, PARTS = 8, WIDEST = 256, CHUNK = 1024 };
enum { TOGETHER = 1 << 18 };  // gradients of a block, about

const float LOWEST = -3e38f;  // a sum of nothing: infinity less infinity is no number

// out (rows, 16 many) (+)= a (rows, size) times `many` panels, one after the other; rows count in
// 32s.
void multiply(int64_t rows, int64_t size, const bf16 *a, int64_t lead, int64_t many,
              const bf16 *panels, float *out, int64_t row, bool add) {
    for (int64_t n = 0; n < many; n += 2)
        for (int64_t r = 0; r < rows; r += 32) {
            const bf16 *pair[2] = {panels + n * size * LANES, panels + (n + 1) * size * LANES};
            float *to = out + r * row + n * LANES;
            if (n + 1 < many)
                Tiled::block<2, 2>(size, a + r * lead, lead, 32, pair, to, row, add);
            else Tiled::block<2, 1>(size, a + r * lead, lead, 32, pair, to, row, add);
        }
}

inline __m256i round(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }
inline __m512 load(const float *from, int64_t count) {  // zeros from `count` on
    int known = count >= LANES ? 0xffff : (1 << std::max<int64_t>(count, 0)) - 1;
    return _mm512_maskz_loadu_ps(known, from);
}
inline void store(bf16 *to, __m256i x) { _mm256_storeu_si256(reinterpret_cast<__m256i *>(to), x); }

struct Loss {
    int64_t rows, words, hidden;
    const float *x, *w, *bias;
    const int64_t *targets;
    float scale;
    int64_t all() const { return padded(rows, 32); }
    int64_t wide() const { return padded(hidden, 32); }
};

// A row's largest logit, the sum of exponentials beneath it, and the logit of its target.
struct Row {
    float most, mass, hit;
};

// What a thread works in: a block of words, their logits for 32 rows, and their gradients.
struct Block {
    const Loss &loss;
    int64_t most;  // words
    bf16 *weights, *turned, *gradients, *paired;
    float *logits, *bias, *by_word;
    int64_t first, count;

    Block(const Loss &loss, int64_t most, bool wanted) : loss(loss), most(most) {
        int64_t all = wanted ? loss.all() : 0;
        int64_t sizes[] = {most * loss.wide() * 2, most * 32 * 4, most * 4,
                           wanted ? most * loss.wide() * 2 : 0, most * all * 2, most * all * 2,
                           wanted ? most * LANES * 4 : 0};
        int64_t total = 64;
        for (int64_t size : sizes) total += padded(size, 64);
        char *at = scratch<char>(4, total);
        auto next = [&](int which) {
            char *here = at;
            at += padded(sizes[which], 64);
            return here;
        };
        weights = reinterpret_cast<bf16 *>(next(0));
        logits = reinterpret_cast<float *>(next(1));
        bias = reinterpret_cast<float *>(next(2));
        turned = reinterpret_cast<bf16 *>(next(3));
        gradients = reinterpret_cast<bf16 *>(next(4));
        paired = reinterpret_cast<bf16 *>(next(5));
        by_word = reinterpret_cast<float *>(next(6));
    }

    // The words from `start`: rounded weights (most, wide), and zeros where there are none.
    void take(int64_t start) {
        const int64_t wide = loss.wide(), hidden = loss.hidden;
        first = start;
        count = std::min(most, loss.words - start);
        for (int64_t v = 0; v < most; v++) {
            bf16 *__restrict to = weights + v * wide;
            int64_t known = v < count ? hidden : 0;
            const float *__restrict from = loss.w + (start + v) * hidden;
            for (int64_t k = 0; k < wide; k += LANES) store(to + k, round(load(from + k, known - k)));
            bias[v] = v < count ? loss.bias[start + v] : -1e30f;  // no word, whatever the row
        }
    }

    // Weights (wide, most): what the rows' gradients are multiplied by.
    void turn() {
        const int64_t wide = loss.wide();
        const __m512i lines = _mm512_mullo_epi32(
            _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
            _mm512_set1_epi32(int(wide * sizeof(bf16))));
        for (int64_t v = 0; v < most; v += LANES)
            for (int64_t k = 0; k < wide; k += 2) {  // two units of 16 words at once
                __m512i pair = _mm512_i32gather_epi32(lines, weights + v * wide + k, 1);
                store(turned + k * most + v, _mm512_cvtepi32_epi16(pair));
                store(turned + (k + 1) * most + v,
                      _mm512_cvtepi32_epi16(_mm512_srli_epi32(pair, 16)));
            }
    }

    // Of 32 rows, the panels of x (wide, 16) of which are `x`: logits (most, 32) with the bias.
    void score(const bf16 *x) {
        multiply(most, loss.wide(), weights, loss.wide(), 2, x, logits, 32, false);
    }
};

// Within a large function the compiler unrolls these loops before it could make vectors of them.
#define ALONE __attribute__((noinline))

// The gradients of two words' logits for 16 rows; what they sum to is added to `sum`.
ALONE void pair_gradients(const float *__restrict a, const float *__restrict b, float one,
                          float two, const float *__restrict top, const float *__restrict share,
                          float *__restrict sum, bf16 *__restrict left, bf16 *__restrict right,
                          uint32_t *__restrict pair) {
    alignas(64) float g[LANES], h[LANES];
#pragma omp simd
    for (int u = 0; u < LANES; u++) {
        g[u] = power(a[u] + one - top[u]) * share[u];
        h[u] = power(b[u] + two - top[u]) * share[u];
        sum[u] += g[u];
        sum[LANES + u] += h[u];
    }
    __m256i low = round(_mm512_load_ps(g)), high = round(_mm512_load_ps(h));
    store(left, low);
    store(right, high);
    __m512i above = _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16);
    _mm512_storeu_si512(pair, _mm512_or_si512(_mm512_cvtepu16_epi32(low), above));
}

// What every row's sum of exponentials gains by the block.
void gather(const Block &block, int64_t row, Row *rows) {
    const int64_t most = block.most;
    for (int64_t half = 0; half < 2; half++, row += LANES) {
        float *l = block.logits + half * LANES;
        float top[LANES], sum[LANES];
        for (int u = 0; u < LANES; u++) top[u] = LOWEST, sum[u] = 0;
        for (int64_t v = 0; v < most; v++) {
            float *line = l + v * 32, added = block.bias[v];
#pragma omp simd
            for (int u = 0; u < LANES; u++) {
                line[u] += added;
                top[u] = line[u] > top[u] ? line[u] : top[u];
            }
        }
        float before[LANES];
        for (int u = 0; u < LANES; u++) {
            before[u] = rows[row + u].most;
            top[u] = before[u] > top[u] ? before[u] : top[u];
        }
        for (int64_t v = 0; v < most; v++) {
            const float *line = l + v * 32;
#pragma omp simd
            for (int u = 0; u < LANES; u++) sum[u] += power(line[u] - top[u]);
        }
        for (int u = 0; u < LANES; u++) {
            Row &own = rows[row + u];
            own.mass = own.mass * power(before[u] - top[u]) + sum[u];
            own.most = top[u];
            if (row + u >= block.loss.rows) continue;
            int64_t target = block.loss.targets[row + u] - block.first;
            if (target >= 0 && target < block.count) own.hit = l[target * 32 + u];
        }
    }
}

// The gradients of 32 rows' logits, as both products take them: (most, all), and pairs of words side
// by side in panels of 16 rows.
void form_gradients(Block &block, int64_t row, const Row *rows) {
    const int64_t most = block.most, all = block.loss.all();
    for (int64_t half = 0; half < 2; half++, row += LANES) {
        const float *l = block.logits + half * LANES;
        uint32_t *paired = reinterpret_cast<uint32_t *>(block.paired + row * most);
        float top[LANES], share[LANES];
        for (int u = 0; u < LANES; u++) {
            top[u] = rows[row + u].most;
            share[u] = row + u < block.loss.rows ? block.loss.scale / rows[row + u].mass : 0;
        }
        for (int64_t v = 0; v < most; v += 2) {
            const float *a = l + v * 32, *b = a + 32;
            float one = block.bias[v], two = block.bias[v + 1];
            float *sum = block.by_word + v * LANES;
            bf16 *left = block.gradients + v * all + row, *right = left + all;
            uint32_t *pair = paired + v / 2 * LANES;
            pair_gradients(a, b, one, two, top, share, sum, left, right, pair);
        }
        for (int u = 0; u < LANES && row + u < block.loss.rows; u++) {
            int64_t v = block.loss.targets[row + u] - block.first;
            if (v < 0 || v >= block.count) continue;
            float p = power(l[v * 32 + u] + block.bias[v] - top[u]);
            bf16 g;
            narrow((p - rows[row + u].mass) * share[u], g);
            block.by_word[v * LANES + u] -= block.loss.scale;
            block.gradients[v * all + row + u] = g;
            block.paired[row * most + v / 2 * 32 + 2 * u + v % 2] = g;
        }
    }
}

// grad_w, by_word: null where they are not wanted. add: to what they hold of other rows.
void losses(const Loss &loss, bool wanted, bool add, double *nats, float *grad_x, float *grad_w,
            float *by_word, int threads) {
    const int64_t all = loss.all(), wide = loss.wide(), hidden = loss.hidden;
    int64_t most = WIDEST;
    while (wanted && most > 32 && most * all > TOGETHER) most /= 2;
    const int64_t blocks = padded(loss.words, most) / most;
    // x as a right factor: its units the inner index of logits, its rows that of the weights'
    // gradients; of both, pairs lie side by side.
    bf16 *by_units = scratch<bf16>(0, all * wide);
    bf16 *by_rows = scratch<bf16>(1, grad_w ? all * wide : 0);
    Row *rows = scratch<Row>(2, PARTS * all);
    float *parts = scratch<float>(3, wanted ? PARTS * wide * all : 0);  // of x's gradient, turned
#pragma omp parallel num_threads(threads)
    {
        Tiled::Scope scope;
        Block block(loss, most, wanted);
        std::vector<float> line(32 * 32);
#pragma omp for schedule(static)
        for (int64_t panel = 0; panel < all; panel += LANES)
            for (int64_t b = panel; b < panel + LANES; b++)
                for (int64_t k = 0; k < wide; k++) {
                    bf16 value = {0};
                    if (b < loss.rows && k < hidden) narrow(loss.x[b * hidden + k], value);
                    by_units[panel * wide + k / 2 * 32 + b % 16 * 2 + k % 2] = value;
                    if (!grad_w) continue;
                    by_rows[k / 16 * 16 * all + b / 2 * 32 + k % 16 * 2 + b % 2] = value;
                }
#pragma omp for schedule(static)
        for (int64_t part = 0; part < PARTS; part++) {
            Row *own = rows + part * all;
            for (int64_t b = 0; b < all; b++) own[b] = {LOWEST, 0, 0};
            for (int64_t at = part * blocks / PARTS; at < (part + 1) * blocks / PARTS; at++) {
                block.take(at * most);
                for (int64_t b = 0; b < all; b += 32) {
                    block.score(by_units + b * wide);
                    gather(block, b, own);
                }
            }
        }
#pragma omp for schedule(static)
        for (int64_t b = 0; b < all; b++) {
            Row &whole = rows[b];
            for (int64_t part = 1; part < PARTS; part++) {
                const Row &own = rows[part * all + b];
                float top = own.most > whole.most ? own.most : whole.most;
                whole.mass = whole.mass * power(whole.most - top) + own.mass * power(own.most - top);
                whole.most = top;
                whole.hit += own.hit;  // one part has the target, the others zero
            }
            if (b < loss.rows)
                nats[b] = std::log(double(whole.mass)) - double(whole.hit - whole.most);
        }
        if (wanted) {
#pragma omp for schedule(static)
            for (int64_t part = 0; part < PARTS; part++) {
                const int64_t start = part * blocks / PARTS, end = (part + 1) * blocks / PARTS;
                float *own = parts + part * wide * all;
                if (start == end) std::memset(own, 0, wide * all * sizeof(float));
                for (int64_t at = start; at < end; at++) {
                    block.take(at * most);
                    block.turn();
                    std::memset(block.by_word, 0, most * LANES * sizeof(float));
                    for (int64_t b = 0; b < all; b += 32) {
                        block.score(by_units + b * wide);
                        form_gradients(block, b, rows);
                    }
                    multiply(wide, most, block.turned, most, all / LANES, block.paired, own, all,
                             at > start);
                    if (!grad_w) continue;
                    for (int64_t v = 0; v < block.count; v++) {
                        float sum = 0, &to = by_word[block.first + v];
                        for (int u = 0; u < LANES; u++) sum += block.by_word[v * LANES + u];
                        to = add ? to + sum : sum;
                    }
                    for (int64_t k = 0; k < hidden; k += 32)
                        for (int64_t v = 0; v < block.count; v += 32) {
                            const bf16 *left = block.gradients + v * all;
                            const bf16 *right = by_rows + k * all;
                            float *to = grad_w + (block.first + v) * hidden + k;
                            int64_t width = std::min<int64_t>(32, hidden - k);
                            int64_t many = std::min<int64_t>(32, block.count - v);
                            if (width == 32 && many == 32) {
                                multiply(32, all, left, all, 2, right, to, hidden, add);
                                continue;
                            }
                            multiply(32, all, left, all, 2, right, line.data(), 32, false);
                            for (int64_t u = 0; u < many; u++)
                                for (int64_t j = 0; j < width; j++) {
                                    float &sum = to[u * hidden + j], own = line[32 * u + j];
                                    sum = add ? sum + own : own;
                                }
                        }
                }
            }
#pragma omp for schedule(static)
            for (int64_t panel = 0; panel < all; panel += LANES)
                for (int64_t k = 0; k < hidden; k++) {
                    float sum[LANES] = {};
                    for (int64_t part = 0; part < PARTS; part++) {
                        const float *own = parts + (part * wide + k) * all + panel;
                        for (int u = 0; u < LANES; u++) sum[u] += own[u];
                    }
                    for (int u = 0; u < LANES && panel + u < loss.rows; u++)
                        grad_x[(panel + u) * hidden + k] = sum[u];
                }
        }
    }
}

}  // namespace

extern "C" void vocabulary_bfloat16(int64_t rows, int64_t words, int64_t hidden, int64_t wanted,
                                    const float *x, const float *w, const float *bias,
                                    const int64_t *targets, double scale, double *nats,
                                    float *grad_x, float *grad_w, float *by_word, int threads) {
    const int64_t chunks = (rows + CHUNK - 1) / CHUNK;
    const int64_t chunk = chunks ? padded((rows + chunks - 1) / chunks, 32) : 32;
    for (int64_t at = 0; at < rows; at += chunk) {
        Loss loss{std::min(chunk, rows - at), words, hidden, x + at * hidden, w, bias,
                  targets + at, float(scale)};
        losses(loss, wanted, at > 0, nats + at, wanted ? grad_x + at * hidden : nullptr, grad_w,
               by_word, threads);
    }
}

#endif
