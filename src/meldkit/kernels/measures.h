/* What is measured of the elements of a block. */

#pragma once

#include "elements.h"

/* Where a block is: its first element and how many there are, its grain, and whether that begins or ends here. */
typedef struct {
    long start, n, grain;
    int first, last;
} place;

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

/* Of 64 bytes, 0 or 1, a bit each, the first one lowest. The factor moves byte k of eight to bit k of the highest one. */
static inline uint64_t bits_of_bytes(const uint8_t *bytes) {
    uint64_t bits = 0;
    for (int k = 0; k < 8; k++) {
        uint64_t eight;
        memcpy(&eight, bytes + 8 * k, 8);
        bits |= (eight * 0x0102040810204080 >> 56) << 8 * k;
    }
    return bits;
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
    for (long i = 0; i < n; i += 64)
        for (uint64_t bits = bits_of_bytes(inside + i); bits; bits &= bits - 1)
            found[num_found++] = fabsf(x[i + __builtin_ctzll(bits)]);
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

/* Products of two numbers of float32 are exact in float64: whether they are rounded before they are added does not
 * matter. */
FUSED_LOOP void add_products(double *restrict lanes, const double *restrict a, const double *restrict b, long n) {
    double sum[LANES];
    for (long l = 0; l < LANES; l++) sum[l] = lanes[l];
    for (long i = 0; i < n; i += LANES)
        for (long l = 0; l < LANES; l++) sum[l] += a[i + l] * b[i + l];
    for (long l = 0; l < LANES; l++) lanes[l] = sum[l];
}

/* Makes float64 of numbers, and adds their squares. */
FUSED_LOOP void convert_and_square(double *restrict lanes, const float *restrict from, double *restrict to, long n) {
    double sum[LANES];
    for (long l = 0; l < LANES; l++) sum[l] = lanes[l];
    for (long i = 0; i < n; i += LANES)
        for (long l = 0; l < LANES; l++) {
            double value = (double)from[i + l];
            to[i + l] = value;
            sum[l] += value * value;
        }
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

/* Where the pair i <= j of m rows is, in the order of i, then j. */
static inline long pair_of(long m, long i, long j) { return i * m - i * (i - 1) / 2 + j - i; }

/* Products of m rows i <= j, in that order, of each grain; `room` has place for m STRIDE + pairs LANES. */
static void add_gram(float *x, long m, double *room, double *out, const place *at) {
    double *lanes = room + m * STRIDE;
    long num_pairs = m * (m + 1) / 2;
    if (at->first) memset(lanes, 0, sizeof(double) * num_pairs * LANES);
    for (long j = 0; j < m; j++) {
        double *row = room + j * STRIDE;
        long whole = whole_lanes(x + j * STRIDE, at->n);
        convert_and_square(lanes + pair_of(m, j, j) * LANES, x + j * STRIDE, row, whole);
        for (long i = 0; i < j; i++) add_products(lanes + pair_of(m, i, j) * LANES, room + i * STRIDE, row, whole);
    }
    if (!at->last) return;
    for (long pair = 0; pair < num_pairs; pair++) out[at->grain * num_pairs + pair] = sum_of(lanes + pair * LANES);
}
