// The pool: every item once, failures and interrupts stop it, a forked child works on, threads are
// few. Under ThreadSanitizer the same tests are its stress test.
#include "pool.h"

#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "check.h"

using namespace chumoku;

#if defined(__SANITIZE_THREAD__)
// The tests fork on purpose.
extern "C" const char* __tsan_default_options() { return "die_after_fork=0"; }
#endif

namespace {

bool never() { return false; }
bool always() { return true; }

bool each_once(int64_t items, int threads) {
  std::vector<std::atomic<int>> seen(static_cast<size_t>(items));
  bool fine = parallel(
      items, threads,
      [&](int64_t item, int worker) {
        if (worker >= 0 && worker < threads) ++seen[static_cast<size_t>(item)];
      },
      never);
  for (auto& count : seen) fine = fine && count == 1;
  return fine;
}

// Whether a body's error, of the 37th of 100 items, reaches the caller.
template <class Error>
bool throws(const std::function<bool()>& idle = never) {
  try {
    parallel(100, 4, [](int64_t item, int) { item == 37 ? throw Error{"37"} : void(); }, idle);
  } catch (const Error&) {
    return true;
  }
  return false;
}

struct OutOfMemory : std::bad_alloc {
  explicit OutOfMemory(const char*) {}
};

// A call that ends when every one of its threads has come.
bool all_come(int threads) {
  std::atomic<int> come{0};
  return parallel(
      threads, threads,
      [&](int64_t, int) {
        ++come;
        while (come < threads) std::this_thread::yield();
      },
      never);
}

// A body that lasts until it is to stop, without looking at the clock for it.
void until_stopped(int64_t, int) {
  while (!stopping()) std::this_thread::yield();
}

bool child_does(const std::function<bool()>& work) {
  pid_t child = fork();
  if (child == 0) {
    alarm(8);
    _exit(work() ? 0 : 1);
  }
  int status = 1;
  return waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

void items_and_failures() {
  for (int threads : {1, 2, 3, 8})
    for (int64_t items : {0, 1, 2, 7, 1000}) CHECK(each_once(items, threads));
  CHECK(throws<std::runtime_error>());
  CHECK(throws<OutOfMemory>());
  CHECK(each_once(100, 4));
  // Of two ends at once the interrupt counts: its error is set already.
  CHECK(!parallel(
      1, 1,
      [](int64_t, int) {
        while (!stopping()) std::this_thread::yield();
        throw std::runtime_error("after the interrupt");
      },
      always));
  // Tiny jobs end before their helpers wake: those must not touch the next job's memory.
  bool fine = true;
  for (int k = 0; k < 3000; ++k) fine = fine && each_once(1 + k % 5, 1 + k % 4);
  CHECK(fine);
}

void interrupts() {
  std::atomic<int64_t> done{0};
  CHECK(!parallel(int64_t{1} << 40, 4, [&](int64_t, int) { ++done; }, always));
  CHECK(done > 0);
  CHECK(!stopping());
  CHECK(!parallel(2, 2, until_stopped, always));

  // The caller has nothing to do and waits for a helper: it still asks.
  std::thread::id caller = std::this_thread::get_id();
  std::atomic<bool> other{false}, begun{false};
  CHECK(!parallel(
      2, 2,
      [&](int64_t, int) {
        if (std::this_thread::get_id() != caller) {
          begun = true;
          until_stopped(0, 0);
        }
        while (!begun) std::this_thread::yield();
      },
      [&] {
        other = other || std::this_thread::get_id() != caller;
        return begun.load();
      }));
  CHECK(!other);

  // What idle calls may call again, and that call's end is not this one's.
  int asked = 0;
  bool inner = true;
  auto again = [&] {
    inner = inner && each_once(50, 3) && !parallel(2, 2, until_stopped, always);
    return ++asked == 3;
  };
  CHECK(!parallel(2, 2, until_stopped, again));
  CHECK(inner && asked == 3);
  CHECK(throws<std::runtime_error>([]() -> bool { throw std::logic_error("late"); }));
}

void company() {
  std::vector<std::thread> callers;
  std::atomic<int> right{0};
  for (int n = 0; n < 8; ++n)
    callers.emplace_back([&, n] {
      for (int k = 0; k < 50; ++k) {
        right += each_once(64, 3);
        if (n == 0 && k % 10 == 0) right += throws<std::runtime_error>();
        if (n == 1 && k % 10 == 0) right += !parallel(4, 3, until_stopped, always);
      }
    });
  for (std::thread& caller : callers) caller.join();
  CHECK(right == 8 * 50 + 10);

  std::atomic<int> inner{0};
  parallel(4, 2, [&](int64_t, int) { inner += each_once(16, 2); }, never);
  CHECK(inner == 4);
}

void forks() {
  CHECK(child_does([] { return each_once(100, 4); }));
  CHECK(child_does([] { return child_does([] { return each_once(100, 4); }); }));

  // While another thread has the pool.
  std::atomic<bool> end{false}, begun{false};
  std::thread busy([&] {
    parallel(
        2, 2,
        [&](int64_t, int) {
          begun = true;
          until_stopped(0, 0);
        },
        [&] { return end.load(); });
  });
  while (!begun) std::this_thread::yield();
  for (int k = 0; k < 5; ++k) CHECK(child_does([] { return each_once(100, 4); }));
  end = true;
  busy.join();

  // While threads enter and leave the pool all the time.
  end = false;
  std::vector<std::thread> callers;
  for (int n = 0; n < 3; ++n)
    callers.emplace_back([&] {
      while (!end) each_once(8, 3);
    });
  for (int k = 0; k < 20; ++k) CHECK(child_does([] { return each_once(100, 4); }));
  end = true;
  for (std::thread& caller : callers) caller.join();

  // Inside a call, by what idle runs: the parent's call ends, the child's cannot and says so.
  pid_t parent = getpid(), child = 0;
  bool said = false;
  try {
    CHECK(!parallel(3, 3, until_stopped, [&] {
      child = fork();
      if (child == 0) alarm(8);
      return true;
    }));
  } catch (const std::runtime_error&) {
    said = true;
  }
  if (getpid() != parent) _exit(said && each_once(100, 4) ? 0 : 1);
  int status = 1;
  CHECK(!said && waitpid(child, &status, 0) == child && status == 0);
}

void counts() {
  set_threads(3);
  CHECK(threads() == 3);
  set_threads(0);
  int machine = threads();
  CHECK(machine >= 1 && machine == automatic_threads());
  set_automatic(0, 0, 1);
  CHECK(threads() == 1);
  set_automatic(0, 5, 1);
  CHECK(threads() == 5);
  set_automatic(7, 5, 1);
  CHECK(threads() == 7 && chumoku_get_num_threads() == 7);
  chumoku_set_num_threads(2);
  CHECK(threads() == 2);
  chumoku_set_num_threads(7);
  set_automatic(0, 0, 0);
  CHECK(threads() == machine);
}

#if defined(__linux__)

// Of every thread of the pool: what /proc says of it.
std::vector<std::string> helpers() {
  std::vector<std::string> found;
  for (auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
    std::string name, line, all;
    std::ifstream(task.path() / "comm") >> name;
    std::ifstream status(task.path() / "status");
    while (std::getline(status, line)) all += line + "\n";
    if (name == "chumoku") found.push_back(all);
  }
  return found;
}

void few_and_quiet() {
  // In a child that has no pool yet: threads are made as they are wanted, and used again.
  CHECK(child_does([] {
    bool fine = all_come(3) && helpers().size() == 2;
    std::vector<std::thread> callers;
    for (int n = 0; n < 6; ++n) callers.emplace_back([] { each_once(64, 3); });
    for (std::thread& caller : callers) caller.join();
    fine = fine && each_once(8, 2) && helpers().size() == 2;
    // Signals go to threads that expect them.
    for (const std::string& status : helpers()) {
      size_t at = status.find("SigBlk:");
      unsigned long long blocked = std::strtoull(status.c_str() + at + 7, nullptr, 16);
      for (int quiet : {SIGINT, SIGTERM, SIGCHLD, SIGUSR1})
        fine = fine && blocked >> (quiet - 1) & 1;
      for (int fault : {SIGSEGV, SIGPROF}) fine = fine && !(blocked >> (fault - 1) & 1);
    }
    sigset_t now;
    pthread_sigmask(SIG_SETMASK, nullptr, &now);
    return fine && !sigismember(&now, SIGINT);
  }));

  // Helpers keep to the CPUs of their caller, also when those change.
  CHECK(child_does([] {
    cpu_set_t all, one;
    if (sched_getaffinity(0, sizeof all, &all) != 0) return false;
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (!CPU_ISSET(cpu, &all)) continue;
      CPU_ZERO(&one);
      CPU_SET(cpu, &one);
      if (sched_setaffinity(0, sizeof one, &one) != 0 || threads() != 1) return false;
      std::atomic<bool> same{true}, helped{false};
      std::thread::id caller = std::this_thread::get_id();
      parallel(
          2, 2,
          [&](int64_t, int) {
            cpu_set_t mine;
            sched_getaffinity(0, sizeof mine, &mine);
            if (!CPU_EQUAL(&mine, &one)) same = false;
            if (std::this_thread::get_id() != caller) helped = true;
            while (!helped) std::this_thread::yield();
          },
          never);
      if (!same) return false;
    }
    return true;
  }));

  // No thread to be had: the caller works alone. Root is bound by no limit of threads, so memory is
  // what is short; a sanitizer needs it for itself.
#if !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
  CHECK(child_does([] {
    rlimit little{1 << 20, 1 << 20};
    return setrlimit(RLIMIT_AS, &little) == 0 && each_once(100, 8) && helpers().empty();
  }));
#endif
}

// An OpenMP runtime in the global scope, as PyTorch brings one. In a child, for it stays there.
void host() {
#if !defined(__SANITIZE_THREAD__)
  if (!dlopen("libgomp.so.1", RTLD_NOW | RTLD_NOLOAD) && !dlopen("libgomp.so.1", RTLD_LAZY)) return;
  CHECK(child_does([] {
    dlopen("libgomp.so.1", RTLD_NOW | RTLD_GLOBAL);
    auto limit = reinterpret_cast<void (*)(int)>(dlsym(RTLD_DEFAULT, "omp_set_num_threads"));
    limit(1);
    return threads() == 1;
  }));
  // Not forked: a child never touches the runtime.
  dlopen("libgomp.so.1", RTLD_NOW | RTLD_GLOBAL);
  auto limit = reinterpret_cast<void (*)(int)>(dlsym(RTLD_DEFAULT, "omp_set_num_threads"));
  limit(3);
  size_t before = helpers().size();
  beside_host(true);
  items_and_failures();
  interrupts();
  company();
  forks();
  CHECK(helpers().size() == before);
  beside_host(false);
#endif
}

#else
void few_and_quiet() {}
void host() {}
#endif

}  // namespace

int main() {
  few_and_quiet();
  items_and_failures();
  interrupts();
  company();
  forks();
  counts();
  host();
  return test::report("pool");
}
