// One pass over the rows of A (n x d, row-major, contiguous): sums over rows of (weight of the row) * a.
//
//   value_and_grad   z = <a, x>, then the sums of MATH 1.1 with the normaliser alpha_ref = exp(shift):
//                    T0 = sum v a   T1 = sum v c a   T2 = sum v f a   and   sum f, |c|^2, <c, f>, |f|^2, max z
//   gram_product     t = <a - abar, v>, then   y = sum D t (a - abar)   and   sum D t
//   merge            adds what the blocks of either have left, in a fixed order
//
// How a row is held.  L neighbouring lanes share a row, 32/L rows lie side by side in a warp; a lane holds J packs of
// V neighbouring columns (one load each) of R rows, so R * J independent loads are under way before the first is used.
// WIDE: all warps of the block share a row (L = 32), for d beyond the columns that one warp can hold.
//
// From z to weights.  The R partial products of a lane are summed across the L lanes by exchanging halves: after each
// exchange a lane keeps half of the rows, so that the lanes end with different rows and the exponentials of a step are
// computed side by side, once.  The weights then go to all lanes through shared memory.
//
// All integer arguments are 64 bit, as Python's are when a launcher passes them; flags say which outputs are wanted.
//
// Sums are kept in double for both types: products of two floats are exact there, and reading A stays the bottleneck
// on data-centre GPUs.  Every sum has a fixed order for a given grid: the result is the same, bit for bit, in every run.
// No header is included, so that NVRTC needs none.

typedef long long index_t;
#define ALL_LANES 0xffffffffu
#define LARGEST_BLOCK 16                       // warps that share a row, at most
#define NARROW_BLOCK 4                         // warps of a block whose warps hold rows of their own

__device__ __forceinline__ float exponential(float t) { return expf(t); }
__device__ __forceinline__ double exponential(double t) { return exp(t); }
__device__ __forceinline__ double minus_infinity() { return -__longlong_as_double(0x7ff0000000000000LL); }

