/* SPDX-License-Identifier: Apache-2.0 */
/* Errors, memory and time of the example: it stands on dcmem.h alone, not on the project's base. */
#ifndef LM_UTIL_H
#define LM_UTIL_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>

#define _cleanup_(function) __attribute__((cleanup(function)))

/* Remembers a sentence for the user and returns `result`. */
int error_set(int result, const char *format, ...) __attribute__((format(printf, 2, 3)));
const char *error_get(void);

/* 64-byte aligned and zeroed; NULL when there is none or the product overflows. */
void *array_new(size_t count, size_t element_bytes);
void *array_free(void *memory);
static inline void cleanup_array(void *pointer)
{
	void **p = pointer;
	*p = array_free(*p);
}

double seconds_now(void);

/* Where this process's memory is, in bytes, from /proc/self/smaps_rollup; 0 where unknown. */
struct memory_use {
	uint64_t rss, pss, anonymous;
};
void memory_use_read(struct memory_use *ret_use);

#endif
