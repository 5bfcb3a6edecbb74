// The operations of an encoder layer around its linear maps, for CPUs: each reads and writes a token once.
//
// Compiled where it runs, for the vectors that this processor has; adakron/kernels/native.py does that and calls what
// is at the end of this file. Values are float or bfloat16 in memory and float in registers. Every token is computed
// from its own values alone and in one order, so it does not depend on what else is in the batch, nor on the threads.

#include <cmath>
#include <vector>

#include "vectors.h"

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

constexpr int TOKENS = VL == 16 ? 8 : 6;  // as many at a time as leave registers for their weights

// out[n][t] = dot product of N rows of weights with TOKENS vectors, each `width` after the one before.
template <int N, typename Factor, typename W>
static inline void token_dots(const W* weights, const Factor* x, int width, float* out) {
    typedef Lanes<Factor> L;
    Vec total[N * TOKENS] = {};
    int d = 0;
    for (; d + VL * L::VALUES <= width; d += VL * L::VALUES) {
        Vec row[N];
        for (int n = 0; n < N; n++) row[n] = L::load(weights + (int64_t)n * width + d);
        for (int t = 0; t < TOKENS; t++) {
            Vec part = L::load(x + t * width + d);
            for (int n = 0; n < N; n++) total[n * TOKENS + t] = L::add_product(total[n * TOKENS + t], row[n], part);
        }
    }
    store_sums(total, out);
    for (; d < width; d++)
        for (int n = 0; n < N; n++)
            for (int t = 0; t < TOKENS; t++)
                out[n * TOKENS + t] += load_one(weights + (int64_t)n * width + d) * load_one(x + t * width + d);
}

// y[t][d] += bias[d] + sum over r of z[r][t] rows[r][d], for TOKENS tokens; z as Lanes' factors: VALUES of r, then the
// next token.
template <typename Factor, typename W>
static inline void add_weighted_rows(const W* rows, const W* bias, const Factor* z, int count, int width, float* y) {
    typedef Lanes<Factor> L;
    int d = 0;
    for (; d + 2 * VL <= width; d += 2 * VL) {
        Vec total[TOKENS][2];
        for (int t = 0; t < TOKENS; t++)
            for (int n = 0; n < 2; n++) total[t][n] = load(y + t * width + d + n * VL) + load(bias + d + n * VL);
        for (int r = 0; r < count; r += L::VALUES) {
            const W* row = rows + (int64_t)r * width + d;
            Vec left, right;
            L::columns(row, r + 1 < count ? row + width : nullptr, left, right);
            for (int t = 0; t < TOKENS; t++) {
                Vec factor = L::splat(z + r * TOKENS + t * L::VALUES);
                total[t][0] = L::add_product(total[t][0], factor, left);
                total[t][1] = L::add_product(total[t][1], factor, right);
            }
        }
        for (int t = 0; t < TOKENS; t++)
            for (int n = 0; n < 2; n++) store(y + t * width + d + n * VL, total[t][n]);
    }
    for (; d < width; d++) {
        for (int t = 0; t < TOKENS; t++) y[t * width + d] += load_one(bias + d);
        for (int r = 0; r < count; r++)
            for (int t = 0; t < TOKENS; t++)
                y[t * width + d] += load_one(z + (r - r % L::VALUES) * TOKENS + t * L::VALUES + r % L::VALUES) *
                                    load_one(rows + (int64_t)r * width + d);
    }
}

// z [count][TOKENS] as factors of add_weighted_rows.
static inline const float* as_factors(const float* z, int, float*) { return z; }

static inline const BFloat16* as_factors(const float* z, int count, BFloat16* factors) {
    for (int r = 0; r < count; r += 2)
        for (int t = 0; t < TOKENS; t++) {
            store_one(factors + r * TOKENS + 2 * t, z[r * TOKENS + t]);
            store_one(factors + r * TOKENS + 2 * t + 1, r + 1 < count ? z[(r + 1) * TOKENS + t] : 0.0f);
        }
    return factors;
}

