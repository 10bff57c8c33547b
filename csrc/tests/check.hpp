// The whole test framework. A file csrc/tests/test_<what>.cpp holds tests and is built into the
// runner without being named anywhere:
//
//   TEST(a_pool_of_one_runs_in_the_caller) { CHECK(scrd::ThreadPool(1).threads() == 1); }
//
// A failed CHECK ends its test, not the run. CHECK throws: use it in the test's own thread only.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "scrd/isa.hpp"

namespace scrd::test {

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Makes a test known to the runner.
struct Registered {
  Registered(const char* file, const char* name, void (*run)());
};

inline std::string place(const char* file, int line) {
  return std::string(file) + ":" + std::to_string(line) + ": ";
}

// The instruction set in use; puts back the one before.
class UseIsa {
 public:
  explicit UseIsa(Isa isa) : before_(active_isa()) { set_isa(isa); }
  ~UseIsa() { set_isa(before_); }
  UseIsa(const UseIsa&) = delete;
  UseIsa& operator=(const UseIsa&) = delete;

 private:
  Isa before_;
};

// Largest absolute difference; NaN where a value is.
inline double largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) throw Failure("sizes differ");
  double largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double difference = std::fabs(static_cast<double>(a[i]) - b[i]);
    if (!(difference <= largest)) largest = difference;
  }
  return largest;
}

// Seeded numbers that are the same with every standard library.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t bits() {  // splitmix64
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  double uniform() { return static_cast<double>(bits() >> 11) * 0x1p-53; }  // in [0, 1)

 private:
  std::uint64_t state_;
};

// bfloat16 with a float's upper half.
inline std::uint16_t bf16_cut(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return static_cast<std::uint16_t>(bits >> 16);
}

inline float bf16_value(std::uint16_t bits) {
  const std::uint32_t wide = static_cast<std::uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

}  // namespace scrd::test

#define TEST(name)                                                                 \
  static void name();                                                              \
  static const ::scrd::test::Registered registered_##name(__FILE__, #name, &name); \
  static void name()

#define CHECK(condition)                                                                 \
  do {                                                                                   \
    if (!(condition)) {                                                                  \
      throw ::scrd::test::Failure(::scrd::test::place(__FILE__, __LINE__) + #condition); \
    }                                                                                    \
  } while (false)

// |value - expected| <= tolerance, and neither is NaN.
#define CHECK_NEAR(value, expected, tolerance)                                                     \
  do {                                                                                             \
    const double got_ = (value), wanted_ = (expected);                                             \
    const double off_ = got_ < wanted_ ? wanted_ - got_ : got_ - wanted_;                          \
    if (!(off_ <= (tolerance))) {                                                                  \
      throw ::scrd::test::Failure(::scrd::test::place(__FILE__, __LINE__) + #value " is " +        \
                                  std::to_string(got_) + ", expected " + std::to_string(wanted_) + \
                                  ", off by " + std::to_string(off_));                             \
    }                                                                                              \
  } while (false)

// The statement throws an Error (or what derives from it) with exactly this message.
#define CHECK_THROWS(Error, message, ...)                                                   \
  do {                                                                                      \
    std::string said_;                                                                      \
    bool threw_ = false;                                                                    \
    try {                                                                                   \
      __VA_ARGS__;                                                                          \
    } catch (const Error& error) {                                                          \
      threw_ = true;                                                                        \
      said_ = error.what();                                                                 \
    }                                                                                       \
    if (!threw_ || said_ != (message)) {                                                    \
      throw ::scrd::test::Failure(::scrd::test::place(__FILE__, __LINE__) +                 \
                                  (threw_ ? "threw '" + said_ + "'" : "threw no " #Error) + \
                                  ", expected '" + (message) + "'");                        \
    }                                                                                       \
  } while (false)
