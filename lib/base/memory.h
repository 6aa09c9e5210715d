/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The one allocation hook: heap memory of every room comes from here, so that a library user can
 * replace the allocator and a test can make allocation number N fail.
 */
#ifndef DCMEM_MEMORY_H
#define DCMEM_MEMORY_H

#include <stddef.h>
#include <stdint.h>

#include "base/cleanup.h"

struct memory_hooks {
	void *data;
	void *(*alloc)(void *data, size_t n_bytes); /* aligned to 64 bytes */
	void (*free)(void *data, void *memory);
};

/* NULL members restore the C library. Call before the first allocation. */
void memory_set_hooks(const struct memory_hooks *hooks);

/* 64-byte aligned; NULL when there is none or a product overflows. Zeroed but for memory_alloc. */
void *memory_alloc(size_t n_bytes);
void *memory_zalloc(size_t n_bytes);
void *memory_array(size_t count, size_t element_bytes);
char *memory_strdup(const char *text);
char *memory_strndup(const char *text, size_t n_bytes);
/* NULL is fine. Returns NULL. */
void *memory_free(void *memory);

/* Grows an array to hold `need` elements, doubling; the tail is not zeroed. 0 or -ENOMEM. */
int memory_grow(void **array, size_t *capacity, size_t used, size_t need, size_t element_bytes);

static inline void cleanup_memory(void *pointer)
{
	void **p = pointer;
	*p = memory_free(*p);
}

#endif
