// Inside the SIMT machine: what its own files share.
#pragma once
#include <string>
#include <vector>

#include "simt.hpp"

namespace simt {

// A place, or where a plain access was compiled: the caller turns `pc` into a place.
struct Where {
  Place place{nullptr, 0};
  const void* pc = nullptr;
  static Where at(Place p) { return {p, nullptr}; }
  static Where code(const void* pc) { return {{nullptr, 0}, pc}; }
};

struct Thread {
  dim3 index;       // threadIdx
  unsigned linear;  // number within the block
};
struct Launch {
  dim3 block_index, block_dim, grid_dim;
};
extern thread_local Thread* thread;
extern thread_local Launch launch;

// ---- what the caller sees; the Rust side mirrors these (src/backend/cuda/simt.rs) ----
extern "C" {
// A part of global memory that an argument of the kernel lets it touch.
struct SimtExtent {
  uintptr_t start;
  uint64_t bytes;
  uint32_t access;   // Access
  const char* name;  // of the argument
};
struct SimtFault {
  const char* kind;
  const char* text;
  const char* kernel;
  uint32_t block[3], thread[3];
  const char* file;  // null: see pc
  int32_t line;
  const void* pc;
  // The other party of a race; other_thread < 0: there is none.
  int64_t other_thread;
  const char* other_file;
  int32_t other_line;
  const void* other_pc;
};
typedef void (*SimtReport)(void* context, const SimtFault*);
struct SimtOptions {
  uint64_t seed;   // 0: one warp runs on until a barrier; else threads take turns at random
  uint32_t check;  // watch every access
  uint32_t stop_after;
  SimtReport report;
  void* context;
};
}

enum Access : uint32_t { READ_ONLY = 0, WRITE_ALL = 1, READ_WRITE = 2 };
enum Kind { READ, WRITE, WRITE_IN_FLIGHT, ATOMIC_ACCESS };

struct Copy {
  void* dst;
  const void* src;
  unsigned bytes;
  bool pred;
  Place place;
};
struct Fiber : Thread {
  void* stack_pointer;
  unsigned char* stack;
  bool done;
  const char* waits_for;
  Place place;
  std::vector<Copy> open;
  std::vector<std::vector<Copy>> groups;
};
struct Slot {
  uint32_t arrived, mask;
  Collective operation;
  Place place;
  void* arguments[32];
  Fiber* fibers[32];
};
struct Warp {
  uint32_t alive;
  Slot slots[8];
};
struct Barrier {
  int threads;
  std::vector<Fiber*> waiting;
};

// A place in 32 bits: 0 is none.
uint32_t compact(Where);
Where expand(uint32_t);

// What is known of two bytes of shared memory. A cell of another generation (an earlier block) knows nothing.
enum State : uint8_t { UNWRITTEN, WRITTEN, IN_FLIGHT };
struct SharedCell {
  uint32_t generation;
  uint32_t write_clock;  // 0: never written
  uint32_t write_place, read_place;
  uint16_t writer;
  State state;
  bool by_atomic;
};
// The last read of a cell by each warp.
struct SharedRead {
  uint32_t clock;
  uint32_t lane;
};
// What is known of two bytes of global memory that this launch may write.
struct GlobalCell {
  uint32_t write_block, read_block;  // number + 1; 0: never
  uint32_t write_clock, read_clock;
  uint32_t write_place, read_place;
  uint16_t writer, reader;
  bool by_atomic;
};

constexpr size_t DEAD_ZONE = 64 << 10;
constexpr size_t STACK = 128 << 10;

// Everything about the block at hand; one a launch, reused from block to block.
struct Machine {
  const Registration* kernel;
  void** parameters;
  SimtOptions options;
  const SimtExtent* extents;
  unsigned extent_count;
  unsigned last_extent = 0;
  std::vector<std::vector<GlobalCell>> global;  // by extent; empty for READ_ONLY
  unsigned threads, shared_bytes, live = 0;
  unsigned block_number = 0;
  uint64_t random = 0;
  bool abandoned = false;
  unsigned faults = 0;
  std::vector<std::string> seen;
  unsigned char *map, *shared, *stacks;
  size_t map_bytes;
  void* scheduler = nullptr;  // stack pointer
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  Barrier barriers[16];
  std::vector<Fiber*> ready;  // ring
  unsigned head = 0, tail = 0, ring_mask = 0;
  std::vector<SharedCell> cells;
  std::vector<SharedRead> reads;  // [cells, warps]
  std::vector<uint32_t> clocks;  // [threads, threads]

  Machine(const Registration*, void** parameters, const SimtOptions&, const SimtExtent*, unsigned extents,
          unsigned threads, unsigned shared_bytes);
  ~Machine();
  Machine(const Machine&) = delete;
  void run_block();
  void finish_launch();
  uint32_t* clock(unsigned t) { return clocks.data() + static_cast<size_t>(t) * threads; }
};
extern thread_local Machine* machine;

void report(const char* kind, Where, const char* format, ...) __attribute__((format(printf, 3, 4)));
struct Other {
  int64_t thread;
  Where where;
};
void report_race(const char* kind, Where, Other, const char* format, ...) __attribute__((format(printf, 4, 5)));
[[noreturn]] void abandon_block();

// scheduler.cpp
void wait_here(const char* what, Place);
void wake(Fiber*);
void maybe_yield(unsigned one_in);
unsigned random_below(unsigned n);

// checker.cpp
void check_access(const void* p, unsigned bytes, Kind, Where);
void join_all(const std::vector<Fiber*>&);
void catch_signals();
bool in_shared(const void* p, unsigned bytes);

}  // namespace simt
