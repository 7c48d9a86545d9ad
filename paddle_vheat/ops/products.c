/* What needs matrix products: parts of a network, forward, and one gradient.
 *
 * A thread takes a piece of a map through all steps that need nothing beside it, products among them, while the piece
 * is in its cache. The products are those of Paddle's own library (MKL), called by each thread for itself. Training is
 * given what it keeps for the gradient; in evaluation those arrays are NULL.
 *
 * Arrays as in native.c. In the forward passes every value of a result is computed by one thread, in an order that does
 * not depend on which thread it is. For a number of threads every result is reproducible bit by bit.
 */
#include "kernels.h"

#define PIECE 131072   /* floats, 512 KiB: what stays in a core's cache beside some of the weights */
#define LEAST_ROWS 96   /* fewer, and a product takes longer to lay out its weights than to multiply them */
#define FOR_PIECES(count, size) \
    _Pragma("omp parallel for schedule(monotonic : dynamic)") for (n_t start = 0; start < (count); start += (size))

void cblas_sgemm(int order, int a_form, int b_form, int M, int N, int K, float factor, const float *a, int a_stride,
                 const float *b, int b_stride, float out_factor, float *out, int out_stride);
enum { AS_IS = 111, TRANSPOSED = 112 }; /* of cblas.h */

/* out (M, N) = a (M, K) b (K, N), added to what is there if `add`. The strides are those of rows. */
INLINE void product(n_t M, n_t N, n_t K, int a_form, const float *a, n_t a_stride, int b_form, const float *b,
                    n_t b_stride, int add, float *out, n_t out_stride) {
    cblas_sgemm(101, a_form, b_form, (int)M, (int)N, (int)K, 1.0f, a, (int)a_stride, b, (int)b_stride,
                add ? 1.0f : 0.0f, out, (int)out_stride);
}

INLINE n_t smaller(n_t a, n_t b) { return a < b ? a : b; }

/* How many of `count` lines of `rows` rows of `width` floats make a piece; the threads get equally many pieces. */
static n_t piece_of(n_t count, n_t rows, n_t width) {
    n_t threads = omp_get_max_threads(), most = PIECE / width > LEAST_ROWS ? PIECE / width : LEAST_ROWS;
    most = most / rows > 1 ? most / rows : 1;
    n_t pieces = ((count + most - 1) / most + threads - 1) / threads * threads;
    return (count + pieces - 1) / pieces;
}

/* Every row of out the bias, or zeros where that is NULL. */
INLINE void fill(const float *bias, n_t rows, n_t C, float *out) {
    for (n_t row = 0; row < rows; row++)
        if (bias)
            memcpy(out + row * C, bias, (size_t)C * sizeof(float));
        else
            memset(out + row * C, 0, (size_t)C * sizeof(float));
}

/* What a branch (rows, C) of a residual block ends with: a linear layer (K, C); then, unless NULL, LayerNorm, a scale for
 * each channel and a factor for each `sample` rows; then, unless NULL, x is added, from which the branch left. What it
 * begins with, unless NULL, is a LayerNorm of its own, the `first`. */
typedef struct {
    const float *weight, *bias, *norm_weight, *norm_bias;
    float epsilon;
    const float *scale, *factors;
    n_t sample;
    const float *x;
} ending;

INLINE void end_branch(ending end, const float *inner, n_t K, n_t start, n_t rows, n_t C, float *whole_out) {
    const float *x = end.x ? end.x + start * C : NULL;
    float *out = whole_out + start * C;
    fill(end.bias, rows, C, out);
    product(rows, C, K, AS_IS, inner, K, AS_IS, end.weight, C, 1, out, C);
    for (n_t row = 0; row < rows; row++) {
        float *o = out + row * C;
        if (end.norm_weight) layer_norm_row(o, end.norm_weight, end.norm_bias, end.epsilon, C, o);
        if (end.scale) SIMD for (n_t c = 0; c < C; c++) o[c] *= end.scale[c];
        if (end.factors) SIMD for (n_t c = 0; c < C; c++) o[c] *= end.factors[(start + row) / end.sample];
        if (x) SIMD for (n_t c = 0; c < C; c++) o[c] += x[row * C + c];
    }
}

/* Linear (C, N), GELU, and the ending, with its linear layer (N, C). kept (rows, N): what the bias is added to. */
void mlp(const float *in, const float *first_weight, const float *first_bias, float first_epsilon, const float *weight,
         const float *bias, const float *out_weight, const float *out_bias, const float *norm_weight,
         const float *norm_bias, float epsilon, const float *scale, const float *factors, n_t sample, const float *x,
         n_t rows, n_t C, n_t N, float *out, float *kept) {
    ending end = {out_weight, out_bias, norm_weight, norm_bias, epsilon, scale, factors, sample, x};
    n_t size = piece_of(rows, 1, N);
    n_t own = whole_lines(size * (N + C));
    float *space = allocate(own * omp_get_max_threads());
    FOR_PIECES(rows, size) {
        n_t count = smaller(size, rows - start);
        float *hidden = space + own * omp_get_thread_num(), *normal = hidden + size * N;
        float *widened = kept ? kept + start * N : hidden;
        const float *piece = first_weight ? normal : in + start * C;
        for (n_t row = 0; first_weight && row < count; row++)
            layer_norm_row(in + (start + row) * C, first_weight, first_bias, first_epsilon, C, normal + row * C);
        product(count, N, C, AS_IS, piece, C, AS_IS, weight, N, 0, widened, N);
        for (n_t row = 0; row < count; row++) gelu_row(widened + row * N, bias, N, hidden + row * N);
        end_branch(end, hidden, N, start, count, C, out);
    }
    free(space);
}

