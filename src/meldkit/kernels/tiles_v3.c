/* Tiles on processors of level 3 of x86-64, which have AVX2. */

#define LEVEL 3
#define RUN meldkit_tile_v3

#include "common.h"

#if CLONES
#pragma GCC target("arch=x86-64-v3")
#include "steps.h"
#endif
