// Run a CUDA kernel SOURCE on the CPU, for tests (cpu_exec.py is its Python side).
// Two executors:
//   default            every CUDA thread of a block is a fiber of one OS thread: deterministic, fast enough,
//                      works under ASan/UBSan; the order in which threads run is permuted by CUDACPU_SEED
//   -DCUDACPU_THREADS  every CUDA thread is an OS thread: slow, but TSan then is a race checker
// Poisoning __shared__ memory with NaN before each block needs clang++ (CUDACPU_CXX=clang++-19): g++ 12 silently ignores
// the section attribute on statics inside templates, and then a block sees what the block before left there.
// Not modelled: registers, occupancy, memory ordering between blocks, grid-wide sync, tensor cores, CUDA's own exp/log bits.
// Both find: a barrier or a warp collective that not all of its threads reach (deadlock / divergence).
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <algorithm>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>
#ifdef CUDACPU_THREADS
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#include <sanitizer/asan_interface.h>
#define CUDACPU_ASAN 1
#endif

#define __global__
#define __device__
#define __host__
#define __constant__ static
#if defined(__clang__) || !defined(CUDACPU_NO_POISON)
#define __shared__ static __attribute__((section("cudacpu_shared")))     // one section: poisoned with NaN before each block
#define CUDACPU_POISON 1
#else
#define __shared__ static
#endif
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define __CUDACPU__ 1

struct dim3 { unsigned x, y, z; dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {} };
struct uint3 { unsigned x, y, z; };
#define CUDACPU_VEC(T, N) struct T##2 { N x, y; }; struct alignas(4 * sizeof(N) > 16 ? 16 : 4 * sizeof(N)) T##4 { N x, y, z, w; }; \
    inline T##2 make_##T##2(N a, N b) { return {a, b}; } inline T##4 make_##T##4(N a, N b, N c, N d) { return {a, b, c, d}; }
CUDACPU_VEC(float, float) CUDACPU_VEC(double, double) CUDACPU_VEC(int, int)

