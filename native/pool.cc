#include "pool.h"

#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cfenv>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <link.h>
#endif

namespace chumoku {
namespace {

using Clock = std::chrono::steady_clock;
using Body = std::function<void(int64_t, int)>;
using Idle = std::function<bool()>;

constexpr auto kSpin = std::chrono::microseconds(30);
// Between two calls of `idle`: ten times what the last one took, within these bounds. A caller that
// waits for a busy interpreter each time would hardly work at all.
constexpr Clock::duration kPoll = std::chrono::milliseconds(4);
constexpr Clock::duration kPollRarely = std::chrono::milliseconds(50);

// How often this process has been forked off: a child has none of its parent's threads.
std::atomic<unsigned> forks{0};

// The CPUs that a thread may run on.
struct Cpus {
#if defined(__linux__)
  cpu_set_t set;
  bool known = sched_getaffinity(0, sizeof set, &set) == 0;

  bool differ(const Cpus& other) const {
    return known && (!other.known || std::memcmp(&set, &other.set, sizeof set) != 0);
  }
  void adopt() const { sched_setaffinity(0, sizeof set, &set); }
  int count() const { return known ? CPU_COUNT(&set) : 0; }
#else
  bool differ(const Cpus&) const { return false; }
  void adopt() const {}
  int count() const { return 0; }
#endif
};

// One call's work. It lives on the caller's stack: whoever takes part is counted in `inside`.
struct Job {
  const Body& body;
  const int64_t items;
  const bool shared;  // with other threads
  const unsigned begun_in = forks;
  std::atomic<int64_t> next{0};
  std::atomic<bool> stop{false};
  std::atomic<bool> failed{false};
  std::atomic<int> inside{0};
  std::exception_ptr failure{};  // its writer set `failed` first; read when nobody is inside
  bool interrupted = false;      // the calling thread's own

  // In a child that was forked off inside the call, where the other threads are no more.
  bool lost() const { return shared && forks != begun_in; }

  void fail() {
    if (!failed.exchange(true)) failure = std::current_exception();
    stop = true;
  }
};

// What the running body of this thread belongs to; only the calling thread has `idle`.
struct Here {
  Job* job = nullptr;
  const Idle* idle = nullptr;
  Clock::time_point due{};
};
thread_local Here here;

// When this thread was last inside a call, and when it would have asked next: a caller that comes
// back at once, with its next wave of work, has not started a new wait.
thread_local Clock::time_point last_left{}, next_due{};

class Within {
 public:
  Within(Job& job, const Idle& idle) {
    Clock::time_point now = Clock::now();
    here = {&job, &idle, now - last_left < kPoll ? next_due : now + kPoll};
  }
  ~Within() {
    next_due = here.due, last_left = Clock::now();
    here = outer_;
  }

 private:
  Here outer_ = here;
};

[[noreturn]] void lose() {
  throw std::runtime_error(
      "the process was forked inside this call, by a signal handler or a mask's function: the "
      "child has not the threads that shared the work, and cannot end the call");
}

// `idle` may run a signal handler, and that may come back to parallel(): as a call of its own.
void poll() {
  Here mine = here;
  if (!mine.idle || mine.job->interrupted) return;
  Clock::time_point begun = Clock::now();
  if (begun < mine.due) return;
  here = Here{};
  try {
    if ((*mine.idle)()) mine.job->interrupted = mine.job->stop = true;
  } catch (...) {
    mine.job->fail();
  }
  if (mine.job->lost()) mine.job->stop = true;
  Clock::time_point ended = Clock::now();
  mine.due = ended + std::clamp(10 * (ended - begun), kPoll, kPollRarely);
  here = mine;
}

bool ask() {
  poll();
  return here.job->stop.load(std::memory_order_relaxed);
}

// Arithmetic as IEEE 754 has it while this lives: rounding to nearest, subnormals kept. The host
// may have set the thread, or the one that it was started by, to something else, and then the bits
// of a result would tell which thread had worked.
class PlainArithmetic {
 public:
  PlainArithmetic() {
    std::fegetenv(&before_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~PlainArithmetic() { std::fesetenv(&before_); }

 private:
  std::fenv_t before_;
};

void work(Job& job, int worker) {
  PlainArithmetic plain;
  while (!ask()) {
    int64_t item = job.next.fetch_add(1, std::memory_order_relaxed);
    if (item >= job.items) break;
    try {
      job.body(item, worker);
    } catch (...) {
      job.fail();
    }
  }
}

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Blocks every signal in the thread that it is created in, but those that a fault or a profiler
// raises there: a helper inherits that, and signals reach threads that have handlers for them.
class NoSignals {
 public:
  NoSignals() {
    sigset_t most;
    sigfillset(&most);
    for (int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGSYS, SIGPROF})
      sigdelset(&most, fault);
    pthread_sigmask(SIG_SETMASK, &most, &before_);
  }
  ~NoSignals() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

 private:
  sigset_t before_;
};

// One call at a time. A helper takes a job only while it stands in job_, counts itself in under the
// same lock, and counts itself out as its last touch. The caller takes the job out of job_ and then
// waits until nobody is inside: nobody can reach a job that is gone. Helpers that have not woken by
// then are not waited for. `ticket_` changes with each job, so that no helper takes one twice.
class Pool {
 public:
  // False when another call has the pool.
  bool try_enter() { return !taken_.exchange(true, std::memory_order_acquire); }
  void leave() { taken_.store(false, std::memory_order_release); }

