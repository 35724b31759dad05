// The CUDA sources as they stand, run on the processor: one system thread for each thread of a block, blocks one after another.
// build: g++ -std=c++20 -O2 -ffp-contract=off -shared -fPIC -pthread -I spectral/krylov/kernels
#include <barrier>
#include <cmath>
#include <thread>
#include <vector>

#define THREADS 32
#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(threads)

struct Place { unsigned x; };
static thread_local Place threadIdx;
static Place blockIdx, gridDim;
static std::barrier<> together(THREADS);
static void __syncthreads() { together.arrive_and_wait(); }

static unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned __int128)a * b >> 64;
}

#include "probes.cu"
#include "recurrences.cu"

template <typename... Types, typename... Given> void launch(void (*kernel)(Types...), unsigned blocks, Given... given) {
    gridDim.x = blocks;
    for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
        std::vector<std::jthread> threads;
        for (unsigned i = 0; i < THREADS; ++i)
            threads.emplace_back([=] { threadIdx.x = i; kernel(given...); });
    }
}

#define LAUNCHERS(T, NAME)                                                                                              \
    extern "C" void host_lanczos_subtract_##NAME(                                                                       \
        unsigned blocks, const T *q_prev, const T *q, const T *w, T *out, double beta, Size n, double *partial) {       \
        launch(lanczos_subtract_##NAME, blocks, q_prev, q, w, out, beta, n, partial);                                   \
    }                                                                                                                   \
    extern "C" void host_lanczos_shorten_##NAME(                                                                        \
        unsigned blocks, const T *q, T *w, double alpha, Size n, double *partial) {                                     \
        launch(lanczos_shorten_##NAME, blocks, q, w, alpha, n, partial);                                                \
    }                                                                                                                   \
    extern "C" void host_chebyshev_##NAME(                                                                              \
        unsigned blocks, T *t_prev, const T *t, const T *w, double a, double b, Size n, double *partial) {              \
        launch(chebyshev_##NAME, blocks, t_prev, t, w, a, b, n, partial);                                               \
    }

LAUNCHERS(float, float32)
LAUNCHERS(double, float64)

#define DRAW(KIND, T, NAME)                                                                                             \
    extern "C" void host_##KIND##_##NAME(                                                                               \
        unsigned blocks, T *out, Word start, Word n, Word seed, Word index, const Word *below, const double *w,         \
        const double *f) {                                                                                              \
        launch(KIND##_##NAME, blocks, out, start, n, seed, index, below, w, f);                                         \
    }
#define DRAWS(KIND) DRAW(KIND, float, float32) DRAW(KIND, double, float64)

DRAWS(gaussian)
DRAWS(rademacher)
DRAWS(uniform)
