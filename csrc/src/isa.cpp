#include "scrd/isa.hpp"

#include <atomic>
#include <cstdlib>

#include "scrd/error.hpp"

namespace scrd {
namespace {

constexpr Isa kAll[] = {Isa::plain, Isa::neon, Isa::avx2, Isa::avx512};

bool runs_here(Isa isa) {
  if (isa == Isa::plain) return true;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (isa == Isa::avx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == Isa::avx512) {  // what each_isa.hpp compiles for; Ice Lake, Zen 4 and later
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vbmi");
  }
#elif defined(__aarch64__)
  if (isa == Isa::neon) return true;
#endif
  return false;
}

std::string names(const std::vector<Isa>& isas) {
  std::string text;
  for (Isa isa : isas) text += (text.empty() ? "" : ", ") + std::string(isa_name(isa));
  return text;
}

void check_available(Isa isa, const char* argument) {
  for (Isa other : available_isas()) {
    if (isa == other) return;
  }
  fail(argument, "one that this CPU runs (" + names(available_isas()) + ")", isa_name(isa));
}

Isa chosen_at_start() {
  const char* forced = std::getenv("SCRD_FAST_ISA");
  if (forced == nullptr || *forced == '\0') return available_isas().back();
  const Isa isa = isa_from_name(forced, "SCRD_FAST_ISA");
  check_available(isa, "SCRD_FAST_ISA");
  return isa;
}

std::atomic<Isa>& current() {
  static std::atomic<Isa> isa{chosen_at_start()};
  return isa;
}

}  // namespace

const std::vector<Isa>& available_isas() {
  static const std::vector<Isa> isas = [] {
    std::vector<Isa> found;
    for (Isa isa : kAll) {
      if (runs_here(isa)) found.push_back(isa);
    }
    return found;
  }();
  return isas;
}

Isa active_isa() { return current().load(std::memory_order_relaxed); }

void set_isa(Isa isa) {
  check_available(isa, "isa");
  current().store(isa, std::memory_order_relaxed);
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::neon:
      return "neon";
    case Isa::avx2:
      return "avx2";
    case Isa::avx512:
      return "avx512";
    default:
      return "plain";
  }
}

Isa isa_from_name(const std::string& name, const char* argument) {
  for (Isa isa : kAll) {
    if (name == isa_name(isa)) return isa;
  }
  fail(argument, "one of plain, neon, avx2, avx512", "'" + name + "'");
}

}  // namespace scrd
