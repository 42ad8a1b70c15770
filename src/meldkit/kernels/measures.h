/* What is measured of the elements of a block. */

#pragma once

#include "elements.h"

/* Where a block is: its first element and how many there are, its grain, and whether that begins or ends here. */
typedef struct {
    long start, n, grain;
    int first, last;
} place;

/* --- order statistics ------------------------------------------------------------------------------------- */

/* Adds to `counts` how many magnitudes are > high, >= high, > low, >= low, and not 0; puts those above low and not
 * from high on into `found`, behind which there is room for a vector. Returns how many those are. */
LOOP long count_magnitudes(float *x, float low, float high, int64_t *counts, float *found, long n) {
    words above = {0}, from_high = {0}, from_low = {0}, varied = {0};
    long num_found = 0, whole = (n + EACH - 1) / EACH * EACH;
    for (long i = n; i < whole; i++) x[i] = NAN; /* which is not 0, and nothing else */
    for (long i = 0; i < n; i += EACH) {
        floats value = magnitudes(load(x + i));
        words reaches = value >= high;
        above -= value > high;
        from_high -= reaches;
        from_low -= value >= low;
        varied -= value != 0;
        num_found += put(found + num_found, (value > low) & ~reaches, value);
    }
    long num_above = total_of(above), num_from_high = total_of(from_high);
    counts[0] += num_above;
    counts[1] += num_from_high;
    counts[2] += low < high ? num_from_high + num_found : num_above;
    counts[3] += total_of(from_low);
    counts[4] += total_of(varied) - (whole - n);
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
