/* Ranks of the elements of rows by magnitude, ties by position; and what is kept by numbers below levels of ranks.
 *
 * Buckets of a row are numbered in the order of the magnitudes in them: one for zeros, then two for each step of
 * the exponent and the first bits of the fraction, of which the even one holds the only magnitude whose other bits
 * are 0. Numbers that were stored with few bits, and their differences, are nearly all in even buckets: there, ranks
 * follow from positions. In odd buckets positions give ranks that are off by less than the bucket has elements,
 * which seldom decides whether a random number is below the level of a rank.
 */

#include "draws.h"

/* Rows are counted in two halves, so that runs of equal numbers wait for each other less often. */
enum { HALVES = 2 };

/* Magnitudes from 2^-BELOW to 2^ABOVE times the middle ones have buckets of their own, at most so many. */
enum { BELOW = 5, ABOVE = 4, MOST_BUCKETS = 81 << 8 };

/* Elements of which it is estimated where the middle is. */
enum { SAMPLED = 256 };

/* How many elements are looked for one by one; sorted by insertion; from how many on by long digits; up to how many
 * counts of 16 bits go, with a sign. */
enum { FEW = 64, SHORT = 24, LONG = 4096, COUNTED = 65534 };

/* Room for the work on rows of n elements: words of 64 bits, of which kernels/ranks.py has enough. */
typedef struct {
    void *counts;      /* [HALVES MOST_BUCKETS] */
    uint64_t *items;   /* [2 n] */
    uint32_t *order;   /* [n] */
    uint16_t *buckets; /* [n] */
    uint16_t *levels;  /* [n] */
    uint8_t *flags;    /* [n + 16] */
} Room;

static Room divide_room(uint64_t *room, long n) {
    Room all;
    all.counts = room, room += HALVES * MOST_BUCKETS / 2;
    all.items = room, room += 2 * n;
    all.order = (uint32_t *)room, room += n / 2 + 1;
    all.buckets = (uint16_t *)room, room += n / 4 + 1;
    all.levels = (uint16_t *)room, room += n / 4 + 1;
    all.flags = (uint8_t *)room;
    return all;
}

static inline uint32_t magnitude(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits & 0x7FFFFFFF;
}

/* --- buckets ---------------------------------------------------------------------------------------------- */

/* `shift` is how many bits of a magnitude a bucket does not tell, `first` what the others are at the first bucket,
 * `last` the last bucket before they are spread out, `size` how many there are after that; `odd` whether many elements
 * are in odd buckets. */
typedef struct {
    int shift, first, last, size, odd;
} Scale;

/* Numbers with few bits are in every 64th bucket, say. The counts of these must not all be in the same part of the
 * cache: after so many buckets there are some that remain empty. */
static inline int spread_out(int bucket) { return bucket + (bucket >> 6 << 3); }

/* By the mean logarithm of some that are not 0: it decides how fast this is, no more. Magnitudes as whole numbers
 * are about their logarithms, among which a few large ones, or NaN, do not matter. */
static Scale scale_of(const float *row, long n) {
    int kept = n < 1024 ? 5 : n < 4096 ? 6 : n < 16384 ? 7 : n <= COUNTED ? 8 : 10, shift = 23 - kept;
    long total = 0, others = 0, odd = 0, step = (n + SAMPLED - 1) / SAMPLED;
    for (long i = 0; i < n; i += step) {
        uint32_t bits = magnitude(row[i]);
        total += bits, others += bits != 0, odd += (bits & ((1u << shift) - 1)) != 0;
    }
    long least = (others ? total / others : 0) - (BELOW << 23);
    int first = (int)(least < 0 ? 0 : least >> shift), last = ((BELOW + ABOVE) << (kept + 1)) - 1;
    return (Scale){shift, first, last, spread_out(last) + 1, odd > others / 4};
}

LOOP void find_buckets(const float *restrict row, long n, int shift, int first, int last, uint16_t *restrict out) {
    for (long i = 0; i < n; i++) {
        int32_t bits;
        memcpy(&bits, row + i, 4);
        bits &= 0x7FFFFFFF;
        int bucket = 2 * ((bits >> shift) - first) + ((bits & ((1 << shift) - 1)) != 0);
        bucket = bucket < 1 ? 1 : bucket;
        bucket = bucket > last ? last : bucket;
        out[i] = (uint16_t)(bits == 0 ? 0 : spread_out(bucket));
    }
}

