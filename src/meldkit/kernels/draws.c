/* Random numbers, and what is kept by them.
 *
 * Philox4x64-10 (Salmon et al., SC 2011) as numpy runs it: the counter is increased before it is used. Each step
 * gives sixteen numbers of 16 bits. Of arrays of bits, the highest bit of a byte is first.
 */

#include "draws.h"

/* Constants of the generator. */
#define FIRST_FACTOR 0xD2E7470EE14C6C93u
#define SECOND_FACTOR 0xCA5A826395121157u
#define FIRST_WEYL 0x9E3779B97F4A7C15u
#define SECOND_WEYL 0xBB67AE8584CAA73Bu

enum { ROUNDS = 10 };

/* A round of a counter. */
static inline void mix(uint64_t *c, const uint64_t *key) {
    unsigned __int128 a = (unsigned __int128)FIRST_FACTOR * c[0], b = (unsigned __int128)SECOND_FACTOR * c[2];
    uint64_t first = (uint64_t)(b >> 64) ^ c[1] ^ key[0], third = (uint64_t)(a >> 64) ^ c[3] ^ key[1];
    c[0] = first, c[1] = (uint64_t)b, c[2] = third, c[3] = (uint64_t)a;
}

static void scalar_steps(uint64_t keys[ROUNDS][2], uint64_t counter, long n, uint64_t *out) {
    for (long i = 0; i < n; i++, out += 4) {
        uint64_t c[4] = {counter + i};
        for (int r = 0; r < ROUNDS; r++) mix(c, keys[r]);
        memcpy(out, c, sizeof c);
    }
}

#if CLONES
#include <immintrin.h>

typedef uint64_t Four __attribute__((vector_size(32)));

/* How many vectors of counters, and counters outside them, go through a round together: products of vectors and
 * of single numbers are formed by different parts of the processor, and neither of them alone is as fast. */
enum { VECTORS = 2, SINGLES = 3, TOGETHER = 4 * VECTORS + SINGLES };

#define WIDE __attribute__((target("arch=x86-64-v3")))

/* Both halves of products of 64 bits, from products of 32 bits. */
WIDE static inline Four multiply_high(Four x, uint64_t factor, Four *low) {
    const Four half = {0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF};
    __m256i lower = _mm256_set1_epi64x((long long)(factor & 0xFFFFFFFF));
    __m256i upper = _mm256_set1_epi64x((long long)(factor >> 32)), x_upper = (__m256i)(x >> 32);
    Four lowest = (Four)_mm256_mul_epu32((__m256i)x, lower);
    Four middle = (lowest >> 32) + (Four)_mm256_mul_epu32((__m256i)x, upper);
    Four carried = (middle & half) + (Four)_mm256_mul_epu32(x_upper, lower);
    *low = (Four)_mm256_blend_epi32((__m256i)lowest, (__m256i)(carried << 32), 0xAA);
    return (Four)_mm256_mul_epu32(x_upper, upper) + (middle >> 32) + (carried >> 32);
}

WIDE static inline void mix_four(Four *c, const uint64_t *key) {
    Four a_low, b_low;
    Four a = multiply_high(c[0], FIRST_FACTOR, &a_low), b = multiply_high(c[2], SECOND_FACTOR, &b_low);
    c[0] = b ^ c[1] ^ key[0], c[1] = b_low, c[2] = a ^ c[3] ^ key[1], c[3] = a_low;
}

/* As many of n steps as come out even; returns how many. */
WIDE static long wide_steps(uint64_t keys[ROUNDS][2], uint64_t counter, long n, uint64_t *out) {
    long i;
    for (i = 0; i + TOGETHER <= n; i += TOGETHER, out += 4 * TOGETHER) {
        Four fours[VECTORS][4];
        uint64_t singles[SINGLES][4];
        for (int v = 0; v < VECTORS; v++) {
            memset(fours[v], 0, sizeof fours[v]);
            fours[v][0] = (Four){0, 1, 2, 3} + (counter + i + 4 * v);
        }
        memset(singles, 0, sizeof singles);
        for (int s = 0; s < SINGLES; s++) singles[s][0] = counter + i + 4 * VECTORS + s;
#pragma GCC unroll 10
        for (int r = 0; r < ROUNDS; r++) {
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; v++) mix_four(fours[v], keys[r]);
#pragma GCC unroll 4
            for (int s = 0; s < SINGLES; s++) mix(singles[s], keys[r]);
        }
        for (int v = 0; v < VECTORS; v++)
            for (int l = 0; l < 4; l++)
                for (int w = 0; w < 4; w++) out[16 * v + 4 * l + w] = fours[v][w][l];
        memcpy(out + 16 * VECTORS, singles, sizeof singles);
    }
    return i;
}
#endif

