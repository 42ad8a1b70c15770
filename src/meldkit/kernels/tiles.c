/* Tiles: rows of numbers that are read, worked on, measured and rounded block by block, so that they stay in the
 * first-level cache from the file to the output. tile.py says what each step does. */

#include "numbers.h"

/* Numbers that are read from a file at once. */
enum { PIECE = 16 * BLOCK };
/* Numbers from one register to the next: whole pages apart, all would fall into the same sets of the cache. */
enum { STRIDE = BLOCK + 32 };

/* Where the numbers of a row are: in memory, or from an offset of a file on. */
typedef struct {
    const char *memory;
    long offset;
    int file, type;
} source;

typedef struct {
    int operation;
    int row, other; /* registers */
    float a, b;
    const void *in;
    void *out, *room;
    long found;
} step;

/* Registers, of a block each: the base, the models, and others. */
typedef struct {
    const source *sources;
    step *steps;
    float *registers;
    char *pieces;
    char *out; /* of the numbers in register `result`, if it is wanted */
    long num_models, num_steps, n, grain;
    int has_base, check, result, type;
    int failed; /* which source */
    long got;   /* bytes of it */
} tile;

/* Where a block is: its first element and how many there are, its grain, and whether that begins or ends here. */
typedef struct {
    long start, n, grain;
    int first, last;
} place;

enum { FINE, INPUT_NOT_FINITE, RESULT_NOT_FINITE, CANNOT_READ };

/* --- linear combinations ---------------------------------------------------------------------------------- */

LOOP void subtract(float *restrict row, const float *restrict base, long n) {
    for (long i = 0; i < n; i++) row[i] -= base[i];
}

LOOP void add(float *restrict row, const float *restrict base, long n) {
    for (long i = 0; i < n; i++) row[i] += base[i];
}

LOOP void scale(float *restrict row, float factor, long n) {
    for (long i = 0; i < n; i++) row[i] *= factor;
}

LOOP void add_multiple(float *restrict total, const float *restrict row, float factor, long n) {
    for (long i = 0; i < n; i++) total[i] = fmaf(row[i], factor, total[i]);
}

static void combine(float *x, long m, const float *factors, float factor, long n) {
    scale(x, factors[0], n);
    for (long k = 1; k < m; k++) add_multiple(x, x + k * STRIDE, factors[k], n);
    scale(x, factor, n);
}

/* --- sign election ---------------------------------------------------------------------------------------- */

LOOP void add_scaled(float *restrict total, const float *restrict row, float factor, long n) {
    for (long i = 0; i < n; i++) total[i] += row[i] * factor;
}

LOOP void signs(const float *restrict total, float *restrict sign, long n) {
    for (long i = 0; i < n; i++) sign[i] = total[i] >= 0 ? 1.0f : -1.0f;
}

LOOP void add_agreeing(float *restrict total, float *restrict agreeing, const float *restrict row,
                       const float *restrict sign, float before, float factor, float share, long n) {
    for (long i = 0; i < n; i++) {
        float value = row[i] * before * sign[i];
        agreeing[i] += value > 0 ? share : 0.0f;
        value = value <= 0 ? 0.0f : value;
        total[i] = fmaf(value, factor, total[i]);
    }
}

LOOP void divide(float *restrict out, const float *restrict total, const float *restrict agreeing,
                 const float *restrict sign, float least, float lambda, long n) {
    for (long i = 0; i < n; i++) {
        float divisor = agreeing[i] < least ? least : agreeing[i];
        divisor = divisor == 0 ? 1.0f : divisor;
        out[i] = total[i] * sign[i] / divisor * lambda;
    }
}

