// The operations of an encoder layer around its linear maps, for CPUs: each reads and writes a token once.
//
// Compiled where it runs, for the vectors that this processor has; adakron/kernels/native.py does that and calls what
// is at the end of this file. Values are float or bfloat16 in memory and float in registers. Every token is computed
// from its own values alone and in one order, so it does not depend on what else is in the batch, nor on the threads.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__AVX512F__)
constexpr int VL = 16;
#elif defined(__AVX__)
constexpr int VL = 8;
#else
constexpr int VL = 4;
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
    VecU bits = (VecU)v;
    VecH h = __builtin_convertvector((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16, VecH);
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

static inline float sum(Vec v) {
    float total = 0;
    for (int i = 0; i < VL; i++) total += v[i];
    return total;
}

static inline float largest(Vec v) {
    float most = v[0];
    for (int i = 1; i < VL; i++) most = v[i] > most ? v[i] : most;
    return most;
}

static inline Vec choose(VecI mask, Vec yes, Vec no) { return (Vec)((mask & (VecI)yes) | (~mask & (VecI)no)); }

// erf(x) = x P(x^2) / Q(x^2) within 2e-8 before rounding, fitted on |x| <= 3.92; beyond it erf is 1 in float.
static inline Vec error_function(Vec x) {
    const Vec limit = splat(3.92f);
    Vec bounded = choose(x > limit, limit, choose(x < -limit, -limit, x));
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

// exp(x) for x <= 0: 2^n times a polynomial on |r| <= ln(2) / 2. Below -87 it is exactly 0, which is what masks need.
static inline Vec exponential(Vec x) {
    const Vec smallest = splat(-87.0f);
    VecI vanishes = x < smallest;
    Vec bounded = choose(vanishes, smallest, x);
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
    return choose(vanishes, Vec{}, p * (Vec)(exponent << 23));
}

// Dot products of N rows of weights with one vector; `width` need not be a multiple of VL.
template <int N, typename W>
static inline void dots(const W* weights, int64_t stride, const float* x, int width, float* out) {
    Vec total[N] = {};
    int d = 0;
    for (; d + VL <= width; d += VL) {
        Vec part = load(x + d);
        for (int n = 0; n < N; n++) total[n] += load(weights + n * stride + d) * part;
    }
    for (int n = 0; n < N; n++) {
        float value = sum(total[n]);
        for (int rest = d; rest < width; rest++) value += load_one(weights + n * stride + rest) * x[rest];
        out[n] = value;
    }
}

template <typename W>
static inline void matrix_vector(const W* weights, int64_t stride, int rows, const float* x, int width, float* out) {
    int row = 0;
    for (; row + 8 <= rows; row += 8) dots<8>(weights + row * stride, stride, x, width, out + row);
    for (; row + 4 <= rows; row += 4) dots<4>(weights + row * stride, stride, x, width, out + row);
    for (; row < rows; row++) dots<1>(weights + row * stride, stride, x, width, out + row);
}

constexpr int TOKENS = 6;

// The same for TOKENS vectors, each `x_stride` after the one before, and N rows of weights at a time.
template <int N, typename W>
static inline void token_dots(const W* weights, int64_t stride, const float* x, int64_t x_stride, int width, float* out,
                              int64_t out_stride) {
    Vec total[N][TOKENS] = {};
    int d = 0;
    for (; d + VL <= width; d += VL) {
        Vec row[N];
        for (int n = 0; n < N; n++) row[n] = load(weights + n * stride + d);
        for (int t = 0; t < TOKENS; t++) {
            Vec part = load(x + t * x_stride + d);
            for (int n = 0; n < N; n++) total[n][t] += row[n] * part;
        }
    }
    for (int n = 0; n < N; n++)
        for (int t = 0; t < TOKENS; t++) {
            float value = sum(total[n][t]);
            for (int rest = d; rest < width; rest++)
                value += load_one(weights + n * stride + rest) * x[t * x_stride + rest];
            out[t * out_stride + n] = value;
        }
}

// y[t][d] += sum over r of z[t][r] rows[r][d], for TOKENS tokens.
template <typename W>
static inline void add_weighted_rows(const W* rows, const float* z, int64_t z_stride, int count, int width, float* y) {
    int d = 0;
    for (; d + 2 * VL <= width; d += 2 * VL) {
        Vec total[TOKENS][2];
        for (int t = 0; t < TOKENS; t++)
            for (int n = 0; n < 2; n++) total[t][n] = load(y + t * width + d + n * VL);
        for (int r = 0; r < count; r++) {
            const W* row = rows + (int64_t)r * width + d;
            Vec left = load(row), right = load(row + VL);
            for (int t = 0; t < TOKENS; t++) {
                total[t][0] += z[t * z_stride + r] * left;
                total[t][1] += z[t * z_stride + r] * right;
            }
        }
        for (int t = 0; t < TOKENS; t++)
            for (int n = 0; n < 2; n++) store(y + t * width + d + n * VL, total[t][n]);
    }
    for (; d < width; d++)
        for (int r = 0; r < count; r++)
            for (int t = 0; t < TOKENS; t++)
                y[t * width + d] += z[t * z_stride + r] * load_one(rows + (int64_t)r * width + d);
}

template <typename T>
static void apply_gelu(T* x, int64_t count, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t block = 0; block < (count + 1023) / 1024; block++) {
        int64_t i = block * 1024, end = i + 1024 < count ? i + 1024 : count;
        for (; i + VL <= end; i += VL) store(x + i, gelu(load(x + i)));
        for (; i < end; i++) store_one(x + i, gelu(splat(load_one(x + i)))[0]);
    }
}

// y = LayerNorm(y) in place, the variance from the centred values; then written as T.
template <typename T>
static inline void store_norm(float* y, const T* weight, const T* bias, float eps, int width, T* out) {
    Vec total = {};
    float mean = 0, square = 0;
    int d = 0;
    for (; d + VL <= width; d += VL) total += load(y + d);
    for (mean = sum(total); d < width; d++) mean += y[d];
    mean /= width;
    total = Vec{};
    for (d = 0; d + VL <= width; d += VL) {
        Vec centred = load(y + d) - mean;
        total += centred * centred;
    }
    for (square = sum(total); d < width; d++) square += (y[d] - mean) * (y[d] - mean);
    float scale = 1.0f / std::sqrt(square / width + eps);
    for (d = 0; d + VL <= width; d += VL) store(out + d, (load(y + d) - mean) * scale * load(weight + d) + load(bias + d));
    for (; d < width; d++) store_one(out + d, (y[d] - mean) * scale * load_one(weight + d) + load_one(bias + d));
}

template <typename T>
struct Site {
    const T *down, *down_bias, *up, *up_bias;
    int64_t down_stride, down_bias_stride, up_stride, up_bias_stride;
    int factor, quotient;
};

// y += B gelu(u (x) v) + c for TOKENS tokens, x their adapter's input.
template <typename T>
static inline void adapt(const Site<T>& site, int64_t slot, const float* x, int width, float* uv, float* z, float* y) {
    const int factor = site.factor, quotient = site.quotient, rows = factor + quotient;
    const int bottleneck = factor * quotient, z_stride = (bottleneck + VL - 1) / VL * VL;
    const T *down = site.down + slot * site.down_stride, *down_bias = site.down_bias + slot * site.down_bias_stride;
    const T *up = site.up + slot * site.up_stride, *up_bias = site.up_bias + slot * site.up_bias_stride;
    int row = 0;
    for (; row + 2 <= rows; row += 2) token_dots<2>(down + row * width, width, x, width, width, uv + row, rows);
    for (; row < rows; row++) token_dots<1>(down + row * width, width, x, width, width, uv + row, rows);
    for (int t = 0; t < TOKENS; t++) {
        float *uv_t = uv + t * rows, *z_t = z + t * z_stride;
        for (int n = 0; n < rows; n++) uv_t[n] += load_one(down_bias + n);
        for (int i = 0; i < factor; i++)
            for (int j = 0; j < quotient; j++) z_t[i * quotient + j] = uv_t[i] * uv_t[factor + j];
        for (int r = 0; r < z_stride; r += VL) store(z_t + r, gelu(load(z_t + r)));
        for (int d = 0; d < width; d++) y[t * width + d] += load_one(up_bias + d);
    }
    add_weighted_rows(up, z, z_stride, bottleneck, width, y);
}

template <typename T>
static void adapt_add_norm(const T* x, const T* residual, T* out, int width, const int32_t* tiles, int n_tiles,
                           const Site<T>& site, const T* weight, const T* bias, float eps, int threads) {
    const int rows = site.factor + site.quotient, bottleneck = site.factor * site.quotient;
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> own(TOKENS * width), y(TOKENS * width), uv(TOKENS * rows), z(TOKENS * (bottleneck + VL));
#pragma omp for schedule(dynamic, 1)
        for (int tile = 0; tile < n_tiles; tile++) {
            const int64_t slot = tiles[3 * tile], end = tiles[3 * tile + 2];
            for (int64_t token = tiles[3 * tile + 1]; token < end; token += TOKENS) {
                // A last block of fewer tokens computes former ones again: every token takes the same path.
                const int count = (int)(end - token < TOKENS ? end - token : TOKENS);
                for (int t = 0; t < count; t++) {
                    const T *x_t = x + (token + t) * width, *residual_t = residual + (token + t) * width;
                    for (int d = 0; d < width; d++) {
                        own[t * width + d] = load_one(x_t + d);
                        y[t * width + d] = own[t * width + d] + load_one(residual_t + d);
                    }
                }
                if (slot != 0) adapt(site, slot, own.data(), width, uv.data(), z.data(), y.data());
                for (int t = 0; t < count; t++)
                    store_norm(y.data() + t * width, weight, bias, eps, width, out + (token + t) * width);
            }
        }
    }
}