namespace cudacpu {

struct Error : std::runtime_error { using std::runtime_error::runtime_error; };

#ifdef CUDACPU_THREADS      // a monitor per block and per warp: few locks in common, so that TSan's view stays sharp
struct Mon { std::mutex m; std::condition_variable cv; };
struct Guard { std::unique_lock<std::mutex> l; Mon& mon; explicit Guard(Mon& x) : l(x.m), mon(x) {} };
#else
struct Mon {};
struct Guard { explicit Guard(Mon&) {} };
#endif
struct Warp { Mon mon; alignas(16) char slot[32][16]; unsigned arrived = 0, mask = 0, left = 0; const char* what = ""; long gen = 0; };

struct Thread { uint3 tid; unsigned lin, lane; Warp* warp; bool done = false; const char* where = "start"; long bar = 0; };

struct Block {
    Mon mon; uint3 bid; dim3 bdim, gdim; unsigned n = 0, live = 0, atbar = 0; long bargen = 0; int barline = 0;
    std::vector<Thread> th; std::vector<Warp> warps; std::vector<char> dyn; std::string err;
    long switches = 0;
};

extern thread_local Block* B;         // the block that this OS thread runs
extern thread_local Thread* T;        // the CUDA thread that runs now
template <class F> void wait(Guard&, F ready, const char* where);     // give way until ready()
void notify(Guard&);                                                 // something changed

inline void syncthreads(int line) {
    Block& b = *B; Guard lock(b.mon);
    if (b.atbar == 0) b.barline = line;
    else if (b.barline != line) throw Error("divergent __syncthreads(): thread " + std::to_string(T->lin) + " is at line " + std::to_string(line) + ", others are at line " + std::to_string(b.barline));
    const long g = b.bargen;
    if (++b.atbar == b.n) { b.atbar = 0; ++b.bargen; notify(lock); }
    else wait(lock, [&b, g] { return b.bargen != g; }, "__syncthreads()");
}

// all lanes of `mask` meet, each having put `v` into its slot; then each reads what `f` takes from the slots
template <class V, class F> inline auto collective(unsigned mask, V v, F f, const char* where) {
    static_assert(sizeof(V) <= 16);
    Thread& t = *T; Warp& w = *t.warp; const unsigned me = 1u << t.lane;
    Guard lock(w.mon);
    if (!(mask & me)) throw Error(std::string(where) + ": the calling lane is not in the mask");
    wait(lock, [&w] { return w.left == 0; }, where);                   // the round before has been read by all
    std::memcpy(w.slot[t.lane], &v, sizeof(V));
    if (w.arrived == 0) { w.mask = mask; w.what = where; }
    else if (std::strcmp(w.what, where)) throw Error(std::string("lanes of one warp meet in different intrinsics: ") + where + ", " + w.what);
    else if (w.mask != mask) throw Error(std::string(where) + ": lanes of one warp disagree about the mask");
    w.arrived |= me;
    const long g = w.gen;
    if (w.arrived == mask) { w.left = mask; w.arrived = 0; ++w.gen; notify(lock); }
    else wait(lock, [&w, g] { return w.gen != g; }, where);
    auto r = f([&w, mask, where](unsigned l) { if (!(mask >> (l & 31) & 1)) throw Error(std::string(where) + " reads a lane that does not take part"); V x; std::memcpy(&x, w.slot[l & 31], sizeof(V)); return x; });
    w.left &= ~me; if (!w.left) notify(lock);
    return r;
}

struct Reg { const char* name; void (*go)(dim3, dim3, size_t, void**, const int*); };
void run(dim3 grid, dim3 block, size_t smem, const std::function<void()>& body);

template <class A> constexpr int kind() {       // for checking what the caller passes: 'f','i','p' and the size
    using X = std::remove_cv_t<A>;
    return (std::is_pointer_v<X> ? 'p' : std::is_floating_point_v<X> ? 'f' : std::is_integral_v<X> ? 'i' : 's') * 256 + (int)sizeof(X);
}
template <auto F> struct Launch;
template <class... A, void (*F)(A...)> struct Launch<F> {
    static void go(dim3 g, dim3 b, size_t smem, void** p, const int* kinds, int nargs) {
        if (nargs != (int)sizeof...(A)) throw Error("kernel takes " + std::to_string(sizeof...(A)) + " arguments, got " + std::to_string(nargs));
        constexpr int want[] = {kind<A>()..., 0};
        for (int i = 0; i < nargs; ++i) {
            const int k = kinds[i], w = want[i];
            const bool ok = k == w || w / 256 == 's';
            if (!ok) throw Error("argument " + std::to_string(i) + ": kernel wants '" + char(w / 256) + std::to_string(w % 256)
                                 + "', the caller passes '" + char(k / 256) + std::to_string(k % 256) + "'");
        }
        call(g, b, smem, p, std::index_sequence_for<A...>{});
    }
    template <size_t... I> static void call(dim3 g, dim3 b, size_t smem, void** p, std::index_sequence<I...>) {
        std::tuple<std::remove_cv_t<A>...> a{*(std::remove_cv_t<A>*)p[I]...};
        run(g, b, smem, [&] { std::apply(F, a); });
    }
};
} // namespace cudacpu

#define threadIdx (cudacpu::T->tid)
#define blockIdx  (cudacpu::B->bid)
#define blockDim  (cudacpu::B->bdim)
#define gridDim   (cudacpu::B->gdim)
#define warpSize 32
#define CUDACPU_DYN_SHARED(type, name) type* name = (type*)cudacpu::B->dyn.data()

#define __syncthreads() cudacpu::syncthreads(__LINE__)
inline void __syncwarp(unsigned m = 0xffffffffu) { cudacpu::collective(m, 0, [](auto) { return 0; }, "__syncwarp"); }
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_block() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
template <class V> V __shfl_xor_sync(unsigned m, V v, int o, int w = 32) { const unsigned l = cudacpu::T->lane;
    return cudacpu::collective(m, v, [=](auto g) { const unsigned s = l ^ o; return s / w == l / w ? g(s) : v; }, "__shfl_xor_sync"); }
