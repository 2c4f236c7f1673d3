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

  // What one row should come to.
  struct Row {
    std::vector<double> logits, weights;
    double lse = -INFINITY, most = -INFINITY, entropy = 0, squares = 0, way = 0, flow = 0;
    double sink_share = 0, lead = 0, mass[kGroups] = {};
    int64_t best = -1;
  };

  Row row(int64_t n) const {
    Row r;
    r.logits = r.weights = scores(n);
    r.most = *std::max_element(r.logits.begin(), r.logits.end());
    double sink = options.sinks ? sinks[size_t(n / s.rows % s.heads)] : -INFINITY;
    double shift = std::max(r.most, sink);
    bool none = shift == -INFINITY;
    double sum = none ? 0 : std::exp(sink - shift);
    for (double& x : r.weights) x = none ? 0 : std::exp(x - shift), sum += x;
    if (!none) r.sink_share = std::exp(sink - shift) / sum, r.lse = shift + std::log(sum);
    for (int64_t j = 0; j < s.keys; ++j) {
      double x = r.weights[size_t(j)] = none ? 0 : r.weights[size_t(j)] / sum;
      double logit = r.logits[size_t(j)];
      if (x > 0) r.entropy -= x * std::log(x);
      r.squares += x * x;
      r.way += x * std::fabs(double(n % s.rows + s.keys - s.rows - j));
      r.mass[groups[size_t(j)]] += x;
      if (logit != -INFINITY && (r.best < 0 || logit > r.logits[size_t(r.best)]))
        r.lead = x, r.best = j;
    }
    double rest = 0, rest_squares = 0;
    for (int64_t j = 0; j < s.keys; ++j)
      if (double x = r.weights[size_t(j)]; j != r.best) rest += x, rest_squares += x * x;
    double away = rest + r.sink_share;
    if (r.lead + rest != 0) r.flow = away - away * away + rest - rest_squares;
    return r;
  }

  // One number of the output of row n.
  double mixed(int64_t n, const std::vector<double>& w, int64_t column) const {
    int64_t b = n / (s.heads * s.rows), h = n / s.rows % s.heads, i = n % s.rows;
    int64_t kv = b * s.kv_heads + h / (s.heads / s.kv_heads);
    double sum = 0;
    for (int64_t j = 0; j < s.keys; ++j) {
      bool drop = options.dropout && random_word(p.seed, b, h, i, j) < p.threshold;
      sum += (drop ? 0 : w[size_t(j)] * p.kept_factor) *
             v.worth[size_t((kv * s.keys + j) * s.value_width + column)];
    }
    return sum;
  }

  // The largest error, against 1 + the size of what should come; no NaN passes.
  struct Worst {
    double worst = 0;
    void operator()(double got, double x) {
      worst = std::fmax(worst, got == x ? 0 : std::fabs(got - x) / (1 + std::fabs(x)));
      CHECK(got == got);
    }
  };

  void compare(double tolerance, double of_output) const {
    Worst output, fact, total;
    for (int64_t n = 0; n < count(); ++n) {
      Row r = row(n);
      for (int64_t c = 0; c < s.value_width; ++c)
        output(read_output(p.dtype, out.data() + (n * s.value_width + c) * p.item()),
               mixed(n, r.weights, c));
      auto at = size_t(n);
      fact(lse[at], r.lse), fact(max_logit[at], r.most);
      fact(entropy[at], r.entropy), fact(saturation[at], r.squares), fact(distance[at], r.way);
      fact(flow[at], r.flow), fact(sink_weight[at], r.sink_share);
      for (int64_t g = 0; g < kGroups; ++g) fact(masses[size_t(n * kGroups + g)], r.mass[g]);
      // Which one is named may differ where two are equal to rounding.
      int64_t named = top_keys[size_t(n * kTop)];
      CHECK((named < 0) == (r.best < 0));
      CHECK(named < 0 || r.weights[size_t(named)] >= r.lead * (1 - tolerance));
      fact(weights[size_t(n * kTop)], r.lead);
    }
    compare_totals(total);
    CHECK(output.worst < of_output);
    CHECK(fact.worst < tolerance);
    CHECK(total.worst < tolerance);
  }

  // Sums over the rows.
  void compare_totals(Worst& off) const {
    std::vector<double> want_received(received.size()), sums(cell_sum.size()), mosts(sums.size());
    std::vector<int64_t> want_seers(seers.size());
    for (int64_t n = 0; n < count(); ++n) {
      int64_t i = n % s.rows, head = n / s.rows;
      Row r = row(n);
      for (int64_t j = 0; j < s.keys; ++j) {
        double x = r.weights[size_t(j)];
        want_received[size_t(head * s.keys + j)] += x;
        want_seers[size_t(head * s.keys + j)] += r.logits[size_t(j)] != -INFINITY;
        int64_t line = ((i + 1) * p.totals.cell_rows - 1) / s.rows;
        int64_t column = ((j + 1) * p.totals.cell_columns - 1) / s.keys;
        auto cell = size_t((head * p.totals.cell_rows + line) * p.totals.cell_columns + column);
        sums[cell] += x, mosts[cell] = std::max(mosts[cell], x);
      }
    }
    for (size_t j = 0; j < received.size(); ++j) off(received[j], want_received[j]);
    for (size_t c = 0; c < sums.size(); ++c) off(cell_sum[c], sums[c]), off(cell_most[c], mosts[c]);
    CHECK(seers == want_seers);
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
  if (int code = test::lacks_instruction_set()) return code;
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