  void start(Job& job, int helpers) {
    grow(helpers);
    {
      std::lock_guard<std::mutex> guard(lock_);
      job_ = &job;
      cpus_ = Cpus();
      wanted_ = helpers;
      ticket_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
  }

  // Waits for the helpers inside and keeps polling.
  void finish(Job& job) {
    if (job.lost()) lose();
    {
      std::lock_guard<std::mutex> guard(lock_);
      job_ = nullptr;
    }
    auto begun = Clock::now();
    while (job.inside.load(std::memory_order_acquire) != 0) {
      if (Clock::now() - begun < kSpin) {
        relax();
        continue;
      }
      {
        std::unique_lock<std::mutex> guard(lock_);
        done_.wait_for(guard, kPoll, [&] { return job.inside.load() == 0; });
      }
      poll();
      if (job.lost()) lose();
    }
  }

 private:
  // Up to as many helpers as wished: the system may grant fewer, even none.
  void grow(int helpers) {
    if (static_cast<int>(threads_.size()) >= helpers) return;
    NoSignals here_and_in_helpers;
    try {
      while (static_cast<int>(threads_.size()) < helpers) {
        int index = static_cast<int>(threads_.size());
        threads_.emplace_back([this, index] { help(index); });
#if defined(__linux__)
        pthread_setname_np(threads_.back().native_handle(), "chumoku");
#endif
      }
    } catch (const std::exception&) {
    }
  }

  [[noreturn]] void help(int index) {
    Cpus mine;
    uint64_t seen = 0;
    for (;;) {
      auto begun = Clock::now();
      while (ticket_.load(std::memory_order_acquire) == seen && Clock::now() - begun < kSpin)
        relax();
      Job* job = nullptr;
      {
        std::unique_lock<std::mutex> guard(lock_);
        wake_.wait(guard, [&] { return ticket_.load() != seen; });
        seen = ticket_.load();
        if (!job_ || index >= wanted_) continue;
        job = job_;
        job->inside.fetch_add(1);
        if (cpus_.differ(mine)) (mine = cpus_).adopt();
      }
      here.job = job;
      work(*job, index + 1);
      here.job = nullptr;
      if (job->inside.fetch_sub(1, std::memory_order_acq_rel) == 1) {
        std::lock_guard<std::mutex> guard(lock_);
        done_.notify_all();
      }
    }
  }

  std::atomic<bool> taken_{false};
  std::mutex lock_;
  std::condition_variable wake_, done_;
  std::atomic<uint64_t> ticket_{0};
  Job* job_ = nullptr;
  Cpus cpus_;
  int wanted_ = 0;
  std::vector<std::thread> threads_;
};

// Never destroyed: joining threads while the interpreter exits can hang.
std::atomic<Pool*> pool{nullptr};

// A forked child makes a pool of its own; its parent's may be locked by a thread that is no more.
[[maybe_unused]] const int at_fork = pthread_atfork(nullptr, nullptr, [] {
  pool = nullptr;
  ++forks;
});

Pool& the_pool() {
  Pool* now = pool.load(std::memory_order_acquire);
  if (now) return *now;
  Pool* made = new Pool;
  if (pool.compare_exchange_strong(now, made)) return *made;
  delete made;  // another thread was first
  return *now;
}

std::atomic<int> chosen{0}, asked_for{0}, for_openmp{0}, cpu_quota{0};

// The OpenMP runtime in the process's global scope: PyTorch puts its own there.
struct Host {
  void (*run)(void (*)(void*), void*, unsigned, unsigned);
  int (*worker)();
  int (*most)();  // what torch.set_num_threads sets, for the calling thread
  int (*inside)();
};

template <class F>
void look_up(F& function, const char* name) {
  function = reinterpret_cast<F>(dlsym(RTLD_DEFAULT, name));
}

// Null without one. Looked for again when libraries have been loaded since.
const Host* host() {
#if defined(__linux__)
  static std::atomic<const Host*> found{nullptr};
  static std::atomic<unsigned long long> looked{0};
  if (const Host* known = found.load(std::memory_order_acquire)) return known;
  unsigned long long loaded = 0;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* out) {
        *static_cast<unsigned long long*>(out) = info->dlpi_adds;
        return 1;
      },
      &loaded);
  if (looked.load() == loaded) return nullptr;
  Host one{};
  look_up(one.run, "GOMP_parallel");
  look_up(one.worker, "omp_get_thread_num");
  look_up(one.most, "omp_get_max_threads");
  look_up(one.inside, "omp_in_parallel");
  if (one.run && one.worker && one.most && one.inside) found = new Host(one);
  looked = loaded;
  return found;
#else
  return nullptr;
#endif
}

thread_local bool beside = false;

// Each thread that calls the runtime gets a team of its own, so only the main thread does. A team
// of another size would make the runtime end threads and start them again.
bool host_serves(int threads) {
  if (!beside || forks != 0 || gettid() != getpid()) return false;
  const Host* one = host();
  return one && !one->inside() && one->most() == threads;
}

// One thread's part. The runtime's barrier cannot poll: the caller waits here for those inside. Who
// comes after that finds no item left.
void take_part(void* data) {
  Job& job = *static_cast<Job*>(data);
  int worker = host()->worker();
  if (worker != 0) {
    job.inside.fetch_add(1);
    here.job = &job;
    work(job, worker);
    here.job = nullptr;
    job.inside.fetch_sub(1, std::memory_order_acq_rel);
    return;
  }
  work(job, 0);
  auto begun = Clock::now();
  while (job.inside.load(std::memory_order_acquire) != 0) {
    if (job.lost()) lose();
    if (Clock::now() - begun < kSpin) {
      relax();
    } else {
      std::this_thread::sleep_for(kSpin);
      poll();
    }
  }
  if (job.lost()) lose();  // it would wait at the barrier for ever
}

}  // namespace

int automatic_threads() {
  if (int asked = asked_for.load()) return asked;
  int count = for_openmp.load();
  if (count == 0) {
    count = Cpus().count();
    if (count == 0) count = static_cast<int>(std::thread::hardware_concurrency());
    if (int quota = cpu_quota.load()) count = std::min(count, quota);
  }
  if (const Host* one = host()) count = std::min(count, one->most());
  return std::clamp(count, 1, kMostThreads);
}

int threads() {
  int count = chosen.load();
  return count > 0 ? count : automatic_threads();
}

void set_threads(int count) { chosen = std::clamp(count, 0, kMostThreads); }

void set_automatic(int asked, int openmp, int quota) {
  asked_for = std::clamp(asked, 0, kMostThreads);
  for_openmp = std::clamp(openmp, 0, kMostThreads);
  cpu_quota = std::max(0, quota);
}

void beside_host(bool now) { beside = now; }

bool stopping() { return here.job && ask(); }

bool parallel(int64_t items, int threads, const Body& body, const Idle& idle) {
  int helpers = static_cast<int>(std::min<int64_t>(threads, items)) - 1;
  Pool* shared = helpers > 0 ? &the_pool() : nullptr;
  if (shared && !shared->try_enter()) shared = nullptr;
  Job job{body, items, shared != nullptr};
  {
    Within call(job, idle);
    if (shared && host_serves(threads)) {
      host()->run(take_part, &job, static_cast<unsigned>(threads), 0);
    } else {
      if (shared) shared->start(job, helpers);
      work(job, 0);
      if (shared) shared->finish(job);
    }
  }
  if (shared) shared->leave();
  if (job.interrupted) return false;
  if (job.failure) std::rethrow_exception(job.failure);
  return true;
}

}  // namespace chumoku

int chumoku_get_num_threads() { return chumoku::threads(); }

void chumoku_set_num_threads(int count) {
  chumoku::set_threads(count == chumoku::automatic_threads() ? 0 : std::max(1, count));
}
