// A stand-in for the NVIDIA driver library, for tests/driver.rs: memory is host memory, kernels do nothing, and STANDIN in
// the environment names what is wrong with it. It checks that a context is current, and that nothing happens while
// a graph is recorded that the driver would refuse. What was not given back is said on standard error at the end.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_DEVICE = 101, INVALID_CONTEXT = 201 };
enum { UNSUPPORTED_PTX = 222, NOT_FOUND = 500, ILLEGAL_ADDRESS = 700, NOT_SUPPORTED = 801, MISMATCH = 803, CAPTURING = 900 };

static int wrong(const char *what) {
  const char *is = getenv("STANDIN");
  return is && !strcmp(is, what);
}

static int allocations, contexts, streams, modules, graphs, events;
static int capturing, faulted;
static _Thread_local void *current;

// The fills that were recorded, or that a graph does.
struct fills {
  int count;
  struct { uint64_t at; unsigned char value; size_t bytes; } of[64];
};
static struct fills recorded;

#define NEEDS_CONTEXT if (!current) return INVALID_CONTEXT
#define NOT_WHILE_CAPTURING if (capturing) return CAPTURING

__attribute__((destructor)) static void report(void) {
  if (getenv("STANDIN_REPORT"))
    fprintf(stderr, "stand-in: %d allocations %d contexts %d streams %d modules %d graphs %d events left\n", allocations,
            contexts, streams, modules, graphs, events);
}

unsigned cuInit(unsigned flags) {
  if (wrong("mismatch")) return MISMATCH;
  return flags ? INVALID_VALUE : wrong("no-card") ? NO_DEVICE : OK;
}
unsigned cuDriverGetVersion(int *v) { *v = wrong("old-driver") ? 11080 : wrong("refuses") ? 12040 : 13000; return OK; }
unsigned cuGetErrorName(unsigned e, const char **s) {
  *s = e == UNSUPPORTED_PTX ? "CUDA_ERROR_UNSUPPORTED_PTX_VERSION" : e == ILLEGAL_ADDRESS ? "CUDA_ERROR_ILLEGAL_ADDRESS" :
       e == MISMATCH ? "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH" : NULL;
  return *s ? OK : INVALID_VALUE;
}
unsigned cuGetErrorString(unsigned e, const char **s) { (void)e; *s = "in words"; return OK; }
unsigned cuDeviceGetCount(int *n) { *n = 1; return OK; }
unsigned cuDeviceGet(int *d, int n) { *d = n; return n ? INVALID_DEVICE : OK; }
unsigned cuDeviceGetName(char *s, int n, int d) { (void)d; snprintf(s, n, "Stand-in"); return OK; }
unsigned cuDeviceGetAttribute(int *v, int a, int d) {
  (void)d;
  *v = a == 75 ? (wrong("old-card") ? 7 : 9) : a == 76 ? (wrong("old-card") ? 5 : 0) : a == 16 ? 132 : a == 97 ? 232448 : -1;
  return *v < 0 ? INVALID_VALUE : OK;
}
unsigned cuDeviceTotalMem_v2(size_t *n, int d) { (void)d; *n = 1 << 30; return OK; }
unsigned cuDevicePrimaryCtxRetain(void **c, int d) { (void)d; contexts++; *c = &contexts; return OK; }
unsigned cuDevicePrimaryCtxRelease_v2(int d) { (void)d; contexts--; return OK; }
unsigned cuCtxSetCurrent(void *c) { current = c; return c == &contexts ? OK : INVALID_CONTEXT; }

unsigned cuStreamCreate(void **s, unsigned flags) { NEEDS_CONTEXT; streams++; *s = &streams; return flags == 1 ? OK : INVALID_VALUE; }
unsigned cuStreamDestroy_v2(void *s) { NEEDS_CONTEXT; (void)s; streams--; return OK; }
unsigned cuStreamSynchronize(void *s) {
  NEEDS_CONTEXT; NOT_WHILE_CAPTURING;
  return s != &streams ? INVALID_VALUE : faulted ? ILLEGAL_ADDRESS : OK;
}

unsigned cuModuleLoadData(void **m, const void *image) {
  NEEDS_CONTEXT;
  if (wrong("refuses")) return UNSUPPORTED_PTX;
  modules++;
  *m = &modules;
  return (uintptr_t)image % 8 || *(const uint32_t *)image != 0xba55ed50 ? INVALID_VALUE : OK;
}
unsigned cuModuleUnload(void *m) { NEEDS_CONTEXT; (void)m; modules--; return OK; }
unsigned cuModuleGetFunction(void **f, void *m, const char *name) {
  NEEDS_CONTEXT;
  static char names[4096][64];
  static int count;
  (void)m;
  if (count == 4096 || strlen(name) > 63) return NOT_FOUND;
  *f = strcpy(names[count++], name);
  return OK;
}
unsigned cuFuncGetAttribute(int *v, int a, void *f) { NEEDS_CONTEXT; (void)f; *v = a == 0 ? 256 : 0; return OK; }
unsigned cuFuncSetAttribute(void *f, int a, int v) { NEEDS_CONTEXT; (void)f; return a == 8 && v == 232448 ? OK : INVALID_VALUE; }
unsigned cuFuncGetParamInfo(void *f, size_t i, size_t *at, size_t *size) {
  NEEDS_CONTEXT;
  if (strncmp(f, "norm_", 5)) return NOT_SUPPORTED;
  if (i > 6) return INVALID_VALUE;
  *size = i < 5 ? 8 : 4;
  *at = i * 8;
  return OK;
}
unsigned cuLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                        unsigned shared, void *s, void **parameters, void **extra) {
  NEEDS_CONTEXT;
  (void)f; (void)shared;
  if (!gx || !gy || !gz || bx * by * bz > 256 || s != &streams || !parameters || extra) return INVALID_VALUE;
  if (wrong("fault")) faulted = 1;
  return OK;
}

