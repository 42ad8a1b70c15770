/* Numbers as they lie in files: read, rounded to, and looked at. */

#include "types.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

int meldkit_level(void) {
#if CLONES
    return __builtin_cpu_supports("x86-64-v4") ? 4 : __builtin_cpu_supports("x86-64-v3") ? 3 : 1;
#else
    return 0;
#endif
}

/* For AVX2, which cannot compress vectors; filled here, as any processor runs this when the library is loaded. */
uint64_t fronts[256];

__attribute__((constructor)) static void find_fronts(void) {
    for (int flags = 0; flags < 256; flags++)
        for (int l = 7; l >= 0; l--)
            if (flags >> l & 1) fronts[flags] = fronts[flags] << 8 | (uint64_t)l;
}

/* --- types ------------------------------------------------------------------------------------------------ */

int meldkit_has_half(void) { return HAS_HALF; }

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

#if defined(__linux__) && !defined(__alpha__)
/* A call of Linux 6.5 and later that C libraries may not know yet; Alpha alone numbers it otherwise. */
enum { CACHESTAT = 451 };

/* How many pages of a range of a file are in the page cache; -1 if the system does not tell. */
static long cached_pages(int file, long offset, long length) {
    struct { uint64_t offset, length; } range = {offset, length};
    struct { uint64_t cached, dirty, written_back, evicted, recently_evicted; } found;
    return syscall(CACHESTAT, file, &range, &found, 0) == 0 ? (long)found.cached : -1;
}
#else
static long cached_pages(int file, long offset, long length) { return (void)file, (void)offset, (void)length, -1; }
#endif

/* The same for whole pages, of any system that has mincore; it takes five times as long. */
int meldkit_resident(int file, long offset, long length) {
    unsigned char pages[1024];
    long page = sysconf(_SC_PAGESIZE), missing = 0;
    char *mapped = mmap(NULL, length, PROT_READ, MAP_SHARED, file, offset);
    if (mapped == MAP_FAILED) return 1;
    for (long start = 0; start < length && !missing; start += page * (long)sizeof pages) {
        long size = smaller(length - start, page * (long)sizeof pages);
        if (mincore(mapped + start, size, (void *)pages) != 0) break;
        for (long i = 0; i < (size + page - 1) / page; i++) missing += !(pages[i] & 1);
    }
    munmap(mapped, length);
    return !missing;
}

int meldkit_cached(int file, long offset, long length) {
    long page = sysconf(_SC_PAGESIZE), skipped = offset % page;
    if (length == 0) return 1;
    long found = cached_pages(file, offset - skipped, skipped + length);
    if (found < 0) return meldkit_resident(file, offset - skipped, skipped + length);
    return found >= (skipped + length + page - 1) / page;
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
        widen(type, piece, NULL, out + done, wanted / size);
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
