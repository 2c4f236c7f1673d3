// The kernel of the instruction set in use (CHUMOKU_ISA) against sums in double, plainly written.
#include "attention.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>

#include "check.h"
#include "mask.h"

using namespace chumoku;

namespace {

struct Sizes {
  int64_t batch, heads, kv_heads, rows, keys, width, value_width;
};

struct Options {
  bool causal = false, bias = false, sinks = false, dropout = false;
  double softcap = 0, scale = 0;
};

constexpr int64_t kTop = 3, kGroups = 4, kCellRows = 3, kCellColumns = 5;

// Philox4x32-10 for one counter, as its authors wrote it down.
uint32_t random_word(uint64_t seed, int64_t b, int64_t h, int64_t i, int64_t j) {
  uint32_t c[4] = {uint32_t(j / 4), uint32_t(i), uint32_t(h), uint32_t(b)};
  uint32_t k[2] = {uint32_t(seed), uint32_t(seed >> 32)};
  for (int round = 0; round < 10; ++round) {
    uint64_t p0 = uint64_t{0xD2511F53} * c[0], p1 = uint64_t{0xCD9E8D57} * c[2];
    uint32_t next[4] = {uint32_t(p1 >> 32) ^ c[1] ^ k[0], uint32_t(p1),
                        uint32_t(p0 >> 32) ^ c[3] ^ k[1], uint32_t(p0)};
    std::memcpy(c, next, sizeof c);
    k[0] += 0x9E3779B9, k[1] += 0xBB67AE85;
  }
  return c[j % 4];
}

// Numbers as the kernel reads them: of a dtype, and what they are worth.
struct Numbers {
  std::vector<char> bytes;
  std::vector<double> worth;

  void fill(Dtype dtype, int64_t n, std::mt19937& random, double minus_infinity = 0) {
    std::normal_distribution<double> normal;
    std::uniform_real_distribution<double> even;
    for (int64_t i = 0; i < n; ++i) {
      double x = even(random) < minus_infinity ? -INFINITY : normal(random);
      if (dtype == Dtype::f64) {
        put(x, x);
      } else if (dtype == Dtype::f32) {
        float y = static_cast<float>(x);
        put(y, y);
      } else {
        // Cut, not rounded: any number of the dtype will do.
        float y = static_cast<float>(x);
        uint32_t bits;
        std::memcpy(&bits, &y, 4);
        bool half = dtype == Dtype::f16;
        if (std::isfinite(y)) bits &= half ? 0xffffe000u : 0xffff0000u;
        if (half && std::isfinite(y) && std::fabs(y) < 1e-3f) bits = 0;
        std::memcpy(&y, &bits, 4);
        uint32_t sign = bits >> 16 & 0x8000, exponent = (bits >> 23 & 0xff) - 112;
        uint32_t narrow = y == 0             ? 0
                          : std::isfinite(y) ? sign | exponent << 10 | (bits >> 13 & 0x3ff)
                                             : sign | 0x7c00;
        put(uint16_t(half ? narrow : bits >> 16), y);
      }
    }
  }

  template <class S>
  void put(S x, double value) {
    const char* from = reinterpret_cast<const char*>(&x);
    bytes.insert(bytes.end(), from, from + sizeof x);
    worth.push_back(value);
  }
};

View view_of(const Numbers& a, int64_t batch, int64_t heads, int64_t rows, int64_t width,
             int64_t item) {
  View view;
  view.data = a.bytes.data();
  for (int64_t b = 0; b < batch; ++b) view.batch.push_back(b * heads * rows * width * item);
  view.head = rows * width * item;
  view.row = width * item;
  view.column = item;
  return view;
}

double read_output(Dtype dtype, const char* from) {
  if (dtype == Dtype::f64) {
    double x;
    std::memcpy(&x, from, 8);
    return x;
  }
  uint32_t bits = 0;
  float x;
  if (dtype == Dtype::f32) {
    std::memcpy(&x, from, 4);
    return x;
  }
  uint16_t narrow;
  std::memcpy(&narrow, from, 2);
  bits = uint32_t{narrow} << 16;
  std::memcpy(&x, &bits, 4);
  if (dtype == Dtype::bf16) return x;
  double size = narrow & 0x7c00 ? std::ldexp(1024 + (narrow & 0x3ff), (narrow >> 10 & 31) - 25)
                                : std::ldexp(narrow & 0x3ff, -24);
  return narrow & 0x8000 ? -size : size;
}

// T: the dtype of the facts.
template <class T>
struct Case {
  Sizes s;
  Options options;
  Numbers q, k, v, bias;
  std::vector<char> out;
  std::vector<T> lse, max_logit, entropy, saturation, flow, distance, sink_weight, weights, masses;
  std::vector<int64_t> top_keys, position, groups, band, seers;
  std::vector<double> sinks, received, cell_sum, cell_most;
  Mask mask;
  Problem p;