/* Counts are of 16 or, where rows are longer, 32 bits; `wide` is known where these are compiled. */
static inline uint32_t at(const void *counts, int wide, long i) {
    return wide ? ((const uint32_t *)counts)[i] : ((const uint16_t *)counts)[i];
}

static inline uint32_t increase(void *counts, int wide, long i) {
    return wide ? ((uint32_t *)counts)[i]++ : ((uint16_t *)counts)[i]++;
}

/* How many elements each bucket has, of one half of the row and of the other. */
static inline void count_as(const uint16_t *buckets, long n, void *counts, int wide) {
    long half = n / HALVES;
    for (long i = 0; i < half; i++) {
        increase(counts, wide, HALVES * buckets[i]);
        increase(counts, wide, HALVES * buckets[half + i] + 1);
    }
    if (n % HALVES) increase(counts, wide, HALVES * buckets[n - 1] + 1);
}

/* Gives each element what by_rank has for the next place of its bucket and half; and the places theirs, if asked. */
static inline void place_as(const uint16_t *restrict buckets, long n, void *restrict next, int wide,
                            const uint16_t *restrict by_rank, uint16_t *restrict levels, uint32_t *restrict order) {
    long half = n / HALVES;
    for (long i = 0; i < half; i++) {
        uint32_t first = increase(next, wide, HALVES * buckets[i]);
        uint32_t second = increase(next, wide, HALVES * buckets[half + i] + 1);
        levels[i] = by_rank[first], levels[half + i] = by_rank[second];
        if (order) order[first] = (uint32_t)i, order[second] = (uint32_t)(half + i);
    }
    if (n % HALVES) {
        uint32_t last = increase(next, wide, HALVES * buckets[n - 1] + 1);
        levels[n - 1] = by_rank[last];
        if (order) order[last] = (uint32_t)(n - 1);
    }
}

/* Counts become how many there are before. Returns at least as many as the fullest odd bucket has; n is a multiple
 * of 8. */
static long sum_plainly(void *counts, int wide, long n) {
    uint32_t total = 0, most[4] = {0};
    for (long i = 0; i < n; i++) {
        uint32_t count = at(counts, wide, i);
        if (wide) ((uint32_t *)counts)[i] = total;
        else ((uint16_t *)counts)[i] = (uint16_t)total;
        total += count;
        most[i % 4] = count > most[i % 4] ? count : most[i % 4];
    }
    return (long)most[2] + most[3];
}

#if defined(__GNUC__) && !defined(__clang__)
typedef uint16_t Eight __attribute__((vector_size(16)));
typedef int16_t Signed __attribute__((vector_size(16)));

static long sum_short(uint16_t *counts, long n) {
    const Eight zero = {0};
    Eight total = zero, most = zero;
    for (long i = 0; i < n; i += 8) {
        Eight own, sums;
        memcpy(&own, counts + i, sizeof own);
        Eight more = (Eight)((Signed)own > (Signed)most);
        most = (own & more) | (most & ~more);
        sums = own + __builtin_shuffle(zero, own, (Eight){0, 8, 9, 10, 11, 12, 13, 14});
        sums += __builtin_shuffle(zero, sums, (Eight){0, 0, 8, 9, 10, 11, 12, 13});
        sums += __builtin_shuffle(zero, sums, (Eight){0, 0, 0, 0, 8, 9, 10, 11});
        own = sums - own + total;
        memcpy(counts + i, &own, sizeof own);
        total += __builtin_shuffle(sums, (Eight){7, 7, 7, 7, 7, 7, 7, 7});
    }
    return (most[2] > most[6] ? most[2] : most[6]) + (most[3] > most[7] ? most[3] : most[7]);
}
#else
static long sum_short(uint16_t *counts, long n) { return sum_plainly(counts, 0, n); }
#endif

/* Finds buckets, and levels that are right in even ones. Returns at least how many elements the fullest odd one has. */
static long arrange(const float *row, long n, Scale scale, const uint16_t *by_rank, const Room *room, int ordered) {
    int wide = n > COUNTED;
    long most, size = HALVES * (long)scale.size;
    find_buckets(row, n, scale.shift, scale.first, scale.last, room->buckets);
    memset(room->counts, 0, size * (wide ? 4 : 2));
    if (wide) {
        count_as(room->buckets, n, room->counts, 1);
        most = sum_plainly(room->counts, 1, size);
    } else {
        count_as(room->buckets, n, room->counts, 0);
        most = sum_short(room->counts, size);
    }
    if (wide && ordered) place_as(room->buckets, n, room->counts, 1, by_rank, room->levels, room->order);
    else if (wide) place_as(room->buckets, n, room->counts, 1, by_rank, room->levels, NULL);
    else if (ordered) place_as(room->buckets, n, room->counts, 0, by_rank, room->levels, room->order);
    else place_as(room->buckets, n, room->counts, 0, by_rank, room->levels, NULL);
    return most;
}

