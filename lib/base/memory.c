/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The allocation hook. Owns two function pointers, set once before use; thread-safe as far as the
 * hooked allocator is.
 */
#include "base/memory.h"

#include <stdlib.h>
#include <string.h>

#define MEMORY_ALIGN 64 /* a cache line, and what SIMD loads like */

static void *default_alloc(void *data, size_t n_bytes)
{
	void *memory;

	(void)data;
	if (posix_memalign(&memory, MEMORY_ALIGN, n_bytes ? n_bytes : 1) != 0)
		return NULL;
	return memory;
}

static void default_free(void *data, void *memory)
{
	(void)data;
	free(memory);
}

static struct memory_hooks memory_hooks = {.alloc = default_alloc, .free = default_free};

void memory_set_hooks(const struct memory_hooks *hooks)
{
	memory_hooks.data = hooks->data;
	memory_hooks.alloc = hooks->alloc ? hooks->alloc : default_alloc;
	memory_hooks.free = hooks->free ? hooks->free : default_free;
}

void *memory_alloc(size_t n_bytes)
{
	return memory_hooks.alloc(memory_hooks.data, n_bytes);
}

void *memory_zalloc(size_t n_bytes)
{
	void *memory = memory_alloc(n_bytes);

	if (memory)
		memset(memory, 0, n_bytes);
	return memory;
}

void *memory_array(size_t count, size_t element_bytes)
{
	size_t n_bytes;

	if (__builtin_mul_overflow(count, element_bytes, &n_bytes))
		return NULL;
	return memory_zalloc(n_bytes);
}

char *memory_strndup(const char *text, size_t n_bytes)
{
	char *copy = n_bytes == SIZE_MAX ? NULL : memory_alloc(n_bytes + 1);

	if (!copy)
		return NULL;
	memcpy(copy, text, n_bytes);
	copy[n_bytes] = '\0';
	return copy;
}

char *memory_strdup(const char *text)
{
	return memory_strndup(text, strlen(text));
}

void *memory_free(void *memory)
{
	if (memory) {
		int saved = errno;
		memory_hooks.free(memory_hooks.data, memory);
		errno = saved;
	}
	return NULL;
}

int memory_grow(void **array, size_t *capacity, size_t used, size_t need, size_t element_bytes)
{
	size_t count = *capacity ? *capacity : 16, n_bytes;
	void *bigger;

	if (need <= *capacity)
		return 0;
	while (count < need) {
		if (__builtin_mul_overflow(count, 2, &count))
			return -ENOMEM;
	}
	if (__builtin_mul_overflow(count, element_bytes, &n_bytes))
		return -ENOMEM;
	bigger = memory_alloc(n_bytes);
	if (!bigger)
		return -ENOMEM;
	if (used)
		memcpy(bigger, *array, used * element_bytes);
	memory_free(*array);
	*array = bigger;
	*capacity = count;
	return 0;
}
