/* The loop over the pixels of a row, or of several rows, without an interpreter.

   A program is what a causal network does for one pixel, as a list of operations on vectors of float. An operand says
   where a vector lies for a pixel (image, row, column): in the arena of the pixels that are worked on together, or in
   an array of all images. All sums over inputs are in order, for each pixel alone, so it does not depend on its
   company. */

#include <math.h>
#include <stdint.h>
#include <string.h>

typedef struct {
    uint64_t base;                 /* address, or place in the arena */
    int64_t image, row, column;    /* floats from one to the next */
    int32_t row_shift, column_shift; /* halvings of the map's resolution */
    int32_t arena, unused;
} Operand;

typedef struct {
    int32_t op, n, k, extra;
    Operand out, x, y, z;
    const float *weight;
} Instruction;

enum { COPY, LINEAR, ADD, MUL, RELU, SILU, ELU, TANH, SIGMOID, NEG, NORM, SKIP, ATTEND, UNFOLD, RAISE, EMBED };

enum { CATEGORICAL, BERNOULLI, LOGISTICS };

typedef struct {
    int64_t width, channels, passes, known;
    int64_t arena;                 /* floats per image */
    int64_t canvas_image, canvas_row, features, margin;
    int64_t draws, kind, mixtures, numbers;
    float *canvas;
    uint8_t *pixels;               /* (images, height, width, channels) */
    int64_t pixels_image;
    const float *uniforms;         /* (images, height, width, draws) */
    int64_t uniforms_image;
    const float *table;            /* (channels, 256, features): what a value adds to the canvas */
    float temperature, guidance;   /* a weight other than 1: of pairs of images, of a class and of none */
    Operand result;
} Setup;

#define BLOCK 8

typedef struct {
    int64_t image;
    int row, column;
} Pixel;

static inline float *place(const Operand *o, float *arena, int64_t stride, int i, Pixel at) {
    if (o->arena) return arena + i * stride + o->base;
    return (float *)o->base + at.image * o->image + (int64_t)(at.row >> o->row_shift) * o->row +
           (int64_t)(at.column >> o->column_shift) * o->column;
}

#define TILE(IMAGES, WIDTH)                                                                              \
    static void tile_##IMAGES##_##WIDTH(float **out, float **x, float **y, const float *w, int k, int n) { \
        float sum[IMAGES][WIDTH];                                                                        \
        for (int i = 0; i < IMAGES; i++)                                                                 \
            for (int j = 0; j < WIDTH; j++) sum[i][j] = y ? y[i][j] : 0.0f;                              \
        for (int m = 0; m < k; m++)                                                                      \
            for (int i = 0; i < IMAGES; i++) {                                                           \
                float value = x[i][m];                                                                   \
                for (int j = 0; j < WIDTH; j++) sum[i][j] += value * w[(int64_t)m * n + j];              \
            }                                                                                            \
        for (int i = 0; i < IMAGES; i++)                                                                 \
            for (int j = 0; j < WIDTH; j++) out[i][j] = sum[i][j];                                       \
    }

TILE(4, 64)
TILE(1, 64)
TILE(4, 16)
TILE(1, 16)
TILE(1, 1)

static void linear(int images, float **out, float **x, float **y, const float *w, int k, int n) {
    float *o[BLOCK], *bias[BLOCK];
    for (int j = 0; j < n;) {
        int wide = n - j >= 64 ? 64 : n - j >= 16 ? 16 : 1;
        for (int i = 0; i < images; i++) {
            o[i] = out[i] + j;
            bias[i] = y ? y[i] + j : 0;
        }
        for (int i = 0; i < images;) {
            float **b = y ? bias + i : 0;
            if (wide == 1) {
                tile_1_1(o + i, x + i, b, w + j, k, n);
                i += 1;
            } else if (images - i >= 4) {
                if (wide == 64) tile_4_64(o + i, x + i, b, w + j, k, n);
                else tile_4_16(o + i, x + i, b, w + j, k, n);
                i += 4;
            } else {
                if (wide == 64) tile_1_64(o + i, x + i, b, w + j, k, n);
                else tile_1_16(o + i, x + i, b, w + j, k, n);
                i += 1;
            }
        }
        j += wide;
    }
}

