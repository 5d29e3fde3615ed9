// A stand-in for cuBLASLt, for tests: products by the plainest loops, on memory of the host (that of the stand-in for the
// driver, and of the SIMT machine). It refuses what cuBLASLt would refuse, checks that matrices lie as they were described,
// and STANDIN in the environment names what is wrong with it. What was not given back is said on standard error at the end.
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, NOT_INITIALIZED = 1, INVALID_VALUE = 7, EXECUTION_FAILED = 13, NOT_SUPPORTED = 15 };
enum { R_32F = 0, R_16F = 2, R_16BF = 14, COMPUTE_32F = 68 };

// That it works on host memory.
const char lacuna_works_on_host_memory = 1;

static int wrong(const char *what) {
  const char *is = getenv("STANDIN");
  return is && !strcmp(is, what);
}

static int handles, products, layouts, preferences, chosen, multiplied;

__attribute__((destructor)) static void report(void) {
  if (getenv("STANDIN_REPORT"))
    fprintf(stderr, "stand-in: %d handles %d products %d layouts %d preferences left, %d algorithms chosen, %d products done\n",
            handles, products, layouts, preferences, chosen, multiplied);
}

// Whether a and b are transposed.
struct product { uint32_t compute, scale, transposed[2], epilogue; uint64_t bias; };
struct layout { uint32_t type; uint64_t rows, cols; int64_t ld; };
struct preference { uint64_t workspace; uint32_t reduction, alignment[4]; };
struct algorithm { uint64_t tag, workspace, alignment[4], sum, zero; };
struct choice { struct algorithm algorithm; size_t workspace; uint32_t state; float waves; int reserved[4]; };

size_t cublasLtGetVersion(void) { return 130102; }
const char *cublasLtGetStatusName(unsigned s) {
  return s == NOT_INITIALIZED ? "CUBLAS_STATUS_NOT_INITIALIZED" : s == EXECUTION_FAILED ? "CUBLAS_STATUS_EXECUTION_FAILED" : NULL;
}
unsigned cublasLtCreate(void **h) {
  if (wrong("no-cublaslt")) return NOT_INITIALIZED;
  handles++;
  *h = &handles;
  return OK;
}
unsigned cublasLtDestroy(void *h) { handles--; return h == &handles ? OK : INVALID_VALUE; }

unsigned cublasLtMatmulDescCreate(void **d, unsigned compute, unsigned scale) {
  struct product *p = calloc(1, sizeof *p);
  p->compute = compute, p->scale = scale, p->epilogue = 1;
  products++;
  *d = p;
  return compute == COMPUTE_32F && scale == R_32F ? OK : NOT_SUPPORTED;
}
unsigned cublasLtMatmulDescDestroy(void *d) { products--; free(d); return OK; }
unsigned cublasLtMatmulDescSetAttribute(void *d, unsigned attribute, const void *value, size_t size) {
  struct product *p = d;
  if ((attribute == 3 || attribute == 4) && size == 4) memcpy(&p->transposed[attribute - 3], value, 4);
  else if (attribute == 7 && size == 4) memcpy(&p->epilogue, value, 4);
  else if (attribute == 8 && size == 8) memcpy(&p->bias, value, 8);
  else return INVALID_VALUE;
  return OK;
}

unsigned cublasLtMatrixLayoutCreate(void **m, unsigned type, uint64_t rows, uint64_t cols, int64_t ld) {
  struct layout *l = calloc(1, sizeof *l);
  l->type = type, l->rows = rows, l->cols = cols, l->ld = ld;
  layouts++;
  *m = l;
  return OK;
}
unsigned cublasLtMatrixLayoutDestroy(void *m) { layouts--; free(m); return OK; }

