// The vector functions of the instruction set that this file is compiled for, over all their
// numbers.
#include "lanes.h"

#include <limits>
#include <random>
#include <vector>

#include "check.h"

using namespace chumoku::CHUMOKU_ISA;

namespace {

template <class T>
Vec<T> all(T x) {
  return spread(x);
}

// Units in the last place of the exact value between it and what came.
template <class T>
double off_by(T got, long double exact) {
  T rounded = static_cast<T>(exact);
  long double unit = std::nextafter(std::fabs(rounded), std::numeric_limits<T>::infinity()) -
                     static_cast<long double>(std::fabs(rounded));
  return static_cast<double>(std::fabs(got - exact) / unit);
}

template <class T>
double worst_exp(double from, double to, bool only_normal) {
  chumoku::CHUMOKU_ISA::Unit<T> unit{};
  long double twos = 1.4426950408889634074L;
  unit.high = static_cast<T>(twos);
  unit.low = static_cast<T>(twos - static_cast<long double>(unit.high));
  unit.nats = 1;
  unit.lowest = Lanes<T>::kLowest / unit.high;
  std::mt19937_64 random(1);
  std::uniform_real_distribution<double> logs(std::log2(from), std::log2(to));
  double worst = 0;
  for (int i = 0; i < 1000000; ++i) {
    T x = -static_cast<T>(std::exp2(logs(random)));
    long double exact = std::exp(static_cast<long double>(x));
    if (only_normal && exact < std::numeric_limits<T>::min()) continue;
    worst = std::fmax(worst, off_by<T>(exp2_lanes<T>(all(x), unit)[0], exact));
  }
  CHECK(exp2_lanes<T>(all(T(0)), unit)[0] == 1);
  CHECK(exp2_lanes<T>(all(-std::numeric_limits<T>::infinity()), unit)[0] == 0);
  CHECK(exp2_lanes<T>(all(-std::numeric_limits<T>::max()), unit)[0] == 0);
  T nan = exp2_lanes<T>(all(std::numeric_limits<T>::quiet_NaN()), unit)[0];
  CHECK(nan != nan);
  return worst;
}

template <class T>
double worst_tanh() {
  std::mt19937_64 random(2);
  std::uniform_real_distribution<double> logs(-40, 8);
  double worst = 0;
  for (int i = 0; i < 300000; ++i) {
    T x = static_cast<T>(std::exp2(logs(random)) * (i % 2 ? 1 : -1));
    worst = std::fmax(worst,
                      off_by<T>(tanh_lanes<T>(all(x))[0], std::tanh(static_cast<long double>(x))));
  }
  T inf = std::numeric_limits<T>::infinity(), nan = tanh_lanes<T>(all(inf - inf))[0];
  CHECK(tanh_lanes<T>(all(inf))[0] == 1);
  CHECK(tanh_lanes<T>(all(-inf))[0] == -1);
  CHECK(tanh_lanes<T>(all(T(0)))[0] == 0);
  CHECK(nan != nan);
  return worst;
}

double worth(uint16_t bits, int mantissa, int bias) {
  int exponent = (bits & 0x7fff) >> mantissa, most = (1 << (15 - mantissa)) - 1;
  int rest = bits & ((1 << mantissa) - 1);
  double size = exponent == most ? (rest ? NAN : INFINITY)
                : exponent       ? std::ldexp((1 << mantissa) + rest, exponent - bias - mantissa)
                                 : std::ldexp(rest, 1 - bias - mantissa);
  return bits & 0x8000 ? -size : size;
}

// The last lane of a vector that is read and written as a 16-bit dtype.
template <class S>
float widened(uint16_t bits) {
  std::vector<uint16_t> narrow(Lanes<float>::n, bits);
  return read_lanes(reinterpret_cast<const char*>(narrow.data()), S{})[Lanes<float>::n - 1];
}

template <class S>
uint16_t narrowed(float x) {
  uint16_t narrow[Lanes<float>::n];
  write_lanes(reinterpret_cast<char*>(narrow), spread(x), S{});
  return narrow[Lanes<float>::n - 1];
}

template <class T>
void compare_square() {
  constexpr int n = Lanes<T>::n;
  Vec<T> x[n];
  for (int i = 0; i < n; ++i)
    for (int j = 0; j < n; ++j) x[i][j] = T(100 * i + j);
  turn_square<T>(x);
  bool right = true;
  for (int i = 0; i < n; ++i)
    for (int j = 0; j < n; ++j) right = right && x[i][j] == T(100 * j + i);
  CHECK(right);
}

// Every number of a 16-bit dtype goes to float and back; what lies between two goes to the nearer.
template <class From, class To>
void compare_narrow(const From& from, const To& to, int mantissa, int bias) {
  bool right = true, back = true, nearest = true;
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    double x = worth(uint16_t(bits), mantissa, bias);
    float wide = from(uint16_t(bits));
    right = right && (std::isnan(x) ? std::isnan(wide) : wide == x);
    if (std::isnan(x)) {
      back = back && std::isnan(from(to(wide)));
      continue;
    }
    back = back && to(wide) == bits;
    if (std::isinf(x) || (bits & 0x7fff) == 0x7fff) continue;
    double above = worth(uint16_t(bits + 1), mantissa, bias);
    if (std::isinf(above)) above = 2 * x - worth(uint16_t(bits - 1), mantissa, bias);
    double middle = (x + above) / 2;
    uint32_t even = bits % 2 ? bits + 1 : bits;
    nearest = nearest && to(float(middle)) == even;
    nearest = nearest && to(std::nextafterf(float(middle), float(x))) == bits;
    nearest = nearest && to(std::nextafterf(float(middle), float(above))) == bits + 1;
  }
  CHECK(right);
  CHECK(back);
  CHECK(nearest);
}

