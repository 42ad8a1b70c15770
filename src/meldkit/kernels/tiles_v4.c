/* Tiles on processors of level 4 of x86-64, which have AVX-512. */

#define LEVEL 4
#define RUN meldkit_tile_v4

#include "common.h"

#if CLONES
#pragma GCC target("arch=x86-64-v4")
#include "steps.h"
#endif
