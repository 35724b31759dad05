// Updates of recurrences, with the inner products that they need in the same pass over memory.
//
// Entries are T (float or double), rounded as torch's kernels round them: one fused multiply-add for each a + alpha b.
// Inner products are sums of double(x) * double(y). A thread adds its own entries, a block the sums of its threads in a
// tree, and block b leaves K numbers in partial[b], which the caller adds: every order is fixed, so that a launch of one
// grid gives the same bits each time.
//
// Nothing is included, so that nvrtc compiles this file as it is; tests/host_kernels.cpp compiles it for a processor.

#ifndef THREADS
#define THREADS 256  // of a block, a power of 2
#endif

typedef unsigned long long Size;

template <typename T> struct alignas(16) Pack { T of[16 / sizeof(T)]; };  // what one load of 16 bytes brings

__device__ inline float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
__device__ inline double multiply_add(double a, double b, double c) { return fma(a, b, c); }

template <typename T> __device__ bool aligned(const T *x) { return (Size)x % 16 == 0; }

// The sums of a block's threads, added pairwise.
template <int K> __device__ void leave(const double (&sums)[K], double *partial) {
    __shared__ double tree[K][THREADS];
    for (int k = 0; k < K; ++k) tree[k][threadIdx.x] = sums[k];
    __syncthreads();
    for (unsigned half = THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half)
            for (int k = 0; k < K; ++k) tree[k][threadIdx.x] += tree[k][threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x < K) partial[(Size)blockIdx.x * K + threadIdx.x] = tree[threadIdx.x][0];
}

// z[i] = update(x[i], y[i], w[i], sums) for all i < n; z may be any of the others, which are read before it is written.
template <typename T, int K, typename Update>
__device__ void pass(const T *x, const T *y, const T *w, T *z, Size n, double *partial, const Update &update) {
    double sums[K] = {};
    Size thread = (Size)blockIdx.x * THREADS + threadIdx.x, all = (Size)gridDim.x * THREADS, done = 0;
    if (aligned(x) && aligned(y) && aligned(w) && aligned(z)) {
        const int width = 16 / sizeof(T);
        Size packs = n / width;
        for (Size i = thread; i < packs; i += all) {
            Pack<T> a = ((const Pack<T> *)x)[i], b = ((const Pack<T> *)y)[i], c = ((const Pack<T> *)w)[i], d;
            for (int j = 0; j < width; ++j) d.of[j] = update(a.of[j], b.of[j], c.of[j], sums);
            ((Pack<T> *)z)[i] = d;
        }
        done = packs * width;
    }
    for (Size i = done + thread; i < n; i += all) z[i] = update(x[i], y[i], w[i], sums);
    leave<K>(sums, partial);
}

// out = w - beta q_prev; <q_prev, w>, <out, q>
template <typename T> struct Subtract {
    T beta;
    __device__ T operator()(T q_prev, T q, T w, double (&sums)[2]) const {
        T out = multiply_add(-beta, q_prev, w);
        sums[0] += (double)q_prev * (double)w;
        sums[1] += (double)out * (double)q;
        return out;
    }
};

// w = w - alpha q; <w, w>
template <typename T> struct Shorten {
    T alpha;
    __device__ T operator()(T q, T, T w, double (&sums)[1]) const {
        T out = multiply_add(-alpha, q, w);
        sums[0] += (double)out * (double)out;
        return out;
    }
};

// t_prev = a w - b t - t_prev; <t_prev, t>, <t_prev, t_prev>
template <typename T> struct Chebyshev {
    T a, b;
    __device__ T operator()(T t_prev, T t, T w, double (&sums)[2]) const {
        T out = multiply_add(-b, t, multiply_add(a, w, -t_prev));
        sums[0] += (double)out * (double)t;
        sums[1] += (double)out * (double)out;
        return out;
    }
};

#define KERNELS(T, NAME)                                                                                                \
    extern "C" __global__ __launch_bounds__(THREADS) void lanczos_subtract_##NAME(                                      \
        const T *q_prev, const T *q, const T *w, T *out, double beta, Size n, double *partial) {                        \
        pass<T, 2>(q_prev, q, w, out, n, partial, Subtract<T>{(T)beta});                                                \
    }                                                                                                                   \
    extern "C" __global__ __launch_bounds__(THREADS) void lanczos_shorten_##NAME(                                       \
        const T *q, T *w, double alpha, Size n, double *partial) {                                                      \
        pass<T, 1>(q, q, w, w, n, partial, Shorten<T>{(T)alpha});                                                       \
    }                                                                                                                   \
    extern "C" __global__ __launch_bounds__(THREADS) void chebyshev_##NAME(                                             \
        T *t_prev, const T *t, const T *w, double a, double b, Size n, double *partial) {                               \
        pass<T, 2>(t_prev, t, w, t_prev, n, partial, Chebyshev<T>{(T)a, (T)b});                                         \
    }

KERNELS(float, float32)
KERNELS(double, float64)
