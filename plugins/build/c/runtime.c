// The whole run time of a plugin in C: there is no other library, and nothing of the host beside its interfaces.
//
// An instance lives for one call. Memory is therefore handed out upwards and never taken back; the first 64 KiB lie in
// the initial memory, so that an ordinary decision never grows it.

#include "ostler.h"
#include <stdlib.h>
#include <string.h>

enum { ALIGN = 16, ARENA = 64 << 10, PAGE = 64 << 10 };

static _Alignas(ALIGN) uint8_t arena[ARENA];
static uintptr_t next, end;

_Noreturn void abort(void) { __builtin_trap(); }

void free(void *block) { (void)block; }

void *malloc(size_t len) {
  if (end == 0) {
    next = (uintptr_t)arena;
    end = next + ARENA;
  }
  if (len > SIZE_MAX - PAGE) abort();
  len = (len + ALIGN - 1) & ~(size_t)(ALIGN - 1);
  if (len > end - next) {
    size_t pages = (len + PAGE - 1) / PAGE;
    size_t before = __builtin_wasm_memory_grow(0, pages);
    if (before == SIZE_MAX) abort();
    // What was grown before may lie right below.
    if (before * PAGE != end) next = before * PAGE;
    end = (before + pages) * PAGE;
  }
  void *block = (void *)next;
  next += len;
  return block;
}

void *realloc(void *old, size_t len) {
  uint8_t *block = malloc(len);
  // Bytes behind the old block are copied too, which harms nobody: the new one lies above it.
  if (old) memcpy(block, old, len < (uintptr_t)block - (uintptr_t)old ? len : (uintptr_t)block - (uintptr_t)old);
  return block;
}

void *ostler_take(size_t len) { return memset(malloc(len), 0, len); }

ostler_text ostler_begin(void) { return (ostler_text){malloc(64), 0, 64}; }

void ostler_add_bytes(ostler_text *text, const uint8_t *more, size_t len) {
  if (len > text->capacity - text->len) {
    size_t capacity = 2 * (text->len + len);
    uint8_t *larger = malloc(capacity);
    memcpy(larger, text->ptr, text->len);
    text->ptr = larger;
    text->capacity = capacity;
  }
  memcpy(text->ptr + text->len, more, len);
  text->len += len;
}

void ostler_add(ostler_text *text, const char *more) { ostler_add_bytes(text, (const uint8_t *)more, strlen(more)); }

void ostler_add_number(ostler_text *text, uint64_t number) {
  uint8_t digits[20];
  size_t at = sizeof digits;
  do {
    digits[--at] = '0' + number % 10;
    number /= 10;
  } while (number > 0);
  ostler_add_bytes(text, digits + at, sizeof digits - at);
}

void *memcpy(void *to, const void *from, size_t len) { return memmove(to, from, len); }

void *memmove(void *to, const void *from, size_t len) {
  uint8_t *target = to;
  const uint8_t *source = from;
  if (target <= source) {
    for (size_t at = 0; at < len; at++) target[at] = source[at];
  } else {
    for (size_t at = len; at-- > 0;) target[at] = source[at];
  }
  return to;
}

void *memset(void *to, int byte, size_t len) {
  uint8_t *target = to;
  for (size_t at = 0; at < len; at++) target[at] = (uint8_t)byte;
  return to;
}

int memcmp(const void *a, const void *b, size_t len) {
  const uint8_t *left = a, *right = b;
  for (size_t at = 0; at < len; at++) {
    if (left[at] != right[at]) return left[at] - right[at];
  }
  return 0;
}

size_t strlen(const char *text) {
  size_t len = 0;
  while (text[len]) len++;
  return len;
}
