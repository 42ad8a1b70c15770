/* What is done with the elements of a block, which lie in registers: rows of a tile, STRIDE numbers apart. */

#pragma once

#include "vectors.h"

/* Numbers from one register to the next: whole pages apart, all would fall into the same sets of the cache. */
enum { STRIDE = BLOCK + 32 };

/* Loops over vectors reach past n, up to a whole vector: there is room for that in a register. */

/* --- linear combinations ---------------------------------------------------------------------------------- */

LOOP void combine(float *x, long m, const float *factors, float factor, long n) {
    for (long i = 0; i < n; i += EACH) {
        floats total = load(x + i) * factors[0];
        for (long k = 1; k < m; k++) total = fused(load(x + k * STRIDE + i), all(factors[k]), total);
        store(x + i, total * factor);
    }
}

/* --- sign election ---------------------------------------------------------------------------------------- */

/* `numbers`: what comes before, factors and shares of the rows. */
LOOP void elect(float *x, long m, const float *numbers, float least, float lambda, long n) {
    const float *before = numbers, *factors = numbers + m, *shares = numbers + 2 * m;
    for (long i = 0; i < n; i += EACH) {
        floats votes = {0}, total = {0}, agreeing = {0};
        for (long k = 0; k < m; k++) votes += load(x + k * STRIDE + i) * before[k];
        floats sign = choose(votes >= 0, all(1), all(-1));
        for (long k = 0; k < m; k++) {
            floats value = load(x + k * STRIDE + i) * before[k] * sign;
            agreeing += flagged(value > 0, all(shares[k]));
            total = fused(flagged(~(value <= 0), value), all(factors[k]), total);
        }
        floats divisor = choose(agreeing < least, all(least), agreeing);
        divisor = choose(divisor == 0, all(1), divisor);
        store(x + i, total * sign / divisor * lambda);
    }
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

/* Where the bit of each of sixteen numbers is in two bytes, the highest bit of a byte being the first. */
static const ALIGNED int32_t places[16] = {0x80,   0x40,   0x20,   0x10,   0x08,   0x04,   0x02,   0x01,
                                           0x8000, 0x4000, 0x2000, 0x1000, 0x0800, 0x0400, 0x0200, 0x0100};

/* Multiplies by bits, 0 or 1: by the bits of the number 1, or by none. */
LOOP void multiply_words(float *row, const uint8_t *bits, long num_words) {
    for (long i = 0; i < num_words; i++) {
        int32_t word = bits[2 * i] | bits[2 * i + 1] << 8;
        for (long l = 0; l < 16; l += EACH) {
            words flags = (*(const words *)(places + l) & word) != 0;
            floats values;
            memcpy(&values, row + 16 * i + l, sizeof values);
            values *= flagged(flags, all(1));
            memcpy(row + 16 * i + l, &values, sizeof values);
        }
    }
}

static void keep_bits(float *row, const uint8_t *bits, long start, long n) {
    long first = smaller((8 - start % 8) % 8, n), num_words = (n - first) / 16;
    for (long i = 0; i < n; i++) {
        if (i == first) multiply_words(row + first, bits + (start + first) / 8, num_words), i += 16 * num_words;
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

LOOP void variance(const float *x, long m, float *out, long n) {
    floats count = all((float)m);
    for (long i = 0; i < n; i += EACH) {
        floats first = load(x + i), mean = {0};
        for (long k = 1; k < m; k++) mean += load(x + k * STRIDE + i) - first;
        mean /= count;
        floats total = mean * mean;
        for (long k = 1; k < m; k++) {
            floats difference = load(x + k * STRIDE + i) - first - mean;
            total += difference * difference;
        }
        store(out + i, total / count);
    }
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
