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
int meldkit_tile_v3(tile *t) { return meldkit_tile_v1(t); }
int meldkit_tile_v4(tile *t) { return meldkit_tile_v1(t); }
#endif

static int run(tile *t) {
    int level = meldkit_level();
    return level == 4 ? meldkit_tile_v4(t) : level == 3 ? meldkit_tile_v3(t) : meldkit_tile_v1(t);
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

typedef struct {
    char *start;
    long length;
} mapping;

/* Maps the n numbers of a source if all of them are in the page cache: what is not is read faster than it is
 * mapped. Behind the end of a file there would be zeros. */
static mapping map_source(const source *from, long n) {
    mapping none = {NULL, 0};
    struct stat file;
    long page = sysconf(_SC_PAGESIZE), skipped = from->offset % page;
    long length = skipped + size_of(from->type) * n;
    if (from->memory != NULL || n == 0 || fstat(from->file, &file) != 0) return none;
    if (file.st_size < from->offset - skipped + length) return none;
    char *start = mmap(NULL, length, PROT_READ, MAP_SHARED, from->file, from->offset - skipped);
    if (start == MAP_FAILED) return none;
    if (meldkit_resident(start, length)) return (mapping){start, length};
    munmap(start, length);
    return none;
}

/* Copying bytes out of the page cache takes as long as much of what is done with them. */
int meldkit_tile(tile *t) {
    long num_sources = t->num_models + t->has_base;
    const source *given = t->sources;
    source sources[num_sources];
    mapping mappings[num_sources];
    for (long k = 0; k < num_sources; k++) {
        sources[k] = given[k];
        mappings[k] = map_source(given + k, t->n);
        if (mappings[k].start != NULL)
            sources[k].memory = mappings[k].start + given[k].offset % sysconf(_SC_PAGESIZE);
    }
    sigjmp_buf here;
    volatile int result = CANNOT_READ;
    t->sources = sources;
    if (sigsetjmp(here, 0) == 0) {
        escape = &here;
        result = run(t);
    }
    escape = NULL;
    t->sources = given;
    for (long k = 0; k < num_sources; k++)
        if (mappings[k].start != NULL) munmap(mappings[k].start, mappings[k].length);
    return result;
}
