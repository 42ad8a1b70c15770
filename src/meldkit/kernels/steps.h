/* How tiles are worked on: the text of tiles.c and its neighbours, which compile it for different processors. */

#include "tile.h"

#include "divergences.h"
#include "measures.h"
#include "types.h"

/* --- steps ------------------------------------------------------------------------------------------------ */

enum {
    COMBINE, ELECT, ZERO_BELOW, ZERO_ABOVE, CLAMP, KEEP_BITS, VARIANCE, CHANGED, AVERAGE, DIVIDE, IMPORTANCE, TAKE,
    STORE, AT_LEAST, COUNT, ALONE, NORM, GRAM
};

static void take_step(step *s, float *x, long m, const place *at) {
    float *row = x + s->row * STRIDE, *other = x + s->other * STRIDE;
    long n = at->n;
    int64_t *counts = s->out;
    int part[2];
    switch (s->operation) {
        case COMBINE: combine(x, m, s->in, s->a, n); break;
        case ELECT: elect(x, m, s->in, s->a, s->b, n); break;
        case ZERO_BELOW: zero_below(row, s->a, n); break;
        case ZERO_ABOVE: zero_above(row, s->a, n); break;
        case CLAMP: clamp(row, s->a, s->b, n); break;
        case KEEP_BITS: keep_bits(row, s->in, at->start, n); break;
        case VARIANCE: variance(x, m, row, n); break;
        case CHANGED: sum_changed(x, m, s->a, row, other, n); break;
        case AVERAGE: average_changed(x, m, s->in, row, other, n); break;
        case DIVIDE: divide_each(row, (const uint16_t *)s->in + at->start, n); break;
        case IMPORTANCE: importance(x, x + STRIDE, ((const float *)s->in)[at->grain], row, n); break;
        case TAKE: take(x, x + STRIDE, row, s->a, n); break;
        case STORE: memcpy((float *)s->out + at->start, row, sizeof(float) * n); break;
        case AT_LEAST: at_least(row, s->a, (uint8_t *)s->out + at->start / 8, n); break;
        case COUNT: s->found += count_magnitudes(row, s->a, s->b, s->out, (float *)s->room + s->found, n); break;
        case ALONE:
            count_alone(row, other, part, n);
            counts[0] += part[0], counts[1] += part[1];
            break;
        case NORM: add_norm(row, s->room, s->out, at); break;
        case GRAM: add_gram(row, s->other, s->room, s->out, at); break;
    }
}

/* Reads numbers [start, start + n) of a source that is a file, at most PIECE of them. Returns one of the numbers in
 * tile.h. */
static int fetch(tile *t, long k, long start, long n, char *piece) {
    const source *from = t->sources + k;
    long size = size_of(from->type);
    t->failed = (int)k;
    t->got = meldkit_read_bytes(from->file, from->offset + size * start, size * n, piece);
    if (t->got == size * n) return FINE;
    if (t->got >= 0) t->got += size * start;
    return CANNOT_READ;
}

static char *piece_of(const tile *t, long k) { return t->pieces + k * (PIECE + 32) * 4; }

/* Reads a whole grain of all sources, and finds how far its second model is from its first one. As fetch. */
static int read_grain(tile *t, long start, long n) {
    long num_sources = t->num_models + t->has_base;
    for (long k = 0; k < num_sources; k++) {
        const source *from = t->sources + k;
        for (long done = 0, count; done < n; done += count) {
            count = smaller(PIECE, n - done);
            const char *stored = from->memory + size_of(from->type) * (start + done - from->first);
            if (from->memory == NULL) {
                stored = piece_of(t, k);
                if (fetch(t, k, start + done, count, piece_of(t, k)) != FINE) return CANNOT_READ;
            }
            float *to = t->grains + k * t->grain_room + done;
            if (!widen(from->type, stored, NULL, to, count) && t->check) return INPUT_NOT_FINITE;
        }
    }
    const float *first = t->grains + t->has_base * t->grain_room, *second = first + t->grain_room;
    t->divergences[start / t->grain] = (float)divergence(second, first, n, t->room);
    return FINE;
}

int RUN(tile *t, long begin, long end) {
    long m = t->num_models, num_sources = m + t->has_base;
    float *base = t->registers, *x = base + STRIDE;
    for (long start = begin, next; start < end; start = next) {
        /* Neither across a piece nor across a grain. */
        long in_piece = start % PIECE, in_grain = start % t->grain;
        long count = smaller(smaller(BLOCK, PIECE - in_piece), smaller(t->grain - in_grain, t->n - start));
        next = start + count;
        place at = {start, count, start / t->grain, in_grain == 0, next % t->grain == 0 || next == t->n};
        if (t->grains != NULL && in_grain == 0) {
            int result = read_grain(t, start, smaller(t->grain, t->n - start));
            if (result != FINE) return result;
        }
        for (long k = 0; k < num_sources; k++) {
            const source *from = t->sources + k;
            int type = from->type;
            const char *stored = from->memory + size_of(type) * (start - from->first);
            if (t->grains != NULL) {
                type = F32, stored = (const char *)(t->grains + k * t->grain_room + in_grain);
            } else if (from->memory == NULL) {
                long first = start - in_piece, wanted = smaller(PIECE, t->n - first);
                stored = piece_of(t, k) + size_of(type) * in_piece;
                if ((in_piece == 0 || start == begin) && fetch(t, k, first, wanted, piece_of(t, k)) != FINE)
                    return CANNOT_READ;
            }
            float *row = t->has_base && k == 0 ? base : x + (k - t->has_base) * STRIDE;
            const float *subtracted = t->has_base && k > 0 ? base : NULL;
            t->failed = (int)k;
            if (!widen(type, stored, subtracted, row, count) && t->check) return INPUT_NOT_FINITE;
        }
        for (long k = 0; k < t->num_steps; k++) take_step(t->steps + k, x, m, &at);
        if (t->out == NULL) continue;
        const float *result = x + t->result * STRIDE, *added = t->has_base ? base : NULL;
        char *place = t->out + size_of(t->type) * start;
        if (!narrow(t->type, result, added, place, count)) return RESULT_NOT_FINITE;
    }
    return FINE;
}
