/* Loops over the elements of tiles. */

#include "common.h"

#include <sys/mman.h>
#include <unistd.h>

/* Of the instructions that the loops use; 0 where there is one version only. */
int meldkit_level(void) {
#if CLONES
    return __builtin_cpu_supports("x86-64-v4") ? 4 : __builtin_cpu_supports("x86-64-v3") ? 3 : 1;
#else
    return 0;
#endif
}

/* --- reading ---------------------------------------------------------------------------------------------- */

/* bfloat16 is the upper half of float32. */
LOOP void widen(const uint16_t *restrict from, float *restrict to, long n) {
    for (long i = 0; i < n; i++) {
        uint32_t bits = (uint32_t)from[i] << 16;
        memcpy(to + i, &bits, 4);
    }
}

/* Returns how many bytes there were, fewer than wanted at the end of the file; or -errno. */
static long read_bytes(int file, long offset, long wanted, char *out) {
    long got = 0;
    while (got < wanted) {
        ssize_t count = pread(file, out + got, wanted - got, offset + got);
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) return -errno;
        if (count == 0) break;
        got += count;
    }
    return got;
}

/* Whether bytes of a file are in the page cache; also if the system does not tell. To ask by RWF_NOWAIT would
 * begin to read them. */
int meldkit_cached(int file, long offset, long length) {
    unsigned char pages[1024];
    long page = sysconf(_SC_PAGESIZE), end = offset + length;
    for (long start = offset / page * page; start < end; start += page * (long)sizeof pages) {
        long size = smaller(end - start, page * (long)sizeof pages), others = 0;
        void *mapped = mmap(NULL, size, PROT_READ, MAP_SHARED, file, start);
        if (mapped == MAP_FAILED) return 1;
        int known = mincore(mapped, size, (void *)pages) == 0;
        munmap(mapped, size);
        if (!known) return 1;
        for (long i = 0; i < (size + page - 1) / page; i++) others += !(pages[i] & 1);
        if (others) return 0;
    }
    return 1;
}

/* Types of numbers in files. */
enum { F32, BF16, F16 };

static long size_of(int type) { return type == F32 ? 4 : 2; }

#if defined(__FLT16_MAX__)
LOOP void widen_half(const uint16_t *restrict from, float *restrict to, long n) {
    for (long i = 0; i < n; i++) {
        _Float16 value;
        memcpy(&value, from + i, 2);
        to[i] = (float)value;
    }
}

LOOP void narrow_half(const float *restrict from, uint16_t *restrict to, long n) {
    for (long i = 0; i < n; i++) {
        _Float16 value = (_Float16)from[i];
        memcpy(to + i, &value, 2);
    }
}

int meldkit_has_half(void) { return 1; }
#else
static void widen_half(const uint16_t *from, float *to, long n) { (void)from, (void)to, (void)n; }
static void narrow_half(const float *from, uint16_t *to, long n) { (void)from, (void)to, (void)n; }
int meldkit_has_half(void) { return 0; }
#endif

static void to_floats(int type, const void *from, float *to, long n) {
    if (type == BF16) widen(from, to, n);
    if (type == F16) widen_half(from, to, n);
    if (type == F32) memcpy(to, from, 4 * n);
}

/* Reads n numbers of a type as float32. Returns as read_bytes. */
long meldkit_read(int file, long offset, int type, long n, float *out) {
    uint16_t piece[16 * BLOCK];
    long size = size_of(type);
    if (type == F32) return read_bytes(file, offset, 4 * n, (char *)out);
    for (long done = 0; done < n;) {
        long wanted = size * smaller(n - done, 16 * BLOCK);
        long got = read_bytes(file, offset + size * done, wanted, (char *)piece);
        if (got < wanted) return got < 0 ? got : size * done + got;
        to_floats(type, piece, out + done, wanted / size);
        done += wanted / size;
    }
    return size * n;
}

