/* What Paddle's CPU kernels do in one thread and in several passes over memory, in one pass by all threads.
 *
 * Compiled on first use and called by native.py. Arrays are float32, contiguous, channels last, and allocated by the
 * caller; `rows` is the product of all axes but the last, and C the last. Pieces of work go to threads in a fixed
 * order, so that for a number of threads every result is reproducible bit by bit. No -ffast-math: NaN must survive.
 * What is done to a row is in kernels.h.
 */
#include "kernels.h"

#define TILE 64 /* rows whose sums are added up before they go to the total: less rounding than one long sum */

/* Sums over rows. Each thread has n totals, and n more for the rows of a tile. */
static float *begin_sums(n_t n) { return allocate_zeros(2 * n * omp_get_max_threads()); }

INLINE float *own_sums(float *sums, n_t n) { return sums + 2 * n * omp_get_thread_num(); }

INLINE void end_tile(float *own, n_t n) {
    SIMD for (n_t i = 0; i < n; i++) {
        own[i] += own[n + i];
        own[n + i] = 0.0f;
    }
}

/* The sums over all threads; where those of the first were. */
static const float *total(float *sums, n_t n) {
    for (int t = 1; t < omp_get_max_threads(); t++)
        for (n_t i = 0; i < n; i++) sums[i] += sums[2 * n * t + i];
    return sums;
}

INLINE void copy(const float *from, n_t n, float *to) { memcpy(to, from, (size_t)n * sizeof(float)); }

#define FOR_TILES(rows) \
    _Pragma("omp for schedule(static)") for (n_t tile = 0; tile < ((rows) + TILE - 1) / TILE; tile++)
#define FOR_ROWS(rows) for (n_t row = tile * TILE; row < (rows) && row < (tile + 1) * TILE; row++)

/* LayerNorm over C; unless x is NULL, x + factors * that, the factors being one for each `sample` rows. */
void layer_norm(const float *restrict branch, const float *restrict weight, const float *restrict bias, float epsilon,
                const float *restrict x, const float *restrict factors, n_t sample, n_t rows, n_t C,
                float *restrict out) {
    _Pragma("omp parallel") FOR_TILES(rows) FOR_ROWS(rows) {
        float *o = out + row * C;
        layer_norm_row(branch + row * C, weight, bias, epsilon, C, o);
        if (!x) continue;
        float factor = factors[row / sample];
        SIMD for (n_t c = 0; c < C; c++) o[c] = x[row * C + c] + factor * o[c];
    }
}

/* Of its branch, weight and bias; of the branch, `plus` is added unless NULL. */
void layer_norm_gradient(const float *restrict gradient, const float *restrict branch, const float *restrict weight,
                         float epsilon, const float *restrict plus, const float *restrict factors, n_t sample, n_t rows,
                         n_t C, float *restrict of_branch, float *restrict of_weight, float *restrict of_bias) {
    float *sums = begin_sums(2 * C);
    _Pragma("omp parallel") {
        float *all = own_sums(sums, 2 * C), *tile_sums = all + 2 * C;
        FOR_TILES(rows) {
            FOR_ROWS(rows) {
                const float *g = gradient + row * C, *values = branch + row * C;
                float mean, scale, first = 0.0f, second = 0.0f, factor = factors ? factors[row / sample] : 1.0f;
                moments(values, C, epsilon, &mean, &scale);
                SUM(first, second) for (n_t c = 0; c < C; c++) {
                    float normal = (values[c] - mean) * scale, own = g[c] * factor, scaled = own * weight[c];
                    first += scaled;
                    second += scaled * normal;
                    tile_sums[c] += own * normal;
                    tile_sums[C + c] += own;
                }
                first /= (float)C;
                second /= (float)C;
                SIMD for (n_t c = 0; c < C; c++) {
                    float of_value = (g[c] * factor * weight[c] - first - (values[c] - mean) * scale * second) * scale;
                    of_branch[row * C + c] = of_value + (plus ? plus[row * C + c] : 0.0f);
                }
            }
            end_tile(all, 2 * C);
        }
    }
    copy(total(sums, 2 * C), C, of_weight);
    copy(sums + C, C, of_bias);
    free(sums);
}

void gelu(const float *restrict x, n_t rows, n_t C, float *restrict out) {
    _Pragma("omp parallel") FOR_TILES(rows) FOR_ROWS(rows) {
        gelu_row(x + row * C, NULL, C, out + row * C);
    }
}

/* Of GELU of x + bias, or of x where bias is NULL. out: its result once more, and of_bias, unless NULL; of_x may be the
 * memory of gradient. */
void gelu_gradient(const float *gradient, const float *restrict x, const float *restrict bias, n_t rows, n_t C,
                   float *restrict out, float *of_x, float *restrict of_bias) {
    float *sums = begin_sums(C);
    _Pragma("omp parallel") {
        float *own = own_sums(sums, C), *tile_sums = own + C;
        FOR_TILES(rows) {
            FOR_ROWS(rows) {
                SIMD for (n_t c = 0; c < C; c++) {
                    float value = x[row * C + c] + (bias ? bias[c] : 0.0f), cdf = normal_cdf(value);
                    float density = exponential(-0.5f * value * value) * 0.39894228f;
                    float g = gradient[row * C + c] * (cdf + value * density);
                    if (out) out[row * C + c] = value * cdf;
                    of_x[row * C + c] = g;
                    tile_sums[c] += g;
                }
            }
            end_tile(own, C);
        }
    }
    if (of_bias) copy(total(sums, C), C, of_bias);
    free(sums);
}

