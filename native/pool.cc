#include "pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

namespace chumoku {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kSpin = std::chrono::microseconds(30);
constexpr auto kPoll = std::chrono::milliseconds(4);
constexpr int kMostThreads = 256;

// One call's work, shared by the threads that take part in it.
struct Job {
  const std::function<void(int64_t, int)>* body;
  int64_t items;
  std::atomic<int64_t> next{0};
  std::atomic<bool> stop{false};
  bool interrupted = false;
  std::atomic<int> working{0};
  std::mutex failure_lock;
  std::exception_ptr failure;
};

// What the running body of this thread belongs to; only the calling thread can be interrupted.
struct Here {
  Job* job = nullptr;
  const std::function<bool()>* idle = nullptr;
  Clock::time_point asked{};
};
thread_local Here here;

bool ask() {
  if (here.idle && !here.job->interrupted && Clock::now() - here.asked > kPoll) {
    here.asked = Clock::now();
    if ((*here.idle)()) here.job->interrupted = here.job->stop = true;
  }
  return here.job->stop.load(std::memory_order_relaxed);
}

void work(Job& job, int worker, const std::function<bool()>* idle) {
  Here outer = here;
  here = {&job, idle, Clock::now()};
  while (!ask()) {
    int64_t item = job.next.fetch_add(1, std::memory_order_relaxed);
    if (item >= job.items) break;
    try {
      (*job.body)(item, worker);
    } catch (...) {
      std::lock_guard<std::mutex> guard(job.failure_lock);
      if (!job.failure) job.failure = std::current_exception();
      job.stop = true;
    }
  }
  here = outer;
}

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

class Pool {
 public:
  // False when another call holds the pool: then the caller works alone.
  bool try_enter() { return entrance_.try_lock(); }
  void leave() { entrance_.unlock(); }

  void start(Job& job, int helpers) {
    helpers = grow(helpers);
    {
      std::lock_guard<std::mutex> guard(lock_);
      job.working = helpers;
      job_ = &job;
      wanted_ = helpers;
      ticket_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
  }

  // Waits until every helper has left the job; keeps asking `idle` meanwhile.
  void finish(Job& job, const std::function<bool()>& idle) {
    auto begun = Clock::now();
    while (job.working.load(std::memory_order_acquire) != 0) {
      if (Clock::now() - begun < kSpin) {
        relax();
        continue;
      }
      std::unique_lock<std::mutex> guard(lock_);
      done_.wait_for(guard, kPoll, [&] { return job.working.load() == 0; });
      guard.unlock();
      if (job.working.load() != 0 && !job.interrupted && idle()) job.interrupted = job.stop = true;
    }
  }

 private:
  // As many helpers as the system grants, up to the number wished.
  int grow(int helpers) {
    try {
      while (static_cast<int>(threads_.size()) < helpers) {
        int index = static_cast<int>(threads_.size());
        threads_.emplace_back([this, index] { loop(index); });
      }
    } catch (const std::system_error&) {
    }
    return std::min(helpers, static_cast<int>(threads_.size()));
  }

  void loop(int index) {
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
        if (index < wanted_) job = job_;
      }
      if (!job) continue;
      work(*job, index + 1, nullptr);
      if (job->working.fetch_sub(1, std::memory_order_acq_rel) == 1) {
        std::lock_guard<std::mutex> guard(lock_);
        done_.notify_all();
      }
    }
  }

  std::mutex entrance_;
  std::mutex lock_;
  std::condition_variable wake_, done_;
  std::atomic<uint64_t> ticket_{0};
  Job* job_ = nullptr;
  int wanted_ = 0;
  std::vector<std::thread> threads_;
};

// Never destroyed: joining threads while the interpreter exits can hang.
std::atomic<Pool*> pool{nullptr};
std::atomic<int> chosen{0};

Pool& the_pool() {
  if (Pool* made = pool.load(std::memory_order_acquire)) return *made;
  static std::mutex once;
  std::lock_guard<std::mutex> guard(once);
  if (!pool.load()) {
    // A forked child has none of its parent's threads: it makes a pool of its own.
    static bool registered = (pthread_atfork(nullptr, nullptr, [] { pool = nullptr; }), true);
    (void)registered;
    pool.store(new Pool, std::memory_order_release);
  }
  return *pool.load();
}

int from_environment(const char* name) {
  const char* text = std::getenv(name);
  if (!text) return 0;
  char* end = nullptr;
  long value = std::strtol(text, &end, 10);
  return end != text && value >= 1 ? static_cast<int>(std::min<long>(value, kMostThreads)) : 0;
}

int from_machine() {
  int count = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) count = std::max(1, CPU_COUNT(&set));
  std::ifstream quota_file("/sys/fs/cgroup/cpu.max");
  std::string quota;
  double period = 0;
  if (quota_file >> quota >> period && quota != "max" && period > 0) {
    double cpus = std::strtod(quota.c_str(), nullptr) / period;
    count = std::min(count, std::max(1, static_cast<int>(cpus + 0.5)));
  }
#endif
  return std::min(count, kMostThreads);
}

}  // namespace

int threads() {
  int count = chosen.load();
  if (count > 0) return count;
  for (const char* name : {"CHUMOKU_NUM_THREADS", "OMP_NUM_THREADS"})
    if (int asked = from_environment(name)) {
      count = asked;
      break;
    }
  if (count == 0) count = from_machine();
  chosen = count;
  return count;
}

void set_threads(int count) { chosen = std::clamp(count, 1, kMostThreads); }

bool stopping() { return here.job && ask(); }

bool parallel(int64_t items, int threads, const std::function<void(int64_t, int)>& body,
              const std::function<bool()>& idle) {
  Job job;
  job.body = &body;
  job.items = items;
  int helpers = static_cast<int>(std::min<int64_t>(threads, items)) - 1;
  Pool* shared = helpers > 0 ? &the_pool() : nullptr;
  if (shared && shared->try_enter()) {
    shared->start(job, helpers);
    work(job, 0, &idle);
    shared->finish(job, idle);
    shared->leave();
  } else {
    work(job, 0, &idle);
  }
  if (job.failure) std::rethrow_exception(job.failure);
  return !job.interrupted;
}

}  // namespace chumoku
