/* Random numbers, and what is kept by them.
 *
 * Philox4x64-10 (Salmon et al., SC 2011) as numpy runs it: the counter is increased before it is used. Each step
 * gives sixteen numbers of 16 bits. Of arrays of bits, the highest bit of a byte is first.
 */

#include "draws.h"
#include "philox.h"

static void scalar_steps(uint64_t keys[ROUNDS][2], uint64_t counter, long n, uint64_t *out) {
    for (long i = 0; i < n; i++, out += 4) {
        uint64_t c[4] = {counter + i};
        for (int r = 0; r < ROUNDS; r++) mix(c, keys[r]);
        memcpy(out, c, sizeof c);
    }
}

static void steps(const uint64_t *key, uint64_t counter, long n, uint64_t *out) {
    uint64_t keys[ROUNDS][2] = {{key[0], key[1]}};
    long done = 0;
    for (int r = 1; r < ROUNDS; r++) {
        keys[r][0] = keys[r - 1][0] + FIRST_WEYL;
        keys[r][1] = keys[r - 1][1] + SECOND_WEYL;
    }
#if CLONES
    int level = meldkit_level();
    if (level == 4) done = wide_steps_v4(keys, counter, n, out);
    if (level == 3) done = wide_steps_v3(keys, counter, n, out);
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
