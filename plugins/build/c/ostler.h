// For plugins in C: memory that lives as long as the instance, that is for one call, and texts.
#ifndef OSTLER_H
#define OSTLER_H
#include <stddef.h>
#include <stdint.h>

// `len` bytes of zeros at an address that suits everything. Never null: without memory the call ends as a trap.
void *ostler_take(size_t len);

// A text that is being written.
typedef struct {
  uint8_t *ptr;
  size_t len, capacity;
} ostler_text;

// An empty text.
ostler_text ostler_begin(void);
void ostler_add(ostler_text *text, const char *more);
void ostler_add_bytes(ostler_text *text, const uint8_t *more, size_t len);
// In decimal digits.
void ostler_add_number(ostler_text *text, uint64_t number);
#endif
