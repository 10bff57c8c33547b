// Runs the tests: all of them, or those of the files named on the command line ("thread_pool"
// stands for csrc/tests/test_thread_pool.cpp).
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "check.hpp"

namespace scrd::test {
namespace {

struct Test {
  std::string file, name;
  void (*run)();
};

std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

// csrc/tests/test_isa.cpp -> isa
std::string stem(const std::string& path) {
  const std::string file = path.substr(path.find_last_of('/') + 1);
  return file.substr(5, file.size() - 5 - 4);
}

}  // namespace

Registered::Registered(const char* file, const char* name, void (*run)()) {
  tests().push_back({stem(file), name, run});
}

int run(const std::vector<std::string>& wanted) {
  for (const std::string& file : wanted) {
    const bool known = std::any_of(tests().begin(), tests().end(),
                                   [&](const Test& test) { return test.file == file; });
    if (!known) {
      std::fprintf(stderr, "no test in a file of the name '%s'\n", file.c_str());
      return 2;
    }
  }
  int failed = 0, count = 0;
  for (const Test& test : tests()) {
    if (!wanted.empty() && std::find(wanted.begin(), wanted.end(), test.file) == wanted.end()) {
      continue;
    }
    ++count;
    std::printf("%s: %s", test.file.c_str(), test.name.c_str());
    std::fflush(stdout);  // the name is there should the test abort
    alarm(120);           // a test that hangs ends the run
    const auto start = std::chrono::steady_clock::now();
    std::string failure;
    try {
      test.run();
    } catch (const std::exception& error) {
      failure = error.what();
    }
    const double ms =
        std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
    std::printf(" (%.0f ms)\n", ms);
    if (!failure.empty()) {
      ++failed;
      std::printf("  FAILED: %s\n", failure.c_str());
    }
  }
  std::printf("%d tests, %d failed\n", count, failed);
  return failed == 0 ? 0 : 1;
}

}  // namespace scrd::test

int main(int count, char** arguments) {
  return scrd::test::run(std::vector<std::string>(arguments + 1, arguments + count));
}
