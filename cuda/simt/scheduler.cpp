// Fibers, their schedule, barriers, warp collectives, and the launch.
#include <sys/mman.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <map>

#include "machine.hpp"

#if defined(__x86_64__)
// Saves the callee-saved registers on the stack at hand and takes those of another.
asm(R"(
.text
.globl simt_switch
.type simt_switch,@function
simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simt_switch,.-simt_switch
)");
constexpr unsigned SAVED = 6;
#elif defined(__aarch64__)
asm(R"(
.text
.globl simt_switch
.type simt_switch,%function
simt_switch:
  sub sp, sp, #176
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x2, sp
  str x2, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #176
  ret
.size simt_switch,.-simt_switch
)");
#else
#error "the SIMT machine switches stacks on x86-64 and aarch64 only"
#endif
extern "C" void simt_switch(void** save, void* to);

namespace simt {

thread_local Thread* thread;
thread_local Launch launch;
thread_local Machine* machine;

dim3 thread_index() { return thread->index; }
dim3 block_index() { return launch.block_index; }
dim3 block_dim() { return launch.block_dim; }
dim3 grid_dim() { return launch.grid_dim; }
int lane() { return static_cast<int>(thread->linear & 31); }
unsigned char* shared_memory() { return machine->shared; }

// ---- the schedule ----
static void switch_to(void** save, Fiber* to) {  // null: the caller of run_block
  thread = to;
  simt_switch(save, to ? to->stack_pointer : machine->scheduler);
}

unsigned random_below(unsigned n) {
  uint64_t& x = machine->random;
  x ^= x << 13;
  x ^= x >> 7;
  x ^= x << 17;
  return static_cast<unsigned>((x >> 33) % n);
}

void wake(Fiber* f) {
  machine->ready[machine->tail++ & machine->ring_mask] = f;
  f->waits_for = nullptr;
}

static Fiber* pick() {
  Machine& m = *machine;
  if (m.head == m.tail) return nullptr;
  // Last in, first out: one warp runs on until a barrier, its stacks stay in the first-level cache.
  if (m.options.seed == 0) return m.ready[--m.tail & m.ring_mask];
  const unsigned i = m.head + random_below(m.tail - m.head);
  std::swap(m.ready[m.head & m.ring_mask], m.ready[i & m.ring_mask]);
  return m.ready[m.head++ & m.ring_mask];
}

void wait_here(const char* what, Place place) {
  Fiber* me = static_cast<Fiber*>(thread);
  me->waits_for = what;
  me->place = place;
  Fiber* next = pick();
  if (next != me) switch_to(&me->stack_pointer, next);
}

void maybe_yield(unsigned one_in) {
  if (machine->options.seed == 0 || random_below(one_in) != 0) return;
  wake(static_cast<Fiber*>(thread));
  wait_here(nullptr, {nullptr, 0});
}

[[noreturn]] void abandon_block() {
  machine->abandoned = true;
  switch_to(&static_cast<Fiber*>(thread)->stack_pointer, nullptr);
  abort();  // an abandoned fiber is never resumed
}

static void fiber_main() {
  Machine& m = *machine;
  m.kernel->call(m.kernel->entry, m.parameters);
  Fiber* me = static_cast<Fiber*>(thread);
  size_t pending = me->open.size();
  for (auto& group : me->groups) pending += group.size();
  if (pending) report("cp.async never waited for", Where::at(me->open.empty() ? me->groups[0][0].place : me->open[0].place),
                      "%zu copies are pending at the thread's exit", pending);
  me->done = true;
  m.live--;
  m.warps[me->linear / 32].alive &= ~(1u << (me->linear & 31));
  switch_to(&me->stack_pointer, m.live ? pick() : nullptr);
  abort();  // a finished fiber is never resumed
}

// ---- barriers ----
void block_barrier(int id, int threads, Place place) {
  Machine& m = *machine;
  if (threads < 0) threads = static_cast<int>(m.threads);
  if (id < 0 || id > 15 || threads > static_cast<int>(m.threads)) {
    report("barrier out of range", Where::at(place), "barrier %d for %d threads in a block of %u", id, threads, m.threads);
    abandon_block();
  }
  Barrier& b = m.barriers[id];
  Fiber* me = static_cast<Fiber*>(thread);
  if (!b.waiting.empty()) {
    const Fiber* first = b.waiting[0];
    const Other other{first->linear, Where::at(first->place)};
    if (b.threads != threads) {
      report_race("barrier count mismatch", Where::at(place), other, "barrier %d: %d and %d threads", id, threads, b.threads);
      abandon_block();
    }
    if (id == 0 && (first->place.line != place.line || strcmp(first->place.file, place.file) != 0)) {
      report_race("divergent __syncthreads", Where::at(place), other, "threads wait at different barriers");
      abandon_block();
    }
  }
  b.threads = threads;
  b.waiting.push_back(me);
  me->place = place;
  if (static_cast<int>(b.waiting.size()) < threads) return wait_here("__syncthreads", place);
  if (m.options.check) join_all(b.waiting);
  for (Fiber* f : b.waiting)
    if (f != me) wake(f);
  b.waiting.clear();
}

// ---- warp collectives ----
void warp_collective(uint32_t mask, Collective operation, void* argument, Execute execute, Place place) {
  Machine& m = *machine;
  Fiber* me = static_cast<Fiber*>(thread);
  const unsigned lane = me->linear & 31;
  Warp& warp = m.warps[me->linear / 32];
  if (!(mask >> lane & 1)) {
    report("lane not in its own mask", Where::at(place), "lane %u, mask %08x", lane, mask);
    abandon_block();
  }
  if (mask & ~warp.alive) {
    report("mask names exited lanes", Where::at(place), "mask %08x, alive %08x", mask, warp.alive);
    abandon_block();
  }
  Slot* slot = nullptr;
  // Collectives of other lanes may be under way, each with its own mask. Should lanes wait for one another in two of them,
  // that is a deadlock and reported as one.
  for (Slot& s : warp.slots) {
    if (!s.arrived || s.mask != mask) continue;
    slot = &s;
    if (s.operation == operation && s.place.line == place.line && (s.place.file == place.file || strcmp(s.place.file, place.file) == 0)) break;
    const unsigned other = static_cast<unsigned>(__builtin_ctz(s.arrived));
    report_race("divergent warp collective", Where::at(place), {s.fibers[other]->linear, Where::at(s.place)},
                "lanes %08x wait elsewhere for mask %08x", s.arrived, mask);
    abandon_block();
  }
  if (!slot) {
    for (Slot& s : warp.slots)
      if (!s.arrived) {
        slot = &s;
        break;
      }
    slot->mask = mask;
    slot->operation = operation;
    slot->place = place;
  }
  slot->arguments[lane] = argument;
  slot->fibers[lane] = me;
  slot->arrived |= 1u << lane;
  if (slot->arrived != mask) return wait_here("a warp collective", place);
  if (execute) execute(slot->arguments, mask);
  // Only __syncwarp orders memory; shuffles, votes and matrices do not.
  if (m.options.check && operation == SYNCWARP) {
    std::vector<Fiber*> all;
    for (int l = 0; l < 32; l++)
      if (mask >> l & 1) all.push_back(slot->fibers[l]);
    join_all(all);
  }
  slot->arrived = 0;
  for (int l = 0; l < 32; l++)
    if ((mask >> l & 1) && slot->fibers[l] != me) wake(slot->fibers[l]);
}

// ---- the launch ----
static const Registration* kernels;
void Registration::add() {
  next = kernels;
  kernels = this;
}

static void* map(size_t bytes) {
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) {
    fprintf(stderr, "simt: no memory for a block (%zu bytes)\n", bytes);
    abort();
  }
  return p;
}

