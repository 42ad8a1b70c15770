/* Tiles on any processor: which version of the loops it can run, and files that need not be copied. */

#define LEVEL 0
#define RUN meldkit_tile_v1
#include "steps.h"

#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#if !CLONES
int meldkit_tile_v3(tile *t, long begin, long end) { return meldkit_tile_v1(t, begin, end); }
int meldkit_tile_v4(tile *t, long begin, long end) { return meldkit_tile_v1(t, begin, end); }
#endif

static int run(tile *t, long begin, long end) {
    switch (meldkit_level()) {
        case 4: return meldkit_tile_v4(t, begin, end);
        case 3: return meldkit_tile_v3(t, begin, end);
        default: return meldkit_tile_v1(t, begin, end);
    }
}

/* --- mapped files ----------------------------------------------------------------------------------------- */

/* Where this thread goes on when a mapped file is cut off, or its disk fails, while it is read. */
static _Thread_local sigjmp_buf *escape;
static struct sigaction before;

static void on_bus_error(int signal) {
    (void)signal;
    if (escape != NULL) siglongjmp(*escape, 1);
    sigaction(SIGBUS, &before, NULL); /* of somebody else, for whom it comes again */
}

__attribute__((constructor)) static void catch_bus_errors(void) {
    /* Not blocked meanwhile, so that whoever escapes has nothing to restore. */
    struct sigaction action = {.sa_handler = on_bus_error, .sa_flags = SA_NODEFER};
    sigaction(SIGBUS, &action, &before);
}

/* Numbers of each source that are mapped at once: mapped pages count as memory of the process. */
enum { WINDOW = 32 * PIECE };

typedef struct {
    char *start;
    long length;
} mapping;

/* Maps numbers [begin, end) of a source if all of them are in the page cache: what is not is read faster than it is
 * mapped. Behind the end of a file there would be zeros; numbers that do not lie as in memory are read, too. */
static mapping map_source(const source *from, long begin, long end) {
    mapping none = {NULL, 0};
    struct stat file;
    long size = size_of(from->type), offset = from->offset + size * begin, skipped = offset % sysconf(_SC_PAGESIZE);
    long length = skipped + size * (end - begin);
    if (from->memory != NULL || from->offset % size || fstat(from->file, &file) != 0) return none;
    if (file.st_size < offset - skipped + length) return none;
    if (!meldkit_cached(from->file, offset, length - skipped)) return none;
    char *start = mmap(NULL, length, PROT_READ, MAP_SHARED, from->file, offset - skipped);
    return start == MAP_FAILED ? none : (mapping){start, length};
}

/* Copying bytes out of the page cache takes as long as much of what is done with them. */
static int run_mapped(tile *t, long begin, long end) {
    long num_sources = t->num_models + t->has_base;
    const source *given = t->sources;
    source sources[num_sources];
    mapping mappings[num_sources];
    for (long k = 0; k < num_sources; k++) {
        sources[k] = given[k];
        mappings[k] = map_source(given + k, begin, end);
        if (mappings[k].start == NULL) continue;
        sources[k].first = begin;
        sources[k].memory = mappings[k].start + mappings[k].length - size_of(given[k].type) * (end - begin);
    }
    sigjmp_buf here;
    volatile int result = CANNOT_READ;
    t->sources = sources;
    if (sigsetjmp(here, 0) == 0) {
        escape = &here;
        result = run(t, begin, end);
    }
    escape = NULL;
    t->sources = given;
    for (long k = 0; k < num_sources; k++)
        if (mappings[k].start != NULL) munmap(mappings[k].start, mappings[k].length);
    return result;
}

int meldkit_tile(tile *t) {
    long window = WINDOW > t->grain ? WINDOW / t->grain * t->grain : t->grain;
    for (long begin = 0, end; begin < t->n; begin = end) {
        end = smaller(begin + window, t->n);
        int result = run_mapped(t, begin, end);
        if (result != FINE) return result;
    }
    return FINE;
}