unsigned cuMemAlloc_v2(uint64_t *p, size_t n) {
  NEEDS_CONTEXT; NOT_WHILE_CAPTURING;
  if (faulted) return ILLEGAL_ADDRESS;
  if (n == 0) return INVALID_VALUE;
  if (n > 1 << 30) return OUT_OF_MEMORY;
  allocations++;
  *p = (uintptr_t)aligned_alloc(512, (n + 511) / 512 * 512);
  return OK;
}
unsigned cuMemFree_v2(uint64_t p) { NEEDS_CONTEXT; NOT_WHILE_CAPTURING; allocations--; free((void *)(uintptr_t)p); return OK; }
unsigned cuMemGetInfo_v2(size_t *available, size_t *total) { NEEDS_CONTEXT; *available = 1000; *total = 1 << 30; return OK; }
unsigned cuMemHostAlloc(void **p, size_t n, unsigned flags) {
  NEEDS_CONTEXT; NOT_WHILE_CAPTURING;
  if (flags) return INVALID_VALUE;
  allocations++;
  *p = malloc(n);
  return OK;
}
unsigned cuMemFreeHost(void *p) { NEEDS_CONTEXT; NOT_WHILE_CAPTURING; allocations--; free(p); return OK; }
unsigned cuMemcpyHtoDAsync_v2(uint64_t d, const void *h, size_t n, void *s) {
  NEEDS_CONTEXT; NOT_WHILE_CAPTURING;
  memcpy((void *)(uintptr_t)d, h, n);
  return s == &streams ? OK : INVALID_VALUE;
}
unsigned cuMemcpyDtoHAsync_v2(void *h, uint64_t d, size_t n, void *s) {
  NEEDS_CONTEXT; NOT_WHILE_CAPTURING;
  memcpy(h, (void *)(uintptr_t)d, n);
  return s == &streams ? OK : INVALID_VALUE;
}
unsigned cuMemsetD8Async(uint64_t d, unsigned char v, size_t n, void *s) {
  NEEDS_CONTEXT;
  if (!capturing) memset((void *)(uintptr_t)d, v, n);
  else if (recorded.count < 64) {
    recorded.of[recorded.count].at = d;
    recorded.of[recorded.count].value = v;
    recorded.of[recorded.count++].bytes = n;
  }
  return s == &streams ? OK : INVALID_VALUE;
}

unsigned cuStreamBeginCapture_v2(void *s, unsigned mode) {
  NEEDS_CONTEXT; NOT_WHILE_CAPTURING;
  capturing = 1;
  recorded.count = 0;
  return s == &streams && mode == 1 ? OK : INVALID_VALUE;
}
unsigned cuStreamEndCapture(void *s, void **g) {
  NEEDS_CONTEXT;
  (void)s;
  if (!capturing) return INVALID_VALUE;
  capturing = 0;
  graphs++;
  *g = malloc(sizeof recorded);
  memcpy(*g, &recorded, sizeof recorded);
  return OK;
}
unsigned cuGraphInstantiateWithFlags(void **e, void *g, unsigned long long flags) {
  NEEDS_CONTEXT;
  graphs++;
  *e = malloc(sizeof recorded);
  memcpy(*e, g, sizeof recorded);
  return flags ? INVALID_VALUE : OK;
}
unsigned cuGraphDestroy(void *g) { graphs--; free(g); return OK; }
unsigned cuGraphExecDestroy(void *e) { NEEDS_CONTEXT; graphs--; free(e); return OK; }
unsigned cuGraphLaunch(void *e, void *s) {
  NEEDS_CONTEXT; NOT_WHILE_CAPTURING;
  struct fills *fills = e;
  for (int i = 0; i < fills->count; i++) memset((void *)(uintptr_t)fills->of[i].at, fills->of[i].value, fills->of[i].bytes);
  return s == &streams ? OK : INVALID_VALUE;
}

unsigned cuEventCreate(void **e, unsigned flags) { NEEDS_CONTEXT; events++; *e = &events; return flags & ~2u ? INVALID_VALUE : OK; }
unsigned cuEventRecord(void *e, void *s) { NEEDS_CONTEXT; NOT_WHILE_CAPTURING; return e == &events && s == &streams ? OK : INVALID_VALUE; }
unsigned cuEventSynchronize(void *e) { NEEDS_CONTEXT; (void)e; return OK; }
unsigned cuEventElapsedTime(float *ms, void *a, void *b) { NEEDS_CONTEXT; (void)a; (void)b; *ms = 1.5f; return OK; }
unsigned cuEventDestroy_v2(void *e) { NEEDS_CONTEXT; (void)e; events--; return OK; }
