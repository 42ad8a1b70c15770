/* Ranks of the elements of rows. */

#include "common.h"

/* A radix sort by the bytes of the magnitudes, each with its place beside it. `room` has place for 2 n. */
static void rank_row(const float *row, long n, const uint16_t *by_rank, uint64_t *room, uint16_t *out) {
    uint64_t *from = room, *to = room + n;
    uint32_t counts[4][256];
    memset(counts, 0, sizeof counts);
    for (long i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, row + i, 4);
        bits &= 0x7FFFFFFF;
        from[i] = (uint64_t)bits << 32 | (uint64_t)i;
        for (int d = 0; d < 4; d++) counts[d][bits >> 8 * d & 255]++;
    }
    for (int d = 0; d < 4; d++) {
        int shift = 32 + 8 * d;
        if (counts[d][from[0] >> shift & 255] == n) continue; /* all alike */
        uint32_t next[256], total = 0;
        for (int b = 0; b < 256; b++) next[b] = total, total += counts[d][b];
        for (long i = 0; i < n; i++) to[next[from[i] >> shift & 255]++] = from[i];
        uint64_t *swap = from;
        from = to, to = swap;
    }
    for (long r = 0; r < n; r++) out[from[r] & 0xFFFFFFFF] = by_rank[r];
}

void meldkit_by_rank(const float *rows, long num_rows, long n, const uint16_t *by_rank, uint64_t *room,
                     uint16_t *out) {
    for (long r = 0; r < num_rows; r++) rank_row(rows + r * n, n, by_rank, room, out + r * n);
}