/* `numbers`: what comes before, factors and shares of the rows. */
static void elect(float *x, long m, const float *numbers, float least, float lambda, long n) {
    float total[STRIDE] = {0}, sign[STRIDE], agreeing[STRIDE] = {0};
    for (long k = 0; k < m; k++) add_scaled(total, x + k * STRIDE, numbers[k], n);
    signs(total, sign, n);
    memset(total, 0, sizeof total);
    for (long k = 0; k < m; k++)
        add_agreeing(total, agreeing, x + k * STRIDE, sign, numbers[k], numbers[m + k], numbers[2 * m + k], n);
    divide(x, total, agreeing, sign, least, lambda, n);
}

/* --- elements --------------------------------------------------------------------------------------------- */

LOOP void zero_below(float *restrict row, float threshold, long n) {
    for (long i = 0; i < n; i++) row[i] = fabsf(row[i]) <= threshold ? 0.0f : row[i];
}

LOOP void zero_above(float *restrict row, float threshold, long n) {
    for (long i = 0; i < n; i++) row[i] -= fabsf(row[i]) <= threshold ? 0.0f : row[i];
}

LOOP void clamp(float *restrict row, float low, float high, long n) {
    for (long i = 0; i < n; i++) {
        float value = row[i] < low ? low : row[i];
        row[i] = value > high ? high : value;
    }
}

LOOP void divide_each(float *restrict row, const float *restrict divisors, long n) {
    for (long i = 0; i < n; i++) row[i] /= divisors[i];
}

typedef uint32_t eight_words __attribute__((vector_size(32)));
typedef float eight_floats __attribute__((vector_size(32)));

/* Multiplies by bits, 0 or 1, the highest bit of a byte first: by the bits of the number 1, or by none. */
LOOP void multiply_bytes(float *restrict row, const uint8_t *restrict bits, long bytes) {
    const eight_words places = {128, 64, 32, 16, 8, 4, 2, 1};
    for (long i = 0; i < bytes; i++) {
        eight_words flags = (eight_words)((places & bits[i]) != 0) & 0x3f800000;
        eight_floats values;
        memcpy(&values, row + 8 * i, sizeof values);
        values *= (eight_floats)flags;
        memcpy(row + 8 * i, &values, sizeof values);
    }
}

static void keep_bits(float *row, const uint8_t *bits, long start, long n) {
    long first = smaller((8 - start % 8) % 8, n), bytes = (n - first) / 8;
    for (long i = 0; i < n; i++) {
        if (i == first) multiply_bytes(row + first, bits + (start + first) / 8, bytes), i += 8 * bytes;
        if (i < n) row[i] *= (float)(bits[(start + i) / 8] >> (7 - (start + i) % 8) & 1);
    }
}

LOOP void pack(const float *restrict values, float threshold, uint8_t *restrict bits, long bytes) {
    for (long i = 0; i < bytes; i++) {
        uint8_t byte = 0;
        for (int b = 0; b < 8; b++) byte = (uint8_t)(byte << 1 | (values[8 * i + b] >= threshold));
        bits[i] = byte;
    }
}

/* Bits of what is at least the threshold, from a whole byte on. */
static void at_least(const float *values, float threshold, uint8_t *bits, long n) {
    pack(values, threshold, bits, n / 8);
    for (long i = n / 8 * 8; i < n; i++) {
        if (i % 8 == 0) bits[i / 8] = 0;
        bits[i / 8] |= (uint8_t)((values[i] >= threshold) << (7 - i % 8));
    }
}

/* --- variance over the models ----------------------------------------------------------------------------- */

LOOP void add_difference(float *restrict mean, const float *restrict row, const float *restrict first, long n) {
    for (long i = 0; i < n; i++) mean[i] += row[i] - first[i];
}

LOOP void scale_and_square(float *restrict mean, float *restrict total, float count, long n) {
    for (long i = 0; i < n; i++) {
        mean[i] /= count;
        total[i] = mean[i] * mean[i];
    }
}

LOOP void add_square(float *restrict total, const float *restrict row, const float *restrict first,
                     const float *restrict mean, long n) {
    for (long i = 0; i < n; i++) {
        float difference = row[i] - first[i] - mean[i];
        total[i] += difference * difference;
    }
}