  Case(Dtype dtype, const Sizes& sizes, const Options& given, unsigned seed)
      : s(sizes), options(given) {
    std::mt19937 random(seed);
    p.dtype = dtype;
    int64_t item = p.item();
    q.fill(dtype, s.batch * s.heads * s.rows * s.width, random);
    k.fill(dtype, s.batch * s.kv_heads * s.keys * s.width, random);
    v.fill(dtype, s.batch * s.kv_heads * s.keys * s.value_width, random);
    p.batch = s.batch, p.heads = s.heads, p.kv_heads = s.kv_heads, p.rows = s.rows;
    p.keys = s.keys, p.width = s.width, p.value_width = s.value_width;
    p.query = view_of(q, s.batch, s.heads, s.rows, s.width, item);
    p.key = view_of(k, s.batch, s.kv_heads, s.keys, s.width, item);
    p.value = view_of(v, s.batch, s.kv_heads, s.keys, s.value_width, item);
    out.assign(size_t(count() * s.value_width * item), '\xff');
    p.output = out.data();
    p.scale = options.scale != 0 ? options.scale : 1 / std::sqrt(static_cast<double>(s.width));
    p.softcap = options.softcap;
    if (options.bias) {
      bias.fill(dtype, s.batch * s.heads * s.rows * s.keys, random, 0.2);
      p.biased = true;
      p.bias = view_of(bias, s.batch, s.heads, s.rows, s.keys, item);
    }
    for (int64_t h = 0; h < s.heads; ++h) sinks.push_back(h % 3 == 2 ? -INFINITY : 1.5 * double(h));
    if (options.sinks) p.sinks = sinks.data();
    if (options.dropout)
      p.dropped = true, p.seed = 0x123456789abcdefull, p.threshold = 1u << 30,
      p.kept_factor = 4.0 / 3;
    if (options.causal) {
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
    ask_for_facts();
  }

  int64_t count() const { return s.batch * s.heads * s.rows; }

  void ask_for_facts() {
    auto rows = size_t(count());
    T nan = std::numeric_limits<T>::quiet_NaN();
    for (auto* fact : {&lse, &max_logit, &entropy, &saturation, &flow, &distance, &sink_weight})
      fact->assign(rows, nan);
    top_keys.assign(rows * kTop, -7);
    weights.assign(rows * kTop, nan);
    masses.assign(rows * kGroups, nan);
    position.assign(size_t(s.batch), s.keys - s.rows);
    for (int64_t j = 0; j < s.keys; ++j) groups.push_back(j * 5 % 3);
    auto at = [](std::vector<T>& a) { return reinterpret_cast<char*>(a.data()); };
    p.position = position.data();
    Facts& f = p.facts;
    f.lse = at(lse), f.max_logit = at(max_logit), f.entropy = at(entropy);
    f.saturation = at(saturation), f.flow = at(flow), f.distance = at(distance);
    f.sink_weight = at(sink_weight);
    f.top_keys = top_keys.data(), f.top_weights = at(weights), f.top = kTop;
    f.group_mass = at(masses), f.groups = groups.data(), f.group_count = kGroups;
    Totals& t = p.totals;
    t.cell_rows = std::min(kCellRows, s.rows), t.cell_columns = std::min(kCellColumns, s.keys);
    received.assign(size_t(s.batch * s.heads * s.keys), 0);
    seers.assign(received.size(), 0);
    cell_sum.assign(size_t(s.batch * s.heads * t.cell_rows * t.cell_columns), 0);
    cell_most = cell_sum;
    t.received = received.data(), t.seers = seers.data();
    t.cell_sum = cell_sum.data(), t.cell_most = cell_most.data(), t.queries = s.rows;
  }

  // The scores of one row, -inf where it sees nothing.
  std::vector<double> scores(int64_t n) const {
    int64_t b = n / (s.heads * s.rows), h = n / s.rows % s.heads, i = n % s.rows;
    int64_t kv = b * s.kv_heads + h / (s.heads / s.kv_heads);
    std::vector<double> all;
    for (int64_t j = 0; j < s.keys; ++j) {
      double dot = 0;
      for (int64_t d = 0; d < s.width; ++d)
        dot += q.worth[size_t(n * s.width + d)] * k.worth[size_t((kv * s.keys + j) * s.width + d)];
      double x = dot * p.scale;
      if (options.softcap != 0) x = options.softcap * std::tanh(x / options.softcap);
      if (options.bias) x += bias.worth[size_t(n * s.keys + j)];
      all.push_back(!options.causal || j <= i + s.keys - s.rows ? x : -INFINITY);
    }
    return all;
  }

  void compare(double tolerance, double of_output) const {
    double worst = 0, worst_fact = 0, worst_total = 0;
    bool tops = true;
    std::vector<double> want_received(received.size()), sums(cell_sum.size()), mosts(sums.size());
    std::vector<int64_t> want_seers(seers.size());
    for (int64_t n = 0; n < count(); ++n) {
      int64_t b = n / (s.heads * s.rows), h = n / s.rows % s.heads, i = n % s.rows;
      int64_t kv = b * s.kv_heads + h / (s.heads / s.kv_heads);
      std::vector<double> logits = scores(n), w = logits;
      double most = *std::max_element(w.begin(), w.end());
      double sink = options.sinks ? sinks[size_t(h)] : -INFINITY, shift = std::max(most, sink);
      bool none = shift == -INFINITY;
      double sum = none ? 0 : std::exp(sink - shift);
      for (double& x : w) x = none ? 0 : std::exp(x - shift), sum += x;
      double sink_share = none ? 0 : std::exp(sink - shift) / sum;
      double entropy_now = 0, squares = 0, lead = 0, rest = 0, rest_squares = 0, way = 0;
      double mass[kGroups] = {};
      int64_t best = -1, head = n / s.rows;
      for (int64_t j = 0; j < s.keys; ++j) {
        double x = w[size_t(j)] = none ? 0 : w[size_t(j)] / sum;
        bool sees = logits[size_t(j)] != -INFINITY;
        if (x > 0) entropy_now -= x * std::log(x);
        squares += x * x;
        way += x * std::fabs(double(i + s.keys - s.rows - j));
        mass[groups[size_t(j)]] += x;
        if (sees && (best < 0 || logits[size_t(j)] > logits[size_t(best)])) lead = x, best = j;
        want_received[size_t(head * s.keys + j)] += x;
        want_seers[size_t(head * s.keys + j)] += sees;
        int64_t row = ((i + 1) * p.totals.cell_rows - 1) / s.rows;
        int64_t column = ((j + 1) * p.totals.cell_columns - 1) / s.keys;
        auto cell = size_t((head * p.totals.cell_rows + row) * p.totals.cell_columns + column);
        sums[cell] += x, mosts[cell] = std::max(mosts[cell], x);
      }
      for (int64_t j = 0; j < s.keys; ++j)
        if (j != best) rest += w[size_t(j)], rest_squares += w[size_t(j)] * w[size_t(j)];
      double away = rest + sink_share, total = lead + rest;
      for (int64_t c = 0; c < s.value_width; ++c) {
        double mixed = 0;
        for (int64_t j = 0; j < s.keys; ++j) {
          bool drop = options.dropout && random_word(p.seed, b, h, i, j) < p.threshold;
          mixed += (drop ? 0 : w[size_t(j)] * p.kept_factor) *
                   v.worth[size_t((kv * s.keys + j) * s.value_width + c)];
        }
        double got = read_output(p.dtype, out.data() + (n * s.value_width + c) * p.item());
        worst = std::fmax(worst, std::fabs(mixed - got) / (1 + std::fabs(mixed)));
        CHECK(got == got);
      }
      auto off = [&](double got, double x) {
        worst_fact = std::fmax(worst_fact, got == x ? 0 : std::fabs(got - x) / (1 + std::fabs(x)));
        CHECK(got == got);
      };
      auto at = size_t(n);
      off(lse[at], none ? -INFINITY : shift + std::log(sum)), off(max_logit[at], most);
      off(entropy[at], entropy_now), off(saturation[at], squares), off(distance[at], way);
      off(flow[at], total == 0 ? 0 : away - away * away + rest - rest_squares);
      off(sink_weight[at], sink_share);
      for (int64_t g = 0; g < kGroups; ++g) off(masses[size_t(n * kGroups + g)], mass[g]);
      // Which one is named may differ where two are equal to rounding.
      int64_t named = top_keys[size_t(n * kTop)];
      tops = tops && (named < 0) == (best < 0);
      tops = tops && (named < 0 || w[size_t(named)] >= lead * (1 - tolerance));
      off(weights[size_t(n * kTop)], lead);
    }
    auto off = [&](double got, double x) {
      worst_total = std::fmax(worst_total, std::fabs(got - x) / (1 + std::fabs(x)));
      CHECK(got == got);
    };
    for (size_t j = 0; j < received.size(); ++j) off(received[j], want_received[j]);
    for (size_t c = 0; c < sums.size(); ++c) off(cell_sum[c], sums[c]), off(cell_most[c], mosts[c]);
    CHECK(seers == want_seers);
    CHECK(worst < of_output);
    CHECK(worst_fact < tolerance);
    CHECK(worst_total < tolerance);
    CHECK(tops);
  }
};

bool never() { return false; }

template <class T>
void run(Dtype dtype, const Sizes& sizes, const Options& options, unsigned seed, double tolerance) {
  double of_output = dtype == Dtype::bf16 ? 4e-3 : dtype == Dtype::f16 ? 5e-4 : tolerance;
  Case<T> one(dtype, sizes, options, seed);
  CHECK(attention(one.p, 2, never));
  one.compare(tolerance, of_output + tolerance);

  // Any number of threads gives the same bits, and so does not watching.
  for (int threads : {1, 3, 8}) {
    Case<T> other(dtype, sizes, options, seed);
    if (threads == 3) other.p.facts = Facts{}, other.p.totals = Totals{};
    CHECK(attention(other.p, threads, never));
    CHECK(one.out == other.out);
    if (threads != 3) {
      CHECK(one.received == other.received);
      CHECK(one.cell_sum == other.cell_sum);
      CHECK(one.entropy == other.entropy);
    }
  }
}

// A block of the weights, keys out of order, against the scores.
void run_weights() {
  Case<float> one(Dtype::f32, {2, 4, 2, 9, 200, 12, 3}, {true, true, true, false, 2, 0}, 5);
  one.p.totals = Totals{};
  std::vector<double> lse(size_t(one.count()));
  one.p.facts.exact_lse = lse.data();
  CHECK(attention(one.p, 1, never));
  std::vector<int64_t> keys;
  for (int64_t j = 0; j < 140; ++j) keys.push_back((j * 77 + 5) % 200);
  std::vector<float> block(lse.size() * keys.size(), NAN);
  CHECK(weights(
      one.p, {keys.data(), int64_t(keys.size()), lse.data(), reinterpret_cast<char*>(block.data())},
      2, never));
  double worst = 0;
  for (int64_t n = 0; n < one.count(); ++n) {
    std::vector<double> logits = one.scores(n);
    for (size_t j = 0; j < keys.size(); ++j) {
      double got = block[size_t(n) * keys.size() + j];
      worst = std::fmax(worst, std::fabs(got - std::exp(logits[size_t(keys[j])] - lse[size_t(n)])));
      CHECK(got == got);
    }
  }
  CHECK(worst < 1e-6);
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
  const Options options[] = {{},
                             {true, false, false, false, 0, 0},
                             {false, true, false, false, 0, 0},
                             {true, false, true, false, 1.5, -0.4},
                             {true, true, true, true, 20, 0}};
  unsigned seed = 1;
  for (const Sizes& sizes : all)
    for (const Options& given : options) {
      run<float>(Dtype::f32, sizes, given, seed++, 3e-5);
      run<double>(Dtype::f64, sizes, given, seed++, 1e-12);
    }
  for (const Sizes& sizes : {all[1], all[3], all[5]})
    for (Dtype dtype : {Dtype::f16, Dtype::bf16})
      for (const Options& given : {options[0], options[4]})
        run<float>(dtype, sizes, given, seed++, 3e-5);
  run_weights();
  Case<float> long_one(Dtype::f32, {1, 2, 2, 4000, 20000, 64, 64}, {}, 7);
  CHECK(!attention(long_one.p, 2, [] { return true; }));
  return test::report(instruction_set().c_str());
}
