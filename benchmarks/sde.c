/* What a C programmer writes for the ensembles of sde_problems.py; compiled by sde_c.py with -O3 -march=native.

   DRIFT(x), DIFFUSION(x) and D (components) come from the command line. Sums and squares of every component at
   every step, in double precision. Two versions: `scalar` follows one path after another, as one writes it
   first; `blocks` carries 64 paths at a time, so that all but the random numbers runs in vector instructions.
   Random numbers: xoshiro256++ (Blackman and Vigna 2021) and the ziggurat of 256 layers (Marsaglia and Tsang
   2000, with Doornik's 2005 separation of layer, sign and place). */
#include <math.h>
#include <stdint.h>

typedef struct { uint64_t a, b, c, d; } State;
static State other; /* for the rare cases, so that the state of the common one stays in registers */
static double edge[257], density[257];
static const double R = 3.6541528853610088, V = 0.00492867323399141;

static inline uint64_t rotate(uint64_t x, int k) { return (x << k) | (x >> (64 - k)); }

static inline uint64_t word(State *s) {
    const uint64_t out = rotate(s->a + s->d, 23) + s->a, t = s->b << 17;
    s->c ^= s->a;
    s->d ^= s->b;
    s->b ^= s->c;
    s->a ^= s->d;
    s->c ^= t;
    s->d = rotate(s->d, 45);
    return out;
}

static inline double uniform(uint64_t w) { return (double)(int64_t)(w >> 11) * 0x1p-53; }

static uint64_t splitmix(uint64_t *seed) {
    uint64_t z = *seed += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

static State prepare(uint64_t seed) {
    State made = {splitmix(&seed), splitmix(&seed), splitmix(&seed), splitmix(&seed)};
    other = (State){splitmix(&seed), splitmix(&seed), splitmix(&seed), splitmix(&seed)};
    edge[0] = V * exp(0.5 * R * R), edge[1] = R, edge[256] = 0.0;
    for (int k = 2; k < 256; k++) edge[k] = sqrt(-2.0 * log(V / edge[k - 1] + exp(-0.5 * edge[k - 1] * edge[k - 1])));
    for (int k = 0; k < 257; k++) density[k] = exp(-0.5 * edge[k] * edge[k]);
    return made;
}

static __attribute__((noinline)) double rare(int layer, double x, int *again) {
    *again = 0;
    if (layer == 0) { /* the tail beyond R */
        double a, b;
        do {
            a = -log(1.0 - uniform(word(&other))) / R;
            b = -log(1.0 - uniform(word(&other)));
        } while (b + b < a * a);
        return R + a;
    }
    const double height = density[layer] + uniform(word(&other)) * (density[layer + 1] - density[layer]);
    if (height >= exp(-0.5 * x * x)) *again = 1;
    return x;
}

static inline double normal_of(uint64_t w) {
    for (;;) {
        const int layer = w & 255;
        double x = uniform(w) * edge[layer];
        if (__builtin_expect(x >= edge[layer + 1], 0)) {
            int again;
            x = rare(layer, x, &again);
            if (again) {
                w = word(&other);
                continue;
            }
        }
        union { double x; uint64_t bits; } signed_x = {x};
        signed_x.bits ^= (w & 256) << 55; /* no branch that nobody can predict */
        return signed_x.x;
    }
}

void scalar(long paths, long steps, double dt, double start, uint64_t seed, double *sums, double *squares) {
    const double root = sqrt(dt);
    State s = prepare(seed);
    for (long path = 0; path < paths; path++) {
        double y[D];
        for (int j = 0; j < D; j++) y[j] = start;
        for (long k = 0;; k++) {
            for (int j = 0; j < D; j++) {
                sums[k * D + j] += y[j];
                squares[k * D + j] += y[j] * y[j];
            }
            if (k == steps) break;
            for (int j = 0; j < D; j++) {
                const double x = y[j];
                y[j] = x + (DRIFT(x)) * dt + (DIFFUSION(x)) * root * normal_of(word(&s));
            }
        }
    }
}

#define B 64
typedef uint64_t Lanes __attribute__((vector_size(64)));
typedef struct { Lanes a, b, c, d; } States;

/* Eight generators side by side. */
static inline States words_of(States s, uint64_t *out) {
    for (int i = 0; i < B; i += 8) {
        const Lanes sum = s.a + s.d, t = s.b << 17;
        *(Lanes *)(out + i) = ((sum << 23) | (sum >> 41)) + s.a;
        s.c ^= s.a;
        s.d ^= s.b;
        s.b ^= s.c;
        s.a ^= s.d;
        s.c ^= t;
        s.d = (s.d << 45) | (s.d >> 19);
    }
    return s;
}

void blocks(long paths, long steps, double dt, double start, uint64_t seed, double *sums, double *squares) {
    const double root = sqrt(dt);
    States s;
    _Alignas(64) uint64_t words[B];
    prepare(seed);
    seed = ~seed; /* other seeds than those of the rare cases */
    for (int l = 0; l < 8; l++)
        s.a[l] = splitmix(&seed), s.b[l] = splitmix(&seed), s.c[l] = splitmix(&seed), s.d[l] = splitmix(&seed);
    for (long low = 0; low < paths; low += B) {
        const int count = paths - low < B ? (int)(paths - low) : B;
        double y[D][B], z[D][B];
        for (int j = 0; j < D; j++)
            for (int i = 0; i < B; i++) y[j][i] = start;
        for (long k = 0;; k++) {
            for (int j = 0; j < D; j++) {
                double sum[8] = {0}, square[8] = {0};
                if (count == B)
                    for (int i = 0; i < B; i += 8)
                        for (int l = 0; l < 8; l++) {
                            const double x = y[j][i + l];
                            sum[l] += x;
                            square[l] += x * x;
                        }
                else
                    for (int i = 0; i < count; i++) sum[0] += y[j][i], square[0] += y[j][i] * y[j][i];
                for (int l = 0; l < 8; l++) sums[k * D + j] += sum[l], squares[k * D + j] += square[l];
            }
            if (k == steps) break;
            for (int j = 0; j < D; j++) {
                s = words_of(s, words);
                for (int i = 0; i < B; i++) z[j][i] = normal_of(words[i]);
                for (int i = 0; i < B; i++) {
                    const double x = y[j][i];
                    y[j][i] = x + (DRIFT(x)) * dt + (DIFFUSION(x)) * root * z[j][i];
                }
            }
        }
    }
}

/* Nanoseconds mean little without the clock: n dependent additions take n cycles. */
uint64_t chain(long n) {
    uint64_t x = 1;
    for (long k = 0; k < n; k += 16) {
#define ADD __asm__ volatile("" : "+r"(x)); x += (uint64_t)n;
        ADD ADD ADD ADD ADD ADD ADD ADD ADD ADD ADD ADD ADD ADD ADD ADD
    }
    return x;
}
