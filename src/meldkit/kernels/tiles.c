/* Tiles: rows of numbers that are read, worked on, measured and rounded block by block, so that they stay in the
 * first-level cache from the file to the output. tile.py says what each step does. */

#include "elements.h"
#include "measures.h"
#include "numbers.h"

/* Numbers that are read from a file at once. */
enum { PIECE = 16 * BLOCK };

/* Where the numbers of a row are: in memory, or from an offset of a file on. */
typedef struct {
    const char *memory;
    long offset;
    int file, type;
} source;

typedef struct {
    int operation;
    int row, other; /* registers */
    float a, b;
    const void *in;
    void *out, *room;
    long found;
} step;

/* Registers, of a block each: the base, the models, and others. */
typedef struct {
    const source *sources;
    step *steps;
    float *registers;
    char *pieces;
    char *out; /* of the numbers in register `result`, if it is wanted */
    long num_models, num_steps, n, grain;
    int has_base, check, result, type;
    int failed; /* which source */
    long got;   /* bytes of it */
} tile;

enum { FINE, INPUT_NOT_FINITE, RESULT_NOT_FINITE, CANNOT_READ };

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

/* Carries out the steps on all blocks. Returns one of the numbers above. */
int meldkit_tile(tile *t) {
    long m = t->num_models, num_sources = m + t->has_base;
    float *base = t->registers, *x = base + STRIDE;
    for (long start = 0, next; start < t->n; start = next) {
        /* Neither across a piece nor across a grain. */
        long in_piece = start % PIECE, in_grain = start % t->grain;
        long count = smaller(smaller(BLOCK, PIECE - in_piece), smaller(t->grain - in_grain, t->n - start));
        next = start + count;
        place at = {start, count, start / t->grain, in_grain == 0, next % t->grain == 0 || next == t->n};
        for (long k = 0; k < num_sources; k++) {
            const source *from = t->sources + k;
            long size = size_of(from->type);
            const char *stored = from->memory + size * start;
            if (from->memory == NULL) {
                char *piece = t->pieces + k * (PIECE + 32) * 4;
                if (in_piece == 0) {
                    long wanted = size * smaller(PIECE, t->n - start);
                    t->got = meldkit_read_bytes(from->file, from->offset + size * start, wanted, piece);
                    t->failed = (int)k;
                    if (t->got < wanted) {
                        if (t->got >= 0) t->got += size * start;
                        return CANNOT_READ;
                    }
                }
                stored = piece + size * in_piece;
            }
            t->failed = (int)k;
            float *row = t->has_base && k == 0 ? base : x + (k - t->has_base) * STRIDE;
            if (!meldkit_widen(from->type, stored, row, count) && t->check) return INPUT_NOT_FINITE;
            if (t->has_base && k > 0) subtract(row, base, count);
        }
        for (long k = 0; k < t->num_steps; k++) take_step(t->steps + k, x, m, &at);
        if (t->out == NULL) continue;
        float *result = x + t->result * STRIDE;
        if (t->has_base) add(result, base, count);
        char *place = t->out + size_of(t->type) * start;
        if (!meldkit_narrow(t->type, result, place, count)) return RESULT_NOT_FINITE;
    }
    return FINE;
}
