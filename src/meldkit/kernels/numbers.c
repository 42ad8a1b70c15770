/* Numbers as they lie in files: read, rounded to, and looked at. */

#include "numbers.h"

#include <sys/mman.h>
#include <unistd.h>

int meldkit_level(void) {
#if CLONES
    return __builtin_cpu_supports("x86-64-v4") ? 4 : __builtin_cpu_supports("x86-64-v3") ? 3 : 1;
#else
    return 0;
#endif
}

/* Bits of the least magnitude that a type cannot hold: of infinity, and of what is rounded to it. */
enum { FINITE_END = 0x7f800000, BF16_END = 0x7f7f8000, F16_END = 0x477ff000 };

/* --- types ------------------------------------------------------------------------------------------------ */

/* The bits of a magnitude; as whole numbers they have the order of the magnitudes, NaN being the largest. */
static inline int32_t magnitude(const float *x) {
    int32_t bits;
    memcpy(&bits, x, 4);
    return bits & 0x7fffffff;
}

static inline int32_t larger(int32_t a, int32_t b) { return a > b ? a : b; }

/* bfloat16 is the upper half of float32. */
LOOP int32_t widen(const uint16_t *restrict from, float *restrict to, long n) {
    int32_t most = 0;
    for (long i = 0; i < n; i++) {
        uint32_t bits = (uint32_t)from[i] << 16;
        memcpy(to + i, &bits, 4);
        most = larger(most, (int32_t)(bits & 0x7fffffff));
    }
    return most;
}

/* Rounds to the nearest, of two equally near ones to the even one. */
LOOP int32_t narrow(const float *restrict from, uint16_t *restrict to, long n) {
    int32_t most = 0;
    for (long i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, from + i, 4);
        to[i] = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
        most = larger(most, (int32_t)(bits & 0x7fffffff));
    }
    return most;
}

LOOP int32_t copy(const float *restrict from, float *restrict to, long n) {
    int32_t most = 0;
    for (long i = 0; i < n; i++) {
        to[i] = from[i];
        most = larger(most, magnitude(from + i));
    }
    return most;
}

#if defined(__FLT16_MAX__)
LOOP int32_t widen_half(const uint16_t *restrict from, float *restrict to, long n) {
    int32_t most = 0;
    for (long i = 0; i < n; i++) {
        _Float16 value;
        memcpy(&value, from + i, 2);
        to[i] = (float)value;
        most = larger(most, from[i] & 0x7fff);
    }
    return most < 0x7c00 ? 0 : FINITE_END;
}

LOOP int32_t narrow_half(const float *restrict from, uint16_t *restrict to, long n) {
    int32_t most = 0;
    for (long i = 0; i < n; i++) {
        _Float16 value = (_Float16)from[i];
        memcpy(to + i, &value, 2);
        most = larger(most, magnitude(from + i));
    }
    return most;
}

int meldkit_has_half(void) { return 1; }
#else
static int32_t widen_half(const uint16_t *from, float *to, long n) { return (void)from, (void)to, (void)n, 0; }
static int32_t narrow_half(const float *from, uint16_t *to, long n) { return (void)from, (void)to, (void)n, 0; }
int meldkit_has_half(void) { return 0; }
#endif

int meldkit_widen(int type, const void *from, float *to, long n) {
    if (type == BF16) return widen(from, to, n) < FINITE_END;
    if (type == F16) return widen_half(from, to, n) < FINITE_END;
    return copy(from, to, n) < FINITE_END;
}

int meldkit_narrow(int type, const float *from, void *to, long n) {
    if (type == BF16) return narrow(from, to, n) < BF16_END;
    if (type == F16) return narrow_half(from, to, n) < F16_END;
    return copy(from, to, n) < FINITE_END;
}

/* Whether numbers of a type are all finite: the exponent of others has all bits set. */
LOOP int finite_words(const float *restrict x, uint32_t exponent, long n) {
    int others = 0;
    for (long i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, 4);
        others |= (bits & exponent) == exponent;
    }
    return !others;
}

LOOP int finite_halves(const uint16_t *restrict x, uint16_t exponent, long n) {
    int others = 0;
    for (long i = 0; i < n; i++) others |= (x[i] & exponent) == exponent;
    return !others;
}

int meldkit_finite(int type, const void *x, long n) {
    if (type == F32) return finite_words(x, 0x7f800000, n);
    return finite_halves(x, type == BF16 ? 0x7f80 : 0x7c00, n);
}

/* --- reading ---------------------------------------------------------------------------------------------- */

long meldkit_read_bytes(int file, long offset, long wanted, char *out) {
    long got = 0;
    while (got < wanted) {
        ssize_t count = pread(file, out + got, wanted - got, offset + got);
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) return -errno;
        if (count == 0) break;
        got += count;
    }
    return got;
}

/* Whether bytes of a file are in the page cache; also if the system does not tell. To ask by RWF_NOWAIT would
 * begin to read them. */
int meldkit_cached(int file, long offset, long length) {
    unsigned char pages[1024];
    long page = sysconf(_SC_PAGESIZE), end = offset + length;
    for (long start = offset / page * page; start < end; start += page * (long)sizeof pages) {
        long size = smaller(end - start, page * (long)sizeof pages), others = 0;
        void *mapped = mmap(NULL, size, PROT_READ, MAP_SHARED, file, start);
        if (mapped == MAP_FAILED) return 1;
        int known = mincore(mapped, size, (void *)pages) == 0;
        munmap(mapped, size);
        if (!known) return 1;
        for (long i = 0; i < (size + page - 1) / page; i++) others += !(pages[i] & 1);
        if (others) return 0;
    }
    return 1;
}

/* Reads n numbers of a type as float32. Returns as meldkit_read_bytes. */
long meldkit_read(int file, long offset, int type, long n, float *out) {
    uint16_t piece[16 * BLOCK];
    long size = size_of(type);
    if (type == F32) return meldkit_read_bytes(file, offset, 4 * n, (char *)out);
    for (long done = 0; done < n;) {
        long wanted = size * smaller(n - done, 16 * BLOCK);
        long got = meldkit_read_bytes(file, offset + size * done, wanted, (char *)piece);
        if (got < wanted) return got < 0 ? got : size * done + got;
        meldkit_widen(type, piece, out + done, wanted / size);
        done += wanted / size;
    }
    return size * n;
}

/* Reads n runs of bytes that begin at these offsets; those that follow each other at once. As meldkit_read_bytes. */
long meldkit_read_runs(int file, const int64_t *offsets, long n, long bytes, char *out) {
    for (long i = 0, next; i < n; i = next) {
        for (next = i + 1; next < n && offsets[next] == offsets[next - 1] + bytes;) next++;
        long wanted = (next - i) * bytes, got = meldkit_read_bytes(file, offsets[i], wanted, out + i * bytes);
        if (got < wanted) return got < 0 ? got : i * bytes + got;
    }
    return n * bytes;
}