LOOP void divide_by(float *restrict row, float count, long n) {
    for (long i = 0; i < n; i++) row[i] /= count;
}

static void variance(const float *x, long m, float *out, long n) {
    float mean[STRIDE] = {0};
    for (long k = 1; k < m; k++) add_difference(mean, x + k * STRIDE, x, n);
    scale_and_square(mean, out, (float)m, n);
    for (long k = 1; k < m; k++) add_square(out, x + k * STRIDE, x, mean, n);
    divide_by(out, (float)m, n);
}

/* --- changed elements ------------------------------------------------------------------------------------- */

LOOP void add_changed(float *restrict total, float *restrict count, float *restrict row, float epsilon, long n) {
    for (long i = 0; i < n; i++) {
        /* By bits: a choice is compiled into masked stores, which some processors are slow at. */
        uint32_t bits, changed = -(uint32_t)!(fabsf(row[i]) <= epsilon);
        memcpy(&bits, row + i, 4);
        bits &= changed;
        memcpy(row + i, &bits, 4);
        total[i] += row[i];
        count[i] += row[i] != 0 ? 1.0f : 0.0f;
    }
}

static void sum_changed(float *x, long m, float epsilon, float *total, float *count, long n) {
    memset(total, 0, sizeof(float) * n);
    memset(count, 0, sizeof(float) * n);
    for (long k = 0; k < m; k++) add_changed(total, count, x + k * STRIDE, epsilon, n);
}

LOOP void divide_by_count(float *restrict total, const float *restrict count, long n) {
    for (long i = 0; i < n; i++) total[i] /= count[i] < 1 ? 1.0f : count[i];
}

LOOP void add_alone(float *restrict total, const float *restrict row, const float *restrict count, float factor,
                    long n) {
    for (long i = 0; i < n; i++) total[i] += factor * row[i] * (count[i] == 1 ? 1.0f : 0.0f);
}

/* `factors` of what each row alone changed are left out where they are NULL. */
static void average_changed(const float *x, long m, const float *factors, float *total, const float *count,
                            long n) {
    divide_by_count(total, count, n);
    for (long k = 0; factors != NULL && k < m; k++) add_alone(total, x + k * STRIDE, count, factors[k], n);
}

LOOP void count_alone(const float *restrict row, const float *restrict count, int *restrict out, long n) {
    int changed = 0, alone = 0;
    for (long i = 0; i < n; i++) {
        int active = row[i] != 0;
        changed += active;
        alone += active & (count[i] == 1);
    }
    out[0] = changed, out[1] = alone;
}

/* --- importance ------------------------------------------------------------------------------------------- */

LOOP void importance(const float *restrict base, const float *restrict other, float factor, float *restrict out,
                     long n) {
    for (long i = 0; i < n; i++) out[i] = fabsf(other[i] - base[i]) * factor;
}

LOOP void take(float *restrict base, const float *restrict other, const float *restrict values, float least,
               long n) {
    for (long i = 0; i < n; i++) base[i] += (other[i] - base[i]) * (values[i] >= least ? 1.0f : 0.0f);
}

/* --- order statistics ------------------------------------------------------------------------------------- */

LOOP void count_block(const float *restrict x, uint8_t *restrict inside, long n, float low, float high,
                      int *restrict counts) {
    int above = 0, from_high = 0, above_low = 0, from_low = 0, varied = 0;
    for (long i = 0; i < n; i++) {
        float value = fabsf(x[i]);
        above += value > high;
        from_high += value >= high;
        above_low += value > low;
        from_low += value >= low;
        varied += value != 0;
    }
    for (long i = 0; i < n; i++) inside[i] = (fabsf(x[i]) > low) & !(fabsf(x[i]) >= high);
    counts[0] = above, counts[1] = from_high, counts[2] = above_low, counts[3] = from_low, counts[4] = varied;
}

