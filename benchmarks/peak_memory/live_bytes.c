/* Counts the live bytes of a process's heap, and their peak: preload it, then read through ctypes.

   TensorFlow's CPU allocator takes each tensor's buffer from malloc's family and gives it back there, so between two
   readings the counter moves by what tensors hold. It counts what malloc hands out (malloc_usable_size), as opposed to
   pages that the system has lent, which do not go back when tensors die. Needs glibc. */

#define _GNU_SOURCE
#include <errno.h>
#include <malloc.h>
#include <stdatomic.h>
#include <stddef.h>

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);

static _Atomic long live, peak;

static void add(long bytes) {
  long now = atomic_fetch_add(&live, bytes) + bytes;
  long most = atomic_load(&peak);
  while (now > most && !atomic_compare_exchange_weak(&peak, &most, now)) {
  }
}

static void *counted(void *block) {
  if (block != NULL) add((long)malloc_usable_size(block));
  return block;
}

long live_bytes(void) { return atomic_load(&live); }
long live_bytes_peak(void) { return atomic_load(&peak); }
void live_bytes_reset_peak(void) { atomic_store(&peak, atomic_load(&live)); }

void *malloc(size_t size) { return counted(__libc_malloc(size)); }
void *calloc(size_t count, size_t size) { return counted(__libc_calloc(count, size)); }
void *memalign(size_t alignment, size_t size) { return counted(__libc_memalign(alignment, size)); }
void *aligned_alloc(size_t alignment, size_t size) { return memalign(alignment, size); }

int posix_memalign(void **block, size_t alignment, size_t size) {
  void *made = memalign(alignment, size);
  if (made == NULL) return ENOMEM;
  *block = made;
  return 0;
}

void *realloc(void *block, size_t size) {
  size_t before = block == NULL ? 0 : malloc_usable_size(block);
  void *moved = __libc_realloc(block, size);
  if (moved != NULL || size == 0) atomic_fetch_sub(&live, (long)before);
  return counted(moved);
}

void free(void *block) {
  if (block != NULL) atomic_fetch_sub(&live, (long)malloc_usable_size(block));
  __libc_free(block);
}
