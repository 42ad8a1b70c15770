/* Many counters at once: the text of draws_v3.c and draws_v4.c. */

#include "philox.h"
#include "vectors.h"

typedef uint64_t counters __attribute__((vector_size(WIDTH)));

/* How many vectors of counters, and counters outside them, go through a round together: products of vectors and
 * of single numbers are formed by different parts of the processor, and neither of them alone is as fast. */
enum { LONGS = WIDTH / 8, VECTORS = 2, SINGLES = 3 * LONGS / 4, TOGETHER = LONGS * VECTORS + SINGLES };

/* Products of the lower halves of words. */
static inline counters multiply(counters a, counters b) {
#if LEVEL == 4
    return (counters)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#else
    return (counters)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#endif
}

/* Both halves of products of 64 bits, from products of 32 bits. */
static inline counters multiply_high(counters x, uint64_t factor, counters *low) {
    const counters zero = {0}, lower = zero + (factor & 0xFFFFFFFF), upper = zero + (factor >> 32), x_upper = x >> 32;
    counters lowest = multiply(x, lower), middle = (lowest >> 32) + multiply(x, upper);
    counters carried = (middle & 0xFFFFFFFF) + multiply(x_upper, lower);
    *low = (lowest & 0xFFFFFFFF) | carried << 32;
    return multiply(x_upper, upper) + (middle >> 32) + (carried >> 32);
}

static inline void mix_vector(counters *c, const uint64_t *key) {
    counters a_low, b_low;
    counters a = multiply_high(c[0], FIRST_FACTOR, &a_low), b = multiply_high(c[2], SECOND_FACTOR, &b_low);
    c[0] = b ^ c[1] ^ key[0], c[1] = b_low, c[2] = a ^ c[3] ^ key[1], c[3] = a_low;
}

long STEPS(uint64_t keys[ROUNDS][2], uint64_t counter, long n, uint64_t *out) {
    long i;
    for (i = 0; i + TOGETHER <= n; i += TOGETHER, out += 4 * TOGETHER) {
        counters vectors[VECTORS][4] = {0}, first;
        uint64_t singles[SINGLES][4] = {0};
        for (int l = 0; l < LONGS; l++) first[l] = counter + i + l;
        for (int v = 0; v < VECTORS; v++) vectors[v][0] = first + LONGS * v;
        for (int s = 0; s < SINGLES; s++) singles[s][0] = counter + i + LONGS * VECTORS + s;
#pragma GCC unroll 10
        for (int r = 0; r < ROUNDS; r++) {
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; v++) mix_vector(vectors[v], keys[r]);
#pragma GCC unroll 8
            for (int s = 0; s < SINGLES; s++) mix(singles[s], keys[r]);
        }
        for (int v = 0; v < VECTORS; v++)
            for (int l = 0; l < LONGS; l++)
                for (int w = 0; w < 4; w++) out[4 * (LONGS * v + l) + w] = vectors[v][w][l];
        memcpy(out + 4 * LONGS * VECTORS, singles, sizeof singles);
    }
    return i;
}