static void norm(float *out, const float *x, const float *weight, int n) {
    float mean = 0, spread = 0;
    for (int j = 0; j < n; j++) mean += x[j];
    mean /= n;
    for (int j = 0; j < n; j++) spread += (x[j] - mean) * (x[j] - mean);
    float scale = 1.0f / sqrtf(spread / n + weight[2 * n]);
    for (int j = 0; j < n; j++) out[j] = (x[j] - mean) * scale * weight[j] + weight[n + j];
}

/* Attention of one query to `count` keys and values, n floats each, in heads. */
static void attend(float *out, const float *q, const float *keys, const float *values, int64_t count, int n, int heads) {
    int d = n / heads;
    float factor = 1.0f / sqrtf((float)d);
    for (int h = 0; h < heads; h++) {
        const float *qh = q + h * d;
        float top = -INFINITY, total = 0;
        float *o = out + h * d;
        for (int j = 0; j < d; j++) o[j] = 0;
        for (int64_t t = 0; t < count; t++) { /* once through, with the maximum so far */
            const float *kt = keys + t * n + h * d, *vt = values + t * n + h * d;
            float score = 0;
            for (int j = 0; j < d; j++) score += qh[j] * kt[j];
            score *= factor;
            if (score > top) {
                float shrink = t ? expf(top - score) : 0.0f;
                for (int j = 0; j < d; j++) o[j] *= shrink;
                total *= shrink;
                top = score;
            }
            float weight = expf(score - top);
            total += weight;
            for (int j = 0; j < d; j++) o[j] += weight * vt[j];
        }
        for (int j = 0; j < d; j++) o[j] /= total;
    }
}

static int inverse(const float *logits, int n, float u, float temperature, float *scratch) {
    int best = 0;
    for (int j = 1; j < n; j++)
        if (logits[j] > logits[best]) best = j;
    if (temperature == 0) return best;
    float top = logits[best], inverse_temperature = 1.0f / temperature;
    for (int j = 0; j < n; j++) scratch[j] = expf((logits[j] - top) * inverse_temperature);
    double total = 0;
    for (int j = 0; j < n; j++) total += scratch[j];
    double wanted = u * total, sum = 0;
    int last = best;
    for (int j = 0; j < n; j++) {
        if (scratch[j] > 0) last = j;
        sum += scratch[j];
        if (sum > wanted) return j;
    }
    return last;
}

static float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

static void draw(const Setup *s, const float *numbers, const float *u, uint8_t *pixel, int pass, float *scratch) {
    if (s->kind == CATEGORICAL || s->kind == BERNOULLI) {
        int from = s->passes > 1 ? pass : 0, to = s->passes > 1 ? pass + 1 : (int)s->channels;
        for (int c = from; c < to; c++) {
            if (s->kind == CATEGORICAL) pixel[c] = (uint8_t)inverse(numbers + 256 * c, 256, u[c], s->temperature, scratch);
            else if (s->temperature == 0) pixel[c] = numbers[c] > 0 ? 255 : 0;
            else pixel[c] = u[c] >= sigmoid(-numbers[c] / s->temperature) ? 255 : 0;
        }
        return;
    }
    int k = (int)s->mixtures, channels = (int)s->channels;
    int which = inverse(numbers, k, u[0], s->temperature, scratch);
    const float *means = numbers + k, *scales = means + k * channels, *slopes = scales + k * channels;
    float values[8], spacing = k > 1 ? 2.0f / (k - 1) : 0.0f;
    for (int c = 0; c < channels; c++) {
        float centre = means[c * k + which] + (k > 1 ? -1.0f + which * spacing : 0.0f);
        for (int d = 0; d < c; d++) centre += tanhf(slopes[(c * (c - 1) / 2 + d) * k + which]) * values[d];
        float log_scale = scales[c * k + which] - logf((float)k);
        log_scale = log_scale < -7.0f ? -7.0f : log_scale > 7.0f ? 7.0f : log_scale;
        float uniform = u[1 + c] < 1.17549435e-38f ? 1.17549435e-38f : u[1 + c];
        float x = centre + expf(log_scale) * s->temperature * (logf(uniform) - log1pf(-u[1 + c]));
        float byte = nearbyintf((x + 1.0f) * 127.5f);
        byte = byte < 0 ? 0 : byte > 255 ? 255 : byte;
        pixel[c] = (uint8_t)byte;
        values[c] = byte / 127.5f - 1.0f;
    }
}

