#include "scrd/peak.hpp"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <string>

#include "scrd/error.hpp"
#include "scrd/isa.hpp"
#include "scrd/thread_pool.hpp"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace scrd {
namespace {

constexpr int kChains = 12;
constexpr int kLeastCopies = 3;
constexpr double kTick = 1e-9;  // seconds: what the clock may not see took this long

// kChains instructions on registers, repeated; operations: of one instruction; piece: repetitions
// that take some 10 microseconds, so that a thread that wakes late costs little. run is null where
// the CPU has no such instruction.
struct Loop {
  void (*run)(std::uint64_t repetitions) = nullptr;
  int operations = 0;
  std::uint64_t piece = 8192;
};

#if defined(__x86_64__)

// Latencies are up to 6 cycles at two instructions a cycle, which 12 chains that do not wait for
// each other fill. In assembly, so that no compiler merges, moves or spills any of it. The operands
// are 1.0 in float32 and (0, 1) in bfloat16, so that no chain becomes subnormal. Upper halves are
// left clean: dirty ones would slow down the SSE code of whoever comes next.
#define SCRD_CHAINS(step) \
  step(0) step(1) step(2) step(3) step(4) step(5) step(6) step(7) step(8) step(9) step(10) step(11)
#define SCRD_LOOP(name, zero, spread, step, end)                                                 \
  void name(std::uint64_t repetitions) {                                                         \
    const std::uint32_t operand = 0x3f800000;                                                    \
    asm volatile(SCRD_CHAINS(zero) spread "\n1:\n" SCRD_CHAINS(step) "dec %0\n\tjnz 1b\n" end    \
                 : "+r"(repetitions)                                                             \
                 : "r"(operand)                                                                  \
                 : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", \
                   "xmm9", "xmm10", "xmm11", "xmm12", "xmm14");                                  \
  }

#define SCRD_SSE_ZERO(i) "pxor %%xmm" #i ", %%xmm" #i "\n\t"
#define SCRD_VEX_ZERO(i) "vpxor %%xmm" #i ", %%xmm" #i ", %%xmm" #i "\n\t"
#define SCRD_SSE_STEP(i) "mulps %%xmm14, %%xmm" #i "\n\taddps %%xmm14, %%xmm" #i "\n\t"
#define SCRD_FMA_256(i) "vfmadd231ps %%ymm14, %%ymm14, %%ymm" #i "\n\t"
#define SCRD_FMA_512(i) "vfmadd231ps %%zmm14, %%zmm14, %%zmm" #i "\n\t"
#define SCRD_BF16_512(i) "vdpbf16ps %%zmm14, %%zmm14, %%zmm" #i "\n\t"
// vpdpbusd %ymm14, %ymm14, %ymm<i> in its VEX form, which older assemblers do not know.
#define SCRD_INT8_256(i) \
  ".byte 0xc4, 0xc2 - 0x80 * (" #i " / 8), 0x0d, 0x50, 0xc6 + 8 * (" #i " & 7)\n\t"
#define SCRD_INT8_512(i) "vpdpbusd %%zmm14, %%zmm14, %%zmm" #i "\n\t"

// Without VNNI: pairs of products, pairs of those, and the sum, each an instruction.
#define SCRD_PAIRS(width, i)                                                                   \
  "vpmaddubsw %%" width "14, %%" width "14, %%" width "12\n\tvpmaddwd %%" width "14, %%" width \
  "12, %%" width "12\n\tvpaddd %%" width "12, %%" width #i ", %%" width #i "\n\t"
#define SCRD_PAIRS_256(i) SCRD_PAIRS("ymm", i)
#define SCRD_PAIRS_512(i) SCRD_PAIRS("zmm", i)

SCRD_LOOP(sse, SCRD_SSE_ZERO, "movd %1, %%xmm14\n\tpshufd $0, %%xmm14, %%xmm14", SCRD_SSE_STEP, "")
SCRD_LOOP(fma_256, SCRD_VEX_ZERO, "vmovd %1, %%xmm14\n\tvpbroadcastd %%xmm14, %%ymm14",
          SCRD_FMA_256, "vzeroupper\n")
SCRD_LOOP(fma_512, SCRD_VEX_ZERO, "vpbroadcastd %1, %%zmm14", SCRD_FMA_512, "vzeroupper\n")
SCRD_LOOP(bf16_512, SCRD_VEX_ZERO, "vpbroadcastd %1, %%zmm14", SCRD_BF16_512, "vzeroupper\n")
SCRD_LOOP(int8_256, SCRD_VEX_ZERO, "vmovd %1, %%xmm14\n\tvpbroadcastd %%xmm14, %%ymm14",
          SCRD_INT8_256, "vzeroupper\n")
SCRD_LOOP(int8_512, SCRD_VEX_ZERO, "vpbroadcastd %1, %%zmm14", SCRD_INT8_512, "vzeroupper\n")
SCRD_LOOP(pairs_256, SCRD_VEX_ZERO, "vmovd %1, %%xmm14\n\tvpbroadcastd %%xmm14, %%ymm14",
          SCRD_PAIRS_256, "vzeroupper\n")
SCRD_LOOP(pairs_512, SCRD_VEX_ZERO, "vpbroadcastd %1, %%zmm14", SCRD_PAIRS_512, "vzeroupper\n")

// Two rounds of six tiles of sums, 16 x 16 of 32 bits, that do not wait for each other; an
// instruction of 16 rows takes 16 cycles. The palette's tiles are all of the largest size.
#define SCRD_TILE_STEP(name)                                                    \
  #name " %%tmm7, %%tmm6, %%tmm0\n\t" #name " %%tmm7, %%tmm6, %%tmm1\n\t" #name \
        " %%tmm7, %%tmm6, %%tmm2\n\t" #name " %%tmm7, %%tmm6, %%tmm3\n\t" #name \
        " %%tmm7, %%tmm6, %%tmm4\n\t" #name " %%tmm7, %%tmm6, %%tmm5\n\t"
#define SCRD_TILE_LOOP(function, name)                                                         \
  void function(std::uint64_t repetitions) {                                                   \
    alignas(64) std::uint8_t palette[64] = {1};                                                \
    for (int tile = 0; tile < 8; ++tile) {                                                     \
      palette[16 + 2 * tile] = 64;                                                             \
      palette[48 + tile] = 16;                                                                 \
    }                                                                                          \
    std::uint32_t operand[256];                                                                \
    for (std::uint32_t& pair : operand) pair = 0x3f800000;                                     \
    asm volatile(                                                                              \
        "ldtilecfg %1\n\ttileloadd (%2,%3,1), %%tmm6\n\ttileloadd (%2,%3,1), %%tmm7\n\t"       \
        "tilezero %%tmm0\n\ttilezero %%tmm1\n\ttilezero %%tmm2\n\t"                            \
        "tilezero %%tmm3\n\ttilezero %%tmm4\n\ttilezero %%tmm5\n"                              \
        "1:\n\t" SCRD_TILE_STEP(name) SCRD_TILE_STEP(name) "dec %0\n\tjnz 1b\n\ttilerelease\n" \
        : "+r"(repetitions)                                                                    \
        : "m"(palette), "r"(operand), "r"(std::uint64_t{64}), "m"(operand)                     \
        : "cc");                                                                               \
  }

SCRD_TILE_LOOP(bf16_tiles, tdpbf16ps)
SCRD_TILE_LOOP(int8_tiles, tdpbssd)
constexpr std::uint64_t kTilePiece = 256;

// Whether this process may use tiles, for which it asks the kernel.
bool tiles_permitted() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  static const bool permitted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return permitted;
#else
  return false;
#endif
}

// Feature bits of leaf 7, which compilers do not all know by name.
struct Leaf7 {
  unsigned ecx = 0, edx = 0, eax1 = 0;
  Leaf7() {
    unsigned eax = 0, ebx = 0;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return;
    unsigned ebx1 = 0, ecx1 = 0, edx1 = 0;
    if (eax >= 1) __get_cpuid_count(7, 1, &eax1, &ebx1, &ecx1, &edx1);
  }
};

Loop loop_of(const std::string& kind) {
  const Leaf7 has;
  const Isa isa = active_isa();
  // A lesser set that is asked for is meant without what the CPU has beyond the sets.
  const bool all = isa == available_isas().back();
  if (kind == "fp32") {
    if (isa == Isa::avx512) return {fma_512, 32};
    if (isa == Isa::avx2) return {fma_256, 16};
    return {sse, 8};
  }
  if (kind == "bf16") {
    if (all && (has.edx & (1u << 22)) && tiles_permitted()) return {bf16_tiles, 16384, kTilePiece};
    const bool there = has.eax1 & (1u << 5);
    return there && isa == Isa::avx512 ? Loop{bf16_512, 64} : Loop{};
  }
  if (all && (has.edx & (1u << 25)) && tiles_permitted()) return {int8_tiles, 32768, kTilePiece};
  if (isa == Isa::avx512) {
    return has.ecx & (1u << 11) ? Loop{int8_512, 128} : Loop{pairs_512, 128};
  }
  if (isa == Isa::avx2) {
    return all && (has.eax1 & (1u << 4)) ? Loop{int8_256, 64} : Loop{pairs_256, 64};
  }
  return {};
}

#else

Loop loop_of(const std::string&) { return {}; }

#endif

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

void check_seconds(double seconds) {
  if (!(seconds > 0 && seconds <= 60)) {
    fail("seconds", "a number above 0, 60 at most", std::to_string(seconds));
  }
}

}  // namespace

double peak_ops(const std::string& kind, double seconds) {
  if (kind != "fp32" && kind != "bf16" && kind != "int8") {
    fail("kind", "one of fp32, bf16, int8", "'" + kind + "'");
  }
  check_seconds(seconds);
  const Loop loop = loop_of(kind);
  if (loop.run == nullptr) return 0;
  const std::shared_ptr<ThreadPool> pool = shared_pool();
  const std::size_t pieces = 64 * static_cast<std::size_t>(pool->threads());
  const Clock::time_point start = Clock::now();
  double done = 0, taken = 0;
  while (taken < seconds) {
    pool->for_each(pieces, [&](std::size_t) { loop.run(loop.piece); });
    done += static_cast<double>(pieces * loop.piece);
    taken = seconds_since(start);
  }
  return done * kChains * loop.operations / taken;
}

double copy_rate(std::size_t bytes, double seconds) {
  if (bytes == 0) fail("nbytes", "a positive integer", "0");
  check_seconds(seconds);
  const std::shared_ptr<ThreadPool> pool = shared_pool();
  const auto threads = static_cast<std::size_t>(pool->threads());
  const std::size_t share = bytes / threads, rest = bytes % threads;  // the first ones get one more
  const std::unique_ptr<char[]> source(new char[bytes]), target(new char[bytes]);
  // Touched before the first copy: a page comes into being where it is first written.
  std::memset(source.get(), 1, bytes);
  std::memset(target.get(), 2, bytes);
  const auto copy = [&](std::size_t i) {
    const std::size_t begin = i * share + std::min(i, rest);
    std::memcpy(target.get() + begin, source.get() + begin, share + (i < rest ? 1 : 0));
  };
  double fastest = std::numeric_limits<double>::infinity();
  const Clock::time_point start = Clock::now();
  for (int done = 0; done < kLeastCopies || seconds_since(start) < seconds; ++done) {
    const Clock::time_point begin = Clock::now();
    pool->for_each(threads, copy);
    fastest = std::min(fastest, std::max(seconds_since(begin), kTick));
  }
  return 2 * static_cast<double>(bytes) / fastest;
}

}  // namespace scrd