unsigned cublasLtMatmulPreferenceCreate(void **f) {
  struct preference *p = calloc(1, sizeof *p);
  p->reduction = 7;
  for (int i = 0; i < 4; i++) p->alignment[i] = 256;
  preferences++;
  *f = p;
  return OK;
}
unsigned cublasLtMatmulPreferenceDestroy(void *f) { preferences--; free(f); return OK; }
unsigned cublasLtMatmulPreferenceSetAttribute(void *f, unsigned attribute, const void *value, size_t size) {
  struct preference *p = f;
  if (attribute == 1 && size == 8) memcpy(&p->workspace, value, 8);
  else if (attribute == 3 && size == 4) memcpy(&p->reduction, value, 4);
  else if (attribute >= 5 && attribute <= 8 && size == 4) memcpy(&p->alignment[attribute - 5], value, 4);
  else return INVALID_VALUE;
  return OK;
}

// What an algorithm is for.
static uint64_t sum(const struct product *p, const struct layout *const m[4]) {
  uint64_t h = (p->transposed[0] * 2 + p->transposed[1]) * 64 + p->epilogue;
  for (int i = 0; i < 4; i++) h = (((h * 1000003 + m[i]->type) * 1000003 + m[i]->rows) * 1000003 + m[i]->cols) * 1000003 + m[i]->ld;
  return h;
}
static int size_of(unsigned type) { return type == R_32F ? 4 : type == R_16F || type == R_16BF ? 2 : 0; }

unsigned cublasLtMatmulAlgoGetHeuristic(void *h, void *d, void *a, void *b, void *c, void *o, void *f, int wanted,
                                        struct choice *choices, int *found) {
  const struct product *p = d;
  const struct layout *m[4] = {a, b, c, o};
  const struct preference *want = f;
  *found = 0;
  if (h != &handles || wanted != 1 || want->workspace != 32u << 20 || (want->reduction & ~2u)) return INVALID_VALUE;
  if (p->transposed[0] > 1 || p->transposed[1] > 1) return INVALID_VALUE;
  uint64_t rows = p->transposed[0] ? m[0]->cols : m[0]->rows, inputs = p->transposed[0] ? m[0]->rows : m[0]->cols;
  uint64_t cols = p->transposed[1] ? m[1]->rows : m[1]->cols, also = p->transposed[1] ? m[1]->cols : m[1]->rows;
  if (also != inputs || m[3]->rows != rows || m[3]->cols != cols || memcmp(m[2], m[3], sizeof *m[2])) return INVALID_VALUE;
  for (int i = 0; i < 4; i++)
    if (!size_of(m[i]->type) || m[i]->ld < (int64_t)m[i]->rows) return INVALID_VALUE;
  if (m[0]->type != m[1]->type || m[0]->type == R_32F || (m[3]->type != R_32F && m[3]->type != m[0]->type)) return NOT_SUPPORTED;
  if (p->epilogue != 1 && p->epilogue != 4 && p->epilogue != 32 && p->epilogue != 36) return NOT_SUPPORTED;
  // As if the copies of 4 bytes that tensor cores are fed by were all there is.
  for (int i = 0; i < 4; i++)
    if (want->alignment[i] < 4 || m[i]->ld * size_of(m[i]->type) % 4) return wrong("silent") ? OK : NOT_SUPPORTED;
  memset(choices, 0, sizeof *choices);
  choices->algorithm.tag = 0x5eed;
  choices->algorithm.workspace = choices->workspace = wrong("greedy") ? 33u << 20 : 4096;
  choices->algorithm.sum = sum(p, m);
  for (int i = 0; i < 4; i++) choices->algorithm.alignment[i] = want->alignment[i];
  *found = 1;
  chosen++;
  return OK;
}

static double get(unsigned type, uint64_t at, size_t i) {
  if (type == R_32F) { float x; memcpy(&x, (char *)(uintptr_t)at + 4 * i, 4); return x; }
  uint16_t half;
  memcpy(&half, (char *)(uintptr_t)at + 2 * i, 2);
  if (type == R_16BF) { uint32_t bits = (uint32_t)half << 16; float x; memcpy(&x, &bits, 4); return x; }
  int exponent = half >> 10 & 31, mantissa = half & 1023;
  double x = exponent == 31 ? (mantissa ? NAN : INFINITY) : exponent ? ldexp(1024 + mantissa, exponent - 25) : ldexp(mantissa, -24);
  return half >> 15 ? -x : x;
}

