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

// Output and facts of one call under one instruction set, byte after byte.
template <class T>
std::vector<char> bytes_of(const Sizes& s, const std::string& isa) {
  std::mt19937 random(1);
  std::normal_distribution<double> normal;
  std::vector<T> numbers(static_cast<size_t>((s.heads * s.rows + s.kv_heads * s.keys) * s.width));
  for (T& x : numbers) x = static_cast<T>(normal(random));
  auto view = [&](const T* from, int64_t rows) {
    constexpr int64_t kItem = sizeof(T);
    return View{
        reinterpret_cast<const char*>(from), {0}, rows * s.width * kItem, s.width * kItem, kItem};
  };
  Problem p;
  p.dtype = sizeof(T) == 8 ? Dtype::f64 : Dtype::f32;
  p.batch = 1, p.heads = s.heads, p.kv_heads = s.kv_heads;
  p.rows = s.rows, p.keys = s.keys, p.width = s.width, p.value_width = s.width;
  p.query = view(numbers.data(), s.rows);
  p.key = p.value = view(numbers.data() + s.heads * s.rows * s.width, s.keys);
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

  constexpr int64_t kFactsHere = 6, kTop = 3;
  size_t rows = static_cast<size_t>(s.heads * s.rows), item = sizeof(T);
  size_t out = rows * static_cast<size_t>(s.width) * item;
  std::vector<char> bytes(out + rows * kFactsHere * item + rows * kTop * (8 + item));
  std::vector<int64_t> keys(rows * kTop);
  char* facts = bytes.data() + out;
  auto fact = [&](size_t i) { return facts + i * rows * item; };
  p.output = bytes.data();
  p.facts.lse = fact(0), p.facts.max_logit = fact(1), p.facts.entropy = fact(2);
  p.facts.saturation = fact(3), p.facts.flow = fact(4), p.facts.distance = fact(5);
  p.facts.top_weights = fact(kFactsHere);
  p.facts.top_keys = keys.data();
  p.facts.top = kTop;
  CHECK(set_instruction_set(isa));
  CHECK(attention(p, 2, [] { return false; }));
  std::memcpy(fact(kFactsHere + kTop), keys.data(), keys.size() * 8);
  return bytes;
}

// `one` and `other` are two ways to run the same vectors.
void same_bits(const std::string& one, const std::string& other) {
  const Sizes all[] = {{1, 1, 1, 1, 1},     {4, 2, 37, 129, 64},   {2, 1, 50, 2100, 70},
                       {4, 4, 1, 3000, 16}, {1, 1, 150, 400, 257}, {6, 2, 9, 65, 5}};
  for (const Sizes& s : all) {
    CHECK(bytes_of<float>(s, one) == bytes_of<float>(s, other));
    CHECK(bytes_of<double>(s, one) == bytes_of<double>(s, other));
  }
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