/* Where the elements of a bucket begin and end, which is not that of zeros, after all have been placed. */
static inline void bounds(const Room *room, long n, long bucket, long *start, long *end) {
    int wide = n > COUNTED;
    *start = at(room->counts, wide, HALVES * bucket - 1);
    *end = at(room->counts, wide, HALVES * bucket + HALVES - 1);
}

/* --- ranks ------------------------------------------------------------------------------------------------ */

/* A radix sort by the digits of items' upper halves; digits and bits of one are known where it is compiled. Returns
 * the items in order, there or in `other`. */
static inline uint64_t *sort_digits(uint64_t *items, uint64_t *other, long n, int bits, int digits) {
    uint32_t counts[4][1 << bits];
    uint64_t mask = ((uint64_t)1 << bits) - 1;
    memset(counts, 0, sizeof counts[0] * digits);
    for (long i = 0; i < n; i++)
        for (int d = 0; d < digits; d++) counts[d][items[i] >> (32 + bits * d) & mask]++;
    for (int d = 0; d < digits; d++) {
        int shift = 32 + bits * d;
        if (counts[d][items[0] >> shift & mask] == n) continue; /* all alike */
        uint32_t total = 0;
        for (long b = 0; b < 1 << bits; b++) {
            uint32_t count = counts[d][b];
            counts[d][b] = total, total += count;
        }
        for (long i = 0; i < n; i++) other[counts[d][items[i] >> shift & mask]++] = items[i];
        uint64_t *swap = items;
        items = other, other = swap;
    }
    return items;
}

/* Items are magnitudes above positions. As above. */
static uint64_t *sort(uint64_t *items, uint64_t *other, long n) {
    if (n <= SHORT) {
        for (long i = 1; i < n; i++) {
            uint64_t item = items[i];
            long j = i;
            for (; j > 0 && items[j - 1] > item; j--) items[j] = items[j - 1];
            items[j] = item;
        }
        return items;
    }
    return n < LONG ? sort_digits(items, other, n, 8, 4) : sort_digits(items, other, n, 11, 3);
}

static inline uint64_t item_of(const float *row, uint32_t i) { return (uint64_t)magnitude(row[i]) << 32 | i; }

/* Leaves in the room what by_rank has for the rank of each element. */
static void rank_row(const float *row, long n, const uint16_t *by_rank, const Room *room) {
    Scale scale = scale_of(row, n);
    if (n <= SHORT || scale.odd) {
        for (long i = 0; i < n; i++) room->items[i] = item_of(row, (uint32_t)i);
        uint64_t *sorted = sort(room->items, room->items + n, n);
        for (long r = 0; r < n; r++) room->levels[sorted[r] & 0xFFFFFFFF] = by_rank[r];
        return;
    }
    if (arrange(row, n, scale, by_rank, room, 1) < 2) return;
    for (long b = 1; b < scale.size; b += 2) {
        long start, end;
        bounds(room, n, b, &start, &end);
        if (end - start < 2) continue;
        for (long r = start; r < end; r++) room->items[r - start] = item_of(row, room->order[r]);
        uint64_t *sorted = sort(room->items, room->items + n, end - start);
        for (long r = start; r < end; r++) room->levels[sorted[r - start] & 0xFFFFFFFF] = by_rank[r];
    }
}

/* What by_rank has for the rank of each element of rows. */
void meldkit_by_rank(const float *rows, long num_rows, long n, const uint16_t *by_rank, uint64_t *room,
                     uint16_t *out) {
    Room all = divide_room(room, n);
    for (long r = 0; r < num_rows; r++) {
        all.levels = out + r * n;
        rank_row(rows + r * n, n, by_rank, &all);
    }
}

/* --- what is kept ----------------------------------------------------------------------------------------- */

LOOP long count_below(const float *restrict row, int32_t limit, long n) {
    int count = 0;
    for (long i = 0; i < n; i++) {
        int32_t bits;
        memcpy(&bits, row + i, 4);
        count += (bits & 0x7FFFFFFF) < limit;
    }
    return count;
}

static long rank_of(const float *row, long n, long i) {
    int32_t own = (int32_t)magnitude(row[i]);
    return count_below(row, own + 1, i) + count_below(row + i, own, n - i);
}

