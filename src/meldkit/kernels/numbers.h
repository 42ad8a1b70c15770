/* Numbers as they lie in files and in memory. */

#pragma once

#include "common.h"

/* Types of numbers in files. */
enum { F32, BF16, F16 };

static inline long size_of(int type) { return type == F32 ? 4 : 2; }

/* Reads as many bytes as there are. Returns how many, fewer than wanted at the end of the file; or -errno. */
long meldkit_read_bytes(int file, long offset, long wanted, char *out);
/* Makes float32 numbers of a type's, and the other way round. Returns whether all are finite, before and after. */
int meldkit_widen(int type, const void *from, float *to, long n);
int meldkit_narrow(int type, const float *from, void *to, long n);
/* Whether numbers of a type are all finite. */
int meldkit_finite(int type, const void *x, long n);