Machine::Machine(const Registration* kernel, void** parameters, const SimtOptions& options, const SimtExtent* extents,
                 unsigned extent_count, unsigned threads, unsigned shared_bytes)
    : kernel(kernel), parameters(parameters), options(options), extents(extents), extent_count(extent_count),
      threads(threads), shared_bytes(shared_bytes), fibers(threads), warps((threads + 31) / 32) {
  // Shared memory lies between two zones where nothing else can be, so that whatever falls there is an overrun.
  map_bytes = 2 * DEAD_ZONE + ((shared_bytes + 4095) & ~4095u);
  map = static_cast<unsigned char*>(simt::map(map_bytes));
  shared = map + DEAD_ZONE;
  stacks = static_cast<unsigned char*>(simt::map(threads * STACK));
  for (ring_mask = 1; ring_mask < threads + 1; ring_mask <<= 1) {}
  ready.resize(ring_mask);
  ring_mask--;
  if (options.check) {
    cells.resize(shared_bytes / 2 + 8);
    reads.resize(cells.size() * warps.size());
    clocks.resize(static_cast<size_t>(threads) * threads);
    global.resize(extent_count);
    for (unsigned i = 0; i < extent_count; i++)
      if (extents[i].access != READ_ONLY) global[i].resize((extents[i].bytes + 1) / 2);
  }
}

Machine::~Machine() {
  munmap(map, map_bytes);
  munmap(stacks, threads * STACK);
}

