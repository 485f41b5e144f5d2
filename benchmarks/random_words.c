/* The raw words behind the normals of `simulate`, in several orders, for PractRand and TestU01.

   cc -O3 -march=native random_words.c -o random_words
   ./random_words ORDER [SEED [ROUNDS [STREAM]]] | RNG_test stdin64 -tlmax 64GB      (PractRand)

   cc -O3 -march=native -DTESTU01 random_words.c -ltestu01 -lprobdist -lmylib -lm -o crush
   ./crush ORDER SEED ROUNDS STREAM small|crush|small-reversed|crush-reversed        (TestU01)

   Threefry-2x64 (Salmon, Moraes, Dror, Shaw, SC'11) with key (mixed seed, path) and counter (pair of steps, mixed
   stream and component), as in solvers/wiener.py; stream 3 is that of the 32-bit normals, where the path is a pair of
   paths, stream 0 that of the 53-bit ones. Orders:
     kernel   blocks of 256 paths, step by step, radius word and angle word of each path (as `simulate` runs)
     steps    one path after another, 2^16 pairs of steps each
     paths    one pair of steps after another, all 2^24 paths each
     seeds    seeds SEED, SEED + 1, ...: 16 paths and 4 pairs of steps of each
     parts    8 components innermost, then paths, then steps
     counter  negative control: the counter itself, multiplied by an odd constant, without any round
   ROUNDS less than 13 is a negative control too, and so is ROUNDS 113: 13 rounds with seed and stream unmixed,
   for which PractRand gives p = 5e-9 at 8 GB of the order "parts". "check" prints the published answer for 13 rounds. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const uint64_t PARITY = 0x1BD11BDAA9FC1A22u;
static const int ROTATION[8] = {16, 42, 12, 31, 16, 32, 24, 21};
static int rounds = 13, counting = 0, plain = 0;
static uint64_t seed = 1, stream = 3;
static enum { KERNEL, STEPS, PATHS, SEEDS, PARTS } order = KERNEL;

static inline void threefry(int n, uint64_t c0, uint64_t c1, uint64_t k0, uint64_t k1, uint64_t *out) {
    const uint64_t key[3] = {k0, k1, k0 ^ k1 ^ PARITY};
    uint64_t a = c0 + k0, b = c1 + k1;
#pragma GCC unroll 20
    for (int r = 0; r < n; r++) {
        a += b;
        b = ((b << ROTATION[r % 8]) | (b >> (64 - ROTATION[r % 8]))) ^ a;
        if (r % 4 == 3) {
            const int s = r / 4 + 1;
            a += key[s % 3];
            b += key[(s + 1) % 3] + s;
        }
    }
    out[0] = a, out[1] = b;
}

/* splitmix64 after a word */
static inline uint64_t mixed(uint64_t z) {
    z += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

/* The two words of call number n in the chosen order. */
static inline void call(uint64_t n, uint64_t *out) {
    uint64_t step, path, part = 0, key = seed;
    switch (order) {
    case STEPS: step = n & 0xFFFF, path = n >> 16; break;
    case PATHS: path = n & 0xFFFFFF, step = n >> 24; break;
    case SEEDS: path = n & 15, step = (n >> 4) & 3, key = seed + (n >> 6); break;
    case PARTS: part = n & 7, path = (n >> 3) & 0xFF, step = n >> 11; break;
    default: path = (n & 0xFF) + (n >> 18 << 8), step = (n >> 8) & 0x3FF; /* blocks of 1024 pairs */
    }
    if (counting) {
        out[0] = 0x9E3779B97F4A7C15u * (2 * n + seed), out[1] = 0x9E3779B97F4A7C15u * (2 * n + 1 + seed);
        return;
    }
    uint64_t use = stream << 32 | part;
    if (!plain) key = mixed(key), use = mixed(use);
    if (rounds == 13) /* a constant, so that it is unrolled */
        threefry(13, step, use, key, path, out);
    else
        threefry(rounds, step, use, key, path, out);
}

static uint64_t calls = 0;

#ifdef TESTU01
#include <testu01/bbattery.h>
#include <testu01/unif01.h>
static int reversed = 0;
static unsigned int bits(void) { /* 32-bit halves in the order in which they serve the paths */
    static uint64_t words[2];
    static int left = 0;
    if (!left) call(calls++, words), left = 4;
    left--;
    uint32_t w = (uint32_t)(words[(3 - left) / 2] >> (32 * ((3 - left) % 2)));
    if (reversed) {
        w = (w >> 16) | (w << 16);
        w = ((w & 0xFF00FF00u) >> 8) | ((w & 0x00FF00FFu) << 8);
        w = ((w & 0xF0F0F0F0u) >> 4) | ((w & 0x0F0F0F0Fu) << 4);
        w = ((w & 0xCCCCCCCCu) >> 2) | ((w & 0x33333333u) << 2);
        w = ((w & 0xAAAAAAAAu) >> 1) | ((w & 0x55555555u) << 1);
    }
    return w;
}
#endif

int main(int argc, char **argv) {
    static const char *const NAMES[] = {"kernel", "steps", "paths", "seeds", "parts"};
    const char *name = argc > 1 ? argv[1] : "";
    int known = 0;
    for (int k = 0; k < 5; k++)
        if (!strcmp(name, NAMES[k])) order = k, known = 1;
    if (!strcmp(name, "counter")) counting = known = 1;
    if (argc > 2) seed = strtoull(argv[2], NULL, 0);
    if (argc > 3) rounds = atoi(argv[3]);
    if (rounds > 100) plain = 1, rounds -= 100;
    if (argc > 4) stream = strtoull(argv[4], NULL, 0);
    if (!strcmp(name, "check")) {
        uint64_t out[2];
        threefry(13, 0x243F6A8885A308D3u, 0x13198A2E03707344u, 0xA4093822299F31D0u, 0x082EFA98EC4E6C89u, out);
        printf("%016llX %016llX\n", (unsigned long long)out[0], (unsigned long long)out[1]);
        return out[0] != 0xC3AAC71561042993u || out[1] != 0x3FE7AE8801AFF316u;
    }
    if (!known || rounds < 0 || rounds > 20) {
        fprintf(stderr, "usage: %s kernel|steps|paths|seeds|parts|counter|check [SEED [ROUNDS [STREAM]]]\n", argv[0]);
        return 2;
    }
#ifdef TESTU01
    const char *battery = argc > 5 ? argv[5] : "small";
    reversed = strstr(battery, "reversed") != NULL;
    unif01_Gen *generator = unif01_CreateExternGenBits((char *)name, bits);
    if (!strncmp(battery, "crush", 5)) bbattery_Crush(generator);
    else bbattery_SmallCrush(generator);
#else
    static uint64_t words[1 << 14];
    do
        for (int k = 0; k < 1 << 14; k += 2) call(calls++, words + k);
    while (fwrite(words, sizeof words, 1, stdout) == 1);
#endif
    return 0;
}