/* The Heat Conduction Operator of maps (B, H, W, C), and the ending, with its last linear layer (C, C). kernel (C, 9),
 * weight (C, 2 C), bases (H, H) and (W, W) of the DCT, decay (H, W, C). Maps (B, H, W, C) besides: gate and heat, which
 * are needed; kept, both or neither, what the linear layer is given and the modes before they are damped. If they
 * are, the conducted heat is left in `heat`. */
void heat_conduction(const float *in, const float *first_weight, const float *first_bias, float first_epsilon,
                     const float *kernel, const float *kernel_bias, const float *weight,
                     const float *bias, const float *row_basis, const float *column_basis, const float *decay,
                     const float *inner_weight, const float *inner_bias, float inner_epsilon, const float *out_weight,
                     const float *out_bias, const float *norm_weight, const float *norm_bias, float epsilon,
                     const float *scale, const float *factors, n_t sample, const float *x, n_t B, n_t H, n_t W, n_t C,
                     float *out, float *kept_convolved, float *kept_modes, float *gate, float *heat) {
    ending end = {out_weight, out_bias, norm_weight, norm_bias, epsilon, scale, factors, sample, x};
    n_t lines = B * H, line = W * C, size = piece_of(lines, W, 2 * C), threads = omp_get_max_threads();
    n_t width = whole_lines(piece_of(line, 1, H));
    n_t own = whole_lines(2 * size * line > H * width ? 2 * size * line : H * width);
    float *space = allocate(own * threads);
    float *taps = allocate(9 * C), *zeros = allocate_zeros(C);
    for (n_t c = 0; c < C; c++)
        for (int k = 0; k < 9; k++) taps[k * C + c] = kernel[c * 9 + k];

    if (first_weight) {
        float *normal = out; /* its memory, until there is a result */
        FOR_PIECES(lines, size) {
            for (n_t row = start * W; row < smaller(start + size, lines) * W; row++)
                layer_norm_row(in + row * C, first_weight, first_bias, first_epsilon, C, normal + row * C);
        }
        in = normal;
    }
    FOR_PIECES(lines, size) {
        n_t count = smaller(size, lines - start);
        float *half = space + own * omp_get_thread_num();
        float *convolved = kept_convolved ? kept_convolved + start * line : half + size * line;
        for (n_t i = 0; i < count; i++)
            depthwise_line(in, zeros, taps, kernel_bias, start + i, H, W, C, convolved + i * line);
        fill(bias, count * W, C, half);
        product(count * W, C, C, AS_IS, convolved, C, AS_IS, weight, 2 * C, 1, half, C);
        fill(bias + C, count * W, C, gate + start * line);
        product(count * W, C, C, AS_IS, convolved, C, AS_IS, weight + C, 2 * C, 1, gate + start * line, C);
        for (n_t i = 0; i < count; i++)
            product(W, C, W, AS_IS, column_basis, W, AS_IS, half + i * line, C, 0, heat + (start + i) * line, C);
    }
    for (n_t b = 0; b < B; b++) {
        float *map = heat + b * H * line;
        FOR_PIECES(line, width) {
            n_t count = smaller(width, line - start);
            float *damped = space + own * omp_get_thread_num();
            float *modes = kept_modes ? kept_modes + b * H * line + start : damped;
            n_t stride = kept_modes ? line : count;
            product(H, count, H, AS_IS, row_basis, H, AS_IS, map + start, line, 0, modes, stride);
            for (n_t h = 0; h < H; h++)
                SIMD for (n_t i = 0; i < count; i++)
                    damped[h * count + i] = modes[h * stride + i] * decay[h * line + start + i];
            product(H, count, H, TRANSPOSED, row_basis, H, AS_IS, damped, count, 0, map + start, line);
        }
    }
    FOR_PIECES(lines, size) {
        n_t count = smaller(size, lines - start);
        float *half = space + own * omp_get_thread_num();
        for (n_t i = 0; i < count; i++)
            product(W, C, W, TRANSPOSED, column_basis, W, AS_IS, heat + (start + i) * line, C, 0, half + i * line, C);
        if (kept_modes) memcpy(heat + start * line, half, (size_t)(count * line) * sizeof(float));
        for (n_t row = 0; row < count * W; row++)
            norm_gate_row(half + row * C, gate + start * line + row * C, inner_weight, inner_bias, inner_epsilon, C,
                          half + row * C);
        end_branch(end, half, C, start * W, count * W, C, out);
    }
    free(space);
    free(taps);
    free(zeros);
}

