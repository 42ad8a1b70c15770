/* Philox4x64-10, from counters to random words of 64 bits. */

#pragma once

#include "common.h"

/* Constants of the generator. */
#define FIRST_FACTOR 0xD2E7470EE14C6C93u
#define SECOND_FACTOR 0xCA5A826395121157u
#define FIRST_WEYL 0x9E3779B97F4A7C15u
#define SECOND_WEYL 0xBB67AE8584CAA73Bu

enum { ROUNDS = 10 };

/* A round of a counter. */
static inline void mix(uint64_t *c, const uint64_t *key) {
    unsigned __int128 a = (unsigned __int128)FIRST_FACTOR * c[0], b = (unsigned __int128)SECOND_FACTOR * c[2];
    uint64_t first = (uint64_t)(b >> 64) ^ c[1] ^ key[0], third = (uint64_t)(a >> 64) ^ c[3] ^ key[1];
    c[0] = first, c[1] = (uint64_t)b, c[2] = third, c[3] = (uint64_t)a;
}

/* As many of n steps as come out even, compiled for levels of x86-64; returns how many. */
long wide_steps_v3(uint64_t keys[ROUNDS][2], uint64_t counter, long n, uint64_t *out);
long wide_steps_v4(uint64_t keys[ROUNDS][2], uint64_t counter, long n, uint64_t *out);
