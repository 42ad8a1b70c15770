/* What the files of the library share.
 *
 * The inner loops that meldkit spends its time in, each of them once over its data. __init__.py and its
 * neighbours say what each function computes, and do the same in PyTorch and NumPy where these files could not be
 * compiled. Rows of a tile [m, n] begin `stride` elements apart.
 *
 * Loops over a block stand in functions of their own whose pointers are `restrict`: that is what lets compilers
 * turn them into vector instructions. Sums are formed in a fixed number of lanes, so that they do not depend on
 * the width of the processor's registers. To be compiled with -ffp-contract=off: where a product is added
 * without rounding it first, fma says so.
 */

#pragma once

#define _GNU_SOURCE
#include <errno.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define CLONES 1
#else
#define CLONES 0
#endif

#if defined(LEVEL)
/* The text is compiled once for each level, and one of them is chosen when it is called. */
#define LOOP __attribute__((noinline)) static
#elif CLONES
/* The widest version that the processor can run is chosen when the library is loaded. */
#define LOOP __attribute__((noinline, target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default"))) static
#else
#define LOOP static
#endif

/* Where products may be added without rounding them first, on processors that can. */
#if CLONES
#define FUSED_LOOP LOOP __attribute__((optimize("fp-contract=fast")))
#else
#define FUSED_LOOP LOOP
#endif

/* From the beginning of a cache line on: vectors that lie across two take twice as long to load. */
#define ALIGNED _Alignas(64)

/* Of the instructions that the loops use; 0 where there is one version only. */
int meldkit_level(void);

/* Elements of a block, of which a few fit the first-level cache; a multiple of LANES. */
enum { BLOCK = 1024, LANES = 16 };

static inline long smaller(long a, long b) { return a < b ? a : b; }

static inline double sum_of(const double *lanes) {
    double total = 0;
    for (int l = 0; l < LANES; l++) total += lanes[l];
    return total;
}