/* Convolution 3 x 3, stride S, margin 1, of x (B, H, W, C) to D channels; then LayerNorm, unless NULL; then GELU if
 * `activated`. weight (D, C * 9); bias may be NULL. */
void convolution(const float *x, const float *weight, const float *bias, const float *norm_weight,
                 const float *norm_bias, float epsilon, n_t activated, n_t B, n_t H, n_t W, n_t C, n_t S, n_t D,
                 float *out) {
    n_t lines = B * ((H + S - 1) / S), columns = (W + S - 1) / S, K = 9 * C, size = piece_of(lines, columns, K);
    n_t own = whole_lines(size * columns * K);
    float *space = allocate(own * omp_get_max_threads()), *zeros = allocate_zeros(C);
    FOR_PIECES(lines, size) {
        n_t count = smaller(size, lines - start), rows = count * columns;
        float *patches = space + own * omp_get_thread_num(), *o = out + start * columns * D;
        for (n_t i = 0; i < count; i++) patches_line(x, zeros, start + i, H, W, C, S, patches + i * columns * K);
        fill(bias, rows, D, o);
        product(rows, D, K, AS_IS, patches, K, TRANSPOSED, weight, K, 1, o, D);
        for (n_t row = 0; row < rows; row++, o += D) {
            if (norm_weight) layer_norm_row(o, norm_weight, norm_bias, epsilon, D, o);
            if (activated) gelu_row(o, NULL, D, o);
        }
    }
    free(space);
    free(zeros);
}

/* Neighbourhoods 3 x 3, margin 1, of `count` pixels of x (C, H, W), channels first: (C * 9, count). */
INLINE void planes_patches(const float *x, n_t start, n_t count, n_t C, n_t H, n_t W, float *out) {
    for (n_t c = 0; c < C; c++, x += H * W)
        for (n_t i = -1; i <= 1; i++)
            for (n_t j = -1; j <= 1; j++)
                for (n_t at = start; at < start + count;) { /* the pixels of a line */
                    n_t h = at / W + i, w = at % W, n = smaller(W - w, start + count - at);
                    n_t left = j < 0 && w == 0, right = j > 0 && w + n == W;
                    if (h < 0 || h >= H)
                        memset(out, 0, (size_t)n * sizeof(float));
                    else {
                        memcpy(out + left, x + h * W + w + j + left, (size_t)(n - left - right) * sizeof(float));
                        if (left) out[0] = 0.0f;
                        if (right) out[n - 1] = 0.0f;
                    }
                    at += n;
                    out += n;
                }
}

/* Convolution 3 x 3, margin 1, of x (B, C, H, W), channels first, to D channels, by those of the weight (D, K, 3, 3) from
 * `first` on; added to what is there if `add`. Then, unless NULL, the scale and the shift of each channel, and ReLU. */
void convolution_planes(const float *x, const float *weight, n_t first, n_t K, n_t add, const float *scale,
                        const float *shift, n_t B, n_t C, n_t H, n_t W, n_t D, float *out) {
    /* 32 times as large as elsewhere: of fewer columns, a product takes a tenth longer, to lay out its weights. */
    n_t pixels = H * W, size = piece_of(pixels, 1, (9 * C + 31) / 32), pieces = (pixels + size - 1) / size;
    n_t own = whole_lines(9 * C * size);
    float *space = allocate(own * omp_get_max_threads());
    FOR_PIECES(B * pieces, 1) {
        n_t b = start / pieces, at = start % pieces * size, count = smaller(size, pixels - at);
        float *patches = space + own * omp_get_thread_num(), *o = out + b * D * pixels + at;
        planes_patches(x + b * C * pixels, at, count, C, H, W, patches);
        product(D, count, 9 * C, AS_IS, weight + 9 * first, 9 * K, AS_IS, patches, count, (int)add, o, pixels);
        for (n_t d = 0; scale && d < D; d++)
            SIMD for (n_t i = 0; i < count; i++) {
                float value = o[d * pixels + i] * scale[d] + shift[d];
                o[d * pixels + i] = value < 0.0f ? 0.0f : value;
            }
    }
    free(space);
}

/* Gradients of a linear layer (C, 2 C) whose result goes on as two maps, theirs being a and b (rows, C); x (rows, C) is
 * what it was given. Outside of parallel regions, products take all threads by themselves. */
void split_linear_gradient(const float *a, const float *b, const float *x, const float *weight, n_t rows, n_t C,
                           float *of_x, float *of_weight) {
    product(rows, C, C, AS_IS, a, C, TRANSPOSED, weight, 2 * C, 0, of_x, C);
    product(rows, C, C, AS_IS, b, C, TRANSPOSED, weight + C, 2 * C, 1, of_x, C);
    product(C, C, rows, TRANSPOSED, x, C, AS_IS, a, C, 0, of_weight, 2 * C);
    product(C, C, rows, TRANSPOSED, x, C, AS_IS, b, C, 0, of_weight + C, 2 * C);
}