/* Reads n runs of bytes that begin at these offsets; those that follow each other at once. As read_bytes. */
long meldkit_read_runs(int file, const int64_t *offsets, long n, long bytes, char *out) {
    for (long i = 0, next; i < n; i = next) {
        for (next = i + 1; next < n && offsets[next] == offsets[next - 1] + bytes;) next++;
        long wanted = (next - i) * bytes, got = read_bytes(file, offsets[i], wanted, out + i * bytes);
        if (got < wanted) return got < 0 ? got : i * bytes + got;
    }
    return n * bytes;
}

/* --- inner products --------------------------------------------------------------------------------------- */

LOOP void to_doubles(double *restrict to, const float *restrict from, long n) {
    for (long i = 0; i < n; i++) to[i] = (double)from[i];
}

LOOP void add_products(double *restrict lanes, const double *restrict a, const double *restrict b, long n) {
    double sum[LANES];
    for (long l = 0; l < LANES; l++) sum[l] = lanes[l];
    for (long i = 0; i < n; i += LANES)
        for (long l = 0; l < LANES; l++) sum[l] += a[i + l] * b[i + l];
    for (long l = 0; l < LANES; l++) lanes[l] = sum[l];
}

/* Products of rows i <= j, in that order; `room` has place for m BLOCK + pairs LANES. */
void meldkit_gram(const float *x, long stride, long m, long n, double *room, double *out) {
    double *all_lanes = room + m * BLOCK, *lanes;
    memset(all_lanes, 0, sizeof(double) * m * (m + 1) / 2 * LANES);
    for (long start = 0; start < n; start += BLOCK) {
        long length = smaller(n - start, BLOCK), whole = (length + LANES - 1) / LANES * LANES;
        for (long i = 0; i < m; i++) {
            to_doubles(room + i * BLOCK, x + i * stride + start, length);
            for (long k = length; k < whole; k++) room[i * BLOCK + k] = 0;
        }
        lanes = all_lanes;
        for (long i = 0; i < m; i++)
            for (long j = i; j < m; j++, lanes += LANES)
                add_products(lanes, room + i * BLOCK, room + j * BLOCK, whole);
    }
    lanes = all_lanes;
    for (long pair = 0; pair < m * (m + 1) / 2; pair++, lanes += LANES) out[pair] = sum_of(lanes);
}

/* --- linear combinations ---------------------------------------------------------------------------------- */

LOOP void subtract(float *restrict row, const float *restrict base, long n) {
    for (long i = 0; i < n; i++) row[i] -= base[i];
}

LOOP void add(float *restrict row, const float *restrict base, long n) {
    for (long i = 0; i < n; i++) row[i] += base[i];
}

LOOP void scale(float *restrict row, float factor, long n) {
    for (long i = 0; i < n; i++) row[i] *= factor;
}

LOOP void add_multiple(float *restrict total, const float *restrict row, float factor, long n) {
    for (long i = 0; i < n; i++) total[i] = fmaf(row[i], factor, total[i]);
}

/* Rounds to the nearest, of two equally near ones to the even one. */
LOOP void narrow(const float *restrict from, uint16_t *restrict to, long n) {
    for (long i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, from + i, 4);
        to[i] = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
}

/* Whether numbers of a type are all finite: the exponent of others has all bits set. */
LOOP int finite_words(const float *restrict x, uint32_t exponent, long n) {
    int others = 0;
    for (long i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, 4);
        others |= (bits & exponent) == exponent;
    }
    return !others;
}

LOOP int finite_halves(const uint16_t *restrict x, uint16_t exponent, long n) {
    int others = 0;
    for (long i = 0; i < n; i++) others |= (x[i] & exponent) == exponent;
    return !others;
}

int meldkit_finite(int type, const void *x, long n) {
    if (type == F32) return finite_words(x, 0x7f800000, n);
    return finite_halves(x, type == BF16 ? 0x7f80 : 0x7c00, n);
}

