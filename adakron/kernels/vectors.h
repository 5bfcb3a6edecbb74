// Vectors of floats as wide as this processor has them, and the few functions of them that native.cpp is made of.
//
// Values are float or bfloat16 in memory and float in registers; products may read pairs of bfloat16, see Lanes.

#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
constexpr int VL = 16;
#define EVENS 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define ODDS 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#elif defined(__AVX__)
constexpr int VL = 8;
#define EVENS 0, 2, 4, 6, 8, 10, 12, 14
#define ODDS 1, 3, 5, 7, 9, 11, 13, 15
#else
constexpr int VL = 4;
#define EVENS 0, 2, 4, 6
#define ODDS 1, 3, 5, 7
#endif

#if defined(__AVX512BF16__) && defined(__AVX512BW__)
#define MULTIPLIES_PAIRS
#include <immintrin.h>
#endif

typedef float Vec __attribute__((vector_size(4 * VL)));
typedef int32_t VecI __attribute__((vector_size(4 * VL)));
typedef uint32_t VecU __attribute__((vector_size(4 * VL)));
typedef uint16_t VecH __attribute__((vector_size(2 * VL)));

struct BFloat16 {
    uint16_t bits;
};

static inline Vec load(const float* p) {
    Vec v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

static inline Vec load(const BFloat16* p) {
    VecH h;
    std::memcpy(&h, p, sizeof h);
    return (Vec)(__builtin_convertvector(h, VecU) << 16);
}

static inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }

// To nearest, ties to even. A NaN stays one: what comes out of bfloat16 has no low bits that could carry.
static inline void store(BFloat16* p, Vec v) {
#ifdef MULTIPLIES_PAIRS
    auto h = _mm512_cvtneps_pbh((__m512)v);
#else
    VecU bits = (VecU)v;
    VecH h = __builtin_convertvector((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16, VecH);
#endif
    std::memcpy(p, &h, sizeof h);
}

static inline float load_one(const float* p) { return *p; }

static inline float load_one(const BFloat16* p) {
    uint32_t bits = (uint32_t)p->bits << 16;
    float v;
    std::memcpy(&v, &bits, sizeof v);
    return v;
}

static inline void store_one(float* p, float v) { *p = v; }

static inline void store_one(BFloat16* p, float v) {
    uint32_t bits;
    std::memcpy(&bits, &v, sizeof v);
    p->bits = (uint16_t)((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

static inline Vec splat(float v) { return v - Vec{}; }

static inline Vec choose(VecI mask, Vec yes, Vec no) { return mask ? yes : no; }

static inline Vec larger(Vec a, Vec b) { return choose(a > b, a, b); }

static inline Vec smaller(Vec a, Vec b) { return choose(a < b, a, b); }

// Every other value of two vectors, those of `a` first.
static inline Vec evens(Vec a, Vec b) {
#ifdef __clang__
    return __builtin_shufflevector(a, b, EVENS);
#else
    return __builtin_shuffle(a, b, (VecI){EVENS});
#endif
}

static inline Vec odds(Vec a, Vec b) {
#ifdef __clang__
    return __builtin_shufflevector(a, b, ODDS);
#else
    return __builtin_shuffle(a, b, (VecI){ODDS});
#endif
}

static inline float sum(Vec v) {
    for (int count = VL; count > 1; count /= 2) v = evens(v, v) + odds(v, v);
    return v[0];
}

static inline float largest(Vec v) {
    for (int count = VL; count > 1; count /= 2) v = larger(evens(v, v), odds(v, v));
    return v[0];
}

// out[n] = the sum of totals[n]: VL of them at a time in half as many steps as by themselves.
template <int COUNT>
static inline void store_sums(const Vec (&totals)[COUNT], float* out) {
    for (int begin = 0; begin < COUNT; begin += VL) {
        Vec group[VL] = {};
        const int size = COUNT - begin < VL ? COUNT - begin : VL;
        for (int n = 0; n < size; n++) group[n] = totals[begin + n];
        for (int count = VL; count > 1; count /= 2)
            for (int n = 0; n < count / 2; n++)
                group[n] = evens(group[2 * n], group[2 * n + 1]) + odds(group[2 * n], group[2 * n + 1]);
        std::memcpy(out + begin, &group[0], size * sizeof(float));
    }
}

// Rows become columns. Each step turns the number (row, column) of every value right by one bit.
static inline void transpose(Vec (&block)[VL]) {
    for (int step = 1; step < VL; step *= 2) {
        Vec turned[VL];
        for (int n = 0; n < VL / 2; n++) {
            turned[n] = evens(block[2 * n], block[2 * n + 1]);
            turned[n + VL / 2] = odds(block[2 * n], block[2 * n + 1]);
        }
        for (int n = 0; n < VL; n++) block[n] = turned[n];
    }
}

// How the factors of a product lie in a vector: a lane has one float, or two neighbouring values of bfloat16 where the
// processor adds up the products of both in one step.
template <typename Factor>
struct Lanes;

template <>
struct Lanes<float> {
    static constexpr int VALUES = 1;  // in a lane

    template <typename T>
    static inline Vec load(const T* p) {
        return ::load(p);
    }
    static inline void store(float* p, Vec v) { ::store(p, v); }

    template <typename T>
    static inline Vec splat(const T* p) {
        return ::splat(load_one(p));
    }
    static inline Vec add_product(Vec total, Vec a, Vec b) { return total + a * b; }

    // 2 VL columns of VALUES rows, a column in a lane: here one row.
    template <typename T>
    static inline void columns(const T* first, const T*, Vec& left, Vec& right) {
        left = ::load(first), right = ::load(first + VL);
    }
    static inline Vec join(const Vec (&parts)[VALUES]) { return parts[0]; }

    // The values of VL lanes, those of one place in a lane together, and back.
    template <typename T>
    static inline void split(const T* p, Vec (&parts)[VALUES]) {
        parts[0] = ::load(p);
    }
    template <typename T>
    static inline void unite(const Vec (&parts)[VALUES], T* p) {
        ::store(p, parts[0]);
    }
};

template <typename T>
struct FactorOf {
    typedef float Type;
};

#ifdef MULTIPLIES_PAIRS
template <>
struct Lanes<BFloat16> {
    static constexpr int VALUES = 2;

    static inline Vec load(const BFloat16* p) {
        Vec v;
        std::memcpy(&v, p, sizeof v);
        return v;
    }
    static inline void store(BFloat16* p, Vec v) { std::memcpy(p, &v, sizeof v); }

    static inline Vec splat(const BFloat16* p) {
        int32_t pair;
        std::memcpy(&pair, p, sizeof pair);
        return (Vec)_mm512_set1_epi32(pair);
    }
    static inline Vec add_product(Vec total, Vec a, Vec b) {
        return (Vec)_mm512_dpbf16_ps((__m512)total, (__m512bh)a, (__m512bh)b);
    }
    // Here two rows; zeros for a second that is not there.
    static inline void columns(const BFloat16* first, const BFloat16* second, Vec& left, Vec& right) {
        const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6,
                                             37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
        const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
        const __m512i a = (__m512i)load(first), b = second ? (__m512i)load(second) : _mm512_setzero_si512();
        left = (Vec)_mm512_permutex2var_epi16(a, low, b);
        right = (Vec)_mm512_permutex2var_epi16(a, high, b);
    }
    // VALUES vectors of float as one of lanes.
    static inline Vec join(const Vec (&parts)[VALUES]) {
        Vec both = (Vec)_mm512_cvtne2ps_pbh((__m512)parts[1], (__m512)parts[0]);
        const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                               21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
        return (Vec)_mm512_permutexvar_epi16(order, (__m512i)both);
    }
    static inline void split(const BFloat16* p, Vec (&parts)[VALUES]) {
        const VecU both = (VecU)load(p);
        parts[0] = (Vec)(both << 16);
        parts[1] = (Vec)(both & 0xFFFF0000);
    }
    static inline void unite(const Vec (&parts)[VALUES], BFloat16* p) { store(p, join(parts)); }
};

template <>
struct FactorOf<BFloat16> {
    typedef BFloat16 Type;
};
#endif

// erf(x) = x P(x^2) / Q(x^2) within 2e-8 before rounding, fitted on |x| <= 3.92; beyond it erf is 1 in float.
static inline Vec error_function(Vec x) {
    const Vec limit = splat(3.92f);
    Vec bounded = larger(smaller(x, limit), -limit);
    Vec t = bounded * bounded;
    Vec p = t * 2.0347265e-06f + 0.00028747884f;
    p = p * t + 0.0038683293f;
    p = p * t + 0.053060486f;
    p = p * t + 0.192764192f;
    p = p * t + 1.12837902f;
    Vec q = t * 3.8070524e-05f + 0.0011881144f;
    q = q * t + 0.0151723004f;
    q = q * t + 0.115084663f;
    q = q * t + 0.504164484f;
    q = q * t + 1.0f;
    return bounded * p / q;
}

static inline Vec gelu(Vec x) { return 0.5f * x * (1.0f + error_function(x * 0.70710678f)); }

// exp(x) for x <= 0: 2^n times a polynomial on |r| <= ln(2) / 2. Below -87, where float ends, it is exp(-87).
static inline Vec exponential(Vec x) {
    Vec bounded = larger(x, splat(-87.0f));
    const float shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    Vec n = (bounded * 1.44269504f + shift) - shift;
    Vec r = bounded - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    Vec p = r * (1.0f / 5040) + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    VecI exponent = __builtin_convertvector(n, VecI) + 127;
    return p * (Vec)(exponent << 23);
}
