/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Packs a source into a container, on all cores. The result depends on the source and the options
 * that change it, never on the count of threads.
 */
#ifndef DCMEM_PACK_H
#define DCMEM_PACK_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define PACK_PAGE_BYTES (256U << 10) /* untuned */

enum pack_codec {
	PACK_CODEC_AUTO, /* measured on samples of each tensor, as the effort says */
	PACK_CODEC_RAW,
	PACK_CODEC_ZSTD,
	PACK_CODEC_PAIR, /* the pair codec of the dtype's size */
	PACK_CODEC_PACK, /* the pack codec of the dtype's size */
	PACK_N_CODECS,
};

/* What PACK_CODEC_AUTO looks for. */
enum pack_effort {
	PACK_EFFORT_NORMAL, /* the fastest to decode that is close to the smallest */
	PACK_EFFORT_FAST,   /* the fastest to decode that saves anything worth decoding */
	PACK_EFFORT_DENSE,  /* the smallest, at the highest levels: slow to pack */
	PACK_N_EFFORTS,
};

const char *pack_codec_name(unsigned codec);   /* "auto", ..., NULL where there is none */
const char *pack_effort_name(unsigned effort); /* "normal", ... */

struct pack_options {
	unsigned n_jobs; /* encoding threads, at least 1 */
	enum pack_codec codec;
	enum pack_effort effort;
	bool hints; /* measured, so that no two containers are alike */
	const atomic_bool *cancel; /* not NULL and true: stop with -EINTR */
	void (*progress)(void *data, uint64_t done_bytes, uint64_t total_bytes);
	void *data;
	/* Tensors that are lossy forms of what the user has; NULL: none. */
	bool (*is_lossy)(const void *lossy, const char *name);
	const void *lossy;
};

/* Refuses, with a message, an output that is a directory, the source, or inside it. */
int pack_check_output(const char *source, const char *path);

/* 0, -errno, or a positive value as DCMEM_E_..., with a message. On failure no file is left. */
int pack(const char *source, const char *path, const struct pack_options *options);

#endif