/* factor (c_0 x_0 + c_1 x_1 + ...), or with a base b + factor (c_0 (x_0 - b) + ...), rounded to a type. `sources`
 * are the numbers of each x, the base before them, and `types` how they are stored. Each product but the first is
 * added unrounded. Returns whether all results are finite. */
int meldkit_combine(const char *const *sources, const int *types, long m, int has_base, const float *factors,
                    float factor, int type, long n, char *out) {
    long num_sources = m + has_base;
    for (long start = 0; start < n; start += BLOCK) {
        long count = smaller(n - start, BLOCK);
        float base[BLOCK], row[BLOCK], total[BLOCK];
        for (long k = 0; k < num_sources; k++) {
            float *to = has_base && k == 0 ? base : k == has_base ? total : row;
            to_floats(types[k], sources[k] + size_of(types[k]) * start, to, count);
            if (to == base) continue;
            if (has_base) subtract(to, base, count);
            if (to == total) scale(total, factors[0], count);
            else add_multiple(total, row, factors[k - has_base], count);
        }
        scale(total, factor, count);
        if (has_base) add(total, base, count);
        char *place = out + size_of(type) * start;
        if (type == BF16) narrow(total, (uint16_t *)place, count);
        if (type == F16) narrow_half(total, (uint16_t *)place, count);
        if (type == F32) memcpy(place, total, 4 * count);
        /* Of both: rounding may hide NaN, and what float32 holds a narrower type may not. */
        if (!meldkit_finite(F32, total, count) || !meldkit_finite(type, place, count)) return 0;
    }
    return 1;
}

/* --- order statistics ------------------------------------------------------------------------------------- */

LOOP void count_block(const float *restrict x, uint8_t *restrict inside, long n, float low, float high,
                      int *restrict counts) {
    int above = 0, from_high = 0, above_low = 0, from_low = 0, varied = 0;
    for (long i = 0; i < n; i++) {
        float value = fabsf(x[i]);
        above += value > high;
        from_high += value >= high;
        above_low += value > low;
        from_low += value >= low;
        varied += value != 0;
    }
    for (long i = 0; i < n; i++) inside[i] = (fabsf(x[i]) > low) & !(fabsf(x[i]) >= high);
    counts[0] = above, counts[1] = from_high, counts[2] = above_low, counts[3] = from_low, counts[4] = varied;
}

/* Adds to `counts` how many magnitudes are > high, >= high, > low, >= low, and not 0; puts those above low
 * and not from high on into `found`, which has room for n. Returns how many those are. */
long meldkit_count(const float *x, long n, float low, float high, int64_t *counts, float *found) {
    long num_found = 0;
    for (long start = 0; start < n; start += BLOCK) {
        long length = smaller(n - start, BLOCK);
        uint8_t inside[BLOCK] = {0};
        int part[5];
        count_block(x + start, inside, length, low, high, part);
        for (int c = 0; c < 5; c++) counts[c] += part[c];
        if (part[2] == part[1]) continue;
        for (long i = 0; i < length; i += 8) {
            uint64_t eight;
            memcpy(&eight, inside + i, 8);
            if (!eight) continue;
            for (long j = i; j < i + 8; j++)
                if (inside[j]) found[num_found++] = fabsf(x[start + j]);
        }
    }
    return num_found;
}

/* --- sign election ---------------------------------------------------------------------------------------- */

LOOP void add_scaled(float *restrict total, const float *restrict row, float factor, long n) {
    for (long i = 0; i < n; i++) total[i] += row[i] * factor;
}

LOOP void signs(const float *restrict total, float *restrict sign, long n) {
    for (long i = 0; i < n; i++) sign[i] = total[i] >= 0 ? 1.0f : -1.0f;
}

