// What compiled kernels and the engine (src/engine/abi.rs) say to each other. The two files are kept in step by hand.
#pragma once
#include "types.h"

namespace metal_host {

// A string literal; the lint has these in constant memory.
#ifdef METAL_HOST_LINT
typedef const __constant char* Text;
#else
typedef const char* Text;
#endif

// A function of the engine; the lint, which calls none, can't have pointers to functions in a struct.
#ifdef METAL_HOST_LINT
#define METAL_HOST_FUNCTION(name) name
#define METAL_HOST_CONST const
#else
#define METAL_HOST_FUNCTION(name) (*name)
#define METAL_HOST_CONST
#endif

// Where in the kernel's source something was asked for. Two threads of one simdgroup that wait at different sites have diverged.
struct Site {
  Text operation;
  Text file;
  uint32_t line;
  uint32_t column;
};

// What every lane of a simdgroup brought to an operation.
struct Exchange {
  const unsigned char* slots;  // 32 slots of 64 bytes
  const unsigned char* order;  // the order in which lanes are reduced, a permutation of 0..32
  uint32_t active;             // bit i: lane i took part
  uint32_t lane;               // the caller
};

// The engine's functions, set once after loading.
struct Engine {
  void METAL_HOST_FUNCTION(threadgroup_barrier)(uint32_t flags, const Site*) METAL_HOST_CONST;
  void METAL_HOST_FUNCTION(simdgroup_barrier)(uint32_t flags, const Site*) METAL_HOST_CONST;
  void METAL_HOST_FUNCTION(exchange)(const void* value, uint64_t size, const Site*, Exchange*) METAL_HOST_CONST;
  uint32_t METAL_HOST_FUNCTION(lane)() METAL_HOST_CONST;
  void* METAL_HOST_FUNCTION(threadgroup_variable)(const void* key, uint64_t size, uint64_t align, Text name) METAL_HOST_CONST;
  void METAL_HOST_FUNCTION(access)(const void* address, uint64_t size, uint32_t kind, const void* pc) METAL_HOST_CONST;
  void METAL_HOST_FUNCTION(undefined)(Text what, Text file, uint32_t line, const void* pc) METAL_HOST_CONST;
};
enum Access : uint32_t { READ = 0, WRITE = 1, ATOMIC = 2, ATOMIC_STORE = 3 };

// Why a parameter of a kernel has the value that it has.
enum Source : uint32_t {
  BUFFER, THREADGROUP,
  THREAD_POSITION_IN_GRID, THREADGROUP_POSITION_IN_GRID, THREAD_POSITION_IN_THREADGROUP, THREAD_INDEX_IN_THREADGROUP,
  THREADS_PER_THREADGROUP, DISPATCH_THREADS_PER_THREADGROUP, THREADGROUPS_PER_GRID, THREADS_PER_GRID,
  THREAD_INDEX_IN_SIMDGROUP, SIMDGROUP_INDEX_IN_THREADGROUP, SIMDGROUPS_PER_THREADGROUP, DISPATCH_SIMDGROUPS_PER_THREADGROUP,
  THREADS_PER_SIMDGROUP, QUADGROUP_INDEX_IN_THREADGROUP, THREAD_INDEX_IN_QUADGROUP,
};

#ifndef METAL_HOST_LINT
struct Parameter {
  Source source;
  uint32_t index;     // of a buffer or of threadgroup memory
  bool (*present)();  // the function constant that decides whether it is there, or null
  uint64_t size;      // bytes that a reference needs, 0 for a pointer
};

struct Arguments {
  void* const* buffers;
  void* const* threadgroup;
  const uint32_t (*builtins)[4];  // by Source
};

struct Constant {
  uint32_t index;
  Text name;
  void* value;
  uint32_t size;
  uint32_t kind;  // 0 bool, 1 unsigned, 2 signed, 3 float
  bool* defined;
};

// The one symbol that a compiled kernel exports.
struct Module {
  void (*call)(const Arguments*);
  const Parameter* parameters;
  uint64_t parameter_count;
  const Constant* constants;
  uint64_t constant_count;
  void (*derive)();  // computes what depends on function constants
  const Engine** engine;
};

#endif
static const Engine* engine;

}  // namespace metal_host