/* How much the levels of elements of a bucket of `count` differ at most. */
LOOP int widest(const uint16_t *restrict by_rank, long n, long count) {
    int most = 0;
    for (long i = 0; i + count <= n; i++) {
        int difference = by_rank[i + count - 1] - by_rank[i];
        difference = difference < 0 ? -difference : difference;
        most = difference > most ? difference : most;
    }
    return most;
}

/* Flags of numbers below levels; and which may be wrong, levels in odd buckets being off by up to `width`. Returns
 * whether there are any of these. */
LOOP int compare(const uint16_t *restrict numbers, const uint16_t *restrict levels, const uint16_t *restrict buckets,
                 uint16_t width, uint8_t *restrict flags, uint8_t *restrict unsure, long n) {
    uint8_t any = 0;
    uint16_t both = (uint16_t)(2 * width);
    for (long i = 0; i < n; i++) {
        flags[i] = numbers[i] < levels[i];
        unsure[i] = (uint8_t)(((uint16_t)(numbers[i] - levels[i] + width) < both) & buckets[i]);
        any |= unsure[i];
    }
    return any;
}

/* Whether a number is below the level of an element in an odd bucket: 0, 1, or 2 if its bucket does not tell. */
static int decide(const Room *room, long n, const uint16_t *by_rank, long i, int number) {
    long start, end;
    bounds(room, n, room->buckets[i], &start, &end);
    int low = by_rank[start], high = by_rank[end - 1];
    if (number < low && number < high) return 1;
    return number < low || number < high ? 2 : 0;
}

/* Draws and compares; `most` is how many elements an odd bucket has at most, up to 1 if levels are right. Returns 0
 * if too many elements could not be decided. */
static int keep_placed(const float *row, long n, const uint16_t *by_rank, const uint64_t *key, long start,
                       const Room *room, long most, uint8_t *flags) {
    int width = most < 2 ? 0 : widest(by_rank, n, most);
    long undecided[FEW], num_undecided = 0;
    uint16_t of_undecided[FEW];
    uint64_t drawn[ROOM(DRAWN)];
    if (width >= 1 << 14) return 0;
    for (long done = 0; done < n; done += DRAWN) {
        long length = smaller(n - done, DRAWN);
        uint8_t unsure[DRAWN + 8];
        const uint16_t *numbers = draw(key, start + done, length, drawn);
        memset(unsure + length, 0, 8);
        if (!compare(numbers, room->levels + done, room->buckets + done, (uint16_t)width, flags + done, unsure, length))
            continue;
        for (long i = 0; i < length; i += 8) {
            uint64_t eight;
            memcpy(&eight, unsure + i, 8);
            if (!eight) continue;
            for (long j = i; j < i + 8; j++) {
                if (!unsure[j]) continue;
                int kept = decide(room, n, by_rank, done + j, numbers[j]);
                flags[done + j] = kept & 1;
                if (kept < 2) continue;
                if (num_undecided == FEW) return 0;
                of_undecided[num_undecided] = numbers[j];
                undecided[num_undecided++] = done + j;
            }
        }
    }
    for (long u = 0; u < num_undecided; u++)
        flags[undecided[u]] = of_undecided[u] < by_rank[rank_of(row, n, undecided[u])];
    return 1;
}

/* Bits of numbers, drawn from element `start` on, below what by_rank has for the rank of their element in its row.
 * by_rank does not fall, or does not rise; n is more than SHORT. */
void meldkit_draw_by_rank(const float *rows, long num_rows, long n, const uint16_t *by_rank, const uint64_t *key,
                          long start, uint64_t *room, uint8_t *bits) {
    Room all = divide_room(room, n);
    long held = 0; /* flags that fill no byte yet */
    for (long r = 0; r < num_rows; r++) {
        const float *row = rows + r * n;
        long most = arrange(row, n, scale_of(row, n), by_rank, &all, 0), bytes = (held + n) / 8;
        if (!keep_placed(row, n, by_rank, key, start + r * n, &all, most, all.flags + held)) {
            rank_row(row, n, by_rank, &all);
            keep_placed(row, n, by_rank, key, start + r * n, &all, 0, all.flags + held);
        }
        pack_bits(all.flags, bits, bytes);
        bits += bytes, held = (held + n) % 8;
        memmove(all.flags, all.flags + 8 * bytes, held);
    }
    memset(all.flags + held, 0, 8);
    if (held) pack_bits(all.flags, bits, 1);
}
