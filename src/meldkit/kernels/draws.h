/* Random numbers for loops that draw as they go. */

#include "common.h"

/* 16-bit numbers per step of the generator's counter. */
enum { PER_STEP = 16 };

/* Numbers that are drawn before they are used: of a multiple of the steps that go together in wide_steps.h. */
enum { DRAWN = 6 * 11 * PER_STEP };

/* Words of 64 bits into which up to n numbers are drawn. */
#define ROOM(n) (((n) + 2 * PER_STEP) / 4)

/* The numbers of elements from `start` on, somewhere in `room`. */
const uint16_t *draw(const uint64_t *key, long start, long n, uint64_t *room);

/* Flags 0 and 1 as bits, the highest bit of a byte first. */
void pack_bits(const uint8_t *flags, uint8_t *bits, long bytes);