template <typename T>
static void apply_gelu(T* x, int64_t count, int threads) {
    typedef Lanes<typename FactorOf<T>::Type> L;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t block = 0; block < (count + 1023) / 1024; block++) {
        int64_t i = block * 1024, end = i + 1024 < count ? i + 1024 : count;
        for (; i + VL * L::VALUES <= end; i += VL * L::VALUES) {
            Vec parts[L::VALUES];
            L::split(x + i, parts);
            for (int n = 0; n < L::VALUES; n++) parts[n] = gelu(parts[n]);
            L::unite(parts, x + i);
        }
        for (; i < end; i++) store_one(x + i, gelu(splat(load_one(x + i)))[0]);
    }
}

// LayerNorm(y), the variance from the centred values, written as T. Four sums at once: each waits for itself alone.
template <typename T>
static inline void store_norm(const float* y, const T* weight, const T* bias, float eps, int width, T* out) {
    constexpr int SUMS = 4;
    Vec total[SUMS] = {};
    float mean = 0, square = 0;
    int d = 0;
    for (; d + SUMS * VL <= width; d += SUMS * VL)
        for (int n = 0; n < SUMS; n++) total[n] += load(y + d + n * VL);
    for (mean = sum((total[0] + total[1]) + (total[2] + total[3])); d < width; d++) mean += y[d];
    mean /= width;
    for (int n = 0; n < SUMS; n++) total[n] = Vec{};
    for (d = 0; d + SUMS * VL <= width; d += SUMS * VL)
        for (int n = 0; n < SUMS; n++) {
            Vec centred = load(y + d + n * VL) - mean;
            total[n] += centred * centred;
        }
    for (square = sum((total[0] + total[1]) + (total[2] + total[3])); d < width; d++) square += (y[d] - mean) * (y[d] - mean);
    float scale = 1.0f / std::sqrt(square / width + eps);
    for (d = 0; d + VL <= width; d += VL) store(out + d, (load(y + d) - mean) * scale * load(weight + d) + load(bias + d));
    for (; d < width; d++) store_one(out + d, (y[d] - mean) * scale * load_one(weight + d) + load_one(bias + d));
}

// out[n] = LayerNorm(words[ids[n]] + types[type_ids[n]] + positions[places[n]]); types may be null.
template <typename T>
static void embed(const T* words, const T* types, const T* positions, const int64_t* ids, const int64_t* type_ids,
                  const int64_t* places, const T* weight, const T* bias, float eps, int count, int width, T* out,
                  int threads) {
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> y(width);
#pragma omp for schedule(static)
        for (int n = 0; n < count; n++) {
            const T *word = words + ids[n] * width, *place = positions + places[n] * width;
            const T* type = types ? types + type_ids[n] * width : nullptr;
            int d = 0;
            for (; d + VL <= width; d += VL) {
                Vec part = load(word + d) + load(place + d);
                store(y.data() + d, type ? part + load(type + d) : part);
            }
            for (; d < width; d++) y[d] = load_one(word + d) + load_one(place + d) + (type ? load_one(type + d) : 0);
            store_norm(y.data(), weight, bias, eps, width, out + (int64_t)n * width);
        }
    }
}

template <typename T>
struct Site {
    const T *down, *down_bias, *up, *up_bias;
    int64_t down_stride, down_bias_stride, up_stride, up_bias_stride;
    int factor, quotient;
};

// What one thread needs for a block of TOKENS tokens.
template <typename Factor>
struct Block {
    std::vector<Factor> x, factors;
    std::vector<float> y, uv, z;

    Block(int width, int rows, int bottleneck)
        : x(TOKENS * width),
          factors(TOKENS * (bottleneck + 1)),
          y(TOKENS * width),
          uv(TOKENS * rows),
          z(TOKENS * bottleneck + VL) {}
};

