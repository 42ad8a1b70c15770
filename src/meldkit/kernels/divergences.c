/* Divergences of the distributions that rows describe.
 *
 * The exponential function and the logarithm stand here because those of the C library would be called once per
 * element. Their polynomials are minimax ones.
 */

#include "divergences.h"

/* Keeps the logarithm of a probability finite. */
#define FLOOR 1e-8

/* Whose exponential is a normal number, and nothing beside FLOOR. */
#define LEAST -708.0

/* ln 2 in two parts, of which multiples of the first by up to 2^20 are exact. */
#define LN2_HIGH 0x1.62e42feep-1
#define LN2_LOW 0x1.a39ef35793c76p-33

/* A number whose last bit is worth 1: what is added to it is rounded to a whole number, which its bits show. */
#define SHIFTER 0x1.8p52

/* Of float64: bits of the fraction, and what is added to exponents. */
enum { FRACTION = 52, BIAS = 1023 };

static inline double of_bits(uint64_t bits) {
    double value;
    memcpy(&value, &bits, 8);
    return value;
}

static inline uint64_t bits_of(double value) {
    uint64_t bits;
    memcpy(&bits, &value, 8);
    return bits;
}

/* e^x of x from -708 to 0, with an error of 2e-16 of it: x = k ln 2 + r with |r| <= ln 2 / 2, and a polynomial of
 * r. */
static inline double exponential(double x) {
    double shifted = fma(x, 0x1.71547652b82fep0, SHIFTER), k = shifted - SHIFTER;
    double r = fma(k, -LN2_LOW, fma(k, -LN2_HIGH, x)), r2 = r * r, r4 = r2 * r2;
    double first = fma(r2, fma(r, 0x1.111111110f80cp-7, 0x1.5555555553d63p-5),
                       fma(r, 0x1.5555555555558p-3, 0x1.0000000000001p-1));
    double second = fma(r2, fma(r, 0x1.71ddf6c0ab2c2p-19, 0x1.a019b90d508b4p-16),
                        fma(r, 0x1.a01a01b00828ap-13, 0x1.6c16c1788bd17p-10));
    double third = fma(r, 0x1.af631030632acp-26, 0x1.289185357d739p-22);
    double series = fma(r4, fma(r4, third, second), first);
    return (1 + fma(r2, series, r)) * of_bits((bits_of(shifted) + BIAS) << FRACTION);
}

/* p ln(p / q) - (p - q) of p and q from 1e-8 to 2, with an error of a few 1e-16 of it: it is not formed from its
 * parts, which may be a million times as large.
 *
 * With p = 2^k p', where p' is about q, and s = (p' - q) / (p' + q), p ln(p / q) = p (k ln 2 + 2 artanh s). Where
 * k is 0, 2 p s - (p - q) = (p - q) s. The rest of the series of artanh is a polynomial of s^2. */
static inline double term(double p, double q) {
    /* 1024 + k, whose bits behind 2^52 are those of a number: processors cannot turn words of 64 bits to numbers. */
    const uint64_t half = (uint64_t)1 << (FRACTION - 1), offset = (uint64_t)1024 << FRACTION;
    uint64_t above = (bits_of(p) - bits_of(q) + half + offset) >> FRACTION;
    double k = of_bits(above | bits_of(0x1p52)) - (0x1p52 + 1024);
    double near = p * of_bits((BIAS + 1024 - above) << FRACTION);
    double s = (near - q) / (near + q), z = s * s, difference = p - q;
    double z2 = z * z, z4 = z2 * z2;
    double first = fma(z2, fma(z, 0x1.c71c72f454668p-4, 0x1.24924923ce026p-3),
                       fma(z, 0x1.9999999999fb0p-3, 0x1.5555555555555p-2));
    double second = fma(z2, fma(z, 0x1.172c19cec80aap-4, 0x1.0e79644c354a8p-4),
                        fma(z, 0x1.3b2ac9df0ffa1p-4, 0x1.745ca5ee2ef92p-4));
    double doubled = (p + p) * s, others = fma(p * k, LN2_HIGH + LN2_LOW, doubled - difference);
    return fma(doubled * z, fma(z4, second, first), k == 0 ? difference * s : others);
}

