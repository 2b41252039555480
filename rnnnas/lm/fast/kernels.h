// What all files of kernels need. They are compiled on the user's machine by kernels.py, which says
// what every exported function computes.
//
// Legend: B streams (rows), H hidden units, U of them computed, n computed edges of a node.
// S the type of states and sums, P the type of products. All arrays are dense, rows first.
// Sums over streams or rows are taken in parts that do not depend on the number of threads, so that
// this number changes no result (but see openblas.py, of products by more than four).

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

struct bf16 {
    uint16_t bits;
};

inline float widen(bf16 x) {
    uint32_t bits = uint32_t(x.bits) << 16;
    float result;
    std::memcpy(&result, &bits, sizeof bits);
    return result;
}
inline float widen(float x) { return x; }
inline double widen(double x) { return x; }

inline void narrow(float x, bf16 &out) {  // to the nearest, ties to even
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    out.bits = uint16_t(x != x ? 0x7fc0u : rounded);
}
inline void narrow(float x, float &out) { out = x; }
inline void narrow(double x, double &out) { out = x; }

// exp(x) = 2^k 2^f with |f| <= 1/2, by Taylor's polynomial. With fused multiplication and addition
// the relative error is 4e-7 for |x| < 10, and 1.5e-6 at the ends, e^-87 and e^88, where it stops: a
// float holds these still. NaN stays.
inline float power(float x) {
    const float magic = 0x1.8p23f + 127;  // adding it leaves k + 127 in the lowest bits
    float y = x < -87.0f ? -87.0f : x;
    y = y > 88.0f ? 88.0f : y;
    float shifted = y * 1.44269504f + magic;
    float f = y * 1.44269504f - (shifted - magic);
    float p = 1.5403530e-4f;  // log(2)^n / n!
    p = p * f + 1.3333558e-3f;
    p = p * f + 9.6181291e-3f;
    p = p * f + 5.5504109e-2f;
    p = p * f + 2.4022651e-1f;
    p = p * f + 6.9314718e-1f;
    p = p * f + 1.0f;
    uint32_t bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits <<= 23;
    float scale;
    std::memcpy(&scale, &bits, sizeof bits);
    return p * scale;
}
inline double power(double x) { return std::exp(x); }

// sigmoid and tanh of one argument, by one exponential.
template <class S> inline void both(S z, S &sigmoid, S &tanh) {
    S e = power(-z);
    sigmoid = S(1) / (S(1) + e);
    tanh = S(2) / (S(1) + e * e) - S(1);
}

enum { MASS, TANH, RELU, SIGMOID, IDENTITY, COLUMNS };  // of an edge's shares

#ifndef PART
#error "kernels.py says what PART is"
#endif

}  // namespace
