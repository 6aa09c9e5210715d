/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the packer decides before it writes anything: names, page sizes, which tensors are equal,
 * the codec of each, and which tensors accompany which.
 */
#ifndef DCMEM_PLAN_H
#define DCMEM_PLAN_H

#include <stdbool.h>
#include <stdint.h>

#include "model/pack.h"
#include "model/source.h"

#define PLAN_UNIQUE UINT64_MAX

struct plan_tensor {
	const struct safetensors_tensor *tensor;
	char *name;	    /* the tensor's, or `qualified` */
	char *qualified;    /* owned: "FILE:NAME", where another file has the same name */
	uint32_t file;	    /* of the source */
	uint32_t page_bytes;
	uint64_t n_pages;
	uint64_t same_as;   /* an earlier tensor of the same bytes, or PLAN_UNIQUE */
	bool twin;	    /* another tensor has its length, type and page size */
	uint8_t codec;
	uint8_t hash[16];   /* if twin */
};

struct plan {
	const struct source *source;
	const struct pack_options *options;
	int *fds; /* owned: of the source's safetensors files, -1 for the others */
	struct plan_tensor *tensors; /* in the order of the container */
	uint64_t n_tensors;
	uint64_t *by_name; /* ids */
};

/* Reads samples and possible duplicates of the source, on all cores. */
int plan_init(struct plan *plan, const struct source *source, const struct pack_options *options);
void plan_deinit(struct plan *plan);

/* The tensor of this name; false if there is none. */
bool plan_find(const struct plan *plan, const char *name, uint64_t *ret_id);
/* What codec_encode() calls the effort. */
int plan_level(const struct plan *plan);
/* Decoded bytes of a page, and reading it. */
uint32_t plan_page_bytes(const struct plan_tensor *tensor, uint64_t page);
int plan_read_page(const struct plan *plan, const struct plan_tensor *tensor, uint64_t page,
		   void *data);

/* The companion of kind `relation` that `weight` has, by the naming of compressed-tensors. */
struct container_companion;
bool plan_companion(const struct plan *plan, uint64_t weight, unsigned relation,
		    struct container_companion *ret_companion);

#endif