// y += B gelu(u (x) v) + c for the tokens of a block, x their adapter's input. uv and z are [.][TOKENS].
template <typename T, typename Factor>
static inline void adapt(const Site<T>& site, int64_t slot, int width, Block<Factor>& block) {
    const int factor = site.factor, quotient = site.quotient, rows = factor + quotient, bottleneck = factor * quotient;
    const T *down = site.down + slot * site.down_stride, *down_bias = site.down_bias + slot * site.down_bias_stride;
    const T *up = site.up + slot * site.up_stride, *up_bias = site.up_bias + slot * site.up_bias_stride;
    float *uv = block.uv.data(), *z = block.z.data();
    int row = 0;
    for (; row + 2 <= rows; row += 2)
        token_dots<2>(down + (int64_t)row * width, block.x.data(), width, uv + row * TOKENS);
    for (; row < rows; row++) token_dots<1>(down + (int64_t)row * width, block.x.data(), width, uv + row * TOKENS);
    for (int n = 0; n < rows; n++)
        for (int t = 0; t < TOKENS; t++) uv[n * TOKENS + t] += load_one(down_bias + n);
    for (int i = 0; i < factor; i++)
        for (int j = 0; j < quotient; j++)
            for (int t = 0; t < TOKENS; t++)
                z[(i * quotient + j) * TOKENS + t] = uv[i * TOKENS + t] * uv[(factor + j) * TOKENS + t];
    for (int n = 0; n < bottleneck * TOKENS; n += VL) store(z + n, gelu(load(z + n)));
    add_weighted_rows(up, up_bias, as_factors(z, bottleneck, block.factors.data()), bottleneck, width, block.y.data());
}

// y = x + residual, own = x, for one token.
template <typename T, typename Factor>
static inline void add_residual(const T* x, const T* residual, int width, Factor* own, float* y) {
    int d = 0;
    for (; d + VL <= width; d += VL) {
        Vec part = load(x + d);
        store(own + d, part);
        store(y + d, part + load(residual + d));
    }
    for (; d < width; d++) {
        store_one(own + d, load_one(x + d));
        y[d] = load_one(x + d) + load_one(residual + d);
    }
}

template <typename T>
static inline void store_all(const float* y, int width, T* out) {
    int d = 0;
    for (; d + VL <= width; d += VL) store(out + d, load(y + d));
    for (; d < width; d++) store_one(out + d, y[d]);
}

// Without a weight there is no norm.
template <typename T>
static void adapt_add_norm(const T* x, const T* residual, T* out, int width, const int32_t* tiles, int n_tiles,
                           const Site<T>& site, const T* weight, const T* bias, float eps, int threads) {
    typedef typename FactorOf<T>::Type Factor;
#pragma omp parallel num_threads(threads)
    {
        Block<Factor> block(width, site.factor + site.quotient, site.factor * site.quotient);
#pragma omp for schedule(dynamic, 1)
        for (int tile = 0; tile < n_tiles; tile++) {
            const int64_t slot = tiles[3 * tile], end = tiles[3 * tile + 2];
            for (int64_t token = tiles[3 * tile + 1]; token < end; token += TOKENS) {
                // A last block of fewer tokens computes former ones again: every token takes the same path.
                const int count = (int)(end - token < TOKENS ? end - token : TOKENS);
                for (int t = 0; t < count; t++)
                    add_residual(x + (token + t) * width, residual + (token + t) * width, width,
                                 block.x.data() + t * width, block.y.data() + t * width);
                if (slot != 0) adapt(site, slot, width, block);
                for (int t = 0; t < count; t++) {
                    const float* y = block.y.data() + t * width;
                    T* place = out + (token + t) * width;
                    weight ? store_norm(y, weight, bias, eps, width, place) : store_all(y, width, place);
                }
            }
        }
    }
}

// What one thread needs for some heads of a row. Attention has VL queries at a time, one in each lane: their maxima and
// sums need no step across lanes, and keys no padding.
template <typename Factor>
struct Heads {
    std::vector<Factor> keys, values, queries, weights;
    std::vector<float> scores;
};