constexpr int QUERIES = 6;

// Scores of QUERIES queries against all keys, 2 VL keys at a time: keys_t is [head_dim, padded length].
static inline void score(const float* queries, const float* keys_t, int head_dim, int padded, float* scores) {
    for (int j = 0; j < padded; j += 2 * VL) {
        Vec total[QUERIES][2] = {};
        for (int d = 0; d < head_dim; d++) {
            Vec left = load(keys_t + d * padded + j), right = load(keys_t + d * padded + j + VL);
            for (int n = 0; n < QUERIES; n++) {
                total[n][0] += queries[n * head_dim + d] * left;
                total[n][1] += queries[n * head_dim + d] * right;
            }
        }
        for (int n = 0; n < QUERIES; n++) {
            store(scores + n * padded + j, total[n][0]);
            store(scores + n * padded + j + VL, total[n][1]);
        }
    }
}

// exp(score - largest score), 0 beyond `length`. Returns what each is to be multiplied by to be a probability.
static inline float softmax(float* scores, int length, int padded) {
    for (int j = length; j < padded; j++) scores[j] = -INFINITY;
    Vec most = load(scores);
    for (int j = VL; j < padded; j += VL) {
        Vec part = load(scores + j);
        most = choose(part > most, part, most);
    }
    const float peak = largest(most);
    Vec total = {};
    for (int j = 0; j < padded; j += VL) {
        Vec part = exponential(load(scores + j) - peak);
        store(scores + j, part);
        total += part;
    }
    return 1.0f / sum(total);
}

