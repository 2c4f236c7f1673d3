// A small pool of threads: few, started once, reused; the caller works too.
#pragma once

#include <cstdint>
#include <functional>

namespace chumoku {

constexpr int kMostThreads = 256;

// Runs body(item, worker) for every item in [0, items), begun in their order, on at most `threads`
// threads; worker is in [0, threads), and no two bodies run as the same worker at once. `idle` is
// called from the calling thread every few milliseconds, also while it only waits; when it returns
// true, or a body throws, no further item is begun. Returns false when idle stopped the work.
// Otherwise rethrows the first exception of a body. What idle calls may call parallel again, and so
// may a body. While one call has the pool, others run on their own thread alone.
bool parallel(int64_t items, int threads, const std::function<void(int64_t, int)>& body,
              const std::function<bool()>& idle);

// Threads that a call may use: set_threads; else what set_automatic was told, else the CPUs that
// the calling thread's affinity leaves, and never more than an OpenMP runtime which the process
// shares (PyTorch's) would use for this thread.
int threads();
int automatic_threads();
void set_threads(int count);  // 0: automatic again

// `asked` threads are used as they are; `openmp` stands for the CPUs; `quota` limits the CPUs.
// 0 is unknown.
void set_automatic(int asked, int openmp, int quota);

// Whether calls of the main thread may run on the threads of that OpenMP runtime, when they want as
// many as it has. Straight after its own work those spin and wait for more; otherwise they must
// first be woken, all of them. Never in a forked child, where they are no more.
void beside_host(bool now);

// True once the running call is to stop; long bodies ask between chunks.
bool stopping();

}  // namespace chumoku

// For threadpoolctl, which finds a library's threads by the names of C functions. Setting the
// automatic number makes the choice automatic again: that is how a limit is taken back.
extern "C" {
__attribute__((visibility("default"))) int chumoku_get_num_threads();
__attribute__((visibility("default"))) void chumoku_set_num_threads(int count);
}