/* Adds to `counts` how many magnitudes are > high, >= high, > low, >= low, and not 0; puts those above low
 * and not from high on into `found`. Returns how many those are. */
static long count_magnitudes(const float *x, float low, float high, int64_t *counts, float *found, long n) {
    uint8_t inside[BLOCK] = {0};
    int part[5];
    long num_found = 0;
    count_block(x, inside, n, low, high, part);
    for (int c = 0; c < 5; c++) counts[c] += part[c];
    if (part[2] == part[1]) return 0;
    for (long i = 0; i < n; i += 8) {
        uint64_t eight;
        memcpy(&eight, inside + i, 8);
        if (!eight) continue;
        for (long j = i; j < i + 8; j++)
            if (inside[j]) found[num_found++] = fabsf(x[j]);
    }
    return num_found;
}

/* --- sums ------------------------------------------------------------------------------------------------- */

/* Adds magnitudes to lanes; n is a multiple of LANES. */
LOOP void add_magnitudes(double *restrict lanes, const float *restrict values, long n) {
    double sum[LANES];
    for (long l = 0; l < LANES; l++) sum[l] = lanes[l];
    for (long i = 0; i < n; i += LANES)
        for (long l = 0; l < LANES; l++) sum[l] += (double)fabsf(values[i + l]);
    for (long l = 0; l < LANES; l++) lanes[l] = sum[l];
}

LOOP void to_doubles(double *restrict to, const float *restrict from, long n) {
    for (long i = 0; i < n; i++) to[i] = (double)from[i];
}

LOOP void add_products(double *restrict lanes, const double *restrict a, const double *restrict b, long n) {
    double sum[LANES];
    for (long l = 0; l < LANES; l++) sum[l] = lanes[l];
    for (long i = 0; i < n; i += LANES)
        for (long l = 0; l < LANES; l++) sum[l] += a[i + l] * b[i + l];
    for (long l = 0; l < LANES; l++) lanes[l] = sum[l];
}

static long whole_lanes(float *row, long n) {
    long whole = (n + LANES - 1) / LANES * LANES;
    for (long i = n; i < whole; i++) row[i] = 0;
    return whole;
}

/* Sums of magnitudes, of each grain. */
static void add_norm(float *row, double *lanes, double *out, const place *at) {
    if (at->first) memset(lanes, 0, sizeof(double) * LANES);
    add_magnitudes(lanes, row, whole_lanes(row, at->n));
    if (at->last) out[at->grain] = sum_of(lanes);
}

/* Products of m rows i <= j, in that order, of each grain; `room` has place for m STRIDE + pairs LANES. */
static void add_gram(float *x, long m, double *room, double *out, const place *at) {
    double *lanes = room + m * STRIDE;
    long num_pairs = m * (m + 1) / 2, whole = 0;
    if (at->first) memset(lanes, 0, sizeof(double) * num_pairs * LANES);
    for (long i = 0; i < m; i++) {
        whole = whole_lanes(x + i * STRIDE, at->n);
        to_doubles(room + i * STRIDE, x + i * STRIDE, whole);
    }
    for (long i = 0; i < m; i++)
        for (long j = i; j < m; j++, lanes += LANES)
            add_products(lanes, room + i * STRIDE, room + j * STRIDE, whole);
    if (!at->last) return;
    lanes = room + m * STRIDE;
    for (long pair = 0; pair < num_pairs; pair++) out[at->grain * num_pairs + pair] = sum_of(lanes + pair * LANES);
}

/* --- steps ------------------------------------------------------------------------------------------------ */

enum {
    COMBINE, ELECT, ZERO_BELOW, ZERO_ABOVE, CLAMP, KEEP_BITS, VARIANCE, CHANGED, AVERAGE, DIVIDE, IMPORTANCE, TAKE,
    STORE, AT_LEAST, COUNT, ALONE, NORM, GRAM
};

