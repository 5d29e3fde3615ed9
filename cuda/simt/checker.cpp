// What watches memory: bounds, races, values never written, copies in flight.
//
// Order is kept by vector clocks: a thread's clock moves at each barrier that it passes, and takes over those of the
// threads it met there. An access is in order if the earlier one's clock is known to the later one's thread.
#include <signal.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <mutex>

#include "machine.hpp"

// By the linker: where the program lies.
extern "C" const char __executable_start, _end;

namespace simt {

// ---- places in 32 bits: an even number is code, an odd one a row of the table ----
static std::mutex places_lock;
static std::vector<Place> places;

static const char* code_base() { return reinterpret_cast<const char*>(&check_access); }

uint32_t compact(Where w) {
  if (w.pc) {
    // Distances within one program fit in 31 bits; one of 0 is this very function, which no kernel is.
    const int64_t distance = static_cast<const char*>(w.pc) - code_base();
    return static_cast<uint32_t>(distance) << 1;
  }
  if (!w.place.file) return 0;
  thread_local Place last{nullptr, 0};
  thread_local uint32_t last_number = 0;
  if (last.file == w.place.file && last.line == w.place.line) return last_number;
  std::lock_guard<std::mutex> guard(places_lock);
  size_t i = 0;
  while (i < places.size() && (places[i].line != w.place.line || places[i].file != w.place.file)) i++;
  if (i == places.size()) places.push_back(w.place);
  last = w.place;
  last_number = static_cast<uint32_t>(i << 1 | 1);
  return last_number;
}
Where expand(uint32_t number) {
  if (number == 0) return {};
  if (number & 1) {
    std::lock_guard<std::mutex> guard(places_lock);
    return Where::at(places[number >> 1]);
  }
  return Where::code(code_base() + (static_cast<int32_t>(number) >> 1));
}

// ---- reports: one a kind and place ----
static void deliver(const char* kind, Where where, const Other& other, const char* format, va_list arguments) {
  Machine& m = *machine;
  char text[400];
  vsnprintf(text, sizeof text, format, arguments);
  const std::string key = std::string(kind) + std::to_string(compact(where));
  if (std::find(m.seen.begin(), m.seen.end(), key) != m.seen.end()) return;
  m.seen.push_back(key);
  m.faults++;
  const dim3 b = launch.block_index, t = thread ? thread->index : dim3(0, 0, 0);
  SimtFault fault{kind, text, m.kernel->name, {b.x, b.y, b.z}, {t.x, t.y, t.z}, where.place.file, where.place.line,
                  where.pc, other.thread, other.where.place.file, other.where.place.line, other.where.pc};
  if (m.options.report) m.options.report(m.options.context, &fault);
}
void report(const char* kind, Where where, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  deliver(kind, where, {-1, {}}, format, arguments);
  va_end(arguments);
}
void report_race(const char* kind, Where where, Other other, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  deliver(kind, where, other, format, arguments);
  va_end(arguments);
}

// ---- clocks ----
void join_all(const std::vector<Fiber*>& fibers) {
  Machine& m = *machine;
  std::vector<uint32_t> all(m.threads, 0);
  for (const Fiber* f : fibers) {
    const uint32_t* c = m.clock(f->linear);
    for (unsigned i = 0; i < m.threads; i++) all[i] = std::max(all[i], c[i]);
  }
  for (const Fiber* f : fibers) {
    memcpy(m.clock(f->linear), all.data(), m.threads * sizeof(uint32_t));
    m.clock(f->linear)[f->linear]++;
  }
}

// ---- shared memory ----
bool in_shared(const void* p, unsigned bytes) {
  const size_t offset = static_cast<size_t>(static_cast<const unsigned char*>(p) - machine->shared);
  return offset < machine->shared_bytes && bytes <= machine->shared_bytes - offset;
}

static void check_shared(size_t offset, unsigned bytes, Kind kind, Where where) {
  Machine& m = *machine;
  const unsigned me = thread->linear;
  const uint32_t* clock = m.clock(me);
  const uint32_t generation = m.block_number + 1;
  const size_t warps = m.warps.size();
  for (size_t i = offset / 2; i < (offset + bytes + 1) / 2; i++) {
    SharedCell& c = m.cells[i];
    SharedRead* reads = &m.reads[i * warps];
    if (c.generation != generation) {
      c = SharedCell{generation, 0, 0, 0, 0, UNWRITTEN, false};
      std::fill(reads, reads + warps, SharedRead{0, 0});
    }
    const bool writes = kind != READ;
    const bool both_atomic = kind == ATOMIC_ACCESS && c.by_atomic;
    if (c.write_clock && c.writer != me && clock[c.writer] < c.write_clock && !both_atomic)
      report_race(writes ? "race: write after write" : "race: read after write", where, {c.writer, expand(c.write_place)},
                  "shared byte %zu", i * 2);
    if (kind == READ || kind == ATOMIC_ACCESS) {
      if (c.state == UNWRITTEN)
        report("read of shared memory never written", where, "shared byte %zu", i * 2);
      else if (c.state == IN_FLIGHT)
        report_race("read of shared memory with a copy in flight", where, {c.writer, expand(c.write_place)},
                    "shared byte %zu", i * 2);
    }
    if (!writes) {
      reads[me / 32] = {clock[me], me % 32};
      c.read_place = compact(where);
      continue;
    }
    for (size_t w = 0; w < warps; w++) {
      const unsigned reader = static_cast<unsigned>(w * 32 + reads[w].lane);
      if (reads[w].clock && reader != me && clock[reader] < reads[w].clock) {
        report_race("race: write after read", where, {reader, expand(c.read_place)}, "shared byte %zu", i * 2);
        break;
      }
      reads[w].clock = 0;
    }
    c.writer = static_cast<uint16_t>(me);
    c.write_clock = clock[me];
    c.write_place = compact(where);
    c.by_atomic = kind == ATOMIC_ACCESS;
    c.state = kind == WRITE_IN_FLIGHT ? IN_FLIGHT : WRITTEN;
  }
}

// ---- global memory ----
static bool check_global(uintptr_t p, unsigned bytes, Kind kind, Where where) {
  Machine& m = *machine;
  // A part may stand in several arguments (an operation in place): one that may be written is taken before one that may not.
  const bool writes = kind != READ;
  int found = -1, forbidden = -1;
  for (unsigned n = 0; n < m.extent_count; n++) {
    const unsigned i = (m.last_extent + n) % m.extent_count;
    const SimtExtent& e = m.extents[i];
    if (p < e.start || p - e.start >= e.bytes || bytes > e.bytes - (p - e.start)) continue;
    if (e.access == READ_ONLY) {
      if (writes) {
        forbidden = static_cast<int>(i);
        continue;
      }
      if (found < 0) found = static_cast<int>(i);
      if (n == 0) break;
    } else {
      found = static_cast<int>(i);
      break;
    }
  }
  if (found < 0) {
    if (forbidden >= 0) {
      const SimtExtent& e = m.extents[forbidden];
      report("write to a read-only argument", where, "%u bytes at byte %zu of `%s`", bytes, p - e.start, e.name);
      return true;
    }
    const SimtExtent* nearest = nullptr;
    uint64_t least = ~0ull;
    for (unsigned i = 0; i < m.extent_count; i++) {
      const SimtExtent& e = m.extents[i];
      const uint64_t distance = p < e.start ? e.start - p : p - e.start;
      const uint64_t from_end = p < e.start + e.bytes ? (e.start + e.bytes) - p : p - (e.start + e.bytes);
      if (std::min(distance, from_end) < least) least = std::min(distance, from_end), nearest = &e;
    }
    if (nearest && least < (1u << 30))
      report("global memory out of bounds", where, "%s of %u bytes at byte %td of `%s`, which has %llu",
             writes ? "write" : "read", bytes, static_cast<ptrdiff_t>(p - nearest->start), nearest->name,
             static_cast<unsigned long long>(nearest->bytes));
    else
      report("global memory out of bounds", where, "%s of %u bytes at no argument's address", writes ? "write" : "read", bytes);
    return false;
  }
  m.last_extent = static_cast<unsigned>(found);
  if (m.global[found].empty()) return true;
  const SimtExtent& e = m.extents[found];
  const unsigned me = thread->linear;
  const uint32_t* clock = m.clock(me);
  const uint32_t block = m.block_number + 1;
  const size_t first = p - e.start;
  for (size_t i = first / 2; i < (first + bytes + 1) / 2; i++) {
    GlobalCell& c = m.global[found][i];
    const bool both_atomic = kind == ATOMIC_ACCESS && c.by_atomic;
    if (c.write_block && !both_atomic) {
      if (c.write_block != block)
        report_race(writes ? "race between blocks: write after write" : "race between blocks: read after write", where,
                    {c.writer, expand(c.write_place)}, "byte %zu of `%s`, written by block %u", i * 2, e.name,
                    c.write_block - 1);
      else if (c.writer != me && clock[c.writer] < c.write_clock)
        report_race(writes ? "race: write after write" : "race: read after write", where,
                    {c.writer, expand(c.write_place)}, "byte %zu of `%s`", i * 2, e.name);
    }
    if (!writes) {
      c.read_block = block;
      c.reader = static_cast<uint16_t>(me);
      c.read_clock = clock[me];
      c.read_place = compact(where);
      continue;
    }
    if (c.read_block) {
      if (c.read_block != block)
        report_race("race between blocks: write after read", where, {c.reader, expand(c.read_place)},
                    "byte %zu of `%s`, read by block %u", i * 2, e.name, c.read_block - 1);
      else if (c.reader != me && clock[c.reader] < c.read_clock)
        report_race("race: write after read", where, {c.reader, expand(c.read_place)}, "byte %zu of `%s`", i * 2, e.name);
    }
    c.write_block = block;
    c.writer = static_cast<uint16_t>(me);
    c.write_clock = clock[me];
    c.write_place = compact(where);
    c.by_atomic = kind == ATOMIC_ACCESS;
  }
  return true;
}

void check_access(const void* pointer, unsigned bytes, Kind kind, Where where) {
  Machine& m = *machine;
  if (!m.options.check) return;
  const uintptr_t p = reinterpret_cast<uintptr_t>(pointer);
  const uintptr_t map = reinterpret_cast<uintptr_t>(m.map), stacks = reinterpret_cast<uintptr_t>(m.stacks);
  if (p - map < m.map_bytes) {
    if (!in_shared(pointer, bytes)) {
      report("shared memory out of bounds", where, "%s of %u bytes at byte %td of %u", kind == READ ? "read" : "write",
             bytes, static_cast<const unsigned char*>(pointer) - m.shared, m.shared_bytes);
      abandon_block();
    }
    if (bytes > 1 && p % std::min(bytes, 16u)) {
      report("misaligned access", where, "%u bytes at shared byte %zu", bytes, p - map - DEAD_ZONE);
      abandon_block();
    }
    return check_shared(p - map - DEAD_ZONE, bytes, kind, where);
  }
  if (p - stacks < m.threads * STACK) return;  // local variables
  const uintptr_t program = reinterpret_cast<uintptr_t>(&__executable_start);
  if (kind == READ && p - program < reinterpret_cast<uintptr_t>(&_end) - program) return;  // constants
  if (!check_global(p, bytes, kind, where)) abandon_block();
  if (bytes > 1 && p % std::min(bytes, 16u)) {
    report("misaligned access", where, "%u bytes at address ...%03zx", bytes, p & 0xfff);
    abandon_block();
  }
}

void Machine::finish_launch() {
  if (!options.check || faults) return;
  launch.block_index = dim3(0, 0, 0);
  for (unsigned i = 0; i < extent_count; i++) {
    if (extents[i].access != WRITE_ALL) continue;
    size_t missing = 0, first = 0;
    for (size_t j = 0; j < global[i].size(); j++)
      if (!global[i][j].write_block && missing++ == 0) first = j;
    if (missing)
      report("output not written", {}, "%zu of the %llu bytes of `%s`, the first at byte %zu", missing * 2,
             static_cast<unsigned long long>(extents[i].bytes), extents[i].name, first * 2);
  }
}

// ---- what even an unwatched launch notices: pages that are not there ----
static struct sigaction previous;
static thread_local const void* missing_address;
static thread_local const void* missing_from;
// Runs on the fiber's own stack, once the handler has returned: a signal's stack is too small for a report.
static void fault_landing() {
  report("access to memory that is not there", Where::code(missing_from), "address %p", missing_address);
  abandon_block();
}
static void on_segv(int number, siginfo_t* info, void* context) {
  if (!machine || !thread) {  // not ours
    sigaction(number, &previous, nullptr);
    return;
  }
  missing_address = info->si_addr;
  auto& registers = static_cast<ucontext_t*>(context)->uc_mcontext;
  // Places of code are return addresses, behind what they speak of.
#if defined(__x86_64__)
  auto& pc = registers.gregs[REG_RIP];
  auto& sp = registers.gregs[REG_RSP];
  missing_from = reinterpret_cast<const void*>(pc + 1);
  sp = (sp - 256) / 16 * 16 - 8;
  pc = reinterpret_cast<greg_t>(fault_landing);
#else
  missing_from = reinterpret_cast<const void*>(registers.pc + 4);
  registers.sp = (registers.sp - 256) / 16 * 16;
  registers.pc = reinterpret_cast<uint64_t>(fault_landing);
#endif
}
void catch_signals() {
  static std::once_flag once;
  std::call_once(once, [] {
    struct sigaction action {};
    action.sa_sigaction = on_segv;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    sigaction(SIGSEGV, &action, &previous);
  });
}

}  // namespace simt