static void steps(const uint64_t *key, uint64_t counter, long n, uint64_t *out) {
    uint64_t keys[ROUNDS][2] = {{key[0], key[1]}};
    long done = 0;
    for (int r = 1; r < ROUNDS; r++) {
        keys[r][0] = keys[r - 1][0] + FIRST_WEYL;
        keys[r][1] = keys[r - 1][1] + SECOND_WEYL;
    }
#if CLONES
    if (__builtin_cpu_supports("x86-64-v3")) done = wide_steps(keys, counter, n, out);
#endif
    scalar_steps(keys, counter + done, n - done, out + 4 * done);
}

const uint16_t *draw(const uint64_t *key, long start, long n, uint64_t *room) {
    long skip = start % PER_STEP;
    steps(key, (uint64_t)(start / PER_STEP) + 1, (skip + n + PER_STEP - 1) / PER_STEP, room);
    return (const uint16_t *)room + skip;
}

/* Eight flags to a byte: the products move the lowest bit of each of eight bytes to its place in the highest byte,
 * where none of them meet. */
LOOP void pack_flags(const uint8_t *restrict flags, uint8_t *restrict bits, long bytes) {
    for (long i = 0; i < bytes; i++) {
        uint64_t eight;
        memcpy(&eight, flags + 8 * i, 8);
        bits[i] = (uint8_t)(eight * 0x8040201008040201u >> 56);
    }
}

void pack_bits(const uint8_t *flags, uint8_t *bits, long bytes) { pack_flags(flags, bits, bytes); }

LOOP void flag_at_most(const uint16_t *restrict numbers, uint16_t most, uint8_t *restrict flags, long n) {
    for (long i = 0; i < n; i++) flags[i] = numbers[i] <= most;
}

LOOP void flag_below(const uint16_t *restrict numbers, const uint16_t *restrict levels, uint8_t *restrict flags,
                     long n) {
    for (long i = 0; i < n; i++) flags[i] = numbers[i] < levels[i];
}

/* The numbers of elements from `start` on. */
void meldkit_draw(const uint64_t *key, long start, long n, uint16_t *out) {
    uint64_t room[ROOM(DRAWN)];
    for (long done = 0; done < n; done += DRAWN) {
        long length = smaller(n - done, DRAWN);
        memcpy(out + done, draw(key, start + done, length, room), 2 * length);
    }
}

/* Bits of numbers that are at most `most`. */
void meldkit_draw_at_most(const uint64_t *key, long start, long n, int most, uint8_t *bits) {
    uint64_t room[ROOM(DRAWN)];
    for (long done = 0; done < n; done += DRAWN) {
        long length = smaller(n - done, DRAWN);
        uint8_t flags[DRAWN] = {0};
        flag_at_most(draw(key, start + done, length, room), (uint16_t)most, flags, length);
        pack_flags(flags, bits + done / 8, (length + 7) / 8);
    }
}

/* Bits of numbers that are below the levels of their elements. */
void meldkit_draw_below(const uint64_t *key, long start, long n, const uint16_t *levels, uint8_t *bits) {
    uint64_t room[ROOM(DRAWN)];
    for (long done = 0; done < n; done += DRAWN) {
        long length = smaller(n - done, DRAWN);
        uint8_t flags[DRAWN] = {0};
        flag_below(draw(key, start + done, length, room), levels + done, flags, length);
        pack_flags(flags, bits + done / 8, (length + 7) / 8);
    }
}