template <class V> V __shfl_down_sync(unsigned m, V v, unsigned o, int w = 32) { const unsigned l = cudacpu::T->lane;
    return cudacpu::collective(m, v, [=](auto g) { const unsigned s = l + o; return s / w == l / w ? g(s) : v; }, "__shfl_down_sync"); }
template <class V> V __shfl_up_sync(unsigned m, V v, unsigned o, int w = 32) { const unsigned l = cudacpu::T->lane;
    return cudacpu::collective(m, v, [=](auto g) { return l % w >= o ? g(l - o) : v; }, "__shfl_up_sync"); }
template <class V> V __shfl_sync(unsigned m, V v, int s, int w = 32) { const unsigned l = cudacpu::T->lane;
    return cudacpu::collective(m, v, [=](auto g) { return g(l / w * w + (s & (w - 1))); }, "__shfl_sync"); }
inline unsigned __ballot_sync(unsigned m, int p) { return cudacpu::collective(m, p, [=](auto g) { unsigned r = 0; for (int i = 0; i < 32; ++i) if (m >> i & 1) r |= unsigned(g(i) != 0) << i; return r; }, "__ballot_sync"); }
inline int __any_sync(unsigned m, int p) { return __ballot_sync(m, p) != 0; }
inline int __all_sync(unsigned m, int p) { return __ballot_sync(m, p) == m; }
inline unsigned __activemask() { return 0xffffffffu; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
template <class V> V __ldg(const V* p) { return *p; }
template <class V> V atomicAdd(V* p, V v) {
    if constexpr (std::is_integral_v<V>) return __atomic_fetch_add(p, v, __ATOMIC_RELAXED);
    else { V o, n; __atomic_load(p, &o, __ATOMIC_RELAXED); do n = o + v; while (!__atomic_compare_exchange(p, &o, &n, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)); return o; }
}
template <class V> V atomicMax(V* p, V v) { V o; __atomic_load(p, &o, __ATOMIC_RELAXED); while (o < v && !__atomic_compare_exchange(p, &o, &v, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)); return o; }
inline unsigned atomicInc(unsigned* p, unsigned m) { unsigned o = __atomic_load_n(p, __ATOMIC_RELAXED), n; do n = o >= m ? 0 : o + 1; while (!__atomic_compare_exchange_n(p, &o, n, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)); return o; }
inline double rsqrt(double x) { return 1 / std::sqrt(x); }
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
inline float __expf(float x) { return expf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline double __longlong_as_double(long long x) { double d; memcpy(&d, &x, 8); return d; }
inline long long __double_as_longlong(double x) { long long d; memcpy(&d, &x, 8); return d; }
inline int __float_as_int(float x) { int d; memcpy(&d, &x, 4); return d; }
inline float __int_as_float(int x) { float d; memcpy(&d, &x, 4); return d; }
using std::min; using std::max;

// ------------------------------------------------------------------ the executors
namespace cudacpu {
thread_local Block* B = nullptr;
thread_local Thread* T = nullptr;

#ifdef CUDACPU_POISON
extern "C" char __start_cudacpu_shared[] __attribute__((weak, visibility("hidden"))), __stop_cudacpu_shared[] __attribute__((weak, visibility("hidden")));
inline size_t static_smem() { return __start_cudacpu_shared ? size_t(__stop_cudacpu_shared - __start_cudacpu_shared) : 0; }
__attribute__((no_sanitize("address"))) inline void poison() { if (__start_cudacpu_shared) for (volatile char* p = __start_cudacpu_shared; p < __stop_cudacpu_shared; ++p) *p = (char)0xff; }
#else
inline void poison() {}
#endif
inline void setup(Block& b, dim3 grid, dim3 block, size_t smem) {
    b.bdim = block; b.gdim = grid; b.n = block.x * block.y * block.z;
    if (b.n == 0 || b.n > 1024) throw Error("a block of " + std::to_string(b.n) + " threads");
    if (!grid.x || !grid.y || !grid.z || grid.y > 65535 || grid.z > 65535) throw Error("bad grid");
    if (smem > 232448) throw Error("more than 227 KiB of dynamic shared memory");
    b.th.assign(b.n, {}); b.bargen = 0; b.atbar = 0; b.warps = std::vector<Warp>((b.n + 31) / 32); b.dyn.assign(smem + 16, (char)0xff);
    for (unsigned i = 0; i < b.n; ++i) b.th[i] = Thread{{i % block.x, i / block.x % block.y, i / (block.x * block.y)}, i, i & 31, &b.warps[i / 32]};
}

#ifndef CUDACPU_THREADS
// ---- fibers (x86-64 and AArch64 System V by hand: about 2 ns a switch, against 0.3 us for swapcontext)
extern "C" void cudacpu_switch(void** save_sp, void* load_sp);
#if defined(__x86_64__)
__asm__(".text\n.globl cudacpu_switch\n.type cudacpu_switch,@function\ncudacpu_switch:\n"
        "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
        "movq %rsp,(%rdi)\nmovq %rsi,%rsp\n"
        "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n");
#else
#error "add a switch for this machine, or build with -DCUDACPU_THREADS"
#endif
constexpr size_t STACK = 256 << 10;
struct Fiber { std::unique_ptr<char[]> stack; void* sp = nullptr; void* fake = nullptr; };
struct Sched { std::vector<Fiber> f; void* main_sp = nullptr; void* main_fake = nullptr; const void* main_bot = nullptr; size_t main_size = 0; unsigned cur = 0; const std::function<void()>* body = nullptr; bool progress = false, abort = false; };
static thread_local Sched S;
struct Abort {};

inline void to_main(bool dying = false) {
    Fiber& f = S.f[S.cur];
#ifdef CUDACPU_ASAN
    __sanitizer_start_switch_fiber(dying ? nullptr : &f.fake, S.main_bot, S.main_size);
#endif
    cudacpu_switch(&f.sp, S.main_sp);
#ifdef CUDACPU_ASAN
    __sanitizer_finish_switch_fiber(f.fake, &S.main_bot, &S.main_size);
#endif
}
extern "C" inline void cudacpu_entry() {
#ifdef CUDACPU_ASAN
    __sanitizer_finish_switch_fiber(nullptr, &S.main_bot, &S.main_size);
#endif
    try { (*S.body)(); } catch (Abort&) {} catch (std::exception& e) { if (B->err.empty()) B->err = e.what(); S.abort = true; }
    T->done = true; T->where = "return"; S.progress = true;
    to_main(true);
    __builtin_trap();
}
inline void to_fiber(unsigned i) {
    Fiber& f = S.f[i]; S.cur = i; T = &B->th[i]; ++B->switches;
#ifdef CUDACPU_ASAN
    __sanitizer_start_switch_fiber(&S.main_fake, f.stack.get(), STACK);
#endif
    cudacpu_switch(&S.main_sp, f.sp);
#ifdef CUDACPU_ASAN
    __sanitizer_finish_switch_fiber(S.main_fake, nullptr, nullptr);
#endif
}
inline void notify(Guard&) { S.progress = true; }
template <class F> void wait(Guard&, F ready, const char* where) {
    while (!ready()) { T->where = where; to_main(); if (S.abort) throw Abort{}; }
    S.progress = true;
}
inline void run(dim3 grid, dim3 block, size_t smem, const std::function<void()>& body) {
    Block b; setup(b, grid, block, smem);
    const char* seed = getenv("CUDACPU_SEED");
    std::mt19937 rng(seed ? atoi(seed) : 0);
    if (S.f.size() < b.n) S.f.resize(b.n);
    for (unsigned i = 0; i < b.n; ++i) if (!S.f[i].stack) S.f[i].stack.reset(new char[STACK]);
    std::vector<unsigned> order(b.n); std::vector<size_t> blocks((size_t)grid.x * grid.y * grid.z);
    std::iota(order.begin(), order.end(), 0u); std::iota(blocks.begin(), blocks.end(), size_t(0));
    if (seed) std::shuffle(blocks.begin(), blocks.end(), rng);
    for (size_t n : blocks) {
        setup(b, grid, block, smem); poison();
        b.bid = {unsigned(n % grid.x), unsigned(n / grid.x % grid.y), unsigned(n / ((size_t)grid.x * grid.y))};
        if (seed) std::shuffle(order.begin(), order.end(), rng);
        for (unsigned i = 0; i < b.n; ++i) {
            char* top = (char*)((uintptr_t)(S.f[i].stack.get() + STACK) & ~uintptr_t(15));
#ifdef CUDACPU_ASAN
            __asan_unpoison_memory_region(S.f[i].stack.get(), STACK);
#endif
            void** sp = (void**)top; *--sp = nullptr; *--sp = (void*)&cudacpu_entry; for (int k = 0; k < 6; ++k) *--sp = nullptr;
            S.f[i].sp = sp; S.f[i].fake = nullptr;
        }
        S.body = &body; S.abort = false; B = &b; unsigned alive = b.n;
        while (alive) {
            S.progress = false; alive = 0;
            for (unsigned i : order) if (!b.th[i].done) { to_fiber(i); alive += !b.th[i].done; }
            if (alive && !S.progress) {           // nobody can go on: say who waits for whom
                if (b.err.empty()) {
                    unsigned nd = 0, w = 0; const char* at = nullptr; for (auto& t : b.th) { nd += t.done; if (!t.done && !at) { at = t.where; w = t.lin; } }
                    b.err = "deadlock in block (" + std::to_string(b.bid.x) + "," + std::to_string(b.bid.y) + "): " + std::to_string(b.n - nd) + " threads wait (thread " + std::to_string(w) + " in " + at + "), " + std::to_string(nd) + " have returned";
                    for (auto& t : b.th) if (!t.done && strcmp(t.where, at)) { b.err += ", thread " + std::to_string(t.lin) + " in " + t.where; break; }
                }
                S.abort = true;
            }
        }
        B = nullptr; T = nullptr;
        if (!b.err.empty()) throw Error(b.err);
    }
}
#else
// ---- OS threads: for TSan, which then sees the kernel's own loads and stores. A block at a time.
struct Abort {};
static std::atomic<bool> ABORT{false};
inline void notify(Guard& g) { g.mon.cv.notify_all(); }
template <class F> void wait(Guard& g, F ready, const char* where) {
    T->where = where;
    for (int i = 0; !ready(); ++i) {
        if (ABORT) throw Abort{};
        if (i > 200) throw Error(std::string("no progress for 10 s: a thread waits in ") + where);
        g.mon.cv.wait_for(g.l, std::chrono::milliseconds(50), ready);
    }
}
inline void run(dim3 grid, dim3 block, size_t smem, const std::function<void()>& body) {
    for (size_t n = 0, e = (size_t)grid.x * grid.y * grid.z; n < e; ++n) {
        Block b; setup(b, grid, block, smem); poison(); ABORT = false;
        b.bid = {unsigned(n % grid.x), unsigned(n / grid.x % grid.y), unsigned(n / ((size_t)grid.x * grid.y))};
        std::vector<std::thread> ts; std::mutex em;
        for (unsigned i = 0; i < b.n; ++i) ts.emplace_back([&, i] {
            B = &b; T = &b.th[i];
            try { body(); } catch (Abort&) {} catch (std::exception& x) { std::lock_guard l(em); if (b.err.empty()) b.err = x.what(); ABORT = true; }
        });
        for (auto& t : ts) t.join();
        if (!b.err.empty()) throw Error(b.err);
    }
}
#endif
} // namespace cudacpu
