/* SPDX-License-Identifier: Apache-2.0 */
/* Loading: a container file becomes sealed, verified regions, on the loader thread. */
#ifndef DCMEM_MODEL_LOAD_H
#define DCMEM_MODEL_LOAD_H

#include "layout.h"
#include "model/container.h"
#include "pool.h"
#include "region.h"

/* Stored forms, sealed. A slot of the model's table; REGION_NONE where nothing lies. */
struct segment {
	struct region region;
	uint32_t generation;
	bool retired; /* nobody is sent here any more; freed once nobody looks */
	uint32_t n_users; /* decodes and changes that read it now */
};

struct loaded_model {
	struct region index, placement;
	struct segment *segments; /* room for SHM_MAX_SEGMENTS */
	uint32_t n_segments;	  /* all used slots are below */
	struct held *held;	  /* of each tensor */
	struct layout layout;	  /* as it was when loaded */
	struct container file;	  /* open, to read stored forms again */
	bool file_is_open;
	struct region *files; /* n_files blobs of sidecar files */
	uint32_t n_files;
	struct index catalog; /* in the index region */
	uint8_t fingerprint[16];
	uint64_t decoded_bytes, coded_bytes; /* of all tensors; of those not raw */
	uint64_t n_small_pages; /* regions that wanted huge pages and got none */
};

/* How the bytes of segments came in. */
struct load_reads {
	uint64_t direct_bytes;	/* past the page cache */
	uint64_t cached_bytes;	/* from it, or into it */
	uint64_t dropped_bytes; /* through it, and gone from it again */
};

struct model_load {
	struct pool_job job; /* the caller sets done() */
	const char *path;    /* the caller's, until done() */
	const struct store_config *config;
	struct budget *budget;
	struct pool *verifiers; /* another pool than the loader's */
	const bool *cancelled;	/* atomic: give up early, as all loads */
	bool given_up;		/* atomic: this one */
	uint64_t wanted;	/* atomic: room that is waited for; the store makes it if it can */
	struct load_reads reads;
	int result;
	char message[512];
	struct loaded_model loaded; /* result 0: charged as inflight; take it */
};

void model_load_init(struct model_load *load);
bool model_load_is_over(const struct model_load *load); /* nobody wants it any more */
void loaded_model_close(struct loaded_model *loaded);

#endif