// out[n] = sum over keys of weight times value, QUERIES queries and two vectors of the head's width at a time.
static inline void mix(const float* weights, const float* values, int length, int padded, int head_width,
                       float* out) {
    for (int d = 0; d < head_width; d += 2 * VL) {
        Vec total[QUERIES][2] = {};
        for (int j = 0; j < length; j++) {
            Vec left = load(values + j * head_width + d), right = load(values + j * head_width + d + VL);
            for (int n = 0; n < QUERIES; n++) {
                total[n][0] += weights[n * padded + j] * left;
                total[n][1] += weights[n * padded + j] * right;
            }
        }
        for (int n = 0; n < QUERIES; n++) {
            store(out + n * head_width + d, total[n][0]);
            store(out + n * head_width + d + VL, total[n][1]);
        }
    }
}

constexpr int64_t SCRATCH_FLOATS = 32768;  // 128 KiB: keys and values of as many heads of a row as stay in the L2 cache

// Keys and values of some heads of one row as float: keys_t [heads, head_dim, padded], values [heads, length, head_width].
template <typename T>
static inline void gather_keys(const T* keys, int64_t stride, int length, int padded, int columns, float* keys_t) {
    for (int j = 0; j < padded; j += VL) {
        const int count = length - j < VL ? length - j : VL;
        for (int d = 0; d < columns; d++) {
            Vec column = {};
            for (int t = 0; t < count; t++) column[t] = load_one(keys + (j + t) * stride + d);
            store(keys_t + (int64_t)d * padded + j, column);
        }
    }
}

