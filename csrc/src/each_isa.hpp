// Compiles one body once per instruction set. Usage, in the .cpp of an operation:
//
//   #define SCRD_BODY "anomaly_map.inl"
//   #include "each_isa.hpp"
//
// The body is included inside namespace scrd::plain, and scrd::avx2 and scrd::avx512 or scrd::neon,
// with SCRD_WIDTH (floats in a vector) set and simd.inl before it. Its first comment names the
// header of what it shares with the .cpp, which includes that before. It must be made of free
// functions (no lambdas, no standard containers): a target region does not reach into what is
// instantiated elsewhere. SCRD_PICK(function) is then the function of the active set.
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
// gcc 12 takes the "undefined" operands inside of its own intrinsics for a mistake (bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#pragma GCC diagnostic pop
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "scrd/isa.hpp"

#define SCRD_WIDTH 4
namespace scrd::plain {
#include "simd.inl"
#include SCRD_BODY
}  // namespace scrd::plain
#undef SCRD_WIDTH

#if defined(__x86_64__)

#define SCRD_WIDTH 8
#define SCRD_AVX2
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
namespace scrd::avx2 {
#include "simd.inl"
#include SCRD_BODY
}  // namespace scrd::avx2
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#undef SCRD_AVX2
#undef SCRD_WIDTH

#define SCRD_WIDTH 16
#define SCRD_AVX512
#if defined(__clang__)
#pragma clang attribute push(                                                          \
    __attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,prefer-vector-width=512")
#endif
namespace scrd::avx512 {
#include "simd.inl"
#include SCRD_BODY
}  // namespace scrd::avx512
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#undef SCRD_AVX512
#undef SCRD_WIDTH

#define SCRD_PICK(function)                                                \
  (::scrd::active_isa() == ::scrd::Isa::avx512 ? &::scrd::avx512::function \
   : ::scrd::active_isa() == ::scrd::Isa::avx2 ? &::scrd::avx2::function   \
                                               : &::scrd::plain::function)
#elif defined(__aarch64__)

#define SCRD_WIDTH 4
#define SCRD_NEON
namespace scrd::neon {
#include "simd.inl"
#include SCRD_BODY
}  // namespace scrd::neon
#undef SCRD_NEON
#undef SCRD_WIDTH

#define SCRD_PICK(function) \
  (::scrd::active_isa() == ::scrd::Isa::neon ? &::scrd::neon::function : &::scrd::plain::function)
#else
#define SCRD_PICK(function) (&::scrd::plain::function)
#endif