static void put(unsigned type, uint64_t at, size_t i, double value) {
  float x = (float)value;
  if (type == R_32F) { memcpy((char *)(uintptr_t)at + 4 * i, &x, 4); return; }
  uint16_t half;
  if (type == R_16BF) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    half = x != x ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  } else {
    double magnitude = fabs(value);
    int exponent;
    frexp(magnitude, &exponent);
    // Steps of 2^-10 of the power of two below, of 2^-24 at least.
    int step = exponent - 11 < -24 ? -24 : exponent - 11;
    double rounded = nearbyint(ldexp(magnitude, -step)) * ldexp(1, step);
    uint16_t bits;
    if (value != value) bits = 0x7e00;
    else if (rounded >= 65520) bits = 0x7c00;
    else if (rounded < ldexp(1, -14)) bits = (uint16_t)ldexp(rounded, 24);
    else { frexp(rounded, &exponent); bits = (uint16_t)((exponent + 14) << 10 | ((int)ldexp(rounded, 11 - exponent) & 1023)); }
    half = bits | (signbit(value) ? 0x8000 : 0);
  }
  memcpy((char *)(uintptr_t)at + 2 * i, &half, 2);
}

unsigned cublasLtMatmul(void *h, void *d, const void *alpha, uint64_t a, void *ma, uint64_t b, void *mb, const void *beta,
                        uint64_t c, void *mc, uint64_t o, void *mo, const struct algorithm *algorithm, uint64_t workspace,
                        size_t bytes, void *stream) {
  const struct product *p = d;
  const struct layout *m[4] = {ma, mb, mc, mo};
  const uint64_t at[4] = {a, b, c, o};
  float one, added;
  (void)stream;
  memcpy(&one, alpha, 4);
  memcpy(&added, beta, 4);
  if (wrong("failing")) return EXECUTION_FAILED;
  if (h != &handles || algorithm->tag != 0x5eed || algorithm->sum != sum(p, m) || one != 1 || c != o) return INVALID_VALUE;
  if (!workspace || workspace % 16 || bytes < algorithm->workspace) return INVALID_VALUE;
  for (int i = 0; i < 4; i++)
    if (at[i] % algorithm->alignment[i]) return INVALID_VALUE;
  memset((void *)(uintptr_t)workspace, 0xff, algorithm->workspace);
  uint64_t rows = m[3]->rows, cols = m[3]->cols, inputs = p->transposed[1] ? m[1]->cols : m[1]->rows;
  // Widened, with what is summed over side by side.
  double *left = malloc(sizeof *left * rows * inputs), *right = malloc(sizeof *right * cols * inputs);
  for (uint64_t i = 0; i < rows; i++)
    for (uint64_t k = 0; k < inputs; k++)
      left[i * inputs + k] = get(m[0]->type, a, p->transposed[0] ? i * m[0]->ld + k : k * m[0]->ld + i);
  for (uint64_t j = 0; j < cols; j++)
    for (uint64_t k = 0; k < inputs; k++)
      right[j * inputs + k] = get(m[1]->type, b, p->transposed[1] ? k * m[1]->ld + j : j * m[1]->ld + k);
  for (uint64_t j = 0; j < cols; j++)
    for (uint64_t i = 0; i < rows; i++) {
      double total = 0;
      for (uint64_t k = 0; k < inputs; k++) total += left[i * inputs + k] * right[j * inputs + k];
      if (added != 0) total += added * get(m[2]->type, c, j * m[2]->ld + i);
      if (p->epilogue & 4) total += get(m[3]->type, p->bias, i);
      if (p->epilogue & 32) total = 0.5 * total * (1 + tanh(0.79788456080286535588 * (total + 0.044715 * total * total * total)));
      put(m[3]->type, o, j * m[3]->ld + i, total);
    }
  free(left);
  free(right);
  multiplied++;
  return OK;
}