template <typename T>
static inline void gather_values(const T* values, int64_t stride, int length, int heads, int head_dim, int head_width,
                                 float* out) {
    for (int j = 0; j < length; j++)
        for (int head = 0; head < heads; head++) {
            float* target = out + ((int64_t)head * length + j) * head_width;
            for (int d = 0; d < head_dim; d++) target[d] = load_one(values + j * stride + head * head_dim + d);
        }
}

// All queries of one head: base points at the first query, target at its place in the output.
template <typename T>
static inline void attend_head(const T* base, int64_t stride, T* target, int64_t out_stride, const float* keys_t,
                               const float* values, int length, int padded, int head_dim, int head_width, float scale,
                               float* queries, float* scores, float* context) {
    for (int i = 0; i < length; i += QUERIES) {
        const int count = length - i < QUERIES ? length - i : QUERIES;
        // A last block of fewer queries computes former ones again: every query takes the same path.
        for (int n = 0; n < count; n++)
            for (int d = 0; d < head_dim; d++)
                queries[n * head_dim + d] = load_one(base + (i + n) * stride + d) * scale;
        score(queries, keys_t, head_dim, padded, scores);
        float share[QUERIES];
        for (int n = 0; n < count; n++) share[n] = softmax(scores + n * padded, length, padded);
        mix(scores, values, length, padded, head_width, context);
        for (int n = 0; n < count; n++)
            for (int d = 0; d < head_dim; d++)
                store_one(target + (i + n) * out_stride + d, context[n * head_width + d] * share[n]);
    }
}

template <typename T>
static void attend(const T* qkv, T* out, const int64_t* starts, const int64_t* lengths, int n_rows, int n_heads,
                   int head_dim, int threads) {
    const int64_t width = (int64_t)n_heads * head_dim, stride = 3 * width;
    const int head_width = (head_dim + 2 * VL - 1) / (2 * VL) * (2 * VL);
    const float scale = 1.0f / std::sqrt((float)head_dim);
    // Heads are taken together where they fit, for the sake of memory; not so many that a thread has nothing to do.
    const int shared = ((int64_t)n_rows * n_heads + threads - 1) / threads < n_heads
                           ? (int)(((int64_t)n_rows * n_heads + threads - 1) / threads)
                           : n_heads;
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> keys_t, values, scores, queries(QUERIES * head_dim), context(QUERIES * head_width);
#pragma omp for schedule(dynamic, 1) collapse(2)
        for (int row = 0; row < n_rows; row++) {
            for (int part = 0; part < n_heads; part++) {
                const int length = (int)lengths[row];
                const int padded = (length + 2 * VL - 1) / (2 * VL) * (2 * VL);
                const int64_t fit = SCRATCH_FLOATS / ((int64_t)head_dim * padded + (int64_t)head_width * length);
                const int together = fit < 1 ? 1 : fit < shared ? (int)fit : shared;
                const int first = part * together;
                if (first >= n_heads) continue;
                const int heads = n_heads - first < together ? n_heads - first : together;
                const T* base = qkv + starts[row] * stride + (int64_t)first * head_dim;
                T* target = out + starts[row] * width + (int64_t)first * head_dim;
                keys_t.resize((size_t)heads * head_dim * padded);
                values.assign((size_t)heads * length * head_width, 0);
                scores.resize((size_t)QUERIES * padded);
                gather_keys(base + width, stride, length, padded, heads * head_dim, keys_t.data());
                gather_values(base + 2 * width, stride, length, heads, head_dim, head_width, values.data());
                for (int head = 0; head < heads; head++)
                    attend_head(base + head * head_dim, stride, target + head * head_dim, width,
                                keys_t.data() + (size_t)head * head_dim * padded,
                                values.data() + (size_t)head * length * head_width, length, padded, head_dim,
                                head_width, scale, queries.data(), scores.data(), context.data());
            }
        }
    }
}