LOOP void add_agreeing(float *restrict total, float *restrict agreeing, const float *restrict row,
                       const float *restrict sign, float before, float factor, float share, long n) {
    for (long i = 0; i < n; i++) {
        float value = row[i] * before * sign[i];
        agreeing[i] += value > 0 ? share : 0.0f;
        value = value <= 0 ? 0.0f : value;
        total[i] = fmaf(value, factor, total[i]);
    }
}

LOOP void divide(float *restrict out, const float *restrict total, const float *restrict agreeing,
                 const float *restrict sign, float least, float lambda, long n) {
    for (long i = 0; i < n; i++) {
        float divisor = agreeing[i] < least ? least : agreeing[i];
        divisor = divisor == 0 ? 1.0f : divisor;
        out[i] = total[i] * sign[i] / divisor * lambda;
    }
}

/* `out` may be a row of x. */
void meldkit_elect(const float *x, long stride, long m, long n, const float *before, const float *factor,
                   const float *share, float least, float lambda, float *out) {
    for (long start = 0; start < n; start += BLOCK) {
        long length = smaller(n - start, BLOCK);
        float total[BLOCK] = {0}, sign[BLOCK], agreeing[BLOCK] = {0};
        for (long k = 0; k < m; k++) add_scaled(total, x + k * stride + start, before[k], length);
        signs(total, sign, length);
        memset(total, 0, sizeof total);
        for (long k = 0; k < m; k++)
            add_agreeing(total, agreeing, x + k * stride + start, sign, before[k], factor[k], share[k], length);
        divide(out + start, total, agreeing, sign, least, lambda, length);
    }
}

/* --- bits ------------------------------------------------------------------------------------------------- */

/* Bits as numbers 0 and 1, the highest bit of a byte first. */
LOOP void spread(const uint8_t *restrict bits, float *restrict flags, long n) {
    for (long i = 0; i < (n + 7) / 8; i++)
        for (int b = 0; b < 8; b++) flags[8 * i + b] = (float)(bits[i] >> (7 - b) & 1);
}

LOOP void multiply(float *restrict row, const float *restrict flags, long n) {
    for (long i = 0; i < n; i++) row[i] *= flags[i];
}

/* Multiplies by bits. */
void meldkit_drop(float *row, const uint8_t *bits, long n) {
    float flags[BLOCK];
    for (long start = 0; start < n; start += BLOCK) {
        long length = smaller(n - start, BLOCK);
        spread(bits + start / 8, flags, length);
        multiply(row + start, flags, length);
    }
}

LOOP void choose(const float *restrict row, const uint8_t *restrict kept, float *restrict values, long n) {
    for (long i = 0; i < n; i++) values[i] = row[i] * (float)kept[i];
}

/* Adds magnitudes to lanes; n is a multiple of LANES. */
LOOP void add_magnitudes(double *restrict lanes, const float *restrict values, long n) {
    double sum[LANES];
    for (long l = 0; l < LANES; l++) sum[l] = lanes[l];
    for (long i = 0; i < n; i += LANES)
        for (long l = 0; l < LANES; l++) sum[l] += (double)fabsf(values[i + l]);
    for (long l = 0; l < LANES; l++) lanes[l] = sum[l];
}

/* Sums of magnitudes, of all and of what is kept, for each `grain` elements. */
void meldkit_norms(const float *row, const uint8_t *kept, long n, long grain, double *out) {
    for (long first = 0; first < n; first += grain, out += 2) {
        double before[LANES] = {0}, after[LANES] = {0};
        long last = smaller(first + grain, n);
        for (long start = first; start < last; start += BLOCK) {
            float values[BLOCK] = {0};
            long length = smaller(last - start, BLOCK), whole = (length + LANES - 1) / LANES * LANES;
            memcpy(values, row + start, sizeof(float) * length);
            add_magnitudes(before, values, whole);
            choose(row + start, kept + start, values, length);
            add_magnitudes(after, values, whole);
        }
        out[0] = sum_of(before), out[1] = sum_of(after);
    }
}

/* --- variance over the models ----------------------------------------------------------------------------- */

