/* Makes system calls fail or take longer, for files below one folder: LD_PRELOAD=fault_shim.so

       FAULT_PREFIX   paths that it concerns begin so
       FAULT_CALL     which fails: read, write, sync, rename, open
       FAULT_NTH      how often it succeeds first
       FAULT_ERRNO    how it fails
       FAULT_DELAY    microseconds that each of these calls takes longer; of a rename or removal, twice that

   Calls are counted over all threads, and from the first failure on all fail. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_long calls;

static int below(const char *path) {
    const char *prefix = getenv("FAULT_PREFIX");
    char whole[2 * PATH_MAX], here[PATH_MAX];
    if (!prefix || !path) return 0;
    if (*path != '/' && getcwd(here, sizeof here)) {
        snprintf(whole, sizeof whole, "%s/%s", here, path);
        path = whole;
    }
    return !strncmp(path, prefix, strlen(prefix));
}

static int below_file(int file) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return below(path);
}

/* Whether this call, of this kind, shall fail; errno is set then. */
static int fails(const char *kind, int concerned, int slowness) {
    if (!concerned) return 0;
    const char *delay = getenv("FAULT_DELAY"), *call = getenv("FAULT_CALL");
    if (delay) usleep(atol(delay) * slowness);
    if (!call || strcmp(call, kind) || atomic_fetch_add(&calls, 1) < atol(getenv("FAULT_NTH"))) return 0;
    errno = atoi(getenv("FAULT_ERRNO"));
    return 1;
}

#define REAL(type, name, ...) ((type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name))

/* Both names: which of them a program calls depends on how it was compiled. */
#define POSITIONED(name, kind, buffer)                                                        \
    ssize_t name(int file, buffer, size_t size, off_t offset) {                               \
        if (fails(kind, below_file(file), 1)) return -1;                                      \
        return REAL(ssize_t, name, int, const void *, size_t, off_t)(file, data, size, offset); \
    }
POSITIONED(pread, "read", void *data)
POSITIONED(pread64, "read", void *data)
POSITIONED(pwrite, "write", const void *data)
POSITIONED(pwrite64, "write", const void *data)

#define VECTORED(name, kind)                                                                    \
    ssize_t name(int file, const struct iovec *data, int count, off_t offset) {                 \
        if (fails(kind, below_file(file), 1)) return -1;                                        \
        return REAL(ssize_t, name, int, const struct iovec *, int, off_t)(file, data, count, offset); \
    }
VECTORED(preadv, "read")
VECTORED(preadv64, "read")

#define VECTORED_2(name, kind)                                                                          \
    ssize_t name(int file, const struct iovec *data, int count, off_t offset, int flags) {              \
        if (fails(kind, below_file(file), 1)) return -1;                                                \
        return REAL(ssize_t, name, int, const struct iovec *, int, off_t, int)(file, data, count, offset, flags); \
    }
VECTORED_2(preadv2, "read")
VECTORED_2(preadv64v2, "read")

/* Files that are mapped are read too. */
#define MAPPED(name)                                                                                    \
    void *name(void *start, size_t size, int access, int flags, int file, off_t offset) {               \
        if (file >= 0 && fails("read", below_file(file), 1)) return MAP_FAILED;                          \
        return REAL(void *, name, void *, size_t, int, int, int, off_t)(start, size, access, flags, file, offset); \
    }
MAPPED(mmap)
MAPPED(mmap64)

ssize_t read(int file, void *data, size_t size) {
    if (fails("read", below_file(file), 0)) return -1;
    return REAL(ssize_t, read, int, void *, size_t)(file, data, size);
}

ssize_t write(int file, const void *data, size_t size) {
    if (fails("write", below_file(file), 0)) return -1;
    return REAL(ssize_t, write, int, const void *, size_t)(file, data, size);
}

int fsync(int file) {
    if (fails("sync", below_file(file), 1)) return -1;
    return REAL(int, fsync, int)(file);
}

int fdatasync(int file) {
    if (fails("sync", below_file(file), 1)) return -1;
    return REAL(int, fdatasync, int)(file);
}

int rename(const char *from, const char *to) {
    if (fails("rename", below(from), 2)) return -1;
    return REAL(int, rename, const char *, const char *)(from, to);
}

int renameat2(int here, const char *from, int there, const char *to, unsigned flags) {
    if (fails("rename", below(from), 2)) return -1;
    return REAL(int, renameat2, int, const char *, int, const char *, unsigned)(here, from, there, to, flags);
}

int unlink(const char *path) {
    if (fails("rename", below(path), 2)) return -1;
    return REAL(int, unlink, const char *)(path);
}

static int open_as(const char *name, const char *path, int flags, mode_t mode) {
    if (fails("open", below(path), 0)) return -1;
    return ((int (*)(const char *, int, ...))dlsym(RTLD_NEXT, name))(path, flags, mode);
}

#define OPEN(name)                                      \
    int name(const char *path, int flags, ...) {        \
        va_list rest;                                   \
        va_start(rest, flags);                          \
        mode_t mode = va_arg(rest, mode_t);             \
        va_end(rest);                                   \
        return open_as(#name, path, flags, mode);       \
    }
OPEN(open)
OPEN(open64)
