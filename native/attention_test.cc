// The kernel of the instruction set in use (CHUMOKU_ISA) against sums in double, plainly written.
#include "attention.h"

#include <cmath>
#include <limits>
#include <random>

#include "check.h"
#include "mask.h"

using namespace chumoku;

namespace {

struct Sizes {
  int64_t batch, heads, kv_heads, rows, keys, width, value_width;
};

View view_of(const void* data, int64_t batch, int64_t heads, int64_t rows, int64_t width,
             int64_t item) {
  View view;
  view.data = static_cast<const char*>(data);
  for (int64_t b = 0; b < batch; ++b) view.batch.push_back(b * heads * rows * width * item);
  view.head = rows * width * item;
  view.row = width * item;
  view.column = item;
  return view;
}

template <class T>
struct Case {
  Sizes s;
  std::vector<T> q, k, v, out, lse, max_logit, entropy, saturation, flow, distance, weights;
  std::vector<int64_t> top_keys, position;
  Mask mask;
  std::vector<int64_t> band;
  Problem p;

  Case(const Sizes& sizes, bool causal, unsigned seed) : s(sizes) {
    std::mt19937 random(seed);
    std::normal_distribution<double> normal;
    auto fill = [&](std::vector<T>& a, int64_t n) {
      a.resize(static_cast<size_t>(n));
      for (T& x : a) x = static_cast<T>(normal(random));
    };
    fill(q, s.batch * s.heads * s.rows * s.width);
    fill(k, s.batch * s.kv_heads * s.keys * s.width);
    fill(v, s.batch * s.kv_heads * s.keys * s.value_width);
    auto rows = static_cast<size_t>(s.batch * s.heads * s.rows);
    T nan = std::numeric_limits<T>::quiet_NaN();
    out.assign(rows * static_cast<size_t>(s.value_width), nan);
    for (auto* fact : {&lse, &max_logit, &entropy, &saturation, &flow, &distance})
      fact->assign(rows, nan);
    top_keys.assign(rows * 3, -7);
    weights.assign(rows * 3, nan);
    position.assign(static_cast<size_t>(s.batch), s.keys - s.rows);
    p.dtype = sizeof(T) == 8 ? Dtype::f64 : Dtype::f32;
    p.batch = s.batch, p.heads = s.heads, p.kv_heads = s.kv_heads, p.rows = s.rows;
    p.keys = s.keys, p.width = s.width, p.value_width = s.value_width;
    p.query = view_of(q.data(), s.batch, s.heads, s.rows, s.width, sizeof(T));
    p.key = view_of(k.data(), s.batch, s.kv_heads, s.keys, s.width, sizeof(T));
    p.value = view_of(v.data(), s.batch, s.kv_heads, s.keys, s.value_width, sizeof(T));
    p.output = reinterpret_cast<char*>(out.data());
    p.scale = 1 / std::sqrt(static_cast<double>(s.width));
    p.position = position.data();
    auto at = [](std::vector<T>& a) { return reinterpret_cast<char*>(a.data()); };
    Facts& f = p.facts;
    f.lse = at(lse), f.max_logit = at(max_logit), f.entropy = at(entropy);
    f.saturation = at(saturation), f.flow = at(flow), f.distance = at(distance);
    f.top_keys = top_keys.data(), f.top_weights = at(weights), f.top = 3;
    if (causal) {
      band = {0, s.rows, 0, s.keys, -s.keys - s.rows, s.keys - s.rows};
      MaskNode node{};
      node.kind = MaskNode::Kind::band;
      node.first = band.data();
      node.entries = 1;
      mask.nodes = {node};
      mask.queries = s.rows;
      mask.keys = s.keys;
      p.mask = &mask;
    }
  }

  bool sees(int64_t i, int64_t j) const { return !p.mask || j <= i + s.keys - s.rows; }