static void take_step(step *s, float *x, long m, const place *at) {
    float *row = x + s->row * STRIDE, *other = x + s->other * STRIDE;
    long n = at->n;
    int64_t *counts = s->out;
    int part[2];
    switch (s->operation) {
        case COMBINE: combine(x, m, s->in, s->a, n); break;
        case ELECT: elect(x, m, s->in, s->a, s->b, n); break;
        case ZERO_BELOW: zero_below(row, s->a, n); break;
        case ZERO_ABOVE: zero_above(row, s->a, n); break;
        case CLAMP: clamp(row, s->a, s->b, n); break;
        case KEEP_BITS: keep_bits(row, s->in, at->start, n); break;
        case VARIANCE: variance(x, m, row, n); break;
        case CHANGED: sum_changed(x, m, s->a, row, other, n); break;
        case AVERAGE: average_changed(x, m, s->in, row, other, n); break;
        case DIVIDE: divide_each(row, (const float *)s->in + at->start, n); break;
        case IMPORTANCE: importance(x, x + STRIDE, ((const float *)s->in)[at->grain], row, n); break;
        case TAKE: take(x, x + STRIDE, row, s->a, n); break;
        case STORE: memcpy((float *)s->out + at->start, row, sizeof(float) * n); break;
        case AT_LEAST: at_least(row, s->a, (uint8_t *)s->out + at->start / 8, n); break;
        case COUNT: s->found += count_magnitudes(row, s->a, s->b, s->out, (float *)s->room + s->found, n); break;
        case ALONE:
            count_alone(row, other, part, n);
            counts[0] += part[0], counts[1] += part[1];
            break;
        case NORM: add_norm(row, s->room, s->out, at); break;
        case GRAM: add_gram(row, s->other, s->room, s->out, at); break;
    }
}

/* Carries out the steps on all blocks. Returns one of the numbers above. */
int meldkit_tile(tile *t) {
    long m = t->num_models, num_sources = m + t->has_base;
    float *base = t->registers, *x = base + STRIDE;
    for (long start = 0, next; start < t->n; start = next) {
        /* Neither across a piece nor across a grain. */
        long in_piece = start % PIECE, in_grain = start % t->grain;
        long count = smaller(smaller(BLOCK, PIECE - in_piece), smaller(t->grain - in_grain, t->n - start));
        next = start + count;
        place at = {start, count, start / t->grain, in_grain == 0, next % t->grain == 0 || next == t->n};
        for (long k = 0; k < num_sources; k++) {
            const source *from = t->sources + k;
            long size = size_of(from->type);
            const char *stored = from->memory + size * start;
            if (from->memory == NULL) {
                char *piece = t->pieces + k * (PIECE + 32) * 4;
                if (in_piece == 0) {
                    long wanted = size * smaller(PIECE, t->n - start);
                    t->got = meldkit_read_bytes(from->file, from->offset + size * start, wanted, piece);
                    t->failed = (int)k;
                    if (t->got < wanted) {
                        if (t->got >= 0) t->got += size * start;
                        return CANNOT_READ;
                    }
                }
                stored = piece + size * in_piece;
            }
            t->failed = (int)k;
            if (t->check && !meldkit_finite(from->type, stored, count)) return INPUT_NOT_FINITE;
            float *row = t->has_base && k == 0 ? base : x + (k - t->has_base) * STRIDE;
            meldkit_widen(from->type, stored, row, count);
            if (t->has_base && k > 0) subtract(row, base, count);
        }
        for (long k = 0; k < t->num_steps; k++) take_step(t->steps + k, x, m, &at);
        if (t->out == NULL) continue;
        float *result = x + t->result * STRIDE;
        if (t->has_base) add(result, base, count);
        char *place = t->out + size_of(t->type) * start;
        meldkit_narrow(t->type, result, place, count);
        /* Of both: rounding may hide NaN, and what float32 holds a narrower type may not. */
        if (!meldkit_finite(F32, result, count) || !meldkit_finite(t->type, place, count)) return RESULT_NOT_FINITE;
    }
    return FINE;
}