// out[row] = mean of the row's tokens, as float.
template <typename T>
static void row_means(const T* x, const int64_t* starts, const int64_t* lengths, int n_rows, int width, float* out,
                      int threads) {
#pragma omp parallel for num_threads(threads) schedule(dynamic, 4)
    for (int row = 0; row < n_rows; row++) {
        float* target = out + (int64_t)row * width;
        for (int d = 0; d < width; d++) target[d] = 0;
        for (int64_t token = starts[row]; token < starts[row] + lengths[row]; token++)
            for (int d = 0; d < width; d++) target[d] += load_one(x + token * width + d);
        for (int d = 0; d < width; d++) target[d] /= (float)lengths[row];
    }
}

struct Product {
    const void *weight, *bias;
    int64_t row, width, begin;
};

// out[begin : begin + width] = weight x[row] + bias, for each product; widths differ from one to the next.
template <typename W>
static void grouped_products(const float* x, int in_width, const Product* products, int count, float* out,
                             int threads) {
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int n = 0; n < count; n++) {
        const Product& product = products[n];
        float* target = out + product.begin;
        matrix_vector((const W*)product.weight, in_width, (int)product.width, x + product.row * in_width, in_width,
                      target);
        for (int64_t i = 0; i < product.width; i++) target[i] += load_one((const W*)product.bias + i);
    }
}

#define EXPORT(NAME, T)                                                                                                \
    void gelu_##NAME(T* x, int64_t count, int threads) { apply_gelu(x, count, threads); }                              \
    void attend_##NAME(const T* qkv, T* out, const int64_t* starts, const int64_t* lengths, int n_rows, int n_heads,   \
                       int head_dim, int threads) {                                                                    \
        attend(qkv, out, starts, lengths, n_rows, n_heads, head_dim, threads);                                         \
    }                                                                                                                  \
    void adapt_add_norm_##NAME(const T* x, const T* residual, T* out, int width, const int32_t* tiles, int n_tiles,    \
                               const Site<T>* site, const T* weight, const T* bias, float eps, int threads) {          \
        adapt_add_norm(x, residual, out, width, tiles, n_tiles, *site, weight, bias, eps, threads);                    \
    }                                                                                                                  \
    void row_means_##NAME(const T* x, const int64_t* starts, const int64_t* lengths, int n_rows, int width, float* out,  \
                          int threads) {                                                                               \
        row_means(x, starts, lengths, n_rows, width, out, threads);                                                    \
    }                                                                                                                  \
    void grouped_products_##NAME(const float* x, int in_width, const Product* products, int count, float* out,         \
                                 int threads) {                                                                        \
        grouped_products<T>(x, in_width, products, count, out, threads);                                               \
    }

extern "C" {
EXPORT(float32, float)
EXPORT(bfloat16, BFloat16)
}
