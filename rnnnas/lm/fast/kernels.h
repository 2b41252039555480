// What all files of kernels need. cpu_library.py compiles them on the user's machine, and says
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

// exp(x) = 2^k 2^f and expm1(x) = exp(x) - 1 with |f| <= 1/2, by the polynomial for (2^f - 1) / f
// whose relative error is the least, 1.1e-8. With fused multiplication and addition the relative
// error of exp is 3e-7 for |x| < 10, and 1.5e-6 at the ends, e^-87 and e^88, where it stops: a float
// holds these still. That of expm1 is 3e-7 for |x| < 10, however small. NaN stays.
inline void powers(float x, float &exp, float &expm1) {
    const float magic = 0x1.8p23f + 127;  // adding it leaves k + 127 in the lowest bits
    float y = x < -87.0f ? -87.0f : x;
    y = y > 88.0f ? 88.0f : y;
    float shifted = y * 1.44269504f + magic;
    float f = y * 1.44269504f - (shifted - magic);
    float p = 1.54035122e-4f;
    p = p * f + 1.33907353e-3f;
    p = p * f + 9.61823761e-3f;
    p = p * f + 5.55035733e-2f;
    p = p * f + 2.40226492e-1f;
    p = p * f + 6.93147182e-1f;
    p = p * f;
    uint32_t bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits <<= 23;
    float scale;
    std::memcpy(&scale, &bits, sizeof bits);
    exp = p * scale + scale;
    expm1 = p * scale + (scale - 1.0f);
}
inline void powers(double x, double &exp, double &expm1) {
    exp = std::exp(x);
    expm1 = std::expm1(x);
}

template <class S> inline S power(S x) {
    S exp, expm1;
    powers(x, exp, expm1);
    return exp;
}
inline double power(double x) { return std::exp(x); }

// tanh(z) by w = expm1(-2z): as 2 / (1 + e^-2z) - 1 it would lose all digits near 0.
template <class S> inline S tanh_by(S w) {
    w = w > S(1e30) ? S(1e30) : w;  // infinity over infinity is no number
    return -w / (w + S(2));
}

// In float32 the relative error is at most 5e-7 for every z.
template <class S> inline S tanh_of(S z) {
    S exp, expm1;
    powers(-z - z, exp, expm1);
    return tanh_by(expm1);
}

// sigmoid and tanh of one argument, by one exponential.
template <class S> inline void both(S z, S &sigmoid, S &tanh) {
    S exp, expm1;
    powers(-z, exp, expm1);
    sigmoid = S(1) / (S(1) + exp);
    tanh = tanh_by(expm1 * (expm1 + S(2)));
}

enum { MASS, TANH, RELU, SIGMOID, IDENTITY, COLUMNS };  // of an edge's shares

// The sum of p f(z) over the operations f.
template <class S> inline S mixed(const S *p, S z, S sigmoid, S tanh) {
    S kept = p[IDENTITY] != 0 ? p[IDENTITY] * z : S(0);  // an infinity times zero is no number
    kept += p[RELU] != 0 ? p[RELU] * (z > 0 ? z : z != z ? z : S(0)) : S(0);
    return kept + p[TANH] * tanh + p[SIGMOID] * sigmoid;
}

// Of z under a mixture p: the sums of p f(z), p f'(z) and p f''(z).
template <class S> struct Curve {
    S sigmoid, tanh, relu, value, rise, bend;
};
template <class S> inline Curve<S> curve(const S *p, S z) {
    Curve<S> m;
    both(z, m.sigmoid, m.tanh);
    m.relu = z > 0 ? z : z != z ? z : S(0);
    S kept = p[IDENTITY] != 0 ? p[IDENTITY] * z : S(0);  // an infinity times zero is no number
    kept += p[RELU] != 0 ? p[RELU] * m.relu : S(0);
    S by_tanh = p[TANH] * (S(1) - m.tanh * m.tanh);
    S by_sigmoid = p[SIGMOID] * m.sigmoid * (S(1) - m.sigmoid);
    m.value = kept + p[TANH] * m.tanh + p[SIGMOID] * m.sigmoid;
    m.rise = p[IDENTITY] + (z > 0 ? p[RELU] : S(0)) + by_tanh + by_sigmoid;
    m.bend = by_sigmoid * (S(1) - S(2) * m.sigmoid) - S(2) * by_tanh * m.tanh;
    return m;
}

template <int OP, class S> inline S value_of(S z) {
    if (OP == TANH) return tanh_of(z);
    if (OP == SIGMOID) return S(1) / (S(1) + power(-z));
    if (OP == RELU) return z < 0 ? S(0) : z;  // NaN stays
    return z;
}

template <int OP, class S> inline S rise_of(S z, S value) {
    if (OP == TANH) return S(1) - value * value;
    if (OP == SIGMOID) return value * (S(1) - value);
    if (OP == RELU) return z > 0 ? S(1) : z != z ? z : S(0);
    return S(1);
}

// f(number of the operation, as a type), so that the loop inside knows it when it is compiled.
template <int OP> struct Op {
    enum { kind = OP };
};
template <class F> inline void by_op(int64_t op, F f) {
    if (op == TANH) f(Op<TANH>());
    else if (op == RELU) f(Op<RELU>());
    else if (op == SIGMOID) f(Op<SIGMOID>());
    else f(Op<IDENTITY>());
}

#ifndef PART
#error "cpu_library.py says what PART is"
#endif

}  // namespace
