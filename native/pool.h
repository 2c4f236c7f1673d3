// A small pool of threads: few, started once, reused; the caller works too.
#pragma once

#include <cstdint>
#include <functional>

namespace chumoku {

// Runs body(item, worker) for every item in [0, items), in any order, on at most `threads`
// threads; worker is in [0, threads). `idle` is called from the calling thread every few
// milliseconds, also while it only waits; when it returns true, or a body throws, no further item
// is begun. Returns false when idle stopped the work. Rethrows the first exception of a body.
bool parallel(int64_t items, int threads, const std::function<void(int64_t, int)>& body,
              const std::function<bool()>& idle);

// Threads that a call may use: set_threads, CHUMOKU_NUM_THREADS, OMP_NUM_THREADS, else the CPUs
// that affinity and the cgroup's quota leave.
int threads();
void set_threads(int count);

// True once the running call is to stop; long bodies ask between chunks.
bool stopping();

}  // namespace chumoku