/* Of LayerNorm(heat) * SiLU(gate). out: its result once more; of_heat may be the memory of gradient; of_sums: (2, C),
 * sums over the rows of of_heat and of of_gate. */
void norm_gate_gradient(const float *gradient, const float *restrict heat, const float *restrict gate,
                        const float *restrict weight, const float *restrict bias, float epsilon, n_t rows, n_t C,
                        float *restrict out, float *of_heat, float *restrict of_gate, float *restrict of_sums,
                        float *restrict of_weight, float *restrict of_bias) {
    float *sums = begin_sums(4 * C);
    _Pragma("omp parallel") {
        float *own = own_sums(sums, 4 * C), *tile_sums = own + 4 * C;
        FOR_TILES(rows) {
            FOR_ROWS(rows) {
                const float *g = gradient + row * C, *h = heat + row * C;
                float mean, scale, first = 0.0f, second = 0.0f;
                moments(h, C, epsilon, &mean, &scale);
                SUM(first, second) for (n_t c = 0; c < C; c++) {
                    float z = gate[row * C + c], s = sigmoid(z);
                    float normal = (h[c] - mean) * scale, affine = normal * weight[c] + bias[c];
                    float of_affine = g[c] * z * s, scaled = of_affine * weight[c];
                    float of_z = g[c] * affine * s * (1.0f + z * (1.0f - s));
                    out[row * C + c] = affine * z * s;
                    of_gate[row * C + c] = of_z;
                    of_heat[row * C + c] = scaled;
                    first += scaled;
                    second += scaled * normal;
                    tile_sums[C + c] += of_z;
                    tile_sums[2 * C + c] += of_affine * normal;
                    tile_sums[3 * C + c] += of_affine;
                }
                first /= (float)C;
                second /= (float)C;
                SIMD for (n_t c = 0; c < C; c++) {
                    float normal = (h[c] - mean) * scale;
                    float of_h = (of_heat[row * C + c] - first - normal * second) * scale;
                    of_heat[row * C + c] = of_h;
                    tile_sums[c] += of_h;
                }
            }
            end_tile(own, 4 * C);
        }
    }
    const float *all = total(sums, 4 * C);
    copy(all, 2 * C, of_sums);
    copy(all + 2 * C, C, of_weight);
    copy(all + 3 * C, C, of_bias);
    free(sums);
}

/* w_n^2 + w_m^2 of mode `row` of a map H x W, with w_n = pi n / H. */
INLINE float squared_frequency(n_t row, n_t H, n_t W) {
    const float pi = 3.14159265f;
    float down = (float)(row / W) * (pi / (float)H), across = (float)(row % W) * (pi / (float)W);
    return down * down + across * across;
}

/* exp(-k w^2) of every mode, (H, W, C), where k is x, or 0 where that is less. */
void decay(const float *restrict x, n_t H, n_t W, n_t C, float *restrict out) {
    _Pragma("omp parallel for schedule(static)") for (n_t row = 0; row < H * W; row++) {
        float square = squared_frequency(row, H, W);
        SIMD for (n_t i = row * C; i < (row + 1) * C; i++) out[i] = exponential(x[i] < 0.0f ? 0.0f : -square * x[i]);
    }
}

void decay_gradient(const float *restrict gradient, const float *restrict x, n_t H, n_t W, n_t C,
                    float *restrict of_x) {
    _Pragma("omp parallel for schedule(static)") for (n_t row = 0; row < H * W; row++) {
        float square = squared_frequency(row, H, W);
        SIMD for (n_t i = row * C; i < (row + 1) * C; i++)
            of_x[i] = x[i] <= 0.0f ? 0.0f : -square * exponential(-square * x[i]) * gradient[i];
    }
}

/* Of modes (B, n) times decay (n,). */
void damp_gradient(const float *restrict gradient, const float *restrict modes, const float *restrict decay, n_t B,
                   n_t n, float *restrict of_modes, float *restrict of_decay) {
    _Pragma("omp parallel for schedule(static)") for (n_t start = 0; start < n; start += 4096) {
        n_t end = start + 4096 < n ? start + 4096 : n;
        for (n_t b = 0; b < B; b++) {
            SIMD for (n_t i = start; i < end; i++) {
                float g = gradient[b * n + i];
                of_modes[b * n + i] = g * decay[i];
                of_decay[i] = g * modes[b * n + i] + (b ? of_decay[i] : 0.0f);
            }
        }
    }
}

