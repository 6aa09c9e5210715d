/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is compared: the codecs of lib/codec, their peers, and copies, behind one interface. A state
 * belongs to one thread at a time and is used again for page after page.
 */
#ifndef BENCH_CODER_H
#define BENCH_CODER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BENCH_CODER_MAX 64
/* Writable bytes beyond dst_capacity that encoders may use as they work. */
#define BENCH_CODER_SLACK (1U << 20)

struct bench_coder {
	char name[32];
	const char *library; /* NULL: this project's; else name and version */
	uint32_t id;	     /* of a codec of lib/codec */
	int level;	     /* of a peer */
	bool is_copy;	     /* no page form: copies raw pages, without a hash */
	bool has_paths;	     /* runs differently by cpu_path() */

	void *(*open)(const struct bench_coder *coder, bool encodes); /* NULL: no memory */
	void (*close)(void *state);
	/* 0, or anything else for a page that is not right. */
	int (*decode)(const struct bench_coder *coder, void *state, const uint8_t *src,
		      size_t src_bytes, uint8_t *dst, size_t dst_bytes);
	/* Stored bytes, 0 if they are not fewer than src_bytes; negative errno. NULL for copies. */
	int64_t (*encode)(const struct bench_coder *coder, void *state, const uint8_t *src,
			  size_t src_bytes, uint8_t *dst);
};

/* All there are: copies first, then the peers, then ours. Returns how many. */
unsigned bench_coders(struct bench_coder ret_coders[BENCH_CODER_MAX], int effort);
/* The peers alone, appended. */
unsigned bench_peers(struct bench_coder *ret_coders);
/* May pages of this dtype be stored by it? False for codecs meant for other dtypes alone. */
bool bench_coder_takes(const struct bench_coder *coder, uint32_t dtype);

#endif
