/* Random words on processors of level 4 of x86-64. */

#define LEVEL 4
#define STEPS wide_steps_v4

#include "common.h"

#if CLONES
#pragma GCC target("arch=x86-64-v4")
#include "wide_steps.h"
#endif
