/* How rows differ, and sums that tell whether bytes are the same. */

#include "common.h"

/* Of each row the squares; of two rows products, squares of differences, largest ones, and how many are 0: each
 * of them in LANES, into which the numbers of a row go in turn. Whole lanes only. */
LOOP void add_squares(double *restrict lanes, const float *restrict a, long n) {
    double squares[LANES];
    for (long l = 0; l < LANES; l++) squares[l] = lanes[l];
    for (long i = 0; i < n; i += LANES)
        for (long l = 0; l < LANES; l++) squares[l] += (double)a[i + l] * (double)a[i + l];
    for (long l = 0; l < LANES; l++) lanes[l] = squares[l];
}

LOOP void add_differences(double *restrict lanes, int64_t *restrict equal, const float *restrict a,
                          const float *restrict b, long n) {
    double products[LANES], squares[LANES], largest[LANES];
    int same[LANES] = {0};
    for (long l = 0; l < LANES; l++)
        products[l] = lanes[l], squares[l] = lanes[LANES + l], largest[l] = lanes[2 * LANES + l];
    for (long i = 0; i < n; i += LANES)
        for (long l = 0; l < LANES; l++) {
            double one = a[i + l], other = b[i + l], change = other - one, size = fabs(change);
            products[l] += one * other;
            squares[l] += change * change;
            largest[l] = size > largest[l] ? size : largest[l];
            same[l] += a[i + l] == b[i + l];
        }
    for (long l = 0; l < LANES; l++) {
        lanes[l] = products[l], lanes[LANES + l] = squares[l], lanes[2 * LANES + l] = largest[l];
        *equal += same[l];
    }
}

/* Products of rows i <= j, in that order; for rows i < j the sum of the squares of their difference, the largest
 * difference, and how many are 0. `room` has place for m + 3 (pairs i < j) lanes. */
void meldkit_differences(const float *x, long stride, long m, long n, double *room, double *products,
                         double *squares, double *largest, int64_t *equal) {
    long num_pairs = m * (m - 1) / 2, pair;
    double *lanes = room + m * LANES;
    memset(room, 0, sizeof(double) * (m + 3 * num_pairs) * LANES);
    memset(equal, 0, sizeof(int64_t) * num_pairs);
    for (long start = 0; start < n; start += BLOCK) {
        long length = smaller(n - start, BLOCK), whole = length / LANES * LANES, rest = length - whole;
        pair = 0;
        for (long i = 0; i < m; i++) {
            const float *a = x + i * stride + start;
            float end_a[LANES] = {0}, end_b[LANES] = {0};
            memcpy(end_a, a + whole, sizeof(float) * rest);
            add_squares(room + i * LANES, a, whole);
            if (rest) add_squares(room + i * LANES, end_a, LANES);
            for (long j = i + 1; j < m; j++, pair++) {
                const float *b = x + j * stride + start;
                add_differences(lanes + 3 * pair * LANES, equal + pair, a, b, whole);
                if (!rest) continue;
                memcpy(end_b, b + whole, sizeof(float) * rest);
                add_differences(lanes + 3 * pair * LANES, equal + pair, end_a, end_b, LANES);
                equal[pair] -= LANES - rest;
            }
        }
    }
    pair = 0;
    for (long i = 0; i < m; i++) {
        *products++ = sum_of(room + i * LANES);
        for (long j = i + 1; j < m; j++, pair++) {
            const double *own = lanes + 3 * pair * LANES;
            *products++ = sum_of(own);
            squares[pair] = sum_of(own + LANES);
            largest[pair] = 0;
            for (long l = 2 * LANES; l < 3 * LANES; l++)
                if (own[l] > largest[pair]) largest[pair] = own[l];
        }
    }
}

LOOP void count_conflicts(const float *restrict u, const float *restrict v, float least_u, float least_v,
                          int *restrict counts, long n) {
    int both = 0, opposite = 0, top = 0;
    for (long i = 0; i < n; i++) {
        int changed = (u[i] != 0) & (v[i] != 0);
        both += changed;
        opposite += changed & ((u[i] > 0) != (v[i] > 0));
        top += changed & (fabsf(u[i]) >= least_u) & (fabsf(v[i]) >= least_v);
    }
    counts[0] = both, counts[1] = opposite, counts[2] = top;
}

LOOP int count_top(const float *restrict u, float least, long n) {
    int top = 0;
    for (long i = 0; i < n; i++) top += (u[i] != 0) & (fabsf(u[i]) >= least);
    return top;
}

/* Of each row, how many are not 0 and at least `least` in magnitude; of rows i < j, where both are not 0, where
 * their signs differ there, and where both are as large. */
void meldkit_conflicts(const float *u, long stride, long m, long n, const float *least, int64_t *tops,
                       int64_t *counts) {
    memset(tops, 0, sizeof(int64_t) * m);
    memset(counts, 0, sizeof(int64_t) * 3 * m * (m - 1) / 2);
    for (long start = 0; start < n; start += BLOCK) {
        long length = smaller(n - start, BLOCK);
        int64_t *pair = counts;
        for (long i = 0; i < m; i++) {
            const float *row = u + i * stride + start;
            tops[i] += count_top(row, least[i], length);
            for (long j = i + 1; j < m; j++, pair += 3) {
                int part[3];
                count_conflicts(row, u + j * stride + start, least[i], least[j], part, length);
                for (int c = 0; c < 3; c++) pair[c] += part[c];
            }
        }
    }
}

/* --- check sums ------------------------------------------------------------------------------------------- */

LOOP void add_words(const uint32_t *restrict x, long rows, uint64_t *restrict sums, uint64_t *restrict sums_of_sums) {
    /* Of their own, which stay in registers. */
    uint64_t a[LANES] = {0}, b[LANES] = {0};
    for (long i = 0; i < rows; i++)
        for (int l = 0; l < LANES; l++) {
            a[l] += x[i * LANES + l];
            b[l] += a[l];
        }
    memcpy(sums, a, sizeof a);
    memcpy(sums_of_sums, b, sizeof b);
}

/* out: the sum of n words, and that of words times their positions, both modulo 2^64. */
void meldkit_word_sums(const uint32_t *x, long n, uint64_t *out) {
    uint64_t sums[LANES], sums_of_sums[LANES];
    long rows = n / LANES;
    add_words(x, rows, sums, sums_of_sums);
    out[0] = out[1] = 0;
    for (int l = 0; l < LANES; l++) {
        out[0] += sums[l];
        /* Row i went into the sums of sums (rows - i) times. */
        out[1] += LANES * (rows * sums[l] - sums_of_sums[l]) + l * sums[l];
    }
    for (long i = rows * LANES; i < n; i++) {
        out[0] += x[i];
        out[1] += (uint64_t)i * x[i];
    }
}