void Machine::run_block() {
  memset(shared, 0xff, shared_bytes);  // NaN in every format
  if (options.check) {
    std::fill(clocks.begin(), clocks.end(), 0);
    for (unsigned t = 0; t < threads; t++) clock(t)[t] = 1;
  }
  abandoned = false;
  live = threads;
  head = tail = 0;
  for (auto& b : barriers) b.waiting.clear();
  for (auto& w : warps) {
    w.alive = 0;
    for (auto& s : w.slots) s.arrived = 0;
  }
  const dim3 dim = launch.block_dim;
  for (unsigned i = 0; i < threads; i++) {
    Fiber& f = fibers[i];
    f.done = false;
    f.open.clear();
    f.groups.clear();
    f.linear = i;
    f.index = dim3(i % dim.x, i / dim.x % dim.y, i / (dim.x * dim.y));
    f.stack = stacks + i * STACK;
    // Tops of stacks differ in their cache set.
    void** top = reinterpret_cast<void**>(f.stack + STACK - 256 - i * 192 % 4096 / 64 * 64);
#if defined(__x86_64__)
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(fiber_main);
    for (unsigned k = 0; k < SAVED; k++) *--top = nullptr;
#else
    top -= 22;
    memset(top, 0, 176);
    top[11] = reinterpret_cast<void*>(fiber_main);  // x30
#endif
    f.stack_pointer = top;
    warps[i / 32].alive |= 1u << (i & 31);
    wake(&f);
  }
  switch_to(&scheduler, pick());
  thread = nullptr;
  if (live && !abandoned) {
    std::map<std::string, int> waiting;
    const Fiber* one = nullptr;
    for (const Fiber& f : fibers) {
      if (f.done) continue;
      one = &f;
      waiting[std::string(f.waits_for ? f.waits_for : "?") + " at line " + std::to_string(f.place.line)]++;
    }
    std::string text;
    for (auto& w : waiting) text += (text.empty() ? "" : ", ") + std::to_string(w.second) + " threads wait in " + w.first;
    report("deadlock", Where::at(one ? one->place : Place{nullptr, 0}), "%s; %u of %u threads have exited", text.c_str(),
           threads - live, threads);
  }
}

extern "C" {
// Global memory: it ends, to 16 bytes, where a page that is not there begins; before it lies another such page.
static size_t pages(uint64_t bytes) { return ((bytes + 15) / 16 * 16 + 4095) / 4096 * 4096; }
uint8_t* simt_allocate(uint64_t bytes) {
  if (bytes > (1ull << 40)) return nullptr;
  const size_t size = pages(bytes);
  void* p = mmap(nullptr, size + 8192, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) return nullptr;
  uint8_t* first = static_cast<uint8_t*>(p) + 4096;
  if (size && mprotect(first, size, PROT_READ | PROT_WRITE) != 0) {
    munmap(p, size + 8192);
    return nullptr;
  }
  uint8_t* start = first + size - (bytes + 15) / 16 * 16;
  memset(start, 0xff, bytes);
  return start;
}
void simt_free(uint8_t* start, uint64_t bytes) {
  const size_t size = pages(bytes);
  munmap(start + (bytes + 15) / 16 * 16 - size - 4096, size + 8192);
}

// Calls `each` with every kernel's name, file and threads a block.
void simt_kernels(void* context, void (*each)(void*, const char* name, const char* file, uint32_t threads)) {
  for (const Registration* k = kernels; k; k = k->next) each(context, k->name, k->file, k->threads);
}

// Like cuLaunchKernel, with the parts of memory that each pointer argument stands for. Returns the number of faults, or
// UINT32_MAX for a kernel that does not exist and UINT32_MAX - 1 for arguments that are not the kernel's.
uint32_t simt_launch(const char* name, const uint32_t grid[3], const uint32_t block[3], uint32_t shared_bytes,
                     void** parameters, const uint32_t* sizes, uint32_t parameter_count, const SimtExtent* extents,
                     uint32_t extent_count, const SimtOptions* options) {
  const Registration* kernel = kernels;
  while (kernel && strcmp(kernel->name, name) != 0) kernel = kernel->next;
  if (!kernel) return UINT32_MAX;
  if (kernel->parameters != parameter_count || !std::equal(sizes, sizes + parameter_count, kernel->sizes))
    return UINT32_MAX - 1;
  catch_signals();
  const unsigned threads = block[0] * block[1] * block[2];
  Machine m(kernel, parameters, *options, extents, extent_count, threads, shared_bytes);
  machine = &m;
  launch.block_dim = dim3(block[0], block[1], block[2]);
  launch.grid_dim = dim3(grid[0], grid[1], grid[2]);
  const uint64_t blocks = static_cast<uint64_t>(grid[0]) * grid[1] * grid[2];
  if (threads > kernel->threads) {
    report("too many threads", {}, "%u a block, the kernel is made for %u", threads, kernel->threads);
  } else {
    // With a seed the blocks come in another order, too.
    const uint64_t first = options->seed ? (options->seed * 0x9E3779B97F4A7C15ull >> 8) % (blocks ? blocks : 1) : 0;
    for (uint64_t n = 0; n < blocks && m.faults < options->stop_after; n++) {
      const uint64_t i = (first + n) % blocks;
      m.block_number = static_cast<unsigned>(i);
      m.random = ((options->seed + 1) * 0x9E3779B97F4A7C15ull ^ (i + 1) * 0xD1B54A32D192ED03ull) | 1;
      launch.block_index = dim3(i % grid[0], i / grid[0] % grid[1], static_cast<unsigned>(i / (static_cast<uint64_t>(grid[0]) * grid[1])));
      m.run_block();
    }
    m.finish_launch();
  }
  machine = nullptr;
  return m.faults;
}
}

}  // namespace simt
