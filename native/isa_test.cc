// Instruction sets: which one is chosen, and that AVX-512's code gives the same bits in halves.
#include <cstring>
#include <random>

#include "attention.h"
#include "check.h"

using namespace chumoku;

namespace {

struct Sizes {
  int64_t heads, kv_heads, rows, keys, width;
};

// Numbers around 1 in any dtype.
std::vector<char> numbers_of(Dtype dtype, int64_t count) {
  std::mt19937 random(1);
  std::normal_distribution<double> normal;
  Problem p;
  p.dtype = dtype;
  std::vector<char> bytes(static_cast<size_t>(count * p.item()));
  for (int64_t i = 0; i < count; ++i) {
    double x = normal(random);
    float y = static_cast<float>(x);
    uint32_t bits;
    std::memcpy(&bits, &y, 4);
    uint16_t brain = static_cast<uint16_t>(bits >> 16);
    // Any sign and fraction, and an exponent from 2^-4 to 1.
    uint16_t half = static_cast<uint16_t>((bits >> 16 & 0x8000) | (11 + (bits & 3)) << 10 |
                                          (bits >> 10 & 0x3ff));
    const void* from[] = {&y, &x, &half, &brain};
    std::memcpy(bytes.data() + i * p.item(), from[static_cast<int>(dtype)],
                static_cast<size_t>(p.item()));
  }
  return bytes;
}

View view_of(const char* from, int64_t rows, int64_t width, int64_t item) {
  return {from, {0}, rows * width * item, width * item, item};
}

// Output and facts of one call under one instruction set, byte after byte; `options`: softcap,
// bias, sinks and dropout besides.
std::vector<char> bytes_of(const Sizes& s, Dtype dtype, bool options, const std::string& isa) {
  Problem p;
  p.dtype = dtype;
  p.batch = 1, p.heads = s.heads, p.kv_heads = s.kv_heads;
  p.rows = s.rows, p.keys = s.keys, p.width = s.width, p.value_width = s.width;
  int64_t item = p.item();
  std::vector<char> queries = numbers_of(dtype, s.heads * s.rows * s.width);
  std::vector<char> keys = numbers_of(dtype, s.kv_heads * s.keys * s.width);
  std::vector<char> bias = numbers_of(dtype, s.rows * s.keys);
  std::vector<double> sinks(static_cast<size_t>(s.heads), 0.3);
  p.query = view_of(queries.data(), s.rows, s.width, item);
  p.key = p.value = view_of(keys.data(), s.keys, s.width, item);
  p.scale = 0.5;
  int64_t position = s.keys - s.rows;
  p.position = &position;
  int64_t band[] = {0, s.rows, 0, s.keys, -s.keys - s.rows, position};  // causal
  MaskNode node{};
  node.kind = MaskNode::Kind::band;
  node.first = band;
  node.entries = 1;
  Mask mask{{node}, s.rows, s.keys};
  p.mask = &mask;
  if (options) {
    p.softcap = 5;
    p.biased = true;
    p.bias = view_of(bias.data(), s.rows, s.keys, item);
    p.bias.head = 0;
    p.sinks = sinks.data();
    p.dropped = true;
    p.seed = 7, p.threshold = uint64_t{1} << 30, p.kept_factor = 4.0 / 3;
  }

  // No fact takes more than 8 bytes.
  constexpr size_t kTop = 3;
  size_t rows = static_cast<size_t>(s.heads * s.rows);
  size_t cells = static_cast<size_t>(s.heads * s.keys);
  std::vector<double> memory(rows * (6 + 2 * kTop + static_cast<size_t>(s.width)) + 2 * cells);
  double* free = memory.data();
  auto take = [&](size_t count) {
    free += count;
    return reinterpret_cast<char*>(free - count);
  };
  Facts& f = p.facts;
  f.lse = take(rows), f.max_logit = take(rows), f.entropy = take(rows);
  f.saturation = take(rows), f.flow = take(rows), f.distance = take(rows);
  f.top_weights = take(rows * kTop), f.top_keys = reinterpret_cast<int64_t*>(take(rows * kTop));
  f.top = kTop;
  p.totals.received = reinterpret_cast<double*>(take(cells));
  p.totals.seers = reinterpret_cast<int64_t*>(take(cells));
  p.output = take(rows * static_cast<size_t>(s.width));
  CHECK(set_instruction_set(isa));
  CHECK(attention(p, 2, [] { return false; }));
  std::vector<char> bytes(memory.size() * sizeof(double));
  std::memcpy(bytes.data(), memory.data(), bytes.size());
  return bytes;
}

// `one` and `other` are two ways to run the same vectors.
void same_bits(const std::string& one, const std::string& other) {
  const Sizes all[] = {{1, 1, 1, 1, 1},     {4, 2, 37, 129, 64},   {2, 1, 50, 2100, 70},
                       {4, 4, 1, 3000, 16}, {1, 1, 150, 400, 257}, {6, 2, 9, 65, 5}};
  for (const Sizes& s : all)
    for (Dtype dtype : {Dtype::f32, Dtype::f64, Dtype::f16, Dtype::bf16})
      for (bool options : {false, true})
        CHECK(bytes_of(s, dtype, options, one) == bytes_of(s, dtype, options, other));
}

}  // namespace

int main() {
  std::vector<std::string> here = instruction_sets();
  const char* asked = std::getenv("CHUMOKU_ISA");
  std::string first;
  try {
    first = instruction_set();
  } catch (const UnknownInstructionSet& unknown) {
    CHECK(asked && std::string(asked) == unknown.what());
  }
  if (int code = test::lacks_instruction_set()) return code;
  CHECK(first == (asked ? asked : here.front()));
  for (const std::string& name : here) {
    CHECK(knows_instruction_set(name));
    CHECK(set_instruction_set(name) && instruction_set() == name);
  }
  CHECK(!knows_instruction_set("abacus"));
  CHECK(!set_instruction_set("abacus"));
  CHECK(instruction_set() == here.back());  // a name that is refused changes nothing
  bool wide = set_instruction_set("avx512"), lowered = set_instruction_set("avx512_on_avx2");
  if (wide && lowered) same_bits("avx512", "avx512_on_avx2");
  return test::report(first.c_str());
}
