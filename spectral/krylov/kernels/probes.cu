// Probes as `spectral/probes.py` draws them by numpy: Philox4x64-10 (Salmon, Moraes, Dror, Shaw 2011) and, for Gaussian entries,
// the ziggurat of 256 strips (Marsaglia, Tsang 2000) on 52 bits. One thread draws a segment from its first entry on.
//
// The same numbers as on the processor, bit by bit, but for a Gaussian entry beyond 3.65 (one of 3 800), whose logarithm may be
// rounded otherwise. To be compiled without contraction (--fmad=false): numpy rounds each product.
//
// Nothing is included, so that nvrtc compiles this file as it is; tests/host_kernels.cpp compiles it for a processor.

#ifndef THREADS
#define THREADS 32  // of a block: segments are few
#endif

typedef unsigned long long Word;

#define SEGMENT 65536ull
#define TAIL 3.6541528853610088  // where the ziggurat's lowest strip ends in a tail

// 64 random bits after another, of one (key, segment, kind).
struct Stream {
    Word key[2], counter, segment, kind, block[4];
    int used;

    __device__ void round(const Word k[2], Word c[4]) {
        const Word a = 0xD2E7470EE14C6C93ull, b = 0xCA5A826395121157ull;
        Word high_a = __umul64hi(a, c[0]), low_a = a * c[0], high_b = __umul64hi(b, c[2]), low_b = b * c[2];
        c[0] = high_b ^ c[1] ^ k[0];
        c[1] = low_b;
        c[2] = high_a ^ c[3] ^ k[1];
        c[3] = low_a;
    }

    __device__ Word next() {
        if (used == 4) {
            Word k[2] = {key[0], key[1]};
            block[0] = ++counter;
            block[1] = 0;
            block[2] = segment;
            block[3] = kind;
            for (int i = 0; i < 10; ++i) {
                round(k, block);
                k[0] += 0x9E3779B97F4A7C15ull;
                k[1] += 0xBB67AE8584CAA73Bull;
            }
            used = 0;
        }
        return block[used++];
    }

    // in [0, 1)
    __device__ double uniform() { return (next() >> 11) * (1.0 / 9007199254740992.0); }
};

// Of strip i: f[i] = exp(-x_i^2 / 2), w[i] = x_i / 2^52, and below[i] of the 2^52 abscissas lie under the strip above it.
struct Strips {
    const Word *below;
    const double *w, *f;
};

__device__ double gaussian(Stream &bits, const Strips &strips) {
    for (;;) {
        Word r = bits.next(), place = (r >> 9) & 0xfffffffffffffull;
        int i = r & 0xff;
        double x = place * strips.w[i];
        if (r >> 8 & 1) x = -x;
        if (place < strips.below[i]) return x;
        if (i == 0)
            for (;;) {
                double beyond = -(1 / TAIL) * log1p(-bits.uniform()), y = -log1p(-bits.uniform());
                if (y + y > beyond * beyond) return place >> 8 & 1 ? -(TAIL + beyond) : TAIL + beyond;
            }
        if ((strips.f[i - 1] - strips.f[i]) * bits.uniform() + strips.f[i] < exp(-0.5 * x * x)) return x;
    }
}

enum Kind { GAUSSIAN, RADEMACHER, UNIFORM };  // as in KINDS

// Entries start, ..., start + n - 1 of a probe into out; threads are segments, from that of `start` on.
template <typename T, int kind>
__device__ void draw(T *out, Word start, Word n, Word seed, Word index, const Strips &strips) {
    Word segment = start / SEGMENT + (Word)blockIdx.x * THREADS + threadIdx.x;
    Word first = segment * SEGMENT, end = start + n < first + SEGMENT ? start + n : first + SEGMENT, word = 0;
    Stream bits = {{seed, index}, 0, segment, kind, {}, 4};
    for (Word j = first; j < end; ++j) {
        double x;
        if (kind == GAUSSIAN) {
            x = gaussian(bits, strips);
        } else if (kind == UNIFORM) {
            x = bits.uniform();
        } else {  // the highest of 32 bits, the lower half of a word first
            word = j % 2 ? word >> 32 : bits.next();
            x = word >> 31 & 1 ? 1.0 : -1.0;
        }
        if (j >= start) out[j - start] = (T)x;
    }
}

#define PROBES(T, NAME, KIND, KIND_NAME)                                                                                \
    extern "C" __global__ __launch_bounds__(THREADS) void KIND_NAME##_##NAME(                                           \
        T *out, Word start, Word n, Word seed, Word index, const Word *below, const double *w, const double *f) {       \
        draw<T, KIND>(out, start, n, seed, index, Strips{below, w, f});                                                 \
    }
#define ALL_KINDS(T, NAME)                                                                                                 \
    PROBES(T, NAME, GAUSSIAN, gaussian) PROBES(T, NAME, RADEMACHER, rademacher) PROBES(T, NAME, UNIFORM, uniform)

ALL_KINDS(float, float32)
ALL_KINDS(double, float64)