// V neighbouring columns, in one load
template <typename T, int V> __device__ __forceinline__ void load(const T* p, T* a) {
    if constexpr (V == 1) {
        a[0] = *p;
    } else if constexpr (sizeof(T) == 8) {
        const double2 q = *reinterpret_cast<const double2*>(p);
        a[0] = q.x; a[1] = q.y;
    } else if constexpr (V == 2) {
        const float2 q = *reinterpret_cast<const float2*>(p);
        a[0] = q.x; a[1] = q.y;
    } else {
        const float4 q = *reinterpret_cast<const float4*>(p);
        a[0] = q.x; a[1] = q.y; a[2] = q.z; a[3] = q.w;
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// what a row does with its z: K weights (of the K vector sums) and S scalar sums

// Activation 0: g = exp (softmax).  1: g = exp + identity (ResNet-softmax), where scale = exp(-shift).
template <typename T, int ACTIVATION, bool REGULARISED> struct Normalised {
    static constexpr int K = REGULARISED ? 4 : 3, S = REGULARISED ? 5 : 4;
    struct Data { T b, w2; };
    const T *b, *w2;
    index_t w2_stride;                          // 0: one weight for all rows
    T shift, scale;
    T* z_out;
    bool keep_z;

    __device__ __forceinline__ Data fetch(index_t i) const {
        Data data;
        data.b = b[i];
        data.w2 = REGULARISED ? w2[i * w2_stride] : T(0);
        return data;
    }
    __device__ __forceinline__ void weigh(index_t i, T z, Data data, bool owner, double* q, double* s, T& largest) const {
        const T e = exponential(z - shift);
        const T f = ACTIVATION == 0 ? e : e + z * scale;
        const T v = ACTIVATION == 0 ? e : e + scale;
        const T c = f - data.b;
        q[0] = v;
        q[1] = double(v) * c;
        q[2] = double(v) * f;
        if (REGULARISED) q[3] = double(data.w2) * z;
        if (!owner) return;
        s[0] += f;
        s[1] += double(c) * c;
        s[2] += double(c) * f;
        s[3] += double(f) * f;
        if (REGULARISED) s[4] += double(data.w2) * z * z;
        if (z > largest) largest = z;
        if (keep_z) z_out[i] = z;
    }
};

template <typename T> struct Gram {
    static constexpr int K = 1, S = 1;
    struct Data { T D; };
    const T* D;
    T* t_out;
    bool keep_t;

    __device__ __forceinline__ Data fetch(index_t i) const { return Data{D[i]}; }
    __device__ __forceinline__ void weigh(index_t i, T t, Data data, bool owner, double* q, double* s, T&) const {
        q[0] = double(data.D) * t;
        if (!owner) return;
        s[0] += q[0];
        if (keep_t) t_out[i] = t;
    }
};

// ---------------------------------------------------------------------------------------------------------------------
// the pass.  partial: (gridDim.x, K d + S + 1), per block: the K vector sums, the S scalar sums, the maximum

template <class Row, typename T, bool CENTRED, bool WIDE, int L, int J, int V, int R>
__device__ __forceinline__ void stream(const T* __restrict__ A, index_t n, int d, const T* __restrict__ x,
                                       const T* __restrict__ centre, const Row row, double* __restrict__ partial) {
    static_assert(!WIDE || L == 32, "a wide row takes whole warps");
    constexpr int K = Row::K, S = Row::S, C = J * V, G = 32 / L;
    constexpr int M = R > L ? R / L : 1;        // rows whose weights one lane computes in a step
    constexpr int WARPS = WIDE ? LARGEST_BLOCK : NARROW_BLOCK;
    constexpr int STRIDE = (K + 1) / 2 * 2;     // keeps pairs of weights aligned for one 16-byte read

    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    const int group = lane / L;
    const int place = WIDE ? warp * 32 + lane : lane % L, places = WIDE ? warps * 32 : L;

    int mine = 0;                               // the first of the M rows (of R) that this lane ends with
    {
        int count = R;
        #pragma unroll
        for (int o = L / 2; o > 0; o /= 2)
            if (count > 1) { count /= 2; if (lane & o) mine += count; }
    }
    constexpr int ALIKE = L > R ? L / R : 1;    // neighbouring lanes that end with the same row
    const bool speaks = lane % ALIKE == 0;      // one of them hands its weights on
    const bool owner = speaks && (!WIDE || warp == 0);      // and adds to the scalar sums

    T xr[C], centre_r[CENTRED ? C : 1];
    double acc[K][C], s[S];
    T largest = T(minus_infinity());
    #pragma unroll
    for (int c = 0; c < C; ++c) {
        const int column = ((c / V) * places + place) * V + c % V;
        xr[c] = column < d ? x[column] : T(0);
        if constexpr (CENTRED) centre_r[c] = column < d ? centre[column] : T(0);
        #pragma unroll
        for (int k = 0; k < K; ++k) acc[k][c] = 0;
    }
    #pragma unroll
    for (int k = 0; k < S; ++k) s[k] = 0;

    alignas(16) __shared__ double weights[L > 1 ? WARPS * G * R * STRIDE : 2];
    __shared__ T products[WIDE ? 2 * LARGEST_BLOCK * R : 1];
    double* const q_warp = weights + (L > 1 ? warp * (G * R * STRIDE) : 0);

    const index_t step = G * R, teams = WIDE ? gridDim.x : (index_t)gridDim.x * warps;
    int turn = 0;
    for (index_t first = step * (WIDE ? blockIdx.x : (index_t)blockIdx.x * warps + warp); first < n; first += step * teams) {
        const int left = n - first < step ? int(n - first) - group : int(step);     // rows of the lane's that exist
        const T* const a_first = A + (first + group) * d + place * V;
        T a[R][C], dot[R];
        #pragma unroll
        for (int r = 0; r < R; ++r)
            #pragma unroll
            for (int j = 0; j < J; ++j) {
                if (r * G < left && (j * places + place) * V < d) {
                    load<T, V>(a_first + r * G * d + j * places * V, a[r] + j * V);
                } else {
                    #pragma unroll
                    for (int k = 0; k < V; ++k) a[r][j * V + k] = T(0);
                }
            }
        typename Row::Data data[M];
        #pragma unroll
        for (int m = 0; m < M; ++m) {
            if ((mine + m) * G < left) data[m] = row.fetch(first + group + (mine + m) * G);
        }
        #pragma unroll
        for (int r = 0; r < R; ++r) {
            dot[r] = T(0);
            #pragma unroll
            for (int c = 0; c < C; ++c) {
                if constexpr (CENTRED) a[r][c] -= centre_r[c];
                dot[r] += a[r][c] * xr[c];
            }
        }
        {                                                   // sum over the lanes of a row; see "From z to weights"
            int count = R;
            #pragma unroll
            for (int o = L / 2; o > 0; o /= 2) {
                if (count > 1) {
                    count /= 2;
                    #pragma unroll
                    for (int r = 0; r < R / 2; ++r) if (r < count) {
                        const T give = lane & o ? dot[r] : dot[r + count], keep = lane & o ? dot[r + count] : dot[r];
                        dot[r] = keep + __shfl_xor_sync(ALL_LANES, give, o);
                    }
                } else {
                    dot[0] += __shfl_xor_sync(ALL_LANES, dot[0], o);
                }
            }
        }
        if constexpr (WIDE) {                               // and over the warps, always in the same order
            T* const z = products + turn * (LARGEST_BLOCK * R);
            turn ^= 1;                                      // two buffers: one barrier a step is enough
            if (speaks) z[warp * R + mine] = dot[0];
            __syncthreads();
            dot[0] = T(0);
            for (int w = 0; w < warps; ++w) dot[0] += z[w * R + mine];
        }
        double q[M][K];
        #pragma unroll
        for (int m = 0; m < M; ++m) {
            if ((mine + m) * G < left) {
                row.weigh(first + group + (mine + m) * G, dot[m], data[m], owner, q[m], s, largest);
            } else {
                #pragma unroll
                for (int k = 0; k < K; ++k) q[m][k] = 0;
            }
        }
        if constexpr (L > 1) {
            if (speaks) {
                #pragma unroll
                for (int m = 0; m < M; ++m)
                    #pragma unroll
                    for (int k = 0; k < K; ++k) q_warp[((mine + m) * G + group) * STRIDE + k] = q[m][k];
            }
            __syncwarp();
        }
        #pragma unroll
        for (int r = 0; r < R; ++r)
            #pragma unroll
            for (int k = 0; k < K; ++k) {
                double weight;
                if constexpr (L > 1) weight = q_warp[(r * G + group) * STRIDE + k];
                else weight = q[r][k];
                #pragma unroll
                for (int c = 0; c < C; ++c) acc[k][c] += weight * double(a[r][c]);
            }
        if constexpr (L > 1) __syncwarp();                  // read before the next step writes
    }

    // the sums of the block: over the groups of a warp, then over its warps one after the other
    double* const out = partial + (index_t)blockIdx.x * (K * d + S + 1);
    if constexpr (WIDE) {
        #pragma unroll
        for (int k = 0; k < K; ++k)
            #pragma unroll
            for (int c = 0; c < C; ++c) {
                const int column = ((c / V) * places + place) * V + c % V;
                if (column < d) out[k * d + column] = acc[k][c];
            }
    } else {
        __shared__ double total[K * C * L];
        #pragma unroll
        for (int k = 0; k < K; ++k)
            #pragma unroll
            for (int c = 0; c < C; ++c)
                #pragma unroll
                for (int o = L; o < 32; o *= 2) acc[k][c] += __shfl_xor_sync(ALL_LANES, acc[k][c], o);
        for (int w = 0; w < warps; ++w) {
            if (w == warp && lane < L) {
                #pragma unroll
                for (int k = 0; k < K; ++k)
                    #pragma unroll
                    for (int c = 0; c < C; ++c) {
                        double& sum = total[(k * C + c) * L + lane];
                        sum = w == 0 ? acc[k][c] : sum + acc[k][c];
                    }
            }
            __syncthreads();
        }
        for (int e = threadIdx.x; e < K * C * L; e += blockDim.x) {
            const int k = e / (C * L), c = e / L % C, column = ((c / V) * L + e % L) * V + c % V;
            if (column < d) out[k * d + column] = total[e];
        }
    }
    __shared__ double scalars[WARPS][S + 1];
    #pragma unroll
    for (int o = 16; o > 0; o /= 2) {
        #pragma unroll
        for (int k = 0; k < S; ++k) s[k] += __shfl_xor_sync(ALL_LANES, s[k], o);
        const T other = __shfl_xor_sync(ALL_LANES, largest, o);
        if (other > largest) largest = other;
    }
    if (lane == 0) {
        #pragma unroll
        for (int k = 0; k < S; ++k) scalars[warp][k] = s[k];
        scalars[warp][S] = largest;
    }
    __syncthreads();
    if (threadIdx.x <= S) {
        const int k = threadIdx.x;
        double sum = scalars[0][k];
        for (int w = 1; w < warps; ++w) {
            const double other = scalars[w][k];
            if (k < S) sum += other;
            else if (other > sum) sum = other;
        }
        out[K * d + k] = sum;
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// the kernels

#define BOUNDS(WIDE) __launch_bounds__(WIDE ? 32 * LARGEST_BLOCK : 32 * NARROW_BLOCK, WIDE ? 1 : 16 / NARROW_BLOCK)

template <typename T, int ACTIVATION, bool REGULARISED, bool WIDE, int L, int J, int V, int R>
__global__ void BOUNDS(WIDE) value_and_grad(
        const T* __restrict__ A, index_t n, index_t d, const T* __restrict__ x, const T* __restrict__ b,
        const T* __restrict__ w2, index_t w2_stride, const T* __restrict__ shift, T* __restrict__ z_out,
        index_t keep_z, double* __restrict__ partial) {
    const T m = *shift;
    const Normalised<T, ACTIVATION, REGULARISED> row{b, w2, w2_stride, m, exponential(-m), z_out, keep_z != 0};
    stream<Normalised<T, ACTIVATION, REGULARISED>, T, false, WIDE, L, J, V, R>(A, n, (int)d, x, nullptr, row, partial);
}

template <typename T, bool CENTRED, bool WIDE, int L, int J, int V, int R>
__global__ void BOUNDS(WIDE) gram_product(
        const T* __restrict__ A, index_t n, index_t d, const T* __restrict__ v, const T* __restrict__ centre,
        const T* __restrict__ D, T* __restrict__ t_out, index_t keep_t, double* __restrict__ partial) {
    const Gram<T> row{D, t_out, keep_t != 0};
    stream<Gram<T>, T, CENTRED, WIDE, L, J, V, R>(A, n, (int)d, v, centre, row, partial);
}

// Column t of partial (blocks, columns): its sum over the blocks; the last column: its maximum.  A block of 32 x 32
// threads does 32 columns: thread (t, w) adds the blocks w, w + 32, ..., and then thread (t, 0) adds those in order.
__global__ void __launch_bounds__(1024) merge(const double* __restrict__ partial, index_t blocks, index_t columns,
                                              double* __restrict__ out) {
    __shared__ double sums[32][33];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const index_t column = (index_t)blockIdx.x * 32 + lane;
    const bool is_maximum = column == columns - 1;
    double sum = is_maximum ? minus_infinity() : 0;
    if (column < columns) {
        #pragma unroll 4
        for (index_t block = warp; block < blocks; block += 32) {
            const double other = partial[block * columns + column];
            if (!is_maximum) sum += other;
            else if (other > sum) sum = other;
        }
    }
    sums[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && column < columns) {
        for (int w = 1; w < 32; ++w) {
            const double other = sums[w][lane];
            if (!is_maximum) sum += other;
            else if (other > sum) sum = other;
        }
        out[column] = sum;
    }
}