static inline float* weights_of(Heads<float>& heads) { return heads.scores.data(); }

static inline BFloat16* weights_of(Heads<BFloat16>& heads) { return heads.weights.data(); }

constexpr int64_t SCRATCH_BYTES = 131072;  // keys and values of as many heads of a row as stay in the L2 cache

// Resizing to less and then to more would write zeros.
template <typename T>
static inline void grow(std::vector<T>& buffer, int64_t count) {
    if ((int64_t)buffer.size() < count) buffer.resize(count);
}

// `count`, up to whole lanes.
template <typename Factor>
static inline int whole(int count) {
    return (count + Lanes<Factor>::VALUES - 1) / Lanes<Factor>::VALUES * Lanes<Factor>::VALUES;
}

static inline void convert(const float* x, int count, float* out) { std::memcpy(out, x, count * sizeof *x); }

static inline void convert(const BFloat16* x, int count, BFloat16* out) { std::memcpy(out, x, count * sizeof *x); }

static inline void convert(const BFloat16* x, int count, float* out) {
    int n = 0;
    for (; n + VL <= count; n += VL) store(out + n, load(x + n));
    for (; n < count; n++) store_one(out + n, load_one(x + n));
}

// At most VL tokens, one in each lane: out [head_dim][VL], zeros beyond `count`.
template <typename Factor, typename T>
static inline void gather_queries(const T* queries, int64_t stride, int count, int head_dim, Factor* out) {
    typedef Lanes<Factor> L;
    int d = 0;
    for (; d + VL * L::VALUES <= head_dim; d += VL * L::VALUES) {
        Vec block[VL] = {};
        for (int t = 0; t < count; t++) block[t] = L::load(queries + t * stride + d);
        transpose(block);
        for (int n = 0; n < VL; n++) L::store(out + (d + n * L::VALUES) * VL, block[n]);
    }
    for (; d < head_dim; d += L::VALUES) {
        Vec column = {};
        for (int t = 0; t < count; t++) column[t] = L::splat(queries + t * stride + d)[0];
        L::store(out + d * VL, column);
    }
}

// Some heads of a row, VALUES tokens in a lane: out [heads][length][head_width].
template <typename Factor, typename T>
static inline void gather_values(const T* values, int64_t stride, int length, int heads, int head_dim, int head_width,
                                 Factor* out) {
    typedef Lanes<Factor> L;
    const int rows = whole<Factor>(length);
    for (int j = 0; j < length; j += L::VALUES)
        for (int head = 0; head < heads; head++) {
            const T *first = values + j * stride + head * head_dim, *second = j + 1 < length ? first + stride : nullptr;
            Factor* target = out + ((int64_t)head * rows + j) * head_width;
            int d = 0;
            for (; d + 2 * VL <= head_dim; d += 2 * VL) {
                Vec left, right;
                L::columns(first + d, second ? second + d : nullptr, left, right);
                L::store(target + d * L::VALUES, left);
                L::store(target + (d + VL) * L::VALUES, right);
            }
            for (; d < head_dim; d++)
                for (int n = 0; n < L::VALUES; n++)
                    store_one(target + d * L::VALUES + n, n == 0 ? load_one(first + d) : second ? load_one(second + d) : 0);
        }
}

// scores[n] = products of N keys with the queries, VL floats each.
template <int N, typename Factor>
static inline void score_keys(const Factor* queries, const Factor* keys, int64_t stride, int head_dim, float* scores) {
    typedef Lanes<Factor> L;
    Vec total[N] = {};
    for (int d = 0; d < head_dim; d += L::VALUES) {
        Vec query = L::load(queries + d * VL);
        for (int n = 0; n < N; n++) total[n] = L::add_product(total[n], query, L::splat(keys + n * stride + d));
    }
    for (int n = 0; n < N; n++) store(scores + n * VL, total[n]);
}