/* The largest element; of rows with NaN, anything. */
LOOP float largest(const float *restrict x, long n) {
    enum { TOGETHER = 4 * LANES }; /* each must wait for the one before it */
    float lanes[TOGETHER], most;
    for (long l = 0; l < TOGETHER; l++) lanes[l] = x[0];
    for (long i = 0; i + TOGETHER <= n; i += TOGETHER)
        for (long l = 0; l < TOGETHER; l++) lanes[l] = lanes[l] > x[i + l] ? lanes[l] : x[i + l];
    most = lanes[0];
    for (long l = 1; l < TOGETHER; l++) most = lanes[l] > most ? lanes[l] : most;
    for (long i = n / TOGETHER * TOGETHER; i < n; i++) most = x[i] > most ? x[i] : most;
    return most;
}

/* Of x - most, or of `least` where that is below it, which is a parameter lest compilers take apart what is constant
 * then; NaN remains. */
LOOP void exponentials(const float *restrict x, double most, double least, double *restrict out, long n) {
    for (long i = 0; i < n; i++) {
        double difference = (double)x[i] - most;
        out[i] = exponential(least > difference ? least : difference);
    }
}

/* n is a multiple of LANES. */
LOOP void add_values(double *restrict lanes, const double *restrict values, long n) {
    double sum[LANES];
    for (long l = 0; l < LANES; l++) sum[l] = lanes[l];
    for (long i = 0; i < n; i += LANES)
        for (long l = 0; l < LANES; l++) sum[l] += values[i + l];
    for (long l = 0; l < LANES; l++) lanes[l] = sum[l];
}

/* Of distributions whose exponentials stand in a and b; the factors are one over their sums. */
LOOP void terms(const double *restrict a, const double *restrict b, double a_factor, double b_factor,
                double *restrict out, long n) {
    for (long i = 0; i < n; i++) out[i] = term(fma(a[i], a_factor, FLOOR), fma(b[i], b_factor, FLOOR));
}

static long whole_lanes(long n) { return (n + LANES - 1) / LANES * LANES; }

/* Puts e^(x - largest) into `out`; returns their sum. */
static double exponentials_of(const float *x, long n, double *out) {
    double lanes[LANES] = {0}, most = largest(x, n);
    for (long start = 0; start < n; start += BLOCK) {
        long length = smaller(n - start, BLOCK), whole = whole_lanes(length);
        exponentials(x + start, most, LEAST, out + start, length);
        for (long i = length; i < whole; i++) out[start + i] = 0;
        add_values(lanes, out + start, whole);
    }
    return sum_of(lanes);
}

/* KL(softmax(a) || softmax(b)), 1e-8 added to each probability; NaN where a softmax is. `room` has place for two
 * rows, each up to a multiple of LANES.
 *
 * Both distributions have the same sum, so that sums of p ln(p / q) - (p - q) are those of p ln(p / q). All of
 * these terms are positive, and small errors of p or q do not matter to them where both are nearly equal. */
double divergence(const float *a, const float *b, long n, double *room) {
    double *second = room + whole_lanes(n), lanes[LANES] = {0}, values[BLOCK];
    double a_total = exponentials_of(a, n, room), b_total = exponentials_of(b, n, second);
    for (long start = 0; start < n; start += BLOCK) {
        long length = smaller(n - start, BLOCK), whole = whole_lanes(length);
        terms(room + start, second + start, 1 / a_total, 1 / b_total, values, length);
        for (long i = length; i < whole; i++) values[i] = 0;
        add_values(lanes, values, whole);
    }
    /* Terms do not pass NaN on. */
    return isnan(a_total + b_total) ? NAN : sum_of(lanes);
}

int meldkit_has_divergences(void) { return meldkit_level() != 1; }

/* Of each row. */
void meldkit_divergences(const float *a, const float *b, long rows, long n, double *room, double *out) {
    for (long r = 0; r < rows; r++) out[r] = divergence(a + r * n, b + r * n, n, room);
}
