/* Divergences of the distributions that rows describe, for loops that have the rows at hand. */

#pragma once

#include "common.h"

/* KL(softmax(a) || softmax(b)); see divergences.c. `room` has place for both, each up to a multiple of LANES. */
double divergence(const float *a, const float *b, long n, double *room);

/* Whether the processor has fused products, without which these take longer than NumPy's. */
int meldkit_has_divergences(void);