template <typename Factor>
static inline void score(const Factor* queries, const Factor* keys, int64_t stride, int length, int head_dim,
                         float* scores) {
    int j = 0;
    for (; j + 8 <= length; j += 8) score_keys<8>(queries, keys + j * stride, stride, head_dim, scores + j * VL);
    for (; j + 4 <= length; j += 4) score_keys<4>(queries, keys + j * stride, stride, head_dim, scores + j * VL);
    for (; j < length; j++) score_keys<1>(queries, keys + j * stride, stride, head_dim, scores + j * VL);
}

// weights = exp(scale (score - largest score)) in lanes; both may be the same memory. Returns what each query's are to be
// multiplied by to be probabilities.
template <typename Factor>
static inline Vec softmax(const float* scores, float scale, int length, Factor* weights) {
    typedef Lanes<Factor> L;
    Vec most = load(scores), total = {};
    for (int j = 1; j < length; j++) most = larger(most, load(scores + j * VL));
    most *= scale;
    for (int j = 0; j < length; j += L::VALUES) {
        Vec part[L::VALUES] = {};
        for (int n = 0; n < L::VALUES && j + n < length; n++) {
            part[n] = exponential(load(scores + (j + n) * VL) * scale - most);
            total += part[n];
        }
        L::store(weights + j * VL, L::join(part));
    }
    return 1.0f / total;
}

// VL features of every query's context from the d-th: out[n] = sum over keys of weight times value n.
template <typename Factor>
static inline void mix(const Factor* weights, const Factor* values, int length, int head_width, Vec (&out)[VL]) {
    typedef Lanes<Factor> L;
    Vec total[VL] = {};
    for (int j = 0; j < length; j += L::VALUES) {
        Vec weight = L::load(weights + j * VL);
        const Factor* value = values + (int64_t)j * head_width;
        for (int n = 0; n < VL; n++) total[n] = L::add_product(total[n], weight, L::splat(value + n * L::VALUES));
    }
    for (int n = 0; n < VL; n++) out[n] = total[n];
}

// All queries of one head: base points at the first query, target at its place in the output.
template <typename T, typename Factor>
static inline void attend_head(const T* base, int64_t stride, T* target, int64_t out_stride, const Factor* keys,
                               int64_t keys_stride, const Factor* values, int length, int head_dim, int head_width,
                               Heads<Factor>& heads) {
    const float scale = 1.0f / std::sqrt((float)head_dim);
    Factor *queries = heads.queries.data(), *weights = weights_of(heads);
    for (int i = 0; i < length; i += VL) {
        const int count = length - i < VL ? length - i : VL;
        gather_queries(base + i * stride, stride, count, head_dim, queries);
        score(queries, keys, keys_stride, length, head_dim, heads.scores.data());
        const Vec share = softmax(heads.scores.data(), scale, length, weights);
        for (int d = 0; d < head_dim; d += VL) {
            Vec context[VL];
            mix(weights, values + d * Lanes<Factor>::VALUES, length, head_width, context);
            for (int n = 0; n < VL; n++) context[n] *= share;
            transpose(context);
            T* place = target + i * out_stride + d;
            if (d + VL <= head_dim)
                for (int t = 0; t < count; t++) store(place + t * out_stride, context[t]);
            else
                for (int t = 0; t < count; t++)
                    for (int n = 0; n < head_dim - d; n++) store_one(place + t * out_stride + n, context[t][n]);
        }
    }
}

