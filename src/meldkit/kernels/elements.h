/* What is done with the elements of a block, which lie in registers: rows of a tile, STRIDE numbers apart. */

#pragma once

#include "common.h"

/* Numbers from one register to the next: whole pages apart, all would fall into the same sets of the cache. */
enum { STRIDE = BLOCK + 32 };

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

LOOP void scale_and_add(float *restrict row, float factor, const float *restrict other, float of_other, long n) {
    for (long i = 0; i < n; i++) row[i] = fmaf(other[i], of_other, row[i] * factor);
}

static void combine(float *x, long m, const float *factors, float factor, long n) {
    if (m == 1) scale(x, factors[0], n);
    else scale_and_add(x, factors[0], x + STRIDE, factors[1], n);
    for (long k = 2; k < m; k++) add_multiple(x, x + k * STRIDE, factors[k], n);
    if (factor != 1) scale(x, factor, n);
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

/* By levels / 65536, which float32 holds exactly. */
LOOP void divide_each(float *restrict row, const uint16_t *restrict levels, long n) {
    for (long i = 0; i < n; i++) row[i] /= (float)levels[i] * 0x1p-16f;
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
