// What generated code needs of the standard library. Memory is handed out upwards and never taken back.
#ifndef OSTLER_STDLIB_H
#define OSTLER_STDLIB_H
#include <stddef.h>
void *malloc(size_t len);
// Copies `len` bytes from `old`, whose own length nobody knows: it must lie below the end of memory.
void *realloc(void *old, size_t len);
void free(void *block);
_Noreturn void abort(void);
#endif