/* scale x, (B, n) with scale (B,). */
void scale_samples(const float *restrict x, const float *restrict scale, n_t B, n_t n, float *restrict out) {
    n_t pieces = (n + 4095) / 4096;
    _Pragma("omp parallel for schedule(static)") for (n_t piece = 0; piece < B * pieces; piece++) {
        n_t b = piece / pieces, start = piece % pieces * 4096, end = start + 4096 < n ? start + 4096 : n;
        SIMD for (n_t i = b * n + start; i < b * n + end; i++) out[i] = scale[b] * x[i];
    }
}

/* Of a depthwise convolution 3 x 3 with a margin of 1: x (B, H, W, C), kernel (C, 9). */
void depthwise_gradient(const float *restrict gradient, const float *restrict x, const float *restrict kernel, n_t B,
                        n_t H, n_t W, n_t C, float *restrict of_x, float *restrict of_kernel,
                        float *restrict of_bias) {
    float *sums = begin_sums(10 * C), *zeros = allocate_zeros(C);
    float *mirrored = allocate(9 * C);
    for (n_t c = 0; c < C; c++)
        for (int k = 0; k < 9; k++) mirrored[k * C + c] = kernel[c * 9 + 8 - k];
    _Pragma("omp parallel") {
        float *own = own_sums(sums, 10 * C), *row_sums = own + 10 * C;
        _Pragma("omp for schedule(static)") for (n_t row = 0; row < B * H; row++) {
            depthwise_line(gradient, zeros, mirrored, zeros, row, H, W, C, of_x + row * W * C);
            for (n_t w = 0; w < W; w++) {
                const float *a[9], *g = gradient + (row * W + w) * C;
                neighbours(x, zeros, row, w, H, W, C, a);
                SIMD for (n_t c = 0; c < C; c++) {
                    for (int k = 0; k < 9; k++) row_sums[k * C + c] += g[c] * a[k][c];
                    row_sums[9 * C + c] += g[c];
                }
            }
            end_tile(own, 10 * C);
        }
    }
    const float *all = total(sums, 10 * C);
    for (n_t c = 0; c < C; c++)
        for (int k = 0; k < 9; k++) of_kernel[c * 9 + k] = all[k * C + c];
    copy(all + 9 * C, C, of_bias);
    free(sums);
    free(zeros);
    free(mirrored);
}

/* Neighbourhoods 3 x 3, margin 1, every S-th in both directions, of x (B, H, W, C):
 * (B * ceil(H/S) * ceil(W/S), C * 9). */
void patches(const float *restrict x, n_t B, n_t H, n_t W, n_t C, n_t S, float *restrict out) {
    n_t lines = B * ((H + S - 1) / S), line = (W + S - 1) / S * C * 9;
    float *zeros = allocate_zeros(C);
    _Pragma("omp parallel for schedule(static)") for (n_t r = 0; r < lines; r++)
        patches_line(x, zeros, r, H, W, C, S, out + r * line);
    free(zeros);
}

/* Its transpose: the sum, at every pixel, over the neighbourhoods that it is in. */
void patches_gradient(const float *restrict gradient, n_t B, n_t H, n_t W, n_t C, n_t S, float *restrict of_x) {
    n_t rows = (H + S - 1) / S, columns = (W + S - 1) / S;
    _Pragma("omp parallel for schedule(static)") for (n_t row = 0; row < B * H; row++) {
        n_t b = row / H, h = row % H;
        memset(of_x + row * W * C, 0, (size_t)(W * C) * sizeof(float));
        for (int i = 0; i < 3; i++) {
            n_t above = h - i + 1; /* the row in whose neighbourhood this one is, if there is one */
            if (above % S || above < 0 || above / S >= rows) continue;
            const float *line = gradient + (b * rows + above / S) * columns * C * 9;
            for (n_t w = 0; w < columns; w++)
                for (int j = 0; j < 3; j++) {
                    n_t column = S * w + j - 1;
                    if (column < 0 || column >= W) continue;
                    float *o = of_x + (row * W + column) * C;
                    const float *g = line + w * C * 9 + 3 * i + j;
                    for (n_t c = 0; c < C; c++) o[c] += g[9 * c];
                }
        }
    }
}

/* A step of AdamW in place, as Paddle computes it; rate and powers of the betas are arrays of one value, and the powers
 * are updated. */
void adamw(float *restrict parameter, const float *restrict gradient, const float *rate, float *restrict first,
           float *restrict second, float *power1, float *power2, n_t n, float beta1, float beta2, float epsilon,
           float decay) {
    float root = sqrtf(1.0f - *power2), step = *rate * root / (1.0f - *power1);
    float kept = 1.0f - *rate * decay, least = epsilon * root;
    _Pragma("omp parallel for schedule(static)") for (n_t start = 0; start < n; start += 4096) {
        n_t end = start + 4096 < n ? start + 4096 : n;
        SIMD for (n_t i = start; i < end; i++) {
            float g = gradient[i];
            first[i] = beta1 * first[i] + (1.0f - beta1) * g;
            second[i] = beta2 * second[i] + (1.0f - beta2) * g * g;
            parameter[i] = kept * parameter[i] - step * (first[i] / (sqrtf(second[i]) + least));
        }
    }
    *power1 *= beta1;
    *power2 *= beta2;
}
