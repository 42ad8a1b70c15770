/* Random words on processors of level 3 of x86-64. */

#define LEVEL 3
#define STEPS wide_steps_v3

#include "common.h"

#if CLONES
#pragma GCC target("arch=x86-64-v3")
#include "wide_steps.h"
#endif
