// Stands in for a tool that listens to NVTX: prints each push of a range and its pop to the file that NVTX_LOG names.
//
// The protocol is that of NVTX 3 (nvtxDetail/nvtxTypes.h): the program calls InitializeInjectionNvtx2 with a function that gives
// export tables by number; one gives the function tables of a module, and a tool puts its own functions in.

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

typedef const void *(*GetExportTable)(uint32_t);
typedef void (*Function)(void);
typedef Function **FunctionTable;

typedef struct {
    size_t size;
    int (*get_module_function_table)(int module, FunctionTable *table, unsigned *size);
} Callbacks;

enum { EXPORT_CALLBACKS = 1, MODULE_CORE = 1 };
// Places in the core table.
enum { RANGE_PUSH_A = 9, RANGE_POP = 11 };

static FILE *file;
static int depth;

static int push(const char *name) {
    fprintf(file, "%*spush %s\n", 2 * depth, "", name);
    return depth++;
}

static int pop(void) {
    depth--;
    fprintf(file, "%*spop\n", 2 * depth, "");
    fflush(file);
    return depth;
}

int InitializeInjectionNvtx2(GetExportTable get) {
    const char *path = getenv("NVTX_LOG");
    if (!path || !(file = fopen(path, "w"))) {
        return 0;
    }
    const Callbacks *callbacks = get(EXPORT_CALLBACKS);
    FunctionTable table = NULL;
    unsigned size = 0;
    if (!callbacks || !callbacks->get_module_function_table(MODULE_CORE, &table, &size)) {
        return 0;
    }
    fprintf(file, "table %u\n", size);
    if (size <= RANGE_POP) {
        return 0;
    }
    *table[RANGE_PUSH_A] = (Function)push;
    *table[RANGE_POP] = (Function)pop;
    return 1;
}
