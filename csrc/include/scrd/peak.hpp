// What this CPU can do at most, measured: what no network can exceed here.
#pragma once

#include <cstddef>
#include <string>

namespace scrd {

// Operations per second (a multiplication and an addition are two) of multiply-add instructions on
// registers only, by all threads of the shared pool, over at least `seconds`.
//
// kind: "fp32" (FMA; multiply and add where the CPU has none), "bf16" (AMX's tdpbf16ps, else
// vdpbf16ps) or "int8" (AMX's tdpbssd, else vpdpbusd, else vpmaddubsw, vpmaddwd and vpaddd), of the
// instruction set in use (isa.hpp). 0 where there is no such instruction, or the operating system
// permits none. Throws InputError.
double peak_ops(const std::string& kind, double seconds);

// Bytes read plus bytes written per second where all threads of the shared pool copy a block of so
// many bytes, each its share: the fastest of the repetitions, at least three, that fill `seconds`.
// A block that fits into the caches is copied at their rate. Throws InputError, and std::bad_alloc
// where two such blocks do not fit into memory.
double copy_rate(std::size_t bytes, double seconds);

}  // namespace scrd