// A known answer of Philox4x32-10: the authors' test vector of all ones.
void compare_philox() {
  U64 c[4];
  for (U64& word : c) word = U64{} + 0xffffffffu;
  philox(c, ~uint64_t{0});
  constexpr uint32_t wanted[] = {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd};
  for (int i = 0; i < 4; ++i) CHECK(c[i][0] == wanted[i]);
}

void compare_rows() {
  std::vector<uint16_t> narrow;
  for (uint32_t i = 0; i < 37; ++i) narrow.push_back(uint16_t(0x3c00 + 11 * i));
  std::vector<float> wide(37);
  widen_halves(reinterpret_cast<const char*>(narrow.data()), 37, wide.data());
  bool right = true;
  for (size_t i = 0; i < 37; ++i) right = right && wide[i] == from_half(narrow[i]);
  widen_brains(reinterpret_cast<const char*>(narrow.data()), 37, wide.data());
  for (size_t i = 0; i < 37; ++i) right = right && wide[i] == from_brain(narrow[i]);
  CHECK(right);
}

}  // namespace

int main() {
  if (int skipped = chumoku::test::lacks_instruction_set()) return skipped;
  double exp_float = worst_exp<float>(1e-9, 88, true),
         exp_double = worst_exp<double>(1e-17, 709, true);
  double tanh_float = worst_tanh<float>(), tanh_double = worst_tanh<double>();
  std::printf("exp %.2f %.2f, tanh %.2f %.2f units in the last place\n", exp_float, exp_double,
              tanh_float, tanh_double);
  CHECK(exp_float < 2);
  CHECK(exp_double < 2);
  CHECK(tanh_float < 8);
  CHECK(tanh_double < 8);
  compare_narrow(from_half, to_half, 10, 15);
  compare_narrow(from_half, narrowed<Half>, 10, 15);
  compare_narrow(widened<Half>, to_half, 10, 15);
  compare_narrow(from_brain, narrowed<Brain>, 7, 127);
  compare_narrow(widened<Brain>, narrowed<Brain>, 7, 127);
  compare_square<float>();
  compare_square<double>();
  compare_philox();
  compare_rows();
  return chumoku::test::report("lanes");
}
