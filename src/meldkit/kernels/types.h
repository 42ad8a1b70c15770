/* Numbers of the types of files: made float32, and the other way round. */

#pragma once

#include "numbers.h"

/* Bits of the least magnitude that a type cannot hold: of infinity, and of what is rounded to it. */
enum { FINITE_END = 0x7f800000, BF16_END = 0x7f7f8000, F16_END = 0x477ff000 };

#if defined(__FLT16_MAX__)
enum { HAS_HALF = 1 };
typedef _Float16 half;
#else
enum { HAS_HALF = 0 };
typedef uint16_t half; /* never used */
#endif

/* Number i of a type, which is known where this is compiled. bfloat16 is the upper half of float32. */
static inline float number(int type, const void *from, long i) {
    float value;
    half small;
    uint32_t bits;
    if (type == BF16) {
        bits = (uint32_t)((const uint16_t *)from)[i] << 16;
        memcpy(&value, &bits, 4);
    } else if (type == F16) {
        memcpy(&small, (const uint16_t *)from + i, 2);
        value = (float)small;
    } else {
        memcpy(&value, (const float *)from + i, 4);
    }
    return value;
}

/* Rounds to the nearest, of two equally near ones to the even one. */
static inline void put_number(int type, float value, void *to, long i) {
    uint32_t bits;
    if (type == BF16) {
        memcpy(&bits, &value, 4);
        ((uint16_t *)to)[i] = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    } else if (type == F16) {
        half small = (half)value;
        memcpy((uint16_t *)to + i, &small, 2);
    } else {
        memcpy((float *)to + i, &value, 4);
    }
}

/* The bits of a magnitude; as whole numbers they have the order of the magnitudes, NaN being the largest. */
static inline int32_t magnitude_bits(float x) {
    int32_t bits;
    memcpy(&bits, &x, 4);
    return bits & 0x7fffffff;
}

static inline int32_t larger(int32_t a, int32_t b) { return a > b ? a : b; }

/* The largest magnitude of the numbers that are read; a base is taken from them, if there is one. */
static inline int32_t widen_as(int type, const void *restrict from, const float *restrict base, float *restrict to,
                               long n) {
    int32_t most = 0;
    for (long i = 0; i < n; i++) {
        float value = number(type, from, i);
        most = larger(most, magnitude_bits(value));
        to[i] = base == NULL ? value : value - base[i];
    }
    return most;
}

/* The largest magnitude of the numbers before they are rounded; a base is added to them, if there is one. */
static inline int32_t narrow_as(int type, const float *restrict from, const float *restrict base, void *restrict to,
                                long n) {
    int32_t most = 0;
    for (long i = 0; i < n; i++) {
        float value = base == NULL ? from[i] : from[i] + base[i];
        most = larger(most, magnitude_bits(value));
        put_number(type, value, to, i);
    }
    return most;
}

#define CONVERSIONS(name, type)                                                                                      \
    LOOP int32_t widen_##name(const void *from, const float *base, float *to, long n) {                              \
        return base == NULL ? widen_as(type, from, NULL, to, n) : widen_as(type, from, base, to, n);                 \
    }                                                                                                                \
    LOOP int32_t narrow_##name(const float *from, const float *base, void *to, long n) {                             \
        return base == NULL ? narrow_as(type, from, NULL, to, n) : narrow_as(type, from, base, to, n);               \
    }

CONVERSIONS(bf16, BF16)
CONVERSIONS(f16, F16)
CONVERSIONS(f32, F32)

/* Makes float32 numbers of a type's, less those of a base unless it is NULL. Returns whether all are finite. */
static inline int widen(int type, const void *from, const float *base, float *to, long n) {
    if (type == BF16) return widen_bf16(from, base, to, n) < FINITE_END;
    if (type == F16) return widen_f16(from, base, to, n) < FINITE_END;
    return widen_f32(from, base, to, n) < FINITE_END;
}

/* Rounds numbers to a type's, with those of a base added unless it is NULL. Returns whether all are finite then. */
static inline int narrow(int type, const float *from, const float *base, void *to, long n) {
    if (type == BF16) return narrow_bf16(from, base, to, n) < BF16_END;
    if (type == F16) return narrow_f16(from, base, to, n) < F16_END;
    return narrow_f32(from, base, to, n) < FINITE_END;
}