template <typename Factor, typename T>
static void attend_in(const T* qkv, T* out, const int64_t* starts, const int64_t* lengths, int n_rows, int n_heads,
                      int head_dim, int threads) {
    const int64_t width = (int64_t)n_heads * head_dim, stride = 3 * width;
    const int head_width = (head_dim + VL - 1) / VL * VL;
    // Heads are taken together where they fit, for the sake of memory; not so many that a thread has nothing to do.
    const int shared = ((int64_t)n_rows * n_heads + threads - 1) / threads < n_heads
                           ? (int)(((int64_t)n_rows * n_heads + threads - 1) / threads)
                           : n_heads;
#pragma omp parallel num_threads(threads)
    {
        Heads<Factor> own;
        own.queries.resize((size_t)head_dim * VL);
#pragma omp for schedule(dynamic, 1) collapse(2)
        for (int row = 0; row < n_rows; row++) {
            for (int part = 0; part < n_heads; part++) {
                const int length = (int)lengths[row];
                const int64_t of_keys = (int64_t)head_dim * length, of_values = (int64_t)head_width * whole<Factor>(length);
                const int64_t fit = SCRATCH_BYTES / (int64_t)sizeof(Factor) / (of_keys + of_values);
                const int together = fit < 1 ? 1 : fit < shared ? (int)fit : shared;
                const int first = part * together;
                if (first >= n_heads) continue;
                const int heads = n_heads - first < together ? n_heads - first : together;
                const int columns = heads * head_dim;
                const T* base = qkv + starts[row] * stride + (int64_t)first * head_dim;
                T* target = out + starts[row] * width + (int64_t)first * head_dim;
                grow(own.keys, heads * of_keys);
                grow(own.values, heads * of_values);
                grow(own.scores, (int64_t)length * VL);
                grow(own.weights, (int64_t)whole<Factor>(length) * VL);
                for (int j = 0; j < length; j++)
                    convert(base + width + j * stride, columns, own.keys.data() + (int64_t)j * columns);
                gather_values(base + 2 * width, stride, length, heads, head_dim, head_width, own.values.data());
                for (int head = 0; head < heads; head++)
                    attend_head(base + head * head_dim, stride, target + head * head_dim, width,
                                own.keys.data() + head * head_dim, columns, own.values.data() + head * of_values,
                                length, head_dim, head_width, own);
            }
        }
    }
}

// Pairs of bfloat16 lie within one head only where its width is even.
template <typename T>
static void attend(const T* qkv, T* out, const int64_t* starts, const int64_t* lengths, int n_rows, int n_heads,
                   int head_dim, int threads) {
    typedef typename FactorOf<T>::Type Factor;
    if (head_dim % Lanes<Factor>::VALUES == 0)
        attend_in<Factor>(qkv, out, starts, lengths, n_rows, n_heads, head_dim, threads);
    else
        attend_in<float>(qkv, out, starts, lengths, n_rows, n_heads, head_dim, threads);
}

// out[row] = mean of the row's tokens, as float.
template <typename T>
static void row_means(const T* x, const int64_t* starts, const int64_t* lengths, int n_rows, int width, float* out,
                      int threads) {
#pragma omp parallel for num_threads(threads) schedule(dynamic, 4)
    for (int row = 0; row < n_rows; row++) {
        const T* first = x + starts[row] * width;
        const int64_t length = lengths[row];
        float* target = out + (int64_t)row * width;
        int d = 0;
        for (; d + 4 * VL <= width; d += 4 * VL) {
            Vec total[4] = {};
            for (int64_t t = 0; t < length; t++)
                for (int n = 0; n < 4; n++) total[n] += load(first + t * width + d + n * VL);
            for (int n = 0; n < 4; n++) store(target + d + n * VL, total[n] / (float)length);
        }
        for (; d < width; d++) {
            float total = 0;
            for (int64_t t = 0; t < length; t++) total += load_one(first + t * width + d);
            target[d] = total / (float)length;
        }
    }
}

struct Product {  // a row of the table that native.py makes
    const void *weight, *bias;
    int64_t row, width, begin;
};
static_assert(sizeof(Product) == 5 * sizeof(int64_t), "addresses take 64 bits");

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
    void embed_##NAME(const T* words, const T* types, const T* positions, const int64_t* ids, const int64_t* type_ids, \
                      const int64_t* places, const T* weight, const T* bias, float eps, int count, int width, T* out,  \
                      int threads) {                                                                                   \
        embed(words, types, positions, ids, type_ids, places, weight, bias, eps, count, width, out, threads);          \
    }                                                                                                                  \
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