LOOP void add_difference(float *restrict mean, const float *restrict row, const float *restrict first, long n) {
    for (long i = 0; i < n; i++) mean[i] += row[i] - first[i];
}

LOOP void scale_and_square(float *restrict mean, float *restrict total, float count, long n) {
    for (long i = 0; i < n; i++) {
        mean[i] /= count;
        total[i] = mean[i] * mean[i];
    }
}

LOOP void add_square(float *restrict total, const float *restrict row, const float *restrict first,
                     const float *restrict mean, long n) {
    for (long i = 0; i < n; i++) {
        float difference = row[i] - first[i] - mean[i];
        total[i] += difference * difference;
    }
}

LOOP void divide_by(float *restrict out, const float *restrict total, float count, long n) {
    for (long i = 0; i < n; i++) out[i] = total[i] / count;
}

void meldkit_variance(const float *x, long stride, long m, long n, float *out) {
    for (long start = 0; start < n; start += BLOCK) {
        long length = smaller(n - start, BLOCK);
        float mean[BLOCK] = {0}, total[BLOCK];
        for (long k = 1; k < m; k++) add_difference(mean, x + k * stride + start, x + start, length);
        scale_and_square(mean, total, (float)m, length);
        for (long k = 1; k < m; k++) add_square(total, x + k * stride + start, x + start, mean, length);
        divide_by(out + start, total, (float)m, length);
    }
}

LOOP void pack(const float *restrict values, float threshold, uint8_t *restrict bits, long bytes) {
    for (long i = 0; i < bytes; i++) {
        uint8_t byte = 0;
        for (int b = 0; b < 8; b++) byte = (uint8_t)(byte << 1 | (values[8 * i + b] >= threshold));
        bits[i] = byte;
    }
}

/* Bits of what is at least the threshold, the highest bit of a byte first. */
void meldkit_at_least(const float *values, long n, float threshold, uint8_t *bits) {
    pack(values, threshold, bits, n / 8);
    for (long i = n / 8 * 8; i < n; i++) {
        if (i % 8 == 0) bits[i / 8] = 0;
        bits[i / 8] |= (uint8_t)((values[i] >= threshold) << (7 - i % 8));
    }
}

/* --- changed elements ------------------------------------------------------------------------------------- */

LOOP void add_changed(float *restrict total, float *restrict count, float *restrict row, float epsilon, long n) {
    for (long i = 0; i < n; i++) {
        float value = row[i];
        value = fabsf(value) <= epsilon ? 0.0f : value;
        row[i] = value;
        total[i] += value;
        count[i] += value != 0 ? 1.0f : 0.0f;
    }
}

/* Zeroes, in x, changes of at most epsilon; sums the others, and counts them. */
void meldkit_changed(float *x, long stride, long m, long n, float epsilon, float *total, float *count) {
    for (long start = 0; start < n; start += BLOCK) {
        long length = smaller(n - start, BLOCK);
        memset(total + start, 0, 4 * length);
        memset(count + start, 0, 4 * length);
        for (long k = 0; k < m; k++)
            add_changed(total + start, count + start, x + k * stride + start, epsilon, length);
    }
}

LOOP void count_alone(const float *restrict row, const float *restrict count, int *restrict out, long n) {
    int changed = 0, alone = 0;
    for (long i = 0; i < n; i++) {
        int active = row[i] != 0;
        changed += active;
        alone += active & (count[i] == 1);
    }
    out[0] += changed, out[1] += alone;
}

/* Of a row from which meldkit_changed made `count`: how many elements it changed, and how many it alone. */
void meldkit_alone(const float *row, const float *count, long n, int64_t out[2]) {
    for (long start = 0; start < n; start += BLOCK) {
        int part[2] = {0, 0};
        count_alone(row + start, count + start, part, smaller(n - start, BLOCK));
        out[0] += part[0], out[1] += part[1];
    }
}