// ---- the compiler's calls ----
// Kernel files are compiled with -fsanitize=thread, which puts one of these before every plain access; libtsan is not
// linked, these are all there is.
namespace {
inline void seen(const void* p, unsigned bytes, bool writes, const void* pc) {
  simt::Machine* m = simt::machine;
  if (!m || !simt::thread) return;
  if (!m->options.check) return;
  simt::check_access(p, bytes, writes ? simt::WRITE : simt::READ, simt::Where::code(pc));
  simt::maybe_yield(16);
}
}  // namespace
#define HERE __builtin_return_address(0)
#define HOOKS(N)                                                                                  \
  extern "C" void __tsan_read##N(void* p) { seen(p, N, false, HERE); }                            \
  extern "C" void __tsan_write##N(void* p) { seen(p, N, true, HERE); }                            \
  extern "C" void __tsan_unaligned_read##N(void* p) { seen(p, N, false, HERE); }                  \
  extern "C" void __tsan_unaligned_write##N(void* p) { seen(p, N, true, HERE); }                  \
  extern "C" void __tsan_volatile_read##N(void* p) { seen(p, N, false, HERE); }                   \
  extern "C" void __tsan_volatile_write##N(void* p) { seen(p, N, true, HERE); }
HOOKS(1) HOOKS(2) HOOKS(4) HOOKS(8) HOOKS(16)
extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_read_range(void* p, unsigned long n) { seen(p, static_cast<unsigned>(n), false, HERE); }
void __tsan_write_range(void* p, unsigned long n) { seen(p, static_cast<unsigned>(n), true, HERE); }
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void* __tsan_memcpy(void* d, const void* s, size_t n) {
  seen(s, static_cast<unsigned>(n), false, HERE);
  seen(d, static_cast<unsigned>(n), true, HERE);
  return memcpy(d, s, n);
}
void* __tsan_memset(void* d, int c, size_t n) {
  seen(d, static_cast<unsigned>(n), true, HERE);
  return memset(d, c, n);
}
}
