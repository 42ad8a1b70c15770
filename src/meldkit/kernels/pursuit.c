/* Orthogonal matching pursuit of a vector among atoms, from inner products alone (Batch-OMP: Rubinstein,
 * Zibulevsky, Elad, Technion CS-2008-08). pursuit.py says what it computes. */

#include "common.h"

/* Columns that are subtracted at once, so that what they are subtracted from is read and written less often. */
enum { AT_ONCE = 4 };

LOOP void subtract_four(float *restrict from, const float *restrict a, const float *restrict b,
                        const float *restrict c, const float *restrict d, const float *by, long n) {
    const float p = by[0], q = by[1], r = by[2], s = by[3];
    for (long i = 0; i < n; i++) from[i] -= (p * a[i] + q * b[i]) + (r * c[i] + s * d[i]);
}

LOOP void subtract_one(float *restrict from, const float *restrict a, float by, long n) {
    for (long i = 0; i < n; i++) from[i] -= by * a[i];
}

/* The largest magnitude; the order in which it is looked for does not matter. */
LOOP float largest(const float *restrict x, long n) {
    float lanes[LANES] = {0};
    const long whole = n / LANES * LANES;
    for (long i = 0; i < whole; i += LANES)
        for (int l = 0; l < LANES; l++) {
            const float a = fabsf(x[i + l]);
            lanes[l] = a > lanes[l] ? a : lanes[l];
        }
    float most = 0;
    for (int l = 0; l < LANES; l++) most = lanes[l] > most ? lanes[l] : most;
    for (long i = whole; i < n; i++) {
        const float a = fabsf(x[i]);
        most = a > most ? a : most;
    }
    return most;
}

static long first_of(const float *x, float magnitude, long n) {
    for (long i = 0; i < n; i++)
        if (fabsf(x[i]) == magnitude) return i;
    return 0;
}

/* Choose up to k of n atoms; returns how many.
 *
 * gram [n, n]: inner products of the atoms. products [n]: of the target with them; becomes those of what is
 * left of it. chosen, coefficients [k]: the result. room: 8 (k² + 2 k) + 12 k bytes.
 */
long meldkit_pursue(const float *gram, long n, float *products, long k, double tolerance, int *chosen,
                    double *coefficients, void *room) {
    /* A triangle whose square is the chosen atoms' Gram matrix; the target in its terms; the last step. */
    double *triangle = room, *target = triangle + k * k, *step = target + k;
    const float **columns = (const float **)(step + k);
    float *by = (float *)(columns + k);
    const double *solved = target;
    long t = 0;
    float most = largest(products, n);
    const double least = tolerance * most;
    long next = first_of(products, most, n);
    while (t < k && most > least) {
        const float *column = gram + next * n;
        double *row = triangle + t * k, square = column[next];
        for (long j = 0; j < t; j++) {
            double v = column[chosen[j]];
            const double *other = triangle + j * k;
            for (long m = 0; m < j; m++) v -= row[m] * other[m];
            row[j] = v / other[j];
            square -= row[j] * row[j];
        }
        /* It lies in the span of the others: nothing but rounding is left. */
        if (!(square > tolerance * column[next])) break;
        row[t] = sqrt(square);
        chosen[t] = (int)next;
        columns[t] = column;
        /* What is left of the target is at right angles to the atoms before. */
        target[t] = products[next] / row[t];
        t++;
        for (long j = t - 1; j >= 0; j--) {
            double v = j == t - 1 ? target[j] : 0;
            for (long m = j + 1; m < t; m++) v -= triangle[m * k + j] * step[m];
            step[j] = v / triangle[j * k + j];
        }
        for (long j = 0; j < t; j++) by[j] = (float)step[j];
        if (t == k) break;
        most = 0;
        for (long start = 0; start < n; start += BLOCK) {
            const long size = smaller(BLOCK, n - start);
            float *block = products + start;
            long j = 0;
            for (; j + AT_ONCE <= t; j += AT_ONCE)
                subtract_four(block, columns[j] + start, columns[j + 1] + start, columns[j + 2] + start,
                              columns[j + 3] + start, by + j, size);
            for (; j < t; j++) subtract_one(block, columns[j] + start, by[j], size);
            for (j = 0; j < t; j++)
                if (chosen[j] >= start && chosen[j] < start + size) products[chosen[j]] = 0;
            const float here = largest(block, size);
            if (here > most) {
                most = here;
                next = start + first_of(block, here, size);
            }
        }
    }
    for (long j = t - 1; j >= 0; j--) {
        double v = solved[j];
        for (long m = j + 1; m < t; m++) v -= triangle[m * k + j] * coefficients[m];
        coefficients[j] = v / triangle[j * k + j];
    }
    return t;
}
