/* Tiles: rows of numbers that are read, worked on, measured and rounded block by block, so that they stay in the
 * first-level cache from the file to the output. tile.py says what each step does. */

#pragma once

#include "numbers.h"

/* Numbers that are read from a file at once. */
enum { PIECE = 16 * BLOCK };

/* Where the numbers of a row are: in memory, where number `first` is at its beginning, or from an offset of a file
 * on. */
typedef struct {
    const char *memory;
    long offset;
    int file, type;
    long first;
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
    float *grains;      /* room for a grain of each source, `grain_room` numbers apart, if there are divergences */
    float *divergences; /* of each grain of the second model from the first one, if they are wanted */
    double *room;       /* for these */
    long num_models, num_steps, n, grain, grain_room;
    int has_base, check, result, type;
    int failed; /* which source */
    long got;   /* bytes of it */
} tile;

enum { FINE, INPUT_NOT_FINITE, RESULT_NOT_FINITE, CANNOT_READ };

/* Carries out the steps on all blocks. Returns one of the numbers above. */
int meldkit_tile(tile *t);
/* The same on blocks of numbers [begin, end), of whole grains, without mapping files: compiled for any processor and
 * for levels of x86-64. */
int meldkit_tile_v1(tile *t, long begin, long end);
int meldkit_tile_v3(tile *t, long begin, long end);
int meldkit_tile_v4(tile *t, long begin, long end);
