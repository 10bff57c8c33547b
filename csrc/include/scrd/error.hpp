// Errors of the library. A message names the argument, what was expected and what came:
// "student[1]: expected (2, 512, 32, 32), got (2, 512, 31, 32)".
#pragma once

#include <stdexcept>
#include <string>

namespace scrd {

// An argument has a wrong type, shape, dtype or value.
class InputError : public std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

// NaN or infinity among values that a result is computed from.
class NotFiniteError : public InputError {
  using InputError::InputError;
};

// Something was used after it was closed.
class ClosedError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// More work waits than was allowed to.
class OverloadedError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Work was dropped because nobody wanted it any more.
class CancelledError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <typename Error = InputError>
[[noreturn]] inline void fail(const std::string& argument, const std::string& expected,
                              const std::string& got) {
  throw Error(argument + ": expected " + expected + ", got " + got);
}

}  // namespace scrd
