/* Numbers as they lie in files and in memory. */

#pragma once

#include "common.h"

/* Types of numbers in files. */
enum { F32, BF16, F16 };

static inline long size_of(int type) { return type == F32 ? 4 : 2; }

/* Reads as many bytes as there are. Returns how many, fewer than wanted at the end of the file; or -errno. */
long meldkit_read_bytes(int file, long offset, long wanted, char *out);
/* Whether bytes of a file are in the page cache, or about to be; also if the system does not tell. To ask by
 * RWF_NOWAIT would begin to read them. */
int meldkit_cached(int file, long offset, long length);
