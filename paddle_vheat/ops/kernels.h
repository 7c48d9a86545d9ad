/* What native.c and products.c do to a row, and what their loops are made of. */
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int64_t n_t;
#define INLINE static inline __attribute__((always_inline))
#define PRAGMA(text) _Pragma(#text)
#define SIMD PRAGMA(omp simd)
#define SUM(...) PRAGMA(omp simd reduction(+ : __VA_ARGS__))

/* Whole cache lines: the order in which MKL adds may depend on where in a line its arrays begin. */
INLINE n_t whole_lines(n_t floats) { return (floats + 15) / 16 * 16; }

static __attribute__((unused)) float *allocate(n_t floats) {
    float *space = aligned_alloc(64, (size_t)whole_lines(floats) * sizeof(float));
    if (!space) {
        fprintf(stderr, "paddle_vheat: out of memory\n");
        abort();
    }
    return space;
}

/* As many zeros. */
static __attribute__((unused)) float *allocate_zeros(n_t floats) {
    return memset(allocate(floats), 0, (size_t)floats * sizeof(float));
}

/* e^x to 1 ulp (Cephes' expf); below -87 that of -87, above 88 that of 88. */
INLINE float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    float n = rintf(x * 1.44269504f);
    float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    union { int32_t i; float f; } power = {((int32_t)n + 127) << 23};
    return p * power.f;
}

INLINE float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

/* The normal distribution function: 1/2 + x p(x^2) / q(x^2), fitted to an absolute error of 2e-8. Below -5.5, where it
 * is less than that, 0. */
INLINE float normal_cdf(float x) {
    float inner = x < -5.5f ? -5.5f : x;
    inner = inner > 5.5f ? 5.5f : inner;
    float s = inner * inner;
    float p = 1.11757360e-10f;
    p = p * s - 2.20823111e-08f;
    p = p * s + 3.24105963e-06f;
    p = p * s + 1.70373940e-04f;
    p = p * s + 4.50916449e-03f;
    p = p * s + 3.59222367e-02f;
    p = p * s + 3.98942143e-01f;
    float q = 6.23264859e-05f;
    q = q * s + 1.83064351e-03f;
    q = q * s + 2.90915035e-02f;
    q = q * s + 2.56708264e-01f;
    q = q * s + 1.0f;
    return x < -5.5f ? 0.0f : 0.5f + inner * (p / q);
}

INLINE void moments(const float *x, n_t C, float epsilon, float *mean, float *scale) {
    float sum = 0.0f, squares = 0.0f;
    SUM(sum) for (n_t c = 0; c < C; c++) sum += x[c];
    float m = sum / (float)C;
    SUM(squares) for (n_t c = 0; c < C; c++) {
        float d = x[c] - m;
        squares += d * d;
    }
    *mean = m;
    *scale = 1.0f / sqrtf(squares / (float)C + epsilon);
}

/* LayerNorm of a row; out may be x. */
INLINE void layer_norm_row(const float *x, const float *weight, const float *bias, float epsilon, n_t C, float *out) {
    float mean, scale;
    moments(x, C, epsilon, &mean, &scale);
    SIMD for (n_t c = 0; c < C; c++) out[c] = (x[c] - mean) * scale * weight[c] + bias[c];
}

/* GELU of x + bias, or of x where bias is NULL; out may be x. */
INLINE void gelu_row(const float *x, const float *bias, n_t C, float *out) {
    SIMD for (n_t c = 0; c < C; c++) {
        float value = x[c] + (bias ? bias[c] : 0.0f);
        out[c] = value * normal_cdf(value);
    }
}

/* LayerNorm(heat) * SiLU(gate); out may be heat. */
INLINE void norm_gate_row(const float *heat, const float *gate, const float *weight, const float *bias, float epsilon,
                          n_t C, float *out) {
    float mean, scale;
    moments(heat, C, epsilon, &mean, &scale);
    SIMD for (n_t c = 0; c < C; c++)
        out[c] = ((heat[c] - mean) * scale * weight[c] + bias[c]) * gate[c] * sigmoid(gate[c]);
}

/* The nine pixels around (row, w) of maps (B * H, W, C); zeros beyond the edges. */
INLINE void neighbours(const float *x, const float *zeros, n_t row, n_t w, n_t H, n_t W, n_t C, const float *at[9]) {
    n_t h = row % H;
    for (n_t i = -1; i <= 1; i++)
        for (n_t j = -1; j <= 1; j++)
            at[3 * (i + 1) + j + 1] = h + i < 0 || h + i >= H || w + j < 0 || w + j >= W
                                          ? zeros
                                          : x + ((row + i) * W + w + j) * C;
}

/* Depthwise 3 x 3 with a margin of 1: one line (W, C) of the result; weight (9, C). */
INLINE void depthwise_line(const float *x, const float *zeros, const float *weight, const float *bias, n_t row, n_t H,
                           n_t W, n_t C, float *restrict out) {
    for (n_t w = 0; w < W; w++) {
        const float *a[9];
        neighbours(x, zeros, row, w, H, W, C, a);
        SIMD for (n_t c = 0; c < C; c++) {
            float sum = bias[c];
            for (int k = 0; k < 9; k++) sum += weight[k * C + c] * a[k][c];
            out[w * C + c] = sum;
        }
    }
}

/* Neighbourhoods 3 x 3, stride S, margin 1: those of line r of B * ceil(H/S) lines, (ceil(W/S), C * 9). */
INLINE void patches_line(const float *x, const float *zeros, n_t r, n_t H, n_t W, n_t C, n_t S, float *restrict out) {
    n_t lines = (H + S - 1) / S, columns = (W + S - 1) / S, row = r / lines * H + r % lines * S;
    for (n_t w = 0; w < columns; w++) {
        const float *a[9];
        neighbours(x, zeros, row, S * w, H, W, C, a);
        for (n_t c = 0; c < C; c++)
            for (int k = 0; k < 9; k++) out[(w * C + c) * 9 + k] = a[k][c];
    }
}
