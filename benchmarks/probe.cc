// What the machine can do at most: multiply-adds in registers, and reading memory. Compiled by
// run.py for the machine it stands on.
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

namespace {

constexpr int kBytes = 32;
typedef float Floats __attribute__((vector_size(kBytes)));
typedef int64_t Words __attribute__((vector_size(kBytes)));

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Seconds that `threads` threads took for body(thread), together.
template <class Body>
double together(int threads, const Body& body) {
  double begun = now();
  std::vector<std::thread> others;
  for (int t = 1; t < threads; ++t) others.emplace_back([&body, t] { body(t); });
  body(0);
  for (std::thread& other : others) other.join();
  return now() - begun;
}

}  // namespace

// Multiply-adds of float32, in GFLOP/s.
extern "C" double multiply_adds(int threads) {
  constexpr int64_t kTurns = 4000000;
  constexpr int kChains = 12;
  volatile float sink = 0;
  double seconds = together(threads, [&](int) {
    Floats sum[kChains]{}, a{}, b{};
    a += 0.9f, b += 0.1f;
    for (Floats& one : sum) asm volatile("" : "+x"(one));  // or equal chains become one
    for (int64_t i = 0; i < kTurns; ++i) {
#pragma GCC unroll 12
      for (int c = 0; c < kChains; ++c) sum[c] = sum[c] * a + b;
      asm volatile("" : "+x"(a), "+x"(b));
    }
    float all = 0;
    for (const Floats& one : sum) all += one[0];
    sink = all;
  });
  return 2.0 * threads * kTurns * kChains * (kBytes / 4) / seconds / 1e9;
}

// Reading memory that no cache holds, in GB/s.
extern "C" double reading(int threads) {
  constexpr int64_t kSize = int64_t{1} << 28;
  static std::vector<Words> memory(static_cast<size_t>(kSize / kBytes));
  volatile int64_t sink = 0;
  double seconds = together(threads, [&](int t) {
    const Words* at = memory.data();
    int64_t count = kSize / kBytes / threads, first = t * count;
    Words sum[4]{};
    for (int64_t i = first; i + 4 <= first + count; i += 4)
      for (int k = 0; k < 4; ++k) sum[k] += at[i + k];
    sink = (sum[0] + sum[1] + sum[2] + sum[3])[0];
  });
  return kSize / seconds / 1e9;
}
