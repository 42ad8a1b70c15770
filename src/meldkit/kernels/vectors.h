/* Vectors of float32, of whole numbers and of flags, as wide as the registers of the processors that the including
 * file is compiled for: 4 and 3 are levels of x86-64, 0 is any machine. Flags have all bits set, or none. */

#pragma once

#include "common.h"

#if LEVEL > 0
#include <immintrin.h>
#endif

#if LEVEL == 4
enum { WIDTH = 64 };
#elif LEVEL == 3
enum { WIDTH = 32 };
#else
enum { WIDTH = 16 };
#endif

/* Numbers of a vector. */
enum { EACH = WIDTH / 4 };

typedef float floats __attribute__((vector_size(WIDTH)));
typedef int32_t words __attribute__((vector_size(WIDTH)));

/* From and to the registers of a tile, where vectors begin with cache lines. */
static inline floats load(const float *from) { return *(const floats *)from; }
static inline void store(float *to, floats values) { *(floats *)to = values; }

static inline floats all(float value) { return value - (floats){0}; }
static inline floats magnitudes(floats x) { return (floats)((words)x & 0x7fffffff); }
/* What is flagged, and 0 elsewhere; one or the other. */
static inline floats flagged(words flags, floats x) { return (floats)((words)x & flags); }
static inline floats choose(words flags, floats a, floats b) {
    return (floats)(((words)a & flags) | ((words)b & ~flags));
}

/* a b + c, rounded once. */
static inline floats fused(floats a, floats b, floats c) {
#if LEVEL == 4
    return _mm512_fmadd_ps(a, b, c);
#elif LEVEL == 3
    return _mm256_fmadd_ps(a, b, c);
#else
    for (int l = 0; l < EACH; l++) c[l] = fmaf(a[l], b[l], c[l]);
    return c;
#endif
}

#if LEVEL == 3
/* Of eight flags as bits, where each flagged number comes from when all of them move to the front. */
extern uint64_t fronts[256];
#endif

/* Writes those that are flagged to `out`, which has room for a vector, one after the other. Returns how many. */
static inline long put(float *out, words flags, floats x) {
#if LEVEL == 4
    __mmask16 mask = _mm512_movepi32_mask((__m512i)flags);
    _mm512_storeu_ps(out, _mm512_maskz_compress_ps(mask, x));
    return __builtin_popcount(mask);
#elif LEVEL == 3
    int mask = _mm256_movemask_ps((__m256)flags);
    __m256i from = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)fronts[mask]));
    _mm256_storeu_ps(out, _mm256_permutevar8x32_ps(x, from));
    return __builtin_popcount((unsigned)mask);
#else
    long n = 0;
    for (int l = 0; l < EACH; l++) out[n] = x[l], n += flags[l] & 1;
    return n;
#endif
}

/* The sum of a vector's words. */
static inline long total_of(words x) {
    long total = 0;
    for (int l = 0; l < EACH; l++) total += x[l];
    return total;
}