static inline float *canvas_at(const Setup *s, Pixel at) {
    return s->canvas + at.image * s->canvas_image + (s->margin + at.row) * s->canvas_row +
           (s->margin + at.column) * s->features;
}

static inline int byte_of(float value) { return (int)nearbyintf((value + 1.0f) * 127.5f); }

/* Run a program for pixels; those of a program that skips columns are all in the same column. */
static void run(const Instruction *program, int count, const Setup *s, const Pixel *at, int pixels, float *arena) {
    float *out[BLOCK], *x[BLOCK], *y[BLOCK];
    for (int c = 0; c < count; c++) {
        const Instruction *p = program + c;
        int n = p->n;
        if (p->op == SKIP) {
            if (at[0].column & ((1 << p->k) - 1)) c += p->extra;
            continue;
        }
        for (int i = 0; i < pixels; i++) {
            out[i] = place(&p->out, arena, s->arena, i, at[i]);
            x[i] = place(&p->x, arena, s->arena, i, at[i]);
            y[i] = place(&p->y, arena, s->arena, i, at[i]);
        }
        if (p->op == LINEAR) {
            linear(pixels, out, x, p->extra ? y : 0, p->weight, p->k, n);
            continue;
        }
        for (int i = 0; i < pixels; i++) {
            int row = at[i].row, column = at[i].column;
            float *o = out[i], *a = x[i], *b = y[i];
            switch (p->op) {
            case COPY: /* where columns are counted, only into one of these */
                if (!p->k || (column >= p->extra && column < p->extra + p->k)) memcpy(o, a, sizeof(float) * n);
                break;
            case ADD: for (int j = 0; j < n; j++) o[j] = a[j] + b[j]; break;
            case MUL: for (int j = 0; j < n; j++) o[j] = a[j] * b[j]; break;
            case RELU: for (int j = 0; j < n; j++) o[j] = a[j] > 0 ? a[j] : 0; break;
            case SILU: for (int j = 0; j < n; j++) o[j] = a[j] / (1.0f + expf(-a[j])); break;
            case ELU: for (int j = 0; j < n; j++) o[j] = a[j] > 0 ? a[j] : expm1f(a[j]); break;
            case TANH: for (int j = 0; j < n; j++) o[j] = tanhf(a[j]); break;
            case SIGMOID: for (int j = 0; j < n; j++) o[j] = 1.0f / (1.0f + expf(-a[j])); break;
            case NEG: for (int j = 0; j < n; j++) o[j] = -a[j]; break;
            case NORM: norm(o, a, p->weight, n); break;
            case UNFOLD: {
                int part = 2 * ((row >> p->k) & 1) + ((column >> p->k) & 1);
                for (int j = 0; j < n; j++) o[j] = a[4 * j + part];
                break;
            }
            case ATTEND: {
                int64_t until = (int64_t)(row >> p->out.row_shift) * p->k + (column >> p->out.column_shift) + 1;
                const Operand *values = &p->z;
                attend(o, a, (const float *)p->y.base + at[i].image * p->y.image,
                       (const float *)values->base + at[i].image * values->image, until, n, p->extra);
                break;
            }
            case RAISE: { /* scores at a channel's values of pixels nearby; their places are pairs of int behind the weight */
                const int32_t *nearby = (const int32_t *)p->weight;
                const float *here = canvas_at(s, at[i]);
                for (int j = 0; j < n; j++) {
                    const float *seen = here - nearby[2 * j] * s->canvas_row - nearby[2 * j + 1] * s->features;
                    if (seen[s->features - 1] != 0.0f) continue;
                    int same = p->k > 0;
                    for (int d = 0; d < p->k; d++) same &= byte_of(here[d]) == byte_of(seen[d]);
                    o[byte_of(seen[p->k])] += a[j] + (same ? a[n + j] : 0.0f);
                }
                break;
            }
            case EMBED: memcpy(o, p->weight + (int64_t)byte_of(canvas_at(s, at[i])[p->k]) * n, sizeof(float) * n); break;
            }
        }
    }
}

