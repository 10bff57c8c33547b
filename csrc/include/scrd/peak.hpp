// The arithmetic peak of this CPU, measured: what no network can exceed here.
#pragma once

#include <cstdint>
#include <string>

namespace scrd {

// Operations per second (a multiplication and an addition are two) of multiply-add instructions on
// registers only, by all threads of the shared pool, over at least `seconds`.
//
// kind: "fp32" (FMA; multiply and add where the CPU has none), "bf16" (AMX's tdpbf16ps, else
// vdpbf16ps) or "int8" (AMX's tdpbssd, else vpdpbusd). 0 where the CPU has no such instruction, or
// the operating system permits none. Throws InputError.
double peak_ops(const std::string& kind, double seconds);

}  // namespace scrd