  void compare(double tolerance) const {
    double worst = 0, worst_fact = 0;
    bool tops = true;
    for (int64_t n = 0; n < s.batch * s.heads * s.rows; ++n) {
      int64_t b = n / (s.heads * s.rows), h = n / s.rows % s.heads, i = n % s.rows;
      int64_t kv = b * s.kv_heads + h / (s.heads / s.kv_heads);
      std::vector<double> w(static_cast<size_t>(s.keys));
      double most = -INFINITY, sum = 0;
      for (int64_t j = 0; j < s.keys; ++j) {
        double dot = 0;
        for (int64_t d = 0; d < s.width; ++d)
          dot += double{q[size_t(n * s.width + d)]} *
                 double{k[size_t((kv * s.keys + j) * s.width + d)]};
        w[size_t(j)] = sees(i, j) ? dot * p.scale : -INFINITY;
        most = std::max(most, w[size_t(j)]);
      }
      bool none = most == -INFINITY;
      for (double& x : w) x = none ? 0 : std::exp(x - most), sum += x;
      double log_sum = none ? -INFINITY : most + std::log(sum);
      double entropy_now = 0, squares = 0, lead = 0, rest = 0, rest_squares = 0, way = 0;
      int64_t best = -1;
      for (int64_t j = 0; j < s.keys; ++j) {
        double x = w[size_t(j)] = none ? 0 : w[size_t(j)] / sum;
        if (x > 0) entropy_now -= x * std::log(x);
        squares += x * x;
        way += x * std::fabs(double(i + s.keys - s.rows - j));
        if (sees(i, j) && (best < 0 || x > lead)) lead = x, best = j;
      }
      for (int64_t j = 0; j < s.keys; ++j)
        if (j != best) rest += w[size_t(j)], rest_squares += w[size_t(j)] * w[size_t(j)];
      for (int64_t c = 0; c < s.value_width; ++c) {
        double mixed = 0;
        for (int64_t j = 0; j < s.keys; ++j)
          mixed += w[size_t(j)] * double{v[size_t((kv * s.keys + j) * s.value_width + c)]};
        worst = std::fmax(worst, std::fabs(mixed - double{out[size_t(n * s.value_width + c)]}));
        CHECK(out[size_t(n * s.value_width + c)] == out[size_t(n * s.value_width + c)]);
      }
      auto off = [&](const std::vector<T>& fact, double x) {
        double got = fact[size_t(n)];
        worst_fact = std::fmax(worst_fact, got == x ? 0 : std::fabs(got - x) / (1 + std::fabs(x)));
        CHECK(got == got);
      };
      off(lse, log_sum), off(max_logit, most), off(entropy, entropy_now), off(saturation, squares);
      off(flow, 2 * rest - rest * rest - rest_squares), off(distance, way);
      tops = tops && top_keys[size_t(n * 3)] == best;
      tops = tops && std::fabs(double{weights[size_t(n * 3)]} - lead) < tolerance * (1 + lead);
    }
    CHECK(worst < tolerance);
    CHECK(worst_fact < tolerance);
    CHECK(tops);
  }
};

bool never() { return false; }

template <class T>
void run(const Sizes& sizes, bool causal, unsigned seed, double tolerance) {
  Case<T> one(sizes, causal, seed);
  CHECK(attention(one.p, 2, never));
  one.compare(tolerance);

  // Any number of threads gives the same bits, and so does not watching.
  Case<T> other(sizes, causal, seed);
  for (int threads : {1, 3, 8}) {
    other.p.facts = threads == 3 ? Facts{} : other.p.facts;
    CHECK(attention(other.p, threads, never));
    CHECK(std::equal(one.out.begin(), one.out.end(), other.out.begin()));
  }
}

}  // namespace

int main() {
  const char* asked = std::getenv("CHUMOKU_ISA");
  if (asked && instruction_set() != asked) {
    std::printf("this machine lacks %s\n", asked);
    return 77;  // skipped, as ctest counts it
  }
  const Sizes all[] = {
      {1, 1, 1, 1, 1, 1, 1},      {2, 4, 2, 7, 13, 5, 3},      {1, 2, 1, 37, 129, 64, 64},
      {1, 8, 8, 50, 100, 65, 70}, {2, 2, 2, 30, 2100, 16, 24}, {1, 4, 1, 1, 3000, 128, 128},
      {1, 1, 1, 3, 70, 257, 130}, {1, 1, 1, 150, 64, 8, 8},    {1, 1, 1, 9, 5, 4, 4}};
  unsigned seed = 1;
  for (const Sizes& sizes : all)
    for (bool causal : {false, true}) {
      run<float>(sizes, causal, seed++, 3e-5);
      run<double>(sizes, causal, seed++, 1e-12);
    }
  Case<float> long_one({1, 2, 2, 4000, 20000, 64, 64}, false, 7);
  CHECK(!attention(long_one.p, 2, [] { return true; }));
  return test::report(instruction_set().c_str());
}