/* Of pairs of images, a class and none, both get the same numbers: more of what the class adds. */
static void guide(const Setup *s, const Pixel *at, int pixels, float *arena) {
    for (int i = 0; i + 1 < pixels; i += 2) {
        float *own = place(&s->result, arena, s->arena, i, at[i]);
        float *none = place(&s->result, arena, s->arena, i + 1, at[i + 1]);
        for (int j = 0; j < s->numbers; j++) own[j] = none[j] = none[j] + s->guidance * (own[j] - none[j]);
    }
}

/* Draw the pixels whose numbers are there, in one of their channels, and put them on the canvas; known ones stay. */
static void put(const Setup *s, const Pixel *at, int pixels, int pass, float *arena, float *scratch) {
    for (int i = 0; i < pixels; i++) {
        int64_t position = at[i].row * s->width + at[i].column, image = at[i].image;
        if (position < s->known) continue;
        uint8_t *pixel = s->pixels + image * s->pixels_image + position * s->channels;
        const float *numbers = place(&s->result, arena, s->arena, i, at[i]);
        draw(s, numbers, s->uniforms + image * s->uniforms_image + position * s->draws, pixel, pass, scratch);
        float *canvas = s->canvas + image * s->canvas_image + (s->margin + at[i].row) * s->canvas_row +
                        (s->margin + at[i].column) * s->features;
        for (int f = 0; f < s->features - 1; f++) {
            float sum = 0;
            for (int c = 0; c < s->channels; c++) sum += s->table[(c * 256 + pixel[c]) * (s->features - 1) + f];
            canvas[f] = sum;
        }
    }
}

/* Draw a row of images first to last - 1. */
void draw_row(const Instruction *program, int count, const Setup *s, int64_t first, int64_t last, int row, float *arena) {
    float scratch[256];
    Pixel at[BLOCK];
    for (int64_t start = first; start < last; start += BLOCK) {
        int images = (int)(last - start < BLOCK ? last - start : BLOCK);
        for (int column = 0; column < s->width; column++) {
            for (int i = 0; i < images; i++) at[i] = (Pixel){start + i, row, column};
            int passes = row * s->width + column < s->known ? 1 : (int)s->passes;
            for (int pass = 0; pass < passes; pass++) {
                run(program, count, s, at, images, arena);
                if (s->guidance != 1.0f) guide(s, at, images, arena);
                put(s, at, images, pass, arena, scratch);
            }
        }
    }
}

/* Draw images first to last - 1, all their rows together, each `lag` columns behind the one above it.

   What is computed of the rows above a pixel, by the first program, is known `behind` columns later. */
void draw_wave(const Instruction *above, int above_count, const Instruction *beside, int beside_count, const Setup *s,
               int64_t first, int64_t last, int height, int lag, int behind, float *arena) {
    float scratch[256];
    Pixel at[BLOCK], own[BLOCK];
    int length = (int)s->width + behind;
    for (int step = 0; step < length + lag * (height - 1); step++) {
        int low = step < length ? 0 : (step - length) / lag + 1, high = step / lag < height ? step / lag + 1 : height;
        int64_t image = first;
        int row = low;
        if (low >= high) continue; /* rows shorter than the lag: one has ended, the next has not begun */
        while (image < last) {
            int pixels = 0, mine = 0;
            for (; pixels < BLOCK && image < last; pixels++) {
                at[pixels] = (Pixel){image, row, step - lag * row};
                if (at[pixels].column >= behind) own[mine++] = (Pixel){image, row, at[pixels].column - behind};
                if (++row == high) {
                    row = low;
                    image++;
                }
            }
            if (above_count) run(above, above_count, s, at, pixels, arena);
            if (!mine) continue;
            for (int pass = 0; pass < s->passes; pass++) {
                run(beside, beside_count, s, own, mine, arena);
                put(s, own, mine, pass, arena, scratch);
            }
        }
    }
}
